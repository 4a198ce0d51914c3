"""Inputs drawn at random end well, or with one of our errors: no traceback, no changed source.

`DGNET_FUZZ=2000 uv run pytest tests/test_fuzz.py --hypothesis-show-statistics` draws more examples than CI's, and says
how many each test had.
"""

import csv
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgnet_core.dgnet.state import TrainState
from dgnet_platform.cli.experiments import base_and_space, parse
from dgnet_platform.cli.options import TrainDGNet, TrainTeacher, TuneMarket
from dgnet_platform.cli.prepare import prepare_store
from dgnet_platform.cli.terminal import run
from dgnet_platform.data.pose_files import read_pose_files
from dgnet_platform.data.poses import found_keypoints
from dgnet_platform.data.prepare import PrepareConfig, prepare
from dgnet_platform.data.readers.folder import COLUMNS
from dgnet_platform.data.store import Store
from dgnet_platform.errors import UserError
from dgnet_platform.runs import checkpoint, journal
from dgnet_platform.runs.run import Run
from dgnet_platform.search.space import PARAMETERS, Space
from tests.helpers.market import encode, packed, snapshot, write_market
from tests.helpers.tiny import tiny_config

MANY = settings(
    max_examples=int(os.environ.get("DGNET_FUZZ", "25")),
    deadline=None,
    derandomize="DGNET_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # libraries warn of what they are given
]


def ends_well(call: Callable[[], object]) -> None:
    """Nothing but an error for users leaves `call`, and it says something; or tyro's exit, which has explained it."""
    told: BaseException | None = None
    try:
        call()
    except (UserError, OSError, SystemExit) as error:
        told = error
    if isinstance(told, SystemExit):
        assert told.code in (0, 2)
    elif told is not None:
        assert str(told)


# ----------------------------------------------------------------------------------------------------------------
# Command lines and settings

WORDS = st.sampled_from(
    [
        "--data", "--name", "--iterations", "--workers", "--gpus", "--no-gpus", "--preset", "--config", "--threads",
        "--model.loss.prim", "--model.batch-size", "--model.network.height", "--trials", "--set", "--space", "--keep",
        "--objectives", "--stopping.rungs", "--teacher", "--tracking-uri", "--evaluate-also", "--help", "--", "-x",
        "laptop", "paper", "0", "-1", "1", "4", "1e9", "nan", "inf", "1:4", "4:1", "True", "None", "", " ", "a b",
        "o'neil", "../..", "/", "\x00", "\ud800", "学习", "alpha=0.1", "alpha={low: 1, high: 0}", "alpha={", "=", "x=1",
        "~", "~0", "~no/x", "http://", "s3://\ud800", "sqlite:///", "sqlite://", "file:///x", "http://[::1", "s3://",
    ]
)  # fmt: skip


@pytest.mark.parametrize("options", [TrainDGNet, TrainTeacher, TuneMarket])
@MANY
@given(words=st.lists(WORDS | st.text(max_size=8), max_size=6))
def test_command_lines(options: type[Any], words: list[str], capsys: pytest.CaptureFixture[str]):
    def read(description: str | None, args: Any, console: Any) -> int:
        if options is TuneMarket:
            base_and_space(tyro.cli(TuneMarket, args=args, description=description))
        else:
            parse(options, description, args)
        return 0

    ends_well(lambda: run(read, None, words))
    capsys.readouterr()


