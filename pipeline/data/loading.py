"""From global batches to a DataLoader: this process's share, decoded by workers, in a fixed order."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data.draws import Draw, GlobalBatches, Sampler
from pipeline.data.handover import Handover
from pipeline.data.views import canvas_wh
from pipeline.engine.distributed import Process
from pipeline.engine.schedule import Schedule
from pipeline.engine.signals import end_with_parent, hear_no_signal
from pipeline.errors import TwoDRCLError

TIMEOUT_S = 300  # a hung read becomes an error


class _ErrorsAsSamples(Dataset[Any]):
    """Hands the user's errors back like samples: DataLoader would bury them in a worker's traceback."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, draw: Draw) -> Any:
        try:
            return self.dataset[draw]
        except TwoDRCLError as problem:
            return problem


class BatchSource:
    """Batches of one process from any step on; call it with the first step.

    Args:
        dataset: Draw -> sample.
        sampler: order of every epoch.
        schedule: epoch lengths and total.
        sizes_wh: (I, 2) sizes of the stored images.
        short_sides, long_side: of the views, which decide the canvas.
        process: whose share to load.
        workers: loader processes; 0 loads in this one.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: Sampler,
        schedule: Schedule,
        sizes_wh: np.ndarray,
        short_sides: tuple[int, ...],
        long_side: int,
        *,
        process: Process,
        workers: int,
    ) -> None:
        self.dataset, self.sampler, self.schedule = dataset, sampler, schedule
        self.sizes_wh, self.short_sides, self.long_side = sizes_wh, short_sides, long_side
        self.process, self.workers = process, workers

    def __call__(self, start: int) -> Iterator[list[Any]]:
        """Lists of samples of each step from `start` to the end of the schedule.

        Raises:
            TwoDRCLError: what the dataset raised, in whatever process.
        """
        batches = GlobalBatches(
            self.sampler,
            self.schedule.epoch_steps,
            lambda images: canvas_wh(self.sizes_wh[images], self.short_sides, self.long_side),
            start=start,
            stop=self.schedule.total,
            rank=self.process.rank,
            world=self.process.world,
        )
        handover = Handover(self.workers)
        loader: DataLoader[Any] = DataLoader(
            _ErrorsAsSamples(self.dataset),
            batch_sampler=batches,  # it yields draws, not positions
            num_workers=self.workers,
            collate_fn=handover.packed,  # the model stacks them: views differ in size before padding
            timeout=TIMEOUT_S if self.workers else 0,
            worker_init_fn=belong_to_the_trainer,
            generator=torch.Generator(),  # the loader draws its workers' seeds; not from the global one
        )
        for samples in map(handover.unpacked, loader):
            problems = [s for s in samples if isinstance(s, TwoDRCLError)]
            if problems:
                raise problems[0]
            yield samples


def belong_to_the_trainer(worker: int) -> None:
    """A signal to the whole group must not kill a loader before the trainer has saved.

    And a killed trainer's loader must not hold its pipes, which the command waits for, while it reads on.
    """
    hear_no_signal()
    end_with_parent()
