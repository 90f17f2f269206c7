"""Perturbations of one static model on consecutive images: every attack and every draw, packed.

Randomness is named by (seed, source, draw, first example of the batch) for dropout, and by (seed, source,
attack, draw, example) for the random step of the R+ attacks; so a block can be made twice, anywhere, and is the
same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ensadv_data import device_codec
from ensadv_data.attacks.catalogue import noise_of, perturb
from ensadv_data.attacks.gradient import input_gradients, labelled_gradients, logits_of, steady
from ensadv_data.attacks.single import random_step
from ensadv_data.codec import full_mask, pack_signs, quantise_deltas, random_bits, row_bytes
from ensadv_data.doubtful import Doubtful
from ensadv_data.errors import ModelError
from ensadv_data.keys import torch_seeded
from ensadv_data.models import Model
from ensadv_data.spec import AttackSpec, PrecomputeSpec
from ensadv_data.store import Entry, Planes
from ensadv_data.views import Views, cut

__all__ = ["BlockRows", "perturb_block"]

_Packed = tuple[npt.NDArray[Any], npt.NDArray[np.uint8] | None]  # directions or deltas; the mask, where one is needed
_Look: TypeAlias = Callable[..., None]  # Doubtful.look
_FILL_STREAM = 2  # of the coin that replaces zeros; 0 is the random step of the R+ attacks


def perturb_block(
    model: Model,
    images_NCHW: npt.NDArray[np.uint8],
    spec: PrecomputeSpec,
    entries: Mapping[str, Entry],
    *,
    first: int,
    y_true_N: npt.NDArray[np.int64],
) -> dict[str, Planes]:
    """All attacks and draws of one source on consecutive images.

    Parameters
    ----------
    model
        The static model.
    images_NCHW
        uint8 of shape (n, C, H, W).
    entries
        For each attack's name, its entry.
    first
        Index of the first image in the data set; it names the randomness.
    y_true_N
        True labels, which are used where the spec says so.

    Returns
    -------
    dict
        For each entry's key, planes with leading axis K.

    Raises
    ------
    ModelError
        A logit or a gradient is not finite; the message names source and example.
    """
    rows = BlockRows(model, spec, entries, n=len(images_NCHW), d=images_NCHW[0].size, first=first)
    rows.fill(images_NCHW, y_true_N, at=0)
    return rows.planes()


class BlockRows:
    """What one source makes of a block, packed at once: bits, not values, wait for the block's end.

    Parameters
    ----------
    model, spec, entries, first
        As of :func:`perturb_block`.
    n, d
        Images of the block, and values of each.
    """

    def __init__(
        self, model: Model, spec: PrecomputeSpec, entries: Mapping[str, Entry], *, n: int, d: int, first: int
    ) -> None:
        self._model, self._spec, self._entries = model, spec, entries
        self._d, self._first = d, first
        self._rows: dict[str, npt.NDArray[Any]] = {
            attack.name: np.empty((spec.draws, n, d), np.int8)
            if attack.kind == "delta"
            else np.empty((spec.draws, n, row_bytes(d)), np.uint8)
            for attack in spec.attacks
        }
        self._masks: dict[str, npt.NDArray[np.uint8]] = {}  # from the first zero on
        self._labels = {attack.name: np.empty(n, np.int32) for attack in spec.attacks}
        self._doubtful = Doubtful(model, size=int(spec.batch_size)) if spec.precision == "exact" else None

    def fill(self, images_NCHW: npt.NDArray[np.uint8], y_true_N: npt.NDArray[np.int64], *, at: int) -> None:
        """Compute the rows of some images, of which the first is image ``at`` of the block.

        ``at`` is a multiple of the batch size, so that the batches are those of the whole block. Raises as
        :func:`perturb_block`.
        """
        with steady(self._model.module):
            self._fill(images_NCHW, y_true_N, at)

    def _fill(self, images_NCHW: npt.NDArray[np.uint8], y_true_N: npt.NDArray[np.int64], at: int) -> None:
        model, spec, size = self._model, self._spec, int(self._spec.batch_size)
        for start in range(0, len(images_NCHW), size):
            stop = min(start + size, len(images_NCHW))
            place = slice(at + start, at + stop)
            x = device_codec.pixels(torch.from_numpy(images_NCHW[start:stop]).to(spec.device))
            y_true, examples = torch.from_numpy(y_true_N[start:stop]), np.arange(place.start, place.stop) + self._first
            look = None if self._doubtful is None else partial(self._doubtful.look, first=place.start)
            label, made = _labelled(model, x, y_true.to(x.device), spec, examples=examples, look=look)
            for attack in spec.attacks:
                self._labels[attack.name][place] = label[attack.name].cpu().numpy()
            for name, packed in made.items():
                self._keep(name, packed, slice(None), place)
            for k in range(spec.draws if len(made) < len(spec.attacks) else 0):
                x = _view(x, images_NCHW[start:stop], spec, examples=examples, k=k)
                drawn = _draw(model, x, label, spec, self._entries, examples=examples, k=k, look=look)
                for name, packed in drawn.items():
                    self._keep(name, packed, k, place)
                self._mend(at_least=size)
            self._mend(at_least=size)

    def planes(self) -> dict[str, Planes]:
        """For each entry's key, planes with leading axis K."""
        self._mend()
        return {
            self._entries[name].key: _planes(
                rows, self._masks.get(name), self._labels[name], self._spec, self._entries[name], self._d, self._first
            )
            for name, rows in self._rows.items()
        }

    def _mend(self, *, at_least: int = 1) -> None:
        """Compute again what is in doubt, if that are so many images: of large photographs all may be."""
        if self._doubtful is None or self._doubtful.waiting < at_least:
            return
        attacks = {attack.name: attack for attack in self._spec.attacks}
        for again in self._doubtful.again():
            self._keep(again.attack, _turned(attacks[again.attack], again.gradient), again.draw, again.rows)

    def _keep(self, name: str, packed: _Packed, draw: int | slice, place: slice | npt.NDArray[np.int64]) -> None:
        rows, mask = packed
        self._rows[name][draw, place] = rows
        if mask is not None:
            if name not in self._masks:
                self._masks[name] = np.empty_like(self._rows[name])
                self._masks[name][:] = full_mask(self._d)
            self._masks[name][draw, place] = mask
        elif name in self._masks:
            self._masks[name][draw, place] = full_mask(self._d)


