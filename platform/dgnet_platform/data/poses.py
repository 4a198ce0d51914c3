"""Key points of a store's pictures: a table beside the store, from published files or from the drawing itself.

The store's format and fingerprint know nothing of it. The table names the store that it was made for, and has a digest
of its own.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image, ImageDraw
from pyarrow import feather, ipc

from dgnet_core.learning.joints import BONES, FLIP, JOINTS, MISSING, SEEN
from dgnet_platform.data.cache import cached_file
from dgnet_platform.data.people.people_set import people_from, shot_of
from dgnet_platform.data.pose_files import FoundPoses, Picture, PoseError
from dgnet_platform.data.store import Store
from dgnet_platform.storage.remote import RemoteError, open_place, put
from dgnet_platform.threads import map_in_threads

FILE, SHEET = "keypoints.feather", "keypoints.png"
"""The table, and ten pictures with their skeletons; both in the store's folder."""
LARGEST_ABSENCE = 0.5
"""Share of training pictures without a single joint above which key points are refused."""
NAMED = 10
"""Pictures that a report names of each kind."""
_KEY = b"dgnet.keypoints"
_SCALE = 3


@dataclass(frozen=True, kw_only=True)
class PoseReport:
    """What key points are like: counts, and the first pictures of each kind."""

    source: str
    pictures: int
    """In the store."""
    others: int
    """In the source, and not in the store."""
    absent: int
    """Pictures of the store that the source says nothing of."""
    missing: float
    """Share of joints that were not found, in the pictures that the source has."""
    empty: int
    """Pictures in which not one joint was found: all are -1, or no person is in the picture."""
    empty_names: Sequence[str] = ()
    implausible: Mapping[str, int] = field(default_factory=dict)
    """Pictures by what looks wrong with them."""
    implausible_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class KeyPoints:
    """The 18 joints of N pictures of a store, in the order of `joints.JOINTS`."""

    pictures: Sequence[Picture]
    """(split, file name), sorted."""
    places: np.ndarray
    """(N, 18, 2) float32: x and y in pixels of the picture as stored; 0 where a joint is missing."""
    visibility: np.ndarray
    """(N, 18) uint8: 0 missing, 1 hidden, 2 seen."""
    store: str
    """Fingerprint of the store that they were made for."""
    report: PoseReport

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all places and visibilities with their pictures' names."""
        names = json.dumps([list(picture) for picture in self.pictures]).encode()
        return hashlib.sha256(names + self.places.tobytes() + self.visibility.tobytes()).hexdigest()

    @cached_property
    def _rows(self) -> dict[Picture, int]:
        return {picture: row for row, picture in enumerate(self.pictures)}

    def joints(self, split: str, index: pd.DataFrame, *, height: int, width: int) -> np.ndarray:
        """Joints of pictures that are resized to one size; those of a picture without key points are missing.

        Args:
            split: The pictures' split.
            index: Rows of `Store.index(split)`.
            height: What the pictures are resized to, pixels.
            width: The same.

        Returns:
            (M, 18, 3) float32: x, y and visibility.
        """
        found = np.zeros((len(index), len(JOINTS), 3), np.float32)
        rows = [self._rows.get((split, file), -1) for file in index["file_name"]]
        kept = np.array(rows) >= 0
        taken = np.array(rows)[kept]
        scale = np.stack([width / index["width"], height / index["height"]], axis=1)[kept, None]
        found[kept, :, :2] = self.places[taken] * scale
        found[kept, :, 2] = self.visibility[taken]
        return found

    def encoded(self) -> bytes:
        """The table as an Arrow file."""
        table = pa.table({
            "split": [split for split, _ in self.pictures],
            "file_name": [file for _, file in self.pictures],
            "places": _fixed(self.places),
            "visibility": _fixed(self.visibility),
        })  # fmt: skip
        about = {"store": self.store, "digest": self.digest, "report": asdict(self.report)}
        stream = io.BytesIO()
        feather.write_feather(
            table.replace_schema_metadata({_KEY: json.dumps(about).encode()}), stream, compression="zstd"
        )
        return stream.getvalue()

    @staticmethod
    def beside(store: Store) -> bool:
        """Whether a store has key points, sound or not."""
        filesystem, root = open_place(store.location)
        return filesystem.get_file_info(f"{root}/{FILE}").is_file

    @classmethod
    def open(cls, store: Store) -> Self:
        """The key points of a store.

        Raises:
            PoseError: There are none, they are of another store, or the file was changed.
        """
        where, remedy = f"{store.location}/{FILE}", "run jobs/prepare_data.py again"
        if not store.info.origin:  # drawn people bring theirs
            remedy += ", with --keypoints"
        try:
            table = _stored(store)
            about = json.loads(table.schema.metadata[_KEY])
            points = cls(
                pictures=list(zip(table["split"].to_pylist(), table["file_name"].to_pylist(), strict=True)),
                places=_array(table["places"], np.float32).reshape(-1, len(JOINTS), 2),
                visibility=_array(table["visibility"], np.uint8).reshape(-1, len(JOINTS)),
                store=about["store"],
                report=PoseReport(**about["report"]),
            )
        except FileNotFoundError:
            raise PoseError(f"{store.location} has no key points ({FILE} is missing): {remedy}") from None
        except (RemoteError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise PoseError(f"{where} cannot be read ({error}): {remedy}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise PoseError(f"{where} is no table of key points ({error!r}): {remedy}") from None
        if points.store != store.info.fingerprint:
            raise PoseError(
                f"{where} is for a store of fingerprint {points.store[:12]}, this one has"
                f" {store.info.fingerprint[:12]}: its pictures were changed after their key points were made; {remedy}"
            )
        if points.digest != about["digest"]:
            raise PoseError(f"{where} was changed after it was written: {remedy}")
        return points

    def save(self, store: Store) -> None:
        """Put the table and its sheet into the store's folder; raises OSError."""
        filesystem, root = open_place(store.location)
        with tempfile.TemporaryDirectory(prefix="keypoints-") as temporary:
            sheet, table = Path(temporary) / SHEET, Path(temporary) / FILE
            draw_sheet(self, store).save(sheet)
            table.write_bytes(self.encoded())
            for file in (sheet, table):
                put(file, filesystem, f"{root}/{file.name}")


def _stored(store: Store) -> pa.Table:
    """The table beside a store; that of a cached one from the cache, whose copy is of the digest that it has now."""
    filesystem, root = open_place(store.location)
    path = f"{root}/{FILE}"
    with filesystem.open_input_file(path) as file:
        reader = ipc.open_file(file)  # reads the end of the file, where the digest is
        if store.root == root:
            return reader.read_all()
        digest = json.loads(reader.schema.metadata[_KEY])["digest"]
    with ipc.open_file(cached_file(store, filesystem, path, digest)) as reader:
        return reader.read_all()


def _fixed(values: np.ndarray) -> pa.FixedSizeListArray:
    flat = values.reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def _array(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(dtype)


# ----------------------------------------------------------------------------------------------------------------
# Where they come from


def drawn_keypoints(store: Store, *, estimated: bool, threads: int) -> KeyPoints:
    """Key points of a store of drawn people, exactly or as a pose estimator would find them.

    Raises:
        PoseError: The store does not hold drawn people.
    """
    try:
        people = people_from(store.info.origin)
    except KeyError:
        raise PoseError(
            f"{store.location} holds {store.info.dataset}, whose key points cannot be drawn: name their file with"
            " --keypoints"
        ) from None
    except ValueError as error:
        raise PoseError(f"{store.location}: {error}") from None
    pictures = [(split, file) for split in sorted(store.info.splits) for file in store.index(split)["file_name"]]
    found = list(
        map_in_threads(lambda p: people.keypoints(shot_of(p[1]), estimated=estimated), pictures, threads, ahead=64)
    )
    places, visibility = (np.stack([one[part] for one in found]) for part in (0, 1))
    source = "the drawing, with an estimator's errors" if estimated else "the drawing"
    return _assembled(store, source, pictures, places, visibility, others=0)


def found_keypoints(store: Store, found: FoundPoses) -> KeyPoints:
    """Key points of a store from published files, checked.

    Raises:
        PoseError: x and y are exchanged, or far too many pictures have none.
    """
    lying = _lying(found.places)
    if lying > 0.5:
        raise PoseError(
            f"{found.source}: the trunk lies across the picture in {lying:.0%} of them: x and y look exchanged; the"
            " CSV and the text files have y (the row) first, exchange them"
        )
    places = found.places.copy()
    sizes = {
        (split, file): size
        for split in store.info.splits
        for file, *size in store.index(split)[["file_name", "width", "height"]].itertuples(index=False)
    }
    limits = np.array([sizes[picture] for picture in found.pictures], float)[:, None]
    present = np.all((places >= 0) & (places < limits), axis=2)
    visibility = np.where(present, SEEN, MISSING).astype(np.uint8)
    places = np.where(present[..., None], places, 0).astype(np.float32)
    points = _assembled(store, found.source, found.pictures, places, visibility, others=found.others)
    if not present.any():
        raise PoseError(f"{found.source}: all joints of all pictures are -1: run the pose estimator again")
    training = [row for row, (split, _) in enumerate(points.pictures) if split == "train"]
    wanted = store.count("train") if "train" in store.info.splits else 0
    without = wanted - int((points.visibility[training] != MISSING).any(axis=1).sum())
    if without > LARGEST_ABSENCE * wanted:
        examples = ", ".join(points.report.empty_names[:3])
        raise PoseError(
            f"{found.source}: {without:,} of {wanted:,} training pictures have no joint at all"
            f"{f' ({examples}, ...)' if examples else ''}: name the key points of the whole data set"
        )
    return points


def _assembled(
    store: Store,
    source: str,
    pictures: Sequence[Picture],
    places: np.ndarray,
    visibility: np.ndarray,
    *,
    others: int,
) -> KeyPoints:
    order = sorted(range(len(pictures)), key=lambda row: pictures[row])
    pictures = [pictures[row] for row in order]
    places, visibility = places[order], visibility[order]
    names = [f"{split}/{file}" for split, file in pictures]
    empty = [name for name, seen in zip(names, visibility, strict=True) if not seen.any()]
    odd = {
        what: [name for name, wrong in zip(names, flags, strict=True) if wrong]
        for what, flags in _implausible(places, visibility != MISSING).items()
    }
    total = sum(split.pictures for split in store.info.splits.values())
    report = PoseReport(
        source=source,
        pictures=total,
        others=others,
        absent=total - len(pictures),
        missing=float((visibility == MISSING).mean()),
        empty=len(empty),
        empty_names=empty[:NAMED],
        implausible={what: len(listed) for what, listed in odd.items() if listed},
        implausible_names={what: listed[:NAMED] for what, listed in odd.items() if listed},
    )
    return KeyPoints(
        pictures=pictures, places=places, visibility=visibility, store=store.info.fingerprint, report=report
    )


# ----------------------------------------------------------------------------------------------------------------
# What they are like


def _middle(places: np.ndarray, part: str) -> np.ndarray:
    return (places[:, JOINTS.index(f"right {part}")] + places[:, JOINTS.index(f"left {part}")]) / 2


def _lying(places: np.ndarray) -> float:
    """Share of pictures, of those with a trunk, in which it is wider than it is tall."""
    trunk = np.abs(_middle(places, "hip") - _middle(places, "shoulder"))
    trunk = trunk[~np.isnan(trunk).any(axis=1)]
    return float((trunk[:, 0] > trunk[:, 1]).mean()) if len(trunk) else 0.0


def _implausible(places: np.ndarray, present: np.ndarray) -> dict[str, np.ndarray]:
    """By what looks wrong: (N,) bool, the pictures in which it does."""
    y = np.where(present, places[..., 1], np.nan)
    joint: dict[str, np.ndarray] = {name: y[:, number] for number, name in enumerate(JOINTS)}
    shoulders, hips, ankles = (
        (joint[f"right {part}"] + joint[f"left {part}"]) / 2 for part in ("shoulder", "hip", "ankle")
    )
    found = {
        "the nose is below the shoulders": joint["nose"] > shoulders,
        "the shoulders are below the hips": shoulders > hips,
        "the hips are below the ankles": hips > ankles,
        "joints in the first column of pixels": np.any(present & (places[..., 0] < 1), axis=1),
    }
    return {name: np.asarray(wrong) for name, wrong in found.items()}


def draw_sheet(points: KeyPoints, store: Store, rows: Sequence[int] | None = None) -> Image.Image:
    """Pictures with their skeletons, right limbs red and left ones blue; below them, the mirror images with theirs.

    Args:
        points: Of the store.
        store: Whose pictures are shown.
        rows: Which of the training split; None: ten, evenly over it, or over another where there is none.
    """
    split = "train" if "train" in store.info.splits else min(store.info.splits)
    chosen = np.unique(np.linspace(0, store.count(split) - 1, 10).astype(int)) if rows is None else np.array(rows)
    cells = []
    for row in chosen.tolist():
        (table,) = store.row_groups(split, rows=range(row, row + 1))
        picture = Image.open(io.BytesIO(table["image"][0].as_py())).convert("RGB")
        (joints,) = points.joints(split, table.drop(["image"]).to_pandas(), height=picture.height, width=picture.width)
        mirrored = joints[list(FLIP)] * (-1, 1, 1) + (picture.width, 0, 0)
        pair = (picture, joints), (picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mirrored)
        cells.append([_with_skeleton(*one) for one in pair])
    wide, tall = (max(getattr(pair[0], side) for pair in cells) for side in ("width", "height"))
    sheet = Image.new("RGB", (wide * len(cells), 2 * tall), "white")
    for column, pair in enumerate(cells):
        for line, cell in enumerate(pair):
            sheet.paste(cell, (column * wide, line * tall))
    return sheet


def _with_skeleton(picture: Image.Image, joints: np.ndarray) -> Image.Image:
    picture = picture.resize((_SCALE * picture.width, _SCALE * picture.height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for a, b in BONES:
        if joints[a, 2] != MISSING and joints[b, 2] != MISSING:
            colour = {"right": (230, 40, 40), "left": (50, 90, 255)}.get(JOINTS[b].split()[0], (250, 220, 60))
            draw.line([*(_SCALE * joints[a, :2]), *(_SCALE * joints[b, :2])], fill=colour, width=2)
    for x, y, visibility in joints:
        if visibility != MISSING:
            fill = (255, 255, 255) if visibility == SEEN else None
            draw.ellipse([_SCALE * x - 3, _SCALE * y - 3, _SCALE * x + 3, _SCALE * y + 3], fill, (20, 20, 20))
    return picture
