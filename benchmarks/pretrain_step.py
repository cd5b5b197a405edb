"""2DRCL's pre-training steps over plain detectors' steps, on the same images, in one interleaved run.

    python benchmarks/pretrain_step.py                      # small, for a CPU
    python benchmarks/pretrain_step.py --depth 50 --size 800 1344 --batch 8 --channels 256 --gpu --bf16

Rows: Faster R-CNN and Mask R-CNN with LVIS's 1203 categories as they are fine-tuned, then each ablation, then
2DRCL whole.  Ratios are to the Mask R-CNN step, of medians; beside them the ratio of the arithmetic, counted
by torch on the same steps, and what is achieved of it.  Peak memory is the GPU's, by row; on a CPU the bytes
that autograd keeps for the backward pass.  Published arithmetic at 800 x 1344, ResNet-50, per image: Faster
R-CNN 1186 GFLOP, Mask R-CNN 1766, 2DRCL 2144, at half size 1776.
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
BOXES, NUM_CLASSES, SEED = 8, 1203, 0
BASE = "Mask R-CNN"


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
    memory = {case.name: _memory(case, batch, device) for case in cases}
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for _ in range(args.steps):
        for case in cases:
            seconds[case.name].append(_timed(case, batch, device))
    medians = {name: statistics.median(values[2:]) for name, values in seconds.items()}
    setting = f"{args.batch} images of {args.size[1]} x {args.size[0]}, ResNet-{args.depth}"
    print(f"{setting}, {device.type}, {args.steps} rounds")
    print(
        "step                          ms   images/s   time    arithmetic   GFLOP/image  TFLOP/s  memory GiB"
    )
    for name, value in medians.items():
        speed = f"{name:24s} {value * 1e3:7.0f} {args.batch / value:10.2f}"
        ratios = f"{value / medians[BASE]:7.2f} {flops[name] / flops[BASE]:12.2f}"
        work = f"{flops[name] / args.batch / 1e9:12.1f} {flops[name] / value / 1e12:9.3f}"
        print(f"{speed} {ratios} {work} {memory[name] / 2**30:11.2f}")


def _memory(case: Case, batch: PretrainBatch, device: torch.device) -> int:
    """Bytes: the GPU's peak, or on a CPU what the forward pass leaves for the backward pass."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        case.step(batch)
        return torch.cuda.max_memory_allocated()
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = case.model(batch)  # alive until counted, so that no address is used twice
    del losses
    return sum(kept.values())


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
    rows = {
        "2DRCL: + HCL": ("hcl", "det"),
        "2DRCL: + HCL, LCL": ("hcl", "lcl", "det"),
        "2DRCL: + AR": ("hcl", "lcl", "ar", "det"),
        "2DRCL: + SR, no AR": ("hcl", "lcl", "sr", "det"),
    }
    half = replace(full, reconstruction=ReconstructionSettings(scale="half"))
    variants = {
        "Faster R-CNN": replace(full, terms=("det",)),
        BASE: replace(full, terms=("det",), mask_loss=True),
        **{name: replace(full, terms=terms) for name, terms in rows.items()},
        "2DRCL, SR half size": half,
        "2DRCL": full,
    }
    return [_case(name, settings, args, device) for name, settings in variants.items()]


def _case(name: str, settings: PretrainSettings, args: argparse.Namespace, device: torch.device) -> Case:
    small = min(args.size) < 400
    detector = DetectorSettings(
        type="mask-rcnn" if settings.mask_loss else "faster-rcnn",
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
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    model.to(device, memory_format=layout).train()
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
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    noise = [
        torch.randn(count, 3, height, width, device=device).contiguous(memory_format=layout) for _ in "qk"
    ]
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
            Target(p, y, (width, height), key, [_polygon(box) for box in p])
            for key, (p, y) in enumerate(zip(pixels, labels, strict=True))
        ],
        canvas_wh=(width, height),
    )


def _polygon(box: np.ndarray) -> list[np.ndarray]:
    """A triangle in the box."""
    x1, y1, x2, y2 = box
    return [np.array([x1, y1, x2, y1, (x1 + x2) / 2, y2])]


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
