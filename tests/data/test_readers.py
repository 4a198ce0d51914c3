"""Every reader on a miniature of its public layout: real names, as a folder and as a .zip, nested or not."""

import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from dgnet_platform.data.readers import READERS, Dataset, read_source
from dgnet_platform.data.readers.folder import number_identities
from dgnet_platform.data.records import Listing
from dgnet_platform.data.source import SourceError, open_source
from tests.helpers.layouts import MARKET, listing_of, write, zipped

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


def test_every_data_set_has_a_miniature_and_a_name_on_the_command_line():
    assert set(LAYOUTS) == set(READERS) == set(get_args(Dataset))


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("dataset", LAYOUTS)
def test_reader(tmp_path: Path, dataset: Dataset, packed: bool, nested: bool):
    make, expected, ignored = LAYOUTS[dataset]
    folder = make(tmp_path / "Bilder für ReID" / "資料")
    path = zipped(folder, "Set-v15.09/" if nested else "") if packed else folder.parent if nested else folder
    listing = listing_of(dataset, path)
    assert rows(listing) == expected
    assert listing.problems == ()
    # an archiver's own folder lies beside a nested set, and inside one that is not
    assert listing.ignored == ignored + (packed and not nested)
    places = [(("train", "gallery", "multi_query", "query").index(r.split), r.file_name) for r in listing.records]
    assert places == sorted(places)


def test_msmt17_version_2(tmp_path: Path):
    listing = listing_of("msmt17", write_msmt17(tmp_path / "MSMT17_V2", "mask_train_v2", "mask_test_v2"))
    assert rows(listing) == LAYOUTS["msmt17"][1]


def test_drawn_people_keep_their_recipe(tmp_path: Path):
    assert listing_of("people", write_people(tmp_path / "drawn")).origin == {"seed": 3, "size": "tiny"}


def test_linked_folders_are_followed_once(tmp_path: Path):
    data = write(tmp_path / "disk", MARKET)
    (tmp_path / "data").mkdir()
    for folder in data.iterdir():
        (tmp_path / "data" / folder.name).symlink_to(folder)
    (data / "query" / "circle").symlink_to(tmp_path / "data")
    assert rows(listing_of("market1501", tmp_path / "data")) == LAYOUTS["market1501"][1]


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


@pytest.mark.parametrize("packed", [False, True])
def test_manifest(tmp_path: Path, packed: bool):
    folder = write_manifest(tmp_path / "own")
    listing = listing_of("folder", zipped(folder, "own/") if packed else folder)
    assert rows(listing) == {
        ("train", "pictures/伝 1.jpg", 2, 1),
        ("query", "pictures/b.jpg", 1, 2),
        ("gallery", "pictures/c.jpg", 1, 3),
    }
    assert listing.person_names == {1: "Bob, Jr.", 2: "anna"}


def test_manifest_finds_names_in_the_other_unicode_form(tmp_path: Path):
    folder = write(tmp_path / "own", [unicodedata.normalize("NFD", "Škoda.jpg")])
    (folder / "manifest.csv").write_text(f"{COLUMNS}Škoda.jpg,1,1,train\n")
    assert rows(listing_of("folder", folder)) == {("train", "Škoda.jpg", 1, 1)}


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["0002", "-1", "0", "17"], {"-1": -1, "0": 0, "0002": 2, "17": 17}),
        (["2", "0002"], {"0002": 1, "2": 2}),
        (["b", "a", "7"], {"7": 1, "a": 2, "b": 3}),
        (["-1", "0", "3"], {"-1": -1, "0": 0, "3": 3}),
        (["-2", "5"], {"-2": 1, "5": 2}),
        (["99999999999999999999"], {"99999999999999999999": 1}),
        ([], {}),
    ],
)
def test_number_identities(names: list[str], numbers: dict[str, int]):
    assert number_identities(names) == numbers == number_identities(reversed(names))


@pytest.mark.parametrize("written", ["./pictures/b.jpg", r"pictures\b.jpg", "{folder}/pictures/b.jpg"])
def test_manifest_with_paths_written_another_way(tmp_path: Path, written: str):
    folder = write_manifest(tmp_path / "own")
    (folder / "manifest.csv").write_text(f"{COLUMNS}{written.format(folder=folder)},1,1,train\n")
    assert rows(listing_of("folder", folder)) == {("train", "pictures/b.jpg", 1, 1)}


