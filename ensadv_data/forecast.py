"""What a plan tells: of each stage, of all together, and when a store has paid for itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ensadv_data.sizing import Reading, Requests, Span

__all__ = ["BreakEven", "Plan", "StagePlan"]


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes. Bytes and objects are those of its output; seconds are measured, or None."""

    name: str
    kind: str
    done: bool  # a run would skip it
    objects: Span
    bytes: Span | None = None
    about_bytes: int | None = None  # where bytes are not known, or a sample was compressed
    requests: Requests | None = None  # of a store that is made in an object store
    reading: Mapping[str, Reading] = field(default_factory=dict)  # by store, for a training
    workers: int = 1
    seconds: float | None = None  # from its beginning to its end, with all workers
    block_bytes: int = 0  # memory of a worker, beside what any process of ours takes
    record_bytes: int = 0  # memory of the client, likewise
    cost: float | None = None

    @property
    def worker_seconds(self) -> float | None:
        """Seconds for which workers are there."""
        return None if self.seconds is None else self.seconds * self.workers

    def to_json(self) -> dict[str, Any]:
        """As JSON: pairs are the least and the most."""
        return {
            "name": self.name,
            "kind": self.kind,
            "done": self.done,
            "objects": self.objects.to_json(),
            "bytes": self.bytes and self.bytes.to_json(),
            "about_bytes": self.about_bytes,
            "requests": self.requests and self.requests.to_json(),
            "reading": {name: reading.to_json() for name, reading in self.reading.items()},
            "workers": self.workers,
            "seconds": self.seconds and round(self.seconds, 3),
            "worker_seconds": self.worker_seconds and round(self.worker_seconds, 3),
            "block_bytes": self.block_bytes,
            "record_bytes": self.record_bytes,
            "cost": self.cost and round(self.cost, 4),
        }


@dataclass(frozen=True)
class BreakEven:
    """After how many epochs a training's stores have cost less than their gradients at each step."""

    stage: str
    stores: tuple[str, ...]
    sources: int  # n, the model being trained among them
    draws: int  # K
    made: float  # worker-seconds that the stores take
    elapsed: float  # seconds until they are there
    saved: float  # seconds that an epoch is shorter
    epochs: int  # of this training
    all_epochs: int  # of all trainings that read these stores

    def to_json(self) -> dict[str, Any]:
        """As JSON: epochs by what is paid, and by the time that one waits."""
        told = {"stage": self.stage, "stores": list(self.stores), "sources": self.sources, "draws": self.draws}
        seconds = {"made_seconds": self.made, "elapsed_seconds": self.elapsed, "saved_seconds_an_epoch": self.saved}
        return {
            **told,
            **{name: round(value, 3) for name, value in seconds.items()},
            "break_even_epochs": self._after(self.made),
            "break_even_epochs_elapsed": self._after(self.elapsed),
            "epochs": self.epochs,
            "all_epochs": self.all_epochs,
        }

    def _after(self, seconds: float) -> float | None:
        return round(seconds / self.saved, 2) if self.saved else None


@dataclass(frozen=True)
class Plan:
    """The plan of a recipe."""

    recipe: str
    stages: tuple[StagePlan, ...]
    break_even: tuple[BreakEven, ...]
    process_bytes: int | None  # memory of this process at its most, while it measured
    price: float | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON; ``totals`` are of what a run would not skip."""
        rest = [stage for stage in self.stages if not stage.done]
        known = [stage for stage in rest if stage.seconds is not None]
        size = sum((stage.bytes for stage in rest if stage.bytes is not None), Span(0, 0))
        totals = {
            "objects": sum((stage.objects for stage in rest), Span(0, 0)).to_json(),
            "bytes": size.to_json(),
            "seconds": round(sum(stage.seconds or 0 for stage in known), 3) if known else None,
            "worker_seconds": round(sum(stage.worker_seconds or 0 for stage in known), 3) if known else None,
            "cost": None if self.price is None or not known else round(sum(stage.cost or 0 for stage in known), 4),
        }
        return {
            "kind": "plan",
            "version": 1,
            "recipe": self.recipe,
            "stages": [stage.to_json() for stage in self.stages],
            "totals": totals,
            "break_even": [one.to_json() for one in self.break_even],
            "process_bytes": self.process_bytes,
            "price": self.price,
            "notes": list(self.notes),
        }
