"""What a run may change of its method, and what it is refused."""

from typing import Any

import pytest
import torch
from tiny_heads import COUNTS, tiny_config

from pipeline.errors import SettingsError, UsageError
from pipeline.finetune.method import ClassCounts
from pipeline.finetune.methods import METHODS, get_method
from pipeline.finetune.second_stage import first_method
from pipeline.finetune.settings import FinetuneRun, FinetuneSettings
from pipeline.finetune.variant import loss_settings, method_of
from pipeline.settings import build
from stages.finetune import chosen_runs

ONE = ClassCounts([5], [7], 9)
# what the official code does where this one does better
OFFICIAL = {
    "ecm": {"official_float32_weights": True},
    "eqlv2": {"synchronize": False, "mmdet_softmax_scores": True},
    "droploss": {"synchronize": False},
    "seesaw": {"synchronize": False},
    "rog": {"synchronize": False},
    "bacl": {"synchronize": False},
    "pcb": {"instance_counts": None},
}


def run_of(**values: Any) -> FinetuneRun:
    """As params.yaml gives it."""
    return build(FinetuneRun, values, "finetune.runs.mine")


@pytest.mark.parametrize("name", METHODS)
def test_a_run_without_changes_is_the_entry(name: str) -> None:
    assert method_of(run_of(method=name)) == get_method(name)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_behaviour_is_a_setting_of_the_loss(name: str) -> None:
    config = method_of(run_of(method=name, loss=OFFICIAL[name])).loss_config(1, ONE)
    assert OFFICIAL[name].items() <= config.items()
    assert set(OFFICIAL[name]) <= set(loss_settings(get_method(name)))


def test_lists_stay_lists_and_nothing_else_changes() -> None:
    changed = method_of(run_of(method="bags", loss={"bin_split": [5, 50], "beta": 4})).loss_config(1, ONE)
    own = get_method("bags").loss_config(1, ONE)
    assert changed == {**own, "bin_split": [5, 50], "beta": 4}


def test_an_epoch_that_is_named_is_not_moved() -> None:
    method = method_of(run_of(method="pcb", loss={"start_epoch": 3}))
    assert method.loss_config(1, ONE, epochs=12)["start_epoch"] == 3
    assert get_method("pcb").loss_config(1, ONE, epochs=12)["start_epoch"] == 9


def test_head_settings_go_to_their_place() -> None:
    loce = method_of(run_of(method="loce", head={"queue_size": 5, "synchronize": False})).training_roi_head
    assert loce is not None and loce["type"] == "twodrcl.MemoryRoIHead"
    expected = {"queue_size": 5, "sampled_num_classes": 4, "sampled_num_features": 4, "synchronize": False}
    assert loce["memory"] == expected
    passes = {"head": {"pass_weights": [0.5, 0.5]}, "loss": {"n_iter": 2}}
    pcb = method_of(run_of(method="pcb", **passes)).roi_head
    assert pcb == {"type": "twodrcl.IterativeRoIHead", "pass_weights": [0.5, 0.5]}
    assert METHODS["loce"].training_roi_head["memory"]["queue_size"] == 80  # type: ignore[index]


def test_last_layers() -> None:
    run = run_of(method="rog", loss={"base": "seesaw"}, classifier="normed", mask_predictor="normed")
    method = method_of(run)
    head = method.bbox_head(4, COUNTS)
    assert head["cls_predictor_cfg"]["type"] == "NormedLinear" and head["loss_cls"]["base"] == "seesaw"
    assert method.mask_head(4)["predictor_cfg"]["type"] == "NormedConv2d"
    assert method_of(run_of(method="ecm", classifier="linear")).cls_predictor is None
    assert method_of(run_of(method="ecm", mask_predictor="conv")).mask_predictor is None
    assert "init_cfg" not in method_of(run_of(method="eqlv2", bias_prior=None)).bbox_head(4, COUNTS)
    prior = method_of(run_of(method="rog", bias_prior=0.01)).bbox_head(4, COUNTS)["init_cfg"][0]["bias_prob"]
    assert prior == 0.01


