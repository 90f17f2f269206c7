"""Laws that several modules obey, each written once; a test of its own then only says for what it holds.

And the one way in which tests start the command line as a process, to interrupt or kill it.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

__all__ = [
    "holds_golden_bytes",
    "is_bit_equal",
    "is_idempotent",
    "is_pure",
    "leaves_model_alone",
    "started",
    "survives_pickle",
    "survives_round_trip",
    "wait_until",
]

T = TypeVar("T")


def is_bit_equal(left: Any, right: Any) -> bool:
    """Same type, dtype, shape and bytes; tuples and None element by element. 0.0 and −0.0 differ."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        left, right = left.detach().cpu().numpy(), right.detach().cpu().numpy()
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        same = left.dtype == right.dtype and left.shape == right.shape
        return same and left.tobytes() == right.tobytes()
    if isinstance(left, tuple | list):
        return type(left) is type(right) and len(left) == len(right) and all(map(is_bit_equal, left, right))
    return type(left) is type(right) and bool(left == right)


def survives_round_trip(encode: Callable[[T], Any], decode: Callable[[Any], T], value: T) -> None:
    """decode(encode(v)) = v."""
    got = decode(encode(value))
    assert is_bit_equal(got, value), f"expected {value!r} after a round trip, got {got!r}"


def is_idempotent(encode: Callable[[T], Any], decode: Callable[[Any], T], value: T) -> None:
    """encode(decode(encode(v))) = encode(v): what went through once does not change any more."""
    once = encode(value)
    assert is_bit_equal(encode(decode(once)), once)


def holds_golden_bytes(encode: Callable[[T], Any], value: T, golden: str) -> None:
    """encode(v) is what it was when the format was written down, byte by byte (hexadecimal)."""
    encoded = encode(value)
    data = encoded if isinstance(encoded, bytes) else encoded.tobytes()
    assert data.hex(" ") == golden.lower()


def is_pure(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Equal arguments give equal bytes; arguments and the global generators stay as they were."""
    before = _frozen((arguments, options))
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - is untouched
    first = function(*arguments, **options)
    torch.manual_seed(12345)  # whatever the global generators are at, the answer is the same
    second = function(*arguments, **options)
    assert is_bit_equal(first, second)
    assert is_bit_equal(_frozen((arguments, options)), before)
    expected = torch.Generator().manual_seed(12345).get_state()
    assert torch.equal(torch.get_rng_state(), expected)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    torch.set_rng_state(torch_state)
    return first


def survives_pickle(error: Exception) -> None:
    """An error keeps its type, message and attributes on its way from a worker."""
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - dumped in the same line
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


@contextmanager
def leaves_model_alone(model: nn.Module) -> Iterator[None]:
    """Modes, parameters, their gradients and flags, and buffers are what they were, also after an error."""
    before = _snapshot(model)
    try:
        yield
    finally:
        after = _snapshot(model)
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert is_bit_equal(after[key], value), f"{key} changed"


def _snapshot(model: nn.Module) -> dict[str, Any]:
    state: dict[str, Any] = {f"mode of {name}": module.training for name, module in model.named_modules()}
    for name, parameter in model.named_parameters():
        state[f"parameter {name}"] = parameter.detach().clone()
        state[f"flag of {name}"] = parameter.requires_grad
        state[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
    for name, buffer in model.named_buffers():
        state[f"buffer {name}"] = buffer.clone()
    return state


def _frozen(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, tuple | list):
        return type(value)(_frozen(part) for part in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(part)) for key, part in value.items())
    return value


# Ctrl-C works in it even where the tests were started in the background of a shell, which makes a process and all its
# children deaf to it.
_MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from ensadv_data.__main__ import main
main()
"""


def started(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own, which heads a group: Ctrl-C reaches a whole group.

    Its coverage is not measured: a kill would leave half a file.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"ENSADV_QUIET": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        **options,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], *, may_end: bool = False) -> None:
    """Wait for what the process does; it must not have ended before, unless it may."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None:
            assert may_end or condition(), process.communicate()
            return
        assert time.monotonic() < deadline, "nothing in two minutes"
        time.sleep(0.002)
