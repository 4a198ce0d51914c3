"""The Optuna study of a search: the only truth about which trials there are, and how they ended.

Its file is Optuna's journal, which optuna-dashboard opens. A trial is RUNNING from the moment it is asked for until it
is over, whatever happens to the process that asked: who comes next hands the same trial out again. What is asked for is
a function of the search's seed, the trial's number and the trials told before.
"""

import copy
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_platform.errors import UserError
from dgnet_platform.search.space import Space, Value
from dgnet_platform.storage.files import naming
from dgnet_platform.storage.serialize import differences

FILE = "study.jsonl"
STARTUP = 5
"""Trials that are drawn at random before the sampler learns from them."""
BEST = 3
"""Trials that are taken over from an earlier study."""
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
_SEARCH, _TARGET, _BASE, _ENDED = "search", "target", "base", "ended"


class StudyError(UserError):
    """A study that cannot be continued; the message says what differs and what helps."""


class Study:
    """Trials of a search."""

    def __init__(
        self,
        folder: Path,
        name: str,
        identity: Mapping[str, Any],
        space: Space,
        base: DGNetConfig,
        *,
        seed: int,
        objectives: int = 1,
        concurrent: bool = False,
        warm_start: Sequence[str] = (),
    ):
        """Open the study in a search's folder, or make it, with the base's own setting as its first trial.

        Args:
            folder: of the search.
            name: of the search.
            identity: all that decides its results, as JSON holds it.
            space: what is searched.
            base: around which settings.
            seed: of what is asked for.
            objectives: how many figures a trial is told with, all of them the larger the better.
            concurrent: whether trials run beside each other: the sampler then keeps away from those under way.
            warm_start: earlier studies as PATH:STUDY. Their best trials are tried after the first one, as far as they
                lie in this space; only when the study is made.

        Raises:
            StudyError: there is one of that name with other settings, or an earlier study cannot be read.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._base, self._seed, self._concurrent = space, base, seed, concurrent
        path = folder / FILE
        _repair(path)
        storage = JournalStorage(_Log(str(path)))
        identity = json.loads(json.dumps(identity))
        names = [summary.study_name for summary in storage.get_all_studies()]
        if name in names:
            self.study = optuna.load_study(study_name=name, storage=storage)
            known = self.study.user_attrs.get(_SEARCH)
            if known is not None:
                self._refuse_other(name, known, identity)
                self._begin_again()
                return
            optuna.delete_study(study_name=name, storage=storage)  # killed while it was made
        earlier = [point for study in warm_start for point in _earlier(study, space)]
        self.study = optuna.create_study(
            study_name=name, storage=storage, directions=[StudyDirection.MAXIMIZE] * objectives
        )
        defaults = space.defaults(base)
        self.study.enqueue_trial(defaults or {}, user_attrs={_BASE: True})
        for point, source in earlier:
            self.study.enqueue_trial(point, user_attrs={"from": source}, skip_if_exists=True)
        self.study.set_user_attr(_SEARCH, identity)

    @staticmethod
    def _refuse_other(name: str, known: Any, identity: Any) -> None:
        if changed := differences(known, identity):
            listed = "\n".join(f"  {path}: {before!r} -> {after!r}" for path, (before, after) in changed.items())
            raise StudyError(
                f"search {name} exists and is another one:\n{listed}\nPass another --name, or its own settings"
            )

    # --------------------------------------------------------------------------------------------------------
    # How many

    @property
    def target(self) -> int:
        """Trials that shall be done; 0: not said yet."""
        return int(self.study.user_attrs.get(_TARGET, 0))

    def set_target(self, trials: int, more: int = 0) -> None:
        """Say how many trials shall be done.

        Args:
            trials: so many; 0: as many as before.
            more: so many more, if those that were wanted are over; else they were added already.
        """
        target = trials or self.target
        if more and not self.missing and not self.running:
            target += more
        if target != self.target:
            self.study.set_user_attr(_TARGET, target)

    @property
    def missing(self) -> int:
        """Trials still to be asked for: failed ones are replaced, up to a quarter of all once another has ended."""
        states = [trial.state for trial in self.trials]
        failed, replaced = states.count(TrialState.FAIL), max(2, self.target // 4)
        if not any(state in DONE for state in states):
            replaced = failed
        there = sum(states.count(state) for state in (*DONE, TrialState.RUNNING)) + max(0, failed - replaced)
        return max(0, self.target - there)

    # --------------------------------------------------------------------------------------------------------
    # Trials

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials that were asked for, by their numbers, as they ended."""
        found = self.study.get_trials(deepcopy=False)
        return [_as_ended(trial) for trial in found if trial.state != TrialState.WAITING]

    @property
    def running(self) -> list[int]:
        """Numbers of the trials that are not over."""
        return [trial.number for trial in self.trials if trial.state == TrialState.RUNNING]

    def ask(self) -> int:
        """A new trial's number."""
        everyone = self.study.get_trials(deepcopy=False)
        waiting = [trial.number for trial in everyone if trial.state == TrialState.WAITING]
        number = min(waiting, default=len(everyone))
        self._sample_for(number)
        return self._complete(self.study.ask())

    def _begin_again(self) -> None:
        """Should all trials have failed, for a reason outside the space, the base's setting is tried once more."""
        trials = self.trials
        if trials and all(trial.state == TrialState.FAIL for trial in trials):
            self.study.enqueue_trial(self._space.defaults(self._base) or {}, user_attrs={_BASE: True})

    def resample(self, number: int) -> None:
        """Complete a trial that was asked for by a command that was killed: the same values come out."""
        self._sample_for(number)
        self._complete(self._trial(number))

    def trial(self, number: int) -> FrozenTrial:
        """A trial as it is now."""
        return _as_ended(self.study.get_trials(deepcopy=False)[number])

    def values(self, number: int) -> dict[str, Value]:
        """Values of a trial's parameters."""
        return dict(self.trial(number).params)

    def notes(self, number: int) -> Mapping[str, Any]:
        """What was kept about a trial."""
        return self.trial(number).user_attrs

    def note(self, number: int, **values: Any) -> None:
        """Keep something about a trial that is not over yet."""
        trial = self._trial(number)
        for name, value in values.items():
            trial.set_user_attr(name, value)

    def tell(
        self,
        number: int,
        state: Literal["complete", "pruned", "fail"],
        *,
        values: Sequence[float] | None = None,
        curve: Mapping[int, float] | None = None,
    ) -> None:
        """Say how a trial ended.

        Args:
            number: the trial's.
            state: finished, stopped early, or failed.
            values: its objectives, if it is finished.
            curve: what it was judged by, by the rung's place; nothing with several objectives.
        """
        trial = self._trial(number)
        known = self.trial(number).intermediate_values
        for step, figure in (curve or {}).items():
            if step not in known:
                trial.report(figure, step)
        if self._is_outside(trial) and state != "fail":
            # TPE draws jointly only what all complete and pruned trials have: one without parameters would leave it
            # nothing, and each parameter would be drawn by itself until the search ends.
            trial.set_user_attr(_ENDED, {"state": state, "values": values})
            values, state = None, "fail"
        self.study.tell(number, values, state=TrialState[state.upper()])

    def _sample_for(self, number: int, name: str = "") -> None:
        """Have the next values drawn by a sampler that knows nothing but the study.

        A parameter that is drawn by itself has a seed of its own: what comes out does not depend on what was drawn
        before by a command that was killed.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.sampler = TPESampler(
                seed=_seed(self._seed, number, name),
                multivariate=True,
                constant_liar=self._concurrent,
                n_startup_trials=STARTUP,
            )

    def _complete(self, trial: optuna.Trial) -> int:
        """Give a trial all its values; those that it has stay."""
        if self._is_outside(trial):
            return trial.number
        for name, distribution in self._space.distributions.items():
            self._sample_for(trial.number, name)
            _suggest(trial, name, distribution)
        return trial.number

    def _is_outside(self, trial: optuna.Trial) -> bool:
        """Whether a trial is the base's setting and no point of the space."""
        return _BASE in trial.user_attrs and self._space.defaults(self._base) is None

    def _trial(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.study, self.trial(number)._trial_id)


