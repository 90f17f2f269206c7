"""Models made of models: ensembles as sources (Liu et al. 2017), and the binarising wrapper of Appendix C.1."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ensadv_data.errors import ModelError

__all__ = ["COMPOSITES", "Binarised", "MeanLogits", "MeanProbabilities", "leaves", "members_of", "split", "with_leaves"]


class _Ensemble(nn.Module):
    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def answers(self, x_NCHW: Tensor) -> Tensor:
        """Logits of all members, (members, N, K)."""
        found = [member(x_NCHW) for member in self.members]
        if len({logits.shape for logits in found}) > 1:
            classes = ", ".join(str(logits.shape[-1]) for logits in found)
            raise ModelError(f"expected members that have the same classes, got logits for {classes}")
        return torch.stack(found)


class MeanProbabilities(_Ensemble):
    """The logarithm of the members' mean probabilities; its softmax is that mean."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        answers = self.answers(x_NCHW).log_softmax(dim=2)
        mean: Tensor = answers.logsumexp(dim=0) - math.log(len(self.members))
        return mean


class MeanLogits(_Ensemble):
    """The mean of the members' logits."""

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.answers(x_NCHW).mean(dim=0)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: Tensor) -> Tensor:
        return (x > 0.5).to(x.dtype)

    @staticmethod
    def backward(context: object, gradient: Tensor) -> Tensor:
        return gradient


class Binarised(nn.Module):
    """A model of black and white images: pixels above ½ become 1, the others 0 (Appendix C.1).

    Rounding has the derivative 0, which would stop every attack that follows a gradient without making the model any
    more robust. So the gradient passes through it unchanged (the straight-through estimator; Athalye et al. 2018).
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.inner(_Round.apply(x_NCHW))  # type: ignore[no-untyped-call]
        return logits


COMPOSITES: Mapping[str, Callable[[Sequence[nn.Module]], nn.Module]] = {
    "mean-probabilities": MeanProbabilities,
    "mean-logits": MeanLogits,
    "binarised": lambda members: Binarised(members[0]),
}


def members_of(module: nn.Module) -> list[nn.Module]:
    """The modules that a model is made of: itself, or those behind an ensemble or a wrapper."""
    inside = (
        module.members if isinstance(module, _Ensemble) else [module.inner] if isinstance(module, Binarised) else []
    )
    return [one for each in inside for one in members_of(each)] or [module]


def split(reference: str) -> tuple[str, list[str]]:
    """The kind of a composite and its members' references; no kind and no members for any other reference."""
    kind, colon, rest = reference.partition(":")
    if not colon or kind not in COMPOSITES:
        return "", []
    return kind, [rest] if kind == "binarised" else rest.split("+")


def leaves(reference: str) -> list[str]:
    """The references that a reference is made of: itself, or the members of a composite."""
    kind, members = split(reference)
    return [leaf for member in members for leaf in leaves(member)] if kind else [reference]


def with_leaves(reference: str, change: Callable[[str], str]) -> str:
    """The same composite of other references; ``change`` is asked for each of :func:`leaves`."""
    kind, members = split(reference)
    if not kind:
        return change(reference)
    return f"{kind}:" + "+".join(with_leaves(member, change) for member in members)
