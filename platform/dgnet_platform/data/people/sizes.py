"""How many drawn people, and pictures of them, a set has."""

from dataclasses import dataclass
from typing import Literal

DrawnSize = Literal["tiny", "laptop", "dusk", "market"]
Scenery = Literal["busy", "plain", "dusk"]
"""Streets as they are; out of focus and nearly without colour, with one person to a picture and nothing in front; or
the same by dark and coloured light, which differs from camera to camera."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many of everything a set holds.

    Raises:
        ValueError: For counts that no set can have.
    """

    train_identities: int
    """Identities 1, 2, ...; those of the test follow them."""
    test_identities: int
    cameras: int
    train: int
    """Pictures in bounding_box_train."""
    queries: int
    """One for each test identity and camera that saw it."""
    gallery: int
    """Pictures of test identities in bounding_box_test."""
    distractors: int
    """Pictures numbered 0000 in bounding_box_test: strangers and empty scenes."""
    junk: int
    """Pictures numbered -1 in bounding_box_test: bad boxes."""
    hand_drawn: int
    """Pictures in gt_bbox for each query, the query itself among them."""
    validation_identities: int = 0
    """Further ones, after those of the test, neither trained nor tested on: settings are chosen by them."""
    validation: int = 0
    """Pictures of them."""
    scenery: Scenery = "busy"
    """What is around the people, where nothing else is asked for."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("train_identities", self.train_identities, 1),
            ("test_identities", self.test_identities, 1),
            ("cameras", self.cameras, 2),
            ("train", self.train, self.cameras * self.train_identities),
            ("queries", self.queries, 2 * self.test_identities),
            ("gallery", self.gallery, self.queries),
            ("distractors", self.distractors, 0),
            ("junk", self.junk, 0),
            ("hand_drawn", self.hand_drawn, 1),
            ("validation_identities", self.validation_identities, 0),
            ("validation", self.validation, self.cameras * self.validation_identities),
        ):
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} is {value!r}; with the other counts it must be an integer of at least {least}"
                )
        if self.cameras > 9 or self.queries > self.cameras * self.test_identities:
            raise ValueError(
                f"cameras is {self.cameras} and queries {self.queries}; there can be 9 cameras (file names "
                f"have one digit) and a query for each of {self.test_identities} test identities and camera"
            )


SIZES: dict[DrawnSize, Size] = {
    "tiny": Size(
        train_identities=12, test_identities=12, cameras=6,
        train=144, queries=48, gallery=144, distractors=24, junk=24, hand_drawn=2,
    ),
    "laptop": Size(
        train_identities=96, test_identities=240, cameras=6,
        train=1_536, queries=720, gallery=1_440, distractors=240, junk=120, hand_drawn=2,
        validation_identities=107, validation=856, scenery="plain",
    ),
    "dusk": Size(
        train_identities=96, test_identities=240, cameras=8,
        train=800, queries=720, gallery=1_440, distractors=240, junk=120, hand_drawn=2,
        validation_identities=107, validation=856, scenery="dusk",
    ),
    "market": Size(
        train_identities=751, test_identities=750, cameras=6,
        train=12_936, queries=3_368, gallery=13_115, distractors=2_798, junk=3_819, hand_drawn=4,
    ),
}  # fmt: skip
"""`dusk` is to `laptop` as DukeMTMC-reID is to Market-1501: more cameras, harder light, fewer pictures of each person.
`market` has Market-1501's own counts: 12,936 training pictures, 3,368 queries, a gallery of 19,732."""
