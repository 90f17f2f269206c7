"""The store in a training loop of one's own: images with their numbers, and a transform of whole batches.

    images = TorchImages(open_dataset("folder:photos", "train"))         in place of the loop's data set
    mix = EnsembleMix(images, ["shards"], epsilon=16 / 255)              once
    for x, y, index in DataLoader(images, …):                            the numbers come with each batch
        x, y = mix(x, y, index, model)                                   half of it is adversarial from here on

What changes pixels or geometry comes after the transform: a crop or a flip of an adversarial image is that of the image
and of its direction alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ensadv_data.batches import Batches, Loaded, deliver
from ensadv_data.data import Dataset
from ensadv_data.device_codec import pixels
from ensadv_data.dist import current_place
from ensadv_data.errors import InputError
from ensadv_data.mixing import Part, Schedule, plan_batch
from ensadv_data.online import Computed, computed_perturbation
from ensadv_data.sources import ONLINE, Source, augmentation_of, check_draws, check_epsilon, static_sources
from ensadv_data.spec import parse_attack, parse_epsilon
from ensadv_data.store import Cache

__all__ = ["EnsembleMix", "TorchImages"]


class TorchImages(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """A data set as PyTorch's loaders take it: image float32 (C, H, W) in [0, 1], true label, and the example's number.

    A loader asks for a whole batch at once, which is decoded in the data set's threads.

    Parameters
    ----------
    dataset
        From :func:`ensadv_data.open_dataset`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """One example; raises as :meth:`Dataset.read` does, and IndexError past the end, as sequences do."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int, int]]:
        """Some examples, read together."""
        images, labels = self.dataset.read(np.asarray(indices, np.int64))
        x = pixels(torch.from_numpy(images))
        return [(image, int(label), int(index)) for image, label, index in zip(x, labels, indices, strict=True)]


class EnsembleMix:
    """Makes half of each batch adversarial, from one source of an ensemble that is drawn for the batch.

    Every image is compared, by digest, with the one that its direction was made for, the first time that it comes.
    What is drawn is a function of the seed and of :attr:`step`, the number of batches so far: set it when a training
    is resumed. In a group of torch.distributed the source is the same for all processes.

    Parameters
    ----------
    images
        What the batches are of.
    stores
        Folders or URLs of stores for these images.
    epsilon
        L∞ radius, pixels in [0, 1]; or a text as on the command line, ``16/255`` or ``normal:8/255,16/255``.
    online
        An attack on the model itself, ``step-ll`` for example, as one source more; None: the stores alone.
    batches
        ``replace``: the second half of the batch becomes adversarial; ``pair``: an adversarial copy of the batch
        follows it.
    seed
        Names the randomness.
    draws
        The first so many of each store; all of them unless given.
    random_step
        Of R+ directions: ``stored``, the one that each was computed at, or ``fresh``, a new one each time.
    mean, std
        One number a channel, which the model wants subtracted and divided by: images come back so. Without them they
        come back in [0, 1].
    cache
        See :func:`ensadv_data.open_store`.

    Raises
    ------
    InputError
        There is no source; a store is missing, or is for other images or another epsilon.
    """

    def __init__(
        self,
        images: TorchImages,
        stores: Sequence[Path | str] | Path | str,
        *,
        epsilon: float | str,
        online: str | None = None,
        batches: str = "replace",
        seed: int = 0,
        draws: int | None = None,
        random_step: str = "stored",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        cache: Cache | None = None,
    ) -> None:
        if batches not in ("replace", "pair"):
            raise InputError(f"batches: expected replace or pair, got {batches!r}")
        if random_step not in ("stored", "fresh"):
            raise InputError(f"random_step: expected stored or fresh, got {random_step!r}")
        law = parse_epsilon(epsilon)
        stores = [stores] if isinstance(stores, Path | str) else stores
        static = static_sources(stores, images.dataset, cache=cache or Cache())
        check_epsilon(static, law)
        check_draws(static, draws)
        if (views := augmentation_of(static, None)) is not None:
            raise InputError(
                f"expected stores of whole images, got one of views by {views.label}: a loop of one's own does not cut "
                "its images as the store did; make one without --augment, or train with ensadv-data train"
            )
        sources = (*((Source(ONLINE),) if online else ()), *static)
        if not sources:
            raise InputError("expected a store, or an online attack, as a source of adversarial images; got neither")
        self.step = 0
        self._attack = parse_attack(online, epsilon=law.epsilon) if online else None
        self._fixed = law.sigma is None
        self._schedule = Schedule(seed=seed, n=len(images), batch_size=1, sources=sources, epsilon=law, draws=draws)
        self._batches = Batches(
            images.dataset,
            self._schedule,
            fresh=random_step == "fresh",
            replace=batches == "replace",
            place=current_place(),
        )
        channels = images.dataset.shape[0]
        self._scaled = _Scaled(_channels(mean, 0.0, channels, "mean"), _channels(std, 1.0, channels, "std"))

    def __call__(self, x: Tensor, y: Tensor, index: Tensor, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """A batch, part of it adversarial, and its labels.

        Parameters
        ----------
        x
            Images float32 (B, C, H, W) in [0, 1], as :class:`TorchImages` gives them.
        y, index
            Labels, and the numbers of the examples, (B,).
        model
            The one that is trained, which the online attack needs; of a wrapper for several processes, what is inside.

        Returns
        -------
        tuple of Tensor
            Images on the device of ``x``, float32 (B, C, H, W), or (2B, C, H, W) of pairs, clean ones first; and
            their labels.

        Raises
        ------
        AlignmentError
            An image is another one than a direction was made for.
        InputError
            The images are not of the data set's shape or not in [0, 1], or there is an online attack and no model.
        """
        shape = self._batches.dataset.shape
        if tuple(x.shape[1:]) != shape or not len(x) == len(y) == len(index):
            raise InputError(
                f"expected images of shape (B, {', '.join(map(str, shape))}), their labels and their numbers, got "
                f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(index.shape)}; the transform comes before any crop"
            )
        if not x.is_floating_point() or not (x >= 0).logical_and(x <= 1).all():
            raise InputError(
                f"expected floating-point images in [0, 1], got {x.dtype} from {x.min():g} to {x.max():g}; "
                "a model that wants them normalised: give mean and std to EnsembleMix"
            )
        number, self.step = self.step, self.step + 1
        place, examples = self._batches.place, index.cpu().numpy().astype(np.int64)
        plan = plan_batch(self._schedule, examples, step=number, place=place)
        images = x.detach().mul(255).round().to(torch.uint8).cpu().numpy()
        self._batches.packed = x.device.type != "cpu"
        batch = self._batches.perturbed(Loaded(plan, images, y.cpu().numpy()), epoch=number)
        here = deliver(batch, x.device)
        if not batch.adversarial:  # a last batch of one image, of which no half can be replaced
            return self._scaled(here.x), y
        first = len(x) - batch.adversarial
        ((part, _, made),) = here.static  # one source for all of them
        x_adv = self._computed(here.x[first:], part, number, model) if made is None else made
        mixed, labels = torch.cat([here.x[: first or None], x_adv]), torch.cat([y[: first or None], y[first:]])
        return self._scaled(mixed), labels

    def _computed(self, x: Tensor, part: Part, number: int, model: nn.Module | None) -> Tensor:
        """Images perturbed by the model itself."""
        if model is None or self._attack is None:
            raise InputError("expected the model beside the batch, since there is an online attack; got none")
        return computed_perturbation(
            Computed(nn.Sequential(self._scaled, model), self._attack, dropout=True),
            x,
            examples=part.indices,
            epsilon=None if self._fixed else part.epsilon,
            seed=self._schedule.seed,
            epoch=0,
            step=number,
            rank=self._batches.place.rank,
        )


class _Scaled(nn.Module):
    """What the model wants subtracted and divided by."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean.to(x.device)) / self.std.to(x.device)


def _channels(values: Sequence[float] | None, silent: float, channels: int, name: str) -> Tensor:
    numbers = [silent] * channels if values is None else [float(value) for value in values]
    if len(numbers) != channels or (name == "std" and 0 in numbers):
        raise InputError(f"{name}: expected one number for each of {channels} channels, got {numbers}")
    return torch.tensor(numbers).view(1, channels, 1, 1)
