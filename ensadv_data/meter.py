"""What a training run measures between two lines of its log: share and mean losses of each source over an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensadv_data.dist import current_place, sum_of_all

__all__ = ["Meter"]


class Meter:
    """Sums by source, on the device of the losses, so that no step waits for them.

    Attributes
    ----------
    sums
        float64 (S, 3): how often a source was drawn, sum of clean losses, sum of adversarial losses. What is drawn are
        steps, and the sums are of their means; with ``per_example`` it is perturbed images. In a group of processes
        each has its own.
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

    def averaged(self, line: dict[str, Any]) -> dict[str, Any]:
        """A line of the log over all ranks, which all call."""
        ranks = current_place().world_size
        if ranks == 1:
            return line
        names = [name for name in ("epsilon", "loss_clean", "loss_adversarial") if line[name] is not None]
        values = torch.tensor([float(line[name]) for name in names], dtype=torch.float64, device=self.sums.device)
        return line | dict(zip(names, (sum_of_all(values) / ranks).tolist(), strict=True))

    def merged(self) -> Tensor:
        """The sums over all ranks, as one process would have them; a checkpoint holds them. All ranks call it."""
        ranks = current_place().world_size
        return sum_of_all(self.sums) / (ranks if self.unit == "steps" else 1)  # each rank counts every step

    def load(self, sums: Tensor) -> None:
        """Go on from merged sums."""
        place = current_place()
        if place.rank:
            self.sums.zero_()
        else:
            self.sums.copy_(sums * (place.world_size if self.unit == "steps" else 1))

    def summary(self) -> dict[str, dict[str, Any]]:
        """By source: steps or images, share of them, mean losses over all ranks. The sums start again."""
        rows = self.merged().cpu().tolist()
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