def _view(
    x: Tensor, images_NCHW: npt.NDArray[np.uint8], spec: PrecomputeSpec, *, examples: npt.NDArray[np.int64], k: int
) -> Tensor:
    """Where one draw is computed: at the images as they are, ``x``, or at views of them."""
    if spec.augment is None:
        return x
    shape: Any = images_NCHW.shape[1:]
    boxes = Views.of(spec.augment, spec.seed).boxes(shape, draws=np.full_like(examples, k), examples=examples)
    return device_codec.pixels(torch.from_numpy(cut(images_NCHW, boxes)).to(x.device))


def _labelled(
    model: Model,
    x: Tensor,
    y_true: Tensor,
    spec: PrecomputeSpec,
    *,
    examples: npt.NDArray[np.int64],
    look: _Look | None,
) -> tuple[dict[str, Tensor], dict[str, _Packed]]:
    """The label of every attack, from the whole image; and what this forward pass makes for all draws at once."""
    label: dict[str, Tensor] = {}

    def name_labels(logits: Tensor) -> list[Tensor]:
        _check_finite(logits, model, examples, "logits")
        away = logits.argmax(1) if spec.labels == "predicted" else y_true
        label.update({a.name: logits.argmin(1) if a.least_likely else away for a in spec.attacks})
        return [label[attack.name] for attack in certain]

    certain = [attack for attack in spec.attacks if _is_certain(attack, spec)]
    if not certain:
        name_labels(logits_of(model.module, x))
        return label, {}
    losses = [attack.with_loss(spec.loss).loss_form for attack in certain]
    gradients = labelled_gradients(model.module, x, name_labels, losses=losses, held=True)
    if look is not None:
        for attack, loss, gradient in zip(certain, losses, gradients, strict=True):
            look(attack.name, loss, gradient, x=x, label=label[attack.name], draw=slice(None))
    return label, {
        attack.name: _signs(attack, gradient, model, examples)
        for attack, gradient in zip(certain, gradients, strict=True)
    }


