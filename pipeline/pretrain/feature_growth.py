"""A warning when the features that SR compares grow: nothing bounds their length but the weights.

Eq. 6 asks f for the features it has itself; at a high rate, and without normalisation in the trunk, they can
run away, come back, and leave a worse detector.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from pipeline.engine.loop import Hook, Record, Trainer
from pipeline.pretrain.settings import ReconstructionSettings

LOG = logging.getLogger(__name__)

TIMES = 10.0  # their initial length


class FeatureGrowth(Hook):
    """Says once that the mean length of a level's feature vectors is ten times what it was in the first step.

    It reads what the loop has read for the history anyway (`measures.feature_norms`).

    Args:
        history: history.jsonl of the run: the first step of one that goes on.
        settings: what to do depends on them.
    """

    def __init__(self, history: Path, settings: ReconstructionSettings) -> None:
        self.history, self.remedy = history, remedy(settings)
        self._first: Mapping[str, float] = {}
        self._has_told = False

    def after_step(self, trainer: Trainer, record: Record) -> None:
        if self._has_told or not trainer.process.is_first:
            return
        self._first = self._first or lengths(self._first_record(record))
        found = grown(self._first, lengths(record))
        if found:
            self._has_told = True
            LOG.warning(
                "step %d: features grow: %s.  SR can run away with them: %s", trainer.step, found, self.remedy
            )

    def _first_record(self, record: Record) -> Record:
        """Of the run, or of what is left of its history."""
        try:
            with self.history.open(encoding="utf-8") as file:
                return dict(json.loads(file.readline()))
        except (OSError, ValueError):  # the very first step, or somebody has removed it
            return record


def lengths(record: Mapping[str, float]) -> dict[str, float]:
    """C2 to C5 -> mean length of a feature vector, of a history line."""
    names = [name for name in record if name.startswith("norm_c")]
    return {name.removeprefix("norm_").upper(): record[name] for name in names}


def grown(first: Mapping[str, float], now: Mapping[str, float]) -> str:
    """The levels whose features are more than `TIMES` as long as they were, in words; empty without any."""
    found = [name for name, length in now.items() if length > TIMES * first.get(name, length) > 0]
    return ", ".join(f"{name} {first[name]:.3g} -> {now[name]:.3g}" for name in found)


def remedy(settings: ReconstructionSettings) -> str:
    """What to do, the surest first."""
    ways = ["lower pretrain.lr or set pretrain.clip_norm", "leave sr out of pretrain.terms"]
    if settings.second_pass == "trained":
        ways.insert(0, "set pretrain.reconstruction.second_pass: frozen")
    return ", or ".join(ways)
