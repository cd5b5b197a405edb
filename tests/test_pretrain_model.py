"""One step of 2DRCL: which term reaches what, on a toy detector; one and two processes; MMDetection's own."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import together
from syncs import Syncs
from torch import nn
from toy_detector import in_float64, shard, tiny_settings, toy_batch, toy_model

from pipeline.data.targets import Target
from pipeline.engine.distributed import Process
from pipeline.engine.loop import Hook, Trainer
from pipeline.engine.schedule import Schedule
from pipeline.pretrain import model as pretrain_model
from pipeline.pretrain.accumulation import Part
from pipeline.pretrain.key_queue import EMPTY
from pipeline.pretrain.model import TwoDRCL, pooled
from pipeline.pretrain.objective import TERMS
from pipeline.pretrain.reconstruction import STRIDES, halved_levels
from pipeline.pretrain.views import PretrainBatch

# module of the toy -> prefix of its parameters
MODULES = {
    "backbone": "detector.backbone.",
    "neck": "detector.neck.",
    "shared": "detector.shared_fcs.",
    "objectness": "detector.objectness.",
    "classifier": "detector.classifier.",
    "holistic": ("holistic.projector.", "holistic.predictor."),
    "local": ("local.projector.", "local.predictor."),
    "generator": "generator.",
}
REACHES = {
    "hcl": {"backbone", "holistic"},
    "lcl": {"backbone", "neck", "shared", "local"},
    "ar": {"backbone", "generator"},
    "sr": {"backbone", "generator"},
    "det": {"backbone", "neck", "shared", "objectness", "classifier"},
}


def reached(model):
    """Modules in which every parameter has a gradient, and some is not zero; none may be half reached."""
    found = set()
    for module, prefix in MODULES.items():
        grads = [p.grad for n, p in model.named_parameters() if n.startswith(prefix)]
        if any(g is not None and g.abs().max() > 0 for g in grads):
            assert all(g is not None for g in grads), module
            found.add(module)
    return found


def step(model, batch, lr=0.05):
    """Forward, backward, plain SGD, after_step."""
    losses = model(batch)
    model.zero_grad()
    losses["loss"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
    model.after_step()
    return {name: value.item() for name, value in losses.items()}


def only(term):
    return tiny_settings(terms=(term,))


class Repeat(nn.Module):
    """A perfect generator: it answers with an image it was given."""

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, c5):
        return self.image


# the step


def test_losses_carry_the_papers_names_and_add_up():
    model = toy_model()
    for seed in (0, 1):
        losses = step(model, toy_batch(seed))
    assert list(losses)[:6] == ["loss", "hcl", "lcl", "ar", "sr", "det"]
    expected = (
        0.1 * losses["hcl"] + 0.05 * losses["lcl"] + 0.1 * losses["ar"] + 0.9 * losses["sr"] + losses["det"]
    )
    assert losses["loss"] == pytest.approx(expected, rel=1e-5)
    assert all(losses[name] > 0 for name in ("loss", *TERMS))


def test_a_key_is_never_its_own_negative():
    """The queues are empty at the first step, so both contrasts are exactly zero; then they are not."""
    model = toy_model(queues=(8, 24))
    first, second = step(model, toy_batch(0)), step(model, toy_batch(1))
    assert first["hcl"] == 0.0 and first["lcl"] == 0.0
    assert second["hcl"] > 0 and second["lcl"] > 0
    images = [0, 1, 2, 3, 10, 11, 12, 13]
    assert model.holistic.queue.image_ids.tolist() == images
    assert model.local.queue.image_ids.tolist() == [image for image in images for _ in range(3)]


def test_write_positions_follow_the_keys_of_a_step():
    """Two images of three boxes: 2 and 6, an invalid box included; then the ring is closed."""
    model = toy_model(queues=(4, 10))
    for positions in ((2, 6), (0, 2)):
        step(model, toy_batch(0, images=2, invalid=[(1, 2)]))
        assert (model.holistic.queue.pointer, model.local.queue.pointer) == positions


def slow_contrast(query, key, queue, temperature=0.2):
    """Eq. 1 with every key of the queue."""
    logits = [
        torch.cat([(q * k).sum()[None], queue @ q]) / temperature for q, k in zip(query, key, strict=True)
    ]
    return torch.stack([torch.logsumexp(row, dim=0) - row[0] for row in logits]).mean()


def slow_pooled(c5, sizes_wh):
    """Mean of the cells of stride 32 that overlap the image."""
    rows = [
        maps[:, : -(-int(height) // 32), : -(-int(width) // 32)].mean(dim=(1, 2))
        for maps, (width, height) in zip(c5, sizes_wh.tolist(), strict=True)
    ]
    return torch.stack(rows)


def test_holistic_contrast_equals_its_equation_from_parts():
    model = toy_model()
    step(model, toy_batch(0))
    step(model, toy_batch(1))
    batch, everything = toy_batch(2), torch.ones(4, dtype=torch.bool)
    with torch.no_grad():
        encoder, parts = model.detector.encoder, model.holistic
        query = parts.predictor(
            parts.projector(slow_pooled(encoder.trunk(batch.query)[-1], batch.query_wh), everything),
            everything,
        )
        key = parts.key_projector(
            slow_pooled(model.key_encoder.trunk(batch.key)[-1], batch.key_wh), everything
        )
        expected = slow_contrast(F.normalize(query), F.normalize(key), parts.queue.keys)
        found = model.terms(batch)["hcl"]
    torch.testing.assert_close(found, expected)


def test_local_contrast_is_a_mean_over_valid_boxes():
    model = toy_model(queues=(8, 12))
    step(model, toy_batch(0))
    batch = toy_batch(2, invalid=[(0, 1), (3, 0), (3, 1), (3, 2)])
    valid = batch.valid.flatten()
    with torch.no_grad():
        encoder, parts = model.detector.encoder, model.local
        query = encoder.box_features(encoder.pyramid(encoder.trunk(batch.query)), batch.query_boxes)
        query = parts.predictor(parts.projector(query, valid), valid)
        momentum = model.key_encoder
        key = momentum.box_features(momentum.pyramid(momentum.trunk(batch.key)), batch.key_boxes)
        key = parts.key_projector(key, valid)
        expected = slow_contrast(F.normalize(query)[valid], F.normalize(key)[valid], parts.queue.keys)
        found = model.terms(batch)["lcl"]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("mask_same_image", "is_zero"), [(True, True), (False, False)])
def test_an_image_is_not_pushed_from_its_own_older_keys(mask_same_image, is_zero):
    model = toy_model(tiny_settings(contrast={"mask_same_image": mask_same_image}))
    batches = [dataclasses.replace(toy_batch(s), image_ids=torch.full((4,), 7)) for s in (0, 1)]
    step(model, batches[0])
    losses = step(model, batches[1])
    assert (losses["hcl"] == 0.0) == is_zero and (losses["lcl"] == 0.0) == is_zero


@pytest.mark.parametrize("canvas_wh", [(96, 64), (64, 160), (32, 32)])
def test_pooled_equals_a_loop_on_any_canvas(canvas_wh):
    random = torch.Generator().manual_seed(0)
    c5 = torch.randn(4, 5, canvas_wh[1] // 32, canvas_wh[0] // 32, generator=random)
    sizes_wh = torch.tensor([canvas_wh, (1, 1), (32, canvas_wh[1]), (canvas_wh[0], 20)], dtype=torch.float32)
    torch.testing.assert_close(pooled(c5, sizes_wh), slow_pooled(c5, sizes_wh))


# boxes that are not there


def test_no_valid_box_is_a_finite_step_with_lcl_zero():
    model = toy_model()
    step(model, toy_batch(0))
    keys = model.local.queue.keys.clone()
    losses = step(model, toy_batch(1, invalid=list(itertools.product(range(4), range(3)))))
    assert losses["lcl"] == 0.0 and all(np.isfinite(v) for v in losses.values())
    for name, parameter in model.local.named_parameters():
        assert parameter.grad is None or parameter.grad.abs().max() == 0, name
    assert all(p.grad is not None for p in model.local.projector.parameters())
    kept = model.local.queue.image_ids != EMPTY
    assert kept.sum() == 4 and torch.equal(model.local.queue.keys[kept], keys[kept])


def test_boxes_that_are_all_the_same_and_black_images_are_finite_steps():
    """Equal boxes have equal keys, each other's negatives; a black image has no direction to be sure of."""
    model, batch = toy_model(), toy_batch(0)
    black = [torch.zeros_like(view) for view in (batch.query, batch.key)]
    same = [boxes[:, :1].expand_as(boxes) for boxes in (batch.query_boxes, batch.key_boxes, batch.masks)]
    names = ("query_boxes", "key_boxes", "masks")
    equal = dataclasses.replace(batch, **dict(zip(names, same, strict=True)))
    for changed in (equal, dataclasses.replace(equal, query=black[0], key=black[1])):
        for _ in range(3):  # also with the queues full of such keys
            losses = step(model, changed)
            assert all(np.isfinite(v) for v in losses.values()), losses
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_boxes_that_are_not_there_change_nothing():
    """Wherever an invalid row points, losses and keys are the same."""
    results = []
    for corner in (0.0, 9.0):
        model, batch = toy_model(), toy_batch(1, invalid=[(0, 0), (2, 1)])
        step(model, toy_batch(0))
        boxes = torch.where(batch.valid[..., None], batch.query_boxes, torch.tensor([corner, corner, 31, 30]))
        key_boxes = torch.where(
            batch.valid[..., None], batch.key_boxes, torch.tensor([corner, corner, 31, 30])
        )
        masks = torch.where(batch.valid[..., None], batch.masks, torch.tensor([0, 0, 64, 64]))
        batch = dataclasses.replace(batch, query_boxes=boxes, key_boxes=key_boxes, masks=masks)
        results.append((step(model, batch), model.local.queue.keys))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1])


