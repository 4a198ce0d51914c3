"""From a source to a store and the job that does it: all or nothing, with a report of what is bad."""

import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import get_args

import psutil
import pytest

from dgnet_platform.data import pack as pack_module
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.decode import MAX_PIXELS, PictureError, decode, picture_size
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.data.people.people_set import write_market as write_people
from dgnet_platform.data.people.sizes import SIZES, DrawnSize
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.errors import UserError
from dgnet_platform.storage.files import staging
from jobs import prepare_data
from tests.helpers.market import WHOLE, encode, packed, rows, snapshot, write_market
from tests.helpers.servers import wait_for

ROOT = Path(__file__).parents[2]


def test_same_source_again_is_already_prepared_and_another_is_refused(tmp_path: Path):
    source, out = write_market(tmp_path / "market"), tmp_path / "store"
    packed(source, out)
    before = snapshot(out)
    assert packed(source, out).outcome == "already packed"
    (source / "bounding_box_train/0009_c1s1_000001_00.jpg").write_bytes(encode((9, 9, 9)))
    with pytest.raises(StoreError, match=r"holds other pictures of market1501 .*: name another --out"):
        packed(source, out)
    with pytest.raises(StoreError, match="already holds market1501: name another --out"):
        prepare(PrepareConfig(dataset="folder", source=source, out=out))
    assert snapshot(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["market", "store"]


def test_out_may_be_an_empty_folder_but_nothing_else(tmp_path: Path):
    source, out = write_market(tmp_path / "market"), tmp_path / "out"
    out.mkdir()
    assert packed(source, out).outcome == "packed"
    (out / "train.parquet").unlink()
    with pytest.raises(StoreError, match=r"exists and is no whole store .*train.parquet is missing.*: remove it"):
        packed(source, out)
    with pytest.raises(StoreError, match=r"is inside the source .* never written to"):
        packed(source, source / "store")


# Bad pictures.


def empty_png(width: int, height: int) -> bytes:
    """A few bytes that declare themselves as a picture of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD_PICTURES = {
    "empty": (b"", "does not decode: no picture"),
    "text": (b"<html>404 not found</html>", "does not decode: no picture"),
    "truncated": (WHOLE[: len(WHOLE) // 2], "does not decode: .*truncated"),
    "header only": (WHOLE[:30], "does not decode"),
    "gif": (encode((1, 2, 3), kind="GIF"), "does not decode: no picture"),
    "hollow": (empty_png(64, 128), "does not decode"),
    "bomb": (empty_png(60_000, 60_000), "a decompression bomb"),
    "over the limit": (empty_png(MAX_PIXELS // 4 + 1, 4), "a decompression bomb: .* over .* in all"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_picture_is_refused_or_skipped(tmp_path: Path, kind: str):
    content, message = BAD_PICTURES[kind]
    source, out = write_market(tmp_path / "market"), tmp_path / "store"
    bad = "bounding_box_train/0002_c2s1_000001_00.jpg"
    (source / bad).write_bytes(content)
    prepared = packed(source, out)
    assert prepared.outcome == "refused"
    (problem,) = prepared.problems
    assert problem.file == bad
    for read in (decode, picture_size):
        with pytest.raises(PictureError, match=message):
            read(content)
    assert [path.name for path in tmp_path.iterdir()] == ["market"]

    assert packed(source, out, skip_bad=True).outcome == "packed"
    store = Store.open(out)
    assert store.info.skipped == 1
    assert store.count("train") == 5


def test_query_whose_only_match_is_broken_is_skipped_too(tmp_path: Path):
    source = write_market(tmp_path / "market")
    (source / "bounding_box_test/1001_c2s1_000001_00.jpg").write_bytes(b"")
    prepared = packed(source, tmp_path / "store", skip_bad=True)
    assert [problem.file for problem in prepared.problems] == [
        "bounding_box_test/1001_c2s1_000001_00.jpg",
        "query/1001_c1s1_000001_00.jpg",
    ]
    assert set(prepared.info.splits) == {"train", "gallery"}


def test_nothing_decodes(tmp_path: Path):
    source = write_market(tmp_path / "market")
    for file in source.rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="not one picture decodes, the first of 9 problems is bounding_box_train/0001"):
        packed(source, tmp_path / "store", skip_bad=True)
    assert [path.name for path in tmp_path.iterdir()] == ["market"]


# All or nothing.


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_market(tmp_path / "market")

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        packed(source, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["market"]


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from dgnet_platform.data import pack
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.data.people.sizes import SIZES
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.config import PrepareConfig

pack.CHUNK, pack.ROW_GROUP_BYTES = 4, 1000
def progress(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(PrepareConfig(dataset="market1501", source=Path(sys.argv[1]), out=Path(sys.argv[2])), progress)
"""


def test_killed_run_leaves_no_store_and_the_next_one_takes_over(tmp_path: Path):
    source, out, leftover = (
        write_market(tmp_path / "market", train=30),
        tmp_path / "store",
        tmp_path / ".store.partial",
    )
    run = subprocess.run([sys.executable, "-c", KILLED_RUN, source, out], check=False)
    assert run.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (leftover / "train.parquet").stat().st_size > 1000
    with pytest.raises(StoreError, match=r"train.parquet cannot be read .*: copy the store again"):
        Store.open(leftover)
    assert packed(source, out).outcome == "packed"
    assert not leftover.exists()
    Store.open(out).verify()


def test_only_one_run_writes(tmp_path: Path):
    source, out = write_market(tmp_path / "market"), tmp_path / "store"
    with staging(out) as folder:
        (folder / "train.parquet").write_bytes(b"half")
        with pytest.raises(UserError, match="is being written by another run: wait"):
            packed(source, out)
        assert (folder / "train.parquet").read_bytes() == b"half"
        shutil.rmtree(folder)
    assert not out.exists()
    assert packed(source, out).outcome == "packed"


# The job.


def test_job_reports_pictures_that_no_split_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = write_market(tmp_path / "market"), tmp_path / "store"
    shutil.copytree(source / "bounding_box_train", source / "extra")
    assert prepare_data.main(["--dataset", "market1501", "--source", str(source), "--out", str(out)]) == 0
    assert "Pictures of no split are among them: 6 in extra." in capsys.readouterr().out


def test_job_reports_pictures_of_kinds_that_are_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = write_market(tmp_path / "market"), tmp_path / "store"
    for name in ("a.tif", "b.TIF", "c.heic", "readme.txt"):
        (source / "bounding_box_train" / name).touch()
    assert prepare_data.main(["--dataset", "market1501", "--source", str(source), "--out", str(out)]) == 0
    assert "Pictures of kinds that are not read are among them: 1 .heic, 2 .tif." in capsys.readouterr().out


def test_job_reports_counts_and_where_they_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = write_market(tmp_path / "market"), tmp_path / "store"
    args = ["--dataset", "market1501", "--source", str(source), "--out", str(out)]
    assert prepare_data.main(args) == 0
    shown = capsys.readouterr().out
    assert "12,936" in shown
    assert "train has 748 people fewer" in shown
    assert "Packed into" in shown
    assert prepare_data.main(args) == 0
    assert "Already prepared" in capsys.readouterr().out


def test_job_exit_status_for_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source, out = write_market(tmp_path / "market"), tmp_path / "store"
    (source / "query" / "[bold]\x1b[2Jholiday\udcff.jpg").write_bytes(WHOLE)
    args = ["--dataset", "market1501", "--source", str(source), "--out", str(out)]
    assert prepare_data.main(args) == 1
    shown = capsys.readouterr().out
    assert r"query/[bold]\x1b[2Jholiday\udcff.jpg: its name does not parse" in shown
    assert "Nothing was written: 1 files are bad" in shown
    assert not out.exists()
    assert prepare_data.main([*args, "--skip-bad"]) == 0
    assert "without 1 bad file" in capsys.readouterr().out


def test_job_exit_status_for_another_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = write_market(tmp_path / "market")
    args = ["--dataset", "dukemtmc-reid", "--source", str(source), "--out", str(tmp_path / "store")]
    assert prepare_data.main(args) == 2
    assert "it looks like Market-1501, so pass --dataset market1501" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--dataset", "market1501"], "needs --source"),
        (["--dataset", "market1501", "--source", "a", "--seed", "1"], "--scenery and --seed"),
        (["--dataset", "market1501", "--source", "a", "--threads", "0"], "must be 1 or more"),
    ],
)
def test_job_refuses_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str):
    with pytest.raises(SystemExit, match="2"):
        prepare_data.main([*args, "--out", str(tmp_path / "store")])
    assert message in capsys.readouterr().err


