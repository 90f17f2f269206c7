"""Decoding of JPEG, PNG and WebP into arrays of one size: the home of Pillow.

What is not plain RGB becomes so by rules that never change: grey is repeated; of 16 bits the upper 8 are kept; CMYK is
converted by Pillow without a colour profile; palettes are looked up; an alpha channel is dropped. Profiles and the
orientation that a camera noted are ignored; of an animation the first picture is taken.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ensadv_data.spec import PreprocessSpec

__all__ = ["BadImage", "decode_image", "decoder_record"]


class BadImage(Exception):
    """Bytes that are no whole image within the limits; the message says what is wrong, and the caller knows whose."""


def decoder_record() -> dict[str, str]:
    """The decoder and the versions of its libraries: another one may give other pixels."""
    import PIL
    from PIL import features

    libraries = {"jpeg": "libjpeg_turbo", "webp": "webp"}
    versions = {name: features.version(library) for name, library in libraries.items()}
    return {"pillow": PIL.__version__, **{name: str(found) for name, found in versions.items() if found}}


def decode_image(data: bytes, how: PreprocessSpec) -> npt.NDArray[np.uint8]:
    """Decode and preprocess one image; a function of its arguments and of :func:`decoder_record` alone.

    Returns
    -------
    numpy.ndarray
        uint8 (3, size, size).

    Raises
    ------
    BadImage
        It is empty, truncated, damaged, of another format, or has more pixels than ``how.max_pixels``.
    """
    from PIL import Image

    try:
        with _opened(data, how.max_pixels) as image:
            width, height = image.size
            if width * height > how.max_pixels:
                raise BadImage(_too_large(width, height, how.max_pixels))
            if how.scaled and image.format == "JPEG":
                image.draft(None, _twice(width, height, how))
            pixels = _rgb(image)
            box = _box(pixels.size, how)
            small = pixels.resize((how.size, how.size), Image.Resampling[how.interpolation.upper()], box=box)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise BadImage(f"expected a whole image, got a damaged one ({str(error).strip() or repr(error)})") from None
    return np.asarray(small, np.uint8).transpose(2, 0, 1)


def _opened(data: bytes, most: int) -> Any:
    """The image by its first bytes, not its name; its pixels are not decoded yet."""
    from PIL import JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    if not data:
        raise BadImage("expected an image, got an empty file")
    opener: Callable[[io.BytesIO], Any]
    if data.startswith(b"\xff\xd8\xff"):
        opener = JpegImagePlugin.JpegImageFile
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        opener = PngImagePlugin.PngImageFile
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        size = _webp_size(data)  # first: its opener takes memory for all pixels
        if size[0] * size[1] > most:
            raise BadImage(_too_large(*size, most))
        opener = WebPImagePlugin.WebPImageFile
    else:
        raise BadImage(f"expected JPEG, PNG or WebP, got bytes that begin with {data[:8].hex(' ')}")
    return opener(io.BytesIO(data))


def _too_large(width: int, height: int, most: int) -> str:
    return f"expected at most {most} pixels, got {width}×{height}; raise max_pixels if that is meant"


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height from the header (developers.google.com/speed/webp/docs/riff_container)."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _twice(width: int, height: int, how: PreprocessSpec) -> tuple[int, int]:
    """The least size at which a JPEG may be decoded: twice what it is resized to."""
    if how.crop == "squash":
        return 2 * how.size, 2 * how.size
    scale = 2 * how.shorter / min(width, height)
    return round(width * scale), round(height * scale)


def _box(size: tuple[int, int], how: PreprocessSpec) -> tuple[float, float, float, float]:
    """Left, upper, right and lower edge of what is resampled."""
    width, height = size
    if how.crop == "squash":
        return 0, 0, width, height
    side = min(width, height) * how.size / how.shorter
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _rgb(image: Any) -> Any:
    """Eight bits a channel, red, green and blue."""
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # first: Pillow warns of palettes with transparency otherwise
    return image.convert("RGB")
