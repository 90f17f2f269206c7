"""A LightningModule and its Trainer over class folders of images."""

import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class Classifier(LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


to_tensor = transforms.Compose([transforms.Resize(36), transforms.CenterCrop(32), transforms.ToTensor()])
images = datasets.ImageFolder("photos/train", to_tensor)
classifier = Classifier()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(classifier, DataLoader(images, batch_size=8, shuffle=True))
torch.save(classifier.model.state_dict(), "lightning.pt")
