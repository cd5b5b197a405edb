"""The chain as it ran: every stage with its settings, inputs and cost, and whether they fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.report.reader import Reader, number

# stage -> what it is for, in the page's words; in the order of the chain
STAGES = {
    "sample": "Renders a small long-tailed data set.",
    "proposals": "Finds boxes of objects, whatever their category.",
    "stats": "Counts images and instances of each category, and derives repeat factors.",
    "pretrain": "Trains the whole detector with contrast, reconstruction and rebalancing.",
    "finetune": "Trains the detector on its task, with a long-tailed method.",
    "evaluate": "Scores its detections.",
    "analyze": "Sorts its errors into types.",
}
PER_RUN = ("finetune", "evaluate", "analyze")
FACTS = ("images_drawn", "images_drawn_with_init")
TIMES = ("seconds", "train_seconds", "peak_memory_mib", "gpu_memory_mib", "images_per_second")
TRAINED_ON = ("proposals", "stats", "pretrain", "finetune")


@dataclass(frozen=True)
class Stage:
    """One folder of artifacts.

    settings: (dotted key, value as text), sorted.  timing: what timing.json says; it is tracked by nobody, so
    it is what this machine happened to measure.
    """

    stage: str
    run: str
    made: bool
    seed: int | None = None
    fingerprint: str = ""
    settings: list[tuple[str, str]] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    timing: dict[str, float] = field(default_factory=dict)


def folders(runs: Sequence[str], *, with_sample: bool) -> list[tuple[str, str, str]]:
    """(stage, run, folder below artifacts) of the whole chain.

    Args:
        runs: of fine-tuning.
        with_sample: whether the data is the rendered sample.
    """
    found = [("sample", "", "sample")] if with_sample else []
    for stage in STAGES:
        if stage in PER_RUN:
            found += [(stage, run, f"{stage}/{run}") for run in runs]
        elif stage != "sample":
            found.append((stage, "default", f"{stage}/default"))
    return found


def read_chain(reader: Reader, places: Sequence[tuple[str, str, str]]) -> list[Stage]:
    """Every stage, made or not; gaps of stages that belong to a run are left to `runs.read_run`."""
    return [_stage(reader, *place) for place in places]


def mixed(stages: Sequence[Stage]) -> list[str]:
    """Sentences about stages that do not fit together: trained, or evaluated, on different annotations."""
    said = []
    for names, what in (
        (TRAINED_ON, "were made for different training annotations"),
        (PER_RUN[1:], "look at different annotations"),
    ):
        digests = {s.inputs["annotations"] for s in stages if s.stage in names and "annotations" in s.inputs}
        if len(digests) > 1:
            groups = (
                f"{digest[:8]}: "
                + ", ".join(
                    f"{s.stage} {s.run}"
                    for s in stages
                    if s.stage in names and s.inputs.get("annotations") == digest
                )
                for digest in sorted(digests)
            )
            said.append(f"Stages {what} ({'; '.join(groups)})")
    return said


def _stage(reader: Reader, stage: str, run: str, folder: str) -> Stage:
    quiet = Reader(reader.root) if stage in PER_RUN else reader
    made = quiet.mapping(f"{folder}/manifest.json", f"stage {stage}", f"2drcl {stage}")
    if not made:
        return Stage(stage, run, made=False)
    timing = reader.mapping(f"{folder}/timing.json", f"timing of {stage} {run}", "", optional=True)
    if (first := number(timing.get("stage1_train_seconds"))) is not None:
        timing["train_seconds"] = (number(timing.get("train_seconds")) or 0.0) + first
    facts = [(key, _show(made[key])) for key in FACTS if key in made]
    return Stage(
        stage,
        run,
        made=True,
        seed=made["seed"] if isinstance(made.get("seed"), int) else None,
        fingerprint=str(made.get("fingerprint", "")),
        settings=facts + sorted(_flat(made.get("settings"), "")),
        inputs=_texts(made.get("inputs")),
        versions=_texts(made.get("versions")),
        timing={key: found for key in TIMES if (found := number(timing.get(key))) is not None},
    )


def _flat(content: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(content, Mapping) and content:
        return [
            pair
            for key, value in content.items()
            for pair in _flat(value, f"{path}.{key}" if path else str(key))
        ]
    return [(path, _show(content))] if path else []


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        shown = ", ".join(_show(v) for v in value[:12])
        return f"[{shown}{', ...' if len(value) > 12 else ''}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _texts(content: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, Mapping) else {}
