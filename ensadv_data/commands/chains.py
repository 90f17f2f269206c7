"""Commands that run a whole chain: the demo, and recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from ensadv_data.files import write_json
from ensadv_data.options import PATH, given
from ensadv_data.pipeline import StageRun, run_recipe
from ensadv_data.planning import plan_recipe
from ensadv_data.recipe import Recipe, find_recipe, on_device, packaged_recipe, read_recipe, selected
from ensadv_data.terminal import print_diagnosis, print_notes, print_plan, print_result

__all__ = ["demo", "plan", "run"]


@click.command(epilog="Example:  ensadv-data demo --out demo")
@click.option("--out", type=PATH, default=Path("demo"), show_default=True, help="Folder for everything it makes.")
@click.option("--jobs", type=click.IntRange(min=1), help="Stages at once; one a core unless given.")
def demo(out: Path, jobs: int | None) -> None:
    """The whole chain on the embedded images, in some minutes: train, precompute, train, evaluate, report."""
    _run(read_recipe(packaged_recipe("mnist-demo")), out, until=None, jobs=jobs)


@click.command(epilog="Example:  ensadv-data run pipelines/mnist-table8.toml --until table8-D --out table8")
@click.argument("recipe", type=str)
@click.option("--out", type=PATH, help="Folder for everything it makes; the recipe's name unless given.")
@click.option("--until", help="Only this stage, or all seeds of a table, and what it needs.")
@click.option("--jobs", type=click.IntRange(min=1), help="Stages at once; one a core unless given.")
@click.option("--scale", help="Another size of the same experiment, such as tiny, where RECIPE has it.")
@click.option("--data", help="Data set in place of the recipe's, such as folder:PATH.")
@click.option("--data-dir", type=str, help="Folder with the data set's files.")
@click.option("--device", help="cpu or cuda, in place of what the stages say.")
@click.option("--set", "overrides", multiple=True, help="TABLE.KEY=VALUE instead of what the recipe says; repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the stages and stop.")
def run(
    recipe: str,
    out: Path | None,
    until: str | None,
    jobs: int | None,
    scale: str | None,
    data: str | None,
    data_dir: str | None,
    device: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run the chain that RECIPE describes: a TOML file, or the name of a recipe of the package.

    Stages whose inputs have not changed are skipped.
    """
    loaded = _loaded(recipe, overrides, scale=scale, data=data, data_dir=data_dir)
    if dry_run:
        for stage in selected(loaded, until):
            click.echo(f"{stage.kind:<10} {stage.name:<16} {stage.output:<32} needs: {', '.join(stage.inputs) or '–'}")
        return
    _run(on_device(loaded, device), out or Path(loaded.name), until=until, jobs=jobs)


@click.command(
    epilog="Example:  ensadv-data plan mnist-demo --workers 8 --price 0.40 --json plan.json;  add --no-calibrate for "
    "bytes and requests alone"
)
@click.argument("recipe", type=str)
@click.option("--out", type=PATH, help="Folder in which it would run; the recipe's name unless given.")
@click.option("--until", help="Only this stage, or all seeds of a table, and what it needs.")
@click.option("--scale", help="Another size of the same experiment, such as tiny, where RECIPE has it.")
@click.option("--data", help="Data set in place of the recipe's, such as folder:PATH.")
@click.option("--data-dir", type=str, help="Folder with the data set's files.")
@click.option("--set", "overrides", multiple=True, help="TABLE.KEY=VALUE instead of what the recipe says; repeatable.")
@click.option("--workers", type=click.IntRange(min=1), help="That make a store; one a core unless given.")
@click.option("--device", help="cpu or cuda, in place of what the stages say.")
@click.option("--price", type=click.FloatRange(min=0), help="Of an hour of one worker, in whatever you pay with.")
@click.option("--no-calibrate", is_flag=True, help="Measure nothing: bytes, objects and requests alone.")
@click.option("--json", "as_json", type=PATH, help="JSON to write.")
def plan(
    recipe: str,
    out: Path | None,
    until: str | None,
    scale: str | None,
    data: str | None,
    data_dir: str | None,
    overrides: tuple[str, ...],
    workers: int | None,
    device: str | None,
    price: float | None,
    no_calibrate: bool,
    as_json: Path | None,
) -> None:
    """Tell what RECIPE will take, before it runs: bytes, objects, requests, hours, memory and money.

    Nothing is written but the JSON that was asked for.
    """
    loaded = _loaded(recipe, overrides, scale=scale, data=data, data_dir=data_dir)
    planned = plan_recipe(
        loaded,
        out or Path(loaded.name),
        until=until,
        workers=workers,
        device=device,
        price=price,
        calibrate=not no_calibrate,
    ).to_json()
    print_plan(planned)
    print_notes(planned["notes"])
    if as_json is not None:
        write_json(as_json, planned)


def _loaded(recipe: str, overrides: Sequence[str], *, scale: str | None, **data: str | None) -> Recipe:
    loaded = read_recipe(find_recipe(recipe), overrides=overrides, scale=scale)
    return replace(loaded, data=loaded.data.model_copy(update=given(data)))


def _run(recipe: Recipe, out: Path, *, until: str | None, jobs: int | None) -> None:
    runs = run_recipe(recipe, out, until=until, jobs=jobs, say=lambda line: click.echo(line))
    for made in _of_kind(runs, "evaluate"):
        result = json.loads((out / made.stage.output).read_text(encoding="utf-8"))
        print_result(result)
    for made in _of_kind(runs, "diagnose"):
        print_diagnosis(json.loads((out / made.stage.output).read_text(encoding="utf-8")))
    for made in _of_kind(runs, "report"):
        click.echo(f"report: {out / made.stage.output}")


def _of_kind(runs: Sequence[StageRun], kind: str) -> list[StageRun]:
    return [made for made in runs if made.stage.kind == kind]
