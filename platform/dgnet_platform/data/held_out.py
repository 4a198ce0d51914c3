"""The identities held out for validation."""

from collections import defaultdict
from dataclasses import dataclass

import torch

from dgnet_platform.data.images import ImageSet

VALIDATION_SHARE = 100 / 751
"""The paper tunes on the last 100 of Market-1501's 751 training identities."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSplit:
    """A training split parted by identity: to train on, and to choose settings by."""

    train: ImageSet
    query: ImageSet
    gallery: ImageSet


def held_out_people(people: int) -> int:
    """How many of a training split's identities are held out for validation: 100 of 751, at least 2, 2 are left.

    Raises:
        ValueError: There are fewer than 4 identities.
    """
    if people < 4:
        raise ValueError(f"a validation split needs 4 or more training identities, there are {people}: add some")
    return min(max(round(people * VALIDATION_SHARE), 2), people - 2)


def validation_split(images: ImageSet) -> ValidationSplit:
    """Hold out the last identities of a training split, so that no search sees the real query and gallery.

    Of K identities in sorted order the last `held_out_people(K)` are held out. Their query and gallery follow
    from the order alone: of each held-out identity that two or more cameras saw, the first picture under every
    camera with two or more of it is a query; all others are gallery. So every query has a match under another
    camera.

    Raises:
        ValueError: There are fewer than 4 identities, or no held-out one gives a query.
    """
    people = len(images.classes)
    held_out = held_out_people(people)
    trained = images.labels < people - held_out
    rows_of: defaultdict[int, defaultdict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in torch.nonzero(~trained).flatten().tolist():
        rows_of[int(images.person_ids[row])][int(images.camera_ids[row])].append(row)
    queries = torch.zeros_like(trained)
    for cameras in rows_of.values():
        if len(cameras) >= 2:
            queries[[rows[0] for rows in cameras.values() if len(rows) >= 2]] = True
    if not queries.any():
        raise ValueError(
            f"none of the {held_out} held-out identities has two pictures under one camera and one under "
            "another: a search needs such identities to validate on"
        )
    return ValidationSplit(
        train=images.select(torch.nonzero(trained).flatten()),
        query=images.select(torch.nonzero(queries).flatten()),
        gallery=images.select(torch.nonzero(~trained & ~queries).flatten()),
    )
