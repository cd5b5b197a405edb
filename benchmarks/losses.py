"""Every loss at LVIS size, forward and backward: ours, the official formula written naively, and plain
cross-entropy, interleaved in one run.

    python benchmarks/losses.py                             # 8 x 512 RoIs, 1,203 classes, one CPU thread
    python benchmarks/losses.py --methods ecm bacl --gpu

A quarter of the RoIs are objects, their classes as frequent as the root of a long tail.  Each loss runs with
the settings of its entry in the table of methods, in training mode, in the part of the schedule where it does
most; the functions of `naive_losses.py` keep the same state.  Where both are free of draws their values are
compared.  `forced` is what the operations take that a definition forces (`loss_floors.py`), over those that
cross-entropy's forces, on the CPU.

Time is the median of the rounds.  Memory is the peak above what is live before the step (on a GPU that of
torch's allocator; on the CPU that of the allocations in a profiler's trace, and freed memory is kept for the
next step, as on a GPU: clearing fresh pages would take longer than most losses).
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from loss_floors import FORCED as PARTS
from loss_floors import blocks, floors
from naive_losses import NAIVE
from torch import Tensor

from pipeline.finetune.method import ClassCounts, Method
from pipeline.finetune.methods import METHODS

ROIS, CLASSES, LIMIT = 8 * 512, 1203, 1.5
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**33)}
DRAWS = ("droploss", "bags", "acsl")
BINARY = "log(1 + e^s) in every column, where softmax takes one logarithm per row"
OWN = f"{BINARY}, and not of four columns together, because each has its weight"
FORCED = {
    "bce": BINARY,
    "eql": f"{BINARY}; which columns a row leaves out",
    "eqlv2": f"{OWN}; the sums of the gradients over all RoIs",
    "droploss": f"{BINARY}; a random number per RoI and class",
    "ecm": f"{OWN}; the shift of every logit",
    "acsl": f"{BINARY}; the comparison of every logit with a bound",
    "seesaw": "two softmaxes over the objects: one for the factors, one with them",
    "bags": "the groups are copied out of the logits, and back into their gradient",
    "loce": "the shift of every logit",
    "pcb": "a softmax over the classes beside that over the columns; targets from a C x C matrix per step",
    "bacl": f"{BINARY}; a softmax over the classes, and the logarithms of a C x C matrix in every step",
    "rog": f"{BINARY}; where each of N x C logits lies among the objects' own",
}
LOOPS = "rog"  # official loops of a minute, timed once and not traced
Case = tuple[Callable[[Tensor, Tensor], Tensor], Tensor]  # loss, and logits


def main() -> None:
    """Measure and print."""
    args = _arguments()
    torch.set_num_threads(1)
    device = torch.device("cuda" if args.gpu else "cpu")
    labels, counts = _labels(device), _counts()
    cases: dict[str, Case] = {"cross-entropy": (F.cross_entropy, _logits(CLASSES + 1, device))}
    naive: dict[str, Case] = {}
    for name in args.methods:
        cases[name] = _ours(METHODS[name], counts, device)
        naive[name] = (NAIVE[name](counts, CLASSES, device), cases[name][1])
    values = {
        name: (_step(cases[name], labels)[0], _step(naive[name], labels)[0])
        for name in args.methods
        if name not in DRAWS
    }
    parts, room = floors(ROIS, CLASSES, labels.cpu()), blocks(ROIS, CLASSES)
    seconds: dict[str, list[float]] = {}
    for one_round in range(args.rounds + 1):  # the first one warms up
        for name, case in cases.items():
            elapsed = _step(case, labels)[1]
            seconds.setdefault(name, []).extend([elapsed] if one_round else [])
            if name in naive and one_round and (name != LOOPS or one_round == 1):
                seconds.setdefault(f"naive {name}", []).append(_step(naive[name], labels)[1])
        for name, part in parts.items() if one_round and not args.gpu else ():
            started = time.process_time()
            part(*room)
            seconds.setdefault(f"part {name}", []).append(time.process_time() - started)
    peaks = {name: _peak(case, labels) for name, case in cases.items()}
    peaks |= {f"naive {name}": _peak(case, labels) for name, case in naive.items() if name != LOOPS}
    _print({name: 1e3 * statistics.median(v) for name, v in seconds.items()}, peaks, values, device)


def _arguments() -> argparse.Namespace:
    own = [name for name, method in METHODS.items() if "." in method.loss]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=own, default=own)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--gpu", action="store_true")
    return parser.parse_args()


def _print(
    ms: dict[str, float],
    peaks: dict[str, float],
    values: dict[str, tuple[float, float]],
    device: torch.device,
) -> None:
    time_base, memory_base = ms["cross-entropy"], peaks["cross-entropy"]
    print(f"{ROIS} RoIs, {CLASSES} classes, {device.type}; x CE: times plain cross-entropy's")
    head = f"{'':15s}{'ms':>8s}{'x CE':>7s}{'forced':>8s}{'naive':>8s}{'faster':>8s}"
    print(f"{head}{'MiB':>7s}{'x CE':>6s}{'naive':>7s}  values differ by")
    for name in (n for n in ms if not n.startswith(("naive ", "part "))):
        slow, large = ms.get(f"naive {name}"), peaks.get(f"naive {name}")
        naive = "" if slow is None else f"{slow:8.0f}{slow / ms[name]:7.1f}x"
        time_text = f"{ms[name]:8.1f}{ms[name] / time_base:7.2f}{_forced(name, ms):8s}{naive:16s}"
        memory = "" if large is None else f"{large:7.0f}"
        memory = f"{peaks[name]:7.0f}{peaks[name] / memory_base:6.2f}{memory:7s}"
        print(f"{name:15s}{time_text}{memory}  {_agreement(name, values)}")
    above = [n for n in values | dict.fromkeys(DRAWS) if n in ms]
    above = [n for n in above if max(ms[n] / time_base, peaks[n] / memory_base) > LIMIT]
    print(f"above {LIMIT} x cross-entropy, and what its definition adds:" if above else f"none above {LIMIT}")
    for name in above:
        print(f"  {name:10s}{FORCED[name]}")


def _forced(name: str, ms: dict[str, float]) -> str:
    own, base = (sum(ms.get(f"part {part}", 0) for part in PARTS[one]) for one in (name, "cross-entropy"))
    return f"{own / base:8.2f}" if base else ""


def _agreement(name: str, values: dict[str, tuple[float, float]]) -> str:
    if name not in values:
        return "drawn" if name in DRAWS else ""
    ours, theirs = values[name]
    return f"{abs(ours / theirs - 1):.0e}"


def _step(case: Case, labels: Tensor) -> tuple[float, float]:
    """The value, and seconds of forward and backward."""
    loss, logits = case
    logits = logits.detach().requires_grad_()
    clock = time.perf_counter if logits.is_cuda else time.process_time  # of one thread: others do not count
    _wait(logits)
    started = clock()
    value = loss(logits, labels)
    value.backward()
    _wait(logits)
    return float(value.detach()), clock() - started


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()


def _peak(case: Case, labels: Tensor) -> float:
    """MiB at the peak of a step, above what is live before it."""
    if case[1].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _step(case, labels)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as trace:
        _step(case, labels)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        trace.export_chrome_trace(str(path))
        events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak / 2**20


def _ours(method: Method, counts: ClassCounts, device: torch.device) -> Case:
    """The loss with the settings of its entry, trained for a step so that it has a state."""
    module, _, name = method.loss.rpartition(".")
    arguments = method.loss_config(CLASSES, counts)
    arguments.pop("type")
    loss = getattr(importlib.import_module(module), name)(**arguments).to(device)
    if method.name == "pcb":  # as the naive one: late enough, and every class seen
        loss.epoch = loss.start_epoch
        loss.confusion.fill_(1 / CLASSES)
        loss.num_inst_cnt.fill_(1)

    def value(logits: Tensor, labels: Tensor) -> Tensor:
        found = loss(logits, labels, None, avg_factor=len(labels))
        return torch.stack(list(found.values())).sum() if isinstance(found, dict) else found

    return value, _logits(loss.get_cls_channels(CLASSES), device)


def _counts() -> ClassCounts:
    """1 to 50,000 instances, as in LVIS v1."""
    instances = torch.logspace(0, 4.7, CLASSES).long()
    images = (instances / 2).ceil().long().clamp(max=1977)
    return ClassCounts(images.tolist(), instances.tolist(), 99_388)


def _labels(device: torch.device) -> Tensor:
    """(N,): a quarter objects, in any order."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.logspace(0, 4.7, CLASSES, dtype=torch.float64).sqrt()
    labels = torch.multinomial(weights, ROIS, replacement=True, generator=generator)
    labels[ROIS // 4 :] = CLASSES
    return labels[torch.randperm(ROIS, generator=generator)].to(device)


def _logits(columns: int, device: torch.device) -> Tensor:
    """(N, columns), most probabilities small."""
    return (torch.randn(ROIS, columns, generator=torch.Generator().manual_seed(1)) - 4).to(device)


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})
    main()
