"""What a source of class-agnostic boxes is.

A source makes the boxes of the images it is given and of no others, and the boxes of an image depend on
nothing but the image: any number of processes can each run it on their share, with the same result.  The
images of one chunk may come in any order, chunks in the order asked for.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

Boxes = tuple[np.ndarray, np.ndarray]  # (n, 4) float32 xyxy in stored pixels, (n,) float32 scores
Source = Callable[[Sequence[int]], Iterator[tuple[int, Boxes]]]  # positions -> (image id, boxes)
