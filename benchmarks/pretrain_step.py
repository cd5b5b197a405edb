"""2DRCL's pre-training steps over plain detectors' steps, on the same images, in one interleaved run.

    python benchmarks/pretrain_step.py                      # small, for a CPU
    python benchmarks/pretrain_step.py --depth 50 --size 800 1088 --batch 1 --channels 256 --steps 2 \\
                                       --only "Faster R-CNN" "2DRCL, SR half size" 2DRCL     # 12 GiB, minutes
    python benchmarks/pretrain_step.py --depth 50 --size 800 1344 --batch 8 --channels 256 --gpu --bf16

Rows: Faster R-CNN and Mask R-CNN with LVIS's 1203 categories as they are fine-tuned, then each ablation, then
2DRCL whole.  Each row is built, measured in turns with the Mask R-CNN step, and thrown away, so that two
models are in memory.  `time` is the ratio of medians to the Mask R-CNN steps between; `arithmetic` the ratio
of the multiply-adds that torch counts in the same steps.  A CPU is timed in CPU seconds of one thread: what
else runs on it counts little.  `kept` is what the forward pass leaves for the backward pass, `state` the
weights, gradients, momenta and buffers, in GiB; on a GPU the peak of a step instead, the row's own part.
Published arithmetic at 800 x 1344, ResNet-50, per image: Faster R-CNN 1186 GFLOP, Mask R-CNN 1766, 2DRCL
2144, at half size 1776; at 800 x 1088: 972, 1552, 1744, 1446.
"""

import argparse
import gc
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch.profiler import ProfilerActivity, profile
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
NEAR = 32  # proposals near each object
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


@dataclass(frozen=True)
class Row:
    """What is measured of a case."""

    name: str
    seconds: float
    over_base: float  # of the base's steps in turns with these
    flops: int
    kept: int  # bytes; of a CPU
    state: int  # bytes; of a CPU
    peak: int  # bytes


def main() -> None:
    """Measure and print."""
    args = _arguments()
    device = torch.device("cuda" if args.gpu else "cpu")
    if not args.gpu:
        torch.set_num_threads(1)
    batch, variants = _batch(args.batch, args.size, device), _variants(args)
    setting = f"{args.batch} images of {args.size[1]} x {args.size[0]}, ResNet-{args.depth}"
    print(f"{setting}, {device.type}, {args.steps} rounds")
    print(
        "step                          ms   images/s   time  arithmetic  GFLOP/image  TFLOP/s"
        "   kept  state   peak memory"
    )
    base = _case(BASE, variants.pop(BASE), args, device)
    first = _measured(base, None, batch, args.steps)
    _print(first, first, args.batch)
    for name, settings in variants.items():
        if not args.only or name in args.only:
            before = torch.cuda.memory_allocated() if args.gpu else 0
            _print(
                _measured(_case(name, settings, args, device), base, batch, args.steps, before),
                first,
                args.batch,
            )
            gc.collect()


def _measured(case: Case, base: Case | None, batch: PretrainBatch, steps: int, before: int = 0) -> Row:
    """A row; `before`: bytes on the GPU that are not the case's."""
    device = batch.query.device
    case.step(batch)  # the optimizer's state comes into being
    on_cpu = device.type == "cpu"
    kept, state = (_kept(case, batch), _state(case)) if on_cpu else (0, 0)
    peak = _peak(case, batch) if on_cpu else _peak_of_gpu(case, batch, before)
    with FlopCounterMode(display=False) as counter:
        case.step(batch)
    own, others = [], []
    for _ in range(steps):
        own.append(_timed(case, batch, device))
        others.append(own[-1] if base is None else _timed(base, batch, device))
    seconds = statistics.median(own)
    ratio = seconds / statistics.median(others)
    return Row(
        case.name,
        seconds,
        ratio,
        counter.get_total_flops(),
        kept,
        state,
        peak,
    )


