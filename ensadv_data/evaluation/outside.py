"""Attacks of other libraries and of one's own, named in a suite.

    foolbox:CLASS[:KEY=VALUE,…]         a class of foolbox.attacks, such as foolbox:LinfPGD:steps=20
    torchattacks:CLASS[:KEY=VALUE,…]    a class of torchattacks, such as torchattacks:MIFGSM:steps=10
    python:MODULE:FUNCTION              FUNCTION(model, x, y, epsilon) → adversarial images

Whatever they return is checked: images in [0, 1], within epsilon of the clean ones.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ensadv_data.attacks.gradient import steady
from ensadv_data.errors import InputError, UnknownNameError

__all__ = ["OutsideAttack", "is_outside", "parse_outside"]

_TOLERANCE = 1e-6  # of float32 in [0, 1]
_LIBRARIES = {"foolbox": "foolbox.attacks", "torchattacks": "torchattacks"}

Function = Callable[[nn.Module, Tensor, Tensor, float], Any]


@dataclass(frozen=True)
class OutsideAttack:
    """An attack that this package only calls."""

    label: str
    epsilon: float
    function: Function

    def perturb(self, model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> Tensor:
        """Adversarial images, checked; the model is in evaluation mode meanwhile.

        Raises
        ------
        InputError
            The attack failed, or what it returned is not such images.
        """
        try:
            with steady(model), _frozen(model), torch.enable_grad():
                x_adv = self.function(model, x_NCHW.clone(), y_N.clone(), self.epsilon)
        except Exception as error:  # somebody else's code: whatever it raises
            raise InputError(f"attack {self.label}: failed with {type(error).__name__}: {error}") from error
        if not isinstance(x_adv, Tensor) or x_adv.shape != x_NCHW.shape:
            got = tuple(x_adv.shape) if isinstance(x_adv, Tensor) else type(x_adv).__name__
            raise InputError(f"attack {self.label}: expected images of shape {tuple(x_NCHW.shape)}, got {got}")
        x_adv = x_adv.detach().to(x_NCHW.dtype)
        far = float((x_adv - x_NCHW).abs().max())
        if not far <= self.epsilon + _TOLERANCE:  # NaN is not within it either
            raise InputError(
                f"attack {self.label}: expected perturbations within epsilon = {self.epsilon:g}, got one of {far:g}; "
                "is its own budget set to another epsilon?"
            )
        low, high = float(x_adv.min()), float(x_adv.max())
        if low < -_TOLERANCE or high > 1 + _TOLERANCE:
            raise InputError(f"attack {self.label}: expected pixels in [0, 1], got some from {low:g} to {high:g}")
        return x_adv.clamp(0, 1)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Parameters take no gradient inside: other libraries call backward() on the whole graph."""
    free = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in free:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)


def is_outside(text: str) -> bool:
    """Whether a suite's text names an attack of somebody else."""
    return text.partition(":")[0] in ("python", *_LIBRARIES) and ":" in text


def parse_outside(text: str, *, epsilon: float) -> OutsideAttack:
    """Find the attack that ``text`` names.

    Raises
    ------
    InputError
        The library or module is not there, or the name is not that of an attack.
    """
    kind, _, rest = text.partition(":")
    name, _, options = rest.partition(":")
    if kind == "python":
        return OutsideAttack(text, epsilon, _own(name, options))
    module = _imported(_LIBRARIES[kind], remedy=f"pip install {kind}")
    attack = getattr(module, name, None)
    if not inspect.isclass(attack):
        classes = [each for each in dir(module) if each[0].isupper() and inspect.isclass(getattr(module, each))]
        raise UnknownNameError(f"attack of {kind}", name, classes)
    chosen, signature = _options(options, text), inspect.signature(attack)
    given = [None] if kind == "torchattacks" else []  # the model
    try:
        signature.bind_partial(*given, **chosen)
    except TypeError as error:
        takes = ", ".join(list(signature.parameters)[len(given) :])
        raise InputError(f"{text}: {error}; {name} takes {takes}") from None
    return OutsideAttack(text, epsilon, {"foolbox": _foolbox, "torchattacks": _torchattacks}[kind](attack, chosen))


def _own(module_name: str, function_name: str) -> Function:
    if not all(part.isidentifier() for part in [*module_name.split("."), function_name]):
        raise InputError(f"expected python:MODULE:FUNCTION, got python:{module_name}:{function_name}")
    module = _imported(module_name, remedy="is it on the Python path? (add its folder to PYTHONPATH)")
    function = getattr(module, function_name, None)
    if not callable(function):
        found = "none of that name" if function is None else repr(function)
        raise InputError(f"python:{module_name}:{function_name}: expected a function, got {found}")
    return function  # type: ignore[no-any-return]


def _foolbox(attack: Any, options: dict[str, Any]) -> Function:
    def run(model: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Any:
        foolbox: Any = importlib.import_module("foolbox")
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return attack(**options)(wrapped, x, foolbox.criteria.Misclassification(y), epsilons=epsilon)[1]

    return run


def _torchattacks(attack: Any, options: dict[str, Any]) -> Function:
    def run(model: nn.Module, x: Tensor, y: Tensor, epsilon: float) -> Any:
        takes = inspect.signature(attack).parameters
        own = {"eps": epsilon} if "eps" in takes and "eps" not in options else {}
        return attack(model, **own, **options)(x, y)

    return run


def _options(text: str, whole: str) -> dict[str, Any]:
    """``steps=20,random_start=false`` → keyword arguments: whole numbers, numbers, truth values, else text."""
    options: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key.isidentifier():
            raise InputError(f"{whole}: expected KEY=VALUE, got {item!r}")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _imported(name: str, *, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{error}; {remedy}") from None
    except Exception as error:  # the user's own module: whatever it raises
        raise InputError(f"importing {name} failed with {error!r}") from error
