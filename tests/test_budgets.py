"""Arithmetic and operator counts of our part of the step: a change that costs more must say so here."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from toy_detector import tiny_settings, toy_batch, toy_model

from pipeline.pretrain.contrast import info_nce, unit_rows
from pipeline.pretrain.projection import ProjectionMLP
from pipeline.pretrain.reconstruction import GENERATOR_WIDTHS, Generator


def flops(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class Operators(TorchDispatchMode):
    """Counts what reaches the dispatcher: on a GPU about one launch each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_generator_on_a_full_size_c5_takes_62_gflop_and_three_times_that_with_its_gradient() -> None:
    with torch.device("meta"):
        generator, c5 = Generator(2048), torch.zeros(1, 2048, 25, 42, requires_grad=True)  # of 800 x 1344
    widths = (2048, *GENERATOR_WIDTHS)
    sizes = [25 * 42 * 4**i for i in range(4)]
    by_hand = sum(2 * 16 * a * b * n for a, b, n in zip(widths, widths[1:], sizes, strict=False))
    assert flops(lambda: generator(c5)) == by_hand == pytest.approx(62.1e9, rel=1e-3)
    assert flops(lambda: generator(c5).sum().backward()) == 3 * by_hand


def test_contrast_is_one_product_with_the_queue() -> None:
    query, key = (unit_rows(torch.randn(12, 32)) for _ in range(2))
    queue, excluded = torch.randn(512, 32), torch.zeros(12, 512, dtype=torch.bool)
    assert flops(lambda: info_nce(query, key, queue, excluded, 0.2)) == 2 * 12 * 512 * 32


def test_a_projector_is_its_two_layers() -> None:
    layers = ProjectionMLP(2048, 256, 256)
    rows, valid = torch.randn(16, 2048), torch.ones(16, dtype=torch.bool)
    assert flops(lambda: layers(rows, valid)) == 2 * 16 * (2048 * 256 + 256 * 256)


def operators(terms: tuple[str, ...], images: int) -> int:
    model, batch = toy_model(tiny_settings(terms=terms)), toy_batch(0, images)
    model(batch)["loss"].backward()
    model.after_step()
    with Operators() as spy:
        model(batch)["loss"].backward()
        model.after_step()
    return spy.count


@pytest.mark.parametrize(
    ("terms", "limit"),
    [(("hcl",), 535), (("hcl", "lcl"), 1115), (("ar",), 165), (("hcl", "lcl", "ar", "sr"), 1450)],
)
def test_operators_of_a_step_do_not_grow(terms: tuple[str, ...], limit: int) -> None:
    assert operators(terms, 2) <= limit


def test_operators_do_not_depend_on_the_number_of_images() -> None:
    assert operators(("hcl", "ar", "sr"), 2) == operators(("hcl", "ar", "sr"), 5)
