"""Bits to images and back: how near the codec comes to the bandwidth of memory, and what numpy and PyTorch take.

    python benchmarks/apply.py [--rounds 9] [--json FILE]

Per value of an image: apply reads one byte and one bit and writes four bytes; *fill* only writes the four, and
*copy* reads and writes four each. Pack reads the four and writes one bit.
"""

from __future__ import annotations

import numpy as np
import torch
from figures import arguments_of, ratios, report

from ensadv_data import codec, device_codec
from ensadv_data.bench import apply_alternatives
from ensadv_data.timing import Alternatives, measure

SIZES = {784: 4096, 3 * 224 * 224: 64, 3 * 299 * 299: 32}  # D: images of a batch


def others(d: int, n: int) -> Alternatives:
    """The same by numpy and by PyTorch."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (n, d), dtype=np.uint8)
    values = generator.normal(size=(n, d)).astype(np.float32)
    direction, _ = codec.pack_signs(values)
    epsilon, out = np.full(n, 0.06, np.float32), np.empty((n, d), np.float32)
    shifts = np.arange(256, dtype=np.uint8)[:, None]
    table = torch.from_numpy(2 * np.unpackbits(shifts, axis=1, bitorder="little").astype(np.float32) - 1)
    there = [torch.from_numpy(array) for array in (x, direction, epsilon)]

    def by_numpy() -> None:
        signs = 2 * np.unpackbits(direction, axis=1, count=d, bitorder="little").astype(np.float32) - 1
        np.clip(x / np.float32(255) + epsilon[:, None] * signs, 0, 1, out=out)

    def by_table() -> None:
        signs = table[there[1].long()].flatten(1)[:, :d]
        torch.clamp(there[0].float() / 255 + there[2][:, None] * signs, 0, 1)

    return {
        "apply, numpy": by_numpy,
        "apply, torch table": by_table,
        "apply, torch shifts": lambda: device_codec.apply_signs(
            device_codec.pixels(there[0]), there[1], epsilon=there[2]
        ),
        "pack, numpy": lambda: np.packbits(values > 0, axis=1, bitorder="little"),
        "pack, torch": lambda: device_codec.pack_signs(torch.from_numpy(values)),
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    arguments = arguments_of(__doc__)
    torch.set_num_threads(1)
    found = {}
    for d, n in SIZES.items():
        timings = measure({**apply_alternatives(d, n), **others(d, n)}, rounds=arguments.rounds)
        found[str(d)] = {
            "images": n,
            "gigabytes_written_a_second": {
                name: round(4 * n * d / timings[name].median / 1e9, 2) for name in ("fill", "copy", "apply")
            },
            "share_of_fill": ratios(timings, "fill"),
        }
    report(arguments, {"threads": 1, "d": found})


if __name__ == "__main__":
    main()
