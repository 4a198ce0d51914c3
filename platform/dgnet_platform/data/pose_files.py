"""Published key points: the CSV of Market-1501, FD-GAN's text files, the 14-point files, matched to a store's pictures.

All give pixel indices. Here pixel k reaches from k to k + 1, so a joint found at index k is at k + 0.5.
"""

import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dgnet_core.learning.joints import JOINTS
from dgnet_platform.data.records import JUNK
from dgnet_platform.data.source import Source, open_source
from dgnet_platform.errors import UserError

CSV_HEADER = "name:keypoints_y:keypoints_x"
_NUMBERED = re.compile(r"\d{8}_\d{2}_\d{4}")
_FOURTEEN = ("head", *JOINTS[1:14])
"""What the 14-point files have: the top of the head, which is none of ours, then ours without the face."""

Picture = tuple[str, str]
"""Split and file name in the store."""


class PoseError(UserError):
    """Key points that cannot be used; the message names the file or picture and the remedy."""


@dataclass(frozen=True, kw_only=True)
class FoundPoses:
    """Key points as a file has them."""

    source: str
    """The format and where it was read, for messages."""
    pictures: Sequence[Picture]
    """M of the store."""
    places: np.ndarray
    """(M, 18, 2) float64: x and y in pixels; NaN where a joint is missing."""
    others: int = 0
    """Pictures in the file that the store does not have."""


def read_pose_files(path: Path, index: Mapping[str, pd.DataFrame]) -> FoundPoses:
    """Key points from a file, a folder or a .zip; the format is told by the endings of the names.

    Args:
        path: A .csv or a .mat file, or what holds several of one kind, or a folder of .txt files.
        index: For each split of the store, its columns without the pictures.

    Raises:
        PoseError: It is none of these, cannot be read, or is for other pictures.
        SourceError: It does not exist, or is not safe to read.
    """
    if path.is_file() and path.suffix.lower() in (".csv", ".mat"):
        with open_source(path.parent) as folder:
            return _read(Source(path=folder.path, names=(path.name,), read_entry=folder.read_entry), index)
    with open_source(path) as source:
        return _read(source, index)


def _read(source: Source, index: Mapping[str, pd.DataFrame]) -> FoundPoses:
    readers = {".csv": _read_csv, ".txt": _read_numbered, ".mat": _read_fourteen}
    kinds: dict[str, list[str]] = defaultdict(list)
    for name in source.names:
        ending = Path(name).suffix.lower()
        if ending in readers and (ending != ".txt" or _NUMBERED.fullmatch(Path(name).stem)):
            kinds[ending].append(name)
    if len(kinds) != 1:
        found = f"both {' and '.join(sorted(kinds))}" if kinds else "none of them"
        raise PoseError(
            f"{source.path} holds {found}: name a .csv with the columns {CSV_HEADER}, a folder of text files such as"
            " 00000002_00_0001.txt, or the 14-point .mat files"
        )
    ((ending, names),) = kinds.items()
    found = readers[ending](source, names, index)
    if not found.pictures:
        example = index[min(index)]["file_name"].iloc[0]
        raise PoseError(
            f"{found.source} holds key points for {found.others:,} other pictures and none of the store's, such as"
            f" {example}: name the key points of this data set"
        )
    return found


def _read_csv(source: Source, names: Sequence[str], index: Mapping[str, pd.DataFrame]) -> FoundPoses:
    """The format of pose-gan and PATN: `name:[18 y]:[18 x]`, -1 where a joint is missing."""
    rows: dict[str, np.ndarray] = {}
    for name in names:
        header, *lines = source.read_text(name).splitlines() or [""]
        if header.strip() != CSV_HEADER:
            raise PoseError(f"{source.where(name)} begins with {header[:80]!r}: its columns must be {CSV_HEADER}")
        for number, line in enumerate(lines, start=2):
            picture, _, lists = line.partition(":")
            try:
                y, x = (np.array(json.loads(part), float) for part in lists.split(":"))
                rows[picture] = _indexed(x, y)
            except (ValueError, TypeError) as error:
                where = f"{source.where(name)}, line {number} ({picture[:80]})"
                raise PoseError(f"{where}: not two lists of 18 numbers ({error}): correct or remove the line") from None
    pictures = [(split, file) for split, table in index.items() for file in table["file_name"] if file in rows]
    known = {file for _, file in pictures}
    return FoundPoses(
        source=f"CSV {source.path}",
        pictures=pictures,
        places=np.stack([rows[file] for _, file in pictures]) if pictures else np.empty((0, 18, 2)),
        others=len(rows.keys() - known),
    )


