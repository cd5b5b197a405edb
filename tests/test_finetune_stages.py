"""Methods with two stages: what each trains, from what, with which numbers; stopped, continued, refused."""

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, write_params
from processes import together
from torch import Tensor, nn

from pipeline.data.single_view import ViewSample
from pipeline.data.targets import Target
from pipeline.detectors.box_head import training_config
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.publish import load_published
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.supervised import SupervisedModel
from pipeline.detectors.weights import LoadReport
from pipeline.engine.distributed import Process
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.engine.schedule import Schedule
from pipeline.errors import InputError, MismatchedInput, MissingInput, UsageError
from pipeline.finetune import last_layers, second_stage
from pipeline.finetune.method import ClassCounts
from pipeline.finetune.methods import METHODS, get_method
from pipeline.finetune.plan import FinetuneJob, FinetunePlan
from pipeline.finetune.settings import (
    FinetuneRun,
    FinetuneSettings,
    Recipe,
    SecondStageSettings,
    first_recipe,
    second_recipe,
)
from pipeline.finetune.training import LossEpoch, drawn_by
from pipeline.finetune.variant import method_of
from pipeline.settings import build
from stages import finetune as command

CPU = torch.device("cpu")
CLASSES = 4
COUNTS = ClassCounts(image_counts=[40, 2, 9, 12], instance_counts=[90, 2, 20, 150], num_images=50)
LAST_LAYERS = ("fc_cls", "fc_reg", "rpn", "mask_head")
PLAIN_FIRST = (1e-4, "plain", 1)  # weight decay, views, proposals


def tiny_config(method: str, **changes: Any) -> dict[str, Any]:
    sizes = {**TINY["detector"], **changes}  # type: ignore[dict-item]
    chosen = get_method(method)
    return model_config(
        build(DetectorSettings, sizes, "detector"),
        CLASSES,
        box_head=chosen.bbox_head(CLASSES, COUNTS),
        mask_head=chosen.mask_head(CLASSES),
    )


def tiny_config_of_atss() -> dict[str, Any]:
    sizes = {**TINY["detector"], "type": "atss"}  # type: ignore[dict-item]
    return model_config(build(DetectorSettings, sizes, "detector"), CLASSES)


def tiny_detector(method: str, **changes: Any) -> nn.Module:
    return build_model(training_config(tiny_config(method, **changes)), seed=1)


def samples_of(step: int, *, with_objects: bool = True) -> list[ViewSample]:
    """Two images of noise, the same for the same step."""
    random = np.random.default_rng(step)
    boxes = np.array([[5, 6, 40, 50], [50, 10, 90, 60], [20, 20, 44, 40]], np.float32) + step
    boxes = boxes.clip(max=[96, 64, 96, 64])[: 3 if with_objects else 0]
    square = [[np.array([x, y, u, y, u, v, x, v], np.float32)] for x, y, u, v in boxes]
    labels = np.array([0, 3, 1], np.int64)[: len(boxes)]
    target = Target(boxes, labels, (96, 64), key=step, polygons=square)
    image = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return [ViewSample((96, 64), image, target), ViewSample((96, 64), image[::-1].copy(), target)]


def trainer_of(
    detector: nn.Module,
    process: Process,
    steps: int,
    *hooks: Hook,
    with_objects: bool = True,
    with_mask: bool = False,
) -> Trainer:
    model = SupervisedModel(detector, CPU, with_mask=with_mask, bf16=False)
    model.train()

    def batches(start: int) -> Iterator[list[ViewSample]]:
        for step in range(start, steps):
            yield samples_of(process.world * step + process.rank, with_objects=with_objects)

    return Trainer(
        model,
        sgd(model, 0.05, 0.9, 1e-3),
        Schedule((steps,), (), 0.05),
        batches,
        images_per_step=2 * process.world,
        process=process,
        hooks=hooks,
    )


