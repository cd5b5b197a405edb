"""Dual reconstruction (Sec. 3.3): the generator g, appearance (eq. 5), masks M, semantics (eq. 6).

Shapes: B images, H x W pixels of the canvas, stride s of a level, M boxes.  A canvas is valid up to the size
of its image; padding counts nowhere, and every image counts the same.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.pretrain.contrast import at_least_float32
from pipeline.pretrain.settings import LEVELS

GENERATOR_WIDTHS = (512, 256, 64, 3)  # A.1
STRIDES = (4, 8, 16, 32)  # of C2..C5, pixels


class Generator(nn.Module):
    """g: C5 -> image, four deconvolutions with ReLU between them (A.1), each doubling the size.

    From stride 32 that reaches half the image's size.
    Paper: kernel 4, stride and padding not given; here: stride 2, padding 1, which doubles exactly.

    Args:
        width_in: channels of C5 (2048 for ResNet-50 and -101, 512 for ResNet-18).
    """

    def __init__(self, width_in: int) -> None:
        super().__init__()
        widths = (width_in, *GENERATOR_WIDTHS)
        self.layers = nn.ModuleList(
            nn.ConvTranspose2d(a, b, kernel_size=4, stride=2, padding=1)
            for a, b in itertools.pairwise(widths)
        )

    def forward(self, c5: Tensor) -> Tensor:
        """(B, width_in, h, w) -> (B, 3, 16 h, 16 w), linear output: a normalised image."""
        for layer in self.layers[:-1]:
            c5 = torch.relu(layer(c5))
        return self.layers[-1](c5)


def reconstruct(generator: Generator, c5: Tensor, sizes_wh: Tensor, canvas_hw: tuple[int, int]) -> Tensor:
    """g(f(x)) on the canvas: (B, 3, H, W).  Paper: silent about the last factor of two; here: bilinear.

    Outside its image it is zero, as x is: what g makes of the padding is nobody's loss, but the features of
    eq. 6 would see it across the border.

    Args:
        generator: g.
        c5: (B, C, h, w).
        sizes_wh: (B, 2) size of each image on its canvas.
        canvas_hw: height and width of the canvas.
    """
    canvas = F.interpolate(generator(c5), size=canvas_hw, mode="bilinear", align_corners=False)
    return canvas * valid_area(sizes_wh, canvas_hw)[:, None]


def map_size(maps: Tensor) -> tuple[int, int]:
    """Height and width of (B, C, h, w)."""
    return maps.shape[-2], maps.shape[-1]


def valid_area(sizes_wh: Tensor, map_hw: tuple[int, int], stride: int = 1) -> Tensor:
    """Positions of a (h, w) map whose cell overlaps the image: (B, h, w) bool.

    Args:
        sizes_wh: (B, 2) size of each image on its canvas, in pixels.
        map_hw: height and width of the map.
        stride: pixels per position.
    """
    width, height = (sizes_wh / stride).ceil().T[:, :, None]  # (B, 2) -> two (B, 1)
    rows = torch.arange(map_hw[0], device=sizes_wh.device)[None] < height  # (B, h)
    columns = torch.arange(map_hw[1], device=sizes_wh.device)[None] < width  # (B, w)
    return rows[:, :, None] & columns[:, None, :]


def masked_mean_square(difference: Tensor, valid: Tensor) -> Tensor:
    """Mean over images of the mean square over valid positions and channels, in float32 at least.

    Args:
        difference: (B, C, h, w).
        valid: (B, h, w) bool, at least one position per image.
    """
    squares = at_least_float32(difference).square().mean(dim=1)  # (B, C, h, w) -> (B, h, w)
    weights = valid.to(squares.dtype)
    return ((squares * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp(min=1)).mean()


def appearance_loss(image: Tensor, reconstruction: Tensor, sizes_wh: Tensor) -> Tensor:
    """L_AR = || x - g(f(x)) ||^2 (eq. 5) as the pixel-wise mean the text names.

    Args:
        image, reconstruction: (B, 3, H, W) normalised; both may be at half size.
        sizes_wh: (B, 2) size of each image on this canvas.
    """
    return masked_mean_square(reconstruction - image, valid_area(sizes_wh, map_size(image)))


def semantic_loss(
    levels: Sequence[Tensor],
    masked_levels: Sequence[Tensor],
    sizes_wh: Tensor,
    detach: bool,
    chosen: Sequence[str] = LEVELS,
) -> Tensor:
    """L_SR = sum over levels of || f(x) - f(M(g(f(x)))) ||^2 (eq. 6), each level a mean.

    Args:
        levels: C2..C5 of the image, (B, C, h, w) each.
        masked_levels: the same levels of the masked reconstruction.
        sizes_wh: (B, 2) size on its canvas of the image that `masked_levels` come from.
        detach: stop the gradient at f(x).  Paper: none is written; here it is the default, because minimising
            both sides lets the features shrink towards zero.
        chosen: names of the levels that count.
    """
    terms = []
    for name, target, level, stride in zip(LEVELS, levels, masked_levels, STRIDES, strict=True):
        if name not in chosen:
            continue
        wanted = at_least_float32(target.detach() if detach else target)
        valid = valid_area(sizes_wh, map_size(level), stride)
        terms.append(masked_mean_square(at_least_float32(level) - wanted, valid))
    return torch.stack(terms).sum()


def halved_levels(levels: Sequence[Tensor], sizes_wh: Tensor) -> list[Tensor]:
    """C2..C5 averaged two by two, over the cells that overlap the image: targets for an image of half size.

    Args:
        levels: C2..C5 at full size, (B, C, h, w) each.
        sizes_wh: (B, 2) size of each image on the full canvas.

    Returns:
        (B, C, ceil(h / 2), ceil(w / 2)) each, in float32 at least.
    """
    halved = []
    for level, stride in zip(levels, STRIDES, strict=True):
        valid = valid_area(sizes_wh, map_size(level), stride)[:, None].float()
        total = F.avg_pool2d(at_least_float32(level) * valid, 2, ceil_mode=True)
        halved.append(total / F.avg_pool2d(valid, 2, ceil_mode=True).clamp(min=0.25))
    return halved


def apply_masks(images: Tensor, masks: Tensor, valid: Tensor, scale: float = 1.0) -> Tensor:
    """M of eq. 6: set the rectangles to 0, the mean colour of a normalised image.

    Args:
        images: (B, 3, H, W).
        masks: (B, M, 4) xyxy in pixels of the full-size view.
        valid: (B, M) bool.
        scale: pixels of `images` per pixel of the view.
    """
    height, width = images.shape[-2:]
    x1, y1, x2, y2 = (masks * scale).unbind(dim=2)  # four (B, M)
    rows = torch.arange(height, device=images.device) + 0.5
    columns = torch.arange(width, device=images.device) + 0.5
    in_rows = (rows >= y1[..., None]) & (rows < y2[..., None])  # (B, M, H)
    in_columns = (columns >= x1[..., None]) & (columns < x2[..., None]) & valid[..., None]  # (B, M, W)
    hidden = (in_rows[..., :, None] & in_columns[..., None, :]).any(dim=1)  # (B, M, H, W) -> (B, H, W)
    return torch.where(hidden[:, None], 0.0, images)  # masked_fill would answer in NCHW


@dataclass(frozen=True)
class Painting:
    """The image, its reconstruction, and the reconstruction under M, all at the size that is compared."""

    image: Tensor  # (B, 3, h, w)
    reconstruction: Tensor  # (B, 3, h, w)
    masked: Tensor  # (B, 3, h, w)
    sizes_wh: Tensor  # (B, 2), pixels


def paint(
    generator: Generator,
    c5: Tensor,
    image: Tensor,
    sizes_wh: Tensor,
    masks: Tensor,
    valid: Tensor,
    *,
    is_half: bool,
) -> Painting:
    """g(f(x)) and M(g(f(x))), at full size or at the generator's own half size.

    Args:
        generator: g.
        c5: (B, C, h, w) of the image.
        image: (B, 3, H, W) normalised.
        sizes_wh: (B, 2) size of each image on its canvas.
        masks, valid: of `apply_masks`, in pixels of the full-size view.
        is_half: reconstruct at half size; an odd size leaves a last pixel that is half padding: not counted.
    """
    scale = 0.5 if is_half else 1.0
    if is_half:
        image, sizes_wh = F.avg_pool2d(image, 2), (sizes_wh / 2).floor()
    reconstruction = reconstruct(generator, c5, sizes_wh, map_size(image))
    return Painting(image, reconstruction, apply_masks(reconstruction, masks, valid, scale), sizes_wh)
