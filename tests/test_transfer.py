"""What of a pre-trained detector a fine-tuning starts from, module by module."""

from pathlib import Path

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
from pipeline.finetune.training import build_detector
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


@pytest.mark.parametrize("transfer", [[], ["all", "neck"], ["head"], "backbone"])
def test_choices_that_mean_nothing_are_refused(transfer):
    with pytest.raises(SettingsError, match="transfer"):
        build(FinetuneRun, {"method": "ce", "transfer": transfer}, "finetune.runs.ce")


def test_a_first_stage_that_is_trained_already_is_taken_whole():
    with pytest.raises(UsageError, match="transfer: backbone"):
        refuse_contradictions(FinetuneRun("bags", transfer=("backbone",), stage1="detector.pth"))
