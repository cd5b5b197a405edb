"""2DRCL around a real ATSS: what each term reaches, the RoI branch that LCL needs, and what of it stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_atss
import torch
from conftest import TINY, write_params
from syncs import Syncs
from tiny_atss import CANVAS_WH, detector
from tiny_pretraining import batch_of
from torch import Tensor
from toy_detector import tiny_settings

from pipeline.data.annotations import read_annotations
from pipeline.detectors.inference import detect, detect_batches
from pipeline.detectors.one_stage import OneStageModel, RoIBranch, in_parts
from pipeline.detectors.publish import load_published
from pipeline.detectors.two_stage import Encoder
from pipeline.engine.determinism import seeded
from pipeline.engine.distributed import Process
from pipeline.errors import UsageError
from pipeline.finetune.plan import FinetuneJob, FinetunePlan
from pipeline.finetune.settings import FinetuneRun, FinetuneSettings
from pipeline.finetune.training import build_trainer as build_finetuning
from pipeline.finetune.training import publish as publish_finetuned
from pipeline.pretrain.model import TwoDRCL
from pipeline.pretrain.objective import TERMS
from pipeline.pretrain.settings import PretrainSettings
from pipeline.pretrain.training import PretrainJob, PretrainPlan
from pipeline.pretrain.training import build_trainer as build_pretraining
from pipeline.pretrain.training import publish as publish_pretrained
from pipeline.settings import build
from stages import finetune as command

CPU = torch.device("cpu")
HEAD = "detector.detector.bbox_head."
MODULES = {
    "backbone": "detector.detector.backbone.",
    "neck": "detector.detector.neck.",
    "classes": HEAD + "atss_cls.",
    "boxes": HEAD + "atss_reg.",
    "centerness": HEAD + "atss_centerness.",
    "branch": "detector.roi_branch.",
    "holistic": ("holistic.projector.", "holistic.predictor."),
    "local": ("local.projector.", "local.predictor."),
    "generator": "generator.",
}
REACHES = {
    "hcl": {"backbone", "holistic"},
    "lcl": {"backbone", "neck", "branch", "local"},
    "ar": {"backbone", "generator"},
    "sr": {"backbone", "generator"},
    "det": {"backbone", "neck", "classes", "boxes", "centerness"},
}


def branch(**changes: Any) -> RoIBranch:
    with seeded(0):
        return RoIBranch(tiny_atss.settings(**changes))


def model_of(*terms: str, precision: str = "fp32") -> TwoDRCL:
    parts = OneStageModel(detector(), branch() if "lcl" in terms else None)
    with seeded(0):
        return TwoDRCL(parts, tiny_settings(terms=terms, precision=precision), (8, 16), lambda b: b).train()


def two_steps(model: TwoDRCL) -> dict[str, Tensor]:
    """Gradients of the second step: in the first one the queues are empty, and the contrasts zero."""
    model(batch_of(0))
    model.after_step()
    losses: dict[str, Tensor] = model(batch_of(1))
    losses["loss"].backward()
    model.after_step()
    return losses


@pytest.mark.parametrize(
    "terms", [("hcl", "lcl"), ("ar",), ("sr",), ("hcl", "lcl", "ar", "sr")], ids="+".join
)
def test_no_term_of_ours_makes_the_host_wait(terms: tuple[str, ...]) -> None:
    model = model_of(*terms)
    with Syncs() as syncs:
        two_steps(model)
    assert syncs.found == []


@pytest.mark.parametrize("term", TERMS)
def test_which_term_reaches_which_module(term: str) -> None:
    model = model_of(term)
    two_steps(model)
    reached = set()
    for module, prefix in MODULES.items():
        grads = [p.grad for n, p in model.named_parameters() if n.startswith(prefix)]
        if any(g is not None and g.any() for g in grads):
            reached.add(module)
    assert reached == REACHES[term]


@pytest.mark.parametrize("terms", [*((t,) for t in TERMS), ("hcl", "det"), TERMS], ids="+".join)
def test_no_parameter_waits_for_a_gradient(terms: tuple[str, ...]) -> None:
    """It would stop a run on several processes; the momentum branch never gets one."""
    model = model_of(*terms)
    losses = two_steps(model)
    assert set(losses) & {"loss", *TERMS} == {"loss", *terms} and all(v.isfinite() for v in losses.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert not (parameter.requires_grad and "key_" in name), name
    assert any("roi_branch" in n for n, _ in model.named_parameters()) == ("lcl" in terms)


def test_bf16_ends_where_the_heads_begin() -> None:
    model = model_of(*TERMS, precision="bf16")
    used = {}
    for part in ("backbone.conv1", "neck.fpn_convs.0.conv", "bbox_head.atss_cls", "bbox_head.atss_reg"):
        layer = model.detector.detector.get_submodule(part)
        layer.register_forward_hook(lambda m, x, out, part=part: used.update({part: out.dtype}))
    losses = two_steps(model)
    assert list(used.values()) == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert all(v.isfinite() and v.dtype == torch.float32 for v in losses.values())


def test_keys_come_from_the_momentum_branch_s_own_layers() -> None:
    def keys(change: str) -> Tensor:
        model = model_of("lcl")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(change):
                    parameter.mul_(1.5)
            model(batch_of(0))
            model.after_step()
        assert model.local is not None
        return model.local.queue.keys[:6].clone()

    before = keys("nothing")
    assert torch.equal(keys("detector.roi_branch."), before)
    assert not torch.allclose(keys("key_encoder.shared_fcs."), before)
    assert not torch.allclose(keys("key_encoder.neck."), before)


@pytest.mark.parametrize(("side", "level"), [(30, 0), (100, 0), (223, 0), (225, 1), (450, 2), (1000, 3)])
def test_levels_follow_the_rule_of_two_stage_detectors(side: int, level: int) -> None:
    """224 px is the smallest RoI of P4, as in mmdet's Faster R-CNN; what is smaller shares P3."""
    extractor: Any = branch(finest_scale=56).roi_extractor
    found = extractor.map_roi_levels(torch.tensor([[0.0, 0, 0, side, side]]), 5)
    assert found.tolist() == [level]
    assert extractor.featmap_strides == [8, 16, 32, 64, 128]


