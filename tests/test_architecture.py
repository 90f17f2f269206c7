"""The shape of the package: layers, homes of the heavy libraries, and what no module may do.

Every check is a pure function from ``{module: source}`` to a list of complaints; it is run on the package, and on a
small bad example that it must complain about. A module is named without the package: ``cli``, ``data.idx``, ``data``
for the package's own file, and the empty name for the public face.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ensadv_data

FACE = "ensadv_data"
Sources = Mapping[str, str]

# A module imports only from lower layers. A package's name stands for all of its modules; those may import each
# other, but not in a circle.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "spec", "dist", "keys", "files", "ahead", "memory", "progress", "interrupts", "timing", "untrusted"),
    (
        "arithmetic",
        "attacks",
        "cluster",
        "codec",
        "compression",
        "device_codec",
        "gather",
        "objects",
        "signature",
        "statement",
        "views",
    ),
    ("store", "data", "models", "manifest", "trust"),
    (
        "average",
        "mixing",
        "sources",
        "batches",
        "calibration",
        "checkpoint",
        "doubtful",
        "entries",
        "evaluation",
        "perturbation",
        "inspection",
        "journal",
        "learner",
        "meter",
        "online",
        "report",
    ),
    ("blocks", "recipe_tables", "verification"),
    ("precompute", "training", "loops", "recipe", "remote", "exchange", "description", "catalogue"),
    ("outputs", "sizing", "trials"),
    ("evaluating", "forecast"),
    ("pipeline", "planning", "bench", "terminal", "options"),
    ("commands",),
    ("cli",),
    ("__main__",),
)

# Imports inside one layer, each with its reason; anybody may import errors.
SAME_LAYER = {
    ("learner", "average"): "the average follows each step",
    ("learner", "checkpoint"): "a checkpoint names the tensors of what learns",
    ("batches", "mixing"): "a batch is what the plan of its step describes",
    ("mixing", "sources"): "a schedule draws from sources",
    ("perturbation", "doubtful"): "a block ends with the signs that float32 did not know",
    ("report", "inspection"): "the page of a store shows what inspection found in it",
    ("report", "evaluation"): "a page says of a result what the command line does: its ties and remarks",
    ("views", "codec"): "boxes are drawn by the codec's counter-based generator",
    ("attacks", "codec"): "the random step of R+ is what the codec's counter-based generator draws",
}

# The store is the only door between the two halves.
DOORS = {
    "precompute": ("training", "mixing", "sources", "batches"),
    "perturbation": ("training", "mixing", "sources", "batches"),
    "blocks": ("training", "mixing", "sources", "batches"),
    "verification": ("training", "mixing", "sources", "batches"),
    "training": ("precompute", "perturbation", "blocks"),
    "loops": ("precompute", "perturbation", "blocks"),
    "mixing": ("precompute", "perturbation", "blocks"),
    "batches": ("precompute", "perturbation", "blocks"),
}

HOMES: Mapping[str, tuple[str, ...]] = {
    "cryptography": ("signature",),
    "PIL": ("data.decoding",),
    "click": ("cli", "commands", "options", "__main__"),
    "dask": ("cluster",),
    "distributed": ("cluster",),
    "google_crc32c": ("store",),
    "huggingface_hub": ("models.timm_nets",),
    "jinja2": ("report",),
    "matplotlib": ("report",),
    "numba": ("codec", "gather", "views"),
    "numcodecs": ("compression",),
    "obstore": ("objects",),
    "pooch": ("data.fetch",),
    "pyarrow": ("data.arrow",),
    "pydantic": ("spec", "manifest", "statement", "store.index"),
    "rich": ("progress", "terminal"),
    "safetensors": ("models", "checkpoint"),
    "timm": ("models.timm_nets",),
    "torch.distributed": ("dist",),
    "urllib3": ("objects.web",),
    "zarr": ("data.zarrays", "store"),
}

LINES, LONGEST = 350, 420
LONGER: Mapping[str, str] = {}  # modules that may be longer than LINES, up to LONGEST, and why

VAGUE = {"utils", "util", "helpers", "common", "types", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported name, from the point of view of the module that imports it."""

    target: str  # absolute and dotted
    names: tuple[str, ...]  # what follows "from target import"
    lazy: bool  # inside a function
    typing: bool  # under "if TYPE_CHECKING"

    @property
    def candidates(self) -> list[str]:
        """The modules that the statement may load, the longest name first."""
        return [*(f"{self.target}.{name}" for name in self.names), self.target]