def test_rog_on_seesaw_trains_in_mmdets_head() -> None:
    from pipeline.detectors.build import build_model

    run = run_of(method="rog", loss={"base": "seesaw"}, classifier="normed")
    config = tiny_config("rog")
    config["roi_head"]["bbox_head"] |= method_of(run).bbox_head(4, COUNTS)
    head = build_model(config, seed=0).roi_head.bbox_head  # type: ignore[union-attr]
    cls_score, _ = head(torch.rand(6, 32, 7, 7))
    labels = torch.tensor([0, 3, 4, 4, 4, 4])
    losses = head.loss(cls_score, None, torch.rand(6, 5), labels, torch.ones(6), None, None)
    named = {name for name in losses if name.startswith("loss")}
    assert named == {"loss_cls_classes", "loss_cls_objectness", "loss_rank"}


def test_the_first_stage_has_the_layers_that_the_second_keeps() -> None:
    first = first_method(method_of(run_of(method="loce", classifier="normed", mask_predictor="conv")))
    assert first.cls_predictor is not None and first.mask_predictor is None
    assert first_method(method_of(run_of(method="bags", classifier="normed"))).cls_predictor is None
    assert first_method(get_method("bacl")).fc_cls_bias_prior == 0.001


def test_recipes_of_the_first_stages() -> None:
    found = {
        name: (first_method(m).proposals_factor, first_method(m).weight_decay, m.weight_decay)
        for name, m in METHODS.items()
        if m.second_stage
    }
    plain = 0.0001
    assert found == {
        "bags": (1, plain, plain),
        "acsl": (1, plain, plain),
        "loce": (1, plain, plain),
        "bacl": (2, 0.00005, plain),
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "ecm", "loss": {"official_float_weights": True}}, "ecm has no setting official_float_w"),
        ({"method": "ce", "loss": {"gamma": 2}}, "ce has no setting gamma"),
        ({"method": "ecm", "loss": {"num_classes": 5}}, "no setting num_classes"),
        ({"method": "droploss", "loss": {"seed": 5}}, "no setting seed"),
        ({"method": "ecm", "head": {"queue_size": 5}}, "ecm has no setting queue_size"),
        ({"method": "loce", "head": {"queue": 5}}, "loce has no setting queue"),
    ],
)
def test_unknown_keys_are_usage_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        chosen_runs(FinetuneSettings(runs={"mine": run_of(**values)}), None, "mine", "mask-rcnn")
    assert refused.value.exit_code == 2 and refused.value.hint


@pytest.mark.parametrize(
    "change", [{"classifier": "normed"}, {"mask_predictor": "conv"}, {"bias_prior": 0.1}]
)
def test_last_layers_of_roi_heads_are_refused_on_atss(change: dict[str, Any]) -> None:
    run = run_of(method="ecm", **change)
    assert method_of(run, "mask-rcnn").name == "ecm"
    with pytest.raises(UsageError, match=f"{next(iter(change))}: .* is of RoI heads, not of atss"):
        method_of(run, "atss")


def test_settings_of_the_loss_on_atss_are_those_of_its_loss_there() -> None:
    config = method_of(run_of(method="ecm", loss={"gamma": 1.5}), "atss").loss_config(2, COUNTS)
    assert config["type"] == "twodrcl.DenseECMLoss" and config["gamma"] == 1.5
    with pytest.raises(UsageError, match="ecm has no setting fg_bg_ratio"):
        method_of(run_of(method="ecm", loss={"fg_bg_ratio": 2.0}), "atss")


@pytest.mark.parametrize("values", [{"classifier": "cosine"}, {"bias_prior": 1.0}, {"loss": {"p": {"a": 1}}}])
def test_other_values_are_settings_errors(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"finetune\.runs\.mine"):
        run_of(method="ecm", **values)