def test_box_features_are_rois_through_two_layers() -> None:
    parts = OneStageModel(detector(), branch())
    encoder = parts.encoder
    assert isinstance(encoder, Encoder) and (parts.box_width, parts.c5_width) == (24, 128)
    boxes = torch.tensor([[[4.0, 4, 30, 30], [1, 2, 90, 60]], [[20, 10, 60, 50], [0, 0, 9, 9]]])
    pyramid = encoder.pyramid(encoder.trunk(torch.randn(2, 3, CANVAS_WH[1], CANVAS_WH[0])))
    found = encoder.box_features(pyramid, boxes)
    assert found.shape == (4, 24) and (found >= 0).all() and found.std() > 0
    assert sum(p.numel() for p in branch().parameters()) == (32 * 49 + 1) * 24 + (24 + 1) * 24
    for layer in branch().shared_fcs:  # as mmdet initialises its box heads
        assert layer.weight.abs().max() <= (6 / sum(layer.weight.shape)) ** 0.5 and not layer.bias.any()


# --- from the sample data to detections


@pytest.fixture
def project(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, proposals={"source": "gt-jitter", "keep": 10})
    for stage in ("sample", "proposals", "stats"):
        answer = cli(stage)
        assert answer.code == 0, answer.err
    return tmp_path / "artifacts"


def inputs(project: Path) -> dict[str, Any]:
    sample = project / "sample"
    places = {"annotations": sample / "train_lvis.json", "images": sample / "train"}
    places |= {"stats": project / "stats/default", "work": project / "work"}
    return {**places, "seed": 0, "detector": tiny_atss.settings()}


SHORT = {"epochs": 1, "milestones": [], "batch_size": 8, "sampler": "random"}  # two steps