def _print(row: Row, base: Row, images: int) -> None:
    speed = f"{row.name:24s} {row.seconds * 1e3:7.0f} {images / row.seconds:10.3f}"
    ratios = f"{row.over_base:7.2f} {row.flops / base.flops:11.2f}"
    work = f"{row.flops / images / 1e9:12.1f} {row.flops / row.seconds / 1e12:9.3f}"
    memory = " ".join(f"{size / 2**30:6.2f}" for size in (row.kept, row.state, row.peak))
    print(f"{speed} {ratios} {work} {memory} {row.peak / base.peak:6.2f}", flush=True)


def _state(case: Case) -> int:
    """Bytes of weights, gradients, momenta and buffers."""
    parameters = list(case.model.parameters())
    tensors = [*parameters, *(p.grad for p in parameters if p.grad is not None), *case.model.buffers()]
    tensors += [v for s in case.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return sum({t.data_ptr(): t.nbytes for t in tensors}.values())


def _peak_of_gpu(case: Case, batch: PretrainBatch, before: int) -> int:
    """Bytes; `before` are not the case's."""
    torch.cuda.reset_peak_memory_stats()
    case.step(batch)
    return torch.cuda.max_memory_allocated() - before


def _peak(case: Case, batch: PretrainBatch) -> int:
    """Bytes at the worst moment of a step: the state, of which the gradients come and go, and all else."""
    case.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    level = peak = _state(case)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        case.step(batch)
    assert found.profiler is not None
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()  # freed: negative
        peak = max(peak, level)
    return peak


def _kept(case: Case, batch: PretrainBatch) -> int:
    """Bytes that the forward pass leaves for the backward pass."""
    kept: dict[int, int] = {}
    state = {t.untyped_storage().data_ptr() for t in (*case.model.parameters(), *case.model.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
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
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--queue", type=int, default=65536)
    parser.add_argument("--only", nargs="+", default=(), help="names of rows")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args()


def _variants(args: argparse.Namespace) -> dict[str, PretrainSettings]:
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
    return {
        "Faster R-CNN": replace(full, terms=("det",)),
        BASE: replace(full, terms=("det",), mask_loss=True),
        **{name: replace(full, terms=terms) for name, terms in rows.items()},
        "2DRCL, SR half size": half,
        "2DRCL": full,
    }


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
    _propose_as_if_trained(mmdet.rpn_head)
    model = TwoDRCL(TwoStageModel(mmdet), settings, (args.queue, args.queue), lambda batch: batch)
    layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
    model.to(device, memory_format=layout).train()
    return Case(name, model, sgd(model, 1e-4, 0.9, 1e-4))


def _propose_as_if_trained(rpn_head: Any) -> None:
    """Let the RPN propose boxes near the objects, beside its own: enough for all positive RoIs.

    A random one hits next to nothing, and the mask head, a third of the LVIS step, would have nothing to do.
    """
    original, generator = rpn_head.loss_and_predict, torch.Generator().manual_seed(SEED)

    def loss_and_predict(features: Any, samples: Any, **kwargs: Any) -> Any:
        losses, proposals = original(features, samples, **kwargs)
        changed = []
        for found, sample in zip(proposals, samples, strict=True):
            boxes = sample.gt_instances.bboxes.repeat(NEAR, 1)
            sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
            boxes = boxes + 0.05 * sides * torch.randn(boxes.shape, generator=generator).to(boxes)
            boxes = torch.cat([boxes, found.bboxes])[: max(len(found), len(boxes))]
            scores = torch.ones_like(boxes[:, 0])
            changed.append(InstanceData(bboxes=boxes, scores=scores, labels=scores.long() - 1))
        return losses, changed

    rpn_head.loss_and_predict = loss_and_predict


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


def _timed(case: Case, batch: PretrainBatch, device: torch.device) -> float:
    """Seconds of a step; on a CPU of its one thread."""
    if device.type != "cuda":
        started = time.process_time()
        case.step(batch)
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    case.step(batch)
    torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
