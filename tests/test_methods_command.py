"""`2drcl methods`: what it says of a loss against the loss itself, built and asked."""

import importlib
import inspect
import json
import subprocess
import sys

import pytest
from tiny_heads import tiny_head

from pipeline.errors import UsageError
from pipeline.finetune.method import ClassCounts
from pipeline.finetune.methods import METHODS
from pipeline.finetune.settings import FinetuneRun
from pipeline.finetune.variant import method_of
from stages import loss_source
from stages.methods import FROM_STATS, _explanation, explanation

CLASSES = 5
COUNTS = ClassCounts(image_counts=[40, 2, 9, 1, 30], instance_counts=[90, 2, 20, 1, 31], num_images=50)
OWN = [method for method in METHODS.values() if "." in method.loss]
OWN.append(METHODS["ecm"].on("atss"))


def own_class(method):
    module, _, name = method.loss.rpartition(".")
    return getattr(importlib.import_module(module), name)


def built(method):
    config = method.loss_config(CLASSES, COUNTS)
    config.pop("type")
    return own_class(method)(**config)


@pytest.mark.parametrize("method", OWN, ids=lambda m: m.name)
def test_state_is_that_of_a_built_loss(method):
    assert sorted(loss_source.state(method.loss)) == sorted(built(method).state_dict())


HEADS = {"loce": "memory", "bacl": "hallucination", "pcb": ""}


@pytest.mark.parametrize("name", METHODS)
def test_state_and_settings_of_the_head_are_those_of_the_built_one(name):
    """The table names what a checkpoint holds, and `runs.NAME.head` takes every setting that it lists."""
    from pipeline.finetune.heads import UNPUBLISHED

    method = METHODS[name]
    listed = {s["name"]: s for s in explanation(method)["head_settings"]}
    own = set(loss_source.state(method.loss))
    if name not in HEADS:
        assert not listed and set(explanation(method)["state"]) == own
        with pytest.raises(UsageError, match="leave head out"):
            raise_with_hint(FinetuneRun(name, head={"queue_size": 1}))
        return
    head = tiny_head(name, **(method.training_roi_head or method.roi_head))
    kept = {f"roi_head.{key}" for key, value in head.state_dict().items()}
    kept = {key.removeprefix(UNPUBLISHED) for key in kept if key.startswith(UNPUBLISHED)}
    if "_extra_state" in kept:
        kept = kept - {"_extra_state"} | set(head.class_features.get_extra_state())
    assert set(explanation(method)["state"]) == own | kept and len(explanation(method)["state"]) == len(
        own | kept
    )
    changed = {key: setting["value"] for key, setting in listed.items()}
    run = FinetuneRun(name, head={k: tuple(v) if isinstance(v, list) else v for k, v in changed.items()})
    made = method_of(run).training_roi_head or method_of(run).roi_head
    part = made[HEADS[name]] if HEADS[name] else {k: v for k, v in made.items() if k != "type"}
    assert part == changed and all(setting["meaning"] for setting in listed.values())


def raise_with_hint(run):
    try:
        method_of(run)
    except UsageError as problem:
        raise UsageError(problem.hint) from problem


@pytest.mark.parametrize("method", OWN, ids=lambda m: m.name)
def test_columns_are_those_of_a_built_loss(method):
    said = loss_source.columns(method.loss)
    groups = 5 if "G" in said else 0  # three splits make four groups; object and background are the fifth
    assert eval(said, {"C": CLASSES, "G": groups}) == built(method).get_cls_channels(CLASSES)


