"""params.yaml -> settings of every section: defaults < preset < file < command line.

The preset is the one named in the section (`stats: {preset: mmdet}`, from that section's own list), else the
file's.

A command builds the sections it uses; the training commands, which import everything anyway, check all
sections before they start, so that a typing error in `finetune` is not found after an hour of pre-training.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsError
from pipeline.settings import build, merge, read_params

# section -> module and class of its settings; imported only when built
SECTIONS = {
    "data": ("pipeline.data.settings", "DataSettings"),
    "sample": ("pipeline.data.sample", "SampleSettings"),
    "detector": ("pipeline.detectors.settings", "DetectorSettings"),
    "proposals": ("pipeline.proposals.settings", "ProposalsSettings"),
    "stats": ("pipeline.stats.settings", "StatsSettings"),
    "pretrain": ("pipeline.pretrain.settings", "PretrainSettings"),
    "finetune": ("pipeline.finetune.settings", "FinetuneSettings"),
    "evaluate": ("pipeline.evaluation.settings", "EvaluationSettings"),
    "analyze": ("pipeline.analysis.settings", "AnalyzeSettings"),
}
PRESETS = ("default", "paper", "literal")
ARTIFACTS = Path("artifacts")


@dataclasses.dataclass(frozen=True)
class Params:
    """The file's content with the command line's changes."""

    content: Mapping[str, Any]
    seed: int

    def section(self, name: str) -> Any:
        """The settings of one section.

        Raises:
            SettingsError: with the dotted path of what does not fit.
        """
        module_name, class_name = SECTIONS[name]
        module = importlib.import_module(module_name)
        given = self.content.get(name)
        if given is not None and not isinstance(given, Mapping):
            raise SettingsError(f"{name} must be a section with keys, but it is {given!r}")
        keys = {key: value for key, value in (given or {}).items() if key != "preset"}
        preset = self._preset(name, given or {}, getattr(module, "PRESETS", {}))
        return build(getattr(module, class_name), merge(preset, keys), name)

    def _preset(
        self, name: str, given: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """The preset's settings for one section; the file's preset may have nothing to say about it."""
        if "preset" not in given:
            return known.get(self.content.get("preset", "default"), {})
        chosen, names = given["preset"], ("default", *known)
        if chosen not in names:
            raise SettingsError(f"{name}.preset must be one of {', '.join(names)}, but it is {chosen!r}")
        return known.get(chosen, {})

    def check_all(self) -> None:
        """Build every section that is present."""
        for name in SECTIONS:
            if name in self.content:
                self.section(name)


def load(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Params:
    """Read params.yaml.

    Args:
        path: the file; None: `params.yaml` here, or nothing but defaults if there is none.
        overrides: the command line's changes, by section.

    Raises:
        UsageError, SettingsError: no such file, or an unknown section, preset or seed.
    """
    default = Path("params.yaml")
    content = read_params(path or default) if path is not None or default.exists() else {}
    content = merge(content, overrides or {})
    unknown = [key for key in content if key not in (*SECTIONS, "preset", "seed")]
    if unknown:
        raise SettingsError(
            f"unknown key: {unknown[0]}", f"known sections: {', '.join(SECTIONS)}, preset, seed"
        )
    if content.get("preset", "default") not in PRESETS:
        raise SettingsError(f"preset must be one of {', '.join(PRESETS)}, but it is {content['preset']!r}")
    seed = content.get("seed", 0)
    if type(seed) is not int or seed < 0:
        raise SettingsError(f"seed must be a whole number of at least 0, but it is {seed!r}")
    return Params(content, seed)