def sources_of(folder: Path) -> dict[str, str]:
    """Every module below ``folder``, by name."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return found


def imports_of(name: str, sources: Sources) -> Iterator[Import]:
    """All imports of a module, at any depth; relative ones are made absolute."""
    is_package = name == "" or any(other.startswith(f"{name}.") for other in sources)
    here = [FACE, *filter(None, name.split("."))]

    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, (), lazy, typing)
            elif isinstance(child, ast.ImportFrom):
                base = here[: len(here) - child.level + is_package] if child.level else []
                target = ".".join([*base, *([child.module] if child.module else [])])
                yield Import(target, tuple(alias.name for alias in child.names), lazy, typing)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for statement in child.body:
                    yield from walk(ast.Module([statement], []), lazy, True)
                yield from walk(ast.Module(child.orelse, []), lazy, typing)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, lazy or function, typing)

    return walk(ast.parse(sources[name]), False, False)


def inner_imports(name: str, sources: Sources) -> Iterator[tuple[str, Import]]:
    """The imports of our own modules: the module imported, and the statement."""
    for statement in imports_of(name, sources):
        for number, candidate in enumerate(statement.candidates):
            if candidate != FACE and not candidate.startswith(f"{FACE}."):
                continue
            module = candidate.removeprefix(FACE).removeprefix(".")
            is_statement = number == len(statement.candidates) - 1
            if module in sources or is_statement:
                found = [c.removeprefix(f"{FACE}.") in sources for c in statement.candidates[:-1]]
                if not (is_statement and found and all(found)):  # "from package import module": named already
                    yield module, statement


def home_of(module: str, homes: tuple[str, ...]) -> bool:
    """Whether a module is one of ``homes``, or inside one that is a package."""
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def layer_of(module: str) -> int | None:
    """Number of the layer; None where the table has no place for the module."""
    return next((number for number, names in enumerate(LAYERS) if module.split(".")[0] in names), None)


def complain_of_layers(sources: Sources) -> list[str]:
    """Imports that do not go down, and modules without a layer."""
    complaints = []
    for name in sources:
        mine = layer_of(name)
        if name and mine is None:
            complaints.append(f"{name}: has no layer")
        for target, statement in inner_imports(name, sources):
            if name == "":
                if not (statement.lazy or statement.typing):
                    complaints.append(f"the public face imports {target} at once")
                continue
            theirs, packages = layer_of(target), (name.split(".")[0], target.split(".")[0])
            if target == "errors" or packages[0] == packages[1] or packages in SAME_LAYER:
                continue
            if theirs is None or mine is None or theirs >= mine:
                complaints.append(f"{name}: imports {target or FACE}, which is not in a lower layer")
    return complaints


def complain_of_circles(sources: Sources) -> list[str]:
    """A circle of imports, those for type checking left out."""
    graph = {
        name: {target for target, statement in inner_imports(name, sources) if not statement.typing and target != name}
        for name in sources
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" → ".join(error.args[1])]
    return []


def complain_of_doors(sources: Sources) -> list[str]:
    """The two halves importing each other, also through other modules."""
    graph = {
        name: {target for target, statement in inner_imports(name, sources) if not statement.typing} for name in sources
    }
    complaints = []
    for name, forbidden in DOORS.items():
        seen, todo = set(), [name] if name in sources else []
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, ())
        complaints += [f"{name}: reaches {other}" for other in forbidden if other in seen]
    return complaints


def complain_of_homes(sources: Sources) -> list[str]:
    """A heavy library outside its home."""
    complaints = []
    for name in sources:
        used = {candidate for statement in imports_of(name, sources) for candidate in statement.candidates}
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.Attribute):
                used.add(ast.unparse(node))
        for library, homes in HOMES.items():
            inside = any(one == library or one.startswith(f"{library}.") for one in used)
            if inside and not home_of(name, homes):
                complaints.append(f"{name}: {library} lives in {', '.join(homes)}")
    return complaints


def complain_of_uses(sources: Sources) -> list[str]:
    """Global random generators, and ways to run what somebody else wrote."""
    complaints = []
    for name, source in sources.items():
        tree = ast.parse(source)
        for statement in imports_of(name, sources):
            first = statement.target.split(".")[0]
            if first in ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"):
                complaints.append(f"{name}: imports {first}")
            legacy = "numpy.random" in statement.candidates or statement.target.startswith("numpy.random")
            if name != "keys" and (first == "random" or legacy):
                complaints.append(f"{name}: imports {statement.target}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                complaints.append(f"{name}: calls {node.func.id}")
            if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) != "False":
                complaints.append(f"{name}: uses a shell")
            if isinstance(node, ast.Attribute):
                text = ast.unparse(node)
                if text in ("torch.load", "os.system", "os.popen"):
                    complaints.append(f"{name}: uses {text}")
                numpy_random = text.startswith(("np.random.", "numpy.random.")) and node.attr not in ("Generator",)
                if name != "keys" and (node.attr.startswith("manual_seed") or text == "torch.seed" or numpy_random):
                    complaints.append(f"{name}: uses {text}")
    return complaints


def complain_of_names(sources: Sources) -> list[str]:
    """Names that say nothing."""
    return [f"{name}: says nothing" for name in sources if VAGUE & set(name.split("."))]


def complain_of_sizes(sources: Sources) -> list[str]:
    """Modules that have grown past a reader's patience."""
    return [
        f"{name}: {len(source.splitlines())} lines"
        for name, source in sources.items()
        if len(source.splitlines()) > (LINES if name not in LONGER else LONGEST)
    ]


