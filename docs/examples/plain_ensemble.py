"""A plain PyTorch loop over class folders of images."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from ensadv_data import EnsembleMix, TorchImages, open_dataset

images = TorchImages(open_dataset("folder:photos", "train", preprocess="size=32"))
mix = EnsembleMix(images, ["shards"], epsilon="16/255", online="step-ll")
model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for _ in range(2):
    for x, y, index in DataLoader(images, batch_size=8, shuffle=True):
        x, y = mix(x, y, index, model)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.save(model.state_dict(), "plain.pt")
