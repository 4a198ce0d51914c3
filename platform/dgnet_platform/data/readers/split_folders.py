"""The shape that Market-1501 gave to the field: a folder a split, person and camera in each file's name."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from dgnet_platform.data.records import Listing, Problem, Published, Reader, Record
from dgnet_platform.data.source import PICTURE_ENDINGS, Source, SourceError, is_picture

FOLDERS = {
    "bounding_box_train": "train",
    "bounding_box_test": "gallery",
    "query": "query",
    "gt_bbox": "multi_query",
    "bounding_box_validation": "validation",
}
REQUIRED = ("bounding_box_train", "bounding_box_test", "query")
_ENDINGS = re.compile(rf"({'|'.join(map(re.escape, PICTURE_ENDINGS))})+$", re.IGNORECASE)


def split_folder_reader(
    *, title: str, pattern: str, example: str, published: Mapping[str, Published], within: str = ""
) -> Reader:
    """A reader of `within`/{bounding_box_train, bounding_box_test, query, gt_bbox}/*.

    Args:
        title: The data set's name as its authors write it.
        pattern: Regular expression of the file name without its ending, with groups `person` and `camera`.
        example: What a file name looks like, for messages.
        published: Sizes by split.
        within: Folder that holds the split folders, with a '/' at its end, or ''.
    """
    name_pattern = re.compile(pattern)

    def recognises(source: Source) -> bool:
        """Most pictures of at least one split folder are named as this data set names them."""
        pictures = pictures_of(source)
        return 2 * len(misnamed(pictures)) < len(pictures)

    def pictures_of(source: Source) -> list[str]:
        """Those that lie in split folders; in folders of theirs, they are of another layout."""
        depth = within.count("/") + 1
        return [n for n in source.names if _split_of(n, within) and n.count("/") == depth and is_picture(n)]

    def misnamed(pictures: Sequence[str]) -> list[str]:
        return [name for name in pictures if not name_pattern.fullmatch(bare_name(name))]

    def near_miss(source: Source) -> str:
        pictures = pictures_of(source)
        if not (wrong := misnamed(pictures)):
            return ""
        return (
            f"its folders are there, but {len(wrong):,} of {len(pictures):,} names are not such as {example}; the "
            f"first is {wrong[0]}. Own data is read with --dataset folder and a manifest.csv"
        )

    def read(source: Source) -> Listing:
        for folder in REQUIRED:
            if not any(name.startswith(f"{within}{folder}/") and is_picture(name) for name in source.names):
                raise SourceError(
                    f"{source.where(within + folder)} is missing or empty: unpack {title} again, whole. Own data is"
                    " read with --dataset folder: its query is a picture of each person under a camera, to be found in"
                    " the gallery under another, and a set without both can be trained on"
                )
        records, problems = [], []
        for name in source.names:
            split = _split_of(name, within)
            if split is None or not is_picture(name):
                continue
            match = name_pattern.fullmatch(bare_name(name))
            if match is None:
                reason = f"its name does not parse as {title}'s {example}: rename or remove it"
                problems.append(Problem(file=name, reason=reason))
                continue
            records.append(
                Record(
                    path=name,
                    file_name=stored_name(name.removeprefix(within).split("/", 1)[1]),
                    person_id=int(match["person"]),
                    camera_id=int(match["camera"]),
                    split=split,
                )
            )
        ignored = len(source.names) - len(records) - len(problems)
        return Listing(records=tuple(records), source=source, problems=tuple(problems), ignored=ignored)

    layout = f"{within}{{{', '.join(REQUIRED)}}}/{example}"
    return Reader(
        title=title, layout=layout, recognises=recognises, read=read, near_miss=near_miss, published=published
    )


def _split_of(name: str, within: str) -> str | None:
    if not name.startswith(within):
        return None
    folder, slash, _ = name.removeprefix(within).partition("/")
    return FOLDERS.get(folder) if slash else None


def bare_name(name: str) -> str:
    """A file's name without folders and without its ending, repeated endings (`.jpg.jpg`) included."""
    return _ENDINGS.sub("", name.rpartition("/")[2])


def stored_name(name: str) -> str:
    """A name in one Unicode form, which file systems differ in and the fingerprint must not."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)
