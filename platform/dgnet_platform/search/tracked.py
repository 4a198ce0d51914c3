"""What MLflow is told of a search and of its trials, at their beginnings and ends."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from dgnet_platform.runs.experiment import DGNetExperiment
from dgnet_platform.runs.run import Run, folder_of
from dgnet_platform.search import prefixes
from dgnet_platform.search.plan import SearchPlan
from dgnet_platform.search.study import Study
from dgnet_platform.search.trial import TrialProgress, tag_prefix
from dgnet_platform.storage.serialize import flat, to_dict
from dgnet_platform.tracking.client import UNREACHABLE, Status, TrackedRun, open_run, status_of
from dgnet_platform.tracking.shipping import ship

_log = logging.getLogger(__name__)


class TrackedSearch:
    """A search in MLflow: a run of its own, and one for each trial below it."""

    def __init__(self, plan: SearchPlan, study: Study):
        """Open the search's own run.

        Raises:
            TrackingError: MLflow cannot be reached, or the run was deleted there.
        """
        self._plan, self._study = plan, study
        params = {f"space.{name}": text for name, text in plan.space.texts().items()}
        self.run = open_run(
            plan.tracking_uri,
            plan.store,
            name=plan.name,
            folder=plan.folder,
            params=params | flat({"search": to_dict(plan.config)}) | flat(to_dict(plan.base)),
            tags=self._tags("search"),
            known=study.study.user_attrs.get("mlflow_run"),
        )
        study.study.set_user_attr("mlflow_run", self.run.id)

    def open_below(
        self, experiment: DGNetExperiment, known: str | None, *, params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> TrackedRun:
        """The run of a trial, or of one beside them, which is new or resumes.

        Args:
            experiment: the run's.
            known: id of the run that it has; None: none yet.
            params: beside the experiment's.
            tags: beside the search's.

        Raises:
            TrackingError: MLflow was away for too long.
        """
        plan = self._plan
        return open_run(
            plan.tracking_uri,
            plan.store,
            name=experiment.name,
            folder=folder_of(plan.base.storage, experiment.name),
            params=flat(to_dict(experiment)) | dict(params),
            tags=self._tags("trial") | {"mlflow.parentRunId": self.run.id} | dict(tags),
            known=known,
            stop_asked=plan.stop_file.exists,
        )

    def close_trial(self, number: int) -> None:
        """Tell how a trial ended that the study knows to be over."""
        trial, folder = self._study.trial(number), self._plan.trial_folder(number)
        reason, last = trial.user_attrs.get("reason", ""), max(trial.intermediate_values, default=None)
        if trial.state == TrialState.COMPLETE:
            self._close(folder, "FINISHED", "", {"search/objective": trial.values[0]})
        elif trial.state == TrialState.PRUNED:
            gain = {}
            if last is not None and self._plan.config.stopping.needs_control:
                gain = {"search/gain": trial.intermediate_values[last]}
            self._close(folder, "KILLED", f"stopped early: {reason}", gain)
        else:
            self._close(folder, "FAILED", reason)

    def close_stopped(self, number: int) -> None:
        """Tell that a trial was saved and stopped, and is not over."""
        self._close(self._plan.trial_folder(number), "KILLED", "stopped")

    def close_sibling(self, folder: Path) -> None:
        """Tell how far a run beside the trials is."""
        progress = TrialProgress.read(folder)
        self._close(folder, status_of(progress.ending), progress.reason or (progress.ending or ""))

    def catch_up(self) -> None:
        """Tell what MLflow missed, while it was away, of trials and prefixes that are over."""
        try:
            unaware = self.run.running()
            for trial in self._study.trials:
                if trial.state.is_finished() and trial.user_attrs.get("mlflow_run") in unaware:
                    self.close_trial(trial.number)
            siblings = [TrialProgress.read(folder) for folder in self._plan.sibling_folders()]
            for sibling in siblings:
                run = Run.find(sibling.folder)
                if sibling.over and run is not None and run.mlflow_run in unaware:
                    self.close_sibling(sibling.folder)
            progress = [TrialProgress.read(self._plan.trial_folder(trial.number)) for trial in self._study.trials]
            progress += siblings
            for folder in sorted({Path(trial.prefix) for trial in progress if trial.prefix}):
                run = Run.find(folder)
                if run is not None and run.mlflow_run in unaware:
                    prefixes.catch_up(run)
        except UNREACHABLE as error:
            _log.warning("MLflow was not told of all trials: %s; the same command does it later", error)

    def _close(self, folder: Path, status: Status, reason: str, figures: Mapping[str, float] | None = None) -> None:
        """Send what a run's own process could not, and close it in MLflow. Should that be away, `catch_up` does it."""
        run = Run.read(folder)
        try:
            if not ship(run, lambda: True, patience=5):
                return
            tracked = TrackedRun.of(run)
            tag_prefix(tracked, TrialProgress.read(run.folder))
            if figures:
                tracked.log(dict(figures))
            tracked.close(status, reason)
        except UNREACHABLE as error:
            _log.warning("MLflow was not told how %s ended: %s", run.name, error)

    def _tags(self, kind: str) -> dict[str, str]:
        plan = self._plan
        return {"dgnet.kind": kind, "dgnet.search": plan.name, "dgnet.teacher": str(plan.teacher or "")}
