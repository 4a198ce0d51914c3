"""Folders and archives as public data sets have them, of one tiny picture."""

import zipfile
from pathlib import Path

from dgnet_platform.data.readers import Dataset, read_source
from dgnet_platform.data.records import Listing
from dgnet_platform.data.source import open_source
from tests.helpers.market import encode

PICTURE = encode((90, 60, 30))

MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c2s1_000776_01.JPG",
    "bounding_box_train/0007_c3s3_077419_03.jpg.jpg",
    "bounding_box_test/-1_c1s1_000401_03.jpg",
    "bounding_box_test/0000_c1s1_000151_01.jpg",
    "bounding_box_test/0001_c2s1_000301_00.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "gt_bbox/0001_c1s1_001051_00.jpg",
    "gt_bbox/0002_c1s1_000451_00.jpg",
]


def write(folder: Path, names: list[str], other: list[str] | tuple[str, ...] = ()) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PICTURE)
    for name in other:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no picture")
    return folder


def zipped(folder: Path, prefix: str) -> Path:
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in folder.rglob("*"):
            file.write(path, prefix + path.relative_to(folder).as_posix())
        file.writestr("__MACOSX/._bounding_box_train", b"resource fork")
    return archive


def listing_of(dataset: Dataset, path: Path) -> Listing:
    with open_source(path) as source:
        listing = read_source(dataset, source)
        for record in listing.records:
            assert listing.source.read(record.path) == PICTURE
        return listing
