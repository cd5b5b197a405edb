"""The whole step against the paper's equations written out plainly, in float64: losses and every gradient.

The reference knows the toy's layers and nothing of our modules: images one by one, keys one by one, batch
norm by torch.
"""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from toy_detector import in_float64, tiny_settings, toy_batch, toy_model

LITERAL = {
    "contrast": {"predictor": False, "mask_same_image": False},
    "reconstruction": {"detach_target": False, "second_pass": "trained"},
}


def double(batch):
    """In float64; two of the images are the same one, and all come again in every batch."""
    return dataclasses.replace(in_float64(batch), image_ids=torch.tensor([7, 7, 0, 9]))


def mlp(network, rows, valid):
    """A.1: linear, batch norm over the rows that exist, ReLU, linear."""
    norm, hidden = network.norm, rows @ network.first.weight.T
    if not network.training:
        hidden = F.batch_norm(hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    else:
        mean, variance = hidden[valid].mean(dim=0), hidden[valid].var(dim=0, unbiased=False)
        hidden = (hidden - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias
    return hidden.clamp(min=0) @ network.last.weight.T + network.last.bias


def contrast(branch, query_rows, key_rows, ids, valid):
    """Eq. 1 or eq. 2 with t = 0.2: a mean over the rows that exist."""
    projected = mlp(branch.projector, query_rows, valid)
    if branch.predictor is not None:
        projected = mlp(branch.predictor, projected, valid)
    keys, losses = mlp(branch.key_projector, key_rows, valid).detach(), []
    for q, k, own, exists in zip(projected, keys, ids.tolist(), valid.tolist(), strict=True):
        if not exists:
            continue
        q, k = q / q.norm(), k / k.norm()
        total = positive = torch.exp((q * k).sum() / 0.2)
        for row, image in zip(branch.queue.keys, branch.queue.image_ids.tolist(), strict=True):
            is_negative = row.any() and not (branch.settings.mask_same_image and image == own)
            total = total + torch.exp((q * row).sum() / 0.2) if is_negative else total
        losses.append(-torch.log(positive / total))
    return torch.stack(losses).mean()


def gap(c5, sizes_wh):
    """Mean over the cells of stride 32 that see the image."""
    cells = (-(-sizes_wh // 32)).int().tolist()
    return torch.stack([m[:, :h, :w].mean(dim=(1, 2)) for m, (w, h) in zip(c5, cells, strict=True)])


def local_rows(encoder, levels, boxes):
    return encoder.box_features(encoder.pyramid(levels), boxes)


def reconstructions(model, batch, levels):
    """Eq. 5 and eq. 6, image by image."""
    painted = levels[-1]
    for number, layer in enumerate(model.generator.layers):
        painted = layer(painted) if number == 3 else layer(painted).clamp(min=0)
    painted = F.interpolate(painted, scale_factor=2, mode="bilinear")
    seen, appearance, semantics = torch.zeros_like(batch.query), [], []
    for i, (w, h) in enumerate(batch.query_wh.int().tolist()):
        appearance.append((batch.query[i, :, :h, :w] - painted[i, :, :h, :w]).square().mean())
        seen[i, :, :h, :w] = 1
        for x1, y1, x2, y2 in batch.masks[i][batch.valid[i]].tolist():
            seen[i, :, y1:y2, x1:x2] = 0
    backbone, settings = model.detector.backbone, model.settings.reconstruction
    weights = dict(backbone.named_parameters())
    if settings.second_pass == "frozen":
        weights = {name: weight.detach() for name, weight in weights.items()}
    masked = functional_call(backbone, weights, (painted * seen,))
    for target, again, stride in zip(levels, masked, (4, 8, 16, 32), strict=True):
        target = target.detach() if settings.detach_target else target
        for i, (w, h) in enumerate(batch.query_wh.int().tolist()):
            cells = (i, slice(None), slice(-(-h // stride)), slice(-(-w // stride)))
            semantics.append((target[cells] - again[cells]).square().mean())
    return sum(appearance) / len(appearance), sum(semantics) / len(appearance)


def plain_step(model, batch):
    """Eq. 1, 2, 5, 6, L_det and eq. 8."""
    encoder, momentum = model.detector.encoder, model.key_encoder
    levels = encoder.trunk(batch.query)
    with torch.no_grad():
        key_levels = momentum.trunk(batch.key)
        key_rows = gap(key_levels[-1], batch.key_wh), local_rows(momentum, key_levels, batch.key_boxes)
    everything, ids = torch.ones(len(batch.image_ids), dtype=torch.bool), batch.image_ids
    query_rows = gap(levels[-1], batch.query_wh), local_rows(encoder, levels, batch.query_boxes)
    hcl = contrast(model.holistic, query_rows[0], key_rows[0], ids, everything)
    ids, valid = ids.repeat_interleave(batch.valid.shape[1]), batch.valid.flatten()
    lcl = contrast(model.local, query_rows[1], key_rows[1], ids, valid)
    ar, sr = reconstructions(model, batch, levels)
    losses = model.detector.detection_losses(encoder.pyramid(levels), batch.targets, batch.canvas_wh, False)
    det = sum(losses.values())
    total = 0.1 * hcl + 0.05 * lcl + 0.1 * ar + 0.9 * sr + det
    return {"loss": total, "hcl": hcl, "lcl": lcl, "ar": ar, "sr": sr, "det": det}


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("changes", [{}, LITERAL], ids=["default", "literal"])
def test_losses_and_gradients_of_a_step(changes):
    model = toy_model(tiny_settings(**changes), queues=(6, 14)).double()
    for seed in (0, 1):  # so that queues and running statistics hold something
        model(double(toy_batch(seed)))["loss"].backward()
        model.after_step()
    batch = double(toy_batch(2, invalid=[(0, 1), (3, 0), (3, 2)]))
    expected = plain_step(model, batch)
    wanted = gradients(model, expected["loss"])
    found = model(batch)
    for name, value in expected.items():
        assert value.dtype == torch.float64 and value > 0
        torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-12, msg=name)
    for name, gradient in gradients(model, found["loss"]).items():
        assert (gradient is None) == (wanted[name] is None) == ("key_" in name), name
        if gradient is not None:
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12, msg=name)
