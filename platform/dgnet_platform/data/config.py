"""Which data set is prepared, and how: read before anything heavy is imported."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dgnet_platform.data.people.sizes import DrawnSize, Scenery

Dataset = Literal[
    "people", "market1501", "dukemtmc-reid", "msmt17", "cuhk03-np-detected", "cuhk03-np-labeled", "folder"
]


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Pack a data set into a store; a source is only ever read."""

    dataset: Dataset
    """Which data set it is; `people` are drawn, `folder` is your own."""
    out: str | Path
    """Folder to be made, the store, or a URI such as s3://bucket/market."""
    source: Path | None = None
    """Folder or .zip of the data set as it was downloaded; none for `people`, which are then drawn."""
    size: DrawnSize | None = None
    """How many people to draw: `tiny` in seconds, `laptop` by default, `dusk` as many with fewer pictures,
    `market` as many as Market-1501."""
    scenery: Scenery | None = None
    """What is around drawn people: `busy` streets, `plain` and out of focus, or that at `dusk`, in dark and
    coloured light; by default plain for `laptop`, dusk for `dusk`, busy otherwise."""
    seed: int | None = None
    """Draws other people; 0 is the default."""
    keypoints: Path | None = None
    """Key points to keep beside the store: the CSV of Market-1501, a folder of FD-GAN's text files, or the 14-point
    files. Drawn people need none: their own are kept."""
    keypoints_as_estimated: bool = False
    """Drawn people's key points with an estimator's errors: jittered, some dropped, left and right confused."""
    unlabelled: bool = False
    """Keep training pictures of person -1, who has no identity, such as generated people who do not exist: a teacher
    learns to give them the same probability for all identities (LSRO). Otherwise they are something wrong."""
    skip_bad: bool = False
    """Leave out the files with something wrong instead of refusing the set."""
    threads: int = os.cpu_count() or 1
    """Threads that read and decode; the store does not depend on it."""

    def __post_init__(self) -> None:
        drawn = self.dataset == "people" and self.source is None
        if self.source is None and not drawn:
            raise ValueError(f"--dataset {self.dataset} needs --source, its folder or .zip")
        if not drawn and (self.size, self.scenery, self.seed) != (None, None, None):
            raise ValueError(
                "--size, --scenery and --seed are for drawing --dataset people: leave them out with --source"
            )
        if self.keypoints_as_estimated and (self.dataset != "people" or self.keypoints is not None):
            raise ValueError("--keypoints-as-estimated is for drawn people's own key points: leave it out")
        if self.threads < 1:
            raise ValueError(f"--threads {self.threads}: must be 1 or more")
