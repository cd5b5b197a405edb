"""What a training process does, for every stage that trains."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.engine.distributed import join, leave
from pipeline.engine.hooks import Checkpoints, History, StopOnSignal
from pipeline.engine.loop import Hook
from stages.console import say
from stages.machine import is_first
from stages.progress import ProgressLine


@dataclass(frozen=True)
class Kind:
    """Where the job, plan and trainer of a stage are."""

    module: str
    job: str
    plan: str

    def load(self) -> tuple[Any, Any, Callable[..., Any]]:
        """The job class, the plan class and `build_trainer`."""
        module = importlib.import_module(self.module)
        return getattr(module, self.job), getattr(module, self.plan), module.build_trainer


JOBS = {
    "proposals": Kind("pipeline.proposals.training", "ProposalsJob", "ProposalsPlan"),
    "pretrain": Kind("pipeline.pretrain.training", "PretrainJob", "PretrainPlan"),
    "finetune": Kind("pipeline.finetune.training", "FinetuneJob", "FinetunePlan"),
}


def run(stage: str, job: Any, use_gpu: bool, workers: int, save_every: float) -> None:
    """Train in this process, as one of the group if there is one."""
    _, plan_class, build_trainer = JOBS[stage].load()
    process = join(use_gpu)
    try:
        checkpoints = Checkpoints(job.work / "checkpoints", seconds=save_every)
        hooks: list[Hook] = [History(job.work / "history.jsonl"), checkpoints, StopOnSignal(checkpoints)]
        if is_first():
            hooks.append(ProgressLine(stage))
        trainer = build_trainer(plan_class(job), process, workers, hooks)
        if is_first():
            say(f"{stage}: {trainer.schedule.total} steps, {process.world} x {process.device.type}")
        trainer.train()
    finally:
        leave()
