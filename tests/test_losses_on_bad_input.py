"""Every loss of the table, also on ATSS: counts that do not fit, a class without objects, no object."""

import importlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import InputError, MismatchedInput, MissingInput, UsageError
from pipeline.finetune.method import ONE_STAGE, ClassCounts
from pipeline.finetune.methods import METHODS

METHODS_OF_OURS = {name: method for name, method in METHODS.items() if "." in method.loss}
METHODS_OF_OURS["ecm on atss"] = METHODS["ecm"].on(ONE_STAGE)
COUNTS = ClassCounts([40, 2, 9, 150], [90, 2, 20, 1500], 500)


def class_of(name):
    module, _, kind = METHODS_OF_OURS[name].loss.rpartition(".")
    return getattr(importlib.import_module(module), kind)


def made(name, counts=COUNTS, num_classes=4, **changes):
    config = METHODS_OF_OURS[name].loss_config(num_classes, counts, seed=3)
    config.pop("type")
    return class_of(name)(**{**config, **changes})


def columns(name, loss):
    return loss.num_classes if name == "ecm on atss" else loss.get_cls_channels(loss.num_classes)


def trained(name, loss, labels):
    """Value and gradient, of logits that are the same for every loss."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(len(labels), columns(name, loss), generator=generator).requires_grad_()
    found = loss(logits, torch.tensor(labels), torch.ones(len(labels)), avg_factor=3.0)
    value = sum(found.values()) if isinstance(found, dict) else found
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("name", METHODS_OF_OURS)
@pytest.mark.parametrize("key", ["image_counts", "instance_counts"])
def test_counts_of_another_number_of_classes_are_refused_with_both(name, key, tmp_path):
    """Whether the loss needs them or not: they are those of other annotations."""
    for counts in ([1, 2, 3], [1, 2, 3, 4, 5]):
        with pytest.raises(
            MismatchedInput, match=f"{key}: {len(counts)} categories, but the detector has 4"
        ) as bad:
            made(name, **{key: counts})
        assert "2drcl stats" in bad.value.hint and bad.value.exit_code == 3
    column = key.removesuffix("s")
    pq.write_table(pa.table({"category_id": [1, 2, 3], column: [4, 5, 6]}), tmp_path / "categories.parquet")
    with pytest.raises(MismatchedInput, match=r"categories\.parquet: 3 categories, but the detector has 4"):
        made(name, **{key: tmp_path / "categories.parquet"})
    with pytest.raises(MissingInput, match=r"nowhere\.parquet does not exist"):
        made(name, **{key: tmp_path / "nowhere.parquet"})
    for wrong in (-3, 0.5, float("nan"), None, "two"):
        with pytest.raises(InputError, match=f"{key}: no whole number from 0 on at the 0-based positions 2"):
            made(name, **{key: [1, 2, wrong, 4]})


@pytest.mark.parametrize("name", METHODS_OF_OURS)
def test_no_class_and_negative_images_are_refused(name):
    counted = {"image_counts": None, "instance_counts": None}
    with pytest.raises(UsageError, match=rf"{class_of(name).__name__}: num_classes is 0"):
        made(name, num_classes=0, **counted)
    with pytest.raises(UsageError, match="num_images -1"):
        made(name, num_images=-1)


@pytest.mark.parametrize("name", METHODS_OF_OURS)
def test_a_head_of_other_classes_is_refused_with_both_numbers(name):
    loss = made(name)
    with pytest.raises(MismatchedInput, match="is for 4 classes, its box head for 3"):
        loss.get_cls_channels(3)
    width = columns(name, loss)
    for other in (width - 1, width + 1):
        with pytest.raises(UsageError, match=f"needs {width} logits per RoI, but the head gives {other}"):
            loss(torch.zeros(2, other), torch.tensor([0, 4]))


@pytest.mark.parametrize("name", METHODS_OF_OURS)
@pytest.mark.parametrize("counts", [([40, 0, 9, 150], [90, 0, 20, 1500]), ([0, 0, 0, 7], [0, 0, 0, 7])])
def test_a_class_without_objects_trains_as_others_do(name, counts):
    """Also when one of its objects turns up after all: annotations may have changed."""
    loss = made(name, ClassCounts(*counts, 500))
    for labels in ([0, 1, 2, 3, 4, 4], [4, 4], [1]):
        value, gradient = trained(name, loss, labels)
        assert value.isfinite() and gradient.isfinite().all() and gradient.abs().sum() > 0
    assert all(v.isfinite().all() for v in loss.state_dict().values())


@pytest.mark.parametrize("name", METHODS_OF_OURS)
def test_one_class_is_enough_or_refused(name):
    if name == "ecm on atss":
        with pytest.raises(UsageError, match="there is only one") as refused:
            made(name, ClassCounts([5], [6], 9), num_classes=1)
        assert "focal" in refused.value.hint
        return
    value, gradient = trained(name, made(name, ClassCounts([5], [6], 9), num_classes=1), [0, 1, 1])
    assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", METHODS_OF_OURS)
@pytest.mark.parametrize("labels", [[4, 4, 4], [4]])
def test_background_alone_has_a_finite_gradient(name, labels):
    loss = made(name)
    value, gradient = trained(name, loss, labels)
    assert value.isfinite() and value > 0 and gradient.isfinite().all()
    assert all(v.isfinite().all() for v in loss.state_dict().values())


@pytest.mark.parametrize("name", METHODS_OF_OURS)
def test_a_nan_is_not_averaged_away_and_leaves_nothing_in_the_next_step(name):
    """A trainer stops at such a loss; who goes on from the last checkpoint has the state from before."""
    loss = made(name)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    logits = torch.zeros(3, columns(name, loss))
    logits[0, 1] = torch.nan
    found = loss(logits, torch.tensor([0, 3, 4]), torch.ones(3), avg_factor=3.0)
    assert (sum(found.values()) if isinstance(found, dict) else found).isnan()
    loss.load_state_dict(before)
    fresh = made(name)
    assert torch.equal(trained(name, loss, [0, 3, 4])[0], trained(name, fresh, [0, 3, 4])[0])
