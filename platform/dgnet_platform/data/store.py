"""The store: a prepared data set as one Parquet file a split, with a fingerprint of all that is in it.

Each row is a picture: its encoded bytes as the source had them, ids, name and size. Each file's key-value
metadata holds the same `StoreInfo`, so that a file from another store, or a missing one, is noticed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Self

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from dgnet_platform.data.records import JUNK, count_people
from dgnet_platform.errors import UserError
from dgnet_platform.storage.remote import RemoteError, open_place, remedy_for
from dgnet_platform.threads import map_in_threads

FORMAT = 1
"""Version of the layout below; a change that older code would misread raises it."""
INFO_KEY = b"dgnet.store"
SCHEMA = pa.schema(
    [
        pa.field("image", pa.binary(), nullable=False),
        pa.field("person_id", pa.int64(), nullable=False),
        pa.field("camera_id", pa.int32(), nullable=False),
        pa.field("file_name", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)
INDEX_COLUMNS = [name for name in SCHEMA.names if name != "image"]


class StoreError(UserError):
    """A store that is not whole, not ours or not as packed; the message names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class SplitInfo:
    """One split of a store."""

    pictures: int
    people: int
    cameras: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class StoreInfo:
    """What a store says of itself."""

    dataset: str
    """Name in `READERS`."""
    splits: Mapping[str, SplitInfo]
    classes: tuple[int, ...]
    """Sorted person ids of `train`, without -1: the label of a person is its position here."""
    fingerprint: str
    """Of all pictures, names and ids; independent of how, where and by how many threads they were packed."""
    skipped: int
    """Files of the source that were left out because something was wrong with them."""
    person_names: Mapping[int, str]
    """The source's names of the persons by person_id; empty where they were numbers already."""
    origin: Mapping[str, object]
    """How drawn people were drawn, to draw them again; empty for photographs."""

    def to_json(self) -> bytes:
        """The metadata's bytes."""
        return json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_json(cls, encoded: bytes) -> Self:
        """The info in a file's metadata; raises StoreError when it is of another format."""
        values = json.loads(encoded)
        found = values.pop("format", None)
        if found != FORMAT:
            raise StoreError(f"is a store of format {found}, this code reads format {FORMAT}: prepare it again")
        values["splits"] = {name: SplitInfo(**split) for name, split in values["splits"].items()}
        values["person_names"] = {int(number): name for number, name in values["person_names"].items()}
        return cls(**{**values, "classes": tuple(values["classes"])})


def row_digest(*, file_name: str, person_id: int, camera_id: int, width: int, height: int, image_sha256: str) -> bytes:
    """Digest of one row; a picture counts by the SHA-256 of its encoded bytes."""
    row = f"{file_name}\0{person_id}\0{camera_id}\0{width}\0{height}\0{image_sha256}"
    return hashlib.sha256(row.encode()).digest()


def split_info(
    split: str, person_ids: Sequence[int], camera_ids: Sequence[int], row_digests: Iterable[bytes]
) -> SplitInfo:
    """Counts and fingerprint of a split from its columns and its rows' digests."""
    return SplitInfo(
        pictures=len(person_ids),
        people=count_people(person_ids, split),
        cameras=len(set(camera_ids)),
        fingerprint=hashlib.sha256(b"".join(sorted(row_digests))).hexdigest(),
    )


