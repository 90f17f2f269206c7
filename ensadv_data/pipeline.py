"""Running a recipe: a stage whose inputs have not changed is skipped.

Stages run in processes of their own, as many at once as there are cores, and share the cores: threads of two stages
that wait for each other on one core take several times as long as one thread of each.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ensadv_data.arithmetic import IMITATED, without_imitation
from ensadv_data.data import open_data
from ensadv_data.dist import available_cores, check_device, device_name, intra_op_threads
from ensadv_data.errors import EnsadvError, Interrupted
from ensadv_data.evaluation.diagnosis import diagnose
from ensadv_data.evaluation.run import evaluate
from ensadv_data.files import write_atomic, write_json
from ensadv_data.memory import keep_freed_memory
from ensadv_data.outputs import Outputs, finished_stages
from ensadv_data.precompute import precompute_store
from ensadv_data.progress import progress_bar, silence_bars
from ensadv_data.recipe import KINDS, Kind, Recipe, Stage, selected
from ensadv_data.report import write_report
from ensadv_data.spec import DiagnoseSpec, EvaluateSpec, PrecomputeSpec, TrainSpec
from ensadv_data.training import train

__all__ = ["StageRun", "run_recipe"]


@dataclass(frozen=True)
class StageRun:
    """What happened to a stage."""

    stage: Stage
    skipped: bool
    seconds: float


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    until: str | None = None,
    jobs: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[StageRun]:
    """Run what has changed, and skip the rest.

    Parameters
    ----------
    out
        Folder of the outputs: models, shards, results, report, and the stages' state.
    until
        Only this stage and those that it needs.
    jobs
        Stages at once, each in a process of its own and with its share of the cores; None: one a core.
    say
        Called with a line for each stage that ends.

    Raises
    ------
    OutputError
        ``out`` holds something else.
    Interrupted
        Ctrl-C; what is done is kept, and the same command resumes.
    """
    stages, jobs = selected(recipe, until), jobs or available_cores()
    asking = [s for s in stages if _device(s) != "cpu" or getattr(s.spec, "amp", False)]
    finished_before = finished_stages(recipe, out) if asking else set[str]()
    asking = [stage for stage in asking if stage.name not in finished_before]  # the others need no device any more
    for device in {_device(stage) for stage in asking}:
        check_device(device)
    plan = _Plan(recipe, out, jobs)
    plan.claim()
    if imitating := [s.name for s in asking if isinstance(s.spec, TrainSpec) and without_imitation(s.spec) != s.spec]:
        say(f"note: {IMITATED}; in float32 in spite of amp = true: {', '.join(imitating)}")
    done: list[StageRun] = []

    def finished(run: StageRun) -> None:
        done.append(run)
        say(f"{run.stage.kind:<10} {run.stage.name:<16} {'unchanged' if run.skipped else f'{run.seconds:6.1f} s'}")

    with progress_bar(recipe.name, total=len(stages), unit="stages") as advance:
        if jobs == 1:
            for stage in stages:
                finished(_run_stage(plan, stage))
                advance(1)
            return done
        others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_child, initargs=(os.getpid(),))
        waiting, running = _most_awaited_first(stages), dict[Future[StageRun], Stage]()
        try:
            while waiting or running:
                busy = {stage.name for stage in (*waiting, *running.values())}
                for stage in [s for s in waiting if not busy & set(s.inputs)][: jobs - len(running)]:
                    running[pool.submit(_run_in_child, plan, stage)] = stage
                    waiting.remove(stage)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    stage = running.pop(future)
                    if (error := future.exception()) is not None and running:
                        names = ", ".join(s.name for s in running.values())
                        say(f"{stage.kind:<10} {stage.name:<16} failed: {error}; finishing first: {names}")
                    finished(future.result())
                    advance(1)
        except KeyboardInterrupt:
            for child in set(multiprocessing.active_children()) - others:
                os.kill(child.pid or 0, signal.SIGINT)
            raise Interrupted(f"{out}: stopped; what is done is kept, and the same command resumes") from None
        except BrokenProcessPool:
            raise EnsadvError(f"{out}: a stage's process died (out of memory?); the same command resumes") from None
        finally:
            try:
                pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:  # the second Ctrl-C does not wait for the stages to stop by themselves
                for child in set(multiprocessing.active_children()) - others:
                    child.kill()
                raise
    return done


@dataclass(frozen=True)
class _Plan(Outputs):
    """What a stage's process needs to know of the run."""

    jobs: int

    @property
    def threads(self) -> int:
        """Of a stage: its share of the cores, and no more than PyTorch takes by itself.

        Training and precomputing on a CPU set one themselves, whatever the share: their bytes depend on it.
        """
        return max(1, min(torch.get_num_threads(), available_cores() // self.jobs))


def _most_awaited_first(stages: Sequence[Stage]) -> list[Stage]:
    """Stages by the length of the chain that waits for them, so that cores are idle least at the end."""
    length: dict[str, int] = {}
    for stage in reversed(stages):
        length[stage.name] = 1 + max((length[s.name] for s in stages if stage.name in s.inputs), default=0)
    return sorted(stages, key=lambda stage: -length[stage.name])


def _run_stage(plan: _Plan, stage: Stage) -> StageRun:
    """Run a stage, or skip it when its digest and its output are the ones of its last run."""
    began = time.perf_counter()
    digest, state, output = plan.digest(stage), plan.state(stage), plan.fingerprint(stage)
    begun = plan.digest(stage, with_device=True)
    if plan.is_unchanged(stage, digest):
        return StageRun(stage, skipped=True, seconds=float(state.get("seconds", 0)))
    path = plan.path(stage)
    if output is not None and state.get("output") == output and state.get("digest") != digest:
        shutil.rmtree(path) if path.is_dir() else path.unlink()  # ours, and made from other inputs
    if state.get("started", begun) != begun:
        _remove_unfinished(path)
    if output is None or not path.exists():
        write_atomic(plan.state_path(stage), (json.dumps({"started": begun}) + "\n").encode())
    with intra_op_threads(plan.threads):
        _WORK[stage.kind](plan, stage)
    seconds = time.perf_counter() - began
    record = {"digest": digest, "output": plan.fingerprint(stage), "seconds": round(seconds, 3)}
    record |= {"device": device_name(device)} if (device := _device(stage)) != "cpu" else {}
    write_atomic(plan.state_path(stage), (json.dumps(record, sort_keys=True) + "\n").encode())
    return StageRun(stage, skipped=False, seconds=seconds)


def _device(stage: Stage) -> str:
    """The device that the stage's description names; a report needs none."""
    return str(getattr(stage.spec, "device", "cpu"))


def _remove_unfinished(path: Path) -> None:
    """Delete what a stage that was stopped, and then changed, has left; a finished output is not touched."""
    path.with_suffix(".checkpoint").unlink(missing_ok=True)
    if path.is_dir() and not (path / "manifest.json").exists():
        shutil.rmtree(path)


def _train(plan: _Plan, stage: Stage) -> None:
    spec = stage.spec
    if not isinstance(spec, TrainSpec):
        raise TypeError(stage.name)
    static = {name: plan.reference(ref) for name, ref in spec.static.items()}
    threads = spec.threads or (1 if spec.device == "cpu" else None)
    train(
        spec.model_copy(update={"shards": plan.stores(spec.shards), "static": static, "threads": threads}),
        open_data(plan.recipe.data, "train"),
        plan.path(stage),
    )


def _precompute(plan: _Plan, stage: Stage) -> None:
    spec = stage.spec
    if not isinstance(spec, PrecomputeSpec):
        raise TypeError(stage.name)
    models = {name: plan.reference(ref) for name, ref in spec.models.items()}
    data = plan.recipe.data
    if spec.split == "test":  # the recipe's limit is about training images
        data = data.model_copy(update={"limit": None})
    gpus = torch.cuda.device_count() if spec.device == "cuda" else 0
    how: dict[str, Any] = {"workers": plan.jobs if spec.device == "cpu" else 0} if gpus < 2 else {"gpus": gpus}
    precompute_store(spec.model_copy(update={"models": models}), data, plan.path(stage), **how)


def _evaluate(plan: _Plan, stage: Stage) -> None:
    spec = stage.spec
    if not isinstance(spec, EvaluateSpec):
        raise TypeError(stage.name)
    targets, sources = (
        {name: plan.reference(ref) for name, ref in stage.options[role].items()} for role in ("targets", "sources")
    )
    spec = spec.model_copy(update={"shards": plan.stores(spec.shards)})
    write_json(plan.path(stage), evaluate(spec, plan.recipe.data, targets=targets, sources=sources).to_json())


def _diagnose(plan: _Plan, stage: Stage) -> None:
    spec = stage.spec
    if not isinstance(spec, DiagnoseSpec):
        raise TypeError(stage.name)
    roles = {role: {name: plan.reference(ref) for name, ref in named.items()} for role, named in stage.options.items()}
    write_json(plan.path(stage), diagnose(spec, plan.recipe.data, **roles).to_json())


def _report(plan: _Plan, stage: Stage) -> None:
    made = [plan.recipe.stage(name) for name in stage.inputs]
    paths = {kind: [plan.path(s) for s in made if s.kind == kind and plan.path(s).exists()] for kind in KINDS}
    write_report(
        plan.path(stage),
        title=str(stage.options["title"]),
        results=[*paths["evaluate"], *paths["diagnose"]],
        logs=[path.with_suffix(".jsonl") for path in paths["train"]],
        stores=paths["precompute"],
        data=open_data(plan.recipe.data, "train"),
        stages={s.name: float(plan.state(s).get("seconds", 0)) for s in made},
    )


_WORK: Mapping[Kind, Callable[[_Plan, Stage], None]] = {
    "train": _train,
    "precompute": _precompute,
    "evaluate": _evaluate,
    "diagnose": _diagnose,
    "report": _report,
}


def _start_child(parent: int) -> None:
    """A stage's process shows no bars, leaves Ctrl-C to its stage, and never outlives its parent.

    It stands in a group of its own: the terminal sends Ctrl-C to the parent alone, which passes it on once; so a
    signal that is sent to the parent by hand does the same.
    """
    silence_bars()
    keep_freed_memory()
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_in_child(plan: _Plan, stage: Stage) -> StageRun:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _run_stage(plan, stage)
    except KeyboardInterrupt:
        raise Interrupted(f"{stage.name}: stopped; the same command resumes") from None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
