"""Whether the memory of client and scheduler grows with the number of blocks: many tasks that compute nothing.

    python benchmarks/tasks.py [--blocks 1000,100000] [--json FILE]

Blocks go through the queue that precompute has, to one worker; client and scheduler are this process. Its anonymous
memory (RssAnon) is looked at when so many are done.
"""

from __future__ import annotations

import time
from typing import Any

from figures import arguments_of, report
from growth import anonymous

from ensadv_data.blocks import Block
from ensadv_data.cluster import Crew, connected, streamed


def nothing(block: Block) -> dict[str, Any]:
    """What a task gives back, as large as a done record."""
    record = {"block": block.index, "first": block.first, "last": block.last}
    return {**record, "objects": {"m/fgsm/direction/c/0/0/0": [1, "0" * 64]}, "zeros": {}}


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(__doc__, blocks={"default": "1000,100000"})
    sizes = [int(text) for text in arguments.blocks.split(",")]
    found: dict[str, Any] = {}
    with connected(Crew(1)) as client:
        began = time.perf_counter()
        todo = [Block(index, 10 * index, 10 * index + 9) for index in range(sizes[-1])]
        for done, _ in enumerate(streamed(client, nothing, todo), start=1):
            if done in sizes:
                found[str(done)] = {
                    "mib": round(anonymous() / 2**20, 1),
                    "seconds": round(time.perf_counter() - began, 1),
                }
    report(arguments, {"blocks": found})


if __name__ == "__main__":
    main()
