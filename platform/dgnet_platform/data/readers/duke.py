"""DukeMTMC-reID (Zheng et al., ICCV 2017): eight cameras on a campus."""

from dgnet_platform.data.readers.split_folders import split_folder_reader
from dgnet_platform.data.records import Published

PUBLISHED = {
    "train": Published(people=702, pictures=16_522),
    "query": Published(people=702, pictures=2_228),
    "gallery": Published(people=1_110, pictures=17_661),
}

DUKE = split_folder_reader(
    title="DukeMTMC-reID",
    pattern=r"(?P<person>\d{1,9})_c(?P<camera>[1-9]\d{0,8})_f\d+",
    example="0001_c2_f0046182.jpg",
    published=PUBLISHED,
)
