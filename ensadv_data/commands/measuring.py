"""Commands that measure: attacks, gradients, and this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ensadv_data.bench import run_bench
from ensadv_data.data import open_data
from ensadv_data.errors import InputError
from ensadv_data.evaluation.diagnosis import diagnose as diagnose_models
from ensadv_data.evaluation.run import evaluate as evaluate_models
from ensadv_data.evaluation.suites import SUITES
from ensadv_data.evaluation.summary import csv_text
from ensadv_data.files import check_outputs, write_atomic, write_json
from ensadv_data.models import module_files, outside_files
from ensadv_data.options import (
    PATH,
    data_options,
    device_option,
    given,
    named,
    seed_option,
    shared_work,
    starts_again,
)
from ensadv_data.spec import (
    MEASURES,
    DataSpec,
    DiagnoseSpec,
    EvaluateSpec,
    checked,
)
from ensadv_data.terminal import print_bench, print_diagnosis, print_result

__all__ = ["bench", "diagnose", "evaluate"]


@click.command(
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
@click.option("--csv", type=PATH, help="Attack × target to write: accuracies; mean and worst of the black-box ones.")
@click.option("--out", type=PATH, help="JSON to write.")
@starts_again
def evaluate(
    data: dict[str, Any],
    limit: int | None,
    targets: tuple[str, ...],
    sources: tuple[str, ...],
    matrix: bool,
    csv: Path | None,
    out: Path | None,
    **fields: Any,
) -> None:
    """Measure targets on test images: clean, white-box, and under attacks transferred from sources.

    Processes of torchrun share the images:  torchrun --nproc-per-node 4 -m ensadv_data evaluate …
    """
    spec = checked(EvaluateSpec, {**given(fields), "images": limit}, where="evaluate")
    if spec.pictures and out is None:
        raise InputError("--pictures: expected --out FILE beside it, which keeps them for the report, got none")
    where = checked(DataSpec, data, where="evaluate")
    roles = {"targets": named(targets), "sources": named(sources)}
    suite = [spec.suite] if spec.suite.endswith(".toml") else []
    check_outputs(out, csv, reads=[*_read_by(roles), *spec.shards, *suite])
    with shared_work(spec.device) as place:
        result = evaluate_models(spec, where, **roles).to_json()
    if place.rank:
        return
    print_result(result, matrix=matrix)  # first: it is not lost when the file cannot be written
    if out is not None:
        write_json(out, result)
    if csv is not None:
        write_atomic(csv, csv_text(result).encode())


def _read_by(roles: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The files that the models of some roles are read from, weights and code."""
    references = [reference for models in roles.values() for reference in models.values()]
    return [*outside_files(references), *module_files(references)]


@click.command(
    epilog="Examples:  ensadv-data diagnose --model adv=adv.safetensors --model ens=ens.safetensors --out found.json;  "
    "add --measure cone --points 100 for one measure;  --measure discrepancy needs --static and --holdout as well"
)
@data_options
@click.option("--model", "models", multiple=True, required=True, help="What is measured, [NAME=]REF; may be repeated.")
@click.option("--measure", "measures", multiple=True, help=f"{', '.join(MEASURES)}; the first four unless given.")
@click.option(
    "--other", "others", multiple=True, help="MODEL=REF, or one REF for all: whose gradient is a surface's other axis."
)
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
@starts_again
def diagnose(
    data: dict[str, Any],
    limit: int | None,
    models: tuple[str, ...],
    others: tuple[str, ...],
    static: tuple[str, ...],
    holdouts: tuple[str, ...],
    out: Path | None,
    **fields: Any,
) -> None:
    """Measure what a model's gradients are worth: masking, rounding, adversarial cone, loss surface, flips.

    --limit is the number of test images of masking, rounding, flips and discrepancy, 1000 unless given. The cone is
    searched at the first --points correctly classified of all test images, and a surface drawn at one --example.
    """
    asked = {name: value for name, value in given(fields).items() if value != ()}
    spec = checked(DiagnoseSpec, asked if limit is None else {**asked, "images": limit}, where="diagnose")
    where = checked(DataSpec, data, where="diagnose")
    roles = {
        "models": named(models),
        "others": named(others),
        "static": named(static),
        "holdouts": named(holdouts),
    }
    if set(spec.measures) == {"surface"} and out is None:
        raise InputError("--measure surface: expected --out FILE beside it, which keeps it for the report, got none")
    check_outputs(out, reads=_read_by(roles))
    found = diagnose_models(spec, where, **roles).to_json()
    print_diagnosis(found)
    if out is not None:
        write_json(out, found)


@click.command(epilog="Example:  ensadv-data bench --architecture C --threads 2 --out bench.json")
@data_options
@click.option("--architecture", default="D", show_default=True, help="A, B, B*, C or D.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--rounds", type=click.IntRange(min=7), default=9, show_default=True, help="Pairs of measurements.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of PyTorch.")
@device_option
@click.option("--out", type=PATH, help="JSON to write.")
@starts_again
def bench(data: dict[str, Any], limit: int | None, out: Path | None, **fields: Any) -> None:
    """Measure on this machine what the store costs a training step, and spares it: in pairs, with their spread."""
    where = checked(DataSpec, {**data, "limit": limit}, where="bench")
    check_outputs(out)
    found = run_bench(open_data(where, "train"), **fields)
    print_bench(found)
    if out is not None:
        write_json(out, found)
