"""The log of a training run: JSON lines always, TensorBoard where it is wanted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from ensadv_data.errors import InputError, OutputError
from ensadv_data.files import naming_trouble, write_atomic

__all__ = ["Journal"]


class Journal:
    """The log of one training run; a context that closes its files.

    Parameters
    ----------
    path
        The file of JSON lines. Lines of a run that is resumed are kept up to its checkpoint.
    start
        Step to go on from; 0 starts a new log.
    steps
        Steps of an epoch.
    tensorboard
        Folder for TensorBoard, or None.

    Raises
    ------
    OutputError
        ``path`` holds something that is not such a log, or cannot be written.
    InputError
        TensorBoard is wanted and not installed.
    """

    def __init__(self, path: Path, start: int, steps: int, tensorboard: Path | None) -> None:
        self.path, self.steps, self.board = path, steps, None
        kept = [text + "\n" for text, number in _lines(path, steps) if number < start]
        write_atomic(path, "".join(kept).encode())
        if tensorboard is not None:
            self.board = _summary_writer(tensorboard, purge_step=start)

    def __enter__(self) -> Journal:
        with naming_trouble(self.path):
            self.file: TextIO = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line; tensors become numbers only here, so that nobody waits for the others."""
        line = {name: _plain(value) for name, value in line.items()}
        with naming_trouble(self.path):
            self.file.write(json.dumps(line) + "\n")
        if self.board is not None and "source" in line:
            number = line["epoch"] * self.steps + line["step"]
            for name in ("loss_clean", "loss_adversarial"):
                if line[name] is not None:
                    self.board.add_scalar(f"{name}/{line['source'] or 'all sources'}", line[name], number)

    def flush(self) -> None:
        """A checkpoint is never ahead of the log."""
        with naming_trouble(self.path):
            self.file.flush()


def _lines(path: Path, steps: int) -> Iterator[tuple[str, int]]:
    """Lines of an earlier run with the number of their step."""
    if not path.exists():
        return
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
        for position, text in enumerate(texts):
            try:
                line = json.loads(text)
            except ValueError:
                if position and position + 1 == len(texts):  # a run that was killed may leave half a line
                    return
                raise
            yield text, line["epoch"] * steps + line["step"]
    except (OSError, ValueError, KeyError, TypeError):
        raise OutputError(f"{path} holds something else than a log of train; choose another --out") from None


def _summary_writer(folder: Path, *, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the extra: pip install 'ensadv-data[tensorboard]'") from None
    return SummaryWriter(str(folder), purge_step=purge_step)


def _plain(value: Any) -> Any:
    return round(float(value), 6) if isinstance(value, Tensor) else value
