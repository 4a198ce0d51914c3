"""MSMT17 (Wei et al., CVPR 2018): fifteen cameras, indoors and out, at three times of the day."""

import re

from dgnet_platform.data.readers.split_folders import bare_name, stored_name
from dgnet_platform.data.records import Listing, Problem, Published, Reader, Record
from dgnet_platform.data.source import Source, SourceError, is_picture

PUBLISHED = {
    "train": Published(people=1_041, pictures=32_621),
    "query": Published(people=3_060, pictures=11_659),
    "gallery": Published(people=3_060, pictures=82_161),
}
FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
"""Training and test pictures in version 1 and in version 2, which blurs the faces."""
TEST_PERSON = 10_000
"""Added to the number of a test person: the set counts its test persons from 0 again, and they are others."""
LISTS = {
    "list_train": "train",
    "list_val": "train",  # the paper trains on both lists
    "list_gallery": "gallery",
    "list_query": "query",
}
"""Splits by their list, `.txt` or without an ending."""
_NAME = re.compile(r"\d+_\d+_(?P<camera>\d{1,9})_.+")
_LINE = re.compile(r"(?P<name>\S.*) (?P<person>\d{1,9})")


def _folders(source: Source) -> tuple[str, str] | None:
    tops = set(source.top_folders())
    return next((folders for folders in FOLDERS if tops.issuperset(folders)), None)


def _recognises(source: Source) -> bool:
    return _list("list_train", source) is not None and _folders(source) is not None


def _list(name: str, source: Source) -> str | None:
    """The file of a list."""
    return next((file for file in (f"{name}.txt", name) if file in source.names), None)


def _read(source: Source) -> Listing:
    folders = _folders(source)
    assert folders is not None, "a recognised source has its folders"
    train_folder, test_folder = folders
    files = set(source.names)
    by_stem = {_stem(name): name for name in source.names if is_picture(name)}
    lists: set[str] = set()
    records: list[Record] = []
    problems: list[Problem] = []
    for listed, split in LISTS.items():
        list_name = _list(listed, source)
        if list_name is None:
            raise SourceError(f"{source.where(listed)}.txt is missing: unpack MSMT17 again, whole")
        lists.add(list_name)
        folder, first_person = (train_folder, 0) if split == "train" else (test_folder, TEST_PERSON)
        for number, line in enumerate(source.read_text(list_name).splitlines(), start=1):
            if not line.strip():
                continue
            entry = _LINE.fullmatch(line.strip())
            shot = entry and _NAME.fullmatch(bare_name(entry["name"]))
            if not (entry and shot):
                example = "0000/0000_000_01_0303morning_0008_0.jpg 0"
                reason = f"line {number} {line!r} does not parse as `{example}`: correct or remove it"
                problems.append(Problem(file=list_name, reason=reason))
                continue
            path = f"{folder}/{entry['name']}"
            found = path if path in files and is_picture(path) else by_stem.get(_stem(path))  # .jpeg for .jpg, say
            if found is None:
                reason = f"{list_name} line {number} names it but it is missing: unpack MSMT17 again, whole"
                problems.append(Problem(file=path, reason=reason))
            else:
                record = Record(
                    path=found,
                    file_name=stored_name(entry["name"]),
                    person_id=first_person + int(entry["person"]),
                    camera_id=int(shot["camera"]),
                    split=split,
                )
                records.append(record)
    used = {record.path for record in records} | {problem.file for problem in problems}
    ignored = len(files - used - lists)
    return Listing(records=tuple(records), source=source, problems=tuple(problems), ignored=ignored)


def _stem(name: str) -> str:
    """A path without its file's ending."""
    return f"{name.rpartition('/')[0]}/{bare_name(name)}"


MSMT17 = Reader(
    title="MSMT17",
    layout="{train, test} or {mask_train_v2, mask_test_v2} beside list_{train, val, query, gallery}.txt",
    recognises=_recognises,
    read=_read,
    published=PUBLISHED,
)
