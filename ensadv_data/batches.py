"""The arrays of a step: the images that its plan names, and their static perturbations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensadv_data.codec import random_bits
from ensadv_data.data import Dataset, digest_examples
from ensadv_data.device_codec import apply_deltas, apply_signs, pixels, ship
from ensadv_data.dist import Place
from ensadv_data.keys import derive_key
from ensadv_data.mixing import Part, Schedule, StepPlan, plan_step
from ensadv_data.spec import AugmentSpec
from ensadv_data.store import Entry, Move, Store, apply_moves, packed_moves, perturb_images
from ensadv_data.views import Views, cut, cut_signs

__all__ = ["Batch", "Batches", "Delivered", "Loaded", "deliver"]

_FRESH_STREAM = 1  # of the random step drawn while training; 0 is the stored one

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


class Loaded(NamedTuple):
    """The images of a step as they were read, and nothing else."""

    plan: StepPlan
    images: npt.NDArray[np.uint8]  # (B, C, H, W)
    labels: I64  # (B,)


@dataclass(frozen=True)
class Batch:
    """Everything of a step that needs no model; B images, the last ``adversarial`` of which are to be perturbed."""

    plan: StepPlan
    images: npt.NDArray[np.uint8]  # (B, C, H, W), cropped and flipped where the training does
    labels: I64  # (B,)
    adversarial: int
    # for each source: adversarial images (P, C, H, W), or what makes them, packed; None: a model computes them
    static: tuple[tuple[Part, F32 | Sequence[Move] | None], ...]


@dataclass(frozen=True)
class Delivered:
    """A batch as tensors of the device on which the model is."""

    x: Tensor  # float32 (B, C, H, W) in [0, 1]
    y: Tensor  # int64 (B,)
    static: tuple[tuple[Part, Tensor, Tensor | None], ...]  # rows of x, and adversarial images; None: computed


def deliver(batch: Batch, device: torch.device) -> Delivered:
    """Take a batch to a device: floats that were made here, or bits in one copy, which are applied there."""
    packed = [made for _, made in batch.static if made is not None and not isinstance(made, np.ndarray)]
    planes = [plane for moves in packed for move in moves for plane in (move.plane, move.nonzero, move.radius)]
    arrays: list[npt.NDArray[Any]] = [batch.images, batch.labels, *(part.rows for part, _ in batch.static)]
    if device.type == "cpu" and not packed:
        there = [torch.from_numpy(array) for array in arrays]
    else:
        there = ship([*arrays, *(plane for plane in planes if plane is not None)], device)
    images, y, *rows = there[: len(arrays)]
    x = pixels(images)
    left = iter(there[len(arrays) :])
    static = []
    for (part, made), row in zip(batch.static, rows, strict=True):
        found: Tensor | None = None
        if isinstance(made, np.ndarray):
            found = torch.from_numpy(made).to(device)
        elif made is not None:
            flat = x[row].flatten(1)
            for move in made:
                plane, nonzero = next(left), next(left) if move.nonzero is not None else None
                if move.plane.dtype == np.int8:
                    flat = apply_deltas(flat, plane, epsilon=next(left))
                else:
                    flat = apply_signs(flat, plane, nonzero, epsilon=next(left))
            found = flat.view(-1, *x.shape[1:])
        static.append((part, row, found))
    return Delivered(x, y, tuple(static))


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
    packed
        Whether perturbations stay packed, to be applied on another device.
    place
        Whose share of each step.
    augment
        What images undergo, each in its own way in each epoch. Stored perturbations of whole images are moved with
        their image; those of views stand at the views that they were made of.
    """

    def __init__(
        self,
        dataset: Dataset,
        schedule: Schedule,
        *,
        fresh: bool = False,
        replace: bool = False,
        packed: bool = False,
        place: Place = Place(),
        augment: AugmentSpec | None = None,
    ) -> None:
        self.dataset, self.schedule, self.place = dataset, schedule, place
        self.fresh, self.replace, self.packed, self.augment = fresh, replace, packed, augment
        stores = {id(store): store for source in schedule.sources for store, _ in source.entries}
        self._stores = list(stores.values())
        self._views = {key: Views.of_plan(store.header.plan) for key, store in stores.items()}
        self._proved = np.zeros(len(dataset), bool)

    def load(self, number: int) -> Loaded:
        """The images of step ``number``, counted over all epochs; may be called by several threads at once."""
        epoch, step = divmod(number, self.schedule.steps)
        plan = plan_step(self.schedule, epoch=epoch, step=step, place=self.place)
        return Loaded(plan, *self.dataset.read(plan.indices))

    def prepare(self, number: int, loaded: Loaded | None = None) -> Batch:
        """What step ``number`` needs and no model makes; may be called in a thread, by one at a time.

        Parameters
        ----------
        loaded
            What :meth:`load` gave for the step, if it was called before.

        Raises
        ------
        AlignmentError, ChunkError
            As :meth:`read` and :meth:`perturb`.
        """
        return self.perturbed(loaded or self.load(number), epoch=number // self.schedule.steps)

    def make(self, plan: StepPlan, *, epoch: int) -> Batch:
        """Read the images of a step and perturb those whose source is static; raises as :meth:`prepare` does."""
        return self.perturbed(Loaded(plan, *self.dataset.read(plan.indices)), epoch=epoch)

    def perturbed(self, loaded: Loaded, *, epoch: int) -> Batch:
        """Prove images to be those of the stores, and perturb those whose source is static."""
        plan, images, labels = loaded
        self._prove(images, plan.indices)
        adversarial = len(images) // (2 if self.replace else 1) if plan.attacks else 0
        parts = plan.parts(len(images) - adversarial) if adversarial else []
        boxes = self._boxes(plan, parts, epoch)
        if boxes is not None:
            images = cut(images, boxes)
        static: list[tuple[Part, F32 | Sequence[Move] | None]] = []
        for part in parts:
            if not self.schedule.sources[part.source].entries:
                static.append((part, None))
                continue
            moves = packed_moves(*self._entry(part), **self._asked(part, epoch), views=self.augment is not None)
            if boxes is not None and self._views_of(part) is None:
                moves = [self._moved(move, boxes[part.rows]) for move in moves]
            static.append((part, moves if self.packed else apply_moves(images[part.rows], moves)))
        return Batch(plan, images, labels, adversarial, tuple(static))

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
        store, entry = self._entry(part)
        return perturb_images(store, entry, images_PCHW, **self._asked(part, epoch))

    def _boxes(self, plan: StepPlan, parts: Sequence[Part], epoch: int) -> npt.NDArray[np.int32] | None:
        """Where each image is cut: as the draw was that perturbs it, else by this epoch's own random numbers."""
        if self.augment is None:
            return None
        shape, fresh = self.dataset.shape, Views(self.augment, derive_key("augment", self.schedule.seed, epoch))
        boxes = fresh.boxes(shape, draws=np.zeros_like(plan.indices), examples=plan.indices)
        for part in parts:
            if (views := self._views_of(part)) is not None:
                boxes[part.rows] = views.boxes(shape, draws=part.draws, examples=part.indices)
        return boxes

    def _views_of(self, part: Part) -> Views | None:
        """The views that a part's source was made of; None: whole images, or it computes."""
        entries = self.schedule.sources[part.source].entries
        return self._views[id(entries[part.attack][0])] if entries else None

    def _moved(self, move: Move, boxes: npt.NDArray[np.int32]) -> Move:
        """A perturbation of whole images, moved as they are."""
        shape = self.dataset.shape
        if move.plane.dtype == np.int8:
            return Move(cut(move.plane.reshape(-1, *shape), boxes).reshape(move.plane.shape), None, move.radius)
        return Move(*cut_signs(move.plane, move.nonzero, boxes, shape=shape), move.radius)

    def _entry(self, part: Part) -> tuple[Store, Entry]:
        return self.schedule.sources[part.source].entries[part.attack]

    def _asked(self, part: Part, epoch: int) -> dict[str, Any]:
        """What is asked of the store for a part."""
        rows, (store, entry), step = part.indices, self._entry(part), None
        if entry.kind == "rsign" and self.fresh:
            seed = derive_key("fresh step", self.schedule.seed, epoch)
            step = random_bits(seed, np.zeros_like(rows), rows, d=store.header.d, stream=_FRESH_STREAM)
        return {"rows": rows, "draws": part.draws, "epsilon": part.epsilon, "random_step": step}

    def _prove(self, images: npt.NDArray[np.uint8], indices: I64) -> None:
        """Each image is compared the first time that it is read."""
        if not self._stores:
            return
        unseen = ~self._proved[indices]
        if not unseen.any():
            return
        new, found = indices[unseen], digest_examples(images if unseen.all() else images[unseen])
        for store in self._stores:
            store.prove(found, new)
        self._proved[new] = True
