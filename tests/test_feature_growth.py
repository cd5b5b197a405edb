"""The warning of features that run away: once, against the run's first step; of a run that learns, none."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.engine.distributed import Process
from pipeline.engine.hooks import History
from pipeline.engine.loop import Trainer
from pipeline.engine.schedule import Schedule
from pipeline.pretrain.feature_growth import FeatureGrowth, grown, remedy
from pipeline.pretrain.measures import feature_norms
from pipeline.pretrain.settings import ReconstructionSettings


class Growing(nn.Module):
    """A layer whose features grow by a factor with every step; C2 to C4 stay as they are."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.length, self.factor = nn.Parameter(torch.ones(1)), factor

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        c5 = batch * self.length.detach()
        return {"loss": 0 * self.length.sum(), **feature_norms([batch, batch, batch, c5])}

    def after_step(self) -> None:
        with torch.no_grad():
            self.length *= self.factor


def train(model: nn.Module, folder: Path, rank: int = 0, steps: tuple[int, int] = (0, 8)) -> None:
    """Steps from the first to before the last, with the history that a run writes beside."""
    batch, (start, end) = torch.ones(1, 4, 2, 2), steps
    history = folder / "history.jsonl"
    trainer = Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        Schedule((end,), (), 0.0, 0),
        lambda first: iter([batch] * (end - first)),
        images_per_step=1,
        process=Process(rank, 1, torch.device("cpu")),
        hooks=[FeatureGrowth(history, ReconstructionSettings()), History(history)],
    )
    trainer.step = start
    trainer.train()


def test_features_that_run_away_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(Growing(2.0), tmp_path)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "step 5: features grow: C5 2 -> 32." in message  # 2, 4, 8, 16, then 32 > 10 x 2
    assert "pretrain.lr" in message and "pretrain.terms" in message


def test_a_run_that_goes_on_compares_with_its_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Growing(2.0)
    with caplog.at_level(logging.WARNING):
        train(model, tmp_path, steps=(0, 4))
        assert not caplog.records
        train(model, tmp_path, steps=(4, 6))
    assert "step 5: features grow: C5 2 -> 32." in caplog.records[0].getMessage()


def test_features_that_stay_are_not_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(Growing(1.3), tmp_path)  # 6 times in the end
        train(Growing(2.0), tmp_path, rank=1)  # the first process speaks for all
    assert not caplog.records


def test_features_that_begin_at_zero_have_no_length_to_compare_with() -> None:
    assert grown({"C2": 0.0, "C3": 1.0}, {"C2": 5.0, "C3": 10.0}) == ""
    assert grown({"C2": 0.1, "C3": 1.0}, {"C2": 5.0, "C3": 10.1}) == "C2 0.1 -> 5, C3 1 -> 10.1"


def test_what_to_do_is_what_is_not_done_yet() -> None:
    trained = remedy(ReconstructionSettings(second_pass="trained"))
    assert trained.startswith("set pretrain.reconstruction.second_pass: frozen")
    rest = remedy(ReconstructionSettings())
    assert "reconstruction" not in rest and "pretrain.terms" in rest
