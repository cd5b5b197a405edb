"""Which detector may be scored on which split: one that was trained on its categories, in their order."""

import json
from pathlib import Path

import pytest

from pipeline.data.annotations import Annotations, read_annotations
from pipeline.detectors.build import build_model, model_config
from pipeline.detectors.publish import publish_detector
from pipeline.detectors.settings import DetectorSettings
from pipeline.detectors.weights import clone_state
from pipeline.errors import MismatchedInput
from stages.evaluate import load_detector

NAMES = ["cone", "drum", "bolt"]
SMALL = DetectorSettings(depth=18, stem_channels=16, norm="gn", fpn_channels=16, fc_channels=16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, config = tmp_path_factory.mktemp("detector"), model_config(SMALL, len(NAMES))
    state = clone_state(build_model(config, seed=0).state_dict(), "")
    publish_detector(folder, state, config, NAMES, (96, 64), {})
    return folder / "detector.pth"


def split_of(folder: Path, names: list[str]) -> Annotations:
    path = folder / "split.json"
    content = {
        "images": [{"id": 1, "width": 40, "height": 30, "file_name": "1.png"}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81}],
    }
    path.write_text(json.dumps(content))
    return read_annotations(path)


def test_a_detector_for_the_categories_of_the_split_is_taken(weights: Path, tmp_path: Path) -> None:
    model, test_wh = load_detector(weights, split_of(tmp_path, NAMES))
    assert test_wh == (96, 64) and not model.training


@pytest.mark.parametrize("names", [["cone", "drum"], ["drum", "cone", "bolt"], ["cone", "drum", "nut"]])
def test_a_detector_for_other_categories_is_refused(weights: Path, tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(MismatchedInput) as refusal:
        load_detector(weights, split_of(tmp_path, names))
    said = refusal.value.message
    assert str(weights) in said and "split.json" in said
    assert "3 categories (cone, drum, bolt" in said and ", ".join(names) in said
    assert "in the same order" in refusal.value.hint and refusal.value.exit_code == 3
