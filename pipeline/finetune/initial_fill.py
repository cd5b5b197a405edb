"""What LOCE does before its second stage trains: the memory is shown a few images of every class, so that
weak classes have something to draw from (Feng et al., ICCV 2021; fcjian/LOCE, mmdet/core/utils/mfs.py).

The official pass is a whole training forward, which moves the mean scores too; here it fills the memory.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipeline.data.annotations import Annotations
from pipeline.data.draws import Draw
from pipeline.data.photometric import normalise, on_canvas, to_float
from pipeline.data.single_view import SingleViewDataset, ViewSample
from pipeline.data.targets import Target
from pipeline.data.views import canvas_wh
from pipeline.detectors.two_stage import data_sample
from pipeline.engine.loop import Hook, Trainer
from pipeline.finetune.weak_classes import NUM_JITTERED

EPOCH = 2**31 - 1  # of its draws: no epoch of training has this number


def images_of_classes(annotations: Annotations, per_class: int, seed: int) -> np.ndarray:
    """(n,) ascending positions of images: of each class up to `per_class`, drawn by `seed`."""
    order = np.random.default_rng(seed).permutation(len(annotations.image_ids))
    rank = np.argsort(order)  # of each image in the drawn order
    seen = annotations.trainable
    pairs = np.unique(np.stack([annotations.labels[seen], rank[annotations.box_images[seen]]]), axis=1)
    begins = np.searchsorted(pairs[0], pairs[0])  # of each pair's class
    chosen = pairs[1][np.arange(pairs.shape[1]) - begins < per_class]
    return np.unique(order[chosen])


class InitialFill(Hook):
    """Fills the memory of the RoI head before the first step; a resumed run has it in its checkpoint.

    Args:
        dataset: of the run.
        queue_size: rows of each class; an object gives `NUM_JITTERED` of them.
    """

    def __init__(self, dataset: SingleViewDataset, queue_size: int) -> None:
        self.dataset, self.per_class = dataset, max(1, queue_size // NUM_JITTERED)

    def before_train(self, trainer: Trainer) -> None:
        if trainer.step:
            return
        images = images_of_classes(self.dataset.annotations, self.per_class, self.dataset.seed)
        process, model = trainer.process, trainer.model
        rounds = -(-len(images) // process.world)
        model.eval()
        for index in range(process.rank, rounds * process.world, process.world):
            # collecting is a collective: at the end some processes show an image without its objects
            sample = self._sample(int(images[index % len(images)]), index)
            self._collect(model, sample if index < len(images) else _without_objects(sample))
        model.train()

    def _sample(self, image: int, index: int) -> ViewSample:
        data = self.dataset
        canvas = canvas_wh(data.annotations.sizes_wh[[image]], data.short_sides, data.long_side)
        return data[Draw(EPOCH, index, image, canvas)]

    @torch.no_grad()
    def _collect(self, model: Any, sample: ViewSample) -> None:
        encoder = model.model.encoder
        images = on_canvas([normalise(to_float(sample.image, model.device))], sample.canvas_wh)
        pyramid = encoder.pyramid(encoder.trunk(images, model.bf16), model.bf16)
        annotated = data_sample(sample.target, sample.canvas_wh, model.device, False)
        model.model.detector.roi_head.collect(pyramid, [annotated])


def _without_objects(sample: ViewSample) -> ViewSample:
    empty = Target(
        sample.target.boxes[:0], sample.target.labels[:0], sample.target.size_wh, sample.target.key
    )
    return replace(sample, target=empty)
