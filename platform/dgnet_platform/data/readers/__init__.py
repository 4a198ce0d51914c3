"""Readers of data sets, public and own: the records of a source, before they are packed into a store."""

from dgnet_platform.data.config import Dataset
from dgnet_platform.data.readers.cuhk03_np import CUHK03_DETECTED, CUHK03_LABELED
from dgnet_platform.data.readers.duke import DUKE
from dgnet_platform.data.readers.folder import FOLDER
from dgnet_platform.data.readers.market import DRAWN_PEOPLE, MARKET
from dgnet_platform.data.readers.msmt17 import MSMT17
from dgnet_platform.data.records import Listing, Reader, checked
from dgnet_platform.data.source import PICTURE_ENDINGS, UNREAD_ENDINGS, Source, SourceError

READERS: dict[Dataset, Reader] = {
    "people": DRAWN_PEOPLE,
    "market1501": MARKET,
    "dukemtmc-reid": DUKE,
    "msmt17": MSMT17,
    "cuhk03-np-detected": CUHK03_DETECTED,
    "cuhk03-np-labeled": CUHK03_LABELED,
    "folder": FOLDER,
}


def read_source(dataset: Dataset, source: Source, *, unlabelled: bool = False) -> Listing:
    """All records of a source that holds `dataset` at its root, one folder down, or where single folders lead to.

    Args:
        dataset: Which.
        source: Where it is looked for.
        unlabelled: Keep training pictures of person -1.

    Raises:
        SourceError: It holds another data set (the message says which), several copies, or not all of it.
    """
    reader = READERS[dataset]
    levels = [source, *map(source.under, source.top_folders())]
    for level in levels:  # which grows: unpackers put a folder into one of its own name
        if level is not source and not reader.recognises(level) and len(folders := level.top_folders()) == 1:
            levels.append(level.under(folders[0]))
    found = [level for level in levels if reader.recognises(level)]
    if len(found) > 1:
        places = " and ".join(level.where("") for level in found)
        raise SourceError(f"{reader.title} is there more than once, at {places}: name the folder of one of them")
    if found:
        return checked(reader.read(found[0]), unlabelled=unlabelled)
    looks = [(name, other) for name, other in READERS.items() if any(map(other.recognises, levels))]
    if looks:
        advice = f"it looks like {looks[0][1].title}, so pass --dataset {looks[0][0]}"
    elif near := next(filter(None, map(reader.near_miss, levels)), ""):
        advice = near
    else:
        advice = f"expected {reader.layout}; found {', '.join(source.top_folders()) or 'no folder'} at the top"
    unread = [name for name in source.names if name.lower().endswith(UNREAD_ENDINGS)]
    if unread:
        kinds = ", ".join(PICTURE_ENDINGS)
        advice += (
            f". {len(unread):,} pictures such as {unread[0]} are of a kind that is not read: convert them to {kinds}"
        )
    raise SourceError(f"{source.path} is not {reader.title}: {advice}")
