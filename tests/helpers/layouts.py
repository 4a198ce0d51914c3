"""Folders and archives as public data sets have them, of one tiny picture."""

import zipfile
from collections.abc import Callable
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


MARKET_OTHER = ["bounding_box_train/Thumbs.db", "readme.txt", "gt_query/0001_c1s1_001051_00_good.mat"]
DUKE = [
    "bounding_box_train/0001_c2_f0046182.jpg",
    "bounding_box_test/0002_c5_f0082538.jpg",
    "query/0002_c1_f0044158.jpg",
]
CUHK03 = [
    f"{boxes}/{folder}/{name}"
    for boxes in ("detected", "labeled")
    for folder, name in (
        ("bounding_box_train", "0003_c1_21.png"),
        ("bounding_box_test", "0001_c2_6.png"),
        ("query", "0001_c1_1.png"),
    )
]
MSMT17_TRAIN = ["0000/0000_000_01_0303morning_0008_0.jpg", "0001/0001_003_15_0113noon_0020_1.jpg"]
MSMT17_GALLERY = "0000/0000_000_14_0303morning_0015_1.jpg"
MSMT17_QUERY = "0000/0000_001_02_0303afternoon_0015_0.jpg"
FOLDER = [
    "train/伝/car_c1_0.png",
    "train/truck 7/a_c2s1_0.jpg",
    "gallery/Škoda/x_c12.WEBP",
    "query/Škoda/x_c3_9.jpeg",
    "multi_query/Škoda/deeper/x_c3_10.jpg",
]


def write_msmt17(folder: Path, train: str = "train", test: str = "test") -> Path:
    write(folder, [f"{train}/{name}" for name in MSMT17_TRAIN])
    write(folder, [f"{test}/{name}" for name in (MSMT17_GALLERY, MSMT17_QUERY)])
    (folder / "list_train.txt").write_text(f"{MSMT17_TRAIN[0]} 0\n")
    (folder / "list_val.txt").write_text(f"{MSMT17_TRAIN[1]} 1\n")
    (folder / "list_gallery.txt").write_text(f"{MSMT17_GALLERY} 0\n")
    (folder / "list_query.txt").write_text(f"{MSMT17_QUERY} 0\n")
    return folder


def write_people(folder: Path) -> Path:
    write(folder, MARKET, MARKET_OTHER)
    (folder / "people.json").write_text('{"seed": 3, "size": "tiny"}')
    return folder


def rows(listing: Listing) -> set[tuple[str, str, int, int]]:
    return {(r.split, r.file_name, r.person_id, r.camera_id) for r in listing.records}


LAYOUTS: dict[Dataset, tuple[Callable[[Path], Path], set[tuple[str, str, int, int]], int]] = {
    "market1501": (
        lambda folder: write(folder, MARKET, MARKET_OTHER),
        {
            ("train", "0002_c1s1_000451_03.jpg", 2, 1),
            ("train", "0002_c2s1_000776_01.JPG", 2, 2),
            ("train", "0007_c3s3_077419_03.jpg.jpg", 7, 3),
            ("gallery", "-1_c1s1_000401_03.jpg", -1, 1),
            ("gallery", "0000_c1s1_000151_01.jpg", 0, 1),
            ("gallery", "0001_c2s1_000301_00.jpg", 1, 2),
            ("query", "0001_c1s1_001051_00.jpg", 1, 1),
            ("multi_query", "0001_c1s1_001051_00.jpg", 1, 1),
            ("multi_query", "0002_c1s1_000451_00.jpg", 2, 1),
        },
        3,
    ),
    "dukemtmc-reid": (
        lambda folder: write(folder, DUKE, ["query/Thumbs.db"]),
        {
            ("train", "0001_c2_f0046182.jpg", 1, 2),
            ("gallery", "0002_c5_f0082538.jpg", 2, 5),
            ("query", "0002_c1_f0044158.jpg", 2, 1),
        },
        1,
    ),
    "msmt17": (
        lambda folder: write(write_msmt17(folder), ["train/0099/unlisted.jpg"]),
        {
            ("train", MSMT17_TRAIN[0], 0, 1),
            ("train", MSMT17_TRAIN[1], 1, 15),
            ("gallery", MSMT17_GALLERY, 10_000, 14),
            ("query", MSMT17_QUERY, 10_000, 2),
        },
        1,
    ),
    "cuhk03-np-labeled": (
        lambda folder: write(folder, CUHK03),
        {
            ("train", "0003_c1_21.png", 3, 1),
            ("gallery", "0001_c2_6.png", 1, 2),
            ("query", "0001_c1_1.png", 1, 1),
        },
        3,
    ),
    "folder": (
        lambda folder: write(folder, FOLDER, ["train/Thumbs.db", "train/truck 7/._a_c2s1_0.jpg"]),
        {
            ("train", "truck 7/a_c2s1_0.jpg", 1, 2),
            ("gallery", "Škoda/x_c12.WEBP", 2, 12),
            ("query", "Škoda/x_c3_9.jpeg", 2, 3),
            ("multi_query", "Škoda/deeper/x_c3_10.jpg", 2, 3),
            ("train", "伝/car_c1_0.png", 3, 1),
        },
        2,
    ),
}
LAYOUTS["cuhk03-np-detected"] = LAYOUTS["cuhk03-np-labeled"]
LAYOUTS["people"] = (write_people, *LAYOUTS["market1501"][1:])


COLUMNS = "path,person_id,camera_id,split\n"
MANIFEST = """path,person_id,camera_id,split
pictures/伝 1.jpg,anna,1,train
pictures/b.jpg,"Bob, Jr.",2,query
pictures/c.jpg,"Bob, Jr.",3,gallery
"""


def write_manifest(folder: Path, text: str = MANIFEST) -> Path:
    write(folder, ["pictures/伝 1.jpg", "pictures/b.jpg", "pictures/c.jpg"])
    (folder / "manifest.csv").write_text(text, encoding="utf-8-sig")
    return folder
