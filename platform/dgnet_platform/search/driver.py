"""A search under way, as the driver sees it.

The study says which trials there are; Ray Tune only runs them. Each start of the driver makes a new Tune experiment for
the trials that are not over, and all else is found in their folders: so nothing of Tune's own has to survive a kill.
"""

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.trial import TrialState
from ray import tune
from ray.tune.search import Searcher

from dgnet_platform.compute import cluster
from dgnet_platform.compute.placement import Placement, place_trials
from dgnet_platform.errors import TrainingError
from dgnet_platform.runs.archive import follow
from dgnet_platform.search.plan import SearchPlan
from dgnet_platform.search.siblings import Sibling
from dgnet_platform.search.study import DONE, Study
from dgnet_platform.search.trial import Trial
from dgnet_platform.search.trials import Trials

TUNE = "tune"
"""In a search's folder: what Ray Tune leaves."""
MAX_FIRST_FAILURES = 3
"""Trials that may fail before any has come to an end."""


class Search:
    """A search under way."""

    def __init__(self, plan: SearchPlan, placement: Placement):
        """Open the study and MLflow's runs; the search's folder must exist, and be locked by this process.

        Raises:
            StudyError, ExperimentError, TrackingError: it cannot be resumed.
        """
        self.plan, self.placement = plan, placement
        plan.stop_file.unlink(missing_ok=True)
        self.study = Study(
            plan.folder,
            plan.name,
            plan.identity,
            plan.space,
            plan.base.model,
            seed=plan.config.seed,
            objectives=len(plan.config.objectives),
            concurrent=placement.concurrent > 1,
            warm_start=plan.config.warm_start,
        )
        self.trials = Trials(plan, placement, self.study)

    def run(self) -> None:
        """Run what is to be run, until it is done or told to stop.

        Raises:
            Exception: Tune, MLflow or the disk failed; the same search continues from there.
        """
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer output has a header that cannot be turned off
        for name in ("ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is told by the study
        folder = self.plan.folder / TUNE
        shutil.rmtree(folder, ignore_errors=True)
        feed = TrialFeed(self)
        tuner = tune.Tuner(
            tune.with_resources(Trial, self.placement.resources),
            param_space={"sharing": self.plan.config.sharing, "gpus": self.placement.gpus},
            tune_config=tune.TuneConfig(
                search_alg=feed,
                num_samples=-1,
                max_concurrent_trials=self.placement.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.plan.config.retries),
            ),
        )
        with self._archived():
            tuner.fit()
        self.trials.tracked.catch_up()
        if feed.error is not None:
            raise feed.error

    def ask_to_stop(self) -> None:
        """Have all trials save and stop."""
        self.plan.stop_file.touch()

    @property
    def stop_asked(self) -> bool:
        """Whether that was asked for."""
        return self.plan.stop_file.exists()

    @contextmanager
    def _archived(self) -> Iterator[None]:
        """Meanwhile, copy the search's own folder to the archive whenever it changes."""
        archive = self.trials.archive
        if archive is None:
            yield
            return
        over = threading.Event()
        archiving = threading.Thread(target=follow, args=(archive, self.plan.folder, over.is_set), daemon=True)
        archiving.start()
        try:
            yield
        finally:
            over.set()
            archiving.join()


class TrialFeed(Searcher):
    """Gives Tune the study's trials one after the other, and the study Tune's word that one is over."""

    def __init__(self, search: Search):
        super().__init__()
        self._search = search
        self._left = search.study.running
        self._numbers: dict[str, int] = {}
        self._siblings: dict[str, Sibling] = {}
        self._dead: list[Sibling] = []
        self._failed = 0
        self._lock = threading.Lock()
        self.error: Exception | None = None
        """What went wrong here; Tune would only log it."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The folder and the judge of the next trial; None: not now, but if one fails; FINISHED: there are no more."""
        search = self._search
        with self._lock:
            if search.stop_asked or self.error is not None:
                return Searcher.FINISHED
            try:
                sibling = self._next_sibling()
                if sibling is not None:
                    folder = search.trials.prepare_sibling(sibling)
                    self._siblings[trial_id] = sibling
                    return {"folder": str(folder), "judge": None}
                if self._left:
                    number = self._left.pop(0)
                elif search.study.missing:
                    number = search.study.ask()
                else:
                    return None if self._numbers or self._siblings else Searcher.FINISHED
                folder = search.trials.prepare(number)
            except Exception as error:
                self.error = error
                search.ask_to_stop()
                return Searcher.FINISHED
            self._numbers[trial_id] = number
            return {"folder": str(folder), "judge": search.trials.judge(number)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Tune's trial is over: whatever there is to know is in its folder."""
        with self._lock:
            number, sibling = self._numbers.pop(trial_id, None), self._siblings.pop(trial_id, None)
            try:
                if sibling is not None:
                    self._finish(sibling)
                if number is not None:
                    self._search.trials.finish_trial(number)
                    self._give_up_on(number)
            except Exception as failure:
                self.error = failure
                self._search.ask_to_stop()

    def _next_sibling(self) -> Sibling | None:
        """A run beside the trials that is to be run now.

        The control comes first: trials at their rungs wait for it. What confirms the best comes once all trials are
        over.
        """
        search, control = self._search, self._search.plan.control
        if control is not None and control not in self._siblings.values():
            self._refuse_diverged(control)
        wanted = [*([control] if control is not None else []), *search.trials.confirmations()]
        under_way = [*self._siblings.values(), *self._dead]
        return next((run for run in wanted if run not in under_way and not search.trials.progress_of(run).over), None)

    def _refuse_diverged(self, control: Sibling) -> None:
        """Without its control a search can judge no trial, and one that diverged would only do so again."""
        progress = self._search.trials.progress_of(control)
        if progress.ending == "diverged":
            raise TrainingError(
                f"{control.name}, which never feeds generated pictures back, diverged: {progress.reason}\n"
                "Trials are compared with it: search under another --name with other settings, or with --stopping.by"
                " metric, which needs none"
            )

    def _finish(self, sibling: Sibling) -> None:
        """Note how a run beside the trials ended."""
        progress = self._search.trials.finish_sibling(sibling)
        if sibling == self._search.plan.control:
            self._refuse_diverged(sibling)
        if progress.ending is None:  # it died more often than it may; the same command tries again
            self._dead.append(sibling)
            if sibling == self._search.plan.control:
                reason = progress.reason or "its process, more often than it may"
                raise TrainingError(
                    f"{sibling.name}, which never feeds generated pictures back, died: {reason}\n"
                    "Trials are compared with it: the same command resumes once that is mended"
                )

    def _give_up_on(self, number: int) -> None:
        """Stop a search in which nothing but failing happens: more trials would not find another reason."""
        study = self._search.study
        self._failed += study.trial(number).state == TrialState.FAIL
        if self._failed == MAX_FIRST_FAILURES and not any(trial.state in DONE for trial in study.trials):
            raise TrainingError(
                f"the first {MAX_FIRST_FAILURES} trials failed, the last one because:"
                f" {study.notes(number).get('reason', '')}\nThe same command resumes, once that is mended"
            )

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is saved by itself."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its own state down, which is never read


def place_search(plan: SearchPlan) -> Placement:
    """Join Ray and place a search's trials; raises ExperimentError if none ever fits, or cannot be tracked."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    cluster.join_ray()
    cluster.check_tracking(plan.tracking_uri)
    config = plan.config
    return place_trials(
        cluster.nodes(), workers=config.workers_per_trial, gpus=config.gpus_per_trial, concurrent=config.concurrent
    )
