"""A plain PyTorch loop over class folders of images."""

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

to_tensor = transforms.Compose([transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor()])
images = datasets.ImageFolder("photos/train", to_tensor)
model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.ReLU(), nn.Linear(32, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for _ in range(2):
    for x, y in DataLoader(images, batch_size=8, shuffle=True):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
torch.save(model.state_dict(), "plain.pt")
