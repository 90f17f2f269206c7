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
        float64 (S, 3): number of steps, sum of clean losses, sum of adversarial losses. A checkpoint holds them.
    """

    def __init__(self, sources: Sequence[str], *, device: torch.device) -> None:
        self.names = list(sources) or ["clean"]
        self.sums = torch.zeros(len(self.names), 3, dtype=torch.float64, device=device)

    def add(
        self, loss_clean: Tensor, adversarial_N: Tensor, source: int | None, sources_N: npt.NDArray[np.int64] | None
    ) -> Tensor:
        """Count a step; returns its mean adversarial loss, 0 for a clean step.

        Parameters
        ----------
        loss_clean
            Mean loss of the clean images.
        adversarial_N
            Losses of the perturbed images; none in a clean step.
        source, sources_N
            The step's source, or that of each perturbed image: then each source's part of the step counts as that
            part of one.
        """
        loss = adversarial_N.mean() if len(adversarial_N) else torch.zeros_like(loss_clean)
        if sources_N is None:
            self.sums[source or 0] += torch.stack([torch.ones_like(loss_clean), loss_clean, loss]).double()
            return loss
        drawn = torch.from_numpy(sources_N).to(self.sums.device)
        parts = (drawn == torch.arange(len(self.names), device=self.sums.device)[:, None]).double() / len(drawn)
        share = parts.sum(dim=1)
        self.sums += torch.stack([share, share * loss_clean.double(), parts @ adversarial_N.double()], dim=1)
        return loss

    def summary(self) -> dict[str, dict[str, Any]]:
        """By source: steps, share of all steps, mean losses. The sums start again."""
        rows = self.sums.cpu().tolist()
        total = sum(row[0] for row in rows)
        self.sums.zero_()
        return {
            name: {
                "steps": int(count) if count.is_integer() else round(count, 3),
                "share": count / total,
                "loss_clean": clean / count if count else None,
                "loss_adversarial": adversarial / count if count and name != "clean" else None,
            }
            for name, (count, clean, adversarial) in zip(self.names, rows, strict=True)
        }
