"""What the definitions of the losses force anyone to compute, as single operations of torch in the cache.

Nothing of a loss's bookkeeping is here, nor what keeps a sum exact: a floor is the least that these
operations take, block by block, with the product that every loss ends with (a gradient times what comes from
outside).  Losses with one weight for all columns take one logarithm of four together, a quarter of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.finetune.row_losses import BLOCK
from pipeline.finetune.step_draws import draw_levels

Part = Callable[[Tensor, Tensor], None]


def _count(places: Tensor, values: Tensor) -> None:
    torch.bincount(places, values)


def floors(rois: int, classes: int, labels: Tensor) -> dict[str, Part]:
    """Each operation at the size of a batch: of two (blocks, n, K), of which the second is written."""
    objects = int((labels < classes).sum())
    shown = len(labels[labels < classes].unique())
    few, own = torch.rand(objects, classes), torch.rand(objects, classes)
    square, taken = torch.rand(classes, classes), torch.rand(shown, classes)
    generator = torch.Generator().manual_seed(0)
    places, table = torch.randint(2 * objects, (rois * classes,), dtype=torch.int32), torch.rand(2 * objects)
    found = torch.empty(rois * classes)

    def each(operation: Callable[[Tensor, Tensor], object]) -> Part:
        def of_blocks(logits: Tensor, out: Tensor) -> None:
            for block, written in zip(logits, out, strict=True):
                operation(block, written)

        return of_blocks

    return {
        "sigmoid": each(lambda x, out: torch.sigmoid(x, out=out)),
        "logarithms": each(lambda x, out: torch.log1p(x, out=out)),
        "logarithms of four": each(lambda x, out: torch.log1p(x[: len(x) // 4], out=out[: len(x) // 4])),
        "shift": each(lambda x, out: torch.add(x, 1, out=out)),
        "comparison": each(lambda x, out: torch.ge(x, 0.5, out=out)),
        "copy": each(lambda x, out: out.copy_(x)),
        "column sums": each(lambda x, out: x.sum(dim=0)),
        "softmax": each(lambda x, out: torch.softmax(x, dim=1, out=out)),
        "draws": each(lambda x, out: draw_levels((len(x), x.shape[1]), generator)),
        "softmax of objects": lambda logits, out: torch.softmax(few, dim=1, out=own),
        "sums of a matrix": lambda logits, out: square.add_(1.0),
        "logarithms of its rows": lambda logits, out: torch.log(taken, out=taken),
        "product": lambda logits, out: torch.mul(logits, 0.5, out=out),
        "look-up": lambda logits, out: torch.index_select(table, 0, places, out=found),
        "counting": lambda logits, out: _count(places, found),
    }


BINARY = ("sigmoid", "logarithms of four", "product")
WEIGHTED = ("sigmoid", "logarithms", "product")
FORCED = {
    "cross-entropy": ("softmax", "product"),
    "bce": BINARY,
    "eql": (*BINARY, "shift"),
    "eqlv2": (*WEIGHTED, "column sums"),
    "droploss": (*BINARY, "shift", "draws"),
    "seesaw": ("softmax of objects", "softmax of objects", "product"),
    "ecm": (*WEIGHTED, "shift"),
    "bags": ("copy", "softmax", "copy", "product"),
    "acsl": (*BINARY, "shift", "comparison"),
    "pcb": ("softmax", "softmax of objects", "sums of a matrix", "logarithms of its rows", "product"),
    "loce": ("shift", "softmax", "product"),
    "bacl": (*BINARY, "shift", "softmax of objects", "sums of a matrix", "logarithms of its rows"),
    "rog": (*BINARY, "look-up", "counting", "look-up", "look-up"),
}


def blocks(rois: int, columns: int) -> tuple[Tensor, Tensor]:
    """Numbers in (0, 1), and room for as many: (blocks, n, K) each, blocks of the losses' size."""
    size = max(1, BLOCK // columns)
    numbers = torch.rand(-(-rois // size), size, columns)
    return numbers, torch.empty_like(numbers)
