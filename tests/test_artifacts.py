"""Products appear whole or not at all; digests and fingerprints see what matters and nothing else."""

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import artifacts
from pipeline.errors import EnvironmentProblem, InputError, MismatchedInput, MissingInput, UsageError

DEAD = 4_194_304  # above the largest process number of Linux
ROOT = Path(artifacts.__file__).parents[1]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def publish(out: Path, content: str = "new", stage: str = "stats") -> None:
    with artifacts.publishing(out, stage) as folder:
        (folder / "figures").mkdir()
        (folder / "figures" / "a.txt").write_text(content)
        artifacts.write_json(folder / artifacts.MANIFEST, {"stage": stage, "fingerprint": content})


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing past `size` bytes fails, as on a file system or under a `ulimit -f` that allows no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process may not write to, with a file that it may not read.

    Root may always, and steps down for the test.
    """
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "secret").touch(mode=0o000)
        Path(name).chmod(0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)
            Path(name).chmod(0o755)


# --- digests


def test_file_digest(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    file.write_bytes(b"abc" * 1000)
    assert artifacts.file_digest(file) == hashlib.sha256(b"abc" * 1000).hexdigest()
    for missing in (tmp_path / "b.bin", file / "inside-a-file"):
        with pytest.raises(MissingInput, match="does not exist"):
            artifacts.file_digest(missing)
    with pytest.raises(InputError, match="is a folder, where a file is needed") as caught:
        artifacts.file_digest(tmp_path)
    assert caught.value.hint == "name a file"
    (tmp_path / "detector.pth").touch()
    with pytest.raises(InputError) as caught:
        artifacts.file_digest(tmp_path)
    assert caught.value.hint == f"name a file in it, e.g. {tmp_path / 'detector.pth'}"


def test_unreadable_file_is_an_input_error(read_only: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        artifacts.file_digest(read_only / "secret")


def test_fingerprint_ignores_key_order_and_nothing_else() -> None:
    content = {"stage": "stats", "settings": {"lr": 0.1, "sides": [1, 2], "init": None}, "seed": 0}
    same = {"seed": 0, "settings": {"init": None, "sides": [1, 2], "lr": 0.1}, "stage": "stats"}
    assert artifacts.fingerprint(content) == artifacts.fingerprint(same)
    assert re.fullmatch(r"[0-9a-f]{16}", artifacts.fingerprint(content))
    others: list[dict[str, Any]] = [
        content | {"seed": 1},
        content | {"settings": {"lr": 0.1, "sides": [2, 1], "init": None}},
        content | {"settings": {"lr": 0.1000000001, "sides": [1, 2], "init": None}},
        content | {"settings": {"lr": 0.1, "sides": [1, 2], "init": "None"}},
        content | {"settings": {"lr": 0.1, "sides": [1, 2]}},
        content | {"settings": {"lr": True, "sides": [1, 2], "init": None}},
        content | {"inputs": {}},
    ]
    prints = [artifacts.fingerprint(c) for c in [content, *others]]
    assert len(set(prints)) == len(prints)
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.fingerprint({"lr": float("nan")})


def test_fingerprint_is_the_same_in_another_process() -> None:
    content = {"b": ["x", 1.5], "a": {"z": None, "y": True}}
    code = f"from pipeline.artifacts import fingerprint; print(fingerprint({content!r}), end='')"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert other.stdout == artifacts.fingerprint(content)


def test_manifest_is_deterministic_and_its_fingerprint_is_of_what_decides() -> None:
    made = artifacts.manifest("stats", {"t": 1}, {"annotations": "ab"}, 3, images_drawn=7)
    assert made == artifacts.manifest("stats", {"t": 1}, {"annotations": "ab"}, 3, images_drawn=7)
    assert (made["stage"], made["settings"], made["inputs"], made["seed"], made["images_drawn"]) == (
        "stats",
        {"t": 1},
        {"annotations": "ab"},
        3,
        7,
    )
    assert set(made["versions"]) >= {"2drcl", "torch", "numpy"}
    told_more = artifacts.manifest("stats", {"t": 1}, {"annotations": "ab"}, 3, images_drawn=8)
    assert told_more["fingerprint"] == made["fingerprint"]
    others = [
        artifacts.manifest("pretrain", {"t": 1}, {"annotations": "ab"}, 3),
        artifacts.manifest("stats", {"t": 2}, {"annotations": "ab"}, 3),
        artifacts.manifest("stats", {"t": 1}, {"annotations": "ac"}, 3),
        artifacts.manifest("stats", {"t": 1}, {"annotations": "ab", "proposals": "x"}, 3),
        artifacts.manifest("stats", {"t": 1}, {"annotations": "ab"}, 4),
    ]
    assert len({m["fingerprint"] for m in [made, *others]}) == 6


# --- files


def test_json_is_deterministic_to_the_byte(tmp_path: Path) -> None:
    artifacts.write_json(tmp_path / "a.json", {"b": 0.1, "a": [1, None]})
    artifacts.write_json(tmp_path / "b.json", {"a": [1, None], "b": 0.1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text() == '{\n "a": [\n  1,\n  null\n ],\n "b": 0.1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifacts.write_json(tmp_path / "a.json", {"b": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text())["b"] == 0.1


def test_replacing_keeps_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    artifacts.write_bytes(file, b"old")
    with artifacts.replacing(file) as temporary:
        temporary.write_bytes(b"new")
        assert file.read_bytes() == b"old" and temporary.parent == file.parent
    assert files_of(tmp_path) == {"deep/a.txt": b"new"}
    with pytest.raises(ZeroDivisionError), artifacts.replacing(file) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert files_of(tmp_path) == {"deep/a.txt": b"new"}


def test_replacing_sweeps_what_killed_processes_left(tmp_path: Path) -> None:
    kept = [f".a.txt.{os.getppid()}.tmp", f".b.txt.{DEAD}.tmp", ".a.txt.tmp", f"a.txt.{DEAD}.tmp"]
    swept = [f".a.txt.{DEAD}.tmp", f".a.txt.{os.getpid()}.tmp", f".a.txt.{10**30}.tmp"]
    for name in kept + swept:
        (tmp_path / name).write_text("half")
    artifacts.write_bytes(tmp_path / "a.txt", b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a.txt", *kept])


# --- the disk


def test_disk_full(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "new"
    message = rf"disk full while writing {path} \(\d+ MiB free\)"
    with pytest.raises(EnvironmentProblem, match=message) as caught, artifacts.disk_errors(path):
        Path("/dev/full").write_text("x")
    assert caught.value.exit_code == 4 and "free some space" in caught.value.hint


def test_disk_full_inside_a_product_leaves_the_old_one(tmp_path: Path) -> None:
    publish(tmp_path / "out", "old")
    before = files_of(tmp_path)
    with (
        pytest.raises(EnvironmentProblem, match="disk full"),
        artifacts.publishing(tmp_path / "out", "stats"),
    ):
        Path("/dev/full").write_text("x")
    assert files_of(tmp_path) == before


def test_file_too_large_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    artifacts.write_bytes(file, b"old")
    with largest_file(1000), pytest.raises(EnvironmentProblem, match="grew larger") as caught:
        artifacts.write_bytes(file, b"x" * 2000)
    assert caught.value.exit_code == 4 and "ulimit" in caught.value.hint
    assert files_of(tmp_path) == {"a.bin": b"old"}


def test_read_only_folder(read_only: Path) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: artifacts.write_bytes(read_only / "a.txt", b"x"),
        lambda: artifacts.write_bytes(read_only / "new" / "a.txt", b"x"),
        lambda: publish(read_only / "out"),
    ]
    for attempt in attempts:
        with pytest.raises(EnvironmentProblem, match=r"cannot write .*Permission denied") as caught:
            attempt()
        assert caught.value.exit_code == 4 and "--out" in caught.value.hint


def test_other_disk_errors_are_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output") as caught, artifacts.disk_errors(tmp_path):
        raise OSError(errno.EIO, "Input/output error")
    assert not isinstance(caught.value, EnvironmentProblem)


# --- manifests of other stages


def test_read_manifest(tmp_path: Path) -> None:
    publish(tmp_path / "out")
    assert artifacts.read_manifest(tmp_path / "out", "stats")["fingerprint"] == "new"
    with pytest.raises(MismatchedInput, match="written by `stats`, not by `pretrain`"):
        artifacts.read_manifest(tmp_path / "out", "pretrain")
    for missing in (tmp_path / "nothing", tmp_path, tmp_path / "out" / "manifest.json"):
        with pytest.raises(MissingInput, match="holds no finished stats") as caught:
            artifacts.read_manifest(missing, "stats")
        assert caught.value.hint == "run `2drcl stats` first"
    for broken in (b"{", b"\xff\xfe", b"[1]", b""):
        (tmp_path / "out" / "manifest.json").write_bytes(broken)
        with pytest.raises(InputError, match=r"is broken|is no manifest") as refused:
            artifacts.read_manifest(tmp_path / "out", "stats")
        assert refused.value.hint == f"remove {tmp_path / 'out'} and run `2drcl stats` again"


def test_is_current(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not artifacts.is_current(out, "stats", "new")
    publish(out, "new")
    assert artifacts.is_current(out, "stats", "new")
    assert not artifacts.is_current(out, "stats", "other")
    with pytest.raises(UsageError, match="belongs to `2drcl stats`"):
        artifacts.is_current(out, "pretrain", "new")
    (out / "manifest.json").unlink()
    shutil.rmtree(out / "figures")
    assert not artifacts.is_current(out, "stats", "new")  # DVC removed the product and left its folder


# --- whose folder it is


def test_refuse_foreign_lets_its_own_pass(tmp_path: Path) -> None:
    out = tmp_path / "out"
    artifacts.refuse_foreign(out, "stats")  # not there
    out.mkdir()
    artifacts.refuse_foreign(out, "stats")  # empty
    publish(out)
    artifacts.refuse_foreign(out, "stats")  # an earlier product
    (out / "manifest.json").unlink()
    shutil.rmtree(out / "figures")
    artifacts.write_json(out / artifacts.TIMING, {"seconds": 1})
    artifacts.refuse_foreign(out, "pretrain")  # what DVC does not track
    assert (out / artifacts.TIMING).exists()  # letting pass is not removing


@pytest.mark.parametrize("manifest", [None, b"{", b"\xff", b"[1]", b'{"stage": null}', "folder"])
def test_refuse_foreign_somebody_elses(tmp_path: Path, manifest: bytes | str | None) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    if isinstance(manifest, bytes):
        (out / "manifest.json").write_bytes(manifest)
    elif manifest:
        (out / "manifest.json").mkdir()
    with pytest.raises(UsageError, match="holds files of somebody else") as caught:
        publish(out)
    assert caught.value.exit_code == 2
    assert (out / "thesis.tex").read_text() == "precious"


def test_refuse_foreign_other_stage(tmp_path: Path) -> None:
    publish(tmp_path / "out", stage="evaluate")
    with pytest.raises(UsageError, match="belongs to `2drcl evaluate`"):
        publish(tmp_path / "out", stage="stats")
    assert artifacts.read_manifest(tmp_path / "out", "evaluate")["fingerprint"] == "new"


def test_refuse_foreign_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match="is a file"):
            publish(out)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (Path("."), Path(".."), tmp_path, Path("/"), Path("/proc")):
        with pytest.raises(UsageError, match="cannot be replaced") as caught:
            publish(out)
        assert caught.value.hint == "name a folder inside it"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "here"]


# --- all at once or not at all


def test_publishing_replaces_the_whole_folder(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run[1]"  # a name with wildcards
    publish(out, "old")
    (out / "figures" / "stale.txt").write_text("from before")
    with artifacts.publishing(out, "stats") as folder:
        assert list(folder.iterdir()) == [] and folder.parent == out.parent
        (folder / "manifest.json").write_text('{"stage": "stats"}')
        assert (out / "figures" / "stale.txt").exists()
    assert files_of(tmp_path) == {"deep/run[1]/manifest.json": b'{"stage": "stats"}'}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("problem", [ValueError, KeyboardInterrupt, SystemExit])
def test_publishing_that_fails_leaves_everything(
    tmp_path: Path, old: bool, problem: type[BaseException]
) -> None:
    if old:
        publish(tmp_path / "out", "old")
    before = files_of(tmp_path)
    with pytest.raises(problem), artifacts.publishing(tmp_path / "out", "stats") as folder:
        (folder / "half.txt").write_text("half")
        raise problem
    assert files_of(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if old else [])


def test_publishing_puts_the_old_product_back_when_the_second_rename_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish(out, "old")
    before = files_of(tmp_path)
    with pytest.raises(FileNotFoundError), artifacts.publishing(out, "stats") as folder:
        folder.rmdir()  # nothing to rename once the old product has stepped aside
    assert files_of(tmp_path) == before


def test_publishing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large" / "run")
    publish(tmp_path / "out", "old")
    publish(tmp_path / "out", "new")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "large" / "run" / "figures" / "a.txt").read_text() == "new"
    assert sorted(p.name for p in (tmp_path / "large").iterdir()) == ["run"]


KILLED_EVERYWHERE = """
import os, signal, sys
from pathlib import Path
from pipeline import artifacts

