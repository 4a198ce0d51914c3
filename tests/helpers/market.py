"""A miniature of Market-1501, and how it is packed."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import Prepared, prepare
from dgnet_platform.data.store import Store


def encode(color: tuple[int, int, int], size: tuple[int, int] = (4, 8), kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, color).save(file, kind, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


WHOLE = noise(128, 64)


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
