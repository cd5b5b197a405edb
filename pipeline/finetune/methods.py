"""The table of fine-tuning methods: plain data, one entry per method.

A new method with its own loss is a file beside this one with a `BoxHeadLoss`, an entry here, and a test.
Predictor and loss settings are mmdet configs; the recipe is that of the official configuration on LVIS v1
(batch 16, SGD, learning rate 0.02).
"""

import difflib
from typing import Any

from pipeline.errors import UsageError
from pipeline.finetune.method import ONE_STAGE, SCOPE, TWO_STAGE, ClassCounts, Method, OnATSS, SecondStage

NORMED_LINEAR = {"type": "NormedLinear", "tempearture": 20}  # mmdet spells the keyword so
NORMED_CONV = {"type": "NormedConv2d", "tempearture": 20}
CLASSIFIER = ("fc_cls",)
LAST_LAYERS = ("fc_cls", "fc_reg", "rpn", "mask_head")  # LOCE's and BACL's `selectp = 1`


def get_method(name: str) -> Method:
    """The entry of `name`.

    Raises:
        UsageError: no such method; the hint lists the known ones.
    """
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, n=1)
        known = f"known methods: {', '.join(METHODS)}"
        raise UsageError(f"unknown method: {name}", f"did you mean {close[0]}? {known}" if close else known)
    return METHODS[name]


def method_on(name: str, detector: str) -> Method:
    """The entry of `name` as it is on a `detector.type`.

    Raises:
        UsageError: no such method, or it is not defined for this detector; the message names those it is
            defined for, the hint the methods of this detector.
    """
    method = get_method(name)
    if detector not in method.detectors:
        known = ", ".join(other for other, entry in METHODS.items() if detector in entry.detectors)
        raise UsageError(
            f"{name} is not defined for detector.type {detector}, only for {', '.join(method.detectors)}",
            f"methods for {detector}: {known}",
        )
    return method.on(detector)


def _softmax(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"use_sigmoid": False, "loss_weight": 1.0}


def _bce(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"num_classes": num_classes, "loss_weight": 1.0}


