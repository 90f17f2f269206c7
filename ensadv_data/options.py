"""Options that commands share, and how the words of options become fields of a spec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from ensadv_data.data import DATASETS, PLACES
from ensadv_data.dist import Place, check_device, process_group
from ensadv_data.errors import InputError, Interrupted
from ensadv_data.models import reference_name
from ensadv_data.objects import is_url
from ensadv_data.progress import silence_bars
from ensadv_data.spec import parse_bytes

__all__ = [
    "PATH",
    "STORE",
    "data_options",
    "device_option",
    "given",
    "named",
    "optional_data",
    "read_bytes",
    "read_pairs",
    "seed_option",
    "shared_work",
    "starts_again",
]

F = TypeVar("F", bound=Callable[..., Any])


class _Path(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(value):
            self.fail(f"expected a path of this machine, got {value}; push takes a store to a bucket", param, ctx)
        return super().convert(value, param, ctx)


PATH = _Path(path_type=Path)


def data_options(command: F) -> F:
    """Which images: --data and its like, which a command gets as one mapping ``data``, and --limit by itself."""
    return _with_data(command, default="mnist-mini", help=f"One of: {_PLACES}.")


def optional_data(help: str) -> Callable[[F], F]:
    """The same where images may be left out: ``data`` is empty then."""

    def decorated(command: F) -> F:
        return _with_data(command, default=None, help=f"{help} One of: {_PLACES}.")

    return decorated


_PLACES = ", ".join((*DATASETS, *PLACES))


def _with_data(command: F, **about: Any) -> F:
    @wraps(command)
    def called(**options: Any) -> Any:
        where = given({name: options.pop(name) for name in ("data", "data_dir", "preprocess", "on_bad_image")})
        return command(data=where if "data" in where else {}, **options)

    with_options: Any = called
    for option in (
        click.option("--on-bad-image", default="fail", show_default=True, help="Of your own images: fail, or skip it."),
        click.option(
            "--preprocess", help="Of your own images: size=299,resize=342,crop=centre,interpolation=bicubic,…"
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Use the first N images only."),
        click.option("--data-dir", type=str, help="Folder with the data set's files, or of the index of your own."),
        click.option("--data", show_default=True, **about),
    ):
        with_options = option(with_options)
    return cast(F, with_options)


def _device(context: click.Context, parameter: click.Parameter, name: str) -> str:
    check_device(name)
    return name


class _StorePlace(click.ParamType):  # type: ignore[type-arg]
    name = "store"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        return str(value) if is_url(value) else Path(value)


STORE = _StorePlace()  # a path, or the URL of an object store


def read_bytes(context: click.Context, parameter: click.Parameter, size: str) -> int:
    """A size in bytes, with a unit or without."""
    return parse_bytes(size, name=parameter.opts[0].removeprefix("--"))


def read_pairs(context: click.Context, parameter: click.Parameter, pairs: Sequence[str]) -> dict[str, str]:
    """NAME=TEXT, each name once."""
    found = dict[str, str]()
    for name, equals, text in (pair.partition("=") for pair in pairs):
        if not (name and text) or name in found:
            raise click.BadParameter(f"expected NAME=TEXT with a name of its own, got {name + equals + text!r}")
        found[name] = text
    return found


device_option = click.option("--device", default="cpu", show_default=True, callback=_device, help="cpu or cuda.")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Names all randomness.")


@contextmanager
def shared_work(device: str) -> Iterator[Place]:
    """The processes of torchrun as one group, of which the first alone shows progress."""
    with process_group(device) as place:
        if place.rank:
            silence_bars()
        yield place


def starts_again(command: F) -> F:
    """For a command that keeps nothing until it ends: says so where it is stopped."""

    @wraps(command)
    def called(**options: Any) -> Any:
        try:
            return command(**options)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command starts from the beginning") from None

    return cast(F, called)


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The options that have a value; the spec knows the defaults of the others."""
    return {name: value for name, value in fields.items() if value is not None}


def named(pairs: Sequence[str]) -> dict[str, str]:
    """``NAME=REF`` or ``REF`` → {name: reference}; a bare reference is named after its file or its members."""
    names: dict[str, str] = {}
    for pair in pairs:
        name, equals, reference = pair.partition("=")
        if not equals or ":" in name or "/" in name or "," in name:
            name, reference = reference_name(pair), pair
        if not (name and reference):
            raise InputError(f"expected NAME=REF, or REF alone, got {pair!r}; write a name, and what it names")
        if name in names:
            raise InputError(f"expected a name of its own for each model, got {name!r} twice; use NAME=REF")
        names[name] = reference
    return names