# gradients


@pytest.mark.parametrize("term", TERMS)
def test_which_term_reaches_which_module(term):
    model = toy_model()
    step(model, toy_batch(0))
    model.zero_grad()
    model(toy_batch(1))[term].backward()
    assert reached(model) == REACHES[term]
    for name, parameter in model.named_parameters():
        if "key_" in name:
            assert not parameter.requires_grad and parameter.grad is None, name


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_the_target_of_semantic_reconstruction(detach):
    """Beside the way through the generator, f(x) is reached as the target alone, if eq. 6 is literal."""
    changes = {"detach_target": detach, "second_pass": "trained"}
    model, batch = toy_model(tiny_settings(reconstruction=changes)), toy_batch(0)
    model.generator, passes, last = Repeat(batch.query), [], []
    model.detector.backbone.register_forward_hook(lambda module, args, levels: passes.append(levels))
    model.detector.backbone.stages[-1].register_forward_hook(lambda module, args, maps: last.append(maps))
    sr = model.terms(batch)["sr"]
    assert len(last) == 2  # one query forward serves every term; SR adds the masked one
    (levels,) = passes
    gradients = torch.autograd.grad(sr, levels, allow_unused=True)
    assert [g is not None and bool(g.abs().max() > 0) for g in gradients] == [not detach] * 4


