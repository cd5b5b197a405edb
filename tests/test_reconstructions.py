"""Reconstructions over time: the run does not notice, a kill loses none, the picture shows the right ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from toy_detector import ToyDetector, shard, tiny_settings, toy_batch

from pipeline.data.photometric import pixels_of
from pipeline.engine.distributed import Process
from pipeline.engine.hooks import Checkpoints
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.engine.schedule import Schedule
from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.reconstructions import IMAGES, Reconstructions, evaluating, moments
from pipeline.pretrain.reconstructions_figure import reconstructions_figure

EPOCH_STEPS = (2, 3, 2)


class Killed(Exception):
    """As a signal that nobody catches."""


class Kills(Hook):
    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step == self.step:
            raise Killed


def toy_with_memory(terms: tuple[str, ...], dropout: float = 0.0) -> Any:
    """The toy with what a forward in train mode changes: batch statistics, and the random stream."""
    torch.manual_seed(0)
    detector: Any = ToyDetector()
    stem = detector.backbone.stem
    detector.backbone.stem = nn.Sequential(stem, nn.BatchNorm2d(8), nn.Dropout(dropout))
    model = TwoDRCL(
        detector,
        tiny_settings(terms=terms),
        (8, 16),
        lambda samples: samples[0] if isinstance(samples, list) else samples,  # type: ignore[arg-type,return-value]
    ).train()
    detector.backbone.stages[1].eval()  # a stage of its own mode, as a frozen one has
    return model


def trainer_of(
    hooks: list[Hook],
    terms: tuple[str, ...] = ("hcl", "ar", "sr"),
    *,
    rank: int = 0,
    dropout: float = 0.0,
) -> Trainer:
    model = toy_with_memory(terms, dropout)
    torch.manual_seed(5)
    return Trainer(
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9),
        Schedule(EPOCH_STEPS, (), 0.05),
        lambda start: (toy_batch(step) for step in range(start, sum(EPOCH_STEPS))),
        images_per_step=4,
        process=Process(rank, 1, torch.device("cpu")),
        hooks=hooks,
    )


def hook(folder: Path) -> Reconstructions:
    return Reconstructions(folder, lambda: [shard(toy_batch(0), i, 4) for i in range(4)])  # type: ignore[misc]


def content(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    return {path.name: dict(np.load(path)) for path in sorted(folder.glob("*"))}


def test_a_run_is_the_same_to_the_bit_with_and_without(tmp_path: Path) -> None:
    states, streams = [], []
    for hooks in ([], [hook(tmp_path / "seen")]):
        trainer = trainer_of(list(hooks), dropout=0.2)
        trainer.train()
        states.append(trainer.state())
        streams.append(torch.get_rng_state())
    assert torch.equal(*streams)
    for name, value in states[0]["model"].items():
        found = states[1]["model"][name]
        assert torch.equal(value, found) if torch.is_tensor(value) else value == found, name
    assert len(content(tmp_path / "seen")) == 4


def test_modes_come_back_one_by_one() -> None:
    model = toy_with_memory(("ar",))
    before = [module.training for module in model.modules()]
    with pytest.raises(Killed), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise Killed
    assert [module.training for module in model.modules()] == before and len(set(before)) == 2


@pytest.mark.parametrize("kill", [1, 2, 5])
def test_a_kill_loses_nothing_that_was_seen(tmp_path: Path, kill: int) -> None:
    """Also where the last checkpoint is older than what was seen, and at the very step of both."""
    trainer_of([hook(tmp_path / "whole")]).train()
    for hooks in ([Kills(kill)], []):
        checkpoints = Checkpoints(tmp_path / "checkpoints", steps=2)
        trainer = trainer_of([hook(tmp_path / "seen"), checkpoints, *hooks])
        if hooks:
            with pytest.raises(Killed):
                trainer.train()
        else:
            trainer.train()
    found, expected = content(tmp_path / "seen"), content(tmp_path / "whole")
    assert list(found) == list(expected) == [f"epoch-000{i}.npz" for i in range(4)]
    for name, arrays in expected.items():
        assert all(np.array_equal(array, found[name][key]) for key, array in arrays.items()), name


def test_another_process_looks_at_nothing(tmp_path: Path) -> None:
    trainer_of([hook(tmp_path / "seen")], rank=1).train()
    assert not (tmp_path / "seen").exists()


def test_what_is_kept_is_what_the_model_paints(tmp_path: Path) -> None:
    trainer = trainer_of([hook(tmp_path)])
    trainer.train()
    model: Any = trainer.model
    kept = content(tmp_path)["epoch-0003.npz"]
    assert sum(name.startswith("view-") for name in kept) == IMAGES
    model.eval()
    for number in range(IMAGES):
        batch = shard(toy_batch(0), number, 4)
        with torch.no_grad():
            painting = model.paint(batch, model.detector.encoder.trunk(batch.query)[-1])
        wanted = {"view": batch.query, "reconstruction": painting.reconstruction, "masked": painting.masked}
        for name, view in wanted.items():
            pixels = (255 * pixels_of(view[0], batch.query_wh[0])).round()
            assert np.array_equal(kept[f"{name}-{number}"], pixels), (name, number)
    assert not np.array_equal(kept["masked-0"], kept["reconstruction-0"])


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [0, 1]), (3, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4, 5]), (12, [0, 2, 5, 7, 10, 12])],
)
def test_moments_are_few_and_reach_both_ends(epochs: int, expected: list[int]) -> None:
    assert moments(epochs) == expected


@pytest.mark.parametrize(("terms", "columns"), [(("ar",), 5), (("sr",), 6)])
def test_the_picture_has_a_column_per_moment(tmp_path: Path, terms: tuple[str, ...], columns: int) -> None:
    trainer_of([hook(tmp_path / "seen")], terms).train()
    assert reconstructions_figure(tmp_path / "seen", tmp_path / "out.png")
    first = (tmp_path / "out.png").read_bytes()
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width == pytest.approx(columns * 1.7 * 110, abs=2)
    assert reconstructions_figure(tmp_path / "seen", tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == first


def test_nothing_seen_is_no_picture(tmp_path: Path) -> None:
    assert not reconstructions_figure(tmp_path / "nowhere", tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()