class Terms(Hook):
    """The names of the losses of every step."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []

    def after_step(self, trainer: Trainer, record: Record) -> None:
        self.names.append(list(record))


# --- the table


def test_second_stages_are_those_of_the_papers() -> None:
    columns = ("first", "trains", "keeps_classifier", "epochs", "milestones", "lr", "score_thresholds")
    columns += ("first_weight_decay", "first_augment", "first_proposals_factor")
    found = {
        name: tuple(getattr(method.second_stage, c) for c in columns)
        for name, method in METHODS.items()
        if method.second_stage
    }
    assert found == {
        "bags": ("ce", ("fc_cls",), False, 12, (8, 11), 0.01, (0.0, 0.001), *PLAIN_FIRST),
        "acsl": ("ce", ("fc_cls",), False, 12, (8, 11), 0.02, (0.0, 0.0), *PLAIN_FIRST),
        "loce": ("ce", LAST_LAYERS, True, 6, (3, 5), 0.02, (1e-4, 1e-4), *PLAIN_FIRST),
        "bacl": ("bce", LAST_LAYERS, True, 12, (8, 11), 0.02, (1e-4, 1e-4), 5e-5, "copy-paste", 2),
    }


def test_the_first_stage_prepares_the_mask_head_of_the_second() -> None:
    for name in ("loce", "bacl"):
        first = second_stage.first_method(get_method(name))
        assert first.mask_predictor == get_method(name).mask_predictor is not None
    first = second_stage.first_method(get_method("bags"))
    assert first == get_method("ce")


def test_schedules_are_the_papers_or_the_methods_own() -> None:
    settings = FinetuneSettings(epochs=6, milestones=(4,), lr=0.04)
    own = dataclasses.replace(settings, method_schedule="method")
    assert first_recipe(get_method("loce"), settings) == Recipe(6, (4,), 0.04)
    assert first_recipe(get_method("loce"), own) == Recipe(24, (16, 22), 0.04)
    assert first_recipe(get_method("bacl"), own) == Recipe(12, (8, 11), 0.04)
    stage = get_method("bags").second_stage
    assert stage is not None
    assert second_recipe(stage, SecondStageSettings()) == Recipe(12, (8, 11), 0.01)
    assert second_recipe(stage, SecondStageSettings(epochs=3)) == Recipe(3, (2, 3), 0.01)
    assert second_recipe(stage, SecondStageSettings(epochs=1)) == Recipe(1, (1, 1), 0.01)
    given = SecondStageSettings(epochs=5, milestones=(), lr=0.1)
    assert second_recipe(stage, given) == Recipe(5, (), 0.1)


def test_settings_of_the_second_stage_are_checked() -> None:
    read = build(SecondStageSettings, {"epochs": 2, "milestones": [1], "lr": "auto"}, "p")
    assert read == SecondStageSettings(epochs=2, milestones=(1,))
    for wrong in ({"epochs": 0}, {"milestones": 3}, {"lr": "small"}, {"score_threshold": 2}, {"epoch": 1}):
        with pytest.raises(UsageError):
            build(SecondStageSettings, wrong, "finetune.second_stage")


# --- what losses are told


def test_the_runs_seed_reaches_every_loss_that_draws() -> None:
    drawing = set()
    for name, method in METHODS.items():
        config = method.loss_config(CLASSES, COUNTS, seed=11)
        if "seed" in config:
            drawing.add(name)
            assert config["seed"] == 11 and method.bbox_head(CLASSES, COUNTS, 5)["loss_cls"]["seed"] == 5
    assert drawing >= {"droploss", "bags", "acsl"}
    head: Any = build_model({**tiny_config("bags")}, seed=0).roi_head
    assert head.bbox_head.loss_cls.draws.seed == 0


@pytest.mark.parametrize(("epochs", "start"), [(None, 17), (24, 17), (12, 9), (6, 5), (4, 3), (2, 2), (1, 1)])
def test_pcb_starts_at_the_same_share_of_the_run(epochs: int | None, start: int) -> None:
    """16 of 24 epochs before it; never so late that it does not happen."""
    assert get_method("pcb").loss_config(CLASSES, COUNTS, epochs=epochs)["start_epoch"] == start
    assert "start_epoch" not in get_method("ce").loss_config(CLASSES, COUNTS, epochs=epochs)


class EpochsTold(Hook):
    """Which epoch the loss was told, beside each step's own."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def before_train(self, trainer: Trainer) -> None:
        self.seen.append((trainer.schedule.epoch_of(trainer.step), self._told(trainer)))

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if trainer.step < trainer.schedule.total:
            self.before_train(trainer)

    def _told(self, trainer: Trainer) -> int:
        return int(trainer.model.model.detector.roi_head.bbox_head.loss_cls.epoch)  # type: ignore[union-attr]


def test_the_loss_knows_the_epoch_of_every_step_also_when_continued() -> None:
    def trainer(told: EpochsTold) -> Trainer:
        made = trainer_of(tiny_detector("pcb"), Process(0, 1, CPU), 4, LossEpoch(), told)
        made.schedule = Schedule((1, 2, 1), (), 0.01)
        return made

    first, second = EpochsTold(), EpochsTold()
    whole = trainer(first)
    whole.train()
    assert first.seen == [(0, 1), (1, 2), (1, 2), (2, 3)]
    continued = trainer(second)
    continued.step = 2
    continued.train()
    assert second.seen == [(1, 2), (2, 3)]
    plain = trainer_of(tiny_detector("ce"), Process(0, 1, CPU), 1, LossEpoch())
    plain.train()
    assert not hasattr(plain.model.model.detector.roi_head.bbox_head.loss_cls, "epoch")  # type: ignore[union-attr]


# --- freezing


