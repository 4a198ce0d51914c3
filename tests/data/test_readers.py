"""Every reader on a miniature of its public layout: real names, as a folder and as a .zip, nested or not."""

import unicodedata
from pathlib import Path
from typing import get_args

import pytest

from dgnet_platform.data.readers import READERS, Dataset, read_source
from dgnet_platform.data.readers.folder import number_identities
from dgnet_platform.data.source import SourceError, open_source
from tests.helpers.layouts import (
    COLUMNS,
    LAYOUTS,
    MARKET,
    listing_of,
    rows,
    write,
    write_manifest,
    write_msmt17,
    write_people,
    zipped,
)


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


@pytest.mark.parametrize(
    "written",
    [
        "./pictures/b.jpg", r"pictures\b.jpg", r".\pictures\.\b.jpg", "pictures//b.jpg", "pictures/c/../b.jpg",
        "pictures/b.JPG", "{folder}/pictures/b.jpg", "{link}/pictures/b.jpg",
    ],
)  # fmt: skip
@pytest.mark.parametrize("linked", [False, True])
def test_manifest_with_paths_written_another_way(tmp_path: Path, written: str, linked: bool):
    folder, link = write_manifest(tmp_path / "own"), tmp_path / "link"
    link.symlink_to(folder)
    path = written.format(folder=folder, link=link)
    (folder / "manifest.csv").write_text(f"{COLUMNS}{path},1,1,train\n")
    source = link if linked else folder
    if "{link}" in written and not linked:
        with pytest.raises(SourceError, match=r"is not below the folder of manifest\.csv"):
            listing_of("folder", source)
    else:
        assert rows(listing_of("folder", source)) == {("train", "pictures/b.jpg", 1, 1)}


@pytest.mark.parametrize("separator", [";", "\t"])
def test_manifest_as_spreadsheets_write_it(tmp_path: Path, separator: str):
    written = f"{COLUMNS}pictures/b.jpg,1,1,train\n".replace(",", separator)
    folder = write_manifest(tmp_path, written)
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


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["query/-1/a_c1_1.jpg", "gallery/-1/a_c2_1.jpg", "gallery/0/b_c1_1.jpg"], {"-1": 1, "0": 2}),
        (["train/0/a_c1_1.jpg", "train/-1/b_c1_1.jpg", "train/1/c_c1_1.jpg"], {"-1": -1, "0": 1, "1": 2}),
        (["validation/0/a_c1_1.jpg", "validation/2/b_c1_1.jpg", "train/5/c_c1_1.jpg"], {"0": 1, "2": 3, "5": 6}),
        (["query/1/a_c1_1.jpg", "gallery/1/a_c2_1.jpg", "gallery/0/d_c1_1.jpg"], {"0": 0, "1": 1}),
    ],
)
def test_persons_begin_with_1_whatever_their_numbers(tmp_path: Path, names: list[str], numbers: dict[str, int]):
    write(tmp_path, names)
    with open_source(tmp_path) as source:
        listing = read_source("folder", source, unlabelled=True)
    assert {record.path.split("/")[1]: record.person_id for record in listing.records} == numbers


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