def test_a_query_makes_person_0_a_person(tmp_path: Path):
    names = ["query/0/a_c1_1.jpg", "gallery/0/a_c2_1.jpg", "gallery/-1/j_c1_1.jpg", "gallery/3/d_c1_1.jpg"]
    write(tmp_path, names)
    listing = listing_of("folder", tmp_path)
    assert listing.problems == ()
    assert {(record.split, record.person_id) for record in listing.records} == {
        ("query", 1), ("gallery", 1), ("gallery", -1), ("gallery", 4),
    }  # fmt: skip
    assert listing.person_names == {1: "0", -1: "-1", 4: "3"}


def test_market_as_dgnets_authors_sort_it_trains_on_all_of_train(tmp_path: Path):
    names = [
        "train/0002/0002_c1s1_000451_03.jpg", "val/0002/0002_c2s1_000451_03.jpg",
        "train_all/0002/0002_c1s1_000451_03.jpg", "train_all/0002/0002_c2s1_000451_03.jpg",
        "query/0001/0001_c1s1_000451_00.jpg", "gallery/0001/0001_c2s1_000451_03.jpg",
        "gallery/0000/0000_c2s1_000451_03.jpg", "gallery/-1/-1_c2s1_000451_03.jpg",
        "multi-query/0001/0001_c1s1_000451_00.jpg",
    ]  # fmt: skip
    write(tmp_path / "pytorch", names)
    with pytest.raises(SourceError, match="it looks like an own data set, so pass --dataset folder"):
        listing_of("market1501", tmp_path)
    listing = listing_of("folder", tmp_path)
    assert [(r.split, r.person_id, r.camera_id) for r in listing.records] == [
        ("train", 2, 1), ("train", 2, 2), ("gallery", -1, 2), ("gallery", 0, 2), ("gallery", 1, 2),
        ("multi_query", 1, 1), ("query", 1, 1),
    ]  # fmt: skip


# Bad input: each is named with its file and with what to do.


@pytest.mark.parametrize(
    ("split", "name", "person", "message"),
    [
        ("bounding_box_train", "0002_c1_f0046182.jpg", 2, "does not parse as Market-1501's"),
        ("bounding_box_train", "0002_c0s1_000451_03.jpg", 2, "does not parse as Market-1501's"),
        ("bounding_box_train", "-1_c1s1_000451_03.jpg", -1, "junk"),
        ("bounding_box_test", "0002_c4s1_000451_03.jpg", 2, "is in gallery and in train"),
        ("query", "0002_c4s1_000451_03.jpg", 2, "is in query and in train"),
        ("query", "0003_c4s1_000451_03.jpg", 3, "query without a match"),
        ("query", "0001_c2s1_000451_03.jpg", 1, "query without a match"),
        ("query", "0000_c2s1_000451_03.jpg", 0, "query without a match"),
    ],
)
def test_bad_market_picture(tmp_path: Path, split: str, name: str, person: int, message: str):
    write(tmp_path, MARKET)
    write(tmp_path, [f"{split}/{name}"])
    listing = listing_of("market1501", tmp_path)
    assert rows(listing) == LAYOUTS["market1501"][1]
    (problem,) = listing.problems
    assert problem.file == f"{split}/{name}"
    assert message in problem.reason
    assert ": " in problem.reason


@pytest.mark.parametrize("dataset", LAYOUTS)
@pytest.mark.parametrize("asked", LAYOUTS)
def test_wrong_archive_is_told(tmp_path: Path, dataset: Dataset, asked: Dataset):
    make, *_ = LAYOUTS[dataset]
    path = zipped(make(tmp_path / "set"), "set/")
    if asked == dataset or {asked, dataset} == {"cuhk03-np-detected", "cuhk03-np-labeled"}:
        listing_of(asked, path)
    elif (asked, dataset) == ("folder", "msmt17"):
        with pytest.raises(SourceError, match="zero cameras"):
            listing_of(asked, path)
    else:
        name = "cuhk03-np-detected" if dataset == "cuhk03-np-labeled" else dataset
        with pytest.raises(SourceError, match=rf"is not .*: it looks like .* --dataset {name}$"):
            listing_of(asked, path)


def test_unknown_folder_tells_what_was_expected(tmp_path: Path):
    write(tmp_path, ["holiday/beach.jpg"])
    with pytest.raises(SourceError, match=r"expected \{bounding_box_train.*found holiday"):
        listing_of("market1501", tmp_path)