def state_of(detector: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


@pytest.mark.parametrize("method", ["bags", "acsl", "loce", "bacl"])
def test_only_what_shall_train_moves(method: str) -> None:
    """Batch norm, masks: everything else stays to the bit, its statistics too."""
    detector = tiny_detector(method, norm="frozen-bn", type="mask-rcnn")
    stage = get_method(method).second_stage
    assert stage is not None
    second_stage.freeze_all_but(detector, stage.trains)
    trainer = trainer_of(detector, Process(0, 1, CPU), 2, with_mask=True)
    before = state_of(detector)
    assert any("running_mean" in name for name in before)
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    wanted = {n for n, _ in detector.named_parameters() if any(part in n for part in stage.trains)}
    assert optimized == {id(p) for n, p in detector.named_parameters() if n in wanted} and wanted
    trainer.train()
    moved = {n for n, value in detector.state_dict().items() if not torch.equal(value, before[n])}
    assert {n for n in moved if ".loss_cls." not in n} <= wanted
    layers = {".".join(n.split(".")[:3]) for n in moved & wanted}
    assert "roi_head.bbox_head.fc_cls" in layers
    if stage.trains == LAST_LAYERS:
        assert layers >= {"roi_head.bbox_head.fc_reg", "rpn_head.rpn_cls.weight", "roi_head.mask_head.convs"}
    assert before.keys() == detector.state_dict().keys()


def test_what_trains_is_counted_module_by_module() -> None:
    detector = tiny_detector("bags", norm="frozen-bn")
    second_stage.freeze_all_but(detector, ("fc_cls",))
    found = second_stage.trained_parts(detector)
    columns = CLASSES + 1 + 5
    assert found.trained == {"roi_head.bbox_head.fc_cls": columns * 33}
    assert sum(found.frozen.values()) == sum(p.numel() for p in detector.parameters()) - columns * 33
    assert {"backbone.stem", "backbone.layer4", "neck", "rpn_head", "roi_head.bbox_head.fc_reg"} <= set(
        found.frozen
    )
    assert found.frozen["roi_head.bbox_head.shared_fcs"] == 32 * (32 * 49 + 1) + 32 * 33
    sentence = found.sentence()
    assert sentence.startswith("trains roi_head.bbox_head.fc_cls (330) parameters; frozen: backbone.stem")
    assert "roi_head.bbox_head.shared_fcs (51,264)" in sentence


def test_freezing_thaws_nothing() -> None:
    layers = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    layers["a"].requires_grad_(False)
    second_stage.freeze_all_but(layers, ("a", "b.bias"))
    assert [n for n, p in layers.named_parameters() if p.requires_grad] == ["b.bias"]


# --- the loss in every step


def test_the_loss_of_no_roi_at_all() -> None:
    """mmdet leaves its terms out; here they are there, zero, before those of the boxes."""
    for method, terms in (("ce", ["loss_cls"]), ("seesaw", ["loss_cls_objectness", "loss_cls_classes"])):
        stock, ours = build_model(tiny_config(method), seed=1), tiny_detector(method)
        empty: tuple[Any, ...] = (
            torch.zeros(0, dtype=torch.int64),
            *(torch.zeros(s) for s in ((0,), (0, 4), (0, 4))),
        )
        features = torch.zeros(0, 32, 7, 7)
        losses = []
        for model in (stock, ours):
            head: Any = model.roi_head.bbox_head  # type: ignore[union-attr]
            losses.append(head.loss(*head(features), torch.zeros(0, 5), *empty))
        assert list(losses[0]) == ["loss_bbox"]
        assert sorted(list(losses[1])[:-1]) == sorted(terms) and list(losses[1])[-1] == "loss_bbox"
        assert all(value.sum() == 0 for value in losses[1].values())


def test_the_heads_are_the_same_but_for_that() -> None:
    stock, ours = build_model(tiny_config("ecm"), seed=1), tiny_detector("ecm")
    assert type(stock.roi_head.bbox_head) is not type(ours.roi_head.bbox_head)  # type: ignore[union-attr]
    assert stock.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in stock.state_dict().items())
    terms = []
    for detector in (stock, ours):
        model = SupervisedModel(detector, CPU, with_mask=False, bf16=False).train()
        terms.append({name: float(value.detach()) for name, value in model(samples_of(0)).items()})
    assert terms[0] == terms[1]
    other = tiny_config("ce")
    other["roi_head"]["bbox_head"]["type"] = "Shared4Conv1FCBBoxHead"
    assert training_config(other) == other


def drained_head(detector: nn.Module) -> nn.Module:
    """Its RPN proposes nothing: no box is as wide as it asks for."""
    detector.train_cfg.rpn_proposal.min_bbox_size = 10_000  # type: ignore[union-attr]
    return detector


