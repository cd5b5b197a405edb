"""Decoding whole and damaged files: the right pixels as stored, or an error that names the file."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from pipeline.data import images
from pipeline.data.images import MAX_PIXELS, check_files, read_image
from pipeline.errors import InputError, MissingInput

assert torchvision  # with it, JPEGs are torchvision's


def scene(width: int = 96, height: int = 64) -> np.ndarray:
    """(height, width, 3) uint8: smooth colours, a white corner at the top left."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 2, y * 3, 255 - x - y], axis=2).astype(np.uint8)
    pixels[:12, :20] = 255
    return pixels


def textured() -> np.ndarray:
    """A scene with noise, so that its JPEG has a long scan."""
    noise = np.random.default_rng(0).integers(0, 128, scene().shape)
    return (scene() // 2 + noise).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(folder: Path, content: bytes, name: str = "x.jpg") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def refused(folder: Path, content: bytes, size_wh: tuple[int, int] | None = None) -> str:
    path = saved(folder, content)
    with pytest.raises(InputError) as caught:
        read_image(path, size_wh)
    assert caught.value.exit_code == 3 and str(path) in caught.value.message
    return caught.value.message


def header_only(width: int, height: int) -> bytes:
    """A PNG that claims to be 1-bit grey of this size and brings a few bytes of pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ]
    body = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
@pytest.mark.parametrize("name", ["x.png", "wrong.jpg", "no ending", "\u8336 'q\n.jpg"])
def test_lossless_files_give_their_exact_pixels_whatever_their_name(
    tmp_path: Path, kind: str, name: str
) -> None:
    found = read_image(saved(tmp_path, encoded(scene(), kind), name), (96, 64))
    np.testing.assert_array_equal(found, scene())
    assert found.dtype == np.uint8 and found.flags.writeable and found.flags.c_contiguous


@pytest.mark.parametrize("kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {})])
def test_lossy_files_give_nearly_their_pixels(tmp_path: Path, kind: str, options: dict) -> None:
    found = read_image(saved(tmp_path, encoded(scene(), kind, quality=95, **options)), (96, 64))
    assert np.abs(found.astype(int) - scene()).mean() < 3


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 30}, {"restart_marker_blocks": 3}])
def test_a_usual_jpeg_has_the_pixels_that_pillow_finds(
    tmp_path: Path, subsampling: int, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(textured()[:61, :83], "JPEG", subsampling=subsampling, **options)
    monkeypatch.delitem(sys.modules, "torchvision")  # as in a command that has not loaded it
    by_pillow = read_image(saved(tmp_path, content), (83, 61))
    monkeypatch.undo()
    monkeypatch.setattr(images, "_rgb", None)  # of Pillow's pixels
    found = read_image(saved(tmp_path, content), (83, 61))
    np.testing.assert_array_equal(found, by_pillow)
    assert found.flags.writeable and found.flags.c_contiguous


def test_pillow_decodes_where_torchvision_has_no_image_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, encoded(textured(), "JPEG"))
    expected = read_image(path, (96, 64))
    # what a build without its image library says of itself
    monkeypatch.setattr(torchvision.io.image, "_has_image_ops", lambda: False)
    np.testing.assert_array_equal(read_image(path, (96, 64)), expected)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(scene()).convert("CMYK"), "JPEG", quality=95)
    found = read_image(saved(tmp_path, content), (96, 64))
    assert found.shape == (64, 96, 3) and np.abs(found.astype(int) - scene()).mean() < 4


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    grey = scene()[:, :, 0]
    found = read_image(saved(tmp_path, encoded(grey, "PNG")))
    np.testing.assert_array_equal(found, np.stack([grey] * 3, axis=2))
    bits = read_image(saved(tmp_path, encoded(Image.fromarray(grey > 100), "PNG")))
    np.testing.assert_array_equal(bits, np.stack([np.where(grey > 100, 255, 0)] * 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_becomes_its_high_8_bits(tmp_path: Path, kind: str) -> None:
    deep = np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)
    found = read_image(saved(tmp_path, encoded(deep, kind)), (96, 64))
    np.testing.assert_array_equal(found, np.stack([deep // 256] * 3, axis=2))


@pytest.mark.parametrize("pixels", [np.float32([[0.5, 3.0]]), np.int32([[5, 70_000]])], ids=["float", "int"])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    assert "32 bits per pixel" in refused(tmp_path, encoded(pixels, "TIFF"))


def test_transparency_is_dropped_and_palettes_are_resolved(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    alpha = np.concatenate([scene(), np.full((64, 96, 1), 7, np.uint8)], axis=2)
    np.testing.assert_array_equal(read_image(saved(tmp_path, encoded(alpha, "PNG"))), scene())
    palette = Image.fromarray(scene()).quantize(64)
    expected = np.array(palette.convert("RGB"))
    for kind, options in (("PNG", {}), ("GIF", {}), ("PNG", {"transparency": bytes(range(64))})):
        found = read_image(saved(tmp_path, encoded(palette, kind, **options)), (96, 64))
        np.testing.assert_array_equal(found, expected)
    assert not recwarn.list


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 9, 3), level, np.uint8)) for level in (10, 200)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (read_image(saved(tmp_path, content), (9, 8)) == 10).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_is_ignored(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(scene(), kind, exif=exif)
    assert Image.open(io.BytesIO(content)).getexif()[0x0112] == orientation
    found = read_image(saved(tmp_path, content), (96, 64))
    assert found[:8, :16].min() > 230 and found[-8:, -16:].min() < 200  # the white corner is where it was
    assert "is 96 x 64, but the annotations say 64 x 96" in refused(tmp_path, content, (64, 96))


@pytest.mark.parametrize("orientation", [3, 6])
def test_tiff_with_orientation_is_refused_because_pillow_turns_it(tmp_path: Path, orientation: int) -> None:
    turned = encoded(scene(), "TIFF", tiffinfo={0x0112: orientation})
    assert "TIFF with an orientation tag" in refused(tmp_path, turned, (96, 64))
    upright = saved(tmp_path, encoded(scene(), "TIFF", tiffinfo={0x0112: 1}))
    np.testing.assert_array_equal(read_image(upright, (96, 64)), scene())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF"])
@pytest.mark.parametrize("lost", [0.5, 0.01, 2])
def test_truncated_files(tmp_path: Path, kind: str, lost: float) -> None:
    content = encoded(textured(), kind)
    end = len(content) - (2 if lost == 2 else int(len(content) * lost))
    if kind == "PNG" and lost == 2:  # only the end marker's checksum
        np.testing.assert_array_equal(read_image(saved(tmp_path, content[:end])), textured())
    else:
        assert "cannot be decoded" in refused(tmp_path, content[:end], (96, 64))


def test_40_flipped_bytes_in_the_pixels(tmp_path: Path) -> None:
    for kind, least in (("PNG", 20), ("JPEG", 5)):  # JPEG has no checksum: only what libjpeg gives up on
        noticed = 0
        for seed in range(20):
            content = bytearray(encoded(textured(), kind))
            for place in np.random.default_rng(seed).integers(len(content) // 4, len(content) - 20, 40):
                content[place] ^= 0xFF
            try:
                assert read_image(saved(tmp_path, bytes(content)), (96, 64)).shape == (64, 96, 3)
            except InputError as problem:
                assert "cannot be decoded" in problem.message
                noticed += 1
        assert noticed >= least, kind


def test_random_damage_gives_an_error_of_ours_or_an_image_of_the_right_size(tmp_path: Path) -> None:
    rng, outcomes = np.random.default_rng(1), {"read": 0, "refused": 0}
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM"):
        whole = encoded(scene(24, 16), kind)
        for _ in range(60):
            content = bytearray(whole)
            for place in rng.integers(len(content), size=3) ** 2 // len(content):  # mostly in the header
                content[place] = rng.integers(256)
            try:
                found = read_image(saved(tmp_path, bytes(content)), (24, 16))
                assert found.shape == (16, 24, 3) and found.dtype == np.uint8
                outcomes["read"] += 1
            except InputError as problem:
                assert problem.message
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 30, outcomes


@pytest.mark.parametrize(
    "content",
    [b"", b"<html><body>404 Not Found</body></html>", b"\xff\xd8", b"\xff\xd8\xff\xe0" + b"\0" * 50],
    ids=["empty", "html", "2 bytes", "no image"],
)
def test_files_that_hold_no_image(tmp_path: Path, content: bytes) -> None:
    assert "cannot be decoded" in refused(tmp_path, content)


def test_postscript_is_not_handed_to_an_interpreter(tmp_path: Path) -> None:
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert "cannot identify image file" in refused(tmp_path, content)


@pytest.mark.parametrize("size", [(10_001, 10_000), (30_000, 30_000), (65_500, 65_500)])
def test_header_bombs_are_refused_before_allocation(tmp_path: Path, size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    message = refused(tmp_path, header_only(*size), size)
    assert "claims" in message and f"more than {MAX_PIXELS}" in message
    assert "cannot be decoded" in refused(
        tmp_path, header_only(10_000, 10), (10_000, 10)
    )  # small, but broken


def test_size_that_the_annotations_do_not_say(tmp_path: Path) -> None:
    path = saved(tmp_path, encoded(scene(), "PNG"))
    with pytest.raises(InputError, match="is 96 x 64, but the annotations say 96 x 65"):
        read_image(path, (96, 65))
    assert read_image(path).shape == (64, 96, 3)


def test_missing_file_folder_and_broken_link(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match="does not exist"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MissingInput, match="does not exist"):
        read_image(tmp_path / "link.jpg")
    with pytest.raises(InputError, match=r"cannot be decoded: .*Is a directory"):
        read_image(tmp_path)
    with pytest.raises(InputError, match=r"cannot be decoded: .*name too long"):
        read_image(tmp_path / ("x" * 300))


def test_check_files(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        saved(tmp_path, b"", name)
    check_files(tmp_path, ["a.jpg", "b.jpg"])
    with pytest.raises(MissingInput, match=r"image folder .*none does not exist"):
        check_files(tmp_path / "none", ["a.jpg"])
    with pytest.raises(MissingInput, match=r"image folder .* does not exist"):
        check_files(tmp_path / "a.jpg", ["a.jpg"])
    wanted = ["a.jpg", "a.jpg/b.jpg", ".", "x" * 300, *[f"{i}.jpg" for i in range(9)]]
    with pytest.raises(MissingInput, match=r"12 images are missing .*: a.jpg/b.jpg, .*, 6.jpg and 2 more"):
        check_files(tmp_path, wanted)
    with pytest.raises(InputError, match=r"several images of the annotations are one file .*: a.jpg$"):
        check_files(tmp_path, ["a.jpg", "b.jpg", "./a.jpg"])


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, encoded(scene(), "PNG"))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)  # tests may run as root, who may read everything
    with pytest.raises(InputError, match="may not be read") as caught:
        read_image(path)
    assert "permissions" in caught.value.hint


def test_names_that_differ_in_case_and_links_are_files_like_others(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    folder = tmp_path / "images"
    outside.mkdir()
    folder.mkdir()
    for name in ("a.png", "A.png"):
        saved(folder, encoded(scene(), "PNG"), name)
    target = saved(outside, encoded(scene(), "PNG"), "b.png")
    (folder / "link.png").symlink_to(target)
    (folder / "broken.png").symlink_to(outside / "none.png")
    check_files(folder, ["a.png", "A.png", "link.png"])
    assert (read_image(folder / "link.png") == scene()).all()
    with pytest.raises(MissingInput, match=r"1 images are missing .*: broken.png"):
        check_files(folder, ["a.png", "broken.png"])
