"""The momentum over the run, and that the model uses it."""

import pytest
import torch
from toy_detector import tiny_settings, toy_batch, toy_model

from pipeline.engine.distributed import Process
from pipeline.engine.loop import Hook, Trainer
from pipeline.engine.schedule import Schedule
from pipeline.pretrain.momentum_schedule import MomentumSchedule, momentum_at


@pytest.mark.parametrize(
    ("base", "values"),
    [
        (0.996, [0.996, 0.9965857864, 0.998, 0.9994142136, 1.0]),
        (0.99, [0.99, 0.9914644661, 0.995, 0.9985355339, 1.0]),
    ],
)
def test_cosine_by_hand(base: float, values: list[float]) -> None:
    assert [momentum_at(base, "cosine", step, 8) for step in (0, 2, 4, 6, 8)] == pytest.approx(
        values, abs=1e-9
    )
    assert all(momentum_at(base, "constant", step, 8) == base for step in range(9))


class Moves(Hook):
    """How far the key branch went towards the query branch in each step, as momentum; and where resume is."""

    def __init__(self, start: int = 0) -> None:
        self.found: list[float] = []
        self.start = start

    def before_train(self, trainer: Trainer) -> None:
        trainer.step = self.start  # as a checkpoint would
        self.before = trainer.model.key_encoder.backbone.stem.weight.clone()

    def after_step(self, trainer: Trainer, record: object) -> None:
        new = trainer.model.key_encoder.backbone.stem.weight
        query = trainer.model.detector.backbone.stem.weight.detach()
        # new = m old + (1 - m) query; least squares for m over all weights
        a, b = (self.before - query).double().flatten(), (new - query).double().flatten()
        self.found.append(float(a @ b / (a @ a)))
        self.before = new.clone()


@pytest.mark.parametrize("start", [0, 3])
def test_every_step_has_its_own_also_after_a_resume(start: int) -> None:
    model = toy_model(tiny_settings(terms=("hcl", "det"), contrast={"momentum": 0.4}))
    with torch.no_grad():  # or the two branches would hardly differ
        model.detector.backbone.stem.weight.add_(0.1)
    moves = Moves(start)
    Trainer(
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        Schedule((6,), (), 0.05),
        lambda first: (toy_batch(s) for s in range(first, 6)),
        images_per_step=4,
        process=Process(0, 1, torch.device("cpu")),
        hooks=[moves, MomentumSchedule(0.4, "cosine")],
    ).train()
    expected = [momentum_at(0.4, "cosine", step, 6) for step in range(start, 6)]
    assert moves.found == pytest.approx(expected, abs=1e-4)
