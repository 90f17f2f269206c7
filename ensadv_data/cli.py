"""The command line: parse, call, print. Errors are for __main__; what things mean is in the specs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from ensadv_data.bench import run_bench
from ensadv_data.data import open_data
from ensadv_data.data.fetch import fetch as fetch_data
from ensadv_data.errors import InputError
from ensadv_data.evaluation.diagnosis import diagnose as diagnose_models
from ensadv_data.evaluation.run import evaluate as evaluate_models
from ensadv_data.evaluation.suites import SUITES
from ensadv_data.evaluation.summary import csv_text, remarks
from ensadv_data.files import write_atomic, write_json
from ensadv_data.inspection import compare_stores, describe_model, describe_store, is_store
from ensadv_data.models import ARCHITECTURES
from ensadv_data.options import (
    PATH,
    data_options,
    device_option,
    given,
    named,
    read_bytes,
    seed_option,
)
from ensadv_data.pipeline import StageRun, run_recipe
from ensadv_data.precompute import precompute_store
from ensadv_data.recipe import Recipe, find_recipe, packaged_recipe, read_recipe, selected
from ensadv_data.report import write_report
from ensadv_data.spec import (
    ATTACKS,
    MEASURES,
    DataSpec,
    DiagnoseSpec,
    EvaluateSpec,
    PrecomputeSpec,
    TrainSpec,
    checked,
)
from ensadv_data.terminal import print_bench, print_diagnosis, print_differences, print_result, print_store
from ensadv_data.training import train as train_model

__all__ = ["cli"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("ensadv-data"), prog_name="ensadv-data")
def cli() -> None:
    """Precompute adversarial directions of static models, and train on them (Ensemble Adversarial Training).

    Begin with:  ensadv-data demo
    """


@cli.command(epilog="Example:  ensadv-data demo --out demo")
@click.option("--out", type=PATH, default=Path("demo"), show_default=True, help="Folder for everything it makes.")
@click.option("--jobs", type=click.IntRange(min=1), help="Stages at once; one a core unless given.")
def demo(out: Path, jobs: int | None) -> None:
    """The whole chain on the embedded images, in some minutes: train, precompute, train, evaluate, report."""
    _run(read_recipe(packaged_recipe("mnist-demo")), out, until=None, jobs=jobs)


@cli.command(epilog="Example:  ensadv-data run pipelines/mnist-table8.toml --until table8-D --out table8")
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


@cli.command(epilog="Example:  ensadv-data fetch mnist")
@click.argument("name")
@click.option("--data-dir", type=PATH, help="Where to put it, in a folder of its name.")
@click.option("--mirror", multiple=True, help="A base URL instead of the built-in ones; may be repeated.")
def fetch(name: str, data_dir: Path | None, mirror: tuple[str, ...]) -> None:
    """Download the data set NAME from a list of mirrors; every file's SHA-256 is checked."""
    folder = fetch_data(name, mirrors=mirror or None, home=data_dir, progress=sys.stderr.isatty())
    click.echo(f"{name}: checked, in {folder}")


