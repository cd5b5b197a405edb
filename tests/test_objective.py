"""Eq. 3, 7 and 8."""

import itertools

import pytest
import torch

from pipeline.errors import SettingsError
from pipeline.pretrain.objective import TERMS, ObjectiveWeights, total_loss
from pipeline.pretrain.settings import PRESETS, PretrainSettings
from pipeline.settings import build

VALUES = {"hcl": 5.0, "lcl": 7.0, "ar": 0.8, "sr": 1.3, "det": 2.1}


def terms(names=TERMS):
    return {name: torch.tensor(VALUES[name], dtype=torch.float64, requires_grad=True) for name in names}


def test_the_papers_weights():
    """0.1 HCL + 0.05 LCL + 0.1 AR + 0.9 SR + det."""
    loss = total_loss(terms(), ObjectiveWeights())
    assert loss.item() == pytest.approx(0.1 * 5 + 0.05 * 7 + 0.1 * 0.8 + 0.9 * 1.3 + 2.1)


def test_equations_3_7_and_8():
    alpha_c, beta_c, alpha_r = 0.3, 0.7, 0.4
    hlcl = alpha_c * VALUES["hcl"] + beta_c * VALUES["lcl"]
    drc = alpha_r * VALUES["ar"] + (1 - alpha_r) * VALUES["sr"]
    loss = total_loss(terms(), ObjectiveWeights(alpha_c, beta_c, alpha_r))
    assert loss.item() == pytest.approx(hlcl + drc + VALUES["det"])


@pytest.mark.parametrize(
    "names", [c for n in range(1, len(TERMS) + 1) for c in itertools.combinations(TERMS, n)], ids="+".join
)
def test_every_ablation_adds_what_it_has_and_weighs_its_gradients(names):
    weights, values = ObjectiveWeights(), terms(names)
    loss = total_loss(values, weights)
    assert loss.item() == pytest.approx(sum(weights.of(n) * VALUES[n] for n in names))
    loss.backward()
    for name, value in values.items():
        assert value.grad.item() == pytest.approx(weights.of(name))


def test_an_unknown_term_is_a_bug():
    with pytest.raises(KeyError):
        total_loss({"mystery": torch.tensor(1.0)}, ObjectiveWeights())


def test_defaults_are_the_papers():
    settings = build(PretrainSettings, None, "pretrain")
    assert settings.objective == ObjectiveWeights(alpha_c=0.1, beta_c=0.05, alpha_r=0.1)
    assert (settings.contrast.temperature, settings.contrast.momentum, settings.contrast.boxes) == (
        0.2,
        0.999,
        8,
    )
    assert (settings.contrast.hidden, settings.contrast.width) == (256, 256)
    assert (settings.epochs, settings.milestones, settings.batch_size, settings.lr) == (12, "auto", 16, 0.02)
    assert settings.reconstruction.mask_fraction == 0.25
    assert settings.terms == TERMS


def test_presets_are_settings():
    paper = build(PretrainSettings, PRESETS["paper"], "pretrain")
    assert (paper.contrast.queue, paper.contrast.local_queue) == (65536, 65536)
    literal = build(PretrainSettings, PRESETS["literal"], "pretrain")
    assert literal.contrast.queue == 65536
    assert not literal.contrast.mask_same_image and not literal.contrast.predictor
    assert not literal.reconstruction.detach_target and literal.reconstruction.second_pass == "trained"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"terms": []}, "pretrain.terms is empty"),
        ({"terms": ["hcl", "rpn"]}, r"pretrain.terms\[1\] must be one of hcl, lcl, ar, sr, det"),
        ({"objective": {"alpha_r": 1.5}}, "pretrain.objective.alpha_r must be between 0 and 1"),
        ({"contrast": {"temperature": 0}}, "pretrain.contrast.temperature must be between"),
        ({"contrast": {"queue": "large"}}, "pretrain.contrast.queue must be"),
        ({"contrast": {"queue": 0}}, "pretrain.contrast.queue must be between"),
        ({"views": {"crop": [0.9, 0.5]}}, r"pretrain.views.crop must be \[smallest, largest\]"),
        ({"views": {"short_sides": []}}, "pretrain.views.short_sides is empty"),
        (
            {"reconstruction": {"mask_fraction": -0.1}},
            "pretrain.reconstruction.mask_fraction must be between",
        ),
        ({"precision": "fp16"}, "pretrain.precision must be"),
    ],
)
def test_settings_that_make_no_sense(values, message):
    with pytest.raises(SettingsError, match=message):
        build(PretrainSettings, values, "pretrain")
