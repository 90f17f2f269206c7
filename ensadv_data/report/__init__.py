"""The report: one HTML file that opens anywhere, offline, from results, logs and stores; and the page of one store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ensadv_data.data import Dataset
from ensadv_data.errors import QuantityError
from ensadv_data.files import write_atomic
from ensadv_data.inspection import Agreement, StoreSummary
from ensadv_data.report.charts import (
    draw_agreement,
    draw_directions,
    draw_errors,
    draw_examples,
    draw_losses,
    draw_pictures,
)
from ensadv_data.report.diagnoses import describe_diagnosis, read_diagnosis
from ensadv_data.report.inputs import read_json, read_log, read_result
from ensadv_data.report.page import (
    describe_mix,
    describe_result,
    describe_stores,
    in_one_word,
    render_page,
)
from ensadv_data.store import Store, open_store

__all__ = ["render_page", "write_page", "write_report", "write_store_page"]


def write_report(
    out: Path,
    *,
    title: str,
    results: Sequence[Path] = (),
    logs: Sequence[Path] = (),
    stores: Sequence[Path | str] = (),
    data: Dataset | None = None,
    stages: Mapping[str, float] | None = None,
    epsilon: float | None = None,
) -> Path:
    """Write the report; equal input gives equal bytes.

    Parameters
    ----------
    out
        The HTML file. It needs no network and no other file, and without script only the sorting of columns is missing.
    title
        Heading of the page, as plain text.
    results
        JSON files of ``ensadv-data evaluate`` and ``ensadv-data diagnose``.
    logs
        ``.jsonl`` files of training runs; a model is called as its log is.
    stores
        Folders of complete stores.
    data
        The images that the stores belong to, uint8 (N, C, H, W); without them there are no pictures. A store of the
        other split is described and not pictured.
    stages
        Seconds that each stage took.
    epsilon
        L∞ radius of the pictures, pixels in [0, 1]; the largest of the results', or 0.3, unless given. A perturbation
        of an iterative attack keeps its own.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    InputError
        A file is missing or is not what it should be, or a store is for images of another shape.
    QuantityError
        ``epsilon`` is outside [0, 1], or a time is negative.
    AlignmentError
        A store was made for other images than ``data``.
    ChunkError
        A chunk of a store is missing, truncated or corrupted.
    OutputError
        ``out`` cannot be written.
    """
    if epsilon is not None and not 0 <= epsilon <= 1:
        raise QuantityError(f"epsilon: expected an L∞ radius in [0, 1], got {epsilon:g}; 16/255 is {16 / 255:.4f}")
    for name, seconds in (stages or {}).items():
        if not (math.isfinite(seconds) and seconds >= 0):
            raise QuantityError(f"stage {name!r}: expected seconds from 0 up, got {seconds:g}; measure it again")
    roots = [(path.stem, read_json(path)) for path in results]
    evaluated = [read_result(name, root) for name, root in roots if root.at("kind").text() == "transfer"]
    read = [each for result in evaluated for each in (result, result.top5) if each is not None]
    diagnoses = [read_diagnosis(name, root) for name, root in roots if root.at("kind").text() == "diagnosis"]
    measured = [*(result.data for result in read), *(diagnosis.data for diagnosis in diagnoses)]
    found = {*(result.epsilon for result in read), *(diagnosis.epsilon for diagnosis in diagnoses)}
    radii = [epsilon] if epsilon is not None else sorted(found) or [0.3]
    runs = [read_log(path) for path in logs]
    opened = [open_store(path) for path in stores]
    pictured = [store for store in opened if data is not None and store.header.split == data.split]
    page = render_page(
        "report",
        title=title,
        epsilon=in_one_word([f"{radius:.4g}" for radius in radii]),
        data=in_one_word(measured or ([data.name] if data is not None else [])),
        n_test=in_one_word([result.n for result in read]),
        n_train=None if data is None else len(data),
        results=[
            describe_result(
                result,
                chart=draw_errors(result, salt=f"errors {number}"),
                examples=None if result.pictures is None else draw_examples(result.pictures),
            )
            for number, result in enumerate(read)
        ],
        diagnoses=[
            describe_diagnosis(diagnosis, salt=f"diagnosis {number}") for number, diagnosis in enumerate(diagnoses)
        ],
        mixes=[mix for run in runs if (mix := describe_mix(run)) is not None],
        sources=describe_stores(opened),
        curves=[{"name": run.name, "charts": draw_losses(run, salt=f"losses {i}")} for i, run in enumerate(runs)],
        pictures=draw_pictures(data, pictured, epsilon=max(radii)) if data is not None and pictured else None,
        stages=dict(stages or {}),
    )
    return write_page(out, page)


def write_store_page(
    out: Path,
    store: Store,
    summary: StoreSummary,
    agreement: Agreement,
    *,
    data: Dataset | None = None,
    epsilon: float = 0.3,
) -> Path:
    """Write the page of a store: what it holds, how its entries agree, and what some directions look like.

    Parameters
    ----------
    out
        The HTML file. It needs no network and no other file.
    store
        A complete store.
    summary, agreement
        What :mod:`ensadv_data.inspection` found in it.
    data
        The images that it belongs to, uint8 (N, C, H, W): its pictures are then images before and after. Without them
        they are directions.
    epsilon
        L∞ radius of those pictures, pixels in [0, 1]; a perturbation of an iterative attack keeps its own.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    InputError
        The store is for images of another shape.
    AlignmentError
        The store was made for other images than ``data``.
    ChunkError
        A chunk of the store is missing, truncated or corrupted.
    OutputError
        ``out`` cannot be written.
    """
    page = render_page(
        "store",
        title=f"Store {store.place.name}",
        summary=summary,
        agreement=agreement,
        chart=draw_agreement(agreement, salt="agreement") if len(agreement.keys) > 1 else None,
        directions=draw_directions(store) if data is None else None,
        pictures=None if data is None else draw_pictures(data, [store], epsilon=epsilon),
    )
    return write_page(out, page)


def write_page(out: Path, page: str) -> Path:
    """Write a page, whole or not at all; a name in it may hold half of a surrogate pair.

    Raises
    ------
    OutputError
        ``out`` cannot be written.
    """
    write_atomic(out, page.encode("utf-8", "replace"))
    return out