def train_in_a_process(rank: int, world: int) -> dict[str, Any]:
    """Frozen BAGS on both; EQLv2, LOCE and PCB where the second process has no RoI in any step."""
    process = Process(rank, world, CPU)
    detector = tiny_detector("bags", norm="frozen-bn", type="mask-rcnn")
    second_stage.freeze_all_but(detector, ("fc_cls",))
    before = state_of(detector)
    trainer_of(detector, process, 2, with_mask=True).train()
    results: dict[str, Any] = {"bags": (before, state_of(detector))}
    for method in ("eqlv2", "seesaw", "pcb"):
        detector = tiny_detector(method)
        if rank == 1:
            drained_head(detector)
        terms = Terms()
        trainer_of(detector, process, 2, terms, with_objects=rank == 0).train()
        results[method] = (terms.names, state_of(detector))
    return results


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes brought back."""
    return together(2, train_in_a_process, tmp_path_factory.mktemp("pair"))


def test_frozen_parts_do_not_hang_two_processes(pair: list[dict[str, Any]]) -> None:
    (before, first), (_, second) = (results["bags"] for results in pair)
    for name, value in first.items():
        if ".fc_cls." in name:
            assert torch.equal(value, second[name]) and not torch.equal(value, before[name])
        elif ".loss_cls." not in name:
            assert torch.equal(value, before[name]) and torch.equal(second[name], before[name]), name


@pytest.mark.parametrize("method", ["eqlv2", "seesaw", "pcb"])
def test_a_process_without_any_roi_does_not_hang_the_other(pair: list[dict[str, Any]], method: str) -> None:
    (names, first), (others, second) = (results[method] for results in pair)
    assert names == others and len(names) == 2 and any(n.startswith("cls") for n in names[0])
    assert all(torch.equal(value, second[name]) for name, value in first.items())  # the running state too
    state = {"eqlv2": "pos_grad", "seesaw": "cum_samples", "pcb": "num_inst_cnt"}[method]
    assert first[f"roi_head.bbox_head.loss_cls.{state}"].sum() > 0


# --- the first stage's detector


def first_file(folder: Path, detector: nn.Module, classes: list[str], **meta: Any) -> Path:
    path = folder / "first.pth"
    content = {"state_dict": detector.state_dict(), "meta": {"dataset_meta": {"classes": classes}, **meta}}
    torch.save(content, path)
    return path


def test_other_classes_are_refused_with_both_numbers(tmp_path: Path) -> None:
    path = first_file(tmp_path, nn.Linear(1, 1), ["a", "b", "c"])
    first = second_stage.read_first(path)
    second_stage.refuse_other_classes(path, first, ["a", "b", "c"])
    with pytest.raises(MismatchedInput, match=r"names 3 categories, the annotations 2$") as refused:
        second_stage.refuse_other_classes(path, first, ["a", "b"])
    assert refused.value.exit_code == 3 and "same categories" in refused.value.hint
    with pytest.raises(MismatchedInput, match="3 categories, the annotations 3: 'b' where they have 'x'"):
        second_stage.refuse_other_classes(path, first, ["a", "x", "c"])
    with pytest.raises(MismatchedInput, match="names 0 categories"):
        second_stage.refuse_other_classes(path, {"state_dict": {}, "meta": None}, ["a"])


def test_a_kept_classifier_of_another_width_is_refused_with_both_numbers(tmp_path: Path) -> None:
    first = {"state_dict": tiny_detector("seesaw").state_dict()}
    loce = tiny_detector("loce")
    with pytest.raises(MismatchedInput, match="has 6 columns, but 5 are to be trained on") as refused:
        second_stage.refuse_other_width(tmp_path / "x.pth", first, loce)
    assert refused.value.exit_code == 3
    second_stage.refuse_other_width(tmp_path / "x.pth", {"state_dict": loce.state_dict()}, loce)


def test_a_kept_classifier_of_another_kind_is_refused(tmp_path: Path) -> None:
    """Cosines read as products: the same shape, other numbers."""
    loce, path = get_method("loce"), tmp_path / "x.pth"
    for meta in ({"classifier": "ce", "cls_predictor": "NormedLinear"}, {"classifier": "ecm"}):
        with pytest.raises(
            MismatchedInput, match="is a NormedLinear, but loce goes on with a Linear"
        ) as refused:
            second_stage.refuse_other_kind(path, {"meta": meta}, loce)
        assert "classifier: normed" in refused.value.hint
    normed = method_of(FinetuneRun("loce", classifier="normed"))
    second_stage.refuse_other_kind(path, {"meta": {"classifier": "ecm"}}, normed)
    with pytest.raises(MismatchedInput, match="is a Linear, but loce goes on with a NormedLinear"):
        second_stage.refuse_other_kind(path, {"meta": {"classifier": "ce"}}, normed)
    for plain in ({}, {"classifier": "ce"}, {"classifier": "softmax"}):
        second_stage.refuse_other_kind(path, {"meta": plain}, loce)


def test_a_pre_trained_detector_is_no_first_stage(tmp_path: Path) -> None:
    path = first_file(tmp_path, nn.Linear(1, 1), ["a"], stage="pretrain", classifier="softmax")
    with pytest.raises(MismatchedInput, match=r"first\.pth is of the pretrain stage") as refused:
        second_stage.read_first(path)
    assert f"init: {path}, stage1: train" in refused.value.hint and refused.value.exit_code == 3


def test_what_is_no_detector_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"nowhere\.pth does not exist") as refused:
        second_stage.read_first(tmp_path / "nowhere.pth")
    assert "--method ce" in refused.value.hint
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(MismatchedInput, match="is no detector"):
        second_stage.read_first(tmp_path / "resnet.pth")
    (tmp_path / "text.pth").write_text("nothing")
    with pytest.raises(InputError):
        second_stage.read_first(tmp_path / "text.pth")


def test_parts_of_another_kind_are_renewed_and_said() -> None:
    plain, normed = {"meta": {"mask_predictor": "Conv"}}, {"meta": {"mask_predictor": "NormedConv2d"}}
    bags, loce = get_method("bags"), get_method("loce")
    assert set(second_stage.parts_to_renew(bags, plain)) == {last_layers.CLASSIFIER}
    assert set(second_stage.parts_to_renew(bags, {})) == {last_layers.CLASSIFIER}
    assert set(second_stage.parts_to_renew(bags, normed)) == {
        last_layers.CLASSIFIER,
        last_layers.MASK_PREDICTOR,
    }
    assert second_stage.parts_to_renew(loce, normed) == {}
    renewed = second_stage.parts_to_renew(loce, plain)
    assert renewed == {last_layers.MASK_PREDICTOR: "NormedConv2d and not the Conv of stage 1"}


def test_frozen_parts_must_come_from_the_first_stage(tmp_path: Path) -> None:
    detector = tiny_detector("bags", type="mask-rcnn")
    second_stage.freeze_all_but(detector, ("fc_cls",))
    new = {"roi_head.bbox_head.fc_cls": "new", "roi_head.bbox_head.loss_cls": "empty"}
    second_stage.refuse_frozen_but_new(tmp_path, LoadReport("x", {}, new), detector)
    report = LoadReport("x", {}, {**new, "roi_head.mask_head": "the file lacks it"})
    with pytest.raises(MismatchedInput, match=r"roi_head.mask_head \(the file lacks it\), which would stay"):
        second_stage.refuse_frozen_but_new(tmp_path, report, detector)


def test_a_classifier_that_was_trained_in_another_way_is_remarked_on() -> None:
    remarks = {
        (name, of): second_stage.remark_on_classifier(get_method(name), {"meta": {"classifier": of}})
        for name in ("bags", "loce", "bacl", "ce")
        for of in ("ce", "rfs", "bce", "ecm", "softmax")
    }
    assert {key for key, remark in remarks.items() if remark} == {
        ("loce", "bce"),
        ("loce", "ecm"),
        ("bacl", "ce"),
        ("bacl", "rfs"),
        ("bacl", "ecm"),
    }
    assert remarks["bacl", "ce"] == "stage 1 was trained with ce; bacl keeps its classifier, meant for bce"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (FinetuneRun("ce", stage1="x.pth"), "ce has one stage"),
        (FinetuneRun("bags", stage1="x.pth", init="none"), "is where stage 1 starts"),
        (FinetuneRun("bags", stage1="x.pth", match_pretrain_draws=True), "makes stage 1 longer"),
    ],
)
def test_contradictions_are_usage_errors(run: FinetuneRun, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        second_stage.refuse_contradictions(run)
    with pytest.raises(UsageError, match=message):
        command.chosen_runs(FinetuneSettings(runs={"mine": run}), None, None, "faster-rcnn")


# --- the command


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project with samples and stats, and runs of two stages."""
    folder = tmp_path_factory.mktemp("stages")
    runs: dict[str, Any] = {name: {"method": name, "init": "none"} for name in ("ce", "bags", "loce", "pcb")}
    runs |= {
        name: {"method": name, "stage1": "artifacts/finetune/ce/detector.pth"} for name in ("acsl", "bacl")
    }
    runs["control"] = {"method": "bags", "init": "none", "match_pretrain_draws": True}
    runs["both"] = {**runs["acsl"], "match_pretrain_draws": True}
    settings = {**TINY["finetune"], "lr": 0.03, "runs": runs, "second_stage": {"epochs": 2}}  # type: ignore[dict-item]
    write_params(folder, finetune=settings)
    return folder


