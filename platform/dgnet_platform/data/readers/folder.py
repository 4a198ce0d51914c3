"""Own data, persons or vehicles: a folder a split and identity, or a table that names each picture.

Either `<split>/<identity>/<anything>_c<camera>_<anything>.jpg`, or a `manifest.csv` with the columns `path`
(relative to it), `person_id`, `camera_id` and `split`. Splits are train, query, gallery, multi_query and
validation. Identities may be any text. Where all are different whole numbers they keep those, with -1 for junk and 0
for distractors as in Market-1501. But where a query, training or validation shows identity 0, or a query -1, that is a
person like the others, and numbers are shifted so that persons begin with 1. Other identities are numbered from 1 in
their sorted order, over all splits.

The folders into which DG-Net's authors sort Market-1501 are read too: `train_all` instead of `train` and `val`, which
are its parts, and `multi-query`.
"""

import csv
import io
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dgnet_platform.data.readers.split_folders import bare_name, stored_name
from dgnet_platform.data.records import JUNK, SPLITS, Listing, Problem, Reader, Record
from dgnet_platform.data.source import PICTURE_ENDINGS, Source, SourceError, climbs_out, is_picture

MANIFEST = "manifest.csv"
COLUMNS = ("path", "person_id", "camera_id", "split")
_CAMERA = re.compile(r"(?:^|_)c(\d{1,9})(?=[_s]|$)")


@dataclass(frozen=True, kw_only=True)
class _Named:
    """A picture whose identity is still a name."""

    path: str
    file_name: str
    identity: str
    camera_id: int
    split: str


def _recognises(source: Source) -> bool:
    splits = _splits(source)
    return MANIFEST in source.names or any(_parts(name, splits) for name in source.names if is_picture(name))


def _splits(source: Source) -> dict[str, str]:
    """Splits by the names of their folders."""
    splits = {split: split for split in SPLITS}
    if "train_all" in source.top_folders():
        del splits["train"]
        splits |= {"train_all": "train", "multi-query": "multi_query"}
    return splits


def _parts(name: str, splits: Mapping[str, str]) -> tuple[str, str, str] | None:
    """Split, identity and the rest of `<folder>/<identity>/<file>`."""
    parts = name.split("/", 2)
    return (splits[parts[0]], parts[1], parts[2]) if len(parts) == 3 and parts[0] in splits else None


def _read(source: Source) -> Listing:
    has_manifest = MANIFEST in source.names
    rows = list(_from_manifest(source) if has_manifest else _from_folders(source))
    named = [row for row in rows if isinstance(row, _Named)]
    problems = tuple(row for row in rows if isinstance(row, Problem))
    numbers = number_identities((row.identity for row in named), {row.identity for row in named if _is_person(row)})
    records = tuple(
        Record(
            path=row.path,
            file_name=row.file_name,
            person_id=numbers[row.identity],
            camera_id=row.camera_id,
            split=row.split,
        )
        for row in named
    )
    names = {number: name for name, number in numbers.items()}
    used = {record.path for record in records} | {problem.file for problem in problems} | {MANIFEST}
    return Listing(
        records=records,
        source=source,
        problems=problems,
        ignored=len(set(source.names) - used),
        person_names={} if all(name == str(number) for name, number in numbers.items()) else names,
    )


def _is_person(row: _Named) -> bool:
    """Whether a picture shows a person for sure: -1 and 0 may be junk and distractors in a gallery, -1 in training."""
    return row.split == "query" or (row.split in ("train", "validation") and not row.identity.startswith("-"))


def number_identities(names: Iterable[str], people: Collection[str] = ()) -> dict[str, int]:
    """A number for each name, the same for the same sets of names in any order, from 1 on for those of `people`."""
    distinct = sorted(set(names))
    if all(re.fullmatch(r"-?\d{1,9}", name, re.ASCII) for name in distinct):
        numbers = {name: int(name) for name in distinct}
        if len(set(numbers.values())) == len(distinct) and min(numbers.values(), default=0) >= JUNK:
            lowest = min((numbers[name] for name in people), default=1)
            shift = max(0, 1 - lowest)
            return {name: number + shift if number >= lowest else number for name, number in numbers.items()}
    return {name: number for number, name in enumerate(distinct, start=1)}


