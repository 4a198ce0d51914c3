"""The Parquet store: byte-exact, with a fingerprint of all that is in it, every way to be broken named."""

import tempfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgnet_platform.data import pack as pack_module
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.source import SourceError
from dgnet_platform.data.store import FORMAT, INFO_KEY, Store, StoreError
from tests.helpers.market import encode, packed, rows, snapshot, write_market


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