FILE_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "shutil.rmtree")

def publish(out, content):
    with artifacts.publishing(out, "stats") as folder:
        (folder / "a.txt").write_text(content)
        artifacts.write_json(folder / "manifest.json", {"stage": "stats", "fingerprint": content})

def arm(left):
    def kill(event, arguments):
        nonlocal left
        if event in FILE_OPERATIONS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(kill)

point, status = 0, 1
while status != 0:  # 0: the child finished before its turn to be killed came
    out = Path(sys.argv[1]) / str(point) / "out"
    publish(out, "old")
    child = os.fork()
    if child == 0:
        arm(point)
        publish(out, "new")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    point += 1
"""


def test_publishing_killed_before_every_file_operation(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED_EVERYWHERE, str(tmp_path)], cwd=ROOT, check=True)
    states = []
    for point in sorted(tmp_path.iterdir(), key=lambda p: int(p.name)):
        out = point / "out"
        states.append((out / "a.txt").read_text() if out.exists() else "none")
        if out.exists():
            assert artifacts.is_current(out, "stats", states[-1])
            assert sorted(files_of(out)) == ["a.txt", "manifest.json"]
        publish(out, "next")
        assert [p.name for p in point.iterdir()] == ["out"]  # the next run sweeps
    assert len(states) > 10 and states == sorted(states, key=["old", "none", "new"].index)
    assert set(states) == {"old", "none", "new"} and states.count("none") == 1


def test_publishing_leaves_a_live_process_its_folder(tmp_path: Path) -> None:
    theirs = tmp_path / f".out.{os.getppid()}.new"
    dead = [
        tmp_path / f".out.{DEAD}.new",
        tmp_path / f".out.{DEAD}.old",
        tmp_path / f".out.{os.getpid()}.new",
    ]
    others = [tmp_path / f".out.b.{DEAD}.new", tmp_path / f".output.{DEAD}.new", tmp_path / f"out.{DEAD}.new"]
    for folder in [theirs, *dead, *others]:
        (folder / "inner").mkdir(parents=True)
    publish(tmp_path / "out")
    assert theirs.exists() and all(o.exists() for o in others)
    assert not any(d.exists() for d in dead)
    publish(tmp_path / "out[.]b")  # a name is no pattern
    assert all(o.exists() for o in others)


# --- scratch


def test_scratch_paths(tmp_path: Path) -> None:
    inside = tmp_path / "artifacts" / "pretrain" / "default"
    assert artifacts.scratch(inside, "pretrain", "ab12") == tmp_path / "artifacts" / ".work/pretrain/ab12"
    assert artifacts.scratch(tmp_path / "mine", "pretrain", "ab12") == tmp_path / ".work/pretrain/ab12"
    nested = tmp_path / "artifacts" / "old" / "artifacts" / "stats" / "default"
    assert artifacts.scratch(nested, "stats", "x") == tmp_path / "artifacts/old/artifacts/.work/stats/x"
    assert not any(tmp_path.iterdir())


def test_scratch_does_not_depend_on_where_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = artifacts.scratch(Path("artifacts/stats/default"), "stats", "x")
    assert relative == artifacts.scratch(tmp_path / "artifacts/stats/default", "stats", "x")
