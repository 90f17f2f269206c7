"""The arrays of a step: the images that its plan names, and their static perturbations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ensadv_data.codec import random_bits
from ensadv_data.data import Dataset, digest_examples
from ensadv_data.keys import derive_key
from ensadv_data.mixing import Part, Schedule, StepPlan
from ensadv_data.store import perturb_images

__all__ = ["Batch", "Batches"]

_FRESH_STREAM = 1  # of the random step drawn while training; 0 is the stored one

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Everything of a step that needs no model; B images, the last ``adversarial`` of which are to be perturbed."""

    plan: StepPlan
    images: npt.NDArray[np.uint8]  # (B, C, H, W)
    labels: I64  # (B,)
    adversarial: int
    static: tuple[tuple[Part, F32 | None], ...]  # adversarial images (P, C, H, W); None where a model computes them


class Batches:
    """Turns plans into arrays: images, labels, and static adversarial images.

    Parameters
    ----------
    dataset
        The training images.
    schedule
        The mixing schedule.
    fresh
        Whether an R+ direction follows a fresh random step in each epoch, or the stored one.
    replace
        Whether perturbed images take the place of half of the clean ones, or stand beside all of them.
    """

    def __init__(self, dataset: Dataset, schedule: Schedule, *, fresh: bool = True, replace: bool = False) -> None:
        self.dataset, self.schedule, self.fresh, self.replace = dataset, schedule, fresh, replace
        stores = {id(store): store for source in schedule.sources for store, _ in source.entries}
        self._stores = list(stores.values())
        self._proved = np.zeros(len(dataset), bool)

    def make(self, plan: StepPlan, *, epoch: int) -> Batch:
        """Read the images of a step and perturb those whose source is static.

        Raises
        ------
        AlignmentError, ChunkError
            As :meth:`read` and :meth:`perturb`.
        """
        images, labels = self.read(plan)
        adversarial = len(images) // (2 if self.replace else 1) if plan.attacks else 0
        parts = plan.parts(len(images) - adversarial) if adversarial else []
        static = tuple(
            (part, self.perturb(images[part.rows], part, epoch=epoch) if self._is_static(part) else None)
            for part in parts
        )
        return Batch(plan, images, labels, adversarial, static)

    def read(self, plan: StepPlan) -> tuple[npt.NDArray[np.uint8], I64]:
        """Images uint8 (B, C, H, W) and labels int64 (B,), proved to be the ones the stores were made for.

        Raises
        ------
        AlignmentError
            An image is another one; the message has index, expected and found digest.
        """
        images, labels = self.dataset.read(plan.indices)
        self._prove(images, plan.indices)
        return images, labels

    def perturb(self, images_PCHW: npt.NDArray[np.uint8], part: Part, *, epoch: int) -> F32:
        """Adversarial images of a static source, float32 (P, C, H, W) in [0, 1].

        ``images_PCHW`` are the part's rows of :meth:`read`.

        Raises
        ------
        ChunkError
            A chunk of the store is missing, truncated or corrupted.
        """
        store, entry = self.schedule.sources[part.source].entries[part.attack]
        rows, draws, epsilon = part.indices, part.draws, part.epsilon
        step = None
        if entry.kind == "rsign" and self.fresh:
            seed = derive_key("fresh step", self.schedule.seed, epoch)
            d = store.header.d
            step = random_bits(seed, np.zeros_like(rows), rows, d=d, stream=_FRESH_STREAM)
        return perturb_images(store, entry, images_PCHW, rows=rows, draws=draws, epsilon=epsilon, random_step=step)

    def _is_static(self, part: Part) -> bool:
        return bool(self.schedule.sources[part.source].entries)

    def _prove(self, images: npt.NDArray[np.uint8], indices: I64) -> None:
        """Each image is compared the first time that it is read."""
        if not self._stores:
            return
        new = indices[~self._proved[indices]]
        if not len(new):
            return
        found = digest_examples(images[~self._proved[indices]])
        for store in self._stores:
            store.prove(found, new)
        self._proved[new] = True
