"""The search without Ray: what Tune is fed with, where trials run, what MLflow is told, and what is refused."""

import re
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from dgnet_core.dgnet.config import laptop
from dgnet_platform.compute.placement import Node, place_trials
from dgnet_platform.errors import ExperimentError, TrainingError
from dgnet_platform.search.driver import TrialFeed
from dgnet_platform.search.siblings import Sibling
from dgnet_platform.search.trial import TrialProgress
from tests.helpers.studies import opened

# ----------------------------------------------------------------------------------------------------------------
# What Tune is fed with


class Fake:
    """A search whose trials end as somebody says."""

    def __init__(self, folder: Path):
        self.study = opened(folder)
        self.trials = self.plan = self
        self.control: Sibling | None = None
        self.controlled = TrialProgress(folder=folder)
        self.stop_asked = False
        self.broken: Exception | None = None
        self.fails = {1}

    def prepare(self, number: int) -> Path:
        if self.broken:
            raise self.broken
        return Path(f"/runs/{number}")

    def judge(self, number: int) -> None:
        return None

    def confirmations(self) -> list[Sibling]:
        return []

    def progress_of(self, sibling: Sibling) -> TrialProgress:
        return self.controlled

    def prepare_sibling(self, sibling: Sibling) -> Path:
        return Path(f"/runs/{sibling.name}")

    def finish_sibling(self, sibling: Sibling) -> TrialProgress:
        return self.controlled

    def finish_trial(self, number: int) -> None:
        fails = number in self.fails
        self.study.note(number, reason="no room" if fails else "")
        self.study.tell(number, "fail" if fails else "complete", values=None if fails else [0.5])

    def ask_to_stop(self) -> None:
        self.stop_asked = True


def test_trials_left_over_come_first_and_failed_ones_are_replaced(tmp_path):
    fake = Fake(tmp_path)
    fake.study.set_target(3)
    fake.study.ask()
    feed = TrialFeed(fake)  # pyright: ignore[reportArgumentType]
    assert feed.suggest("a") == {"folder": "/runs/0", "judge": None}
    assert feed.suggest("b") == {"folder": "/runs/1", "judge": None}
    assert feed.suggest("c") == {"folder": "/runs/2", "judge": None}
    assert feed.suggest("d") is None  # nothing now, but one may fail
    feed.on_trial_complete("b", error=True)
    assert feed.suggest("e") == {"folder": "/runs/3", "judge": None}
    for trial in "ace":
        feed.on_trial_complete(trial)
    assert feed.suggest("f") == Searcher.FINISHED


def test_the_control_comes_first_and_once(tmp_path):
    fake = Fake(tmp_path)
    fake.control = Sibling(name="control", model=laptop(10))
    feed = TrialFeed(fake)  # pyright: ignore[reportArgumentType]
    assert feed.suggest("a") == {"folder": "/runs/control", "judge": None}
    assert feed.suggest("b") == {"folder": "/runs/0", "judge": None}
    fake.controlled.ending = "stopped"
    feed.on_trial_complete("a")
    assert feed.suggest("c") == {"folder": "/runs/control", "judge": None}  # it was only stopped
    fake.controlled.ending = "finished"
    feed.on_trial_complete("c")
    assert feed.suggest("d") == {"folder": "/runs/1", "judge": None}
    assert feed.error is None


def test_what_confirms_the_best_comes_last_and_what_died_is_not_tried_again(tmp_path):
    fake = Fake(tmp_path)
    fake.fails = set()
    fake.study.set_target(1)
    again = [Sibling(name=f"000-seed-{seed}", model=laptop(10, seed=seed)) for seed in (1, 2)]
    fake.confirmations = lambda: [] if fake.study.missing or fake.study.running else again
    feed = TrialFeed(fake)  # pyright: ignore[reportArgumentType]
    assert feed.suggest("a") == {"folder": "/runs/0", "judge": None}
    assert feed.suggest("b") is None
    feed.on_trial_complete("a")
    assert feed.suggest("c") == {"folder": "/runs/000-seed-1", "judge": None}
    assert feed.suggest("d") == {"folder": "/runs/000-seed-2", "judge": None}
    assert feed.suggest("e") is None
    feed.on_trial_complete("c", error=True)
    feed.on_trial_complete("d", error=True)
    assert feed.suggest("f") == Searcher.FINISHED
    assert feed.error is None


