"""Decoding images: RGB uint8, stored orientation, exactly the size the annotations say, or an error.

Pillow reads the headers, and all but the pixels of usual JPEGs, which torchvision decodes: to the same bytes,
in four fifths of the time.  Unlike OpenCV both refuse truncated files, and damaged JPEGs that libjpeg gives
up on (about one in three with 40 flipped bytes; the others hold wrong colours, of which libjpeg writes a line
to stderr at most).  EXIF orientation is ignored: COCO and LVIS boxes refer to the pixels as stored.  16 bits
become the high 8.
"""

import os
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from pipeline.errors import InputError, MissingInput, first_ten

MAX_PIXELS = 100_000_000  # a header that claims more is refused before anything is allocated
# No others: Pillow hands anything that begins like PostScript to Ghostscript, whatever the file is called.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
ORIENTATION = 0x0112  # EXIF tag; 1: as stored


def read_image(path: Path, size_wh: tuple[int, int] | None = None) -> np.ndarray:
    """Decode one image.

    Args:
        path: a file in one of `FORMATS`, whatever its name; of an animation the first frame.
        size_wh: width and height according to the annotations.

    Returns:
        (H, W, 3) uint8 RGB; transparency is dropped.

    Raises:
        MissingInput: no such file.
        InputError: not permitted, damaged, too large, of another size than `size_wh`, or with pixels of
            unknown range.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, refused below, and of transparent palettes
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                _check_orientation(image, path)
                _check_size(image.size, size_wh, path)
                pixels = _rgb_of_jpeg(file) if _is_for_torchvision(image) else None
                return _rgb(image, path) if pixels is None else pixels
    except FileNotFoundError:
        raise MissingInput(f"image {path} does not exist", "check data.*.images in params.yaml") from None
    except PermissionError:
        raise InputError(f"image {path} may not be read", "check the permissions of the file") from None
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"image {path} claims more than {MAX_PIXELS} pixels") from None
    except Exception as problem:  # a damaged file makes Pillow raise anything: OSError, SyntaxError, KeyError
        raise InputError(f"image {path} cannot be decoded: {problem}", "fetch the file again") from None


def _is_for_torchvision(image: Image.Image) -> bool:
    """Where it is loaded, as it is with detectors: its import takes as long as decoding a thousand images."""
    return image.format == "JPEG" and image.mode == "RGB" and "torchvision" in sys.modules


def _rgb_of_jpeg(file: BinaryIO) -> np.ndarray | None:
    """(H, W, 3) uint8.  Pillow would take pixels of four bytes, and two copies to make them three.

    None where torchvision refuses, as it does all files when built without libjpeg: Pillow has the last word.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    file.seek(0)
    content = torch.from_numpy(np.fromfile(file, dtype=np.uint8))
    try:
        pixels = decode_jpeg(content, ImageReadMode.RGB)
    except RuntimeError:
        return None
    return np.asarray(pixels.permute(1, 2, 0).numpy())  # (3, H, W) as it lies in memory -> (H, W, 3)


def _rgb(image: Image.Image, path: Path) -> np.ndarray:
    """(H, W, 3) uint8, a copy: torch warns of arrays that cannot be written to."""
    if image.mode.startswith("I;16"):  # Pillow would clip it at 255
        high = (np.array(image) >> 8).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)  # (H, W) -> (H, W, 3)
    if image.mode in ("I", "F"):
        raise InputError(
            f"image {path} has 32 bits per pixel (mode {image.mode}), whose range is unknown",
            "store it with 8 or 16 bits per channel",
        )
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # convert copies what is RGB


def _check_orientation(image: Image.Image, path: Path) -> None:
    """Pillow turns TIFFs by itself, and only them."""
    if image.format == "TIFF" and image.getexif().get(ORIENTATION, 1) != 1:
        raise InputError(
            f"image {path} is a TIFF with an orientation tag: its pixels would not be read as stored",
            "remove the tag, or store it as PNG",
        )


def _check_size(found: tuple[int, int], wanted: tuple[int, int] | None, path: Path) -> None:
    if found[0] * found[1] > MAX_PIXELS:
        raise InputError(f"image {path} claims {found[0]} x {found[1]} pixels, more than {MAX_PIXELS}")
    if wanted is not None and tuple(found) != tuple(wanted):
        raise InputError(
            f"image {path} is {found[0]} x {found[1]}, but the annotations say {wanted[0]} x {wanted[1]}",
            "boxes refer to the stored pixels (EXIF rotation is ignored): fix the file or the json",
        )


def check_files(folder: Path, file_names: list[str]) -> None:
    """Refuse a split whose image files are not all there, one for each image, before any work starts.

    Links are followed wherever they lead: DVC's cache and subsets of a data set are made of them.

    Raises:
        MissingInput: the folder or some files are missing; lists the first ten.
        InputError: images share a file; lists the first ten.
    """
    if not folder.is_dir():
        raise MissingInput(f"image folder {folder} does not exist", "check data.*.images in params.yaml")
    missing: list[object] = [name for name in file_names if not os.path.isfile(folder / name)]
    if missing:
        raise MissingInput(f"{len(missing)} images are missing in {folder}: {first_ten(missing)}")
    count = Counter(os.path.normpath(name) for name in file_names)
    shared = [name for name, times in count.items() if times > 1]
    if shared:
        raise InputError(f"several images of the annotations are one file in {folder}: {first_ten(shared)}")
