"""Diagnoses on the page: tables of masking and rounding, curves of the cone, loss surfaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ensadv_data.evaluation.summary import diagnosis_remarks
from ensadv_data.report.charts import draw_curves, picture_of
from ensadv_data.report.inputs import Node, Rate

__all__ = ["Diagnosis", "describe_diagnosis", "read_diagnosis"]

_MASKING = ("ratio", "ratio_of_means", "ratio_to_best", "loss_clean", "loss_single", "loss_iterative", "cosine")
_ROUNDING = ("wrong_ce", "wrong_margin", "lost_ce", "lost_margin", "saturated", "zeros")


@dataclass(frozen=True)
class Cone:
    """Curves of one model: by ε, the share of points with at least k directions, k from 1."""

    points: int
    skipped: int
    curves: Mapping[float, tuple[float, ...]]
    whole: Mapping[float, Mapping[str, Rate]]  # by ε and order: all of the order's directions are adversarial


@dataclass(frozen=True)
class Plane:
    """A loss surface."""

    example: int
    label: int
    across: str
    radius: float
    loss: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Findings:
    """What was measured on one model; None or empty where it was not."""

    name: str
    architecture: str
    digest: str
    attacks: tuple[str, str] | None
    masking: Mapping[str, float | None] | None
    gradient_norm: float | None
    rounding: Mapping[str, float] | None
    flips: Mapping[str, float | None] | None
    cone: Cone | None
    planes: tuple[Plane, ...]


@dataclass(frozen=True)
class Diagnosis:
    """One file of ``diagnose``."""

    name: str
    data: str
    n: int
    epsilon: float
    loss: str
    models: tuple[Findings, ...]
    discrepancy: Mapping[str, tuple[float, float]]  # by future adversary: equation 10, and the largest gap of risks
    remarks: tuple[str, ...] = ()  # what a reader should know


def read_diagnosis(name: str, root: Node) -> Diagnosis:
    """Check a result of ``ensadv-data diagnose``.

    Raises
    ------
    InputError
        The file is missing, or is no such result; the message names the place in it.
    """
    models = tuple(_findings(name, node) for name, node in root.at("models").items())
    if not models:
        raise root.at("models").fail("at least one model")
    return Diagnosis(
        name=name,
        data=root.at("data").text(),
        n=root.at("n").count(1),
        epsilon=root.at("epsilon").share(),
        loss=root.at("loss").text(),
        models=models,
        discrepancy={
            name: (node.at("discrepancy").share(), node.at("largest_gap").share())
            for name, node in root.at("discrepancy").items()
        },
        remarks=tuple(diagnosis_remarks(root.table())),
    )


def _masking(node: Node) -> dict[str, float | None]:
    error = "ratio_to_best_stderr"  # results of earlier versions have none
    return {
        **{key: node.at(key).maybe() for key in _MASKING},
        error: node.at(error).maybe() if error in node.table() else None,
    }


def _findings(name: str, node: Node) -> Findings:
    has = node.table()
    masking, rounding = node.at("masking"), node.at("rounding")
    return Findings(
        name=name,
        architecture=node.at("architecture").text(),
        digest=node.at("digest").text(),
        attacks=(masking.at("single").text(), masking.at("iterative").text()) if "masking" in has else None,
        masking=_masking(masking) if "masking" in has else None,
        gradient_norm=masking.at("gradient_norm").number() if "masking" in has else None,
        rounding={key: rounding.at(key).share() for key in _ROUNDING} if "rounding" in has else None,
        flips=_flips(node.at("flips")) if "flips" in has else None,
        cone=_cone(node.at("cone")) if "cone" in has else None,
        planes=tuple(_plane(each) for each in node.at("surface").items_of_list()) if "surface" in has else (),
    )


def _flips(node: Node) -> dict[str, float | None]:
    """A share is null where no direction had a value."""
    shares = {key: None if node.at(key).maybe() is None else node.at(key).share() for key in ("fgsm", "step_ll")}
    return {**shares, "same_label": node.at("same_label").share()}


def _cone(node: Node) -> Cone:
    points = node.at("points").count()
    rows = list(node.at("epsilons").items_of_list()) if points else []
    return Cone(
        points=points,
        skipped=node.at("skipped").count(),
        curves={row.at("epsilon").share(): row.at("at_least").numbers() for row in rows},
        whole={
            row.at("epsilon").share(): {order: rate.rate() for order, rate in row.at("all_of_order").items()}
            for row in rows
        },
    )


def _plane(node: Node) -> Plane:
    axis = node.at("axis").numbers()
    rows = [row.numbers() for row in node.at("loss").items_of_list()]
    if len(rows) != len(axis) or {len(row) for row in rows} != {len(axis)}:
        raise node.at("loss").fail(f"{len(axis)} rows of {len(axis)} losses")
    return Plane(
        example=node.at("example").count(),
        label=node.at("label").count(),
        across=node.at("across").text(),
        radius=max(axis),
        loss=np.array(rows),
    )


def describe_diagnosis(diagnosis: Diagnosis, *, salt: str) -> dict[str, Any]:
    """Tables, charts and pictures of one diagnosis for the template."""
    models = diagnosis.models
    orders = list(dict.fromkeys(k for m in models if m.cone for by in m.cone.whole.values() for k in by))
    return {
        "diagnosis": diagnosis,
        "masking": [model for model in models if model.masking],
        "rounding": [model for model in models if model.rounding],
        "flips": [model for model in models if model.flips],
        "orders": orders,
        "cones": [
            {
                "model": model.name,
                "cone": model.cone,
                "chart": draw_curves(
                    {f"ε = {epsilon:.4g}": curve for epsilon, curve in model.cone.curves.items()},
                    across="orthogonal directions k",
                    up="share of points",
                    label=f"Adversarial cone of {model.name}; the table below has figures",
                    salt=f"{salt} cone {number}",
                )
                if model.cone.points
                else None,
            }
            for number, model in enumerate(models)
            if model.cone
        ],
        "scale": picture_of(np.linspace(0, 1, 64)[None]),
        "surfaces": [
            {
                "model": model.name,
                "planes": [
                    {
                        "plane": plane,
                        "low": float(plane.loss.min()),
                        "high": float(plane.loss.max()),
                        "picture": picture_of(plane.loss),
                    }
                    for plane in model.planes
                ],
            }
            for model in models
            if model.planes
        ],
    }