def store_fingerprint(splits: Mapping[str, SplitInfo]) -> str:
    """Fingerprint of a store from its splits' fingerprints."""
    parts = sorted((name, split.fingerprint) for name, split in splits.items())
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Store:
    """An opened store. Opening reads the files' footers only; pictures are read one row group at a time."""

    location: str
    """Folder or URI, as given."""
    filesystem: fs.FileSystem
    root: str
    """The store's folder in `filesystem`."""
    info: StoreInfo

    @classmethod
    def open(cls, location: str | Path) -> Self:
        """Open a store in a local folder or at a URI such as `s3://bucket/market1501`.

        Raises:
            StoreError: It is missing, incomplete, damaged, of another format, or mixed from several stores.
        """
        location = str(location)
        try:
            filesystem, root = open_place(location)
        except RemoteError as error:
            raise StoreError(str(error)) from None
        found: list[fs.FileInfo] = []
        with _naming(location), suppress(FileNotFoundError):
            found = filesystem.get_file_info(fs.FileSelector(root))
        splits = {PurePosixPath(file.path).stem for file in found if file.extension == "parquet"}
        if not splits:
            raise StoreError(
                f"{location} holds no store (no .parquet files): run jobs/prepare_data.py --out {location}"
            )
        infos = {split: _read_info(filesystem, f"{root}/{split}.parquet", location) for split in sorted(splits)}
        first_split, info = next(iter(infos.items()))
        for split, other in infos.items():
            if other != info:
                raise StoreError(
                    f"{location}: {split}.parquet and {first_split}.parquet come from different stores: "
                    "prepare it again"
                )
        if splits != set(info.splits):
            lost, foreign = sorted(set(info.splits) - splits), sorted(splits - set(info.splits))
            what = f"{lost[0]}.parquet is missing" if lost else f"{foreign[0]}.parquet does not belong to it"
            raise StoreError(f"{location}: {what}: copy the store again, whole, or prepare it again")
        return cls(location=location, filesystem=filesystem, root=root, info=info)

    def count(self, split: str) -> int:
        """Number of pictures in a split; raises StoreError when the store has no such split."""
        return self._split(split).pictures

    def file(self, split: str) -> str:
        """Path of a split's Parquet file in `filesystem`, for readers of Parquet."""
        self._split(split)
        return f"{self.root}/{split}.parquet"

    def row_groups(self, split: str, columns: list[str] | None = None, rows: range | None = None) -> Iterator[pa.Table]:
        """The rows of a split in their order by row group (some 32 MiB of pictures); the next is read meanwhile.

        Args:
            split: One of the store's.
            columns: Those wanted; None: all.
            rows: Consecutive rows; only row groups that hold some of them are read. None: all.

        Raises:
            StoreError: No such split, or a damaged file.
        """
        path = self.file(split)
        with _naming(f"{self.location}/{split}.parquet"), self.filesystem.open_input_file(path) as opened:
            parquet = pq.ParquetFile(opened, page_checksum_verification=True)
            read = partial(parquet.read_row_group, columns=columns)
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
            ends = list(accumulate(sizes))
            wanted = range(parquet.metadata.num_rows) if rows is None else rows
            groups = [g for g, end in enumerate(ends) if end > wanted.start and end - sizes[g] < wanted.stop]
            for group, table in zip(groups, map_in_threads(read, groups, threads=1, ahead=1), strict=True):
                start = ends[group] - sizes[group]
                first, stop = max(wanted.start - start, 0), min(wanted.stop - start, len(table))
                yield table.slice(first, stop - first)

    def index(self, split: str) -> pd.DataFrame:
        """All columns of a split but the pictures; raises StoreError like `row_groups`."""
        return pa.concat_tables(self.row_groups(split, INDEX_COLUMNS)).to_pandas()

    def verify(self) -> None:
        """Read everything and compare it with the fingerprint; raises StoreError for the first change."""
        found: dict[str, SplitInfo] = {}
        classes: tuple[int, ...] = ()
        for split in self.info.splits:
            index = self.index(split)
            persons, cameras = index["person_id"].tolist(), index["camera_id"].tolist()
            digests = [digest for table in self.row_groups(split) for digest in _row_digests(table)]
            found[split] = split_info(split, persons, cameras, digests)
            if found[split].fingerprint != self.info.splits[split].fingerprint:
                raise StoreError(
                    f"{self.location}/{split}.parquet was changed after it was packed (its rows do not give "
                    "the fingerprint in its metadata): prepare it again"
                )
            if split == "train":
                classes = tuple(sorted(set(persons) - {JUNK}))
        if (found, classes, store_fingerprint(found)) != (
            self.info.splits,
            self.info.classes,
            self.info.fingerprint,
        ):
            raise StoreError(f"{self.location}: its metadata was changed after packing: prepare it again")

    def _split(self, split: str) -> SplitInfo:
        if split not in self.info.splits:
            raise StoreError(f"{self.location} has no split {split!r}: it has {', '.join(sorted(self.info.splits))}")
        return self.info.splits[split]


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Turn what pyarrow says about broken or unreachable files into a StoreError that names the place."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last one for broken names of columns
        remedy = remedy_for(error) or "copy the store again, or prepare it again"
        raise StoreError(f"{where} cannot be read ({error}): {remedy}") from error


def _read_info(filesystem: fs.FileSystem, path: str, location: str) -> StoreInfo:
    where = f"{location}/{PurePosixPath(path).name}"
    with _naming(where), filesystem.open_input_file(path) as opened:
        parquet = pq.ParquetFile(opened)
        metadata, rows, schema = (
            parquet.metadata.metadata or {},
            parquet.metadata.num_rows,
            parquet.schema_arrow,
        )
    if INFO_KEY not in metadata:
        raise StoreError(f"{where} was not packed by jobs/prepare_data.py, or rewritten since: prepare it again")
    try:
        info = StoreInfo.from_json(metadata[INFO_KEY])
    except StoreError as error:
        raise StoreError(f"{where} {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{where} has broken metadata ({error!r}): prepare it again") from None
    split = PurePosixPath(path).stem
    if split in info.splits and (rows != info.splits[split].pictures or not schema.equals(SCHEMA)):
        raise StoreError(
            f"{where} was changed after it was packed ({rows:,} rows, {info.splits[split].pictures:,} were "
            "packed): prepare it again"
        )
    return info


def _row_digests(table: pa.Table) -> Iterator[bytes]:
    index = table.select(INDEX_COLUMNS).to_pylist()
    for row, image in zip(index, table["image"], strict=True):
        yield row_digest(**row, image_sha256=hashlib.sha256(image.as_buffer()).hexdigest())
