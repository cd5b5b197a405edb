"""What a pre-training will take, for --dry-run: arithmetic, not a measurement.

Counted for ResNet-50-FPN on canvases of 800 x 1344: convolutions and matrix products, forward and backward,
two views; memory of the activations that the backward pass needs, in bf16.  Both grow with the canvas and the
trunk; heads and RoIs are a few per cent.

Hours are a range, from the highest to the lowest rate at which such detectors were seen to train: a third
of an H200's bf16 (MLPerf), and a tenth, untuned; half of a 3090's TF32, and what the paper's own hours come
to; two cores at large images, and at the demo's small ones beside others' work.
"""

from typing import Any

from pipeline.detectors.settings import DetectorSettings
from pipeline.pretrain.settings import PretrainSettings

AREA = 800 * 1344
# GFLOP and saved gigabytes (bf16) per image: both contrasts, what L_det adds, what AR adds, what SR adds
CONTRASTS, DETECTION, APPEARANCE = (1104.0, 0.61), (362.0, 0.10), (186.0, 0.03)
# the first stage of the second pass is computed again: 33.7 and 8.4 GFLOP, for 0.40 and 0.10 GB less
SEMANTIC = {"full": (350.5 + 33.7, 0.82), "half": (88.6 + 8.4, 0.20)}
SECOND_WEIGHTS = {"full": 141.5, "half": 35.4}  # GFLOP of the second pass's weight gradients, if it trains
TRUNK = {18: 0.55, 50: 1.0, 101: 1.45}  # of the whole step, FPN included
STATE_GB = 1.1  # weights, gradients, momentum, momentum encoder, two full queues
RATES = {"H200": (240.0, 80.0), "RTX 3090": (18.0, 5.0), "2 CPU cores": (0.2, 0.015)}  # TFLOP/s


def estimate(detector: DetectorSettings, settings: PretrainSettings, images: int) -> dict[str, Any]:
    """GFLOP per image, hours on one device of each kind (from, to), memory of an image and of the state.

    Args:
        detector, settings: of the run.
        images: draws of the whole run.
    """
    views = settings.views
    share = max(views.short_sides) * views.long_side / AREA * TRUNK[detector.depth]
    share *= (detector.stem_channels / 64) ** 2
    parts = [CONTRASTS] if {"hcl", "lcl"} & set(settings.terms) else []
    parts += [DETECTION] if "det" in settings.terms else []
    parts += [APPEARANCE] if {"ar", "sr"} & set(settings.terms) else []
    parts += [SEMANTIC[settings.reconstruction.scale]] if "sr" in settings.terms else []
    if "sr" in settings.terms and settings.reconstruction.second_pass == "trained":
        parts.append((SECOND_WEIGHTS[settings.reconstruction.scale], 0.0))
    gflop, memory = (share * sum(part[i] for part in parts) for i in range(2))
    bytes_per_value = 1 if settings.precision == "bf16" else 2  # the table is of bf16
    return {
        "gflop_per_image": round(gflop, 1),
        "hours_on_one": {
            name: [float(f"{images * gflop / (rate * 3.6e6):.2g}") for rate in rates]
            for name, rates in RATES.items()
        },
        "gb_per_image_of_a_process": round(memory * bytes_per_value, 2),
        "gb_beside_the_images": round(STATE_GB * min(1.0, TRUNK[detector.depth]), 2),
        "what_it_is": "arithmetic, not a measurement: counted operations at the highest and the lowest rate "
        "that such trainings were seen to keep; longer on a shared machine, or where loaders do not keep up; "
        "memory within a fifth, without the libraries' own, 0.7 GB of a process",
    }
