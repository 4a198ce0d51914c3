"""CUHK03 in its new protocol (Zhong et al., CVPR 2017): two cameras, boxes detected or drawn by hand."""

from dgnet_platform.data.readers.split_folders import split_folder_reader
from dgnet_platform.data.records import Published, Reader

PUBLISHED = {
    "detected": {
        "train": Published(people=767, pictures=7_365),
        "query": Published(people=700, pictures=1_400),
        "gallery": Published(people=700, pictures=5_332),
    },
    "labeled": {
        "train": Published(people=767, pictures=7_368),
        "query": Published(people=700, pictures=1_400),
        "gallery": Published(people=700, pictures=5_328),
    },
}


def _reader(boxes: str) -> Reader:
    return split_folder_reader(
        title=f"CUHK03-NP ({boxes})",
        pattern=r"(?P<person>\d{1,9})_c(?P<camera>[1-9]\d{0,8})_\d+",
        example="0003_c1_21.png",
        published=PUBLISHED[boxes],
        within=f"{boxes}/",
    )


CUHK03_DETECTED = _reader("detected")
CUHK03_LABELED = _reader("labeled")