@pytest.mark.parametrize("second_pass", ["trained", "frozen"])
def test_who_learns_from_the_masked_image(second_pass):
    """With the way through the generator cut, the encoder learns in the second pass, or not at all."""
    settings = tiny_settings(terms=("sr",), reconstruction={"second_pass": second_pass})
    model, batch = toy_model(settings), toy_batch(0)
    model.generator = Repeat(batch.query.requires_grad_())
    model(batch)["sr"].backward()
    assert ("backbone" in reached(model)) == (second_pass == "trained")
    assert batch.query.grad.abs().max() > 0  # where g's gradient comes from


def test_a_frozen_second_pass_changes_gradients_and_no_loss():
    losses, gradients = [], []
    for second_pass in ("trained", "frozen"):
        model = toy_model(tiny_settings(reconstruction={"second_pass": second_pass}))
        terms = model(toy_batch(0))
        terms["sr"].backward()
        losses.append({name: value.item() for name, value in terms.items()})
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1] and set(gradients[0]) == set(gradients[1])
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]) == name.startswith("generator"), name


def test_semantic_reconstruction_reaches_a_frozen_encoder_no_more():
    """With f frozen and its features the target, the generator alone learns."""
    model = toy_model(only("sr"))
    model.detector.backbone.requires_grad_(False)
    model(toy_batch(0))["sr"].backward()
    assert reached(model) == {"generator"}


@pytest.mark.parametrize(
    "terms", [c for n in range(1, 6) for c in itertools.combinations(TERMS, n)], ids="+".join
)
def test_no_ablation_leaves_a_parameter_waiting_for_a_gradient(terms):
    model = toy_model(tiny_settings(terms=terms))
    for seed in (0, 1):
        losses = model(toy_batch(seed, images=2))
        assert set(losses) & {"loss", *TERMS} == {"loss", *terms}
        model.zero_grad()
        losses["loss"].backward()
        model.after_step()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert reached(model) == set.union(*(REACHES[term] for term in terms))


@pytest.mark.parametrize(
    ("term", "absent"),
    [
        ("hcl", ("local", "generator")),
        ("lcl", ("holistic", "generator")),
        ("sr", ("key_encoder", "holistic", "local")),
        ("det", ("key_encoder", "holistic", "local", "generator")),
    ],
)
def test_what_an_ablation_leaves_out_is_not_built(term, absent):
    model = toy_model(only(term))
    assert all(getattr(model, name) is None for name in absent)
    assert all(p.requires_grad == (term in ("det",)) for p in model.detector.classifier.parameters())


