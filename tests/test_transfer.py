"""What of a pre-trained detector a fine-tuning starts from, module by module."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, write_params

from pipeline.data.annotations import read_annotations
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.errors import SettingsError, UsageError
from pipeline.finetune.plan import FinetuneJob, FinetunePlan
from pipeline.finetune.second_stage import refuse_contradictions
from pipeline.finetune.settings import FinetuneRun, FinetuneSettings
from pipeline.finetune.training import build_detector, drawn_by
from pipeline.settings import build

MODULES = {"backbone": "backbone.", "neck": "neck.", "rpn": "rpn_head.", "roi": "roi_head."}


@pytest.fixture
def plan_of(tmp_path, cli, monkeypatch):
    """transfer -> the plan of a run that starts from a detector of other weights, and these weights."""
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    assert cli("sample").code == 0 and cli("stats").code == 0
    split = Path("artifacts/sample/train_lvis.json")
    names = read_annotations(split).category_names
    settings = build(DetectorSettings, TINY["detector"], "detector")
    weights = build_model(model_config(settings, len(names)), seed=99).state_dict()
    torch.save({"state_dict": weights, "meta": {"dataset_meta": {"classes": list(names)}}}, "start.pth")

    def make(transfer, method="ce"):
        job = FinetuneJob(
            annotations=split,
            images=Path("artifacts/sample/train"),
            stats=Path("artifacts/stats/default"),
            work=tmp_path / "work",
            seed=3,
            run=FinetuneRun(method, transfer=transfer),
            detector=settings,
            finetune=FinetuneSettings(epochs=1, batch_size=4),
            init="start.pth",
        )
        return FinetunePlan(job)

    return make, weights


def test_what_is_chosen_comes_from_the_file_and_the_rest_is_new(plan_of):
    make, weights = plan_of
    for transfer in (("all",), ("backbone",), ("backbone", "neck"), ("neck", "roi"), ("rpn",)):
        detector, report = build_detector(make(transfer))
        wanted = set(MODULES) if transfer == ("all",) else set(transfer)
        for name, tensor in detector.state_dict().items():
            module = next(m for m, prefix in MODULES.items() if name.startswith(prefix))
            if module not in wanted:
                assert any(name.startswith(part + ".") for part in report.new), name
            if module in wanted or not tensor.is_floating_point():
                torch.testing.assert_close(tensor, weights[name], msg=name)
        drawn = [n for n in weights if n.endswith("weight") and weights[n].dim() > 1]
        for module, prefix in MODULES.items():
            equal = [torch.equal(detector.state_dict()[n], weights[n]) for n in drawn if n.startswith(prefix)]
            assert all(equal) if module in wanted else not any(equal), (transfer, module)
        sentence = report.sentence()
        for module in set(MODULES) - wanted:
            part = MODULES[module].rstrip(".")
            assert f"{part} (transfer: {', '.join(transfer)})" in sentence
        assert all(f"{p}" in sentence.split(";")[0] for p in (MODULES[m].rstrip(".") for m in wanted))


def test_a_methods_own_classifier_stays_new_as_well(plan_of):
    make, _ = plan_of
    _, report = build_detector(make(("backbone", "roi"), method="seesaw"))
    assert set(report.new) >= {"neck", "rpn_head", "roi_head.bbox_head.fc_cls"}
    assert not any(part in ("backbone", "roi_head", "roi_head.bbox_head") for part in report.new)


def rewritten(**meta):
    """start.pth as a run would have left it."""
    content = torch.load("start.pth", weights_only=True)
    content["meta"] |= meta
    return content


def test_what_only_pcb_has_stays_behind_and_is_said(plan_of):
    make, weights = plan_of
    head = {f"roi_head.{name}_mlp.0.weight": torch.full((2, 2), 0.5) for name in ("class", "box")}
    content = rewritten(classifier="pcb")
    content["state_dict"] |= head
    torch.save(content, "start.pth")
    detector, report = build_detector(make(("all",)))
    assert (
        report.left_behind == "roi_head.class_mlp (only pcb has them); roi_head.box_mlp (only pcb has them)"
    )
    assert report.new == {"roi_head.bbox_head.fc_cls": "ce classifies in another way than pcb"}
    assert torch.equal(detector.state_dict()["backbone.conv1.weight"], weights["backbone.conv1.weight"])


def test_pcb_goes_on_with_its_own_layers(plan_of):
    make, _ = plan_of
    whole, _ = build_detector(make(("all",), method="pcb"))
    state = whole.state_dict()
    state["roi_head.class_mlp.0.weight"].fill_(0.5)
    torch.save(rewritten(classifier="pcb") | {"state_dict": state}, "start.pth")
    detector, report = build_detector(make(("all",), method="pcb"))
    assert (detector.state_dict()["roi_head.class_mlp.0.weight"] == 0.5).all()
    assert set(report.new) == {"roi_head.bbox_head.loss_cls"} and not report.left_behind


def test_detectron2s_pickle_starts_a_fine_tuning(plan_of):
    make, weights = plan_of
    stem = weights["backbone.conv1.weight"]
    norm = {
        kind: np.full(len(stem), 2.0, np.float32)
        for kind in ("weight", "bias", "running_mean", "running_var")
    }
    named = {"stem.conv1.weight": stem.numpy() + 1} | {f"stem.conv1.norm.{k}": v for k, v in norm.items()}
    Path("r18.pkl").write_bytes(pickle.dumps({"model": named, "__author__": "torchvision"}, protocol=2))
    plan = make(("all",))
    stages = tuple(f"layer{i}" for i in (1, 2, 3, 4))
    settings = dataclasses.replace(plan.job.finetune, allow_partial=stages)
    frozen = dataclasses.replace(plan.job.detector, norm="frozen-bn")
    job = dataclasses.replace(plan.job, init="r18.pkl", finetune=settings, detector=frozen)
    detector, report = build_detector(FinetunePlan(job))
    assert set(report.loaded) == {"backbone.stem"}
    assert torch.equal(detector.state_dict()["backbone.conv1.weight"], stem + 1)
    assert drawn_by(Path("r18.pkl")) == 0


@pytest.mark.parametrize("transfer", [[], ["all", "neck"], ["head"], "backbone"])
def test_choices_that_mean_nothing_are_refused(transfer):
    with pytest.raises(SettingsError, match="transfer"):
        build(FinetuneRun, {"method": "ce", "transfer": transfer}, "finetune.runs.ce")


def test_a_first_stage_that_is_trained_already_is_taken_whole():
    with pytest.raises(UsageError, match="transfer: backbone"):
        refuse_contradictions(FinetuneRun("bags", transfer=("backbone",), stage1="detector.pth"))
