"""What every stage shares: its options, and the way a product comes about."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import artifacts
from pipeline.data.settings import DataSettings, Split
from pipeline.errors import UsageError
from stages.console import Stopwatch, data, say
from stages.machine import Machine, is_first
from stages.params import ARTIFACTS, Params

DEFAULT_RUN = "default"


@dataclass(frozen=True)
class Order:
    """One command's options.

    Args:
        params: settings.
        out: folder of the product.
        machine: where to run.
        fresh: discard an earlier product and unfinished work.
        dry_run: say what would be done, and do nothing.
        as_json: answer in JSON.
    """

    params: Params
    out: Path
    machine: Machine = field(default_factory=Machine)
    fresh: bool = False
    dry_run: bool = False
    as_json: bool = False


def make(order: Order, manifest: Mapping[str, Any], produce: Callable[[Path], None]) -> bool:
    """Make the product unless it is already there, whole or not at all.

    Args:
        order: the command.
        manifest: of `artifacts.manifest`; its fingerprint decides whether the product is current.
        produce: writes the product's files into a folder.

    Returns:
        whether anything was made.
    """
    stage, out = str(manifest["stage"]), order.out
    current = artifacts.is_current(out, stage, str(manifest["fingerprint"])) and not order.fresh
    if order.dry_run:
        answer = {"stage": stage, "out": str(out), "up_to_date": current, **manifest}
        if is_first():
            data(answer, True, [])
        return False
    if current:
        say(f"{stage}: {out} is up to date")
        return False
    watch = Stopwatch()
    if is_first():
        with artifacts.publishing(out, stage) as folder:
            produce(folder)
            files = sorted(path.name for path in folder.iterdir())
            artifacts.write_json(folder / artifacts.MANIFEST, {**manifest, "files": files})
        watch.write(out)
        say(f"{stage}: wrote {out} in {watch.seconds:.0f} s")
    return True


def answer(order: Order) -> None:
    """The command's answer on stdout: where the product is."""
    if not order.dry_run and is_first():
        data({"out": str(order.out)}, order.as_json, [str(order.out)])


def default_out(stage: str, run: str = DEFAULT_RUN) -> Path:
    """artifacts/STAGE/RUN."""
    if not run or run != run.lower() or not all(c.isalnum() or c == "-" for c in run):
        raise UsageError(f"run name {run!r} must be lower-case letters, digits and hyphens")
    return ARTIFACTS / stage / run


def split_of(params: Params, which: str, annotations: Path | None, images: Path | None) -> Split:
    """`data.train` or `data.val`, or the files named on the command line.

    With --annotations alone, images are looked for beside the json.
    """
    if annotations is not None:
        return Split(annotations, images or annotations.parent)
    split: Split = getattr(params.section("data"), which)
    return split if images is None else Split(split.annotations, images)


def check_splits(train: Split, data_settings: DataSettings) -> None:
    """Refuse missing images, and validation images inside the training set, before anything long starts."""
    from pipeline.data.annotations import read_annotations
    from pipeline.data.images import check_files
    from pipeline.data.settings import refuse_overlap

    annotations = read_annotations(train.annotations)
    for remark in annotations.remarks():
        say(remark)
    check_files(train.images, annotations.file_names)
    val = data_settings.val
    if val.annotations.exists():
        refuse_overlap(annotations, train.images, read_annotations(val.annotations), val.images)


def refuse_under_dvc(**given: Any) -> None:
    """Science comes from params.yaml alone under DVC: dvc.lock would not know of an override.

    Raises:
        UsageError: naming the option.
    """
    if "DVC_STAGE" in os.environ:
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"--{name} changes the science behind DVC's back", "set it in params.yaml")


def proposals_digest(folder: Path) -> str:
    """Digest of the boxes themselves, after checking that the proposals stage finished there."""
    artifacts.read_manifest(folder, "proposals")
    files = [*sorted(folder.glob("proposals/part-*.parquet")), folder / "images.parquet"]
    return artifacts.fingerprint({path.name: artifacts.file_digest(path) for path in files})


def refuse_own_input(out: Path, *inputs: Path | str | None) -> None:
    """A product takes the place of its whole folder: what it is made from must lie elsewhere.

    Raises:
        UsageError: naming the input.
    """
    for path in inputs:
        if path is not None and Path(path).resolve().is_relative_to(out.resolve()):
            raise UsageError(f"--out {out} holds the input {path}", "choose another --out")
