"""The table of methods, its losses in mmdet's registry, and mmdet's box head built from every entry."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UsageError
from pipeline.finetune.head_contract import BoxHeadLoss
from pipeline.finetune.method import ONE_STAGE, SCOPE, TWO_STAGE, ClassCounts
from pipeline.finetune.methods import METHODS, get_method, method_on

CLASSES = 5
COUNTS = ClassCounts(image_counts=[40, 2, 9, 1, 30], instance_counts=[90, 2, 20, 1, 31], num_images=50)
ON_ROIS = {name: method for name, method in METHODS.items() if "faster-rcnn" in method.detectors}
ON_ATSS = {name: method.on("atss") for name, method in METHODS.items() if "atss" in method.detectors}
OWN = [method for method in [*ON_ROIS.values(), *ON_ATSS.values()] if "." in method.loss]


@pytest.fixture(scope="module")
def mmdet_models():
    """mmdet's registry, with its modules in it."""
    pytest.importorskip("pipeline.detectors.operators", reason="mmdet.models needs the operator bridge")
    import mmdet.models  # noqa: F401
    from mmdet.registry import MODELS

    import pipeline.finetune  # noqa: F401

    return MODELS


def build_head(models, method):
    head = method.bbox_head(CLASSES, COUNTS)
    head = models.build(
        {"type": "Shared2FCBBoxHead", "in_channels": 2, "fc_out_channels": 8, "roi_feat_size": 3, **head}
    )
    head.init_weights()
    return head


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_entries_are_whole(method):
    assert get_method(method.name) is method
    assert method.summary and method.score and method.reference
    assert method.sampler in ("random", "rfs", "irfs")
    assert method.warmup_iterations > 0 and 0 < method.warmup_start_factor < 1
    assert method.published or method.name == "eql"  # the paper has no row of EQL v1


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_configs_are_plain_data(method):
    head = method.bbox_head(CLASSES, COUNTS)
    assert json.loads(json.dumps(head)) == head  # so a config file can hold it
    assert json.loads(json.dumps(method.mask_head(CLASSES)))["num_classes"] == CLASSES


def test_recipes():
    columns = ("sampler", "grad_clip", "warmup_iterations", "warmup_start_factor", "fc_cls_bias_prior")
    recipes = {name: tuple(getattr(method, c) for c in columns) for name, method in METHODS.items()}
    assert recipes == {
        "ce": ("random", None, 500, 0.001, None),
        "bce": ("random", None, 500, 0.001, 0.001),
        "rfs": ("rfs", None, 500, 0.001, None),
        "irfs": ("irfs", None, 500, 0.001, None),
        "eql": ("random", None, 500, 0.001, 0.001),
        "eqlv2": ("random", None, 500, 0.001, 0.001),
        "droploss": ("random", None, 500, 0.001, 0.001),
        "seesaw": ("rfs", None, 500, 0.001, None),
        "ecm": ("rfs", 5.0, 10_000, 0.0001, None),
        "bags": ("random", 35.0, 500, 1 / 3, None),
        "acsl": ("random", 35.0, 500, 1 / 3, 0.01),
        "pcb": ("random", None, 500, 0.001, None),
        "loce": ("random", None, 500, 0.001, None),
        "bacl": ("random", None, 500, 0.001, 0.001),
        "rog": ("rfs", 5.0, 500, 0.0001, None),
        "focal": ("rfs", None, 500, 0.001, None),
    }
    normed = {name for name, method in METHODS.items() if method.cls_predictor}
    assert normed == {"seesaw", "ecm"}
    normed = {name for name, method in METHODS.items() if "predictor_cfg" in method.mask_head(3)}
    assert normed == {"ecm", "loce", "bacl"}


def test_sampling_methods_differ_from_ce_in_the_sampler_only():
    for name in ("rfs", "irfs"):
        assert get_method(name).bbox_head(CLASSES, COUNTS) == get_method("ce").bbox_head(CLASSES, COUNTS)
        assert get_method(name).mask_head(CLASSES) == get_method("ce").mask_head(CLASSES)


