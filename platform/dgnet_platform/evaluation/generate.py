"""A set of generated pictures, as DG-Market is one: the appearance of each picture in the structures of others.

Of a generator that draws from noise it is as many people who do not exist.

Which structures a picture gets depends on the seed and the picture alone, and each part is a batch, so the set is the
same however many workers make it and however often they are stopped. (Not so on CPU threads: PyTorch's sums depend on
how many a process has. Workers have one each.)
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from dgnet_core.generation.grids import tile, to_pixels
from dgnet_core.learning.augment import normalise
from dgnet_core.learning.draws import purpose_word
from dgnet_core.methods import Method
from dgnet_platform.compute.parts import Files, Part, PartsError, make_parts, missing, owned, parts_of
from dgnet_platform.data.decode import decode
from dgnet_platform.data.images import decode_table
from dgnet_platform.data.poses import KeyPoints, draw_sheet
from dgnet_platform.data.readers.folder import COLUMNS, MANIFEST
from dgnet_platform.data.records import DISTRACTOR, JUNK
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.canonical import canonical_rows
from dgnet_platform.evaluation.config import GenerateConfig
from dgnet_platform.evaluation.pictures import captioned_grids
from dgnet_platform.evaluation.swaps import different_people
from dgnet_platform.runs.loading import TrainedNetworks, digest_of, open_trained
from dgnet_platform.storage.files import write_whole
from dgnet_platform.threads import map_in_threads

TABLE, EXAMPLES, POSES = "manifest.parquet", "examples.png", "canonical_poses.png"
SHOWN = 6
"""Appearances, and structures of each, in the picture of examples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """Which pictures a set consists of."""

    people: pd.DataFrame
    """A row for each picture of the split that shows a person: person_id, camera_id, file_name."""
    per_image: int
    seed: int
    method: Method[Any, Any]
    """What draws."""
    canonical: Sequence[int] = ()
    """Rows (per_image) of the pictures in whose poses all are drawn; none: each has others."""

    def structures(self, row: int) -> np.ndarray:
        """Rows (per_image,) of the pictures in whose structure that of `row` is drawn: different ones.

        Itself is among them only where it has a canonical pose.
        """
        if self.canonical:
            return np.array(self.canonical)
        rng = np.random.default_rng([self.seed, purpose_word("structures"), row])
        others = rng.choice(len(self.people) - 1, self.per_image, replace=False)
        return others + (others >= row)

    def file_name(self, row: int, structure: int) -> str:
        """Name of a generated picture: whose appearance, whose camera, and the rows they are from."""
        person, camera = self._persons[row], self._cameras[structure]
        if self.method.draw is None:
            return f"noise_{row:06d}_{structure:06d}.jpg"
        return f"{person:04d}_c{camera}_{row:06d}_{structure:06d}.jpg"

    @cached_property
    def _persons(self) -> list[int]:
        return self.people["person_id"].tolist()

    @cached_property
    def _cameras(self) -> list[int]:
        return self.people["camera_id"].tolist()

    def manifest(self, parts: Sequence[Part], checkpoint: str) -> pd.DataFrame:
        """A row for each generated picture.

        The first columns are those of an own data set's manifest.csv, with a path relative to it, the person of the
        appearance and the camera of the structure, whose background and viewpoint it is. The others say what it was
        made of: `body` is the picture whose body is shown, the appearance's where nothing but joints is seen of the
        structure. People who do not exist are JUNK.
        """
        pairs = [
            (part.name, row, structure)
            for part in parts
            for row in range(part.first, part.stop)
            for structure in self.structures(row).tolist()
        ]
        _, rows, structures = zip(*pairs, strict=True)
        appearance = self.people.iloc[list(rows)].reset_index(drop=True)
        structure = self.people.iloc[list(structures)].reset_index(drop=True)
        if self.method.draw is None:
            appearance = structure = pd.DataFrame(
                {"person_id": JUNK, "camera_id": 1, "file_name": ""}, index=structure.index
            )
        body = appearance if self.method.posed else structure
        return pd.DataFrame(
            {
                "path": [f"{name}/{self.file_name(row, other)}" for name, row, other in pairs],
                "person_id": appearance["person_id"],
                "camera_id": structure["camera_id"],
                "split": "train",
                "appearance": appearance["file_name"],
                "appearance_camera_id": appearance["camera_id"],
                "structure": structure["file_name"],
                "structure_person_id": structure["person_id"],
                "body": body["file_name"],
                "checkpoint": checkpoint,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What came out."""

    pictures: int
    made: int
    """Of these by this run."""
    people: int
    """Whom they show; 0: no person who exists."""
    source: str
    """The networks, in words."""


def generate(config: GenerateConfig, progress: Callable[[int, int], None]) -> Generated:
    """Make the set that `config` asks for, or what is missing of it.

    The folder receives a folder of JPEGs for each part, pictures of examples and of canonical poses if those are asked
    for, manifest.parquet, and at the very end manifest.csv.

    Args:
        config: what to make.
        progress: called with the number of pictures that are there and the number there will be.

    Raises:
        CheckpointError, StoreError, PoseError: a file is missing, damaged or foreign.
        PartsError: the split is too small, the folder holds something else, or workers cannot be had.
    """
    store = Store.open(config.store)
    store.count(config.split)
    trained = open_trained(config.checkpoint)
    checkpoint = digest_of(config.checkpoint)
    pictures = shown_people(store, config.split)
    rows = _canonical(config, trained, store)
    names = pictures["file_name"].to_pylist()
    canonical = [names.index(name) for name in store.index("train")["file_name"].iloc[rows]] if rows else []
    per_image = len(canonical) or config.per_image
    if len(pictures) <= per_image:
        raise PartsError(
            f"--per-image {per_image}: {config.split} of {config.store} shows people in {len(pictures):,}"
            f" pictures, so there are structures of at most {max(len(pictures) - 1, 0):,} others"
        )
    people = pictures.select(["person_id", "camera_id", "file_name"]).to_pandas()
    plan = Plan(people=people, per_image=per_image, seed=config.seed, method=trained.method, canonical=canonical)
    joints = trained.joints(store, config.split, pictures.select(["file_name", "height", "width"]).to_pandas())
    parts = parts_of(config.split, len(pictures), config.batch_size)
    settings = {
        "checkpoint": checkpoint,
        "store": store.info.fingerprint,
        **{name: getattr(config, name) for name in ("split", "seed", "batch_size", "quality", "poses")},
        "per_image": per_image,
    }
    arguments = {
        "trained": trained,
        "pictures": pictures,
        "joints": joints,
        "plan": plan,
        "store": store,
        "split": config.split,
        "quality": config.quality,
        "threads": config.threads,
    }
    total = len(pictures) * per_image
    with owned(config.out, settings):
        lacking = missing(config.out, parts)
        made = sum(map(len, lacking)) * per_image
        done = total - made
        progress(done, total)

        def written(part: Part) -> None:
            nonlocal done
            done += len(part) * per_image
            progress(done, total)

        gpus = config.gpus if config.workers else None
        make_parts(config.out, lacking, Renderer, arguments, workers=config.workers, gpus=gpus, progress=written)
        if not (config.out / MANIFEST).exists():
            manifest = plan.manifest(parts, checkpoint)
            renderer = Renderer(device=torch.device("cpu"), **arguments)
            title = f"{len(manifest):,} pictures, generated by {trained.source}"
            picture = examples(config.out, plan, parts, renderer, title)
            write_whole(config.out / EXAMPLES, _encoded(picture, "PNG"))
            if rows:
                sheet = draw_sheet(KeyPoints.open(store), store, rows)
                write_whole(config.out / POSES, _encoded(sheet, "PNG"))
            write_whole(config.out / TABLE, manifest.to_parquet(index=False))
            write_whole(config.out / MANIFEST, manifest[[*COLUMNS]].to_csv(index=False).encode())
    return Generated(
        pictures=total,
        made=made,
        people=people["person_id"].nunique() if trained.method.draw is not None else 0,
        source=trained.source,
    )


def shown_people(store: Store, split: str) -> pa.Table:
    """The rows of a split, encoded pictures and all, but junk and, outside `train`, distractors, who match no query."""
    without = [JUNK] if split == "train" else [JUNK, DISTRACTOR]
    groups = store.row_groups(split)
    return pa.concat_tables(
        group.filter(pa.array(~np.isin(group["person_id"].to_numpy(), without))) for group in groups
    )


def _canonical(config: GenerateConfig, trained: TrainedNetworks, store: Store) -> list[int]:
    """Rows of the training pictures that have the canonical poses; none if these are not asked for."""
    if config.poses != "canonical":
        return []
    if not trained.method.posed:
        raise PartsError(f"--poses canonical: {trained.method.title} draws from no key points, leave it out")
    return canonical_rows(store)


class Renderer:
    """Renders the pictures of parts; batches are decoded ahead and encoded behind."""

    def __init__(
        self,
        *,
        device: torch.device,
        trained: TrainedNetworks,
        pictures: pa.Table,
        joints: Tensor | None,
        plan: Plan,
        store: Store,
        split: str,
        quality: int,
        threads: int,
    ) -> None:
        for network in trained.state.networks.values():
            network.to(device)
        self._device = device
        self._trained = trained
        self._height, self._width = trained.network.height, trained.network.width
        self._pictures = pictures
        self._joints = joints
        self._plan = plan
        self._store = store
        self._split = split
        self._quality = quality
        self._threads = threads

    def __call__(self, part: Part) -> Files:
        """JPEGs by file name: `per_image` of each picture of the part."""
        rows = np.arange(part.first, part.stop)
        structures = np.stack([self._plan.structures(row) for row in rows.tolist()], axis=1)  # (per_image, B)
        drawn = self._drawn(rows, structures) if self._plan.method.draw is not None else self._invented(rows)
        encoded = map_in_threads(self._encode, map(to_pixels, drawn), self._threads)
        return {
            self._plan.file_name(row, structure): jpeg
            for others, jpegs in zip(structures.tolist(), encoded, strict=True)
            for row, structure, jpeg in zip(rows.tolist(), others, jpegs, strict=True)
        }

    def _drawn(self, rows: np.ndarray, structures: np.ndarray) -> Iterator[Tensor]:
        """The people of rows (B,) in structures (per_image, B), B images at a time."""
        draw, joints = self._trained.draw, self._joints
        if joints is not None:
            appearance = self._images(self.decode(rows))
            yield from (draw(appearance, joints[others]) for others in structures)
            return
        batches = map_in_threads(self.decode, [rows, *structures], self._threads)
        appearance = self._images(next(batches))
        yield from (draw(appearance, self._images(batch)) for batch in batches)

    def _invented(self, rows: np.ndarray) -> Iterator[Tensor]:
        """`per_image` times as many people who do not exist as there are rows."""
        rng = np.random.default_rng([self._plan.seed, purpose_word("noise"), int(rows[0])])
        for seed in rng.integers(0, 2**31, self._plan.per_image).tolist():
            yield self._trained.invent(len(rows), seed)

    def decode(self, rows: np.ndarray) -> Tensor:
        """Pictures (B, 3, H, W) uint8 of some rows."""
        chosen = pa.concat_tables(self._pictures.slice(row, 1) for row in rows)  # `take` would copy the whole table
        return decode_table(chosen, self._store, self._split, height=self._height, width=self._width)

    def _images(self, pixels: Tensor) -> Tensor:
        return normalise(pixels.to(self._device), self._height, self._width)

    def _encode(self, pixels: Tensor) -> list[bytes]:
        """JPEGs of pictures (B, 3, H, W) uint8."""
        pictures = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        return [_encoded(Image.fromarray(picture), "JPEG", quality=self._quality) for picture in pictures]


def examples(out: Path, plan: Plan, parts: Sequence[Part], renderer: Renderer, title: str) -> Image.Image:
    """Some pictures of a set, as they are in its files, beside what they were made of."""
    rows = different_people(plan.people["person_id"].tolist())[:SHOWN]
    structures = np.stack([plan.structures(row)[:SHOWN] for row in rows])  # (rows, columns)
    part_of = {row: part for part in parts for row in range(part.first, part.stop)}
    jpegs = [
        (out / part_of[row].name / plan.file_name(row, structure)).read_bytes()
        for row, others in zip(rows, structures.tolist(), strict=True)
        for structure in others
    ]
    generated = np.stack([decode(jpeg) for jpeg in jpegs])
    panels = {"generated": torch.from_numpy(generated).permute(0, 3, 1, 2).unflatten(0, structures.shape)}
    if plan.method.draw is not None:
        panels = {
            "appearance": renderer.decode(np.array(rows))[:, None],
            "structures": renderer.decode(structures.flatten()).unflatten(0, structures.shape),
            **panels,
        }
    grids = [(caption, tile(cells).numpy()) for caption, cells in panels.items()]
    return captioned_grids(title, grids, cell_height=panels["generated"].shape[-2])


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
