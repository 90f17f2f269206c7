"""Commands that show what was made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ensadv_data.data import open_data
from ensadv_data.files import check_outputs
from ensadv_data.inspection import BLOCKS, compare_stores, describe_model, describe_store, is_store, measure_agreement
from ensadv_data.options import (
    PATH,
    STORE,
    data_options,
    starts_again,
)
from ensadv_data.report import write_report, write_store_page
from ensadv_data.spec import (
    DataSpec,
    checked,
)
from ensadv_data.store import open_store
from ensadv_data.terminal import print_agreement, print_differences, print_store

__all__ = ["inspect", "report"]


@click.command(
    epilog="Examples:  ensadv-data inspect shards --agreement;  ensadv-data inspect shards --html shards.html"
)
@click.argument("path", type=STORE)
@click.option("--against", type=STORE, help="Another store of the same images: how its directions differ.")
@click.option("--agreement", is_flag=True, help="Also share of equal signs of every two entries; reads some blocks.")
@click.option(
    "--sample-blocks", type=click.IntRange(min=1), default=BLOCKS, show_default=True, help="Blocks that it is from."
)
@click.option("--html", type=PATH, help="Write a page, readable offline: all of this, and pictures.")
@click.option("--data", help="Data set of the store's images, for pictures of them before and after.")
@click.option("--data-dir", type=str, help="Folder with the data set's files.")
@click.option("--limit", type=int, help="Of its first N images, as at precompute.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@starts_again
def inspect(
    path: Path | str,
    against: Path | str | None,
    agreement: bool,
    sample_blocks: int,
    html: Path | None,
    data: str | None,
    data_dir: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show what a store or a weights file holds."""
    if against is not None and (agreement or html):
        raise click.UsageError("--against compares two stores, --agreement and --html show one; call it twice")
    if data is not None and html is None:
        raise click.UsageError("--data is for the pictures of --html FILE")
    if against is not None:
        found = compare_stores(path, against)
        if as_json:
            click.echo(json.dumps([asdict(row) for row in found], indent=1))
        else:
            print_differences(found)
        return
    if not is_store(path):
        if agreement or html:
            raise click.UsageError(f"--agreement and --html show a store, and {path} is a file")
        click.echo(json.dumps(describe_model(Path(path)), indent=1))
        return
    check_outputs(html, reads=[path])
    summary = describe_store(path)
    agreed = measure_agreement(path, blocks=sample_blocks) if agreement or html else None
    if as_json:
        more = {} if agreed is None else {"agreement": agreed.to_json()}
        click.echo(json.dumps(summary.to_json() | more, indent=1))
    else:
        print_store(summary)
        if agreed is not None:
            print_agreement(agreed)
    if html is not None and agreed is not None:
        store, images = open_store(path), None
        if data is not None:
            where = checked(DataSpec, {"data": data, "data_dir": data_dir, "limit": limit}, where="inspect")
            images = open_data(where, store.header.split)
        write_store_page(html, store, summary, agreed, data=images)
        click.echo(f"page: {html}", err=as_json)


@click.command(
    epilog="Example:  ensadv-data report --result result.json --log ens.jsonl --store shards --out report.html"
)
@click.option("--result", "results", multiple=True, type=PATH, help="JSON of evaluate or diagnose; may be repeated.")
@click.option("--log", "logs", multiple=True, type=PATH, help="JSON lines of train; may be repeated.")
@click.option("--store", "stores", multiple=True, type=STORE, help="A store to picture; may be repeated.")
@data_options
@click.option("--title", default="ensadv-data", show_default=True)
@click.option("--out", type=PATH, required=True, help="HTML to write.")
@starts_again
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
    check_outputs(out, reads=[*results, *logs, *stores])
    images = open_data(where, "train") if stores else None
    path = write_report(out, title=title, results=results, logs=logs, stores=stores, data=images)
    click.echo(f"report: {path}")