def test_detectors_of_the_entries():
    from pipeline.detectors.build import TYPES

    assert {*TWO_STAGE, ONE_STAGE} == set(TYPES)
    assert list(ON_ATSS) == ["ecm", "focal"]
    assert [name for name in METHODS if name not in ON_ROIS] == ["focal"]
    for name, method in ON_ATSS.items():
        assert method == method_on(name, "atss") and method.detectors == ("atss",)
        recipe = (method.grad_clip, method.warmup_iterations, method.warmup_start_factor)
        assert recipe == (None, 500, 0.001)  # mmdet's for ATSS
        assert method.bbox_head(CLASSES, COUNTS).keys() == {"num_classes", "loss_cls"}
        assert method.mask_head(CLASSES) == {"num_classes": CLASSES}
    assert method_on("ecm", "mask-rcnn") is METHODS["ecm"]


def test_entries_cannot_be_changed_through_a_config():
    get_method("ecm").bbox_head(CLASSES, COUNTS)["cls_predictor_cfg"]["tempearture"] = 1
    assert get_method("seesaw").bbox_head(CLASSES, COUNTS)["cls_predictor_cfg"]["tempearture"] == 20
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_method("ecm").grad_clip = 1.0


def test_unknown_method_names_the_nearest_and_all():
    with pytest.raises(UsageError, match="unknown method: seasaw") as refused:
        get_method("seasaw")
    assert refused.value.hint.startswith("did you mean seesaw?")
    assert all(name in refused.value.hint for name in METHODS)
    with pytest.raises(UsageError) as refused:
        get_method("xyz")
    assert refused.value.hint == f"known methods: {', '.join(METHODS)}"


def test_published_numbers():
    def values(name, table, detector, ours=False):
        rows = [
            r
            for r in METHODS[name].published
            if (r.table, r.detector, r.with_2drcl) == (table, detector, ours)
        ]
        return list(rows[0].metrics.values())

    assert values("ecm", "A.1", "mask-rcnn_r50") == [26.5, 17.0, 25.4, 31.7]
    assert values("ecm", "A.1", "mask-rcnn_r50", ours=True) == [27.3, 19.2, 25.9, 32.5]
    assert values("ecm", "3a", "faster-rcnn_r50", ours=True) == [27.3, 18.6, 25.8, 32.6]
    assert values("ecm", "A.2", "atss_r50", ours=True) == [26.4, 17.7, 25.4, 30.8]
    assert values("focal", "A.2", "atss_r50") == [25.6, 14.5, 24.3, 31.8]
    assert values("ce", "3b", "mask-rcnn_r50") == [19.7, 18.7, 0.4, 16.5, 29.3]  # boxes, then masks
    assert values("eqlv2", "A.1", "mask-rcnn_r101", ours=True) == [26.9, 18.9, 25.1, 32.5]
    for method in METHODS.values():
        for row in method.published:
            kind = "segm" if row.table == "3b" else "bbox"
            groups = [row.metrics[f"{kind}_AP{group}"] for group in "rcf"]
            assert min(groups) < row.metrics[f"{kind}_AP"] < max(groups)


def test_scope_is_that_of_the_registry():
    from pipeline.detectors.registry import MODELS

    assert MODELS.scope == SCOPE


@pytest.mark.parametrize("method", OWN, ids=lambda m: m.name)
def test_mmdet_builds_our_losses_by_their_scope(mmdet_models, method):
    loss = mmdet_models.build(method.loss_config(CLASSES, COUNTS))
    assert isinstance(loss, BoxHeadLoss) and loss.num_classes == CLASSES
    assert f"{type(loss).__module__}.{type(loss).__name__}" == method.loss


def test_mmdet_keeps_its_own_seesaw(mmdet_models):
    assert mmdet_models.get("SeesawLoss").__module__.startswith("mmdet.")
    assert mmdet_models.get("twodrcl.SeesawLoss").__module__ == "pipeline.finetune.seesaw"