@cli.command(
    epilog="Examples:  ensadv-data train --architecture C --out c.safetensors  (plain);  add --online step-ll "
    "(adversarial);  add --online step-ll --shards STORE (ensemble adversarial)"
)
@data_options
@click.option("--architecture", required=True, help=f"One of: {', '.join(ARCHITECTURES)} (Table 5).")
@click.option("--out", type=PATH, required=True, help="Weights to write, FILE.safetensors.")
@click.option("--epochs", type=int, default=6, show_default=True)
@click.option("--batch-size", type=int, default=64, show_default=True)
@seed_option
@click.option("--optimizer", default="adam", show_default=True, help="adam, or rmsprop with the paper's schedule.")
@click.option("--learning-rate", type=float, help="0.001 for adam and 0.045 for rmsprop unless given.")
@click.option("--online", help=f"White-box attack on the model being trained: {', '.join(ATTACKS)}.")
@click.option("--shards", multiple=True, help="A store of static perturbations; may be repeated.")
@click.option("--draws", type=int, help="Use the first so many draws of each store; all unless given.")
@click.option("--static", multiple=True, help="A static model, [NAME=]REF, to compute them at each step instead.")
@click.option("--static-attack", help="Attack of the static models; fgsm unless given.")
@click.option("--static-mode", default="eval", show_default=True, help="eval, or train: dropout active.")
@click.option("--source-per", default="batch", show_default=True, help="batch, or example: a source for each image.")
@click.option("--epsilon", default="0.3", show_default=True, help="0.3, 16/255 or normal:SIGMA,MAX.")
@click.option("--batches", default="pair", show_default=True, help="pair, or replace (half of the batch).")
@click.option("--adversarial-weight", type=float, help="λ: 1 with pair, 0.3 with replace, unless given.")
@click.option("--random-step", default="fresh", show_default=True, help="fresh or stored, for R+ directions.")
@click.option(
    "--online-mode", default="train", show_default=True, help="train: dropout active in the gradient; or eval."
)
@click.option("--amp", is_flag=True, help="bfloat16 autocast.")
@click.option("--threads", type=int, help="Threads of the computation; PyTorch's choice unless given.")
@click.option(
    "--window", type=int, default=0, show_default=True, help="Shuffle inside windows of W blocks; 0: globally."
)
@device_option
@click.option("--checkpoint-every", type=click.IntRange(min=1), default=200, show_default=True, help="Steps.")
@click.option("--log-every", type=click.IntRange(min=1), default=10, show_default=True, help="Steps.")
@click.option("--prefetch", type=click.IntRange(min=0), default=2, show_default=True, help="Steps to read ahead.")
@click.option(
    "--cache-bytes",
    default="1GiB",
    show_default=True,
    callback=read_bytes,
    help="Room for decompressed chunks.",
)
@click.option("--tensorboard", type=PATH, help="Folder for TensorBoard as well.")
def train(
    data: str,
    data_dir: str | None,
    limit: int | None,
    out: Path,
    checkpoint_every: int,
    log_every: int,
    prefetch: int,
    cache_bytes: int,
    tensorboard: Path | None,
    static: tuple[str, ...],
    **fields: Any,
) -> None:
    """Train a model: plain, adversarially (--online), or on an ensemble (--online and --shards).

    --static computes at each step what --shards reads: slower, and what a store is to be compared with.
    """
    spec = checked(TrainSpec, {**given(fields), "static": named(static)}, where="train")
    where = checked(DataSpec, {"data": data, "data_dir": data_dir, "limit": limit}, where="train")
    dataset = open_data(where, "train")
    made = train_model(
        spec,
        dataset,
        out,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        prefetch=prefetch,
        cache_bytes=cache_bytes,
        tensorboard=tensorboard,
    )
    state = (
        "was finished before and was left alone" if made.was_complete else f"{made.steps} steps, {made.seconds:.1f} s"
    )
    click.echo(f"{made.path}: {state}; weights {made.digest[:16]}")


@cli.command(
    epilog="Example:  ensadv-data precompute --model b=b.safetensors --model c=c.safetensors --attack r-fgsm:alpha=0.1 "
    "--draws 2 --out shards"
)
@data_options
@click.option("--model", "models", multiple=True, required=True, help="A static model, NAME=REF; may be repeated.")
@click.option("--attack", "attacks", multiple=True, required=True, help="NAME[:KEY=VALUE,…]; may be repeated.")
@click.option("--out", type=PATH, required=True, help="Folder of the store.")
@click.option(
    "--draws", type=int, help="Perturbations an example; unless given, 4 for training with R+, PGD or dropout, else 1."
)
@click.option("--split", default="train", show_default=True, help="train, or test: for evaluate --shards.")
@click.option("--labels", default="predicted", show_default=True, help="predicted, or true: for evaluate --shards.")
@click.option("--mode", default="eval", show_default=True, help="eval, or train: dropout active.")
@click.option("--zeros", default="keep", show_default=True, help="keep, or fill with a deterministic coin.")
@click.option("--loss", default="margin", show_default=True, help="margin, or ce for comparison.")
@seed_option
@click.option("--batch-size", default="64", show_default=True, help="Images at once, or auto: found by trial.")
@click.option("--precision", default="float32", show_default=True, help="float32, or bfloat16: faster on some devices.")
@click.option("--compile", is_flag=True, help="Compile the models by torch.compile.")
@device_option
@click.option("--workers", type=click.IntRange(min=0), help="Processes here; one a core unless given; 0: this process.")
@click.option("--scheduler", help="Address of a running dask cluster, tcp://…, instead of --workers.")
def precompute(
    data: str,
    data_dir: str | None,
    limit: int | None,
    models: tuple[str, ...],
    out: Path,
    workers: int | None,
    scheduler: str | None,
    **fields: Any,
) -> None:
    """Compute the signed gradients of static models over a whole training set, or test set, into a store.

    Ctrl-C at any time; the same command goes on where it stopped.
    """
    spec = checked(PrecomputeSpec, {**given(fields), "models": named(models)}, where="precompute")
    where = checked(DataSpec, {"data": data, "data_dir": data_dir, "limit": limit}, where="precompute")
    outcome = precompute_store(spec, where, out, workers=workers, scheduler=scheduler)
    for note in outcome.notes:
        click.echo(f"note: {note}", err=True)
    if outcome.was_complete:
        click.echo(f"{out}: was finished before and was left alone; store {outcome.digest[:16]}")
    else:
        click.echo(
            f"{out}: {outcome.computed} of {outcome.blocks} blocks computed in {outcome.seconds:.1f} s; "
            f"store {outcome.digest[:16]}"
        )


