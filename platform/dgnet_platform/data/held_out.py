"""How many identities are held out for validation, and how many are left to train on."""

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