def complain_of_docstrings(sources: Sources) -> list[str]:
    """Modules whose first line does not say what they are for."""
    complaints = []
    for name, source in sources.items():
        first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        if not first.endswith(".") or first[0].islower():
            complaints.append(f"{name or FACE}: its first line is {first!r}")
    return complaints


CHECKS: Mapping[str, Callable[[Sources], list[str]]] = {
    "layers": complain_of_layers,
    "circles": complain_of_circles,
    "doors": complain_of_doors,
    "homes": complain_of_homes,
    "uses": complain_of_uses,
    "names": complain_of_names,
    "sizes": complain_of_sizes,
    "docstrings": complain_of_docstrings,
}


@pytest.fixture(scope="module")
def sources():
    return sources_of(Path(ensadv_data.__file__).parent)


@pytest.mark.parametrize("check", CHECKS)
def test_package_has_its_shape(sources, check):
    assert CHECKS[check](sources) == []


def test_every_entry_of_the_tables_exists(sources):
    known = set(sources) | {name.split(".")[0] for name in sources}
    tables = [name for names in LAYERS for name in names]
    assert len(tables) == len(set(tables)), "a module is in two layers"
    for name in (*tables, *LONGER, *DOORS, *(home for homes in HOMES.values() for home in homes)):
        assert name in known, f"{name} is in a table and not in the package"
    for pair in SAME_LAYER:
        used = {
            (name.split(".")[0], target.split(".")[0])
            for name in sources
            if name
            for target, _ in inner_imports(name, sources)
        }
        assert pair in used, f"{pair} is excused and not used"


def test_every_library_is_used_in_each_of_its_homes(sources):
    for library, homes in HOMES.items():
        for home in homes:
            outside = {name: source for name, source in sources.items() if home_of(name, (home,))}
            used = {
                candidate
                for name in outside
                for statement in imports_of(name, sources)
                for candidate in statement.candidates
            }
            assert any(one == library or one.startswith(f"{library}.") for one in used), f"{library} not in {home}"