def test_pretraining_then_fine_tuning_then_detection(project: Path) -> None:
    settings = build(PretrainSettings, {**TINY["pretrain"], **SHORT}, "pretrain")
    job = PretrainJob(**inputs(project), proposals=project / "proposals/default", pretrain=settings)
    plan = PretrainPlan(job)
    assert "stays behind" in plan.remarks()[0]
    pretraining = build_pretraining(plan, Process(0, 1, CPU), 0, ())
    pretraining.train()
    folder = project / "pretrained"
    folder.mkdir()
    state = pretraining.model.state_dict()
    publish_pretrained(plan, state, folder)
    published = load_published(folder / "detector.pth")[0].state_dict()
    assert {name.split(".")[0] for name in published} == {"backbone", "neck", "bbox_head"}
    assert all(torch.equal(t, state[f"detector.detector.{n}"]) for n, t in published.items())

    finetune = build(FinetuneSettings, {**TINY["finetune"], "batch_size": 8, "runs": {}}, "finetune")
    for method in ("focal", "ecm"):
        job_of_method = FinetuneJob(
            **inputs(project),
            finetune=finetune,
            run=FinetuneRun(method, sampler="random"),
            init=str(folder / "detector.pth"),
        )
        check_finetuning(FinetunePlan(job_of_method), published, project)


def check_finetuning(plan: FinetunePlan, pretrained: dict[str, Tensor], project: Path) -> None:
    """What is transferred, that it trains, and what is published."""
    from pipeline.finetune.training import build_detector

    method = plan.method.name
    untrained, report = build_detector(plan)
    assert report.left_behind and "stayed behind: the RoI branch" in report.sentence()
    new = {name for name, t in untrained.state_dict().items() if not torch.equal(t, pretrained[name])}
    assert new == ({"bbox_head.atss_cls.weight", "bbox_head.atss_cls.bias"} if method == "ecm" else set())
    assert set(report.new) == ({"bbox_head.atss_cls"} if method == "ecm" else set())

    trainer = build_finetuning(plan, Process(0, 1, CPU), 0, ())
    trainer.train()
    folder = project / method
    folder.mkdir()
    publish_finetuned(plan, trainer.model.state_dict(), folder, {"images_drawn": 1})
    text = (folder / "config.py").read_text()
    assert "type='ATSSHead'" in text and ("pipeline.finetune" in text) == (method == "ecm")
    model, _, test_wh = load_published(folder / "detector.pth")
    sample = project / "sample"
    split = read_annotations(sample / "val_lvis.json")
    found = list(detect(model, split, sample / "val", test_wh, CPU, batch=4))
    assert len(found) == 8 and all(0 < len(one.boxes) <= 300 and one.masks is None for one in found)
    assert all((one.scores > 0).all() and set(one.labels) <= set(range(4)) for one in found)
    low = next(iter(detect_batches(model, split, sample / "val", test_wh, CPU, [[0]], workers=0, bf16=True)))
    assert np.isfinite(low.boxes).all() and low.scores[0] == pytest.approx(found[0].scores[0], abs=0.1)


@pytest.mark.parametrize(
    ("method", "kind"), [("bags", "atss"), ("focal", "mask-rcnn"), ("focal", "faster-rcnn")]
)
def test_a_method_of_another_detector_is_a_usage_error(method: str, kind: str) -> None:
    with pytest.raises(UsageError, match=f"{method} is not defined for detector.type {kind}") as refused:
        command.chosen_runs(FinetuneSettings(), method, None, kind)
    assert refused.value.exit_code == 2
    known = refused.value.hint.removeprefix(f"methods for {kind}: ").split(", ")
    assert known == (["ecm", "focal"] if kind == "atss" else [m for m in known if m != "focal"])
    assert "ecm" in known and method not in known


def test_a_two_stage_detector_keeps_its_own_box_layers() -> None:
    from pipeline.detectors.build import build_model, model_config
    from pipeline.detectors.two_stage import TwoStageModel

    faster = build_model(model_config(tiny_atss.settings(type="faster-rcnn"), 3), seed=0)
    assert isinstance(in_parts(faster), TwoStageModel)
    assert isinstance(in_parts(detector()), OneStageModel)