@pytest.fixture
def tdrcl(project: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command line in the project, after `sample` and `stats`."""
    monkeypatch.chdir(project)
    for stage in ("sample", "stats"):
        if not (project / "artifacts" / stage).is_dir():
            assert cli(stage).code == 0
    return cli


def made(folder: Path, run: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Manifest and history."""
    place = folder / "artifacts/finetune" / run
    lines = (place / "history.jsonl").read_text().splitlines()
    return json.loads((place / "manifest.json").read_text()), [json.loads(line) for line in lines]


def state(folder: Path, run: str) -> dict[str, Tensor]:
    path = folder / "artifacts/finetune" / run / "detector.pth"
    return dict(torch.load(path, weights_only=True)["state_dict"])


def test_one_command_trains_both_stages(project: Path, tdrcl: Callable[..., Any]) -> None:
    answer = tdrcl("finetune", "--run", "bags")
    assert answer.code == 0, answer.err
    for line in (
        "finetune bags, stage 1 (ce): nothing was loaded",
        "finetune bags, stage 2 (bags): from stage-1.pth: loaded",
        "roi_head.bbox_head.fc_cls (bags trains a new classifier)",
        "finetune bags, stage 2 (bags): trains roi_head.bbox_head.fc_cls (330) parameters; frozen: backbone",
    ):
        assert line in answer.err
    place = project / "artifacts/finetune/bags"
    assert {p.name for p in place.iterdir()} - {"manifest.json", "timing.json", "figures"} == {
        "detector.pth",
        "config.py",
        "history.jsonl",
    }
    assert not list((project / "artifacts/.work/finetune").iterdir())
    manifest, history = made(project, "bags")
    first, second = manifest["stages"]
    assert (first["method"], first["epochs"]) == ("ce", 1) and (second["method"], second["epochs"]) == (
        "bags",
        2,
    )
    assert manifest["images_drawn"] == first["images_drawn"] + second["images_drawn"] == 4 * len(history)
    assert [h["step"] for h in history] == list(range(first["steps"] + second["steps"]))
    assert [h["images"] for h in history] == [4 * (h["step"] + 1) for h in history]
    assert sorted({h["epoch"] for h in history}) == [0, 1, 2]
    rates = {h["epoch"]: h["lr"] for h in history}
    assert (
        rates[0] == pytest.approx(0.03)
        and rates[1] == pytest.approx(0.01)
        and rates[2] == pytest.approx(0.001)
    )  # milestones (1, 2) of 2 epochs
    detector, names, _ = load_published(place / "detector.pth")
    assert len(names) == CLASSES and detector.test_cfg.rcnn.score_thr == 0.0  # type: ignore[union-attr]
    loss: Any = detector.roi_head.bbox_head.loss_cls  # type: ignore[union-attr]
    assert loss.draws.seed == TINY["seed"] and loss.draws.step == second["steps"]
    assert len(state(project, "bags")["roi_head.bbox_head.fc_cls.weight"]) == CLASSES + 1 + 5
    assert "up to date" in tdrcl("finetune", "--run", "bags").err


def test_one_first_stage_serves_several_methods(project: Path, tdrcl: Callable[..., Any]) -> None:
    assert tdrcl("finetune", "--run", "ce").code == 0
    plain = state(project, "ce")
    for run in ("acsl", "bacl"):
        answer = tdrcl("finetune", "--run", run)
        assert answer.code == 0, answer.err
        manifest, history = made(project, run)
        assert "stages" not in manifest and set(manifest["inputs"]) == {"annotations", "stats", "stage1"}
        assert manifest["images_drawn"] == 4 * len(history) == 32
        assert manifest["images_drawn_with_init"] == 32 + 16
        found = state(project, run)
        moved = {n for n, value in plain.items() if not torch.equal(value, found[n])}
        patterns = METHODS[run].second_stage.trains  # type: ignore[union-attr]
        assert moved == {n for n in plain if any(part in n for part in patterns)}
    assert "bacl keeps its classifier, meant for bce" in answer.err
    # what is published knows its whole history, so that a third run counts right
    meta = torch.load(project / "artifacts/finetune/acsl/detector.pth", weights_only=True)["meta"]
    assert meta["images_drawn_with_init"] == 48 and meta["classifier"] == "acsl"
    assert drawn_by(project / "artifacts/finetune/acsl/detector.pth") == 48 and drawn_by(None) == 0


def test_stages_trained_apart_equal_those_of_one_command(project: Path, tdrcl: Callable[..., Any]) -> None:
    runs = {"apart": {"method": "bags", "stage1": "artifacts/finetune/ce/detector.pth"}}
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["finetune"]["runs"] = runs
    (project / "apart.yaml").write_text(yaml.safe_dump(content))
    for arguments in (("--run", "ce"), ("--run", "bags"), ("--run", "apart", "--params", "apart.yaml")):
        assert tdrcl("finetune", *arguments).code == 0
    one, apart = state(project, "bags"), state(project, "apart")
    assert one.keys() == apart.keys() and all(torch.equal(one[n], apart[n]) for n in one)
    whole, second = made(project, "bags")[1], made(project, "apart")[1]
    shifted = [
        {**h, "step": h["step"] + 4, "epoch": h["epoch"] + 1, "images": h["images"] + 16} for h in second
    ]
    assert whole[4:] == shifted


def test_what_the_plan_tells_the_loss_and_the_sampler(project: Path, tdrcl: Callable[..., Any]) -> None:
    def plan(method: str, **changes: Any) -> FinetunePlan:
        settings = FinetuneSettings(batch_size=4, **changes)
        made = project / "artifacts/sample"
        paths = (made / "train_lvis.json", made / "train", project / "artifacts/stats/default", project / "w")
        return FinetunePlan(FinetuneJob(*paths, 9, FinetuneRun(method), finetune=settings))

    def loss(plan: FinetunePlan) -> dict[str, Any]:
        return dict(plan.model_config()["roi_head"]["bbox_head"]["loss_cls"])

    assert loss(plan("droploss", epochs=3))["seed"] == 9
    assert loss(plan("pcb", epochs=6))["start_epoch"] == 5
    own = plan("pcb", epochs=6, method_schedule="method")
    assert own.schedule.milestones == (16, 22) and loss(own)["start_epoch"] == 17 and own.epochs == 24
    assert own.second_stage is None and own.method is own.asked
    second = FinetunePlan(dataclasses.replace(plan("bags").job, stage="second"))
    assert second.model_config()["train_cfg"]["rpn_proposal"]["max_per_img"] == 2000
    assert second.model_config()["test_cfg"]["rpn"]["max_per_img"] == 1000
    first = FinetunePlan(dataclasses.replace(plan("bacl").job, stage="first"))
    assert first.model_config()["train_cfg"]["rpn_proposal"]["max_per_img"] == 2000
    assert (first.weight_decay, second.weight_decay) == (0.00005, 0.0001)
    assert plan("bacl", weight_decay=0.5).weight_decay == 0.5
    assert tdrcl("finetune", "--run", "pcb").code == 0
    assert state(project, "pcb")["roi_head.bbox_head.loss_cls._epoch"] == 1


def stop_when(path: Callable[[], bool]) -> threading.Thread:
    """Send this process SIGTERM once something is there."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while not path() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.fixture
def harmless_sigterm() -> Iterator[None]:
    """A signal that comes too late ends a test, not pytest."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("harmless_sigterm")
@pytest.mark.parametrize(("run", "stage"), [("bacl", "stage-1"), ("bacl", "stage-2"), ("loce", "stage-2")])
def test_stopped_in_either_stage_continues_there(
    project: Path, tdrcl: Callable[..., Any], run: str, stage: str
) -> None:
    """SIGTERM; the same command ends with the bytes of an undisturbed run.  BACL's first stage pastes."""
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["finetune"] |= {"epochs": 4, "second_stage": {"epochs": 4}}  # time to be stopped
    content["finetune"]["runs"] = {run: {"method": run, "init": "none"}}
    (project / "long.yaml").write_text(yaml.safe_dump(content))
    order = ("finetune", "--run", run, "--params", "long.yaml", "--out")
    undisturbed = f"whole-{run}"
    assert tdrcl(*order, f"artifacts/finetune/{undisturbed}").code == 0
    work = project / "artifacts/.work/finetune"
    thread = stop_when(lambda: bool(list(work.glob(f"*/{stage}/history.jsonl"))))
    name = f"stopped-{run}-{stage}"
    out = f"artifacts/finetune/{name}"
    stopped = tdrcl(*order, out)
    thread.join()
    assert stopped.code == 75, stopped.err
    kept = {p.name for p in next(work.iterdir()).iterdir()} - {"lock"}
    assert [p.parent.name for p in work.glob("*/*/checkpoints")] == [stage]  # the first one's are not needed
    assert kept == ({"stage-1"} if stage == "stage-1" else {"stage-1", "stage-1.pth", "stage-2"})
    answer = tdrcl(*order, out)
    assert answer.code == 0 and "continuing from step" in answer.err
    assert ("stage 1 is trained already" in answer.err) == (stage == "stage-2")
    mine, whole = state(project, name), state(project, undisturbed)
    assert all(torch.equal(mine[n], whole[n]) for n in whole)
    histories = [project / "artifacts/finetune" / each / "history.jsonl" for each in (name, undisturbed)]
    assert histories[0].read_bytes() == histories[1].read_bytes()


def test_extra_draws_of_a_control_go_to_the_first_stage(project: Path, tdrcl: Callable[..., Any]) -> None:
    pretrained = project / "artifacts/pretrain/default"
    pretrained.mkdir(parents=True, exist_ok=True)
    (pretrained / "manifest.json").write_text(json.dumps({"stage": "pretrain", "images_drawn": 40}))
    answer = tdrcl("finetune", "--run", "control", "--dry-run")
    plain = json.loads(tdrcl("finetune", "--run", "bags", "--dry-run").out)
    control = json.loads(answer.out)
    assert [s["images_drawn"] for s in plain["stages"]] == [16, 32]
    assert [s["images_drawn"] for s in control["stages"]] == [56, 32]
    assert control["images_drawn"] == plain["images_drawn"] + 40
    refused = tdrcl("finetune", "--run", "both")
    assert refused.code == 2 and "makes stage 1 longer" in refused.err


def test_first_stages_that_do_not_fit_are_refused(project: Path, tdrcl: Callable[..., Any]) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())

    def answer_to(method: str, detector: nn.Module, names: list[str]) -> Any:
        path = first_file(project, detector, names)
        content["finetune"]["runs"] = {"wrong": {"method": method, "stage1": str(path)}}
        (project / "wrong.yaml").write_text(yaml.safe_dump(content))
        return tdrcl("finetune", "--run", "wrong", "--params", "wrong.yaml")

    coco = json.loads((project / "artifacts/sample/train_lvis.json").read_text())
    names = [c["name"] for c in sorted(coco["categories"], key=lambda c: c["id"])]
    other = answer_to("bags", tiny_detector("ce"), names[:3])
    assert other.code == 3 and "names 3 categories, the annotations 4" in other.err
    wide = answer_to("loce", tiny_detector("seesaw"), names)
    assert wide.code == 3 and "has 6 columns, but 5" in wide.err
    assert answer_to("bags", tiny_detector("seesaw"), names).code == 0  # its classifier is new anyway
    stats = yaml.safe_load((project / "params.yaml").read_text())
    other_split = project / "artifacts/sample/val_lvis.json"
    stats["data"] = {"train": {"annotations": str(other_split), "images": "artifacts/sample/val"}}
    (project / "other.yaml").write_text(yaml.safe_dump(stats))
    mismatch = tdrcl("finetune", "--method", "ecm", "--params", "other.yaml", "--out", "other")
    assert mismatch.code == 3 and not (project / "other").exists()
    dense = answer_to("bacl", build_model(tiny_config_of_atss(), 0), names)
    assert dense.code == 3 and "is of another detector" in dense.err and "detector.type" in dense.err
    reversed_ = answer_to("bacl", tiny_detector("ce"), names[::-1])
    assert reversed_.code == 3 and f"{names[-1]!r} where they have {names[0]!r}" in reversed_.err
    single = answer_to("ecm", tiny_detector("ce"), names)
    assert single.code == 2 and "ecm has one stage" in single.err
    init = tdrcl("finetune", "--run", "acsl", "--init", "somewhere.pth")
    assert init.code == 2 and "is where stage 1 starts" in init.err


