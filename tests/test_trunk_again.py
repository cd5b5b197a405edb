"""The second pass of SR through the trunk: the plain pass to the bit, and less left for the backward pass."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from syncs import Syncs
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.two_stage import Encoder, TwoStageModel

SMALL: dict[str, Any] = {"stem_channels": 16, "fpn_channels": 32, "fc_channels": 16}
Pass = Callable[[Tensor], tuple[Tensor, ...]]


def encoder_of(depth: int = 18, norm: str = "frozen-bn") -> Encoder:
    settings = DetectorSettings(depth=depth, norm=norm, **SMALL)  # type: ignore[arg-type]
    encoder = TwoStageModel(build_model(model_config(settings, 4), seed=0)).encoder
    random = torch.Generator().manual_seed(1)
    for name, buffer in encoder.backbone.named_buffers():  # statistics that are somebody's
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=random) + float(name.endswith("var")))
    return encoder.train()


def images(canvas_hw: tuple[int, int] = (64, 96)) -> Tensor:
    return torch.randn(2, 3, *canvas_hw, generator=torch.Generator().manual_seed(0))


def levels_and_gradients(encoder: Encoder, walk: Pass, given: Tensor) -> dict[str, Tensor]:
    """After a plain pass through the same trunk, as in a step: both leave gradients in the same weights."""
    encoder.zero_grad(set_to_none=True)
    leaf = given.clone().requires_grad_()
    first, levels = encoder.trunk(given.flip(0)), walk(leaf)
    sum((a.double() - b).square().mean() for a, b in zip(first, levels, strict=True)).backward()  # type: ignore[union-attr]
    assert leaf.grad is not None and leaf.grad.abs().max() > 0
    gradients = {n: p.grad.clone() for n, p in encoder.backbone.named_parameters() if p.grad is not None}
    return {f"c{i}": level.detach() for i, level in enumerate(levels, 2)} | {"image": leaf.grad} | gradients


@pytest.mark.parametrize(("depth", "norm"), itertools.product((18, 50), ("frozen-bn", "gn")))
@pytest.mark.parametrize("precision", ["float64", "float32", "bf16"])
def test_it_is_the_plain_pass_to_the_bit(depth: int, norm: str, precision: str) -> None:
    encoder, given, bf16 = encoder_of(depth, norm), images(), precision == "bf16"
    if precision == "float64":
        encoder, given = encoder.double(), given.double()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    again = levels_and_gradients(encoder, lambda x: encoder.trunk_again(x, bf16), given)
    plain = levels_and_gradients(encoder, lambda x: encoder.trunk(x, bf16), given)
    assert again.keys() == plain.keys() and len(plain) > 40
    assert [again[f"c{i}"].dtype == torch.bfloat16 for i in (2, 3, 4, 5)] == [bf16] * 4
    for name, value in plain.items():
        assert torch.equal(again[name], value), name
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_stem_and_first_stage_are_computed_again_and_nothing_else() -> None:
    encoder, given = encoder_of(50), images()
    backbone = encoder.backbone

    def flops(work: Callable[[], Any]) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    def backward_of(walk: Pass) -> None:
        walk(given.clone().requires_grad_())[-1].sum().backward()

    plain, again = (flops(lambda w=w: backward_of(w)) for w in (encoder.trunk, encoder.trunk_again))
    stem = flops(lambda: backbone.conv1(given))
    first = flops(lambda: backbone.layer1(torch.zeros(2, 16, 16, 24)))
    assert again - plain == stem + first
    assert (again - plain) / plain < 0.1


def kept(encoder: Encoder, walk: Pass, given: Tensor) -> int:
    """Bytes that are no weights."""
    state = {t.untyped_storage().data_ptr() for t in encoder.state_dict(keep_vars=True).values()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = given.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        levels = walk(leaf)
    del levels
    return sum(found.values())


@pytest.mark.parametrize("depth", [18, 50])
def test_it_leaves_little_more_than_half_of_what_the_plain_pass_leaves(depth: int) -> None:
    encoder, given = encoder_of(depth), images((128, 160))
    assert kept(encoder, encoder.trunk_again, given) < 0.6 * kept(encoder, encoder.trunk, given)


def test_neither_pass_makes_the_host_wait() -> None:
    encoder, leaf = encoder_of(), images().requires_grad_()
    with Syncs() as syncs:
        encoder.trunk_again(leaf)[-1].sum().backward()
    assert syncs.found == []


def test_without_gradients_it_is_just_the_trunk() -> None:
    encoder = encoder_of()
    with torch.no_grad():
        found, expected = encoder.trunk_again(images()), encoder.trunk(images())
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(("depth", "norm"), [(18, "frozen-bn"), (50, "gn")])
def test_with_constant_weights_it_is_the_plain_pass_too_and_the_image_alone_gets_a_gradient(
    depth: int, norm: str
) -> None:
    encoder, (given, leaf) = encoder_of(depth, norm).double(), (images().double() for _ in range(2))
    for image in (given, leaf):
        image.requires_grad_()
    plain, constant = encoder.trunk(given), encoder.trunk_again(leaf, are_weights_constant=True)
    for level, found in zip(plain, constant, strict=True):
        assert torch.equal(level, found)
    sum((level.square().mean() for level in constant), torch.zeros(())).backward()
    assert all(weight.grad is None for weight in encoder.parameters())
    sum((level.square().mean() for level in plain), torch.zeros(())).backward()
    assert leaf.grad is not None and given.grad is not None
    torch.testing.assert_close(leaf.grad, given.grad, rtol=1e-12, atol=1e-15)
    assert all(weight.requires_grad == (weight.grad is not None) for weight in encoder.backbone.parameters())
