"""Runs of tables without a cluster."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dgnet_platform.compute.placement import Placement
from dgnet_platform.search.trial import run_trial


class Here:
    """Trains runs in this process, one after the other."""

    placement = Placement(concurrent=1, cpus=1, gpus=0, workers=0)

    def __init__(self, before: Callable[[Path], None] = lambda _: None):
        self.before, self.trained = before, list[str]()

    def train(self, folders: Sequence[Path], sharing: bool, over: Callable[[Path], None]) -> None:
        for folder in folders:
            self.before(folder)
            run_trial(folder, judge=None, sharing=sharing)
            self.trained.append(folder.name)
            over(folder)

    def do(self, work: Callable[..., None], tasks: Sequence[tuple[Any, ...]]) -> None:
        for task in tasks:
            work(*task)