def _eql(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {**_image_frequencies(num_classes, counts), "lambda_": 0.0011, "loss_weight": 1.0}


def _eqlv2(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"num_classes": num_classes, "gamma": 12.0, "mu": 0.8, "alpha": 4.0, "loss_weight": 1.0}


def _droploss(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {**_image_frequencies(num_classes, counts), "lambda_": 0.00177, "loss_weight": 1.0}


def _image_frequencies(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    image_counts = [int(n) for n in counts.image_counts]
    return {"num_classes": num_classes, "image_counts": image_counts, "num_images": int(counts.num_images)}


def _seesaw(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"num_classes": num_classes, "p": 0.8, "q": 2.0, "eps": 0.01, "loss_weight": 1.0}


def _ecm(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    instance_counts = [int(n) for n in counts.instance_counts]
    return {
        "num_classes": num_classes,
        "instance_counts": instance_counts,
        "fg_bg_ratio": 6.3313,
        "loss_weight": 1.0,
    }


def _ecm_on_atss(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    instance_counts = [int(n) for n in counts.instance_counts]
    focal = {"gamma": 2.0, "alpha": 0.25}
    return {
        "use_sigmoid": True,
        "num_classes": num_classes,
        "instance_counts": instance_counts,
        **focal,
        "loss_weight": 1.0,
    }


def _focal(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0}


def _bags(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "instance_counts": [int(n) for n in counts.instance_counts],
        "beta": 8,
        "bin_split": [10, 100, 1000],
        "loss_weight": 1.0,
    }


def _acsl(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    image_counts = [int(n) for n in counts.image_counts]
    return {
        "num_classes": num_classes,
        "image_counts": image_counts,
        "score_thr": 0.7,
        "loss_weight": 1.0,
    }


def _pcb(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "instance_counts": [int(n) for n in counts.instance_counts],
        "momentum": 0.99,
        "start_epoch": 17,
        "alpha": 0.4,
        "n_iter": 3,
        "loss_weight": 1.0,
    }


def _loce(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {"num_classes": num_classes, "momentum": 0.9, "loss_weight": 1.0}


def _bacl(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "alpha": 0.85,
        "prob_thr": 0.7,
        "reweight": True,
        "loss_weight": 1.0,
    }


def _rog(num_classes: int, counts: ClassCounts) -> dict[str, Any]:
    return {
        "num_classes": num_classes,
        "gamma": 1.0,
        "lam": 0.1,
        "delta_RS": 0.5,
        "base": "bce",
        "loss_weight": 1.0,
    }


_ENTRIES = (
    Method(
        name="ce",
        summary="softmax cross-entropy, images drawn alike: the plain detector",
        loss="CrossEntropyLoss",
        loss_arguments=_softmax,
        score="softmax over C + 1 columns",
        sampler="random",
        reference="He et al., Mask R-CNN, ICCV 2017; mmdet 3.3 configs/_base_/models/mask-rcnn_r50_fpn.py",
    ),
    Method(
        name="bce",
        summary="a binary loss per class and one for background, images drawn alike",
        loss="pipeline.finetune.bce.BCELoss",
        loss_arguments=_bce,
        score="sigmoid(class) (1 - sigmoid(background))",
        sampler="random",
        reference="as in BACL, TMM 2024; Tianhao-Qi/BACL mmdet/models/losses/bce.py, configs/bacl",
        fc_cls_bias_prior=0.001,
    ),
    Method(
        name="rfs",
        summary="softmax cross-entropy, images repeated by how few images show their rarest class",
        loss="CrossEntropyLoss",
        loss_arguments=_softmax,
        score="softmax over C + 1 columns",
        sampler="rfs",
        reference=(
            "Gupta et al., LVIS, CVPR 2019; "
            "mmdet 3.3 configs/lvis/mask-rcnn_r50_fpn_sample1e-3_ms-1x_lvis-v1.py"
        ),
    ),
    Method(
        name="irfs",
        summary="softmax cross-entropy, images repeated by image and instance frequency together",
        loss="CrossEntropyLoss",
        loss_arguments=_softmax,
        score="softmax over C + 1 columns",
        sampler="irfs",
        reference="Yaman et al., Instance-Aware Repeat Factor Sampling, arXiv 2305.08069; no official code",
    ),
    Method(
        name="eql",
        summary="a binary loss per class; objects of other classes do not push infrequent ones down",
        loss="pipeline.finetune.eql.EQLLoss",
        loss_arguments=_eql,
        score="sigmoid(class)",
        sampler="random",
        reference=(
            "Tan et al., Equalization Loss, CVPR 2020; "
            "tztztztztz/eqlv2 mmdet/models/losses/eql.py, configs/end2end/eql_r50_8x2_1x.py"
        ),
        fc_cls_bias_prior=0.001,
    ),
    Method(
        name="eqlv2",
        summary="a binary loss per class, weighted to balance the gradients that each class has received",
        loss="pipeline.finetune.eqlv2.EQLv2Loss",
        loss_arguments=_eqlv2,
        score="sigmoid(class) (1 - sigmoid(background))",
        sampler="random",
        reference=(
            "Tan et al., Equalization Loss v2, CVPR 2021; "
            "tztztztztz/eqlv2 mmdet/models/losses/eqlv2.py, configs/end2end/eqlv2_r50_8x2_1x.py"
        ),
        fc_cls_bias_prior=0.001,
    ),
    Method(
        name="droploss",
        summary="EQL, where background spares infrequent classes as often as the batch has none of them",
        loss="pipeline.finetune.droploss.DropLoss",
        loss_arguments=_droploss,
        score="sigmoid(class)",
        sampler="random",
        other_samplers=("rfs",),
        reference=(
            "Hsieh et al., DropLoss, AAAI 2021; timy90022/DropLoss "
            "projects/DropLoss/droploss/fast_rcnn.py, configs/droploss_mask_rcnn_R_50_FPN_1x.yaml"
        ),
        fc_cls_bias_prior=0.001,
        is_random=True,
    ),
    Method(
        name="seesaw",
        summary="softmax that spares rare classes by the counts seen so far; background apart",
        loss="pipeline.finetune.seesaw.SeesawLoss",
        loss_arguments=_seesaw,
        score="softmax over C classes x softmax(object, background)",
        sampler="rfs",
        other_samplers=("random",),
        reference=(
            "Wang et al., Seesaw Loss, CVPR 2021; "
            "mmdet 3.3 configs/seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1.py"
        ),
        cls_predictor=NORMED_LINEAR,
        epochs=24,
        milestones=(16, 22),
    ),
    Method(
        name="ecm",
        summary="a binary loss per class with margins from the instance counts: the paper's choice",
        loss="pipeline.finetune.ecm.ECMLoss",
        loss_arguments=_ecm,
        score="sigmoid(class) (1 - sigmoid(background)), without the margin",
        sampler="rfs",
        reference=(
            "Cho and Kraehenbuehl, Long-tail Detection with Effective Class-Margins, ECCV 2022; "
            "janghyuncho/ECM-Loss configs/effective_class_margin_loss/r50_ecm_1x.py"
        ),
        cls_predictor=NORMED_LINEAR,
        mask_predictor=NORMED_CONV,
        grad_clip=5.0,
        warmup_iterations=10_000,
        warmup_start_factor=0.0001,
        detectors=(*TWO_STAGE, ONE_STAGE),
        on_atss=OnATSS(
            loss="pipeline.finetune.dense_ecm.DenseECMLoss",
            loss_arguments=_ecm_on_atss,
            score="sigmoid(class) x centerness, without the margin",
            reference=(
                "Cho and Kraehenbuehl, ECCV 2022, of RoI heads; of dense heads there is no official code, "
                "what the paper used is not said, and this is our choice"
            ),
        ),
    ),
    Method(
        name="bags",
        summary="second stage: a softmax per group of classes with about as many instances",
        loss="pipeline.finetune.bags.GroupSoftmaxLoss",
        loss_arguments=_bags,
        score="softmax in the class's group x softmax(object, background)",
        sampler="random",
        reference=(
            "Li et al., Balanced Group Softmax, CVPR 2020; "
            "FishYuLi/BalancedGroupSoftmax configs/bags/gs_faster_rcnn_r50_fpn_1x_lvis_with0_bg8.py"
        ),
        grad_clip=35.0,
        warmup_start_factor=1 / 3,
        proposals_factor=2,
        second_stage=SecondStage(
            first="ce",
            trains=CLASSIFIER,
            keeps_classifier=False,
            epochs=12,
            milestones=(8, 11),
            lr=0.01,
            score_thresholds=(0.0, 0.001),
        ),
        is_random=True,
    ),
    Method(
        name="acsl",
        summary="second stage: a binary loss per class that suppresses only what is mistaken for the object",
        loss="pipeline.finetune.acsl.ACSLLoss",
        loss_arguments=_acsl,
        score="sigmoid(class), the background's left out",
        sampler="random",
        reference=(
            "Wang et al., Adaptive Class Suppression Loss, CVPR 2021; "
            "CASIA-IVA-Lab/ACSL configs/acsl/faster_rcnn_r50_fpn_1x_lvis_tunefc_acsl.py"
        ),
        fc_cls_bias_prior=0.01,
        grad_clip=35.0,
        warmup_start_factor=1 / 3,
        proposals_factor=2,
        second_stage=SecondStage(
            first="ce",
            trains=CLASSIFIER,
            keeps_classifier=False,
            epochs=12,
            milestones=(8, 11),
            lr=0.02,
            score_thresholds=(0.0, 0.0),
        ),
        is_random=True,
    ),
    Method(
        name="pcb",
        summary="softmax cross-entropy, late in training pulled towards the classes taken for the label",
        loss="pipeline.finetune.pcb.PCBLoss",
        loss_arguments=_pcb,
        score="softmax over C + 1 columns",
        sampler="random",
        other_samplers=("rfs",),
        reference=(
            "He et al., Pairwise Class Balance, CVPR 2022; "
            "megvii-research/PCB configs/pcb/mask_rcnn_r50_fpn_mstrain_pcb_2x_lvis_v1_fp16.py"
        ),
        epochs=24,
        milestones=(16, 22),
        roi_head={"type": f"{SCOPE}.IterativeRoIHead", "pass_weights": [0.2, 0.2, 0.6]},
        epoch_arguments=("start_epoch",),
    ),
    Method(
        name="loce",
        summary="second stage: softmax with margins from the mean scores, fed by a memory of features",
        loss="pipeline.finetune.loce.EquilibriumLoss",
        loss_arguments=_loce,
        score="softmax over C + 1 columns, without the margin",
        sampler="random",
        training_roi_head={
            "type": f"{SCOPE}.MemoryRoIHead",
            # classes are drawn for an image; the authors draw 8 for the 2 images of a process
            "memory": {"queue_size": 80, "sampled_num_classes": 4, "sampled_num_features": 4},
        },
        reference=(
            "Feng et al., Exploring Classification Equilibrium, ICCV 2021; "
            "fcjian/LOCE configs/loce/loce_mask_rcnn_r50_fpn_normed_mask_mstrain_2x_lvis_v1.py"
        ),
        mask_predictor=NORMED_CONV,
        epochs=24,
        milestones=(16, 22),
        second_stage=SecondStage(
            first="ce",
            trains=LAST_LAYERS,
            keeps_classifier=True,
            epochs=6,
            milestones=(3, 5),
            lr=0.02,
            score_thresholds=(0.0001, 0.0001),
        ),
    ),
    Method(
        name="bacl",
        summary="second stage: a binary loss with margins from a confusion matrix, fed by drawn features",
        loss="pipeline.finetune.bacl.FCBLLoss",
        loss_arguments=_bacl,
        score="sigmoid(class) (1 - sigmoid(background)), without the margin",
        sampler="random",
        training_roi_head={
            "type": f"{SCOPE}.HallucinationRoIHead",
            # classes are drawn for an image; the authors draw 8 for the 2 images of a process
            "hallucination": {"decay_ratio": 0.1, "sampled_num_classes": 4, "sampled_num_features": 12},
        },
        reference=(
            "Qi et al., Balanced Classification, TMM 2024; "
            "Tianhao-Qi/BACL configs/bacl/bacl_representation_mask_rcnn_r50_fpn_1x_lvis_v1.py, "
            "bacl_classifier_mask_rcnn_r50_fpn_mstrain_1x_lvis_v1.py"
        ),
        mask_predictor=NORMED_CONV,
        fc_cls_bias_prior=0.001,
        proposals_factor=2,
        second_stage=SecondStage(
            first="bce",
            trains=LAST_LAYERS,
            keeps_classifier=True,
            epochs=12,
            milestones=(8, 11),
            lr=0.02,
            score_thresholds=(0.0001, 0.0001),
            first_weight_decay=0.00005,
            first_augment="copy-paste",
            first_proposals_factor=2,
        ),
    ),
    Method(
        name="rog",
        summary="a binary loss per class, and one that ranks the logits of all RoIs and classes together",
        loss="pipeline.finetune.rog.GAPLoss",
        loss_arguments=_rog,
        score="sigmoid(class) (1 - sigmoid(background))",
        sampler="rfs",
        reference=(
            "Zhang et al., Reconciling Object-Level and Global-Level Objectives, ICCV 2023; "
            "EricZsy/ROG configs/rog/rog_r50_sample1e-3_1x.py"
        ),
        grad_clip=5.0,
        warmup_start_factor=0.0001,
    ),
    Method(
        name="focal",
        summary="ATSS's own binary loss per class, from a prior of 0.01; easy answers weigh little",
        loss="FocalLoss",
        loss_arguments=_focal,
        score="sigmoid(class) x centerness",
        sampler="rfs",
        reference=(
            "Lin et al., Focal Loss, ICCV 2017, and Zhang et al., ATSS, CVPR 2020; "
            "mmdet 3.3 configs/atss/atss_r50_fpn_1x_coco.py"
        ),
        detectors=(ONE_STAGE,),
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _ENTRIES}