def _draw(
    model: Model,
    x: Tensor,
    label: Mapping[str, Tensor],
    spec: PrecomputeSpec,
    entries: Mapping[str, Entry],
    *,
    examples: npt.NDArray[np.int64],
    k: int,
    look: _Look | None,
) -> dict[str, _Packed]:
    """One draw of the attacks that chance has a part in, on one batch; those at the same point share a forward pass."""
    dropout = spec.mode == "train"
    results: dict[str, _Packed] = {}
    at_x = [a for a in spec.attacks if a.kind == "sign" and not _is_certain(a, spec)]  # _labelled made the others
    points: list[tuple[Tensor, list[AttackSpec]]] = [(x, at_x)]
    for attack in spec.attacks:
        noise = noise_of(
            attack,
            tuple(x.shape[1:]),
            seed=entries[attack.name].seed,
            draws=np.full(len(examples), k),
            examples=examples,
            device=x.device,
        )
        if attack.kind == "rsign" and noise is not None:
            points.append((random_step(x, noise, alpha=attack.random_step), [attack]))
        elif attack.kind == "delta":
            loss = attack.with_loss(spec.loss).loss_form
            x_adv = perturb(model.module, x, label[attack.name], attack, noise=noise, loss=loss)
            _check_finite(x_adv, model, examples, "perturbation")
            delta = (x_adv - x).flatten(1).cpu().numpy()
            results[attack.name] = (quantise_deltas(delta, epsilon=attack.epsilon), None)
    for number, (point, attacks) in enumerate(points):
        if not attacks:
            continue
        with torch_seeded(x.device, "dropout", spec.seed, model.name, number, k, int(examples[0])):
            gradients = input_gradients(
                model.module,
                point,
                [label[attack.name] for attack in attacks],
                losses=[attack.with_loss(spec.loss).loss_form for attack in attacks],
                dropout=dropout,
                held=not dropout,
            )
        for attack, gradient in zip(attacks, gradients, strict=True):
            results[attack.name] = _signs(attack, gradient, model, examples)
            if look is not None:
                loss = attack.with_loss(spec.loss).loss_form
                look(attack.name, loss, gradient, x=point, label=label[attack.name], draw=k)
    return results


def _is_certain(attack: AttackSpec, spec: PrecomputeSpec) -> bool:
    """Whether all draws of an attack are equal, so that one forward pass gives label and direction."""
    return attack.kind == "sign" and spec.mode == "eval" and spec.augment is None


def _signs(attack: AttackSpec, gradient: Tensor, model: Model, examples: npt.NDArray[np.int64]) -> _Packed:
    """The direction of an attack, packed."""
    _check_finite(gradient, model, examples, "gradient")
    return _turned(attack, gradient)


def _turned(attack: AttackSpec, gradient: Tensor) -> _Packed:
    direction, mask = _packed(gradient.flatten(1))
    if attack.least_likely:  # down the gradient: each sign that there is, turned round, among the bits
        direction ^= full_mask(gradient[0].numel()) if mask is None else mask
    return direction, mask


def _packed(values_ND: Tensor) -> _Packed:
    """From another device come bits, not values."""
    if values_ND.device.type == "cpu":
        return pack_signs(values_ND.numpy())
    direction, mask = (plane.cpu().numpy() for plane in device_codec.pack_signs(values_ND))
    return direction, None if (mask == full_mask(values_ND.shape[1])).all() else mask


def _planes(
    rows: npt.NDArray[Any],
    nonzero: npt.NDArray[np.uint8] | None,
    label_N: npt.NDArray[np.int32],
    spec: PrecomputeSpec,
    entry: Entry,
    d: int,
    first: int,
) -> Planes:
    if entry.kind == "delta":
        return Planes(delta=rows, label=label_N)
    if spec.zeros == "fill" and nonzero is not None:
        examples = np.arange(first, first + rows.shape[1])
        for draw in range(len(rows)):
            coin = random_bits(entry.seed, np.full(len(examples), draw), examples, d=d, stream=_FILL_STREAM)
            rows[draw] |= coin & ~nonzero[draw]
        nonzero = None
    return Planes(direction=rows, nonzero=nonzero, label=label_N)


def _check_finite(values: Tensor, model: Model, examples: npt.NDArray[np.int64], what: str) -> None:
    if math.isfinite(values.sum()):  # one pass over them; what overflows in the sum is looked at one by one
        return
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    if not finite.all():
        example = int(examples[int((~finite).nonzero()[0])])
        raise ModelError(
            f"source {model.name}, example {example}: expected finite {what}, got NaN or infinity; "
            "check the weights and the model's own normalisation"
        )
