"""How many identities are held out for validation, and how many are left to train on."""

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dgnet_platform.errors import ExperimentError

if TYPE_CHECKING:  # a command line needs these numbers, and no Parquet
    from dgnet_platform.data.store import Store

VALIDATION_SHARE = 100 / 751
"""The paper tunes on the last 100 of Market-1501's 751 training identities."""


def held_out_people(people: int) -> int:
    """How many of a training split's identities are held out for validation: 100 of 751, at least 2, 2 are left.

    Raises:
        ValueError: There are fewer than 4 identities.
    """
    if people < 4:
        raise ValueError(f"a validation split needs 4 or more training identities, there are {people}: add some")
    return min(max(round(people * VALIDATION_SHARE), 2), people - 2)


def queries_among(shots: Iterable[tuple[int, int, int]]) -> list[int]:
    """Which pictures of identities that are not trained on are queries: the others are their gallery.

    Of each identity that two or more cameras saw, the first picture under every camera with two or more of it is a
    query. So every query has a match under another camera.

    Args:
        shots: of each picture its place, identity and camera.

    Returns:
        Places of the queries; none where there are no such pictures.
    """
    rows_of: defaultdict[int, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row, label, camera in shots:
        rows_of[label][camera].append(row)
    seen_twice = [cameras for cameras in rows_of.values() if len(cameras) >= 2]
    return [rows[0] for cameras in seen_twice for rows in cameras.values() if len(rows) >= 2]


def held_out_queries(shots: Iterable[tuple[int, int]], people: int) -> list[int]:
    """Which pictures of held-out identities are queries, as `queries_among` has it: the others are their gallery.

    Args:
        shots: label, from 0, and camera of each picture of a training split.
        people: identities in it; the last `held_out_people(people)` are held out.

    Returns:
        Places of the queries in `shots`.

    Raises:
        ValueError: there are fewer than 4 identities, or no held-out one gives a query.
    """
    held_out = held_out_people(people)
    queries = queries_among(
        (row, label, camera) for row, (label, camera) in enumerate(shots) if label >= people - held_out
    )
    if not queries:
        raise ValueError(
            f"none of the {held_out} held-out identities has two pictures under one camera and one under another, so"
            " nothing can be validated on them"
        )
    return queries


def check_held_out(store: "Store", remedy: str = "pass --no-hold-out to train on all identities") -> None:
    """Refuse a store whose held-out identities give no query; raises ExperimentError, which ends with the remedy."""
    label_of = {person: label for label, person in enumerate(store.info.classes)}
    index = store.index("train")
    shots = zip((label_of.get(person, -1) for person in index["person_id"]), index["camera_id"], strict=True)
    try:
        held_out_queries(shots, len(store.info.classes))
    except ValueError as error:
        raise ExperimentError(f"{store.location}: {error}: {remedy}") from None


def needed_classes(store: "Store", hold_out: bool) -> int:
    """Identities that a run on a store trains on.

    Raises:
        ExperimentError: it has no training split, or too few identities to hold some out.
    """
    if "train" not in store.info.splits:
        raise ExperimentError(f"{store.location} has no train split, only {', '.join(store.info.splits)}")
    people = len(store.info.classes)
    try:
        return people - held_out_people(people) if hold_out else people
    except ValueError as error:
        raise ExperimentError(f"{store.location}: {error}, or pass --no-hold-out") from None
