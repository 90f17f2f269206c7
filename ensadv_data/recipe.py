"""Recipes: a TOML file names stages, and this checks all of it before anything runs.

extends = "FILE"           another recipe, whose tables these are laid over; its stages run if these read them
[data]                     data set of all stages
[defaults.train]           fields that every train stage starts from
[train.NAME]               → models/NAME.safetensors     fields of ``train``; shards and static are names of stages
                             seeds = [1, 2] in place of seed: two stages NAME.1 and NAME.2; NAME in a list is both
[precompute.NAME]          → shards/NAME/                fields of ``precompute``; models are names of stages
[evaluate.NAME]            → results/NAME.json           targets, sources: names of stages or NAME=REF; shards: stages
[diagnose.NAME]            → results/NAME.json           models, others, static, holdouts: likewise
[report]                   → report.html                 title
[scale.NAME.…]             any of these tables, laid over them where the recipe is run at that scale
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from ensadv_data.errors import InputError, UnknownNameError
from ensadv_data.evaluation.diagnosis import check_roles
from ensadv_data.evaluation.suites import suite_named
from ensadv_data.models import check_architecture, check_auxiliary, leaves
from ensadv_data.recipe_tables import laid_tables
from ensadv_data.spec import DataSpec, DiagnoseSpec, EvaluateSpec, PrecomputeSpec, Spec, TrainSpec, checked, read_toml

__all__ = ["KINDS", "Kind", "Recipe", "Stage", "find_recipe", "on_device", "packaged_recipe", "read_recipe", "selected"]

Kind = Literal["train", "precompute", "evaluate", "diagnose", "report"]
STAGES: tuple[Kind, ...] = ("train", "precompute", "evaluate", "diagnose")  # each a table of stages by name
KINDS: tuple[Kind, ...] = (*STAGES, "report")


@dataclass(frozen=True)
class Stage:
    """One step of a recipe."""

    name: str
    kind: Kind
    spec: Spec | None
    inputs: tuple[str, ...]  # names of the stages whose outputs it reads
    options: Mapping[str, Any] = field(default_factory=dict)  # what the spec does not hold: names of models

    @property
    def output(self) -> str:
        """Path in the output folder."""
        return {
            "train": f"models/{self.name}.safetensors",
            "precompute": f"shards/{self.name}",
            "evaluate": f"results/{self.name}.json",
            "diagnose": f"results/{self.name}.json",
            "report": "report.html",
        }[self.kind]


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; stages stand in an order in which they can run."""

    name: str
    data: DataSpec
    stages: tuple[Stage, ...]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)  # stages that differ in their seed, by table

    def stage(self, name: str) -> Stage:
        """Look a stage up.

        Raises
        ------
        UnknownNameError
            There is none of that name; the message lists them.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UnknownNameError("stage", name, [*(stage.name for stage in self.stages), *self.groups])


def read_recipe(path: Path, *, overrides: Sequence[str] = (), scale: str | None = None) -> Recipe:
    """Read and check a recipe.

    Parameters
    ----------
    overrides
        TABLE.KEY=VALUE with a TOML value, such as ``evaluate.table8-D.images=2000``; they replace what the file says.
    scale
        Lay the recipe's tables ``[scale.NAME]`` over the others: the same experiment at another size.

    Raises
    ------
    InputError
        A field is wrong, a stage reads one that does not exist, or stages read each other in a circle.
    UnknownNameError
        The recipe has no such scale; the message lists those that it has.
    """
    top, table = read_toml(path), laid_tables(path, scale=scale, overrides=overrides)
    unknown = [key for key in table if key not in ("name", "data", "defaults", *KINDS)]
    if unknown:
        raise UnknownNameError(f"table in {path}", unknown[0], ("name", "data", "defaults", *KINDS))
    data = checked(DataSpec, _table(table, "data", path), where=f"{path}: data")
    defaults = _table(table, "defaults", path)
    for key in defaults:
        if key not in STAGES:
            raise UnknownNameError(f"table in {path}: defaults", key, STAGES)
    recipe_name = table.get("name", path.stem)
    if not isinstance(recipe_name, str) or not recipe_name.strip() or "/" in recipe_name:
        raise InputError(f"{path}: name: expected the name of a folder, got {recipe_name!r}")
    groups = _seeded(table, path)
    kinds: dict[str, Kind] = {}
    for kind in STAGES:
        for name in _table(table, kind, path):
            _check_name(name, where=f"{path}: {kind}")
            if name in kinds or name in groups:
                raise InputError(f"{path}: expected each stage to have a name of its own, got {name!r} twice")
            kinds[name] = kind
    stages = []
    for name, kind in kinds.items():
        fields = {**_table(defaults, kind, path), **_table(_table(table, kind, path), name, path)}
        stages.append(_stage(name, kind, fields, kinds, groups, where=f"{path}: {kind}.{name}"))
    if "extends" in top:  # of the other recipe only what these stages read
        own = {one for kind in STAGES for name in _table(top, kind, path) for one in groups.get(name, [name])}
        stages = list(_needed(stages, own))
    if "report" in table:
        options = _table(table, "report", path)
        for key in options:
            if key != "title":
                raise UnknownNameError(f"key in {path}: report", key, ["title"])
        inputs = tuple(stage.name for stage in stages)
        stages.append(Stage("report", "report", None, inputs, {"title": str(options.get("title", path.stem))}))
    kept = {stage.name for stage in stages}
    whole = {name: members for name, members in groups.items() if kept.issuperset(members)}
    return Recipe(recipe_name, data, _ordered(stages, path), whole)


def find_recipe(name: str) -> Path:
    """A file, or a recipe of the package by its name; raises as :func:`packaged_recipe` does."""
    return Path(name) if Path(name).exists() or "/" in name or name.endswith(".toml") else packaged_recipe(name)


def packaged_recipe(name: str) -> Path:
    """The file of a recipe of the package.

    Raises
    ------
    UnknownNameError
        There is none of that name; the message lists them.
    """
    folder = Path(str(files("ensadv_data") / "pipelines"))
    known = sorted(path.stem for path in folder.glob("*.toml"))
    if name not in known:
        raise UnknownNameError("recipe", name, known)
    return folder / f"{name}.toml"


def on_device(recipe: Recipe, device: str | None) -> Recipe:
    """The recipe with all stages on a device; on those that they name where it is None.

    Raises
    ------
    InputError
        A stage cannot be there, such as one of precision tf32 on a CPU.
    """
    if device is None:
        return recipe
    moved = [
        stage if stage.spec is None else replace(stage, spec=type(stage.spec)(**{**dict(stage.spec), "device": device}))
        for stage in recipe.stages
    ]
    return replace(recipe, stages=tuple(moved))


def selected(recipe: Recipe, until: str | None) -> tuple[Stage, ...]:
    """The stage ``until``, or its seeds, and all that they need, in order; every stage where it is None."""
    if until is None:
        return recipe.stages
    return _needed(recipe.stages, recipe.groups.get(until) or [recipe.stage(until).name])


def _needed(stages: Sequence[Stage], names: Iterable[str]) -> tuple[Stage, ...]:
    """The stages of these names and all that they need, in the order of ``stages``."""
    known = {stage.name: stage for stage in stages}
    needed, todo = set[str](), list(names)
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            todo += known[name].inputs
    return tuple(stage for stage in stages if stage.name in needed)


def _seeded(table: dict[str, Any], path: Path) -> dict[str, list[str]]:
    """Lay out train tables that have ``seeds``, one stage a seed; for each such name, the stages that it stands for."""
    groups: dict[str, list[str]] = {}
    trains: dict[str, Any] = {}
    for name in _table(table, "train", path):
        fields = _table(_table(table, "train", path), name, path)
        seeds = fields.pop("seeds", None)
        if seeds is None:
            trains[name] = fields
            continue
        if not isinstance(seeds, list) or not seeds or len({*map(repr, seeds)}) < len(seeds) or "seed" in fields:
            raise InputError(f"{path}: train.{name}: seeds: expected numbers, each once, and no seed, got {seeds!r}")
        groups[name] = [f"{name}.{seed}" for seed in seeds]
        if twice := set(groups[name]) & (set(trains) | set(_table(table, "train", path))):
            raise InputError(f"{path}: train.{name}: seeds: {min(twice)} is a stage already; leave one of them out")
        trains |= {f"{name}.{seed}": {**fields, "seed": seed} for seed in seeds}
    if groups:
        table["train"] = trains
    return groups


def _stage(
    name: str,
    kind: Kind,
    fields: dict[str, Any],
    kinds: Mapping[str, Kind],
    groups: Mapping[str, list[str]],
    *,
    where: str,
) -> Stage:
    """Check one stage's fields, and find the stages that it reads."""
    options: dict[str, Any] = {}
    if kind == "precompute":
        fields["models"] = _names(fields.get("models", {}), groups, where=f"{where}: models")
        spec: Spec = checked(PrecomputeSpec, fields, where=where)
        inputs = _model_stages(fields["models"].values(), kinds, where=where)
    elif kind == "train":
        if "static" in fields:
            fields["static"] = _names(fields["static"], groups, where=f"{where}: static")
        spec = train_spec = checked(TrainSpec, fields, where=where)
        inputs = _store_stages(train_spec.shards, kinds, where=where)
        try:
            check_architecture(train_spec.architecture)
            if train_spec.auxiliary_weight:
                check_auxiliary(train_spec.architecture, where=f"{where}: ")
        except UnknownNameError as error:
            raise UnknownNameError(f"{error.kind} in {where}", error.name, error.known) from None
        inputs += _model_stages(train_spec.static.values(), kinds, where=where)
    else:
        stores: list[str] = []
        roles = ("targets", "sources") if kind == "evaluate" else ("models", "others", "static", "holdouts")
        for role in roles:
            options[role] = _names(fields.pop(role, {}), groups, where=f"{where}: {role}")
        if not options[roles[0]]:
            raise InputError(f"{where}: {roles[0]}: expected at least one train stage or reference, got none")
        if kind == "evaluate":
            spec = evaluate_spec = checked(EvaluateSpec, fields, where=where)
            suite = suite_named(evaluate_spec.suite)
            suite.attacks(epsilon=evaluate_spec.epsilon)
            suite.adversaries(epsilon=evaluate_spec.epsilon)
            try:
                suite.check(evaluate_spec, options["sources"])
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            stores = _store_stages(evaluate_spec.shards, kinds, where=where)
        else:
            spec = diagnose_spec = checked(DiagnoseSpec, fields, where=where)
            check_roles(diagnose_spec, **options)
        named = [reference for role in roles for reference in options[role].values()]
        inputs = [*_model_stages(named, kinds, where=where), *stores]
    return Stage(name, kind, spec, tuple(inputs), options)


