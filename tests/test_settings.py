"""Strict loading: every refusal names the dotted path, and what is accepted arrives as it was meant."""

import dataclasses
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pipeline.errors import SettingsError as Refused
from pipeline.errors import Stopped, UsageError, first_ten
from pipeline.settings import build, merge, read_params, setting, to_plain


@dataclass(frozen=True)
class Run:
    method: str = setting(why="which loss")
    copies: int = setting(1, low=1)


@dataclass(frozen=True)
class Views:
    crop: tuple[float, float] = setting((0.5, 1.0), "share of a side", low=0.1, high=1)
    sides: tuple[int, ...] = setting((640, 800), low=32)


@dataclass(frozen=True)
class Recipe:
    images: Path = setting(why="folder of images")
    lr: float = setting(0.02, "for the whole batch", low=0)
    depth: int = setting(50, choices=(18, 50, 101))
    norm: Literal["bn", "gn"] = setting("bn")
    flip: bool = setting(True)
    threshold: float | Literal["auto"] = setting("auto", low=1e-12, high=1)
    queue: int | Literal["auto"] = setting("auto", low=1)
    clip: float | None = setting(None, low=0)
    init: Path | None = setting(None)
    terms: tuple[str, ...] = setting(("hcl",), choices=("hcl", "lcl", "det"))
    views: Views = setting(Views)
    runs: dict[str, Run] = setting({})


def recipe(**values: Any) -> Recipe:
    return build(Recipe, {"images": "photos", **values}, "pretrain")