@pytest.mark.parametrize("method", OWN, ids=lambda m: m.name)
def test_settings_are_those_of_the_constructor_each_with_a_meaning(method):
    parameters = inspect.signature(own_class(method)).parameters
    parameters = {n: p for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    found = {s["name"]: s for s in _explanation(method, method.name)["settings"]}
    assert list(found) == list(parameters)
    assert set(FROM_STATS) <= set(found)
    given = method.loss_config(CLASSES, COUNTS)
    for name, setting in found.items():
        assert setting["meaning"] and not setting["meaning"].startswith("see "), name
        if name not in FROM_STATS:
            assert setting["default"] == parameters[name].default
            assert setting["value"] == given.get(name, parameters[name].default)


def test_nothing_is_cut_off_in_the_table(cli):
    assert "\N{HORIZONTAL ELLIPSIS}" not in cli("methods").out
    assert "settings of the RoI head" in cli("methods", "loce").out
    assert "settings of the RoI head" not in cli("methods", "ce").out


def test_what_is_another_on_atss():
    found = explanation(METHODS["ecm"])
    assert found["detectors"] == ["faster-rcnn", "mask-rcnn", "atss"]
    there = found["on_atss"]
    assert there["classifier_columns"] == "C" and there["loss"].endswith("DenseECMLoss")
    assert there["recipe"].keys() == {
        "cls_predictor",
        "mask_predictor",
        "grad_clip",
        "warmup_iterations",
        "warmup_start_factor",
    }
    assert {s["name"] for s in there["settings"]} >= {"gamma", "alpha", "instance_counts"}
    assert explanation(METHODS["ce"])["on_atss"] is None
    focal = explanation(METHODS["focal"])
    assert (focal["detectors"], focal["classifier_columns"]) == (["atss"], "C")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_explanations_are_whole_and_plain(method):
    found = explanation(method)
    assert json.loads(json.dumps(found))["name"] == method.name
    assert found["formula"] and found["description"] and found["settings"]
    assert len(found["published"]) == len(method.published)


def test_meanings_follow_references():
    meanings = {
        name: text for name, (_, text) in loss_source.arguments("pipeline.finetune.seesaw.SeesawLoss").items()
    }
    assert meanings["p"].startswith("exponents of mitigation")  # `see seesaw_shift`
    assert meanings["loss_weight"].startswith("factor on everything")  # `see BoxHeadLoss`
    droploss = loss_source.arguments("pipeline.finetune.droploss.DropLoss")
    assert "fractions of images" in droploss["freq"][1]  # `see EQLLoss`


def test_deviations_name_the_official_code():
    by_name = {name: " ".join(explanation(METHODS[name])["deviations"]) for name in METHODS}
    assert "rounding error of the released table" in by_name["ecm"]
    assert "wait for ever" in by_name["bacl"] and "the others wait forever" in by_name["pcb"]
    assert "per process" in by_name["seesaw"] and "mmdet_softmax_scores" in by_name["eqlv2"]


def test_table_fits_a_hundred_columns_and_names_every_method(cli):
    lines = cli("methods").out.splitlines()
    assert max(map(len, lines)) <= 100
    shown = [line.split()[0] for line in lines if line[:2].strip()]
    assert [name for name in shown if name in METHODS] == list(METHODS)
    assert any("26.5/17.0" in line for line in lines) and any("24+6" in line for line in lines)


@pytest.mark.parametrize("name", METHODS)
def test_an_explanation_fits_a_hundred_columns(cli, name):
    text = cli("methods", name).out
    assert max(map(len, text.splitlines())) <= 100
    assert METHODS[name].reference.split(",")[0] in text and "formula" in text


def test_an_explanation_says_what_it_should(cli):
    text = cli("methods", "ecm").out
    assert "fg_bg_ratio              6.3313.  background RoIs per foreground RoI" in text
    assert "Table A.1 mask-rcnn_r50    1x     2DRCL  bbox_AP 27.3 r 19.2 c 25.9 f 32.5" in text
    assert "reweight                 True (default False)." in cli("methods", "bacl").out
    assert "on atss" in text and "sigmoid(class) x centerness, without the margin" in text
    assert "detectors                  atss" in cli("methods", "focal").out
    assert "atss has ecm, focal." in cli("methods").out
    answer = cli("methods", "ecn")
    assert answer.code == 2 and "did you mean ecm?" in answer.err


def test_it_answers_without_torch():
    code = (
        "import sys, stages.methods as m; m.run('ecm', False); m.run(None, False)\n"
        "sys.exit(bool({'torch', 'mmengine', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
