"""A 2DRCL pre-training step over the plain Faster R-CNN step, on the same images, in one interleaved run.

    python benchmarks/pretrain_step.py                      # small, for a CPU
    python benchmarks/pretrain_step.py --depth 50 --size 800 1344 --batch 8 --channels 256 --gpu --bf16

Beside each ratio of medians stands the ratio of the arithmetic, counted by torch on the same two steps.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import pipeline.detectors  # the operators come first
from pipeline.data.targets import Target
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.two_stage import TwoStageModel
from pipeline.engine.optimizer import sgd
from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.settings import ContrastSettings, PretrainSettings, ReconstructionSettings
from pipeline.pretrain.views import PretrainBatch

assert pipeline.detectors
BOXES, NUM_CLASSES, SEED = 8, 80, 0


@dataclass(frozen=True)
class Case:
    """One kind of step."""

    name: str
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def step(self, batch: PretrainBatch) -> None:
        """Forward, backward, update."""
        self.optimizer.zero_grad(set_to_none=True)
        self.model(batch)["loss"].backward()
        self.optimizer.step()
        self.model.after_step()


def main() -> None:
    """Measure and print."""
    args = _arguments()
    device = torch.device("cuda" if args.gpu else "cpu")
    batch = _batch(args.batch, args.size, device)
    cases = _cases(args, device)
    flops = {case.name: _flops(case, batch) for case in cases}
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(args.steps):
        for case in cases:
            seconds[case.name].append(_timed(case, batch, device))
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    setting = f"{args.batch} images of {args.size[1]} x {args.size[0]}, ResNet-{args.depth}"
    print(f"{setting}, {device.type}, {args.steps} rounds")
    print("step                          ms   images/s  time ratio  arithmetic ratio  excess")
    for name, value in medians.items():
        ratio, ideal = value / medians["plain"], flops[name] / flops["plain"]
        speed = f"{name:24s} {value * 1e3:7.0f} {args.batch / value:10.1f}"
        print(f"{speed} {ratio:11.2f} {ideal:17.2f} {ratio / ideal:7.2f}")
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument(
        "--size", type=int, nargs=2, default=(160, 160), help="height and width, multiples of 64"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", type=int, default=64, help="of the FPN")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def _cases(args: argparse.Namespace, device: torch.device) -> list[Case]:
    full = PretrainSettings(
        precision="bf16" if args.bf16 else "fp32",
        contrast=ContrastSettings(queue=args.queue, local_queue=args.queue),
    )
    variants = {
        "plain": replace(full, terms=("det",)),
        "without reconstruction": replace(full, terms=("hcl", "lcl", "det")),
        "without SR": replace(full, terms=("hcl", "lcl", "ar", "det")),
        "2DRCL, half size": replace(full, reconstruction=ReconstructionSettings(scale="half")),
        "2DRCL": full,
    }
    return [_case(name, settings, args, device) for name, settings in variants.items()]


def _case(name: str, settings: PretrainSettings, args: argparse.Namespace, device: torch.device) -> Case:
    small = min(args.size) < 400
    detector = DetectorSettings(
        depth=args.depth,
        fpn_channels=args.channels,
        fc_channels=4 * args.channels,
        anchor_scale=4 if small else 8,
        finest_scale=14 if small else 56,
        roi_samples=64 if small else 512,
        rpn_proposals=200 if small else 1000,
    )
    mmdet = build_model(model_config(detector, NUM_CLASSES), SEED)
    model = TwoDRCL(TwoStageModel(mmdet), settings, (args.queue, args.queue), lambda batch: batch)
    model.to(device).train()
    return Case(name, model, sgd(model, 1e-4, 0.9, 1e-4))


def _batch(count: int, size_hw: tuple[int, int], device: torch.device) -> PretrainBatch:
    """Random images with random boxes: the arithmetic does not look at them."""
    height, width = size_hw
    generator = np.random.default_rng(SEED)
    corner = generator.uniform(0, 0.6, (count, BOXES, 2))
    boxes = np.concatenate([corner, corner + generator.uniform(0.1, 0.4, corner.shape)], axis=2)
    pixels = (boxes * np.array([width, height] * 2)).astype(np.float32)
    labels = generator.integers(NUM_CLASSES, size=(count, BOXES))
    sizes = torch.tensor([[width, height]] * count, dtype=torch.float32, device=device)
    on_device = torch.from_numpy(pixels).to(device)
    noise = torch.randn(2, count, 3, height, width, device=device)
    return PretrainBatch(
        query=noise[0],
        key=noise[1],
        query_wh=sizes,
        key_wh=sizes,
        query_boxes=on_device,
        key_boxes=on_device,
        masks=(on_device + 4).round(),
        valid=torch.ones(count, BOXES, dtype=torch.bool, device=device),
        image_ids=torch.arange(count, device=device),
        targets=[
            Target(p, y, (width, height), key) for key, (p, y) in enumerate(zip(pixels, labels, strict=True))
        ],
        canvas_wh=(width, height),
    )


def _flops(case: Case, batch: PretrainBatch) -> int:
    with FlopCounterMode(display=False) as counter:
        case.step(batch)
    return counter.get_total_flops()


def _timed(case: Case, batch: PretrainBatch, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    case.step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