def test_what_was_frozen_stays_frozen():
    model = toy_model()
    model.detector.backbone.stem.requires_grad_(False)
    again = TwoDRCL(model.detector, only("hcl"), (8, 8), model.to_batch)
    assert not any(p.requires_grad for p in again.detector.backbone.stem.parameters())
    assert all(p.requires_grad for p in again.detector.backbone.stages.parameters())


# the momentum branch


def queued(model):
    """Keys of the last step."""
    return model.holistic.queue.keys.clone(), model.local.queue.keys.clone()


def keys_after(change):
    model = toy_model()
    step(model, toy_batch(0), lr=0.0)
    with torch.no_grad():
        change(model)
        model(toy_batch(1))
    model.after_step()
    return queued(model)


def shift(module):
    for parameter in module.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


def test_keys_follow_the_momentum_branch_alone():
    plain = keys_after(lambda model: None)
    for part in (
        "detector",
        "holistic.projector",
        "holistic.predictor",
        "local.projector",
        "local.predictor",
    ):
        found = keys_after(lambda model, part=part: shift(model.get_submodule(part)))
        assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True)), part
    for part, changed in (
        ("key_encoder", (True, True)),
        ("holistic.key_projector", (True, False)),
        ("local.key_projector", (False, True)),
    ):
        found = keys_after(lambda model, part=part: shift(model.get_submodule(part)))
        assert tuple(not torch.allclose(a, b) for a, b in zip(found, plain, strict=True)) == changed, part


def test_momentum_branch_moves_after_the_optimizer():
    model = toy_model(tiny_settings(contrast={"momentum": 0.75}))
    before = {n: p.clone() for n, p in model.named_parameters()}
    step(model, toy_batch(0))
    pairs = [("key_encoder.", "detector.")] + [
        (f"{c}.key_projector.", f"{c}.projector.") for c in ("holistic", "local")
    ]
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        for key, query in pairs:
            if name.startswith(key):
                moved = parameters[query + name.removeprefix(key)]
                torch.testing.assert_close(parameter, 0.75 * before[name] + 0.25 * moved)


def test_keys_are_normalised_by_the_statistics_of_earlier_keys():
    model, batch = toy_model(), toy_batch(0)
    hidden = []
    model.holistic.key_projector.first.register_forward_hook(lambda module, args, rows: hidden.append(rows))
    step(model, batch)
    norm = model.holistic.key_projector.norm
    torch.testing.assert_close(norm.running_mean, hidden[0].mean(0))
    torch.testing.assert_close(norm.running_var, hidden[0].var(0))
    before = norm.running_mean.clone()
    model.eval()
    with torch.no_grad():
        model(batch)
    assert torch.equal(norm.running_mean, before)


def test_keys_of_different_images_stay_apart_while_the_query_encoder_moves():
    """Normalised by the queries' statistics they had cosine 1.00 after 20 steps, and HCL was ln(1 + K)."""
    model = toy_model(tiny_settings(terms=("hcl", "lcl", "det")), queues=(16, 48))
    for seed in range(30):
        step(model, toy_batch(seed), lr=0.2)
    for keys in queued(model):
        cosines = keys @ keys.T
        apart = cosines[~torch.eye(len(keys), dtype=torch.bool)]
        assert apart.mean().item() < 0.95


def test_momentum_branch_is_always_in_eval_mode():
    model = toy_model()
    for mode in (True, False, True):
        model.train(mode)
        parts = (model.key_encoder, model.holistic.key_projector, model.local.key_projector)
        assert not any(module.training for part in parts for module in part.modules())
        assert model.holistic.projector.training == mode


def test_queued_keys_are_unit_norm_after_every_step():
    model = toy_model(queues=(6, 9))
    for seed in range(3):
        step(model, toy_batch(seed))
        for keys in queued(model):
            norms = keys.norm(dim=1)
            torch.testing.assert_close(norms[norms > 0], torch.ones_like(norms[norms > 0]))


# reconstruction inside the step


def test_perfect_reconstruction_without_masks_costs_exactly_nothing():
    model, batch = toy_model(), toy_batch(0)
    model.generator = Repeat(batch.query)
    terms = model.terms(dataclasses.replace(batch, valid=torch.zeros_like(batch.valid)))
    assert terms["ar"].item() == 0.0 and terms["sr"].item() == 0.0
    assert model.terms(batch)["sr"].item() > 0.0  # masks are seen


