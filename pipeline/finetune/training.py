"""From a plan to a running fine-tuning with one long-tailed method, and to its detector."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

import pipeline.finetune as losses  # registers the methods' losses
from pipeline.data.single_view import SingleViewDataset, ViewSample
from pipeline.detectors import atss
from pipeline.detectors.box_head import training_config
from pipeline.detectors.build import build_model
from pipeline.detectors.publish import publish_detector
from pipeline.detectors.supervised import SupervisedModel
from pipeline.detectors.weights import LoadReport, clone_state, load_initial, read_weights
from pipeline.engine.checkpoint import save_tensors
from pipeline.engine.distributed import Process, share_of
from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.engine.optimizer import sgd
from pipeline.finetune import heads, second_stage
from pipeline.finetune.initial_fill import InitialFill
from pipeline.finetune.last_layers import (
    CLASSIFIER,
    cls_predictor_of,
    is_plain,
    last_layers_to_renew,
    mask_predictor_of,
    meta_of,
)
from pipeline.finetune.method import Method
from pipeline.finetune.plan import FinetuneJob as FinetuneJob
from pipeline.finetune.plan import FinetunePlan as FinetunePlan
from pipeline.finetune.views import dataset_of, source_of
from pipeline.stats.schemes import alpha_schedule

# names of `finetune.runs.NAME.transfer` -> modules of the detectors
TRANSFERRED = {
    "backbone": ("backbone",),
    "neck": ("neck",),
    "rpn": ("rpn_head",),
    "roi": ("roi_head", "bbox_head"),
}
OWN_LOSSES, OWN_HEADS = losses.__name__, heads.__name__


class LossEpoch(Hook):
    """Tells the loss which epoch it is in, from 1, if it asks: PCB changes late in training.

    Comes after `Checkpoints`, because a checkpoint at the end of an epoch still holds that epoch.
    """

    def before_train(self, trainer: Trainer) -> None:
        self._tell(trainer)

    def after_step(self, trainer: Trainer, record: Record) -> None:
        self._tell(trainer)

    def _tell(self, trainer: Trainer) -> None:
        loss: Any = trainer.model.model.loss_cls
        step = min(trainer.step, trainer.schedule.total - 1)
        epoch = trainer.schedule.epoch_of(step) + 1
        if getattr(loss, "epoch", epoch) != epoch:
            loss.epoch = epoch


def build_untrained(plan: FinetunePlan) -> nn.Module:
    """The detector before any weights are loaded; raises what its loss has against the annotations."""
    config = training_config(plan.model_config())
    if plan.method.training_roi_head is not None:
        config["roi_head"] |= plan.method.training_roi_head
    return build_model(config, plan.job.seed)


def build_detector(plan: FinetunePlan) -> tuple[nn.Module, LoadReport]:
    """The detector with its initial weights, what shall not train frozen, and the account of the weights.

    Raises:
        MissingInput, InputError, MismatchedInput: the weights do not fit, see `load_initial` and, of a second
            stage, `pipeline.finetune.second_stage`.
    """
    detector = build_untrained(plan)
    if plan.second_stage is not None:
        return detector, _load_first(plan, detector, plan.second_stage.trains)
    drop = _running_state(detector) | _not_transferred(plan.job.run.transfer)
    path = Path(plan.job.init) if plan.job.init else None
    content = {} if path is None else read_weights(path)
    if plan.method.roi_head is not None and plan.method.name != meta_of(content).get("classifier"):
        drop |= dict.fromkeys(heads.NEW_LAYERS, f"only {plan.method.name} has them")
    classifier = atss.CLASSIFIER if plan.job.detector.type == "atss" else CLASSIFIER
    drop |= last_layers_to_renew(plan.method, content, detector, classifier)
    report = load_initial(
        detector,
        path,
        classes=plan.annotations.category_names,
        drop=drop,
        allow_partial=plan.job.finetune.allow_partial,
        pixels=plan.job.detector.init_pixels,
        foreign=_layers_of_others(plan.method),
    )
    return detector, report


def _layers_of_others(method: Method) -> dict[str, str]:
    """Layers that a plain head has not, and what to say of them where a file has them."""
    return {} if method.roi_head is not None else dict.fromkeys(heads.NEW_LAYERS, "only pcb has them")


def _not_transferred(transfer: Sequence[str]) -> dict[str, str]:
    """Modules that a run starts anew whatever its initial weights have, with the reason for the report."""
    if "all" in transfer:
        return {}
    why = f"transfer: {', '.join(transfer)}"
    return {
        module: why for name, modules in TRANSFERRED.items() for module in modules if name not in transfer
    }


def _load_first(plan: FinetunePlan, detector: nn.Module, trains: Sequence[str]) -> LoadReport:
    """Load the first stage's detector, and freeze what the second one leaves alone."""
    assert plan.job.init is not None, "a second stage starts from the first"
    path, classes = Path(plan.job.init), plan.annotations.category_names
    first = second_stage.read_first(path)
    second_stage.refuse_other_classes(path, first, classes)
    drop = _running_state(detector) | second_stage.parts_to_renew(plan.method, first)
    if CLASSIFIER not in drop:
        second_stage.refuse_other_kind(path, first, plan.method)
        second_stage.refuse_other_width(path, first, detector)
    report = load_initial(
        detector,
        path,
        classes=classes,
        drop=drop,
        allow_partial=plan.job.finetune.allow_partial,
        foreign=_layers_of_others(plan.method),
    )
    second_stage.freeze_all_but(detector, trains)
    second_stage.refuse_frozen_but_new(path, report, detector)
    return report


