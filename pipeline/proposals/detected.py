"""Boxes of the class-agnostic detector that the proposals stage trained (sources oln and rpn)."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import torch

from pipeline.detectors.build import build_model
from pipeline.detectors.inference import detect_batches
from pipeline.detectors.inference_views import batches_of_one_canvas
from pipeline.engine.checkpoint import load_tensors
from pipeline.errors import MismatchedInput
from pipeline.proposals.generation import GenerationPlan
from pipeline.proposals.sources import Boxes, Source
from pipeline.proposals.training import ProposalsJob, ProposalsPlan

BATCH = 8  # images the detector sees at once
# On a CPU, whatever its cores and the number of processes: oneDNN's sums depend on it in their last bits, and
# boxes must not.  More cores are for more processes.
CPU_THREADS = 4


def detected(plan: GenerationPlan, device: torch.device, workers: int) -> Source:
    """A source that runs the detector over whole chunks; within a chunk, images come as batches are done.

    No batch reaches over the end of a chunk, so that a chunk is the same whoever makes it.  On a GPU backbone
    and neck run in bfloat16, on a CPU in float32.

    Args:
        plan: names the weights and the images.
        device: where the detector runs.
        workers: loader processes.

    Raises:
        MissingInput, InputError: there are no weights, or they are damaged.
        MismatchedInput: they are of another detector.
    """
    job, annotations = plan.job, plan.annotations
    training = ProposalsPlan(ProposalsJob(job.annotations, job.images, job.work, job.seed, job.proposals))
    model = build_model(training.model_config(), job.seed)
    try:
        model.load_state_dict(load_tensors(job.weights), strict=True)
    except RuntimeError as problem:
        raise MismatchedInput(
            f"the weights are not of the detector that `proposals` describes: {_first_fault(problem)}",
            "use the settings that it was trained with",
        ) from None
    model.to(device).eval()
    test_wh = (job.proposals.long_side, job.proposals.short_side)

    def source(positions: Sequence[int]) -> Iterator[tuple[int, Boxes]]:
        batches = [
            batch
            for _, chunk in itertools.groupby(positions, key=plan.chunks.number_of)
            for batch in batches_of_one_canvas(annotations.sizes_wh, chunk, test_wh, BATCH)
        ]
        on_gpu = device.type == "cuda"
        with contextlib.nullcontext() if on_gpu else _threads(CPU_THREADS):
            for one in detect_batches(
                model, annotations, job.images, test_wh, device, batches, workers=workers, bf16=on_gpu
            ):
                yield int(annotations.image_ids[one.image]), (one.boxes, one.scores)

    return source


def _first_fault(problem: RuntimeError) -> str:
    lines = str(problem).splitlines()  # torch's headline, then one line per kind of fault
    return (lines[1] if len(lines) > 1 else lines[0]).strip()[:200]


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's threads within one operation."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