def refusal(**values: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        recipe(**values)
    assert caught.value.exit_code == 2
    return caught.value


def test_defaults_and_required_key() -> None:
    made = recipe()
    assert made == Recipe(Path("photos"))
    assert made.views == Views() and made.runs == {}
    with pytest.raises(Refused, match=r"missing key: pretrain\.images") as caught:
        build(Recipe, None, "pretrain")
    assert caught.value.hint == "folder of images"
    assert Recipe(Path("a")).runs is not Recipe(Path("a")).runs  # a default dict is not shared


def test_values_of_every_kind_arrive() -> None:
    made = recipe(
        lr=1,
        depth=18,
        norm="gn",
        flip=False,
        threshold=0.001,
        queue=65536,
        clip=35,
        init="w.pth",
        terms=["det", "hcl"],
        views={"crop": [0.5, 1]},
        runs={"ecm": {"method": "ecm"}, "two": {"method": "seesaw", "copies": 2}},
    )
    assert made.lr == 1.0 and type(made.lr) is float
    assert made.views.crop == (0.5, 1.0) and all(type(v) is float for v in made.views.crop)
    assert made.init == Path("w.pth") and made.terms == ("det", "hcl")
    assert made.runs == {"ecm": Run("ecm"), "two": Run("seesaw", 2)}
    assert (made.threshold, made.queue, made.clip) == (0.001, 65536, 35.0)
    assert recipe(images=Path("a")).images == Path("a")


@pytest.mark.parametrize(
    ("values", "path", "nearest"),
    [
        ({"lrr": 0.1}, "pretrain.lrr", "did you mean lr?"),
        ({"views": {"crops": 1}}, "pretrain.views.crops", "did you mean crop?"),
        ({"runs": {"ecm": {"methd": "ecm"}}}, "pretrain.runs.ecm.methd", "did you mean method?"),
        ({"views": {"zzz": 1}}, "pretrain.views.zzz", "known keys: crop, sides"),
        ({True: 1}, "pretrain.True", "known keys"),  # YAML 1.1 reads the key `on` as true
    ],
)
def test_unknown_key(values: dict[Any, Any], path: str, nearest: str) -> None:
    with pytest.raises(Refused) as caught:
        build(Recipe, {"images": "photos", **values}, "pretrain")
    assert caught.value.message == f"unknown key: {path}"
    assert nearest in caught.value.hint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "fast"}, "pretrain.lr must be a number, but it is 'fast' (str)"),
        ({"lr": True}, "pretrain.lr must be a number, but it is True (bool)"),
        ({"lr": None}, "pretrain.lr must be a number, but it is None (NoneType)"),
        ({"queue": True}, "pretrain.queue must be a whole number or 'auto', but it is True (bool)"),
        ({"queue": 2.0}, "pretrain.queue must be a whole number or 'auto', but it is 2.0 (float)"),
        ({"depth": True}, "pretrain.depth must be a whole number, but it is True (bool)"),
        ({"depth": 50.0}, "pretrain.depth must be a whole number, but it is 50.0 (float)"),
        ({"flip": 1}, "pretrain.flip must be true or false, but it is 1 (int)"),
        ({"flip": "yes"}, "pretrain.flip must be true or false, but it is 'yes' (str)"),
        ({"images": 3}, "pretrain.images must be a path, but it is 3 (int)"),
        ({"init": 3}, "pretrain.init must be a path, but it is 3 (int)"),
        ({"clip": "5"}, "pretrain.clip must be a number, but it is '5' (str)"),
        ({"threshold": "autoo"}, "pretrain.threshold must be a number or 'auto', but it is 'autoo' (str)"),
        ({"threshold": None}, "pretrain.threshold must be a number or 'auto', but it is None (NoneType)"),
        ({"views": 3}, "pretrain.views must be a section with keys, but it is 3 (int)"),
        ({"views": [1]}, "pretrain.views must be a section with keys, but it is [1] (list)"),
        ({"runs": ["ecm"]}, "pretrain.runs must be a section with keys, but it is ['ecm'] (list)"),
        ({"runs": {"ecm": "ecm"}}, "pretrain.runs.ecm must be a section with keys, but it is 'ecm' (str)"),
        ({"runs": {"ecm": {}}}, "missing key: pretrain.runs.ecm.method"),
        ({"views": {"crop": 0.5}}, "pretrain.views.crop must be a list, but it is 0.5 (float)"),
        ({"views": {"crop": "ab"}}, "pretrain.views.crop must be a list, but it is 'ab' (str)"),
        ({"views": {"crop": [0.5]}}, "pretrain.views.crop must have 2 values, but it has 1"),
        ({"views": {"crop": [0.5, "b"]}}, "pretrain.views.crop[1] must be a number, but it is 'b' (str)"),
        ({"views": {"sides": [640, 8.5]}}, "pretrain.views.sides[1] must be a whole number, but it is 8.5"),
    ],
)
def test_wrong_type(values: dict[str, Any], message: str) -> None:
    assert refusal(**values).message.startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -0.1}, "pretrain.lr must be between 0 and inf, but it is -0.1"),
        ({"threshold": 2}, "pretrain.threshold must be between 1e-12 and 1, but it is 2.0"),
        ({"threshold": 0.0}, "pretrain.threshold must be between 1e-12 and 1, but it is 0.0"),
        ({"queue": 0}, "pretrain.queue must be between 1 and inf, but it is 0"),
        ({"clip": -1}, "pretrain.clip must be between 0 and inf, but it is -1.0"),
        ({"views": {"crop": [0.5, 1.5]}}, "pretrain.views.crop[1] must be between 0.1 and 1, but it is 1.5"),
        ({"views": {"sides": [31]}}, "pretrain.views.sides[0] must be between 32 and inf, but it is 31"),
        ({"runs": {"a": {"method": "m", "copies": 0}}}, "pretrain.runs.a.copies must be between 1 and inf"),
        ({"lr": float("nan")}, "pretrain.lr must be a finite number, but it is nan"),
        ({"lr": float("inf")}, "pretrain.lr must be a finite number, but it is inf"),
        ({"threshold": float("nan")}, "pretrain.threshold must be a finite number, but it is nan"),
        ({"views": {"crop": [0.5, float("nan")]}}, "pretrain.views.crop[1] must be a finite number"),
        ({"depth": 34}, "pretrain.depth must be one of 18, 50, 101, but it is 34 (int)"),
        ({"norm": "BN"}, "pretrain.norm must be one of bn, gn, but it is 'BN' (str)"),
        ({"terms": ["hcl", "sr"]}, "pretrain.terms[1] must be one of hcl, lcl, det, but it is 'sr' (str)"),
    ],
)
def test_out_of_range_or_choice(values: dict[str, Any], message: str) -> None:
    assert refusal(**values).message.startswith(message)


def test_bounds_are_inclusive_and_huge_whole_numbers_are_numbers() -> None:
    assert recipe(lr=0, threshold=1, queue=1, views={"crop": [0.1, 1.0]}).threshold == 1.0
    assert recipe(queue=10**400).queue == 10**400


def test_literal_distinguishes_true_from_one() -> None:
    @dataclass(frozen=True)
    class Start:
        first: Literal[0, 1] = setting(0)

    assert build(Start, {"first": 1}, "s").first == 1
    for wrong in (True, 1.0, "1", None, [1]):
        with pytest.raises(Refused, match=r"s\.first must be one of 0, 1"):
            build(Start, {"first": wrong}, "s")