@cli.command(
    epilog="Example:  ensadv-data evaluate --target ens=ens.safetensors --source holdout=b2.safetensors --suite paper "
    "--out result.json"
)
@data_options
@click.option("--target", "targets", multiple=True, required=True, help="[NAME=]REF; may be repeated.")
@click.option("--source", "sources", multiple=True, help="Where attacks are transferred from, [NAME=]REF.")
@click.option("--shards", multiple=True, help="A store of the test images: its sources' attacks are read from it.")
@click.option(
    "--suite", default="paper", show_default=True, help="; ".join(f"{k}: {v.about}" for k, v in SUITES.items())
)
@click.option("--epsilon", default="0.3", show_default=True, help="L∞ radius, 0.3 or 16/255.")
@seed_option
@click.option("--batch-size", type=int, default=250, show_default=True)
@device_option
@click.option("--loss", default="margin", show_default=True, help="Of attacks that name none: margin, or ce.")
@click.option("--shift", help="Move the images before they are attacked: rotate=DEGREES,flip=PIXELS (App. C.1).")
@click.option("--pictures", type=int, default=0, help="Keep the first N images, at most 64, before and after attacks.")
@click.option("--matrix", is_flag=True, help="Print every attack and source too; * marks the strongest and its ties.")
@click.option("--csv", type=PATH, help="Attack × target to write: accuracies, their mean and their worst.")
@click.option("--out", type=PATH, help="JSON to write.")
def evaluate(
    data: str,
    data_dir: str | None,
    limit: int | None,
    targets: tuple[str, ...],
    sources: tuple[str, ...],
    matrix: bool,
    csv: Path | None,
    out: Path | None,
    **fields: Any,
) -> None:
    """Measure targets on test images: clean, white-box, and under attacks transferred from sources."""
    spec = checked(EvaluateSpec, {**given(fields), "images": limit}, where="evaluate")
    if spec.pictures and out is None:
        raise InputError("--pictures: expected --out FILE beside it, which keeps them for the report, got none")
    where = checked(DataSpec, {"data": data, "data_dir": data_dir}, where="evaluate")
    result = evaluate_models(spec, where, targets=named(targets), sources=named(sources)).to_json()
    for note in remarks(result):
        click.echo(f"note: {note}", err=True)
    print_result(result, matrix=matrix)  # first: it is not lost when the file cannot be written
    if csv is not None:
        write_atomic(csv, csv_text(result).encode())
    if out is not None:
        write_json(out, result)