def _store_stages(names: Sequence[str], kinds: Mapping[str, Kind], *, where: str) -> list[str]:
    """Names of precompute stages, each once."""
    for name in names:
        if kinds.get(name) != "precompute":
            stages = [other for other, kind in kinds.items() if kind == "precompute"]
            raise UnknownNameError(f"precompute stage in {where}", name, stages)
    return list(dict.fromkeys(names))


def _model_stages(references: Iterable[str], kinds: Mapping[str, Kind], *, where: str) -> list[str]:
    """The train stages among model references; what is neither a stage nor looks like a reference is a mistake."""
    inputs = []
    for reference in dict.fromkeys(leaf for whole in references for leaf in leaves(whole)):
        if kinds.get(reference) == "train":
            inputs.append(reference)
        elif not (":" in reference or "/" in reference or reference.endswith(".safetensors")):
            stages = [name for name, kind in kinds.items() if kind == "train"]
            raise UnknownNameError(f"train stage in {where}", reference, stages)
    return inputs


def _check_name(name: str, *, where: str) -> None:
    """A stage's name becomes that of files, beside state/recipe.json and state/report.json."""
    fits = name and all(c.isalnum() or c in "._-*" for c in name) and name[0] != "."
    if not fits or name in ("recipe", "report"):
        raise InputError(
            f"{where}: expected a name of letters, digits, '.', '_', '-' or '*' that is not 'recipe' or 'report', "
            f"got {name!r}"
        )


def _names(value: Any, groups: Mapping[str, list[str]], *, where: str) -> dict[str, str]:
    """``["a", "b"]`` or ``{name = "ref"}`` → {name: stage or reference}; in a list, a name may stand for several."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return {one: one for item in value for one in groups.get(item, [item])}
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return dict(value)
    raise InputError(f'{where}: expected a list of stages or a table of NAME = "REF", got {value!r}')


def _ordered(stages: list[Stage], path: Path) -> tuple[Stage, ...]:
    """Stages after those that they read, otherwise as written."""
    known, placed, rest = {stage.name for stage in stages}, list[Stage](), list(stages)
    while rest:
        names = {stage.name for stage in placed}
        ready = [stage for stage in rest if all(name in names or name not in known for name in stage.inputs)]
        if not ready:
            raise InputError(f"{path}: stages read each other in a circle: {', '.join(s.name for s in rest)}")
        placed.append(ready[0])
        rest.remove(ready[0])
    return tuple(placed)


def _table(table: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a table [{key}], got {value!r}")
    return dict(value)