def test_names_of_another_shape_are_told(tmp_path: Path):
    write(tmp_path, [name.replace("s1_", "_") for name in MARKET])
    with pytest.raises(
        SourceError, match=r"folders are there, but \d+ of \d+ names are not such as 0002_c1s1_.*first is"
    ):
        listing_of("market1501", tmp_path)


def test_pictures_of_an_unread_kind_are_told(tmp_path: Path):
    write(tmp_path, ["train/a/1_c1_.tif"])
    with pytest.raises(
        SourceError, match=r"1 pictures such as train/a/1_c1_.tif are of a kind .* convert them to .jpg"
    ):
        listing_of("folder", tmp_path)
    write(tmp_path, ["pictures/b.jpg"])
    (tmp_path / "manifest.csv").write_text(f"{COLUMNS}train/a/1_c1_.tif,1,1,train\npictures/b.jpg,1,1,train\n")
    [problem] = listing_of("folder", tmp_path).problems
    assert "line 2: names a file of a kind that is not read (those are .jpg," in problem.reason


def test_a_set_of_one_camera_cannot_be_evaluated_on(tmp_path: Path):
    write(tmp_path, ["train/1/a_c1_1.jpg", "query/2/a_c1_1.jpg", "gallery/2/a_c1_2.jpg"])
    with pytest.raises(SourceError, match="Number the cameras, or leave query and gallery out"):
        listing_of("folder", tmp_path)


@pytest.mark.parametrize("dataset", ["market1501", "dukemtmc-reid", "msmt17", "folder"])
def test_a_set_in_folders_of_its_own_name_is_found(tmp_path: Path, dataset: Dataset):
    folder = tmp_path / "set" / "set" / "set"
    if dataset == "msmt17":
        folder.mkdir(parents=True)
        write_msmt17(folder)
    else:
        write(folder, {"market1501": MARKET, "dukemtmc-reid": DUKE, "folder": FOLDER}[dataset])
    assert listing_of(dataset, tmp_path).source.root == "set/set/set/"


def test_msmt17_is_read_with_other_endings(tmp_path: Path):
    write_msmt17(tmp_path)
    for path in sorted(tmp_path.rglob("*")):
        if path.suffix in (".txt", ".jpg"):
            path.rename(path.with_suffix({".txt": "", ".jpg": ".jpeg"}[path.suffix]))
    assert rows(listing_of("msmt17", tmp_path)) == LAYOUTS["msmt17"][1]


def test_two_copies_are_ambiguous(tmp_path: Path):
    write(tmp_path / "a", DUKE)
    write(tmp_path / "b", DUKE)
    with pytest.raises(SourceError, match=r"more than once, at .*/a/ and .*/b/: name the folder"):
        listing_of("dukemtmc-reid", tmp_path)


@pytest.mark.parametrize("missing", ["query", "bounding_box_test", "bounding_box_train"])
def test_missing_folder(tmp_path: Path, missing: str):
    write(tmp_path, MARKET)
    shutil.rmtree(tmp_path / missing)
    advice = rf"{missing} is missing or empty: unpack Market-1501 again, whole. Own data is read with --dataset folder"
    with pytest.raises(SourceError, match=advice):
        listing_of("market1501", tmp_path)


@pytest.mark.parametrize("name", ["list_train.txt", "list_query.txt"])
@pytest.mark.parametrize(
    ("line", "file", "message"),
    [
        (
            "9/0009_000_01_x_0_0.jpg 9",
            "{folder}/9/0009_000_01_x_0_0.jpg",
            "line 2 names it but it is missing",
        ),
        ("0000/none.jpg", "{list}", "line 2 '0000/none.jpg' does not parse"),
        ("../../0009_000_01_x_0_0.jpg 9", "{folder}/../../0009_000_01_x_0_0.jpg", "is missing"),
    ],
)
def test_bad_msmt17_line(tmp_path: Path, name: str, line: str, file: str, message: str):
    write_msmt17(tmp_path)
    with (tmp_path / name).open("a") as listed:
        listed.write(f"{line}\n\n")
    listing = listing_of("msmt17", tmp_path)
    assert rows(listing) == LAYOUTS["msmt17"][1]
    (problem,) = listing.problems
    assert problem.file == file.format(list=name, folder="train" if "train" in name else "test")
    assert message in problem.reason


