"""Whether a store is what a trusted key says, whole, within bounds, for these images and of these models.

The order is part of it: nothing is parsed before its signature was checked over raw bytes, no document is believed, and
no chunk is decoded before its digest was compared with what was signed.
"""

from __future__ import annotations

from ensadv_data.verification.blueprint import Array, Blueprint, blueprint_of, check_documents
from ensadv_data.verification.checks import Line, Wanted, check_store, proved_signature, told, verified
from ensadv_data.verification.contents import BESIDE, BESIDE_BYTES, check_chunks, check_presence
from ensadv_data.verification.signing import sign_store

__all__ = [
    "BESIDE",
    "BESIDE_BYTES",
    "Array",
    "Blueprint",
    "Line",
    "Wanted",
    "blueprint_of",
    "check_chunks",
    "check_documents",
    "check_presence",
    "check_store",
    "proved_signature",
    "sign_store",
    "told",
    "verified",
]