def test_a_search_without_its_control_stops(tmp_path):
    fake = Fake(tmp_path)
    fake.control = Sibling(name="control", model=laptop(10))
    feed = TrialFeed(fake)  # pyright: ignore[reportArgumentType]
    feed.suggest("a")
    fake.controlled.ending, fake.controlled.reason = "diverged", "L_img1 is not finite"
    feed.on_trial_complete("a")
    assert isinstance(feed.error, TrainingError)
    assert "control, which never feeds generated pictures back, diverged: L_img1" in str(feed.error)
    assert fake.stop_asked
    fake.stop_asked = False
    resumed = TrialFeed(fake)  # pyright: ignore[reportArgumentType]
    assert resumed.suggest("a") == Searcher.FINISHED, "its trials would wait for the control for ever"
    assert "diverged: L_img1" in str(resumed.error)


def test_a_search_in_which_all_fails_stops_and_begins_again(tmp_path):
    fake = Fake(tmp_path)
    fake.fails = {0, 1, 2}
    feed = TrialFeed(fake)  # pyright: ignore[reportArgumentType]
    for trial in "abc":
        assert feed.error is None
        assert feed.suggest(trial) != Searcher.FINISHED
        feed.on_trial_complete(trial, error=True)
    assert isinstance(feed.error, TrainingError)
    assert re.search("first 3 trials failed, .* because: no room", str(feed.error))
    assert feed.suggest("d") == Searcher.FINISHED

    fake = Fake(tmp_path)
    assert fake.study.missing == 8
    assert fake.study.values(fake.study.ask()) == fake.study.values(0)


def test_no_more_trials_start_once_somebody_asked_to_stop(tmp_path):
    fake = Fake(tmp_path)
    feed = TrialFeed(fake)  # pyright: ignore[reportArgumentType]
    assert feed.suggest("a") == {"folder": "/runs/0", "judge": None}
    fake.stop_asked = True
    assert feed.suggest("b") == Searcher.FINISHED
    assert fake.study.running == [0]


def test_what_goes_wrong_between_trials_ends_the_search(tmp_path):
    fake = Fake(tmp_path)
    feed = TrialFeed(fake)  # pyright: ignore[reportArgumentType]
    fake.broken = ExperimentError("no room")
    assert feed.suggest("a") == Searcher.FINISHED
    assert feed.error is fake.broken
    assert fake.stop_asked


# ----------------------------------------------------------------------------------------------------------------
# Placement

TWO, GPUS = Node(cpus=2), Node(cpus=16, gpus=8)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "concurrent", "expected"),
    [
        ([TWO], 0, 0, 0, (1, 2, 0, 0)),  # one trial takes the machine
        ([TWO], 1, 0, 2, (2, 1, 0, 0)),
        ([TWO], 0, 0, 8, (2, 1, 0, 0)),  # no more than there are CPUs
        ([TWO], 2, 0, 0, (1, 1, 0, 2)),
        ([TWO], 2, 0, 8, (1, 1, 0, 2)),  # eight trials of two workers: one after the other
        ([TWO, TWO], 0, 0, 0, (2, 2, 0, 0)),
        ([TWO, TWO], 3, 0, 0, (1, 1, 0, 3)),  # workers of a trial on two machines
        ([GPUS], 0, 1, 0, (8, 2, 1, 0)),
        ([GPUS], 0, 1, 3, (3, 2, 1, 0)),
        ([GPUS], 2, 2, 0, (4, 1, 1, 2)),
        ([GPUS], 2, 1, 0, (8, 1, 0.5, 2)),
        ([TWO, GPUS], 0, 0.5, 0, (16, 1, 0.5, 0)),
        ([GPUS, GPUS], 4, 4, 0, (4, 1, 1, 4)),
    ],
)
def test_as_many_trials_run_as_fit(nodes, workers, gpus, concurrent, expected):
    placed = place_trials(nodes, workers=workers, gpus=gpus, concurrent=concurrent)
    assert (placed.concurrent, placed.cpus, placed.gpus, placed.workers) == expected
    if not placed.workers:  # they all fit at once
        assert placed.concurrent * placed.cpus <= sum(node.cpus for node in nodes)


@pytest.mark.parametrize(("nodes", "workers", "gpus"), [([TWO], 3, 0), ([TWO], 0, 1), ([GPUS], 9, 9), ([], 0, 0)])
def test_a_trial_that_never_fits_is_refused(nodes, workers, gpus):
    with pytest.raises(ExperimentError, match=r"never fits this cluster.*ask for fewer workers or GPUs"):
        place_trials(nodes, workers=workers, gpus=gpus, concurrent=0)


def test_a_worker_trains_on_one_gpu():
    with pytest.raises(ExperimentError, match=r"a trial of 1 worker on 2 GPUs: one worker trains on one GPU: ask for"):
        place_trials([GPUS], workers=0, gpus=2, concurrent=0)