def _read_numbered(source: Source, names: Sequence[str], index: Mapping[str, pd.DataFrame]) -> FoundPoses:
    """FD-GAN's text files: 18 lines `row column`, and pictures renumbered by person and camera as open-reid does."""
    files = {Path(name).stem: name for name in names}
    pictures, places = [], []
    for stem, picture in _renumbered(index).items():
        if (name := files.get(stem)) is None:
            continue
        try:
            table = np.loadtxt(io.StringIO(source.read_text(name)), ndmin=2)
            places.append(_indexed(table[:, 1], table[:, 0]))
        except (ValueError, IndexError) as error:
            raise PoseError(f"{source.where(name)}: not 18 lines of row and column ({error}): remove it") from None
        pictures.append(picture)
    return FoundPoses(
        source=f"text files in {source.path}",
        pictures=pictures,
        places=np.stack(places) if places else np.empty((0, 18, 2)),
        others=len(files) - len(pictures),
    )


def _renumbered(index: Mapping[str, pd.DataFrame]) -> dict[str, Picture]:
    """open-reid's names: person, camera from 0, and a count that continues from training to gallery to queries."""
    counts: dict[tuple[int, int], int] = defaultdict(int)
    names: dict[str, Picture] = {}
    for split in ("train", "gallery", "query"):
        if split not in index:
            continue
        table = index[split].sort_values("file_name")
        for file, person, camera in zip(table["file_name"], table["person_id"], table["camera_id"], strict=True):
            if person != JUNK:
                names[f"{person:08d}_{camera - 1:02d}_{counts[person, camera]:04d}"] = (split, file)
                counts[person, camera] += 1
    return names


def _read_fourteen(source: Source, names: Sequence[str], index: Mapping[str, pd.DataFrame]) -> FoundPoses:
    """The 14-point files: a MATLAB v7.3 matrix 28 x N a split, 14 x above 14 y, from 1, pictures sorted by name.

    The sides are not stated; the first arm and leg are taken for the right ones, as OpenPose's are.
    """
    import h5py  # only these files need it

    sizes = {len(table): split for split, table in index.items()}
    pictures: list[Picture] = []
    places: list[np.ndarray] = []
    for name in names:
        where = source.where(name)
        try:
            with h5py.File(io.BytesIO(source.read(name))) as file:
                matrices = [np.asarray(item, float) for item in file.values() if getattr(item, "ndim", 0) == 2]
        except OSError as error:
            raise PoseError(f"{where} is not a MATLAB v7.3 file ({error}): download it again") from None
        fitting = [matrix.T if matrix.shape[1] == 28 else matrix for matrix in matrices if 28 in matrix.shape]
        if len(fitting) != 1:
            shapes = ", ".join(str(matrix.shape) for matrix in matrices) or "none"
            raise PoseError(f"{where}: one matrix of 28 rows is needed, it has {shapes}")
        matrix = fitting[0]
        if (split := sizes.get(matrix.shape[1])) is None:
            wanted = ", ".join(f"{split} {size:,}" for size, split in sizes.items())
            raise PoseError(
                f"{where} is for {matrix.shape[1]:,} pictures, the store has {wanted}: name the file of this data set"
            )
        joints = np.full((matrix.shape[1], len(JOINTS), 2), np.nan)
        own = [JOINTS.index(joint) for joint in _FOURTEEN[1:]]
        joints[:, own] = np.stack([matrix[1:14], matrix[15:28]], axis=2).swapaxes(0, 1) - 0.5
        pictures += [(split, file) for file in sorted(index[split]["file_name"])]
        places.append(joints)
    return FoundPoses(source=f"14-point files in {source.path}", pictures=pictures, places=np.concatenate(places))


def _indexed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(18, 2) places of pixel indices, of which -1 is none; raises ValueError for another number of joints."""
    if x.shape != (len(JOINTS),) or y.shape != x.shape:
        raise ValueError(f"{len(x)} x and {len(y)} y")
    missing = (x < 0) | (y < 0)
    return np.where(missing[:, None], np.nan, np.stack([x, y], axis=1) + 0.5)