def _running_state(detector: nn.Module) -> dict[str, str]:
    """The loss, and modules of the heads without parameters: what they have counted is of their own run."""
    heads_of_objects = "roi_head" if hasattr(detector, "roi_head") else "bbox_head"
    parts = ["roi_head.bbox_head.loss_cls", "bbox_head.loss_cls"]
    for name, module in detector.get_submodule(heads_of_objects).named_modules(prefix=heads_of_objects):
        is_counting = any(True for _ in module.buffers()) and not any(True for _ in module.parameters())
        if is_counting and not any(name.startswith(f"{part}.") for part in parts):
            parts.append(name)
    return dict.fromkeys(parts, "running state starts empty")


def build_trainer(plan: FinetunePlan, process: Process, workers: int, hooks: Iterable[Hook]) -> Trainer:
    """The whole run, ready to train."""
    job, settings = plan.job, plan.job.finetune
    share_of(settings.batch_size, process.world, settings.accumulate)
    with_mask = job.detector.type == "mask-rcnn"
    detector, _ = build_detector(plan)
    bf16 = settings.precision == "bf16"
    model = SupervisedModel(detector, process.device, with_mask=with_mask, bf16=bf16).to(process.device)
    model.train()
    dataset = dataset_of(plan)
    return Trainer(
        model,
        sgd(model, plan.recipe.lr, settings.sgd_momentum, plan.weight_decay),
        plan.schedule,
        source_of(plan, dataset, process, workers),
        images_per_step=settings.batch_size,
        process=process,
        accumulate=settings.accumulate,
        clip_norm=plan.method.grad_clip if settings.clip_norm == "method" else settings.clip_norm,
        hooks=[*hooks, LossEpoch(), *_fill(detector, dataset)],
        describe=_describe(plan),
    )


def _fill(detector: nn.Module, dataset: Dataset[ViewSample]) -> list[Hook]:
    """What fills the memory of a head that has one."""
    head = getattr(detector, "roi_head", None)
    if not isinstance(head, heads.MemoryRoIHead):
        return []
    assert isinstance(dataset, SingleViewDataset), "a second stage has plain views"
    return [InitialFill(dataset, head.class_features.queue_size)]


def _describe(plan: FinetunePlan) -> Any:
    """alpha belongs in the history only where it drives the sampler."""
    if plan.job.run.sampler != "drb":
        return lambda step: {}
    alpha = alpha_schedule(plan.sampler.epochs, plan.job.sampling)
    return lambda step: {"alpha": float(alpha[plan.schedule.epoch_of(step)])}


def drawn_by(weights: Path | None) -> int:
    """Images drawn on the way to a file of weights: a detector of ours says so itself, others count as 0."""
    meta = {} if weights is None else read_weights(weights).get("meta")
    if not isinstance(meta, dict):
        return 0
    return int(meta.get("images_drawn_with_init", meta.get("images_drawn", 0)))


def save_first(plan: FinetunePlan, state: dict[str, Any], path: Path) -> None:
    """Write a first stage's detector for the second one, from the last checkpoint's model state."""
    classes = {"dataset_meta": {"classes": list(plan.annotations.category_names)}}
    weights = clone_state(state, SupervisedModel.PREFIX)
    save_tensors(path, {"state_dict": weights, "meta": {**classes, **_meta(plan)}})


def publish(plan: FinetunePlan, state: dict[str, Any], folder: Path, drawn: dict[str, int]) -> None:
    """Write detector.pth and config.py from the last checkpoint's model state.

    Args:
        plan: of the last stage.
        state: of its model.
        folder: of the product.
        drawn: `images_drawn` and `images_drawn_with_init` of all its stages.
    """
    settings = plan.job.finetune
    weights = clone_state(state, SupervisedModel.PREFIX)
    own = [OWN_LOSSES] if not is_plain(plan.method) else []
    own += [OWN_HEADS] if plan.method.roi_head is not None else []
    publish_detector(
        folder,
        {name: tensor for name, tensor in weights.items() if not name.startswith(heads.UNPUBLISHED)},
        plan.model_config(),
        plan.annotations.category_names,
        (settings.long_side, max(settings.short_sides)),
        {**_meta(plan), **drawn},
        custom_imports=tuple(own),
    )


def _meta(plan: FinetunePlan) -> dict[str, str]:
    """What a later stage needs to know of the detector's last layers."""
    meta = {
        "stage": "finetune",
        "classifier": plan.method.name,
        "cls_predictor": cls_predictor_of(plan.method),
    }
    if plan.job.detector.type == "mask-rcnn":
        meta["mask_predictor"] = mask_predictor_of(plan.method)
    return meta