def test_yaml_reads_some_numbers_as_texts(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("pretrain: {lr: 1e-3, threshold: 1e-3, queue: 6e4, clip: 1e1, depth: 5e1, tiny: 1e-12}\n")
    values = read_params(file)["pretrain"]
    assert all(type(v) is str for v in values.values())  # that is the trap
    assert refusal(lr=values["lr"]).hint == "write 0.001: YAML reads 1e-3 as a text"
    assert refusal(threshold=values["threshold"]).hint == "write 0.001: YAML reads 1e-3 as a text"
    advice = refusal(threshold=values["tiny"]).hint
    assert advice == "write 1.0e-12: YAML reads 1e-12 as a text"
    file.write_text(f"pretrain: {{threshold: {advice.split()[1].rstrip(':')}}}\n")
    assert read_params(file)["pretrain"]["threshold"] == 1e-12
    assert refusal(queue=values["queue"]).hint == "write 60000: YAML reads 6e4 as a text"
    assert refusal(clip=values["clip"]).hint == "write 10.0: YAML reads 1e1 as a text"
    assert refusal(depth=values["depth"]).hint == "write 50: YAML reads 5e1 as a text"
    for no_number in ("fast", "nan", "inf"):
        assert refusal(lr=no_number).hint == ""
    assert refusal(depth="1.5").hint == ""


def test_empty_sections_mean_defaults() -> None:
    made = recipe(views=None, runs=None)
    assert made.views == Views() and made.runs == {}


def test_merge_precedence_is_by_section() -> None:
    default = {"lr": 0.02, "views": {"crop": [0.5, 1.0], "flip": 0.5}, "init": "a.pth"}
    preset = {"views": {"crop": [0.2, 1.0]}, "runs": {"a": {"method": "ecm"}}}
    file = {"lr": 0.1, "runs": {"b": {"method": "bce"}}, "init": None, "views": None}
    command_line = {"lr": 0.3, "views": {"flip": 0.0}}
    before = json.dumps([default, preset, file, command_line])
    merged = merge(default, preset, file, command_line)
    assert merged == {
        "lr": 0.3,
        "views": {"crop": [0.2, 1.0], "flip": 0.0},  # `views:` with nothing under it took nothing away
        "init": None,
        "runs": {"a": {"method": "ecm"}, "b": {"method": "bce"}},
    }
    assert json.dumps([default, preset, file, command_line]) == before
    assert merge() == {} and merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
    assert merge({"a": 2}, {"a": {"b": 1}}) == {"a": {"b": 1}}


def test_round_trip_through_plain_data() -> None:
    made = recipe(
        init="w.pth", threshold=0.5, views={"crop": [0.25, 1]}, runs={"ecm": {"method": "ecm", "copies": 3}}
    )
    plain = to_plain(made)
    assert build(Recipe, json.loads(json.dumps(plain)), "pretrain") == made
    assert plain["views"]["crop"] == [0.25, 1.0] and plain["init"] == "w.pth" and plain["clip"] is None
    assert plain["runs"] == {"ecm": {"method": "ecm", "copies": 3}}
    assert list(plain) == [f.name for f in dataclasses.fields(Recipe)]


def test_read_params(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("seed: 3\nbase: &b {lr: 0.1, depth: 18}\npretrain:\n  <<: *b\n  lr: 0.2\n")
    assert read_params(file)["pretrain"] == {"lr": 0.2, "depth": 18}
    assert read_params(file)["seed"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1, 2", "not valid YAML"),
        (b"a: \xff\xfe", "not valid YAML"),
        (b"a: 2024-13-45", "not valid YAML"),  # a date that does not exist
        (b"[" * 5000, "not valid YAML"),
        (b"a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        (b"- 1\n- 2\n", "must hold sections"),
        (b"", "must hold sections"),
        (b"pretrain: {lr: 0.1}\nstats: {}\npretrain: {lr: 0.2}\n", "pretrain is set twice"),
        (b"pretrain:\n  lr: 0.1\n  lr: 0.2\n", "lr is set twice"),
    ],
)
def test_read_params_refuses(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_params(file)
    assert str(file) in caught.value.message and caught.value.exit_code == 2


def test_read_params_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no .*params\.yaml here") as caught:
        read_params(tmp_path / "params.yaml")
    assert "--params" in caught.value.hint
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_params(tmp_path)


def test_errors_cross_processes_whole() -> None:
    stopped = Stopped("after step 3", "run it again")
    stopped.exit_code = 130
    copy = pickle.loads(pickle.dumps(stopped))
    assert type(copy) is Stopped
    assert (str(copy), copy.message, copy.hint, copy.exit_code) == (
        "after step 3",
        "after step 3",
        "run it again",
        130,
    )


def test_first_ten() -> None:
    assert first_ten([]) == ""
    assert first_ten([3, 7]) == "3, 7"
    assert first_ten(list(range(10))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert first_ten(list(range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
