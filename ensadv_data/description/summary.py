"""What a store is, in a sentence for people."""

from __future__ import annotations

from ensadv_data.verification import Blueprint

__all__ = ["summary_of"]


def summary_of(blueprint: Blueprint, data: str) -> str:
    """Images, sources, attacks and draws; ``data`` is the name of the data set as it may stand there."""
    header = blueprint.header
    shape = " × ".join(map(str, header.shape))
    counts = (
        (len(blueprint.manifest.sources), "static model"),
        (len(blueprint.spec.attacks), "attack"),
        (header.draws, "draw"),
    )
    made = ", ".join(f"{count} {what}{'s' if count > 1 else ''}" for count, what in counts)
    what = f"Adversarial directions of {header.n:,} images ({shape}) of {data}"
    return f"{what}: {made} of each image, about one bit a value."
