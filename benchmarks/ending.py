"""The end of a store that a benchmark made up: collected and closed as precompute does it."""

from __future__ import annotations

from typing import Any

from ensadv_data.manifest import DataRecord, Manifest, ObjectRecord, SourceRecord
from ensadv_data.store import StoreWriter


def ended(writer: StoreWriter) -> Manifest:
    """Close a store all of whose blocks are there; returns its manifest."""
    header = writer.header
    objects, zeros, _ = writer.collect()
    about: dict[str, Any] = {name: getattr(header, name) for name in ("split", "n", "shape", "classes")}
    manifest = Manifest(
        data=DataRecord(name=header.data, digest=header.data_digest, **about),
        sources=tuple(
            SourceRecord(name=entry.source, architecture=entry.architecture, digest=entry.source_digest)
            for entry in writer.entries
        ),
        draws=header.draws,
        plan=dict(header.plan),
        zeros=zeros,
        software={},
        objects={key: ObjectRecord(bytes=size, sha256=digest) for key, (size, digest) in objects.items()},
    )
    writer.close(manifest.to_bytes())
    return manifest