def test_drawn_people_can_be_drawn_again_from_the_store(tmp_path: Path):
    args = ["--dataset", "people", "--size", "tiny", "--seed", "5", "--threads", "1"]
    assert prepare_data.main([*args, "--out", str(tmp_path / "people")]) == 0
    store = Store.open(tmp_path / "people")
    assert {split: store.count(split) for split in store.info.splits} == {
        "train": SIZES["tiny"].train,
        "query": SIZES["tiny"].queries,
        "gallery": SIZES["tiny"].gallery + SIZES["tiny"].distractors + SIZES["tiny"].junk,
        "multi_query": SIZES["tiny"].queries * SIZES["tiny"].hand_drawn,
    }
    recipe = {key: store.info.origin[key] for key in ("seed", "height", "width")}
    assert recipe == {"seed": 5, "height": 128, "width": 64}
    name, row = next(iter(rows(store).items()))
    assert People(5).jpeg(shot_of(name[1])) == row["image"]
    assert [path.name for path in tmp_path.iterdir()] == ["people"]


def test_sizes_on_the_command_line_are_the_drawing_sizes():
    assert set(get_args(DrawnSize)) == set(SIZES)


def test_a_stopped_job_says_so_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def stop(picture: bytes) -> tuple[int, int]:
        raise KeyboardInterrupt

    monkeypatch.setattr(pack_module, "picture_size", stop)
    source = write_market(tmp_path / "market")
    args = ["--dataset", "market1501", "--source", str(source), "--out", str(tmp_path / "store")]
    assert prepare_data.main(args) == 130
    assert "Stopped: the same command resumes" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["market"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_a_stopped_drawing_leaves_no_process_and_no_file(tmp_path: Path, number: signal.Signals):
    """Ctrl-C reaches the drawers too; who kills the job kills it alone."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "jobs/prepare_data.py", "--dataset", "people", "--size", "market", "--threads", "2",
         "--out", tmp_path / "store"],
        cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: next(temporary.rglob("*.jpg"), None))
        drawers = psutil.Process(process.pid).children(recursive=True)
        assert len(drawers) >= 2
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert output.strip() == "Stopped: the same command resumes from what is saved."
    _, left = psutil.wait_procs(drawers, timeout=10)
    assert not left
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert not list(temporary.iterdir())


def test_a_drawing_that_is_stopped_between_pictures_ends_its_drawers_first(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        write_people(People(0), tmp_path / "people", "laptop", workers=2, progress=stop)
    assert stopped.tb  # and with it all that the frames hold
    assert not multiprocessing.active_children()
    assert not list(tmp_path.iterdir())


def test_job_runs_by_path(tmp_path: Path):
    source = write_market(tmp_path / "market")
    command = [sys.executable, "jobs/prepare_data.py", "--dataset", "market1501"]
    run = subprocess.run(
        [*command, "--source", source, "--out", tmp_path / "store"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    Store.open(tmp_path / "store").verify()