@cli.command(
    epilog="Examples:  ensadv-data diagnose --model adv=adv.safetensors --model ens=ens.safetensors --out found.json;  "
    "add --measure cone --points 100 for one measure;  --measure discrepancy needs --static and --holdout as well"
)
@data_options
@click.option("--model", "models", multiple=True, required=True, help="What is measured, [NAME=]REF; may be repeated.")
@click.option("--measure", "measures", multiple=True, help=f"{', '.join(MEASURES)}; all but the last unless given.")
@click.option("--other", "others", multiple=True, help="MODEL=REF: its signed gradient is a loss surface's other axis.")
@click.option("--static", multiple=True, help="A source of training, [NAME=]REF, for the discrepancy.")
@click.option("--holdout", "holdouts", multiple=True, help="A future adversary's source, [NAME=]REF, likewise.")
@click.option("--epsilon", default="0.3", show_default=True, help="L∞ radius, 0.3 or 16/255.")
@click.option("--epsilons", multiple=True, help="Radii of the cone; a quarter, 5/8 and all of epsilon unless given.")
@click.option("--single", default="fgsm", show_default=True, help="Single-step attack.")
@click.option("--iterative", default="pgd:loss=margin", show_default=True, help="What bounds the largest loss.")
@click.option("--loss", default="margin", show_default=True, help="Whose gradient: margin, or ce for comparison.")
@click.option("--points", type=int, default=500, show_default=True, help="Correctly classified images of the cone.")
@click.option("--example", "examples", type=int, multiple=True, help="Image with a loss surface; 0 unless given.")
@click.option("--resolution", type=int, default=41, show_default=True, help="Points of a surface's side.")
@seed_option
@click.option("--batch-size", type=int, default=250, show_default=True)
@device_option
@click.option("--out", type=PATH, help="JSON to write.")
def diagnose(
    data: str,
    data_dir: str | None,
    limit: int | None,
    models: tuple[str, ...],
    others: tuple[str, ...],
    static: tuple[str, ...],
    holdouts: tuple[str, ...],
    out: Path | None,
    **fields: Any,
) -> None:
    """Measure what a model's gradients are worth: masking, rounding, adversarial cone, loss surface, discrepancy.

    --limit is the number of test images, 1000 unless given.
    """
    asked = {name: value for name, value in given(fields).items() if value != ()}
    spec = checked(DiagnoseSpec, asked if limit is None else {**asked, "images": limit}, where="diagnose")
    where = checked(DataSpec, {"data": data, "data_dir": data_dir}, where="diagnose")
    found = diagnose_models(
        spec, where, models=named(models), others=named(others), static=named(static), holdouts=named(holdouts)
    ).to_json()
    print_diagnosis(found)
    if out is not None:
        write_json(out, found)


@cli.command(epilog="Example:  ensadv-data bench --architecture C --threads 2 --out bench.json")
@data_options
@click.option("--architecture", default="D", show_default=True, help="A, B, B*, C or D.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(min=7), default=9, show_default=True, help="Pairs of measurements.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of PyTorch.")
@device_option
@click.option("--out", type=PATH, help="JSON to write.")
def bench(data: str, data_dir: str | None, limit: int | None, out: Path | None, **fields: Any) -> None:
    """Measure on this machine what the store costs a training step, and spares it: in pairs, with their spread."""
    where = checked(DataSpec, {"data": data, "data_dir": data_dir, "limit": limit}, where="bench")
    found = run_bench(open_data(where, "train"), **fields)
    print_bench(found)
    if out is not None:
        write_json(out, found)


@cli.command(epilog="Example:  ensadv-data inspect shards")
@click.argument("path", type=PATH)
@click.option("--against", type=PATH, help="Another store of the same images: how its directions differ.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(path: Path, against: Path | None, as_json: bool) -> None:
    """Show what a store or a weights file holds."""
    if against is not None:
        found = compare_stores(path, against)
        if as_json:
            click.echo(json.dumps([asdict(row) for row in found], indent=1))
        else:
            print_differences(found)
        return
    if not is_store(path):
        click.echo(json.dumps(describe_model(path), indent=1))
        return
    summary = describe_store(path)
    if as_json:
        click.echo(json.dumps(summary.to_json(), indent=1))
        return
    print_store(summary)


@cli.command(
    epilog="Example:  ensadv-data report --result result.json --log ens.jsonl --store shards --out report.html"
)
@click.option("--result", "results", multiple=True, type=PATH, help="JSON of evaluate or diagnose; may be repeated.")
@click.option("--log", "logs", multiple=True, type=PATH, help="JSON lines of train; may be repeated.")
@click.option("--store", "stores", multiple=True, type=PATH, help="A store to picture; may be repeated.")
@data_options
@click.option("--title", default="ensadv-data", show_default=True)
@click.option("--out", type=PATH, required=True, help="HTML to write.")
def report(
    results: tuple[Path, ...],
    logs: tuple[Path, ...],
    stores: tuple[Path, ...],
    data: str,
    data_dir: str | None,
    limit: int | None,
    title: str,
    out: Path,
) -> None:
    """Write one HTML file, readable offline, from results, logs and stores."""
    where = checked(DataSpec, {"data": data, "data_dir": data_dir, "limit": limit}, where="report")
    images = open_data(where, "train") if stores else None
    path = write_report(out, title=title, results=results, logs=logs, stores=stores, data=images)
    click.echo(f"report: {path}")


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
