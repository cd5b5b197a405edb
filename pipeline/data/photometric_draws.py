"""The drawn numbers of a view's colour augmentation, from the draw's own generator; applied in photometric.

Without torch, because the settings of pre-training are read by commands that need none.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.settings import setting


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