def test_missing_msmt17_list(tmp_path: Path):
    write_msmt17(tmp_path)
    (tmp_path / "list_val.txt").unlink()
    with pytest.raises(SourceError, match=r"list_val.txt is missing: unpack MSMT17 again"):
        listing_of("msmt17", tmp_path)


@pytest.mark.parametrize(
    ("line", "file", "message"),
    [
        ("pictures/z.jpg,anna,1,train", "pictures/z.jpg", "line 5: names a picture that is missing"),
        ("pictures/b.jpg,anna,north,train", "pictures/b.jpg", "'north' is not a whole number"),
        ("pictures/b.jpg,anna,,train", "pictures/b.jpg", "'' is not a whole number"),
        ("pictures/b.jpg,,1,train", "pictures/b.jpg", "person_id is empty"),
        ("pictures/b.jpg,anna,1,val", "pictures/b.jpg", "split 'val' is none of train"),
        ("pictures/b.jpg", "pictures/b.jpg", "split '' is none of"),
        ('"pictures/b.jpg","Bob, Jr.",2,query', "pictures/b.jpg", "listed twice in query"),
        ("pictures/b.jpg,anna,1,gallery", "pictures/b.jpg", "is in gallery and in train"),
    ],
)
def test_bad_manifest_line(tmp_path: Path, line: str, file: str, message: str):
    listing = listing_of("folder", write_manifest(tmp_path, f"{MANIFEST}{line}\n"))
    assert len(listing.records) == 3
    (problem,) = listing.problems
    assert problem.file == file
    assert message in problem.reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,person_id,split\na.jpg,1,train\n", "has no column camera_id"),
        ("", "has no column path, person_id"),
        (f"{COLUMNS}../a.jpg,1,1,train\n", "'../a.jpg' leads out of the data set"),
        (f"{COLUMNS}/etc/a.jpg,1,1,train\n", "'/etc/a.jpg' leads out of the data set"),
        (f"{COLUMNS}pictures/b.jpg,1,,train\n", "shows zero cameras: fill its column"),
        (
            'path,person_id,camera_id,split\n"pictures/b.jpg,1,1,train\n',
            "after line 1: .*: save it as comma-separated",
        ),
        (f"{COLUMNS}pictures/b.jpg,1,1,query\n", "in query but none in gallery: add"),
        (f"{COLUMNS}pictures/b.jpg,1,1,multi_query\n", "neither in train nor in query"),
        (
            "path,person_id,camera_id,split\nno.jpg,1,1,train\n",
            "no usable picture; no.jpg: manifest.csv line 2",
        ),
    ],
)
def test_unusable_manifest(tmp_path: Path, text: str, message: str):
    with pytest.raises(SourceError, match=message):
        listing_of("folder", write_manifest(tmp_path, text))


def test_manifest_in_another_encoding(tmp_path: Path):
    write_manifest(tmp_path)
    (tmp_path / "manifest.csv").write_bytes(MANIFEST.encode("shift_jis"))
    with pytest.raises(SourceError, match=r"manifest\.csv is not UTF-8 text"):
        listing_of("folder", tmp_path)


def test_folder_without_cameras(tmp_path: Path):
    write(tmp_path, ["train/anna/1.jpg", "train/bob/2.jpg"])
    with pytest.raises(SourceError, match="shows zero cameras: use names like"):
        listing_of("folder", tmp_path)
    write(tmp_path, ["train/bob/c4.jpg"])
    assert {problem.file for problem in listing_of("folder", tmp_path).problems} == {
        "train/anna/1.jpg",
        "train/bob/2.jpg",
    }


def test_name_that_is_not_unicode(tmp_path: Path):
    write(tmp_path, [*FOLDER, "train/truck 7/\udcff_c1.jpg"])
    (problem,) = listing_of("folder", tmp_path).problems
    assert problem.file == "train/truck 7/\udcff_c1.jpg"
    assert "not Unicode: rename it" in problem.reason


def test_link_to_nothing_is_told(tmp_path: Path):
    write(tmp_path, FOLDER)
    (tmp_path / "train/truck 7/b_c1.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with open_source(tmp_path) as source:
        assert len(read_source("folder", source).records) == len(FOLDER) + 1
        with pytest.raises(SourceError, match=r"b_c1\.jpg cannot be read .*: check the disk"):
            source.read("train/truck 7/b_c1.jpg")


def test_missing_source(tmp_path: Path):
    with (
        pytest.raises(SourceError, match="does not exist: name the folder"),
        open_source(tmp_path / "x"),
    ):
        pass