@pytest.mark.parametrize("method", ["ecm", "eqlv2"])
def test_divergence_ends_with_5_and_publishes_nothing(
    project: Path, tdrcl: Callable[..., Any], method: str
) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["finetune"] |= {"lr": 1e9, "clip_norm": None, "warmup_steps": 0}
    content["finetune"]["runs"] = {"hot": {"method": method, "init": "none"}}
    (project / "hot.yaml").write_text(yaml.safe_dump(content))
    answer = tdrcl("finetune", "--run", "hot", "--params", "hot.yaml")
    assert answer.code == 5 and "learning rate" in answer.err
    assert not (project / "artifacts/finetune/hot").exists()


def test_a_threshold_of_lvis_on_a_small_data_set_is_warned_of(
    project: Path, tdrcl: Callable[..., Any]
) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    loud, quiet = {"lambda_": 0.0011}, {"lambda_": 0.9}
    content["finetune"]["runs"] = {
        "loud": {"method": "eql", "init": "none", "loss": loud},
        "quiet": {"method": "droploss", "init": "none", "loss": quiet},
    }
    (project / "few.yaml").write_text(yaml.safe_dump(content))
    said = [
        tdrcl("finetune", "--run", run, "--params", "few.yaml", "--dry-run").err for run in ("loud", "quiet")
    ]
    assert "eql: every category is in at least lambda_ = 0.0011" in said[0] and "lambda_" not in said[1]


def test_correcting_twice_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any sampler goes with any loss, but a loss that knows frequencies needs no sampler that does."""
    monkeypatch.setattr(FinetunePlan, "sampler", type("Sampler", (), {"all_ones": False})())
    monkeypatch.setattr(FinetunePlan, "_own_schedule", Schedule((1,), (), 0.1, 0))  # there are no data

    def warned(method: str, sampler: str) -> bool:
        job = FinetuneJob(
            tmp_path, tmp_path, tmp_path, tmp_path, 0, FinetuneRun(method, sampler=sampler),  # type: ignore[arg-type]
            detector=DetectorSettings(METHODS[method].detectors[0], norm="gn"),
        )  # fmt: skip
        return any("again: its authors" in line for line in FinetunePlan(job).warnings())

    twice = {(m, s) for m in METHODS for s in ("method", "random", "rfs", "irfs", "drb") if warned(m, s)}
    losses = {"eql", "eqlv2", "droploss", "bags", "acsl", "loce", "bacl", "pcb"}
    reported = {("droploss", "rfs"), ("pcb", "rfs")}  # their authors have configurations for these
    assert twice == {(m, s) for m in losses for s in ("rfs", "irfs", "drb")} - reported
