"""Sets of pictures that are measured: a store's, or a folder's that any generator filled, with their identities."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_platform.data.decode import PictureError, decode, picture_size
from dgnet_platform.data.readers.folder import MANIFEST
from dgnet_platform.data.source import climbs_out
from dgnet_platform.data.store import Store
from dgnet_platform.errors import UserError
from dgnet_platform.evaluation.generate import TABLE, shown_people
from dgnet_platform.threads import map_in_threads

COLUMNS = "path", "appearance_id", "structure_id"
"""What a folder's manifest says of each picture: its file, whose appearance and whose structure it shows."""
SOURCES = "appearance", "structure"
"""Columns that a manifest may have: file names of the real pictures that a picture was generated from."""
BODY = "body"
"""One more: which of the two gives body, hair style and bag; the structure, where it is missing."""


class PictureSetError(UserError):
    """Pictures that cannot be measured; the message names the file and the remedy."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """N encoded pictures; those of a generator have sources."""

    name: str
    """For messages: where they are from."""
    pictures: pa.Array | pa.ChunkedArray
    """Their files' bytes."""
    index: pd.DataFrame
    """`file_name` and `person_id`; of generated ones also `structure_id`, SOURCES and BODY ("": not known)."""

    def __len__(self) -> int:
        return len(self.index)

    def decode(self, rows: Sequence[int] | np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """The pictures (N, 3, H, W), uint8, of some rows, resized by bicubic interpolation where another size is asked.

        Raises:
            PictureSetError: a damaged picture, or pictures of two sizes where none is asked for.
        """
        decoded = []
        for row in rows:
            try:
                pixels = torch.from_numpy(decode(self.pictures[int(row)].as_py()).copy()).permute(2, 0, 1)[None]
            except PictureError as error:
                raise PictureSetError(f"{self.name}: {self._file(row)}: {error}: make it again") from None
            if size is not None and pixels.shape[2:] != size:
                pixels = F.interpolate(pixels.contiguous(), size, mode="bicubic", antialias=True)
            decoded.append(pixels)
        return torch.cat(decoded).contiguous()

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """Height and width of all pictures; None where they differ."""
        return None if len(self._sizes) > 1 else next(iter(self._sizes))

    def check_one_size(self) -> None:
        """Raises PictureSetError unless all pictures are of one size."""
        if self.size is None:
            (first, one), (second, other) = list(self._sizes.items())[:2]
            raise PictureSetError(
                f"{self.name} holds pictures of two sizes: {self._file(one)} is {first[1]} x {first[0]}, "
                f"{self._file(other)} is {second[1]} x {second[0]}: write all of them in one size"
            )

    @cached_property
    def _sizes(self) -> dict[tuple[int, int], int]:
        """A picture of each size that occurs."""
        found: dict[tuple[int, int], int] = {}
        for row, picture in enumerate(self.pictures):
            try:
                width, height = picture_size(picture.as_py())
            except PictureError as error:
                raise PictureSetError(f"{self.name}: {self._file(row)}: {error}: make it again") from None
            found.setdefault((height, width), row)
        return found

    def _file(self, row: int) -> str:
        return str(self.index["file_name"].iloc[int(row)])

    def digest(self) -> str:
        """What tells this set from another: of all pictures and what is said of them."""
        found = hashlib.sha256(self.index.to_csv(index=False).encode())
        for picture in self.pictures:
            found.update(hashlib.sha256(picture.as_py()).digest())
        return found.hexdigest()


def stored_set(store: Store, split: str) -> PictureSet:
    """The pictures of a split that show a person, in the store's order."""
    table = shown_people(store, split)
    index = table.select(["file_name", "person_id"]).to_pandas()
    if not len(index):
        raise PictureSetError(f"{split} of {store.location} shows no person: name another split or store")
    return PictureSet(name=f"{split} of {store.location}", pictures=table["image"], index=index)


def generated_set(folder: Path, real: PictureSet, threads: int) -> PictureSet:
    """The pictures of a folder, as jobs/generate.py or any other generator left them.

    Args:
        folder: with TABLE, or a manifest.csv with COLUMNS and perhaps SOURCES.
        real: the pictures of the split that it was generated from.
        threads: that read files.

    Raises:
        PictureSetError: a file, a column or an identity is missing, pictures are of two sizes, or their sources are
            not the store's.
    """
    index = _manifest(folder)
    for column in SOURCES:
        if column not in index:
            index[column] = ""
    if BODY not in index:
        index[BODY] = index["structure"]
    index[BODY] = index[BODY].where(index[BODY] != "", index["structure"])
    _check_sources(index, folder, real)

    def read(path: str) -> bytes:
        try:
            return (folder / path).read_bytes()
        except OSError as error:
            raise PictureSetError(f"{folder / path}, which its manifest names, cannot be read ({error})") from None

    pictures = pa.array(map_in_threads(read, index["file_name"], threads), pa.large_binary())
    found = PictureSet(name=str(folder), pictures=pictures, index=index)
    found.check_one_size()
    return found


def _manifest(folder: Path) -> pd.DataFrame:
    """Rows of file_name, person_id, structure_id and what else a folder's manifest says."""
    if (folder / TABLE).exists():
        table = pd.read_parquet(folder / TABLE)
        kept = {"path": "file_name", "person_id": "person_id", "structure_person_id": "structure_id"}
        kept |= {column: column for column in (*SOURCES, BODY) if column in table}
        return pd.DataFrame({ours: table[theirs] for theirs, ours in kept.items()})
    where = folder / MANIFEST
    if not where.exists():
        raise PictureSetError(
            f"{folder} has no {MANIFEST}, so nothing says whom its pictures show: write one with the columns"
            f" {', '.join(COLUMNS)} ({' and '.join(SOURCES)}, file names in the store, are optional)"
        )
    with where.open(encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file.readlines())
            lines = [(reader.line_num, row) for row in reader]
        except UnicodeDecodeError as error:
            raise PictureSetError(f"{where} is not UTF-8 text ({error}): save it as UTF-8") from None
        except csv.Error as error:
            raise PictureSetError(f"{where}: {error}: save it as comma-separated text again") from None
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise PictureSetError(
                f"{where} has no column {', '.join(missing)}: its first line must name {', '.join(COLUMNS)}"
            )
        rows = []
        for number, row in lines:
            for column in COLUMNS[1:]:
                if not re.fullmatch(r"-?[0-9]{1,9}", (row[column] or "").strip()):
                    raise PictureSetError(
                        f"{where} line {number}: {column} is {row[column]!r}, the number of an identity as in"
                        " the store is needed"
                    )
            if not (row["path"] or "").strip():
                raise PictureSetError(f"{where} line {number} names no picture: complete or remove it")
            if climbs_out(row["path"]):
                raise PictureSetError(f"{where} line {number}: {row['path']!r} leads out of the folder")
            sources = {column: (row.get(column) or "").strip() for column in (*SOURCES, BODY)}
            ids = {"person_id": int(row["appearance_id"]), "structure_id": int(row["structure_id"])}
            rows.append({"file_name": row["path"].strip(), **ids, **sources})
    if not rows:
        raise PictureSetError(f"{where} names no picture")
    return pd.DataFrame(rows)


def _check_sources(index: pd.DataFrame, folder: Path, real: PictureSet) -> None:
    """Raises PictureSetError for a picture listed twice, or sources that the store does not have."""
    doubled = [path for path, count in Counter(index["file_name"]).items() if count > 1]
    if doubled:
        raise PictureSetError(f"{folder}: its manifest names {doubled[0]} more than once: keep one line a picture")
    for file, body, *sources in zip(
        index["file_name"], index[BODY], *(index[column] for column in SOURCES), strict=True
    ):
        if body not in sources:
            raise PictureSetError(f"{folder}: {file} has its {BODY} from {body}, which is neither of its sources")
    people = dict(zip(real.index["file_name"], real.index["person_id"], strict=True))
    for column, identity in zip(SOURCES, ("person_id", "structure_id"), strict=True):
        for file, source, person in zip(index["file_name"], index[column], index[identity], strict=True):
            if source and people.get(source) != person:
                raise PictureSetError(
                    f"{folder}: {file} has its {column} from {source} of identity {person}, which is not in"
                    f" {real.name}: it was generated from another store or split, or the store was changed since; name"
                    " that store, or generate again"
                )
