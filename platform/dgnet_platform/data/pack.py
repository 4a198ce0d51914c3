"""Packing: every picture of a listing read, decoded and written, all or nothing."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dgnet_platform.data.decode import PictureError, picture_size
from dgnet_platform.data.records import JUNK, SPLITS, Listing, Problem, Record, unmatched, unmatched_problem
from dgnet_platform.data.source import Source, SourceError
from dgnet_platform.data.store import (
    INDEX_COLUMNS,
    INFO_KEY,
    SCHEMA,
    StoreInfo,
    row_digest,
    split_info,
    store_fingerprint,
)
from dgnet_platform.threads import map_in_threads

ROW_GROUP_BYTES = 32 * 2**20
"""Pictures in a row group: long enough that a request to an object store is bound by bandwidth and not by its
latency (tens of milliseconds), short enough that a reader can hold a few row groups in memory."""
CHUNK = 64
"""Pictures that a thread takes at once, so that handing them over costs nothing beside decoding them."""


class _Picture(NamedTuple):
    """A record with all that its row holds."""

    record: Record
    image: bytes
    width: int
    height: int
    digest: bytes


def pack(
    listing: Listing, folder: Path, *, dataset: str, threads: int, progress: Callable[[int, int], None]
) -> tuple[StoreInfo, list[Problem]]:
    """Write the pictures of a listing to `folder`, one Parquet file a split.

    Args:
        listing: What to pack, checked.
        folder: An empty folder.
        dataset: Name in `READERS`.
        threads: Threads that read and decode; the result does not depend on their number.
        progress: Called now and then with the number of pictures done and the number there are.

    Returns:
        What the files' metadata says, and all problems: the listing's, and those of opening the pictures.

    Raises:
        SourceError: Not one picture could be used.
    """
    problems = list(listing.problems)
    kept: dict[str, list[Record]] = {}
    digests: dict[str, list[bytes]] = {}
    with ExitStack() as files:
        writers: dict[str, _SplitWriter] = {}
        done = 0
        for split in SPLITS:
            records = [record for record in listing.records if record.split == split]
            if split == "query":  # a match may have turned out to be broken since the listing was checked
                lonely = set(unmatched(records, kept.get("gallery", [])))
                problems += map(unmatched_problem, (record for record in records if record in lonely))
                records = [record for record in records if record not in lonely]
            for number, picture in enumerate(_examined(listing.source, records, threads)):
                if number % CHUNK == 0:
                    progress(done + number, len(listing.records))
                if isinstance(picture, Problem):
                    problems.append(picture)
                    continue
                if split not in writers:
                    writers[split] = files.enter_context(_SplitWriter(folder / f"{split}.parquet"))
                writers[split].add(picture)
                kept.setdefault(split, []).append(picture.record)
                digests.setdefault(split, []).append(picture.digest)
            done += len(records)
        progress(len(listing.records), len(listing.records))
        if not kept:
            raise SourceError(f"{listing.source.where('')}: not one picture decodes, {_first(problems)}")
        info = _info(listing, dataset, kept, digests, skipped=len(problems))
        for writer in writers.values():
            writer.finish(info)
    return info, problems


def _first(problems: Sequence[Problem]) -> str:
    return f"the first of {len(problems):,} problems is {problems[0].file}: {problems[0].reason}"


def _info(
    listing: Listing,
    dataset: str,
    kept: dict[str, list[Record]],
    digests: dict[str, list[bytes]],
    *,
    skipped: int,
) -> StoreInfo:
    splits = {
        split: split_info(split, [r.person_id for r in records], [r.camera_id for r in records], digests[split])
        for split, records in kept.items()
    }
    return StoreInfo(
        dataset=dataset,
        splits=splits,
        classes=tuple(sorted({record.person_id for record in kept.get("train", [])} - {JUNK})),
        fingerprint=store_fingerprint(splits),
        skipped=skipped,
        person_names=listing.person_names,
        origin=listing.origin,
    )


def _examined(source: Source, records: Sequence[Record], threads: int) -> Iterator[_Picture | Problem]:
    """The records with their pictures, in order, read and decoded by threads."""

    def examine(chunk: Sequence[Record]) -> list[_Picture | Problem]:
        # All are read before the first is decoded: reading lets go of the interpreter again and again, and two
        # threads that take turns at it would lose a quarter of their time.
        contents = [_read(source, record) for record in chunk]
        return [_examine(record, content) for record, content in zip(chunk, contents, strict=True)]

    chunks = (records[start : start + CHUNK] for start in range(0, len(records), CHUNK))
    for pictures in map_in_threads(examine, chunks, threads):
        yield from pictures


def _read(source: Source, record: Record) -> bytes | Problem:
    try:
        return source.read(record.path)
    except SourceError as error:
        return Problem(file=record.path, reason=str(error))


def _examine(record: Record, image: bytes | Problem) -> _Picture | Problem:
    if isinstance(image, Problem):
        return image
    try:
        width, height = picture_size(image)
    except PictureError as error:
        return Problem(file=record.path, reason=f"{error}: replace it by a whole picture, or remove it")
    digest = row_digest(
        file_name=record.file_name,
        person_id=record.person_id,
        camera_id=record.camera_id,
        width=width,
        height=height,
        image_sha256=hashlib.sha256(image).hexdigest(),
    )
    return _Picture(record=record, image=image, width=width, height=height, digest=digest)


class _SplitWriter:
    """Writes the rows of one split in row groups."""

    def __init__(self, path: Path) -> None:
        # JPEG does not compress further, and statistics of it would put whole pictures into the footer.
        options: dict[str, Any] = {"use_dictionary": INDEX_COLUMNS, "write_statistics": INDEX_COLUMNS}
        self._file = pq.ParquetWriter(path, SCHEMA, compression="none", write_page_checksum=True, **options)
        self._pictures: list[_Picture] = []
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0

    def __enter__(self) -> "_SplitWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, picture: _Picture) -> None:
        """Append a row."""
        self._pictures.append(picture)
        self._bytes += len(picture.image)
        if len(self._pictures) == CHUNK:
            self._convert()
        if self._bytes >= ROW_GROUP_BYTES:
            self._write_row_group()

    def finish(self, info: StoreInfo) -> None:
        """Write what is left, and the metadata."""
        if self._bytes:
            self._write_row_group()
        self._file.add_key_value_metadata({INFO_KEY.decode(): info.to_json().decode()})

    def _convert(self) -> None:
        """Rows to columns, few at a time: one array of a whole row group would be copied whenever it grows."""
        pictures, self._pictures = self._pictures, []
        columns = [
            [picture.image for picture in pictures],
            [picture.record.person_id for picture in pictures],
            [picture.record.camera_id for picture in pictures],
            [picture.record.file_name for picture in pictures],
            [picture.width for picture in pictures],
            [picture.height for picture in pictures],
        ]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))

    def _write_row_group(self) -> None:
        self._convert()
        table = pa.Table.from_batches(self._batches, schema=SCHEMA)
        self._file.write_table(table, row_group_size=len(table))
        self._batches, self._bytes = [], 0
