"""A dataset card as the Hugging Face hub reads it: Markdown, after a front matter in YAML.

Every text of somebody's is escaped for the place where it stands. In the front matter it is a JSON string, which is
YAML as well; in Markdown every character that may be markup has a backslash, which takes its meaning away; in
commands and code there are only names that cannot have any.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator

from ensadv_data.description.summary import summary_of
from ensadv_data.inspection import epsilons_of
from ensadv_data.statement import Predicate
from ensadv_data.verification import Blueprint

__all__ = ["MARK", "card_of"]

MARK = "# Written by ensadv-data describe, which replaces it."

# Names that the hub has for licences (huggingface.co/docs/hub/repositories-licenses), of those that are for data.
_LICENCES = frozenset(
    (
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0"),
        *("cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
        *("cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "cdla-permissive-2.0", "odc-by", "odbl", "pddl", "unlicense"),
    )
)
_SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"),
    (10**12, "100B<n<1T"),
)
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|&~$:@.])")  # of Markdown, HTML, tables, and links that need no brackets
_PLAIN = re.compile(r"[A-Za-z0-9./*+_-]+")


def card_of(blueprint: Blueprint, about: Predicate, *, url: str | None = None) -> bytes:
    """The card of a store, in UTF-8.

    Parameters
    ----------
    blueprint
        What the store is.
    about
        What is said of it; empty texts are left out.
    url
        Where others find it; printable ASCII without spaces and quotes.
    """
    parts = [*_front(blueprint, about), "", *_body(blueprint, about, url or "URL")]
    return ("\n".join(parts) + "\n").encode()


def _front(blueprint: Blueprint, about: Predicate) -> Iterator[str]:
    yield "---"
    yield MARK
    licence = about.licence.lower()
    if not licence:
        yield 'license: "unknown"'
    elif licence in _LICENCES:
        yield f"license: {_yaml(licence)}"
    else:
        yield 'license: "other"'
        yield f"license_name: {_yaml(about.licence)}"
    yield f"pretty_name: {_yaml(about.name)}"
    yield 'task_categories: ["image-classification"]'
    size = next((name for most, name in _SIZES if blueprint.header.n < most), "n>1T")
    yield f"size_categories: {_yaml([size])}"
    yield 'tags: ["adversarial-training", "adversarial-perturbations", "ensadv-data"]'
    yield "viewer: false"
    yield "---"


def _body(blueprint: Blueprint, about: Predicate, url: str) -> Iterator[str]:
    header, manifest = blueprint.header, blueprint.manifest
    yield f"# {_text(about.name)}"
    yield ""
    yield (
        f"{summary_of(blueprint, _name(f'{header.data}/{header.split}'))} For ensemble adversarial training "
        "([Tramèr et al., 2018](https://arxiv.org/abs/1705.07204)), computed once for everybody."
    )
    yield ""
    yield (
        "**The images are not included.** Whoever trains on this needs them, in the same order; their digests are in "
        "the store, and every image is compared with its own before it is used."
    )
    yield from ("", "| | |", "|---|---|")
    yield f"| digest of the store | `{manifest.digest}` |"
    yield f"| digest of the images | `{header.data_digest}` |"
    yield f"| objects | {len(manifest.objects):,}, {sum(o.bytes for o in manifest.objects.values()):,} bytes |"
    yield f"| version | {about.version}, of {about.created[:10]} |"
    for what, said in (("licence", about.licence), ("creator", about.creator), ("citation", about.citation)):
        yield f"| {what} | {_text(said) if said else 'not said'} |"
    yield from ("", "| source | architecture | attack | serves | licence | weights (SHA-256) |", f"|{6 * '---|'}")
    for entry in blueprint.entries:
        licence = _text(about.model_licences.get(entry.source, "")) or "not said"
        cells = (_name(entry.source), _name(entry.architecture), _name(entry.attack), epsilons_of(entry), licence)
        yield f"| {' | '.join(cells)} | `{entry.source_digest[:16]}` |"
    yield from ("", "## How to use it", "", "```sh")
    yield f"ensadv-data pull {shlex.quote(url)} --out {about.name}"
    yield f"ensadv-data verify {about.name} --trust trust.toml --name {about.name}"
    yield f"ensadv-data train --architecture D --online step-ll --shards {about.name} --out model.safetensors"
    yield from ("```", "")
    yield (
        "`trust.toml` has the public key of whoever made this, which you got from them and not from here. Without one, "
        "`verify --unsigned` says that the store is whole, and not whose it is. What this card and `croissant.json` "
        "say is covered by no digest and by no signature."
    )
    yield from ("", "```python", *_code(blueprint, about.name), "```")


def _code(blueprint: Blueprint, name: str) -> Iterator[str]:
    entry = blueprint.entries[0]
    yield from ("import numpy as np", "", "from ensadv_data import open_store")
    if entry.kind != "delta":
        yield "from ensadv_data.codec import unpack_signs"
    yield ""
    yield f"store = open_store({json.dumps(name)})"
    yield "rows = np.arange(min(8, store.header.n))"
    yield f"planes = store.gather(store.entry({json.dumps(entry.key)}), np.zeros_like(rows), rows)  # draw 0 of each"
    if entry.kind == "delta":
        yield "values = planes.delta  # int8 (8, D): 127 is the radius"
    else:
        yield "values = unpack_signs(planes.direction, planes.nonzero, d=store.header.d)  # int8 (8, D): −1, 0 and +1"


def _yaml(value: str | list[str]) -> str:
    """JSON, which is YAML; not in ASCII, since YAML knows no pairs of surrogates."""
    return json.dumps(value, ensure_ascii=False)


def _text(text: str) -> str:
    """Text inside a line of Markdown: nothing in it is markup, HTML, a link or the end of a table's cell."""
    return _MARKUP.sub(r"\\\1", text)


def _name(text: str) -> str:
    """A name, as code where it has nothing that code would end at."""
    return f"`{text}`" if _PLAIN.fullmatch(text) else _text(text)
