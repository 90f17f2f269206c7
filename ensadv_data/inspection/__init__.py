"""What a store or a model file holds, how its entries agree, and what two stores do not have in common."""

from __future__ import annotations

from ensadv_data.inspection.agreement import BLOCKS, Agreement, measure_agreement
from ensadv_data.inspection.stores import (
    EntryDifference,
    EntrySummary,
    StoreSummary,
    compare_stores,
    describe_model,
    describe_store,
    epsilons_of,
    is_store,
)

__all__ = [
    "BLOCKS",
    "Agreement",
    "EntryDifference",
    "EntrySummary",
    "StoreSummary",
    "compare_stores",
    "describe_model",
    "describe_store",
    "epsilons_of",
    "is_store",
    "measure_agreement",
]
