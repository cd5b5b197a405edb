"""What a process of a run does, for every kind of work that several processes share."""

import importlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.artifacts import write_json
from pipeline.engine.distributed import Process, barrier, join, sum_over_processes
from pipeline.engine.hooks import Checkpoints, DebugBundle, History, StopOnSignal
from pipeline.engine.loop import Hook
from stages.console import say
from stages.progress import ImagesLine, ProgressLine

GPU_MEMORY = "gpu_memory.json"  # in a training's scratch folder


@dataclass(frozen=True)
class Training:
    """A stage that trains: where its job, its plan and `build_trainer` are."""

    module: str
    job: str
    plan: str

    def job_class(self) -> Any:
        """The job's dataclass."""
        return getattr(importlib.import_module(self.module), self.job)

    def run(self, stage: str, job: Any, process: Process, workers: int, save_every: float) -> None:
        """Train to the end, continuing from the newest checkpoint."""
        module = importlib.import_module(self.module)
        plan = getattr(module, self.plan)(job)
        checkpoints = Checkpoints(job.work / "checkpoints", seconds=save_every)
        hooks: list[Hook] = [
            History(job.work / "history.jsonl"),
            checkpoints,
            StopOnSignal(checkpoints),
            DebugBundle(job.work / "diverged.json", partial(_image_ids, plan)),
        ]
        if process.is_first:
            hooks.append(ProgressLine(stage))
        trainer = module.build_trainer(plan, process, workers, hooks)
        say(f"{stage}: {trainer.schedule.total} steps, {process.world} x {process.device.type}")
        trainer.train()
        _keep_gpu_memory(job.work / GPU_MEMORY, process)


def _keep_gpu_memory(path: Path, process: Process) -> None:
    """Peak of all cards together, MiB as the allocator reserved them, for timing.json."""
    if process.device.type != "cuda":
        return
    import torch

    peak = torch.cuda.max_memory_reserved(process.device) / 2**20
    total = sum_over_processes(torch.tensor([peak], device=process.device))
    if process.is_first:
        write_json(path, {"gpu_memory_mib": round(total.item())})


def _image_ids(plan: Any, step: int) -> Any:
    """Ids of the images of a global step."""
    from pipeline.data.draws import images_of_step

    return plan.annotations.image_ids[images_of_step(plan.sampler, plan.schedule.epoch_steps, step)]


@dataclass(frozen=True)
class Generation:
    """Making the boxes of every image, in chunks that the processes share out."""

    def job_class(self) -> Any:
        """The job's dataclass."""
        from pipeline.proposals.generation import GenerationJob

        return GenerationJob

    def run(self, stage: str, job: Any, process: Process, workers: int, save_every: float) -> None:
        """Make this process's chunks; as the first one, come back when all are there."""
        from pipeline.proposals import generation

        plan = generation.GenerationPlan(job)
        if process.is_first:
            generation.prepare(plan)
        barrier()
        with ImagesLine("proposals", len(plan.annotations.image_ids), active=process.is_first) as line:
            tally = plan.tally(process.rank, process.world)
            generation.generate(
                lambda: self._source(plan, process, workers), plan.chunks, tally, process, line.show
            )

    def _source(self, plan: Any, process: Process, workers: int) -> Any:
        """What the settings name; says what there is to say of an imported file."""
        from pipeline.proposals.generation import source_of
        from pipeline.proposals.importing import Imported

        source = source_of(plan, process.device, workers)
        for remark in source.remarks() if isinstance(source, Imported) else ():
            say(remark)
        return source


JOBS: dict[str, Training | Generation] = {
    "proposals": Training("pipeline.proposals.training", "ProposalsJob", "ProposalsPlan"),
    "generation": Generation(),
    "pretrain": Training("pipeline.pretrain.training", "PretrainJob", "PretrainPlan"),
    "finetune": Training("pipeline.finetune.training", "FinetuneJob", "FinetunePlan"),
}


def run(kind: str, job: Any, use_gpu: bool, workers: int, save_every: float) -> None:
    """Do this process's part, as one of the group if there is one.

    The group stays joined: the next job of the command, if there is one, is done by the same processes, and
    torchrun's store does not let them meet twice.
    """
    JOBS[kind].run(kind, job, join(use_gpu), workers, save_every)
