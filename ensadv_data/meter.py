"""What a training run measures between two lines of its log: share and mean losses of each source over an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Meter"]


class Meter:
    """Sums by source, on the device of the losses, so that no step waits for them.

    Attributes
    ----------
    sums
        float64 (S, 3): how often a source was drawn, sum of clean losses, sum of adversarial losses. What is drawn are
        steps, and the sums are of their means; with ``per_example`` it is perturbed images. A checkpoint holds them.
    """

    def __init__(self, sources: Sequence[str], *, device: torch.device, per_example: bool = False) -> None:
        self.names = list(sources) or ["clean"]
        self.unit = "images" if per_example else "steps"
        self.sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=device)

    def add(self, clean_N: Tensor, adversarial_M: Tensor, sources_M: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Count a step; returns its mean clean and adversarial loss, the latter 0 for a clean step.

        Parameters
        ----------
        clean_N, adversarial_M
            Losses of the clean images and of the perturbed ones; none of these in a clean step. Where there are as many
            of both, they are of the same images.
        sources_M
            The source of each perturbed image.
        """
        loss_clean = clean_N.mean()
        loss_adversarial = adversarial_M.mean() if len(adversarial_M) else torch.zeros_like(loss_clean)
        if self.unit == "steps":
            source = int(sources_M[0]) if len(sources_M) else 0
            self.sums[source] += torch.stack([torch.ones_like(loss_clean), loss_clean, loss_adversarial]).double()
        else:
            own = clean_N if len(clean_N) == len(adversarial_M) else loss_clean.expand(len(adversarial_M))
            rows = torch.stack([torch.ones_like(own), own, adversarial_M], dim=1).double()
            self.sums.index_add_(0, torch.from_numpy(sources_M).to(self.sums.device), rows)
        return loss_clean, loss_adversarial

    def summary(self) -> dict[str, dict[str, Any]]:
        """By source: steps or images, share of them, mean losses. The sums start again."""
        rows = self.sums.cpu().tolist()
        total = sum(row[0] for row in rows)
        self.sums.zero_()
        return {
            name: {
                self.unit: int(count),
                "share": count / total,
                "loss_clean": clean / count if count else None,
                "loss_adversarial": adversarial / count if count and name != "clean" else None,
            }
            for name, (count, clean, adversarial) in zip(self.names, rows, strict=True)
        }
