"""The drawn numbers of a view's colour augmentation, from the draw's own generator (see photometric_batch).

Without torch, because the settings of pre-training are read by commands that need none.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.settings import setting

LUMA = (0.2989, 0.587, 0.114)  # Rec. 601 as torchvision rounds it
SOLARIZE_FROM = 128 / 255  # this level and those above are inverted
RADIUS = 6  # of the blur: three times the largest sigma


@dataclass(frozen=True)
class PhotometricSettings:
    """Probabilities and strengths; (MoCo v2: main_moco.py; solarize: BYOL, appendix B)."""

    jitter: float = setting(0.8, "MoCo v2: probability of the colour jitter", low=0, high=1)
    strength: tuple[float, float, float, float] = setting(
        (0.4, 0.4, 0.4, 0.1), "MoCo v2: brightness, contrast, saturation, hue", low=0, high=1
    )
    grayscale: float = setting(0.2, "MoCo v2: probability", low=0, high=1)
    blur: float = setting(0.5, "MoCo v2: probability; sigma uniform in 0.1 to 2", low=0, high=1)
    solarize: tuple[float, float] = setting(
        (0.0, 0.2), "BYOL: probability on query and key view", low=0, high=1
    )


@dataclass(frozen=True)
class Photometric:
    """The drawn numbers of one view; None or False: not applied."""

    brightness: float | None = None
    contrast: float | None = None
    saturation: float | None = None
    hue: float | None = None
    grayscale: bool = False
    blur_sigma: float | None = None
    solarize: bool = False


def draw_photometric(
    settings: PhotometricSettings, is_key: bool, generator: np.random.Generator
) -> Photometric:
    """Draw the colour augmentation of one view.  Always the same count of draws, whatever comes out."""
    chance = generator.random(4)
    amount = generator.uniform(-1.0, 1.0, size=4) * np.array(settings.strength)
    sigma = float(generator.uniform(0.1, 2.0))
    jitter = bool(chance[0] < settings.jitter)
    return Photometric(
        brightness=float(1 + amount[0]) if jitter else None,
        contrast=float(1 + amount[1]) if jitter else None,
        saturation=float(1 + amount[2]) if jitter else None,
        hue=float(np.clip(amount[3], -0.5, 0.5)) if jitter else None,
        grayscale=bool(chance[1] < settings.grayscale),
        blur_sigma=sigma if chance[2] < settings.blur else None,
        solarize=bool(chance[3] < settings.solarize[int(is_key)]),
    )


def blur_kernel(sigma: float | None, size_wh: tuple[int, int]) -> list[float]:
    """(2 RADIUS + 1,) weights with sum 1; narrower for images that a mirror cannot widen so far.

    Args:
        sigma: in pixels; None: the kernel that changes nothing.
        size_wh: of the image.
    """
    at = np.arange(-RADIUS, RADIUS + 1)
    exponent = np.where(at == 0, 0.0, -np.inf) if sigma is None else -(at**2) / (2 * sigma**2)
    weights = np.where(np.abs(at) <= min(*size_wh) - 1, np.exp(exponent), 0.0)
    return [float(w) for w in weights / weights.sum()]