def test_half_size_reconstructs_the_averaged_image():
    model = toy_model(tiny_settings(reconstruction={"scale": "half"}))
    batch = toy_batch(0)
    half = F.avg_pool2d(batch.query, 2)
    terms = model.terms(batch)
    with torch.no_grad():
        found = model.generator(model.detector.encoder.trunk(batch.query)[-1])
    assert found.shape == half.shape  # the generator's own size: nothing is interpolated
    per_image = [
        (found - half)[i, :, : int(h) // 2, : int(w) // 2].square().mean()
        for i, (w, h) in enumerate(batch.query_wh.tolist())
    ]
    torch.testing.assert_close(terms["ar"], torch.stack(per_image).mean())
    model.generator = Repeat(half)
    assert model.terms(batch)["ar"].item() == 0.0


def hidden(mask, shape_hw, factor):
    """(H, W) pixels whose centre, in pixels of the full view, lies in the rectangle."""
    ys, xs = ((torch.arange(side) + 0.5) * factor for side in shape_hw)
    x1, y1, x2, y2 = mask.tolist()
    return ((ys >= y1) & (ys < y2))[:, None] & ((xs >= x1) & (xs < x2))[None]


@pytest.mark.parametrize(("scale", "factor"), [("full", 1), ("half", 2)])
@pytest.mark.parametrize("canvas_wh", [(96, 64), (96, 160)])
def test_semantic_reconstruction_equals_its_equation_from_parts(scale, factor, canvas_wh):
    model = toy_model(tiny_settings(reconstruction={"scale": scale}))
    batch = toy_batch(0, canvas_wh=canvas_wh, invalid=[(1, 2)])
    trunk, expected = model.detector.encoder.trunk, 0.0
    with torch.no_grad():
        levels = trunk(batch.query)
        painted = model.generator(levels[-1])
        if scale == "full":
            painted = F.interpolate(painted, scale_factor=2, mode="bilinear")
        for i, (width, height) in enumerate((batch.query_wh // factor).int().tolist()):
            painted[i, :, height:], painted[i, :, :, width:] = 0, 0
            for mask in batch.masks[i][batch.valid[i]]:
                painted[i, :, hidden(mask, painted.shape[-2:], factor)] = 0
        targets = levels if scale == "full" else halved_levels(levels, batch.query_wh)
        for target, level, stride in zip(targets, trunk(painted), STRIDES, strict=True):
            for i, (width, height) in enumerate((batch.query_wh // factor).int().tolist()):
                seen = (i, slice(None), slice(-(-height // stride)), slice(-(-width // stride)))
                expected += (target[seen] - level[seen]).square().mean() / 4
        torch.testing.assert_close(model.terms(batch)["sr"], expected)


@pytest.mark.parametrize("scale", ["full", "half"])
@pytest.mark.parametrize("canvas_wh", [(96, 64), (64, 96), (160, 96)])
def test_padding_of_the_canvas_is_not_learnt(scale, canvas_wh):
    """What the generator paints beside the images changes neither loss."""
    model = toy_model(tiny_settings(terms=("ar", "sr"), reconstruction={"scale": scale}))
    batch = toy_batch(0, canvas_wh=canvas_wh)
    size = canvas_wh if scale == "full" else (canvas_wh[0] // 2, canvas_wh[1] // 2)
    painted = torch.randn(4, 3, size[1], size[0], generator=torch.Generator().manual_seed(1))
    losses = []
    for beside in (0.0, 50.0):
        for image, wh in zip(
            painted, (batch.query_wh // (1 if scale == "full" else 2)).int().tolist(), strict=True
        ):
            image[:, wh[1] :], image[:, :, wh[0] :] = beside, beside
        model.generator = Repeat(painted.clone())
        losses.append({name: value.item() for name, value in model.terms(batch).items()})
    assert losses[0] == losses[1]


def test_images_weigh_the_same_whatever_their_size():
    """A batch's AR and SR are the means of its images' own."""
    for scale in ("full", "half"):
        model, batch = toy_model(tiny_settings(reconstruction={"scale": scale})), toy_batch(3)
        whole = model.terms(batch)
        alone = [model.terms(shard(batch, i, 4)) for i in range(4)]
        for term in ("ar", "sr"):
            torch.testing.assert_close(whole[term], torch.stack([a[term] for a in alone]).mean())


# precision, resume, speed


def test_bf16_runs_in_trunk_and_generator_alone():
    full, low = toy_model(), toy_model(tiny_settings(precision="bf16"))
    low_levels, dtypes = [], set()
    low.detector.backbone.register_forward_hook(lambda module, args, output: low_levels.extend(output))
    low.register_forward_hook(lambda module, args, losses: dtypes.update(v.dtype for v in losses.values()))
    for seed in (0, 1):
        expected = step(full, toy_batch(seed))
        # cosines may be anywhere near zero
        assert step(low, toy_batch(seed)) == pytest.approx(expected, rel=0.05, abs=0.006)
    assert {level.dtype for level in low_levels} == {torch.bfloat16}
    assert dtypes == {torch.float32}
    assert {v.dtype for v in low.state_dict().values() if torch.is_tensor(v)} == {torch.float32, torch.int64}
    assert all(p.grad.dtype == torch.float32 for p in low.parameters() if p.requires_grad)


def test_small_momentum_steps_survive_bf16():
    """1 - m = 0.001 of a small change is below bf16's resolution; the key encoder must move all the same."""
    model = toy_model(tiny_settings(precision="bf16"))
    key, query = (part.backbone.stem.weight for part in (model.key_encoder, model.detector))
    for seed in (0, 1):
        before = key.double()
        step(model, toy_batch(seed), lr=0.01)
        moved = 0.001 * (query.double() - before)
        assert moved.abs().max() > 1e-7
        torch.testing.assert_close(key.double() - before, moved, rtol=0, atol=3e-8)


def test_resume_is_exact_to_the_bit(tmp_path):
    model = toy_model(queues=(6, 7))
    for seed in range(3):
        step(model, toy_batch(seed))
    torch.save(model.state_dict(), tmp_path / "state.pth")
    again = toy_model(queues=(6, 7), seed=5)
    again.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True), strict=True)
    for seed in (3, 4):
        assert step(model, toy_batch(seed)) == step(again, toy_batch(seed))
    for (name, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b, name


OURS = ("hcl", "lcl", "ar", "sr")


@pytest.mark.parametrize("scale", ["full", "half"])
@pytest.mark.parametrize("terms", [*((t,) for t in OURS), OURS[:2], OURS[:3], ("hcl", "lcl", "sr"), OURS])
def test_no_term_of_ours_makes_the_host_wait(terms, scale):
    settings = tiny_settings(terms=terms, reconstruction={"scale": scale})
    model, batch = toy_model(settings), toy_batch(0, invalid=[(1, 1)])
    for _ in range(2):  # the second time the queues hold keys
        with Syncs() as syncs:
            model(batch)["loss"].backward()
            model.after_step()
        assert syncs.found == []


@pytest.mark.parametrize(
    "place", ["feature_norms", "paint", "semantic_loss", "pooled", "momentum_update", "total_loss"]
)
def test_a_wait_anywhere_in_our_part_would_be_seen(place, monkeypatch):
    original = getattr(pretrain_model, place)
    model, batch = toy_model(tiny_settings(terms=OURS)), toy_batch(0)

    def waiting(*args, **kwargs):
        batch.valid[batch.valid].cpu()
        return original(*args, **kwargs)

    monkeypatch.setattr(pretrain_model, place, waiting)
    with Syncs() as syncs:
        model(batch)["loss"].backward()
        model.after_step()
    assert set(syncs.found) == {"aten.index.Tensor", "cpu"}


def test_overfits_a_few_images():
    """Both contrasts fall below chance (ln of the negatives plus one), and the images are painted."""
    model = toy_model(tiny_settings(terms=("hcl", "lcl", "ar")), queues=(16, 48))
    batches = [toy_batch(seed) for seed in range(2)]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.003)
    history = []
    for i in range(70):
        losses = model(batches[i % 2])
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        model.after_step()
        history.append({name: value.item() for name, value in losses.items()})
    last = {name: np.mean([losses[name] for losses in history[-10:]]) for name in history[0]}
    assert last["hcl"] < 0.8 * np.log(1 + 14) and last["lcl"] < 0.9 * np.log(1 + 42)
    assert last["ar"] < 0.5 * history[0]["ar"]


# two processes


class Records(Hook):
    """Keeps the history lines."""

    def __init__(self):
        self.lines = []

    def after_step(self, trainer, record):
        self.lines.append(dict(record))


NOT_ON_THE_SECOND = [(2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
UNEVEN = [[(0, 0), (3, 2)], NOT_ON_THE_SECOND, [(0, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]]
RUNS = {
    "everything": (tiny_settings(), [[], [(0, 1), (3, 0), (3, 2)], NOT_ON_THE_SECOND]),
    "half size, no predictor": (
        tiny_settings(reconstruction={"scale": "half"}, contrast={"predictor": False}),
        [[(1, 1)], [], []],
    ),
    "lcl and sr": (tiny_settings(terms=("lcl", "sr")), [NOT_ON_THE_SECOND, [], [(0, 0)]]),
    "in two parts": (tiny_settings(contrast={"norm": "none"}, accumulate=2), UNEVEN),
    "in two parts, batch norm": (tiny_settings(accumulate=2), UNEVEN),
    "no batch norm": (tiny_settings(contrast={"norm": "none"}), [[(1, 1)], NOT_ON_THE_SECOND, []]),
    # every row of Table 5, with L_det and without, and all that its table leaves out
    **{
        " ".join(row): (tiny_settings(terms=row), [NOT_ON_THE_SECOND, [(0, 0)]])
        for count in range(1, 6)
        for row in itertools.combinations(TERMS, count)
    },
}
FOUR = ("everything", "half size, no predictor", "lcl and sr", "no batch norm")  # an image for each process


def share(batch, rank, world):
    """A process's images, one by one, as a loader hands samples over."""
    return [shard(batch, i, 4) for i in range(rank * 4 // world, (rank + 1) * 4 // world)]


def joined(shards):
    """One batch of several."""
    fields = {}
    for name, first in vars(shards[0]).items():
        values = [getattr(s, name) for s in shards]
        if name == "canvas_wh":
            fields[name] = first
        else:
            fields[name] = [*itertools.chain(*values)] if name == "targets" else torch.cat(values)
    return PretrainBatch(**fields)


def parts(shards, count):
    """As `parts_of`, of batches of one image."""
    boxes = sum(int(s.valid.sum()) for s in shards)
    return [Part(shards[i::count], boxes) for i in range(count)]


def trainer_of(name, rank, world, hooks=(), **changes):
    """Two or three steps with the real Trainer (DistributedDataParallel for more than one process).

    In float64: rounding to float32 alone moves a gradient norm by 5e-4 in three steps.
    """
    settings, invalid = RUNS[name]
    settings = dataclasses.replace(settings, **changes)
    model = toy_model(settings, queues=(10, 20)).double()
    model.to_batch = lambda shards: in_float64(joined(shards))
    return Trainer(
        model,
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9),
        Schedule((len(invalid),), (), 0.05),
        lambda start: (
            share(toy_batch(s, invalid=invalid[s]), rank, world) for s in range(start, len(invalid))
        ),
        images_per_step=4,
        process=Process(rank, world, torch.device("cpu")),
        accumulate=settings.accumulate,
        split=parts,
        hooks=hooks,
    )


def train(name, rank, world, **changes):
    """History lines and last state."""
    records = Records()
    trainer = trainer_of(name, rank, world, [records], **changes)
    trainer.train()
    return records.lines, trainer.model.state_dict()


def train_all(rank, world):
    return {name: train(name, rank, world) for name in (RUNS if world == 2 else FOUR)}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return together(2, train_all, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four_processes(tmp_path_factory):
    return together(4, train_all, tmp_path_factory.mktemp("four"))


def assert_same_run(found, expected):
    for line, expected_line in zip(found[0], expected[0], strict=True):
        assert line == pytest.approx(expected_line, rel=1e-9, abs=1e-9)
    for key, value in expected[1].items():
        if torch.is_tensor(value):
            torch.testing.assert_close(found[1][key], value, rtol=1e-9, atol=1e-9, msg=key)
        else:
            assert found[1][key] == value, key


def assert_equal_to_one(results, name):
    expected = train(name, 0, 1)
    for result in results:
        assert_same_run(result[name], expected)


def assert_same_everywhere(results, name):
    (_, first), *others = (result[name] for result in results)
    for _, other in others:
        for key, value in first.items():
            assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key], key


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(two_processes, name):
    assert_equal_to_one(two_processes, name)


@pytest.mark.parametrize("name", RUNS)
def test_both_processes_hold_the_same_state(two_processes, name):
    assert_same_everywhere(two_processes, name)


@pytest.mark.parametrize("name", FOUR)
def test_four_processes_equal_one(four_processes, name):
    """Batch norm of one row each, and two of them without a box."""
    assert_equal_to_one(four_processes, name)
    assert_same_everywhere(four_processes, name)


def test_the_same_run_again_is_the_same_to_the_bit():
    (lines, state), (again, other) = (train("everything", 0, 1) for _ in range(2))
    assert lines == again
    for key, value in state.items():
        assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key], key


# a batch in parts


def test_a_batch_in_parts_is_the_same_step(two_processes):
    """Losses, gradient norm, weights, momentum branch, both queues slot by slot; boxes lack unevenly."""
    whole = train("in two parts", 0, 1, accumulate=1)
    assert whole[0][-1]["lcl"] > 0 and whole[0][-1]["hcl"] > 0
    in_parts = [train("in two parts", 0, 1, accumulate=count) for count in (2, 4)]
    for found in (*in_parts, *(result["in two parts"] for result in two_processes)):
        assert_same_run(found, whole)
        for name in ("holistic.queue.image_ids", "local.queue.image_ids"):
            assert torch.equal(found[1][name], whole[1][name])


class KeepsState(Hook):
    """The state after the second step, as a file holds it."""

    def __init__(self, path):
        self.path = path

    def after_step(self, trainer, record):
        if trainer.step == 2:
            torch.save(trainer.state(), self.path)


def test_a_run_in_parts_resumes_exactly_to_the_bit(tmp_path):
    records = Records()
    whole = trainer_of("in two parts, batch norm", 0, 1, [records, KeepsState(tmp_path / "state.pth")])
    whole.train()
    rest = Records()
    again = trainer_of("in two parts, batch norm", 0, 1, [rest])
    again.restore(torch.load(tmp_path / "state.pth", weights_only=True))
    again.train()
    assert rest.lines == records.lines[2:]
    expected = whole.model.state_dict()
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, expected[key]) if torch.is_tensor(value) else value == expected[key], key


def test_batch_norm_is_what_parts_do_not_equal():
    (whole, _), (in_parts, _) = (train("in two parts, batch norm", 0, 1, accumulate=n) for n in (1, 2))
    assert in_parts[1]["lcl"] != pytest.approx(whole[1]["lcl"], rel=1e-3)
    assert in_parts[0]["sr"] == pytest.approx(whole[0]["sr"], rel=1e-4)


def test_keys_of_all_parts_are_enqueued_after_the_step():
    model = toy_model(tiny_settings(accumulate=2), queues=(8, 24))
    before = {n: p.clone() for n, p in model.holistic.key_projector.named_parameters()}
    model.to_batch = joined
    first = [model(part) for part in parts(share(toy_batch(0), 0, 1), 2)]
    assert [losses["hcl"].item() for losses in first] == [0.0, 0.0]  # the second meets no key of the first
    assert (model.holistic.queue.image_ids == EMPTY).all()
    with torch.no_grad():
        for parameter in model.holistic.projector.parameters():
            parameter += 1.0
    model.after_step()
    for name, parameter in model.holistic.key_projector.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.001, msg=name)  # once: 1 - m
    assert model.holistic.queue.image_ids.tolist() == [0, 1, 2, 3, *[EMPTY] * 4]
    assert model.local.queue.image_ids[:12].tolist() == [image for image in range(4) for _ in range(3)]


# MMDetection's detector


def photograph_like(random, canvas_wh):
    coarse = torch.randn(2, 3, 4, 6, generator=random)
    return F.interpolate(coarse, size=(canvas_wh[1], canvas_wh[0]), mode="bilinear")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_parameter_of_a_real_detector_learns(precision):
    from pipeline.detectors.build import build_model, model_config
    from pipeline.detectors.settings import DetectorSettings
    from pipeline.detectors.two_stage import TwoStageModel

    sizes = {"fpn_channels": 32, "fc_channels": 64, "anchor_scale": 4, "finest_scale": 14}
    settings = DetectorSettings(depth=18, norm="gn", rpn_proposals=50, roi_samples=32, **sizes)
    model = TwoDRCL(
        TwoStageModel(build_model(model_config(settings, 5), seed=0)),
        tiny_settings(precision=precision),
        (8, 16),
        lambda batch: batch,
    ).train()
    random, canvas_wh = torch.Generator().manual_seed(0), (96, 64)
    boxes = torch.tensor([[4.0, 4, 30, 30], [20, 10, 60, 50], [1, 2, 90, 60]]).repeat(2, 1, 1)
    targets = [Target(boxes[0, :2].numpy(), np.array([1, 4]), (90, 60), key) for key in range(2)]
    batch = PretrainBatch(
        query=photograph_like(random, canvas_wh),
        key=photograph_like(random, canvas_wh),
        query_wh=torch.tensor([[90.0, 60], [96, 64]]),
        key_wh=torch.tensor([[90.0, 60], [96, 64]]),
        query_boxes=boxes,
        key_boxes=boxes,
        masks=(boxes / 2 + boxes[..., :2].repeat(1, 1, 2) / 2).long(),
        valid=torch.ones(2, 3, dtype=torch.bool),
        image_ids=torch.tensor([3, 4]),
        targets=targets,
        canvas_wh=canvas_wh,
    )
    losses = model(batch)
    losses["loss"].backward()
    model.after_step()
    assert set(losses) >= {"loss", *TERMS}
    assert all(torch.isfinite(value) and value.dtype == torch.float32 for value in losses.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == ("key_" not in name), name
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    assert {value.dtype for value in model.state_dict().values() if torch.is_tensor(value)} <= {
        torch.float32,
        torch.int64,
    }
    assert model.holistic.queue.image_ids[:2].tolist() == [3, 4]