# That the checks can fail: (check, sources, what the complaint says)
BAD = [
    ("layers", {"errors": "", "spec": "import ensadv_data.codec", "codec": ""}, "spec: imports codec"),
    ("layers", {"codec": "from ensadv_data import cli", "cli": ""}, "codec: imports cli"),
    ("layers", {"codec": "from .cli import main", "cli": ""}, "codec: imports cli"),
    ("layers", {"store": "", "store.reader": "from ..mixing import x", "mixing": ""}, "store.reader: imports mixing"),
    ("layers", {"models": "def f():\n    from ensadv_data.store import x", "store": ""}, "models: imports store"),
    ("layers", {"codec": "import ensadv_data"}, "codec: imports ensadv_data"),
    ("layers", {"codec": "from ensadv_data import train"}, "codec: imports ensadv_data"),
    ("layers", {"": "from ensadv_data.training import train", "training": ""}, "at once"),
    ("layers", {"novelty": ""}, "novelty: has no layer"),
    ("circles", {"store.a": "from ensadv_data.store.b import x", "store.b": "import ensadv_data.store.a"}, "→"),
    ("circles", {"a": "def f():\n    from . import b", "b": "from .a import x"}, "→"),
    ("doors", {"precompute": "from ensadv_data.training import x", "training": ""}, "precompute: reaches training"),
    ("doors", {"training": "import ensadv_data.perturbation", "perturbation": ""}, "training: reaches perturbation"),
    (
        "doors",
        {"precompute": "from ensadv_data.x import y", "x": "import ensadv_data.mixing", "mixing": ""},
        "precompute: reaches mixing",
    ),
    ("homes", {"training": "import click"}, "training: click lives in cli"),
    ("homes", {"training": "def f():\n    from zarr.codecs import BytesCodec"}, "zarr lives in data.zarrays, store"),
    ("homes", {"training": "from torch import distributed"}, "torch.distributed lives in dist"),
    ("homes", {"training": "import torch\ntorch.distributed.barrier()"}, "torch.distributed lives in dist"),
    ("homes", {"data.idx": "import pooch"}, "pooch lives in data.fetch"),
    ("uses", {"models": "import torch\ntorch.manual_seed(0)"}, "models: uses torch.manual_seed"),
    ("uses", {"models": "import torch\ntorch.cuda.manual_seed_all(0)"}, "uses torch.cuda.manual_seed_all"),
    ("uses", {"mixing": "import numpy as np\nnp.random.shuffle(x)"}, "mixing: uses np.random.shuffle"),
    ("uses", {"mixing": "import numpy as np\nnp.random.default_rng()"}, "mixing: uses np.random.default_rng"),
    ("uses", {"mixing": "from numpy.random import shuffle"}, "mixing: imports numpy.random"),
    ("uses", {"mixing": "from numpy import random"}, "mixing: imports numpy"),
    ("uses", {"mixing": "import random"}, "mixing: imports random"),
    ("uses", {"files": "from pickle import loads"}, "files: imports pickle"),
    ("uses", {"files": "eval('1')"}, "files: calls eval"),
    ("uses", {"files": "exec('1')"}, "files: calls exec"),
    ("uses", {"files": "import torch\ntorch.load(f)"}, "files: uses torch.load"),
    ("uses", {"files": "import subprocess\nsubprocess.run(x, shell=True)"}, "files: uses a shell"),
    ("names", {"data.utils": ""}, "data.utils"),
    ("names", {"types": ""}, "types"),
    ("sizes", {"codec": "x = 1\n" * 351}, "codec: 351 lines"),
    ("sizes", {"cli": "x = 1\n" * 551}, "cli: 551 lines"),
    ("docstrings", {"codec": "x = 1"}, "codec"),
    ("docstrings", {"codec": '"""helpers\n\nAnd more."""'}, "codec"),
]


@pytest.mark.parametrize(("check", "bad", "complaint"), BAD)
def test_checks_complain_of_bad_examples(check, bad, complaint):
    complaints = CHECKS[check](bad)
    assert len(complaints) >= 1
    assert any(complaint in one for one in complaints), complaints


GOOD = [
    ("layers", {"cli": "from ensadv_data import codec, errors", "codec": "", "errors": ""}),
    (
        "layers",
        {
            "store": "from .reader import x",
            "store.reader": "from ensadv_data.store.layout import y",
            "store.layout": "",
        },
    ),
    ("layers", {"": "def __getattr__(name):\n    from ensadv_data.training import train", "training": ""}),
    (
        "circles",
        {
            "a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ensadv_data.b import x",
            "b": "import ensadv_data.a",
        },
    ),
    ("doors", {"precompute": "import ensadv_data.store", "training": "import ensadv_data.store", "store": ""}),
    ("homes", {"store.reader": "import zarr", "models.timm_nets": "def f():\n    import timm"}),
    ("uses", {"keys": "import torch\ntorch.manual_seed(1)", "models": "model.eval()", "files": "run(x, shell=False)"}),
]


@pytest.mark.parametrize(("check", "good"), GOOD)
def test_checks_accept_good_examples(check, good):
    assert CHECKS[check](good) == []


def test_relative_imports_are_made_absolute():
    sources = {"store": "from . import reader", "store.reader": "from .layout import x\nfrom .. import errors"}
    assert [one.candidates for one in imports_of("store", sources)] == [
        ["ensadv_data.store.reader", "ensadv_data.store"]
    ]
    assert [one.target for one in imports_of("store.reader", sources)] == ["ensadv_data.store.layout", "ensadv_data"]
