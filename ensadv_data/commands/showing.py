"""Commands that show what was made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ensadv_data.data import open_data
from ensadv_data.inspection import compare_stores, describe_model, describe_store, is_store
from ensadv_data.options import (
    PATH,
    STORE,
    data_options,
)
from ensadv_data.report import write_report
from ensadv_data.spec import (
    DataSpec,
    checked,
)
from ensadv_data.terminal import print_differences, print_store

__all__ = ["inspect", "report"]


@click.command(epilog="Example:  ensadv-data inspect shards")
@click.argument("path", type=STORE)
@click.option("--against", type=STORE, help="Another store of the same images: how its directions differ.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(path: Path | str, against: Path | str | None, as_json: bool) -> None:
    """Show what a store or a weights file holds."""
    if against is not None:
        found = compare_stores(path, against)
        if as_json:
            click.echo(json.dumps([asdict(row) for row in found], indent=1))
        else:
            print_differences(found)
        return
    if not is_store(path):
        click.echo(json.dumps(describe_model(Path(path)), indent=1))
        return
    summary = describe_store(path)
    if as_json:
        click.echo(json.dumps(summary.to_json(), indent=1))
        return
    print_store(summary)


@click.command(
    epilog="Example:  ensadv-data report --result result.json --log ens.jsonl --store shards --out report.html"
)
@click.option("--result", "results", multiple=True, type=PATH, help="JSON of evaluate or diagnose; may be repeated.")
@click.option("--log", "logs", multiple=True, type=PATH, help="JSON lines of train; may be repeated.")
@click.option("--store", "stores", multiple=True, type=STORE, help="A store to picture; may be repeated.")
@data_options
@click.option("--title", default="ensadv-data", show_default=True)
@click.option("--out", type=PATH, required=True, help="HTML to write.")
def report(
    results: tuple[Path, ...],
    logs: tuple[Path, ...],
    stores: tuple[Path | str, ...],
    data: dict[str, Any],
    limit: int | None,
    title: str,
    out: Path,
) -> None:
    """Write one HTML file, readable offline, from results, logs and stores."""
    where = checked(DataSpec, {**data, "limit": limit}, where="report")
    images = open_data(where, "train") if stores else None
    path = write_report(out, title=title, results=results, logs=logs, stores=stores, data=images)
    click.echo(f"report: {path}")