class _Log(JournalFileBackend):
    """Optuna's journal, whose errors name its file."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with naming(Path(self._file_path)):
            super().append_logs(logs)


def is_base(trial: FrozenTrial) -> bool:
    """Whether a trial was made with the base's own setting."""
    return _BASE in trial.user_attrs


def _as_ended(trial: FrozenTrial) -> FrozenTrial:
    """A trial with its own end, where Optuna is told that it failed (see `Study.tell`)."""
    ended = trial.user_attrs.get(_ENDED)
    if ended is None or trial.state != TrialState.FAIL:
        return trial
    found = copy.copy(trial)
    found.state, found.values = TrialState[ended["state"].upper()], ended["values"]
    return found


def _suggest(trial: optuna.Trial, name: str, distribution: Any) -> None:
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(name, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    else:
        assert isinstance(distribution, FloatDistribution)
        trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _seed(*parts: object) -> int:
    """One seed from several things, below 2^32."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:4])


def _repair(path: Path) -> None:
    """Cut half a line off the end of a journal, which a crash left there."""
    if not path.exists():
        return
    with naming(path), path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
            os.fsync(file.fileno())


def _earlier(source: str, space: Space) -> list[tuple[dict[str, Value], str]]:
    """The best points of an earlier study that lie in a space, and where each comes from."""
    path, _, name = source.rpartition(":")
    if not path or not Path(path).is_file():
        raise StudyError(f"--warm-start {source}: name a study's file and its name, such as runs/search/{FILE}:search")
    storage = JournalStorage(JournalFileBackend(path))
    names = [study.study_name for study in storage.get_all_studies()]
    if name not in names:
        raise StudyError(f"--warm-start {source}: {path} has no study {name!r}, only {', '.join(names) or 'none'}")
    study = optuna.load_study(study_name=name, storage=storage)
    done = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    points: list[tuple[dict[str, Value], str]] = []
    for trial in sorted(done, key=lambda trial: trial.values[0], reverse=True)[:BEST]:
        point = {key: value for key, value in trial.params.items() if key in space.searched and space.holds(key, value)}
        if point:
            points.append((point, f"{name} {trial.number}"))
    return points
