"""A training script of timm's parts: its data set, loader, model, optimizer and schedule."""

import torch
from timm import create_model
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2


def train_one_epoch(epoch, model, loader, optimizer, loss_fn):
    model.train()
    for input, target in loader:
        loss = loss_fn(model(input), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


model = create_model("test_resnet", num_classes=3)
config = resolve_data_config({"input_size": (3, 32, 32)}, model=model)
dataset = create_dataset("", root="photos", split="train")
about = {"input_size": config["input_size"], "mean": config["mean"], "std": config["std"], "no_aug": True}
loader = create_loader(dataset, batch_size=8, is_training=True, use_prefetcher=False, num_workers=0, **about)
optimizer = create_optimizer_v2(model, opt="momentum", lr=0.01)
scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=2, cooldown_epochs=0)
for epoch in range(epochs):
    train_one_epoch(epoch, model, loader, optimizer, torch.nn.CrossEntropyLoss())
    scheduler.step(epoch + 1)
torch.save(model.state_dict(), "timm.pt")
