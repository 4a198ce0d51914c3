"""What came out of a search so far, read from its study and its trials' folders, and where it is published."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.ranking.intervals import estimate
from dgnet_platform.runs import journal
from dgnet_platform.runs.presets import dgnet_experiment
from dgnet_platform.search.config import BETA, METRIC, METRIC_BY_BETA, SECOND
from dgnet_platform.search.confirmation import CONFIRMED, confirmations, confirmed, finished_queries
from dgnet_platform.search.plan import SearchPlan
from dgnet_platform.search.report.figures import figures
from dgnet_platform.search.report.leaderboard import (
    FAILED,
    FINISHED,
    STOPPED,
    TrialRow,
    against_preset,
    as_text,
    front,
    in_points,
    leaderboard,
    mean_and_deviation,
    ranked,
    unconfirmed,
    varying,
    winner_of,
)
from dgnet_platform.search.space import PARAMETERS
from dgnet_platform.search.study import Study, is_base
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.storage.files import naming
from dgnet_platform.storage.serialize import differences, to_dict
from dgnet_platform.tracking.client import UNREACHABLE, TrackedRun
from dgnet_platform.tracking.notes import markdown_table, resumes

_STATES = {TrialState.COMPLETE: FINISHED, TrialState.PRUNED: STOPPED, TrialState.FAIL: FAILED}
_log = logging.getLogger(__name__)


class Results:
    """A search's trials as the report needs them, also while they run."""

    def __init__(self, plan: SearchPlan, study: Study):
        self.plan, self.study = plan, study
        self._seen: dict[Path, _Seen] = {}

    @property
    def complete(self) -> bool:
        """Whether no trial is left to run."""
        again = confirmations(self.plan, self.study).values()
        over = all(TrialProgress.read(self.plan.sibling_folder(run)).over for run in again)
        return not self.study.missing and not self.study.running and over

    def rows(self) -> list[TrialRow]:
        """All trials, by their numbers."""
        return [self._row(trial) for trial in self.study.trials]

    def rated_rows(self) -> list[TrialRow]:
        """The same with what takes a moment: how sure their figures are."""
        again = confirmed(self.plan, self.study)
        rows = [replace(row, confirmation=again.get(row.number)) for row in self.rows()]
        preset = next((row for row in rows if row.is_preset and row.state == FINISHED), None)
        return rows if preset is None else [self._compared(row, preset) for row in rows]

    def sibling_rows(self) -> list[TrialRow]:
        """Runs beside the trials that have begun: the control, and what confirms the best."""
        return [self._progress(folder, -1) for folder in self.plan.sibling_folders()]

    @property
    def runs_to_confirm(self) -> int:
        """Runs with other seeds that have not begun; as long as trials are missing, the most that there will be."""
        study, plan = self.study, self.plan
        if study.missing or study.running:
            return plan.config.confirm * min(study.target, 1 + CONFIRMED)
        return sum(not plan.sibling_folder(run).exists() for run in confirmations(plan, study).values())

    def _compared(self, row: TrialRow, preset: TrialRow) -> TrialRow:
        """A trial with its difference to the preset, if both are finished."""
        last, storage = self.plan.base.model.iterations, self.plan.folder.parent
        if row is preset or row.state != FINISHED:
            return row
        one, other = (finished_queries(storage / name, last) for name in (row.name, preset.name))
        if one is None or other is None:
            return row
        return replace(row, difference=estimate(one["best"] - other["best"], one["person_ids"]))

    def _progress(self, folder: Path, number: int) -> TrialRow:
        """How far a run is, whatever it is for."""
        progress = TrialProgress.read(folder)
        seen = self._seen_of(folder)
        iterations = max(seen.iteration, progress.iteration if progress.over else 0)
        trained = progress.trained + max(0, iterations - progress.fork)
        if progress.since is not None and progress.ending is None:  # it trains its prefix
            iterations = self._seen_of(Path(progress.prefix)).iteration
            trained += max(0, iterations - progress.since)
        return TrialRow(
            number=number,
            name=folder.name,
            state="saved" if progress.ending == "stopped" else progress.phase,
            reason=progress.reason,
            objective=seen.figures.get(METRIC),
            best_beta=seen.figures.get(BETA),
            iterations=iterations,
            shared_iterations=progress.fork,
            trained_iterations=trained,
        )

    def _row(self, trial: FrozenTrial) -> TrialRow:
        plan, number = self.plan, trial.number
        folder = plan.trial_folder(number)
        row, seen = self._progress(folder, number), self._seen_of(folder)
        judged = trial.intermediate_values
        base, given = plan.base.model, self.study.values(number)
        marker = f"{METRIC_BY_BETA}/"
        return replace(
            row,
            state=_STATES.get(trial.state, row.state),
            reason=trial.user_attrs.get("reason", row.reason),
            values={name: given.get(name, PARAMETERS[name].read(base)) for name in plan.space.searched},
            objective=trial.values[0] if trial.state == TrialState.COMPLETE else seen.figures.get(METRIC),
            second=seen.figures.get(SECOND.get(plan.config.second, "")),
            is_preset=is_base(trial),
            gain=judged[max(judged)] if judged and plan.config.stopping.needs_control else None,
            by_beta={float(k.removeprefix(marker)): v for k, v in seen.figures.items() if k.startswith(marker)},
        )

    def _seen_of(self, folder: Path) -> "_Seen":
        seen = self._seen.setdefault(folder, _Seen(folder))
        seen.update()
        return seen

    def costs(self) -> dict[str, int]:
        """Iterations that were trained, and how many it would have been without prefixes, and without stopping."""
        rows, whole = [*self.rows(), *self.sibling_rows()], self.plan.base.model.iterations
        return {
            "spent": sum(row.trained_iterations for row in rows),
            "without_sharing": sum(row.iterations for row in rows),
            "without_stopping": sum(whole if row.state == STOPPED else row.iterations for row in rows),
        }

    def note(self, rows: Sequence[TrialRow]) -> str:
        """The search's description in MLflow: leaderboard, verdict, what to look at, how to resume."""
        names, pictures = varying(rows), sorted((self.plan.folder / "figures").glob("*.png"))
        lines = [
            [row.number, row.state, "-" if row.score is None else f"{100 * row.score:.2f}", as_text(row.best_beta)]
            + [in_points(row.difference), mean_and_deviation(row.confirmation)]
            + [as_text(row.values.get(name)) for name in names]
            + [row.iterations]
            for row in ranked(rows)[:20]
        ]
        board = markdown_table(
            ["trial", "state", "mAP, %", "beta", "- preset", "other seeds", *names, "trained to"], lines
        )
        parts = [board, against_preset(rows), *unconfirmed(rows)]
        if pictures:
            parts.append(f"Look first at `figures/{pictures[0].name}`, below *Artifacts*.")
        fixed = [f"`{name}` {text}" for name, text in self.plan.space.texts().items()]
        parts += [f"Searched around the *{self.plan.preset}* preset: {', '.join(fixed)}.", resumes(self.plan.folder)]
        return "\n\n".join(filter(None, parts))

    def publish(self, rows: Sequence[TrialRow], tracked: TrackedRun) -> Path | None:
        """Write leaderboard, pictures and the best settings into the search's folder and to its MLflow run, and end it.

        Args:
            rows: `rated_rows`.
            tracked: the search in MLflow.

        Returns:
            The file of the best trial's settings, which `jobs/train_market.py --config` takes; None: there is none.

        Raises:
            OSError: the folder cannot be written. That MLflow is away is no error: the same command tells it later.
        """
        folder, best = self.plan.folder, winner_of(rows)
        files, pictures = [folder / "leaderboard.csv"], figures(self.plan.space, rows)
        with naming(folder):
            leaderboard(rows).to_csv(files[0], index=False)
            if best is not None:
                files.append(folder / "best.yaml")
                files[1].write_text(self._settings_yaml(best.number), encoding="utf-8")
            for old in folder.glob("front-*.yaml"):
                old.unlink()
            for row in front(rows):
                files.append(folder / f"front-{row.number:03d}.yaml")
                files[-1].write_text(self._settings_yaml(row.number), encoding="utf-8")
            for name, picture in pictures.items():
                (folder / "figures").mkdir(exist_ok=True)
                picture.save(folder / "figures" / f"{name}.png")
        metrics = {f"search/iterations_{name}": float(value) for name, value in self.costs().items()}
        metrics |= {f"search/trials_{s}": float(sum(r.state == s for r in rows)) for s in (FINISHED, STOPPED, FAILED)}
        if best is not None and best.score is not None:
            metrics |= {"search/best_mAP": best.score, "search/best_beta": best.best_beta or 0.0}
            if best.confirmation is not None and best.confirmation.mean is not None:
                metrics["search/best_mAP_other_seeds"] = best.confirmation.mean
        try:
            for file in files:
                tracked.log_file(file)
            for name, picture in pictures.items():
                tracked.log_picture(picture, f"figures/{name}.png")
            tracked.log(metrics, step=len(rows))
            tracked.describe(self.note(rows))
            if best is not None:
                tracked.tag({"dgnet.best_trial": best.name})
        except UNREACHABLE as error:
            _log.warning("MLflow was not told of the search's results: %s", error)
        else:
            if self.complete:
                tracked.close("FINISHED")
            else:
                tracked.close("KILLED", "stopped")
        return files[1] if best is not None else None

    def settings(self, number: int) -> DGNetConfig:
        """What a trial trained, with the weight of f_fine that was the best for it."""
        model, beta = self.plan.model(self.study.values(number)), self.study.notes(number).get("beta")
        return model if beta is None else replace(model, beta=beta)

    def _settings_yaml(self, number: int) -> str:
        """What a trial has in another way than the preset at some length; the preset's name stands above.

        A command line lays it over the preset at a length that follows its data set, so all that scales is written.
        """
        plan = self.plan
        preset = dgnet_experiment(plan.preset, plan.base.model.num_classes, plan.store.count("train"))
        longer = preset.model.rescaled(2 * preset.model.iterations)
        before = {"model": to_dict(preset.model), "baseline": to_dict(preset.baseline)}
        after = {"model": to_dict(self.settings(number)), "baseline": to_dict(plan.base.baseline)}
        found = differences({**before, "model": to_dict(longer)}, after) | differences(before, after)
        changed: dict[str, Any] = {}
        for path, (_, value) in found.items():
            section = changed
            *above, name = path.split(".")
            for part in above:
                section = section.setdefault(part, {})
            section[name] = value
        head = f"# trial {number} of search {plan.name}; for jobs/train_market.py --preset {plan.preset} --config\n"
        return head + (yaml.safe_dump(changed, sort_keys=False) if changed else "{}\n")


class _Seen:
    """What a trial's journal has said so far."""

    def __init__(self, folder: Path):
        self._tail = journal.Tail(folder)
        self.figures: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def iteration(self) -> int:
        return self._tail.iteration

    def update(self) -> None:
        with self._lock:
            for entry in self._tail.read():
                found = {name: value for name, value in entry.metrics.items() if name.startswith("val/")}
                self.figures = found or self.figures
