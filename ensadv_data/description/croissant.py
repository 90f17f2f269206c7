"""A Croissant file (MLCommons, version 1.0): JSON-LD that catalogues of data sets read.

    distribution   manifest.json, and every chunk, each with its SHA-256 and bytes; of stores of many chunks, a FileSet
                   for each array instead, whose digests are in manifest.json
    recordSet      entries: source, architecture, attack, kind, epsilons, weights; the data are in the file

Packed bits are no records that Croissant could read, so the chunks have no record set.
"""

from __future__ import annotations

import glob
import hashlib
import json
from typing import Any

from ensadv_data.description.summary import summary_of
from ensadv_data.inspection import epsilons_of
from ensadv_data.statement import Predicate
from ensadv_data.verification import Array, Blueprint

__all__ = ["croissant_of"]

_MOST_FILES = 512  # that are named one by one

# http://mlcommons.org/croissant/1.0, the context that the specification asks for
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
} | {
    term: f"cr:{term}"
    for term in (
        *("citeAs", "column", "extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes"),
        *(
            "equivalentProperty",
            "isLiveDataset",
            "jsonPath",
            "key",
            "md5",
            "parentField",
            "path",
            "recordSet",
            "references",
            "regex",
        ),
        *("repeated", "replace", "samplingRate", "separator", "source", "subField", "transform"),
    )
}

_FIELDS = {
    "source": "Name of the static model.",
    "architecture": "Its architecture.",
    "attack": "The attack that made the directions.",
    "kind": "sign, rsign or delta: how a row is applied to its image.",
    "epsilons": "The L-infinity radii that it can serve, pixels in [0, 1].",
    "weights": "SHA-256 over the weights of the model.",
}


def croissant_of(blueprint: Blueprint, manifest: bytes, about: Predicate, *, url: str | None = None) -> bytes:
    """The Croissant file of a store, as JSON in ASCII in which no ``<`` stands, so that a page may embed it.

    Parameters
    ----------
    blueprint
        What the store is.
    manifest
        The bytes of its manifest.
    about
        What is said of it. Empty texts are left out, though the specification asks for a licence and a creator.
    url
        Where others find it.
    """
    found: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": about.name,
        "description": _description(blueprint),
        "version": f"{about.version}.0.0",
        "datePublished": about.created[:10],
        "keywords": ["adversarial training", "adversarial perturbations", "robustness"],
        "isLiveDataset": False,
        "distribution": [_manifest(manifest), *_chunks(blueprint)],
        "recordSet": [_entries(blueprint)],
    }
    if about.licence:
        found["license"] = about.licence
    if about.creator:
        found["creator"] = {"@type": "sc:Organization", "name": about.creator}
    if about.citation:
        found["citeAs"] = about.citation
    if url:
        found["url"] = url
    return (json.dumps(found, indent=1).replace("<", "\\u003c") + "\n").encode("ascii")


def _description(blueprint: Blueprint) -> str:
    header = blueprint.header
    return (
        f"{summary_of(blueprint, f'{header.data}/{header.split}')} Zarr v3 arrays. The images are not included. Store "
        f"digest {blueprint.manifest.digest}. The zarr.json files are not listed: what they say follows from "
        "manifest.json."
    )


def _manifest(data: bytes) -> dict[str, Any]:
    return _file("manifest.json", len(data), hashlib.sha256(data).hexdigest(), "application/json")


def _file(key: str, size: int, sha256: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": key,
        "name": key,
        "contentUrl": key,
        "contentSize": f"{size} B",
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _chunks(blueprint: Blueprint) -> list[dict[str, Any]]:
    objects = blueprint.manifest.objects
    if len(objects) <= _MOST_FILES:
        return [_file(key, record.bytes, record.sha256, "application/octet-stream") for key, record in objects.items()]
    return [
        {
            "@type": "cr:FileSet",
            "@id": array.path,
            "name": array.path,
            "description": "Chunks of one array; manifest.json has the bytes and the SHA-256 of each.",
            "encodingFormat": "application/octet-stream",
            "includes": _pattern(array),
        }
        for array in blueprint.arrays()
    ]


def _pattern(array: Array) -> str:
    """The glob of an array's chunks; a source may have a star in its name."""
    return f"{glob.escape(array.path)}/c/" + ("*" if array.name in ("label", "example_digest") else "*/*/0")


def _entries(blueprint: Blueprint) -> dict[str, Any]:
    def field(name: str) -> str:
        return f"entries/{name}"

    rows = [
        (entry.source, entry.architecture, entry.attack, entry.kind, epsilons_of(entry), entry.source_digest)
        for entry in blueprint.entries
    ]
    return {
        "@type": "cr:RecordSet",
        "@id": "entries",
        "name": "entries",
        "description": "What the store holds: each source under each attack.",
        "field": [
            {"@type": "cr:Field", "@id": field(name), "name": name, "description": text, "dataType": "sc:Text"}
            for name, text in _FIELDS.items()
        ],
        "data": [dict(zip(map(field, _FIELDS), row, strict=True)) for row in rows],
    }
