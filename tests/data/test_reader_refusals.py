"""What readers refuse: each fault is named with its file and with what to do."""

import shutil
from pathlib import Path

import pytest

from dgnet_platform.data.readers import Dataset, read_source
from dgnet_platform.data.source import SourceError, open_source
from tests.helpers.layouts import (
    COLUMNS,
    DUKE,
    FOLDER,
    LAYOUTS,
    MANIFEST,
    MARKET,
    listing_of,
    rows,
    write,
    write_manifest,
    write_msmt17,
    zipped,
)


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
        ('"', r"after line \d: .*: save it as comma-separated"),
        (f"{COLUMNS}../a.jpg,1,1,train\n", "'../a.jpg' is not below the folder of manifest.csv"),
        (f"{COLUMNS}/etc/a.jpg,1,1,train\n", "'/etc/a.jpg' is not below the folder of manifest.csv"),
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
