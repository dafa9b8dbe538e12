"""Pictures of characters: checked, and made PNG. Bounded in pixels; nothing else is read from them."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from persona_lab.errors import BadInput

MAX_PIXELS = 40_000_000
MAX_SIDE = 2_048
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def check_avatar(png: bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels of a PNG that really decodes.

    Raises:
        BadInput: it is no PNG, it is damaged, or it has more than 40 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
                _refuse_large(image, name)
                image.load()
                return image.size
    except _BROKEN as error:
        raise BadInput(
            f"{name} is not a PNG image that can be shown: {error}.", "Save the picture as PNG again."
        ) from error


def as_png(data: bytes, name: str) -> bytes:
    """A picture as PNG: one that is PNG already as it is, another converted, with at most 2,048 pixels a side.

    Raises:
        BadInput: it is no picture that can be shown, or it has more than 40 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _refuse_large(image, name)
                image.load()
                if image.format == "PNG":
                    return data
                image.thumbnail((MAX_SIDE, MAX_SIDE))
                buffer = io.BytesIO()
                image.convert("RGBA" if "A" in image.getbands() or image.mode == "P" else "RGB").save(buffer, "PNG")
                return buffer.getvalue()
    except _BROKEN as error:
        raise BadInput(
            f"{name} is not a picture that can be shown: {error}.", "Use a PNG, JPEG, WebP or GIF file."
        ) from error


def _refuse_large(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadInput(f"{name} has {width} x {height} pixels, too many.", "Make the picture smaller.")


def plain_picture() -> bytes:
    """A plain 400 x 600 PNG, for a card without a picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (400, 600), (72, 76, 92)).save(buffer, "PNG")
    return buffer.getvalue()
