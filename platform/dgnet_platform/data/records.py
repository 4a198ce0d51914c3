"""What a reader finds: a record for each picture, a problem for each that cannot be used, and their rules."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dgnet_platform.data.source import Source, SourceError

SPLITS = ("train", "gallery", "multi_query", "query", "validation")
"""In the order in which they are packed: the gallery is known when the queries come. Whoever is in `validation` is
validated on beside the identities that are held out of `train`."""
JUNK = -1
"""person_id of a picture that ranking leaves out."""
DISTRACTOR = 0
"""person_id of a gallery picture that matches no query; in `train` it is a person like any other."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One picture of a data set."""

    path: str
    """The file, relative to the source's root."""
    file_name: str
    """Its name in the store: relative to its split's folder, hence unique within the split."""
    person_id: int
    camera_id: int
    split: str


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One file that cannot be used."""

    file: str
    """Relative to the source's root."""
    reason: str
    """What is wrong, and after a colon what to do."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All that a reader found in a source, before any picture is opened."""

    records: tuple[Record, ...]
    """Sorted by split and file name."""
    source: Source
    """What their paths are relative to."""
    problems: tuple[Problem, ...] = ()
    ignored: int = 0
    """Files that are no pictures of any split: Thumbs.db, read-me files, evaluation code."""
    person_names: Mapping[int, str] = field(default_factory=dict)
    """The source's own names of the persons, where they are not numbers."""
    origin: Mapping[str, object] = field(default_factory=dict)
    """How the set was made, where it was drawn rather than photographed."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A split's size as its authors published it."""

    people: int
    """Distinct persons, without junk and distractors."""
    pictures: int


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one data set is read."""

    title: str
    """Its name as its authors write it."""
    layout: str
    """Its folders and file names in a few words, for messages."""
    recognises: Callable[[Source], bool]
    """Whether a source has this layout at its root, seen by names alone."""
    read: Callable[[Source], Listing]
    """All records of a recognised source; raises SourceError when a part of it is missing."""
    near_miss: Callable[[Source], str] = lambda _: ""
    """Why a source is not recognised that has this layout's folders, and what to do; nothing for other sources."""
    published: Mapping[str, Published] = field(default_factory=dict)
    """Sizes by split; empty for own data."""


def count_people(person_ids: Iterable[int], split: str) -> int:
    """Number of persons in a split, without junk and, outside `train`, distractors."""
    unmatched = {JUNK} if split == "train" else {JUNK, DISTRACTOR}
    return len(set(person_ids) - unmatched)


def unmatched(queries: Iterable[Record], gallery: Iterable[Record]) -> list[Record]:
    """Queries whose person the gallery does not show under another camera."""
    cameras: defaultdict[int, set[int]] = defaultdict(set)
    for record in gallery:
        if record.person_id not in (JUNK, DISTRACTOR):
            cameras[record.person_id].add(record.camera_id)
    return [query for query in queries if not cameras[query.person_id] - {query.camera_id}]


def unmatched_problem(query: Record) -> Problem:
    """Why a query that nothing can match is not used."""
    return Problem(
        file=query.path,
        reason=f"query without a match: the gallery shows person {query.person_id} under no other camera: "
        "add such a picture, or remove the query",
    )


def checked(listing: Listing, *, unlabelled: bool = False) -> Listing:
    """The listing without the records that break a rule across files; each becomes a problem.

    Args:
        listing: All that a reader found.
        unlabelled: Whether junk may be in train: pictures without identity.

    Raises:
        SourceError: Nothing is left to train or to evaluate on.
    """
    where = listing.source.where("")
    if not listing.records:
        first = "".join(f"; {problem.file}: {problem.reason}" for problem in listing.problems[:1])
        raise SourceError(f"{where} holds no usable picture{first}")
    records, problems = _unique(listing.records)
    records, leaks = _without_leaks(records, unlabelled)
    by_split: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        by_split[record.split].append(record)
    if bool(by_split["query"]) != bool(by_split["gallery"]):
        present, absent = ("query", "gallery") if by_split["query"] else ("gallery", "query")
        raise SourceError(f"{where} has pictures in {present} but none in {absent}: add them")
    if not (by_split["train"] or by_split["query"]):
        raise SourceError(f"{where} has pictures neither in train nor in query and gallery")
    lonely = set(unmatched(by_split["query"], by_split["gallery"]))
    if lonely and len(lonely) == len(by_split["query"]):
        raise SourceError(
            f"{where} cannot be evaluated on: the gallery shows no query's person under another camera. Number the "
            "cameras, or leave query and gallery out: training needs neither"
        )
    return replace(
        listing,
        records=tuple(sorted((record for record in records if record not in lonely), key=_place)),
        problems=(*listing.problems, *problems, *leaks, *map(unmatched_problem, sorted(lonely, key=_place))),
    )


def _place(record: Record) -> tuple[int, str]:
    return SPLITS.index(record.split), record.file_name


def _unique(records: Sequence[Record]) -> tuple[list[Record], list[Problem]]:
    """Records whose name is text and that are the only ones of that name in their split."""
    kept: dict[tuple[int, str], Record] = {}
    problems: list[Problem] = []
    for record in records:
        if not _is_text(record.file_name):
            problems.append(Problem(file=record.path, reason="its name is not Unicode: rename it"))
        elif (first := kept.setdefault(_place(record), record)) is not record:
            reason = f"listed twice in {record.split} (as {first.path} too): remove one of the two"
            problems.append(Problem(file=record.path, reason=reason))
    return list(kept.values()), problems


def _is_text(name: str) -> bool:
    """Whether a file's name is Unicode: Python hands over other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _without_leaks(records: Collection[Record], unlabelled: bool) -> tuple[list[Record], list[Problem]]:
    """Records without the persons that are trained on and tested too; the training pictures stay.

    `multi_query` does not count: Market-1501's `gt_bbox` shows its training persons as well.
    """
    trained = {record.person_id: record for record in records if record.split == "train"}
    trained.pop(JUNK, None)
    kept, problems = [], []
    for record in records:
        if record.split in ("query", "gallery", "validation") and record.person_id in trained:
            other = trained[record.person_id].path
            reason = f"person {record.person_id} is in {record.split} and in train ({other}): remove one"
            problems.append(Problem(file=record.path, reason=reason))
        elif record.split == "train" and record.person_id == JUNK and not unlabelled:
            reason = "junk (-1) is in train: remove it, or pass --unlabelled to train on pictures without identity"
            problems.append(Problem(file=record.path, reason=reason))
        else:
            kept.append(record)
    return kept, problems
