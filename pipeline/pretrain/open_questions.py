"""What the paper leaves open about pre-training, one line each: what is done here, by which setting, and why.

`2drcl show-config` prints the list after the settings, whose own lines name the alternatives.  What nobody
would choose is no setting; the line says so.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class OpenQuestion:
    """One of them.

    Args:
        subject: what is open.
        decision: what is done by default, and why; what is left out, and why.
        settings: dotted keys of params.yaml that choose otherwise; empty: a decision.
    """

    subject: str
    decision: str
    settings: tuple[str, ...] = ()


def _q(subject: str, decision: str, *settings: str) -> OpenQuestion:
    return OpenQuestion(subject, decision, settings)


OPEN_QUESTIONS = (
    _q(
        "encoder f",
        "ResNet, C2 to C5; g reads C5: A.1's 2048 channels are C5's. P5 (256 channels) left out",
    ),
    _q(
        "size of g's output",
        "stride 2 four times is half the image; then bilinear, or compare there; a stride of 4 or a "
        "dilated C5 left out: other networks",
        "pretrain.reconstruction.scale",
    ),
    _q(
        "g's output layer",
        "linear, onto the normalised image: no bound to saturate at; tanh left out",
    ),
    _q(
        "norm in g",
        "none, as none is named; batch norm over two images left out",
    ),
    _q(
        "reduction of AR",
        "mean over valid pixels and channels: a sum, some 1e6, would leave no other term",
    ),
    _q(
        "target of AR",
        "the augmented view, as eq. 5 has x; the view before colour left out: L_det sees x too",
    ),
    _q(
        "layers of SR",
        "C2 to C5, a mean each; FPN left out: it would need a second neck pass",
        "pretrain.reconstruction.levels",
    ),
    _q(
        "scale of SR's features",
        "as they are, by eq. 6; distance over the target's mean square, or between features of unit length "
        "(UP-DETR), left out: they bound the features, and bring no AP (benchmarks/README.md)",
    ),
    _q(
        "prediction network",
        "on the query side, as A.1 describes; eq. 1 has none",
        "pretrain.contrast.predictor",
    ),
    _q(
        "norm of the projectors",
        "batch norm over all processes: over two images it would map all to +-1; layer norm left out, "
        "none covers its use",
        "pretrain.contrast.norm",
    ),
    _q(
        "pooling of HCL",
        "mean of C5 over the image, without padding; P5 left out: eq. 1 is the backbone's",
    ),
    _q(
        "features of LCL",
        "RoIAlign on the FPN by MMDetection's level rule, then the detector's own box layers: they "
        "are to be pre-trained; a head of its own left out, but for ATSS",
        "detector.finest_scale",
    ),
    _q(
        "queue of LCL",
        "as long as HCL's, in proposals",
        "pretrain.contrast.local_queue",
    ),
    _q(
        "negatives",
        "not the keys of the query's own image: 'unrelated images'",
        "pretrain.contrast.mask_same_image",
    ),
    _q(
        "keys of the same category",
        "are negatives: HCL and LCL use no labels in the paper; a supervised contrast is another method",
    ),
    _q(
        "which 8 boxes",
        "uniform among the best that both views show; fewer than 8 leave rows that count nowhere: the "
        "same box again, jittered, left out",
        "pretrain.contrast.choose",
        "pretrain.contrast.candidates",
        "pretrain.contrast.min_visible",
        "pretrain.contrast.min_side",
    ),
    _q(
        "rebalancing of proposals",
        "by repeating images: eq. 4 has both levels in one factor; a second rebalancing of the 8 "
        "boxes left out: it would count the tail twice",
        "pretrain.sampler",
    ),
    _q(
        "f_in",
        "annotated boxes, or proposals matched to them",
        "stats.instances",
    ),
    _q(
        "denominator of f_im",
        "images with annotations, or all",
        "stats.denominator",
    ),
    _q(
        "mean of eq. 4",
        "as printed: alpha weighs 1 / f_in",
        "stats.direction",
    ),
    _q(
        "T of alpha",
        "from 0: the first epoch is plain RFS; from step to step left out: an epoch is drawn at once",
        "stats.first_epoch",
    ),
    _q(
        "repetition",
        "stochastic rounding, seeded; epochs grow",
        "stats.rounding",
        "stats.length",
    ),
    _q(
        "DRB in fine-tuning",
        "no, each method's own sampler, as the baselines",
        "finetune.runs.NAME.sampler",
    ),
    _q(
        "shape of a mask",
        "a rectangle at a random place, of the mean colour; noise and patches left out: nothing in "
        "the text speaks of them",
        "pretrain.reconstruction.mask_shape",
        "pretrain.reconstruction.mask_fraction",
    ),
    _q(
        "masks that overlap",
        "their union: hidden is hidden",
    ),
    _q(
        "boxes that are masked",
        "the proposals of LCL, in the query view; annotations left out: SR needs no labels",
    ),
    _q(
        "gradient of SR",
        "into g, and through it into f; not into the target, or features shrink; not into the weights of the "
        "second pass, from which f learns to answer as it does to a blur; a momentum encoder, or a stopped "
        "reconstruction, left out: eq. 6 trains f and g",
        "pretrain.reconstruction.detach_target",
        "pretrain.reconstruction.second_pass",
    ),
    _q(
        "batch norm in SR's second pass",
        "frozen with the rest of the backbone: nothing is counted",
        "detector.norm",
    ),
    _q(
        "frozen stages",
        "stem and first stage, batch norm everywhere, as MMDetection; trained batch norm left out: "
        "two images per process, and the second pass would count",
        "detector.frozen_stages",
        "detector.norm",
    ),
    _q(
        "start of fine-tuning",
        "the whole detector: 'all network components'",
        "finetune.runs.NAME.transfer",
    ),
    _q(
        "momentum",
        "0.999 throughout, MoCo's",
        "pretrain.contrast.momentum",
        "pretrain.contrast.momentum_schedule",
    ),
    _q(
        "scale and crop",
        "detection scale; crops of half a side at least, or boxes are lost",
        "pretrain.views.short_sides",
        "pretrain.views.long_side",
        "pretrain.views.crop",
    ),
    _q(
        "view of L_det",
        "the query alone; both left out: the key view has no gradient",
    ),
    _q(
        "symmetric contrast",
        "no, as eq. 1 and 2; the key branch would need a gradient, and the step as much again",
    ),
    _q(
        "data",
        "the training split of fine-tuning: DRB needs its categories, and validation images must not be seen",
        "data.train",
    ),
    _q(
        "weights of the terms",
        "eq. 3, 7 and 8 as printed",
        "pretrain.objective.alpha_c",
        "pretrain.objective.beta_c",
        "pretrain.objective.alpha_r",
    ),
    _q(
        "ATSS",
        "the same terms; a RoI branch of its own for LCL, which stays behind",
        "detector.type",
        "detector.fc_channels",
    ),
    _q(
        "frame of the proposals",
        "stored pixels; each view maps them by its homography",
    ),
    _q(
        "colours of the query view",
        "as strong as the key's, though AR and L_det see them",
        "pretrain.views.query_colours",
        "pretrain.views.photometric",
    ),
    _q(
        "labels of L_det",
        "the data set's, plain softmax: one start serves every fine-tuning method; masks are off",
        "pretrain.det_targets",
        "pretrain.mask_loss",
        "pretrain.terms",
    ),
)
