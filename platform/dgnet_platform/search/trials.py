"""Trials of a search from the driver's side: how one begins, how it ends, and what is recovered after a kill."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_platform.compute.placement import Placement
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs import journal
from dgnet_platform.runs.archive import archive_of
from dgnet_platform.runs.experiment import DGNetExperiment, identity_of
from dgnet_platform.runs.loading import keypoints_of
from dgnet_platform.runs.provenance import training_digest
from dgnet_platform.runs.run import Run, folder_of
from dgnet_platform.search import prefixes
from dgnet_platform.search.config import BETA, METRIC
from dgnet_platform.search.confirmation import confirmations
from dgnet_platform.search.plan import SearchPlan
from dgnet_platform.search.siblings import Sibling
from dgnet_platform.search.stopping import RungJudge, Verdicts, rates_at, rungs_of
from dgnet_platform.search.study import Study
from dgnet_platform.search.tracked import TrackedSearch
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.storage.serialize import differences

VERDICTS = "verdicts.jsonl"
"""In a search's folder: what was decided at rungs."""


class Trials:
    """The trials of a search: the study says which, each one's folder says how far."""

    def __init__(self, plan: SearchPlan, placement: Placement, study: Study):
        """Bring back what was lost and is in the archive, and open MLflow's run of the search.

        Raises:
            ExperimentError: a trial's folder is missing.
            TrackingError: MLflow cannot be reached.
        """
        self.plan, self.placement, self.study = plan, placement, study
        self.archive = archive_of(plan.base)
        self._bring_back()
        check_folders(plan, study, archived=self.archive is not None)
        self.tracked = TrackedSearch(plan, study)

    def experiment(self, number: int) -> DGNetExperiment:
        """Of a trial that was asked for."""
        plan = self.plan
        model = plan.model(self.study.values(number))
        rungs = rungs_of(model, plan.distances, plan.base.evaluate_every)
        return replace(self._experiment(plan.trial_folder(number).name, model), evaluate_also=rungs)

    def _experiment(self, name: str, model: DGNetConfig) -> DGNetExperiment:
        plan, placement = self.plan, self.placement
        return replace(
            plan.base,
            name=name,
            model=model,
            workers=str(placement.workers),
            gpus=bool(placement.workers and placement.gpus),
            threads=plan.base.threads or (0 if placement.gpus else placement.cpus),
        )

    def prepare(self, number: int) -> Path:
        """Make, or open again, the run of a trial; returns its folder.

        Raises:
            ExperimentError: there is another run in its folder, or it cannot be written.
            TrackingError: MLflow was away for too long.
        """
        noted = self.study.notes(number)
        values = {f"search/{name}": value for name, value in self.study.values(number).items()}
        run = self._prepare(
            self.experiment(number), f"trial {number}", noted, params=values, tags={"dgnet.trial": str(number)}
        )
        self.study.note(number, folder=str(run.folder), mlflow_run=run.mlflow_run)
        return run.folder

    def prepare_sibling(self, sibling: Sibling) -> Path:
        """Make, or open again, a run beside the trials; returns its folder; raises as `prepare`."""
        experiment = self._experiment(self.plan.sibling_folder(sibling).name, sibling.model)
        return self._prepare(experiment, sibling.name, {}, params={}, tags={"dgnet.kind": "sibling"}).folder

    def _prepare(
        self,
        experiment: DGNetExperiment,
        title: str,
        noted: Mapping[str, Any],
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ) -> Run:
        plan = self.plan
        folder = folder_of(plan.base.storage, experiment.name)
        identity = identity_of(
            experiment,
            dataset=plan.store.info.dataset,
            fingerprint=plan.store.info.fingerprint,
            keypoints=keypoints_of(plan.store, experiment.model),
            teacher=plan.teacher_digest,
            origin=None,
        ).values()
        if self.archive is not None and "folder" not in noted:  # the archived study may be a moment older than this
            self.archive.try_to_fetch(folder)
        run = Run.find(folder)
        if run is not None and differences(run.identity, identity):
            raise ExperimentError(f"{folder} holds another run than {title}: move it, or pass another --name")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ExperimentError(f"--storage: {folder} cannot be made ({error})") from None
        known = run.mlflow_run if run is not None else noted.get("mlflow_run")
        tracked = self.tracked.open_below(experiment, known, params=params, tags=tags)
        found = Run(
            folder=folder,
            experiment=experiment,
            identity=identity,
            teacher=str(plan.teacher) if plan.teacher else None,
            origin=run.origin if run else None,
            tracking_uri=tracked.uri,
            mlflow_experiment=tracked.experiment,
            mlflow_run=tracked.id,
            evaluated_at_end=False,
            counted_from=experiment.model.loss.teacher_warmup.start,
            stop_file=str(plan.stop_file),
            code=run.code if run else training_digest(),
        )
        found.save()
        return found

    def judge(self, number: int) -> RungJudge | None:
        """What stops a trial early; None: nothing does."""
        plan, experiment = self.plan, self.experiment(number)
        rungs, control = experiment.evaluate_also, plan.control
        if plan.config.stopping.kind == "none":
            return None
        return RungJudge(
            book=plan.folder / VERDICTS,
            control=plan.sibling_folder(control) if control else None,
            stop_file=plan.stop_file,
            trial=number,
            rungs=rungs,
            rates=rates_at(experiment.model, rungs),
            rule=plan.config.stopping,
            metric=METRIC,
        )

    def finish_trial(self, number: int) -> None:
        """Tell study and MLflow how a trial ended; one that was only stopped stays as it is.

        A trial without an ending died more often than it may.
        """
        folder = self.plan.trial_folder(number)
        progress = TrialProgress.read(folder)
        curve = {entry.iteration: entry.metrics for entry in journal.read(folder) if METRIC in entry.metrics}
        last = curve.get(progress.iteration, {})
        reason = progress.reason
        if progress.ending == "stopped":
            self.tracked.close_stopped(number)
            return
        objectives = self.plan.config.objectives
        missing = [name for name in objectives if name not in last]
        if progress.ending == "finished" and missing:
            reason = f"it is finished and never reported {', '.join(missing)}"
        self.study.note(
            number,
            iteration=progress.iteration,
            fork=progress.fork,
            prefix=progress.prefix,
            trained_prefix=progress.trained,
            reason=reason,
            beta=last.get(BETA),
        )
        book = Verdicts(self.plan.folder / VERDICTS)
        judged = {verdict.rung: verdict.value for verdict in book.verdicts() if verdict.trial == number}
        if progress.ending == "finished" and not missing:
            self.study.tell(number, "complete", values=[last[name] for name in objectives], curve=judged)
        elif progress.ending == "stopped early":
            self.study.tell(number, "pruned", curve=judged)
        else:
            self.study.note(number, reason=reason or "its process died, more often than it may")
            self.study.tell(number, "fail", curve=judged)
        self.tracked.close_trial(number)
        if self.archive is not None:
            self.archive.try_to_push(folder)
        prefixes.collect(Path(self.plan.base.storage), int(self.plan.config.prefix_gib * 2**30))

    def finish_sibling(self, sibling: Sibling) -> TrialProgress:
        """Tell MLflow how a run beside the trials ended; returns how far it is."""
        folder = self.plan.sibling_folder(sibling)
        progress = TrialProgress.read(folder)
        self.tracked.close_sibling(folder)
        if self.archive is not None:
            self.archive.try_to_push(folder)
        return progress

    def confirmations(self) -> list[Sibling]:
        """The best trials and the preset with other seeds; none as long as trials are under way."""
        return list(confirmations(self.plan, self.study).values())

    def progress_of(self, sibling: Sibling) -> TrialProgress:
        """How far a run beside the trials is."""
        return TrialProgress.read(self.plan.sibling_folder(sibling))

    def recover(self) -> None:
        """Finish trials that ended after the last driver was killed, and complete those that were only half asked for.

        MLflow is told what it missed.
        """
        for number in self.study.running:
            self.study.resample(number)
            folder = self.plan.trial_folder(number)
            if Run.find(folder) is not None and TrialProgress.read(folder).over:
                self.finish_trial(number)
        self.tracked.catch_up()

    def bring_to_archive(self) -> bool:
        """Copy what is not in the archive yet of the search, its trials and their prefixes; returns whether all is."""
        if self.archive is None:
            return True
        trials = [self.plan.trial_folder(trial.number) for trial in self.study.trials]
        trials += self.plan.sibling_folders()
        shared = {Path(found) for folder in trials if (found := TrialProgress.read(folder).prefix)}
        return all(
            self.archive.try_to_push(folder, prune=folder not in shared)
            for folder in (*sorted(shared), *trials, self.plan.folder)
            if folder.exists()  # prefixes are removed when they are not used any more
        )

    def _bring_back(self) -> None:
        """Bring back from the archive what is lost of trials; of those that are over what the report needs."""
        if self.archive is None:
            return
        for trial in self.study.trials:
            folder, running = self.plan.trial_folder(trial.number), trial.state == TrialState.RUNNING
            if "folder" in trial.user_attrs and (running or Run.find(folder) is None):
                self.archive.fetch(folder, with_checkpoints=running)


def check_folders(plan: SearchPlan, study: Study, *, archived: bool) -> None:
    """Refuse a search of which trials are missing; with an archive those under way begin again.

    Raises:
        ExperimentError: names the trial, its folder and what helps.
    """
    for trial in study.trials:
        folder = plan.trial_folder(trial.number)
        begins_again = archived and trial.state == TrialState.RUNNING
        if "folder" in trial.user_attrs and Run.find(folder) is None and not begins_again:
            raise ExperimentError(
                f"trial {trial.number} of search {plan.name} was in {folder}, which is gone: restore it, name the"
                " --storage that has it, or start anew with another --name"
            )