def _from_folders(source: Source) -> Iterator[_Named | Problem]:
    with_camera = 0
    found: list[_Named | Problem] = []
    splits = _splits(source)
    for name in source.names:
        parts = _parts(name, splits)
        if parts is None or not is_picture(name):
            continue
        split, identity, rest = parts
        match = _CAMERA.search(bare_name(rest))
        if match is None:
            reason = f"its name does not parse, it has no camera `_c<number>_`: rename it or write a {MANIFEST}"
            found.append(Problem(file=name, reason=reason))
            continue
        with_camera += 1
        file_name = stored_name(f"{identity}/{rest}")
        found.append(
            _Named(
                path=name,
                file_name=file_name,
                identity=stored_name(identity),
                camera_id=int(match[1]),
                split=split,
            )
        )
    if not with_camera:
        raise SourceError(
            f"{source.where('')} shows zero cameras: use names like "
            f"<split>/<identity>/<anything>_c<camera>_..., or write {MANIFEST} ({', '.join(COLUMNS)})"
        )
    yield from found


def _from_manifest(source: Source) -> Iterator[_Named | Problem]:
    where = source.where(MANIFEST)
    text = source.read_text(MANIFEST)
    separator = next((mark for mark in ";\t" if mark in text.partition("\n")[0]), ",")  # spreadsheets write these too
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
        if missing:
            raise SourceError(
                f"{where} has no column {', '.join(missing)}: its first line must name {', '.join(COLUMNS)}"
            )
        lines = [(rows.line_num, {column: (row[column] or "").strip() for column in COLUMNS}) for row in rows]
    except csv.Error as error:
        raise SourceError(
            f"{where} after line {rows.line_num}: {error}: save it as comma-separated text again"
        ) from None
    if not any(row["camera_id"] for _, row in lines):
        raise SourceError(f"{where} shows zero cameras: fill its column camera_id")
    files = {stored_name(name): name for name in source.names}
    endings = {name.lower(): name for name in files}
    root = Path(source.where(""))
    roots = {f"{root.absolute().as_posix()}/", f"{root.resolve().as_posix()}/"}
    for number, row in lines:
        path, identity, camera, split = (row[column] for column in COLUMNS)
        path = posixpath.normpath(path.replace("\\", "/")) if path else path
        path = next((path.removeprefix(root) for root in roots if path.startswith(root)), path)
        if climbs_out(path):
            raise SourceError(
                f"{where} line {number}: {path!r} is not below the folder of {MANIFEST}: use paths relative to that"
            )
        file_name, reason = stored_name(path), None
        if file_name not in files:
            file_name = endings.get(file_name.lower(), file_name)  # .JPG for .jpg, say
        if split not in SPLITS:
            reason = f"split {split!r} is none of {', '.join(SPLITS)}"
        elif not identity:
            reason = "person_id is empty"
        elif not re.fullmatch(r"\d{1,9}", camera, re.ASCII):
            reason = f"camera_id {camera!r} is not a whole number"
        elif file_name not in files:
            reason = "names a picture that is missing"
        elif not is_picture(path):
            reason = f"names a file of a kind that is not read (those are {', '.join(PICTURE_ENDINGS)})"
        if reason:
            reason = f"{MANIFEST} line {number}: {reason}: correct or remove the line"
            yield Problem(file=path or MANIFEST, reason=reason)
        else:
            yield _Named(
                path=files[file_name],
                file_name=file_name,
                identity=stored_name(identity),
                camera_id=int(camera),
                split=split,
            )


FOLDER = Reader(
    title="an own data set",
    layout=f"<split>/<identity>/<anything>_c<camera>_..., or {MANIFEST} with {', '.join(COLUMNS)}",
    recognises=_recognises,
    read=_read,
)
