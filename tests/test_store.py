"""The Parquet store and the job that packs it: byte-exact, all or nothing, every way to be broken named."""

import io
import os
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dgnet_platform.datasets import pack as pack_module
from dgnet_platform.datasets.decode import MAX_PIXELS, PictureError, decode, measure
from dgnet_platform.datasets.pack import staging
from dgnet_platform.datasets.people import People
from dgnet_platform.datasets.people_set import SIZES, shot_of
from dgnet_platform.datasets.prepare import DrawnSize, PrepareConfig, Prepared, prepare
from dgnet_platform.datasets.source import SourceError
from dgnet_platform.datasets.store import FORMAT, INFO_KEY, Store, StoreError
from jobs import prepare_data

ROOT = Path(__file__).parents[1]


def encode(color: tuple[int, int, int], size: tuple[int, int] = (4, 8), kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind, **options)
    return file.getvalue()


def write_market(folder: Path, *, train: int = 3, size: tuple[int, int] = (4, 8)) -> Path:
    """`train` persons with two pictures each, one query with its match, a distractor, and Thumbs.db."""
    names = [
        f"bounding_box_train/{person:04d}_c{camera}s1_000001_00.jpg"
        for person in range(1, train + 1)
        for camera in (1, 2)
    ]
    names += ["bounding_box_test/1001_c2s1_000001_00.jpg", "bounding_box_test/0000_c1s1_000001_00.jpg"]
    names += ["query/1001_c1s1_000001_00.jpg"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode((number % 256, number // 256, 80), size))
    (folder / "query" / "Thumbs.db").write_bytes(b"thumbs")
    return folder


def packed(source: Path, out: Path, **options: Any) -> Prepared:
    return prepare(PrepareConfig(dataset="market1501", source=source, out=out, **options), lambda done, total: None)


def rows(store: Store) -> dict[tuple[str, str], dict]:
    return {
        (split, row["file_name"]): row
        for split in store.info.splits
        for table in store.row_groups(split)
        for row in table.to_pylist()
    }


def snapshot(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_store_holds_the_source(tmp_path: Path):
    source = write_market(tmp_path / "market")
    before = snapshot(source)
    prepared = packed(source, tmp_path / "stores" / "market")
    store = Store.open(tmp_path / "stores" / "market")
    assert snapshot(source) == before
    assert prepared.outcome == "packed"
    assert prepared.ignored == 1
    assert prepared.info == store.info
    assert {split: (info.pictures, info.people, info.cameras) for split, info in store.info.splits.items()} == {
        "train": (6, 3, 2),
        "gallery": (2, 1, 2),
        "query": (1, 1, 1),
    }
    assert store.info.classes == (1, 2, 3)
    assert rows(store)["query", "1001_c1s1_000001_00.jpg"] == {
        "image": (source / "query/1001_c1s1_000001_00.jpg").read_bytes(),
        "person_id": 1001,
        "camera_id": 1,
        "file_name": "1001_c1s1_000001_00.jpg",
        "width": 4,
        "height": 8,
    }
    assert list(store.index("gallery")["person_id"]) == [0, 1001]
    store.verify()


PERSONS = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    pictures=st.lists(
        st.tuples(
            PERSONS,
            st.integers(0, 10**9 - 1),
            st.tuples(*[st.integers(0, 255)] * 3),
            st.tuples(st.integers(1, 9), st.integers(1, 9)),
            st.sampled_from(["JPEG", "PNG", "BMP", "WEBP"]),
        ),
        min_size=1,
        max_size=8,
    ),
    row_group_bytes=st.integers(1, 3000),
)
def test_round_trip_is_byte_exact(pictures: list, row_group_bytes: int):
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as monkeypatch:
        archive, out, again = (Path(temporary) / name for name in ("own.zip", "store", "again"))
        expected, manifest = {}, ["path,person_id,camera_id,split"]
        with zipfile.ZipFile(archive, "w") as file:
            for number, (person, camera, color, size, kind) in enumerate(pictures):
                encoded = encode(color, size, kind)
                file.writestr(f"{number}.jpg", encoded)
                quoted = person.replace('"', '""')
                manifest.append(f'{number}.jpg,"{quoted}",{camera},train')
                if person.strip():
                    expected[f"{number}.jpg"] = (encoded, camera, *size)
            file.writestr("manifest.csv", "\r\n".join(manifest).encode())
        config = PrepareConfig(dataset="folder", source=archive, out=out, skip_bad=True, threads=1)
        if not expected:
            with pytest.raises(SourceError, match="no usable picture"):
                prepare(config)
            return
        prepare(config)
        store = Store.open(out)
        store.verify()
        found = {
            name: (row["image"], row["camera_id"], row["width"], row["height"])
            for (_, name), row in rows(store).items()
        }
        assert found == expected

        monkeypatch.setattr(pack_module, "ROW_GROUP_BYTES", row_group_bytes)
        other = PrepareConfig(dataset="folder", source=archive, out=again, skip_bad=True, threads=3)
        assert prepare(other).info == store.info
        Store.open(again).verify()


def test_fingerprint_depends_on_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_market(tmp_path / "market", train=40)
    first = packed(source, tmp_path / "a", threads=1).info
    with zipfile.ZipFile(tmp_path / "market.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(source.rglob("*.jpg"), reverse=True):
            archive.write(path, f"Market-1501-v15.09.15/{path.relative_to(source).as_posix()}")
    monkeypatch.setattr(pack_module, "CHUNK", 7)
    monkeypatch.setattr(pack_module, "ROW_GROUP_BYTES", 2000)
    assert packed(tmp_path / "market.zip", tmp_path / "b", threads=5).info == first
    assert pq.read_metadata(tmp_path / "b" / "train.parquet").num_row_groups > 5

    (source / "query/1001_c1s1_000001_00.jpg").write_bytes(encode((255, 255, 255)))
    changed = packed(source, tmp_path / "c").info
    assert changed.fingerprint != first.fingerprint
    assert changed.splits["train"] == first.splits["train"]
    (source / "query/1001_c1s1_000001_00.jpg").rename(source / "query/1001_c1s1_000002_00.jpg")
    assert packed(source, tmp_path / "d").info.fingerprint != changed.fingerprint


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


def noise(height: int, width: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def empty_png(width: int, height: int) -> bytes:
    """A few bytes that declare themselves as a picture of any size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">L", len(content)) + kind + content + struct.pack(">L", zlib.crc32(kind + content))

    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


WHOLE = noise(128, 64)
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
    for read in (decode, measure):
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


def test_pictures_are_upright_rgb():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    picture = encode((200, 0, 0), (4, 8), exif=exif)
    assert decode(picture).shape == (4, 8, 3)
    assert measure(picture) == (8, 4)
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        file = io.BytesIO()
        Image.new(mode, (3, 2)).save(file, "JPEG" if mode == "CMYK" else "PNG")
        assert decode(file.getvalue()).shape == (2, 3, 3)


JPEG_KINDS = {
    "plain": {},
    "whole colours": {"subsampling": 0},
    "half colours": {"subsampling": 1},
    "progressive": {"progressive": True},
    "coarse": {"quality": 20},
    "restarts": {"restart_marker_rows": 1},
    "not YCbCr": {"keep_rgb": True},
    "described": {"comment": b"x" * 60_000, "icc_profile": b"y" * 70_000},
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_has_pillows_pixels(kind: str, mode: str):
    for width, height in ((64, 128), (1, 1), (7, 5), (33, 17)):
        with Image.open(io.BytesIO(noise(height, width))) as image:
            file = io.BytesIO()
            image.convert(mode).save(file, "JPEG", **JPEG_KINDS[kind])
        picture, place = file.getvalue(), np.empty((height, width, 3), np.uint8)
        for pixels in (decode(picture), decode(picture, place), decode(picture, place[1:])):
            assert np.array_equal(pixels, pillows_pixels(picture))
        assert measure(picture) == (width, height)


def pillows_pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("progressive", [False, True])
def test_measuring_finds_what_decoding_finds(progressive: bool):
    file = io.BytesIO()
    with Image.open(io.BytesIO(WHOLE)) as image:
        image.save(file, "JPEG", progressive=progressive)
    whole = file.getvalue()
    assert measure(whole) == (64, 128)
    for length in range(0, len(whole) - 2, len(whole) // 40):
        for read in (decode, measure):
            with pytest.raises(PictureError):
                read(whole[:length])
    for place in range(20, len(whole), len(whole) // 200):
        broken = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        assert outcome(decode, broken) == outcome(measure, broken)
        if outcome(decode, broken) == "decodes":  # though libjpeg may warn
            assert np.array_equal(decode(broken), pillows_pixels(broken))
        else:
            with pytest.raises((OSError, SyntaxError)):
                pillows_pixels(broken)


def outcome(read: Callable[[bytes], object], picture: bytes) -> str:
    try:
        read(picture)
    except PictureError as error:
        return str(error)
    return "decodes"


# All or nothing.


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_market(tmp_path / "market")

    def disk_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_module, "flush", disk_full)
    with pytest.raises(OSError, match="No space left"):
        packed(source, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["market"]


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from dgnet_platform.datasets import pack
from dgnet_platform.datasets.people import People
from dgnet_platform.datasets.people_set import SIZES, shot_of
from dgnet_platform.datasets.prepare import PrepareConfig, prepare

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
        with pytest.raises(StoreError, match="is being written by another run: wait"):
            packed(source, out)
        assert (folder / "train.parquet").read_bytes() == b"half"
    assert packed(source, out).outcome == "packed"


# Broken stores.


@pytest.fixture
def store(tmp_path: Path) -> Store:
    packed(write_market(tmp_path / "market"), tmp_path / "store")
    return Store.open(tmp_path / "store")


def rewrite(path: Path, *, table: pa.Table | None = None, info: bytes | None = None) -> None:
    """The file again, with other rows or other metadata, as somebody who edits it would write it."""
    old = pq.read_metadata(path).metadata[INFO_KEY]
    rows = pq.read_table(path) if table is None else table
    with pq.ParquetWriter(path, rows.schema) as file:
        file.write_table(rows)
        file.add_key_value_metadata({INFO_KEY.decode(): (old if info is None else info).decode()})


def test_missing_store(tmp_path: Path):
    for location in (tmp_path, tmp_path / "none"):
        with pytest.raises(StoreError, match=r"holds no store .*: run jobs/prepare_data.py"):
            Store.open(location)
    with pytest.raises(StoreError, match="no place pyarrow can read"):
        Store.open("ftp://host/store")


def test_missing_split(store: Store):
    with pytest.raises(StoreError, match=r"has no split 'val': it has gallery, query, train"):
        next(store.row_groups("val"))
    (Path(store.location) / "query.parquet").unlink()
    with pytest.raises(StoreError, match=r"query.parquet is missing: copy the store again"):
        Store.open(store.location)
    with pytest.raises(StoreError, match=r"query.parquet cannot be read"):
        store.index("query")


def test_foreign_file(store: Store, tmp_path: Path):
    (tmp_path / "store" / "val.parquet").write_bytes((tmp_path / "store" / "train.parquet").read_bytes())
    with pytest.raises(StoreError, match=r"val.parquet does not belong to it"):
        Store.open(store.location)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "store" / "val.parquet")
    with pytest.raises(StoreError, match=r"val.parquet was not packed by jobs/prepare_data.py"):
        Store.open(store.location)


def test_mixed_stores(store: Store, tmp_path: Path):
    packed(write_market(tmp_path / "other", train=4), tmp_path / "other-store")
    (tmp_path / "other-store" / "train.parquet").rename(tmp_path / "store" / "train.parquet")
    with pytest.raises(StoreError, match=r"train.parquet and gallery.parquet come from different stores"):
        Store.open(store.location)


def test_other_format(store: Store, tmp_path: Path):
    info = store.info.to_json().replace(f'"format": {FORMAT}'.encode(), b'"format": 99')
    rewrite(tmp_path / "store" / "gallery.parquet", info=info)
    with pytest.raises(StoreError, match=rf"gallery.parquet is a store of format 99, this code reads format {FORMAT}"):
        Store.open(store.location)


@pytest.mark.parametrize("info", [b"{", b"[]", b'{"format": 1}'])
def test_broken_metadata(store: Store, tmp_path: Path, info: bytes):
    rewrite(tmp_path / "store" / "gallery.parquet", info=info)
    with pytest.raises(StoreError, match=r"gallery.parquet has broken metadata"):
        Store.open(store.location)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_file(store: Store, tmp_path: Path, keep: int):
    file = tmp_path / "store" / "train.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(StoreError, match=r"train.parquet cannot be read .*: copy the store again"):
        Store.open(store.location)


def test_flipped_bit(store: Store, tmp_path: Path):
    file = tmp_path / "store" / "train.parquet"
    content = bytearray(file.read_bytes())
    content[content.index(b"JFIF") + 100] ^= 1
    file.write_bytes(content)
    opened = Store.open(store.location)
    with pytest.raises(StoreError, match=r"train.parquet cannot be read .*CRC"):
        opened.verify()


def test_removed_row(store: Store, tmp_path: Path):
    file = tmp_path / "store" / "train.parquet"
    rewrite(file, table=pq.read_table(file).slice(1))
    with pytest.raises(StoreError, match=r"train.parquet was changed after it was packed \(5 rows, 6 were packed\)"):
        Store.open(store.location)


@pytest.mark.parametrize("column", ["image", "person_id", "camera_id", "file_name", "width", "height"])
def test_edited_row(store: Store, tmp_path: Path, column: str):
    file = tmp_path / "store" / "query.parquet"
    table = pq.read_table(file)
    value = {"image": encode((0, 0, 0)), "file_name": "x.jpg"}.get(column, 7)
    place = table.schema.get_field_index(column)
    edited = table.set_column(place, table.schema.field(place), pa.array([value], table.schema.field(place).type))
    rewrite(file, table=edited)
    with pytest.raises(StoreError, match=r"query.parquet was changed after it was packed .* fingerprint"):
        Store.open(store.location).verify()


@pytest.mark.parametrize(("old", "new"), [(b'"classes": [1, ', b'"classes": [9, '), (b'"people": 3', b'"people": 4')])
def test_edited_metadata(store: Store, tmp_path: Path, old: bytes, new: bytes):
    info = store.info.to_json()
    assert old in info
    for split in store.info.splits:
        rewrite(tmp_path / "store" / f"{split}.parquet", info=info.replace(old, new))
    with pytest.raises(StoreError, match="metadata was changed after packing"):
        Store.open(store.location).verify()


def test_store_opens_from_a_uri(store: Store):
    assert rows(Store.open(Path(store.location).as_uri())) == rows(store)


# The job.


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
        (["--dataset", "market1501", "--source", "a", "--seed", "1"], "--size and --seed are for drawing"),
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

    monkeypatch.setattr(pack_module, "measure", stop)
    source = write_market(tmp_path / "market")
    args = ["--dataset", "market1501", "--source", str(source), "--out", str(tmp_path / "store")]
    assert prepare_data.main(args) == 130
    assert "Stopped: nothing was written." in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["market"]


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
