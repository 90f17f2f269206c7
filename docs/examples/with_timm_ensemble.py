"""A training script of timm's parts: its data set, loader, model, optimizer and schedule."""

import torch
from timm import create_model
from timm.data import create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from ensadv_data import EnsembleMix, TorchImages, open_dataset


def train_one_epoch(epoch, model, loader, optimizer, loss_fn, mix):
    model.train()
    for input, target, index in loader:
        input, target = mix(input, target, index, model)
        loss = loss_fn(model(input), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


model = create_model("test_resnet", num_classes=3)
config = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
dataset = TorchImages(open_dataset("folder:photos", "train", preprocess="size=32"))
scale = {"mean": config["mean"], "std": config["std"]}
mix = EnsembleMix(dataset, ["shards"], epsilon="16/255", online="step-ll", **scale)
about = {"input_size": config["input_size"], "mean": config["mean"], "std": config["std"], "no_aug": True}
loader = create_loader(dataset, batch_size=8, is_training=True, use_prefetcher=False, num_workers=0, **about)
optimizer = create_optimizer_v2(model, opt="momentum", lr=0.01)
scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=2, cooldown_epochs=0)
for epoch in range(epochs):
    train_one_epoch(epoch, model, loader, optimizer, torch.nn.CrossEntropyLoss(), mix)
    scheduler.step(epoch + 1)
torch.save(model.state_dict(), "timm.pt")
