"""`2drcl sample`: params -> a small long-tailed data set as images, COCO json and LVIS json."""

from pathlib import Path

from pipeline import artifacts
from pipeline.data.sample import write_sample
from pipeline.settings import to_plain
from stages.common import Order, answer, make
from stages.console import bar, say


def run(order: Order, pixels: bool = True) -> None:
    """Render the sample data set; without `pixels` only its json files."""
    settings = order.params.section("sample")
    plain = {"sample": to_plain(settings), "pixels": pixels}
    manifest = artifacts.manifest("sample", plain, {}, order.params.seed)

    def produce(folder: Path) -> None:
        with bar("sample: images") as progress:
            task = progress.add_task("", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            counts = write_sample(folder, settings, order.params.seed, pixels=pixels, on_progress=show)
        say("sample: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))

    make(order, manifest, produce)
    answer(order)
