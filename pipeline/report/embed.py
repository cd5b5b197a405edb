"""Pictures inside the page: scaled down, recoded as WebP, and kept within a budget of bytes."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDEST = 1400  # px: twice the page's column, for dense screens
QUALITY = 78


@dataclass(frozen=True)
class Embedded:
    """A picture as a data URI; its size in pixels reserves its place while the page is laid out."""

    src: str
    width: int
    height: int

    @property
    def num_bytes(self) -> int:
        return len(self.src)


def embed(pixels: np.ndarray, widest: int = WIDEST) -> Embedded:
    """(H, W, 3) uint8 RGB as WebP of at most `widest` pixels; equal pixels give equal bytes."""
    image = Image.fromarray(pixels)
    if max(image.size) > widest:
        scale = widest / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Embedded(f"data:image/webp;base64,{text}", image.width, image.height)


def embed_file(path: Path, widest: int = WIDEST) -> Embedded:
    """A figure of an earlier stage; transparency becomes white.

    Raises:
        OSError, ValueError: not a picture, or a damaged one.
    """
    with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
        whole = image.convert("RGBA")
    ground = Image.new("RGBA", whole.size, "white")
    return embed(np.asarray(Image.alpha_composite(ground, whole).convert("RGB")), widest)
