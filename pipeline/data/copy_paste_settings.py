"""Settings of copy-paste, apart from the pixels: who reads params.yaml needs no image library."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import SettingsError
from pipeline.settings import setting

OF_SIDE = 1280  # pixels of the square that the authors' numbers of pixels are for


@dataclass(frozen=True)
class CopyPasteSettings:
    """Views of copy-paste: what `augment: copy-paste` means."""

    side: int | Literal["auto"] = setting(
        "auto",
        "of the square views; auto: BACL's 1280 for long_side 1333, as much of others, a multiple of 32",
        low=32,
    )
    scales: tuple[float, float] = setting(
        (0.8, 1.25), "BACL: of the image's long side in the square; larger ones are cut", low=0.05, high=10
    )
    most: int = setting(99, "MMDetection: pasted objects; as many as the source image has, or fewer", low=0)

    def __post_init__(self) -> None:
        if self.scales[0] > self.scales[1]:
            raise SettingsError(
                f"scales: {list(self.scales)} begins with the larger one", "name the smaller scale first"
            )


def resolve_side(asked: int | Literal["auto"], long_side: int) -> int:
    """Side of the square in pixels; `long_side` is of the plain views."""
    return asked if asked != "auto" else max(32, round(long_side * OF_SIDE / 1333 / 32) * 32)