def test_custom_imports_of_a_plain_config_suffice():
    code = (
        "from mmengine.config import Config\n"
        "Config.fromstring(\"custom_imports = dict(imports=['pipeline.finetune'])\", '.py')\n"
        "from mmdet.registry import MODELS\n"
        "loss = MODELS.build(dict(type='twodrcl.ECMLoss', num_classes=2, instance_counts=[1, 2]))\n"
        "assert type(loss).__module__ == 'pipeline.finetune.ecm'\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ON_ROIS.values(), ids=ON_ROIS)
def test_mmdet_box_head_trains_and_predicts(mmdet_models, method):
    from mmengine.config import ConfigDict

    torch.manual_seed(0)  # mmdet initialises from the global generator
    head = build_head(mmdet_models, method)
    features = torch.rand(6, 2, 3, 3)
    cls_score, bbox_pred = head(features)
    labels = torch.tensor([0, 3, 4, 5, 5, 5])
    rois = torch.tensor([[0.0, i, i, i + 10, i + 12] for i in range(6)])
    targets, weights = torch.zeros(6, 4), torch.ones(6, 4)
    losses = head.loss(cls_score, bbox_pred, rois, labels, torch.ones(6), targets, weights)
    total = sum(value for name, value in losses.items() if "loss_cls" in name)
    total.backward()
    assert total.isfinite() and head.fc_cls.weight.grad.abs().sum() > 0
    assert all(value.isfinite().all() for value in losses.values())

    config = ConfigDict(score_thr=0.0, nms={"type": "nms", "iou_threshold": 0.5}, max_per_img=300)
    meta = [{"img_shape": (32, 32), "scale_factor": (1.0, 1.0)}]
    with torch.no_grad():
        (found,) = head.predict_by_feat((rois,), (cls_score,), (bbox_pred,), meta, rcnn_test_cfg=config)
    assert len(found) > 0 and found.labels.max() < CLASSES
    assert ((found.scores > 0) & (found.scores <= 1)).all()


@pytest.mark.parametrize("method", ON_ROIS.values(), ids=ON_ROIS)
def test_mmdet_classifier_starts_as_the_entry_says(mmdet_models, method):
    torch.manual_seed(0)
    head = build_head(mmdet_models, method)
    width = head.loss_cls.get_cls_channels(CLASSES) if head.custom_cls_channels else CLASSES + 1
    assert head.fc_cls.weight.shape == (width, 8)
    prior = 0.5 if method.fc_cls_bias_prior is None else method.fc_cls_bias_prior
    torch.testing.assert_close(head.fc_cls.bias.sigmoid(), torch.full((width,), prior))
    assert 0.005 < head.fc_cls.weight.std() < 0.02
    assert head.fc_reg.weight.std() < 0.002
    assert head.shared_fcs[0].weight.std() > 0.1  # Xavier, fan 18 and 8


def test_mmdet_normed_predictors_are_those_of_the_vectors(mmdet_models):
    vectors = json.loads((Path(__file__).parent / "reference/vectors/normed_predictor.json").read_text())
    linear, conv = vectors["linear"], vectors["conv2d_1x1"]
    ecm = get_method("ecm")
    layers = (
        mmdet_models.build({**ecm.cls_predictor, "in_features": 5, "out_features": 4}),
        mmdet_models.build({**ecm.mask_predictor, "in_channels": 3, "out_channels": 4, "kernel_size": 1}),
    )
    for layer, vector in zip(layers, (linear, conv), strict=True):
        state = {key: torch.tensor(vector[key], dtype=torch.float64) for key in ("weight", "bias")}
        layer.double().load_state_dict(state)
        found = layer(torch.tensor(vector["x"], dtype=torch.float64))
        torch.testing.assert_close(
            found, torch.tensor(vector["y"], dtype=torch.float64), rtol=1e-6, atol=1e-9
        )
