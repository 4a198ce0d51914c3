"""Market-1501 (Zheng et al., ICCV 2015): six cameras at a supermarket; also what is drawn in its shape."""

import json
from dataclasses import replace

from dgnet_platform.data.readers.split_folders import split_folder_reader
from dgnet_platform.data.records import Listing, Published
from dgnet_platform.data.source import Source, SourceError

PUBLISHED = {
    "train": Published(people=751, pictures=12_936),
    "query": Published(people=750, pictures=3_368),
    "gallery": Published(people=750, pictures=19_732),
    "multi_query": Published(people=1_501, pictures=25_259),
}
RECIPE = "people.json"
"""The file by which drawn people are told from photographs: all that is needed to draw them again."""

_LAYOUT = split_folder_reader(
    title="Market-1501",
    pattern=r"(?P<person>-1|\d{1,9})_c(?P<camera>[1-9]\d{0,8})s\d+_\d+_\d+",
    example="0002_c1s1_000451_03.jpg",
    published=PUBLISHED,
)


def _recognises_photographs(source: Source) -> bool:
    return RECIPE not in source.names and _LAYOUT.recognises(source)


def _recognises_drawn(source: Source) -> bool:
    return RECIPE in source.names and _LAYOUT.recognises(source)


def _read_drawn(source: Source) -> Listing:
    try:
        recipe = json.loads(source.read_text(RECIPE))
    except json.JSONDecodeError as error:
        raise SourceError(f"{source.where(RECIPE)} is not JSON ({error}): draw the people again") from None
    listing = _LAYOUT.read(source)
    return replace(listing, origin=recipe, ignored=listing.ignored - 1)


MARKET = replace(_LAYOUT, recognises=_recognises_photographs)
DRAWN_PEOPLE = replace(
    _LAYOUT,
    title="drawn people",
    layout=f"{RECIPE} beside {_LAYOUT.layout}",
    recognises=_recognises_drawn,
    read=_read_drawn,
    published={},
)