KEYS = (
    "data", "name", "keep", "threads", "workers", "model", "network", "loss", "augment", "height", "batch_size",
    "milestones", "warmup_iterations", "evaluate_also", "precision", "baseline", "hold_out", "storage", "low", "high",
    "log", "step", "choices",
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(["1:4", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=8,
)


@MANY
@given(values=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_settings(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.mktemp("settings") / "settings.yaml"
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    for options in (TrainDGNet, TrainTeacher):
        ends_well(lambda options=options: parse(options, None, ["--config", str(file)]))


@MANY
@given(content=st.binary(max_size=60) | st.text(alphabet="abk: -{}[]&*!|>'\"#%@\n\t0", max_size=60).map(str.encode))
def test_settings_of_any_bytes(content: bytes, tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.mktemp("settings") / "settings.yaml"
    file.write_bytes(content)
    ends_well(lambda: parse(TrainTeacher, None, ["--config", str(file)]))
    assert file.read_bytes() == content


@MANY
@given(values=st.dictionaries(st.sampled_from([*PARAMETERS, "other"]), VALUES, max_size=3))
def test_spaces(values: dict[str, Any]):
    config = tiny_config()

    def use() -> None:
        space = Space.default(config).overridden(values)
        for point in space.draw(2, 0):
            space.apply(config, point)

    ends_well(use)


# ----------------------------------------------------------------------------------------------------------------
# Files

DAMAGES = st.one_of(
    st.tuples(st.just("flip"), st.floats(0, 1, exclude_max=True), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
    st.tuples(st.just("foreign"), st.sampled_from([0.0, 0.3, 0.6, 0.9]), st.integers(0, 255)),
)
FOREIGN = {0.0: b"", 0.3: b"PK\x03\x04", 0.6: b'{"format": 1}', 0.9: b"\x80\x04."}


def damaged(content: bytes, damage: tuple[str, float, int]) -> bytes:
    kind, place, value = damage
    if kind == "cut":
        return content[: int(place * len(content))]
    if kind == "foreign":
        return FOREIGN[place] + bytes([value]) * 20
    at = int(place * len(content))
    return content[:at] + bytes([content[at] ^ value]) + content[at + 1 :]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    packed(write_market(folder / "market", train=4), folder / "store")
    return folder / "store"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = tiny_config()
    return checkpoint.save(TrainState.build(config), config, tmp_path_factory.mktemp("run"))


def damaged_copy(source: Path, data: st.DataObject, folder: Path) -> tuple[Path, Path]:
    """A copy of a folder with one damaged file."""
    copy = folder / source.name
    shutil.copytree(source, copy)
    file = copy / data.draw(st.sampled_from(sorted(path.name for path in source.iterdir() if path.is_file())))
    file.write_bytes(damaged(file.read_bytes(), data.draw(DAMAGES)))
    return copy, file


@MANY
@given(data=st.data())
def test_stores(store: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    copy, _ = damaged_copy(store, data, tmp_path_factory.mktemp("copy"))
    before = snapshot(copy)

    def use() -> None:
        opened = Store.open(str(copy))
        for split in opened.info.splits:
            list(opened.row_groups(split))
        opened.verify()

    ends_well(use)
    assert snapshot(copy) == before


@MANY
@given(data=st.data())
def test_checkpoints(trained: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    copy, _ = damaged_copy(trained, data, tmp_path_factory.mktemp("copy"))
    before = snapshot(copy)
    ends_well(lambda: checkpoint.load_networks(copy))
    ends_well(lambda: checkpoint.verify(copy))
    assert snapshot(copy) == before


PICTURE = encode((9, 9, 9))
LINE = (
    json.dumps({"iteration": 1, "time": 2, "metrics": {"loss/L": 0.5}, "pictures": {"swaps": "a.png"}}).encode() + b"\n"
)


@MANY
@given(
    parts=st.lists(
        st.just(LINE) | st.binary(max_size=30) | VALUES.map(lambda v: json.dumps(v).encode() + b"\n"), max_size=5
    )
)
def test_journals(parts: list[bytes], tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    (folder / journal.JOURNAL).write_bytes(b"".join(parts))
    for entry in journal.read(folder):
        assert entry.iteration + 1 > 0
        assert all(isinstance(value, float | int) for value in entry.metrics.values())
    written = journal.Journal(folder, 0)  # a run that begins anew drops all
    written.write(1, {"loss/L": 0.5})
    written.close()
    assert [entry.iteration for entry in journal.read(folder)][-1] == 1


@MANY
@given(values=VALUES)
def test_records_of_runs(values: Any, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "run.json").write_text(json.dumps(values))
    ends_well(lambda: Run.read(folder))
    (folder / "run.json").write_text(json.dumps({"format": 1, "kind": "dgnet", "experiment": values}))
    ends_well(lambda: Run.read(folder))


KEYPOINTS = "name:keypoints_y:keypoints_x\n0001_c1s1_000001_00.jpg: [1, 2, 3]: [4, 5, 6]\n"


@pytest.mark.parametrize("name", ["points.csv", "points.mat", "folder/0001_c1s1_000001_00.txt", "points.zip"])
@MANY
@given(
    content=st.binary(max_size=80)
    | st.text(alphabet="0123456789-:,[] .ejpgcs_\n", max_size=120).map(lambda t: (KEYPOINTS + t).encode())
)
def test_key_points(name: str, content: bytes, store: Path, tmp_path_factory: pytest.TempPathFactory):
    file = tmp_path_factory.mktemp("poses") / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    opened = Store.open(str(store))
    index = {split: opened.index(split) for split in opened.info.splits}
    where = file.parent if "/" in name else file
    ends_well(lambda: found_keypoints(opened, read_pose_files(where, index)))
    assert file.read_bytes() == content


@MANY
@given(
    content=st.binary(max_size=200) | st.sampled_from(list(FOREIGN.values())),
    name=st.sampled_from(["source.zip", "source/train/1/a_c1_1.jpg", "source/manifest.csv"]),
)
def test_sources(content: bytes, name: str, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("source")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    source = folder / name.split("/")[0]
    ends_well(lambda: prepare(PrepareConfig(dataset="folder", source=source, out=folder / "store"), lambda *_: None))
    assert (folder / name).read_bytes() == content
    assert not (folder / "store").exists()


AWKWARD = (
    "", ".", "..", "-rf", "~", "CON", "C:", "a b", "%s", "$(id)", "..\\up", "[bold]x[/]", "[/]", "\x1b[31m", "a\nb",
    "\u202e", "学习", "x" * 240,
)  # fmt: skip
NAMES = st.sampled_from(AWKWARD) | st.text(max_size=12) | st.binary(min_size=1, max_size=12).map(os.fsdecode)


@pytest.mark.parametrize("kind", ["folder", "manifest", "zip"])
@MANY
@given(names=st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4, unique=True))
def test_names_of_files(
    kind: str, names: list[str], tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
):
    """Names lead nowhere else, and nothing that a terminal would obey is shown."""
    folder = tmp_path_factory.mktemp("names")
    source, paths = folder / "source", [f"train/1/{name}_c1_{number}.jpg" for number, name in enumerate(names)]
    source.mkdir()
    if kind == "zip":
        with zipfile.ZipFile(source := folder / "source.zip", "w") as file:
            for path in paths:
                with suppress(UnicodeEncodeError):
                    file.writestr(zipfile.ZipInfo(path), PICTURE)
    elif kind == "manifest":
        with (source / "manifest.csv").open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            csv.writer(file).writerows([COLUMNS, *([path, "1", "1", "train"] for path in paths)])
    for path in paths if kind != "zip" else ():
        with suppress(OSError, ValueError):  # no system takes such a name
            if (source / path).resolve().is_relative_to(source):
                (source / path).parent.mkdir(parents=True, exist_ok=True)
                (source / path).write_bytes(PICTURE)
    before = snapshot(folder)
    config = PrepareConfig(dataset="folder", source=source, out=folder / "store", threads=1)
    ends_well(lambda: run(lambda _, __, console: prepare_store(config, console), None, []))
    assert all(shown.isprintable() or shown == "\n" for shown in capsys.readouterr().out)
    left = {path: content for path, content in snapshot(folder).items() if config.out not in (path, *path.parents)}
    assert left == before
