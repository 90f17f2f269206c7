"""Commands that run a whole chain: the demo, and recipes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from ensadv_data.options import (
    PATH,
)
from ensadv_data.pipeline import StageRun, run_recipe
from ensadv_data.recipe import Recipe, find_recipe, packaged_recipe, read_recipe, selected
from ensadv_data.terminal import print_diagnosis, print_result

__all__ = ["demo", "run"]


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
@click.option("--data-dir", type=str, help="Folder with the data set's files.")
@click.option("--set", "overrides", multiple=True, help="TABLE.KEY=VALUE instead of what the recipe says; repeatable.")
@click.option("--dry-run", is_flag=True, help="Print the stages and stop.")
def run(
    recipe: str,
    out: Path | None,
    until: str | None,
    jobs: int | None,
    data_dir: str | None,
    overrides: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run the chain that RECIPE describes: a TOML file, or the name of a recipe of the package.

    Stages whose inputs have not changed are skipped.
    """
    loaded = read_recipe(find_recipe(recipe), overrides=overrides)
    if data_dir is not None:
        loaded = replace(loaded, data=loaded.data.model_copy(update={"data_dir": data_dir}))
    if dry_run:
        for stage in selected(loaded, until):
            click.echo(f"{stage.kind:<10} {stage.name:<16} {stage.output:<32} needs: {', '.join(stage.inputs) or '–'}")
        return
    _run(loaded, out or Path(loaded.name), until=until, jobs=jobs)


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
