"""What a search varies: parameters by name, each fixed, in a range or one of several choices."""

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import TypeAdapter, ValidationError
from rich.table import Table

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.schedule import ramp_end
from dgnet_core.learning.config import Warmup
from dgnet_platform.errors import UserError
from dgnet_platform.search.parameters import CODE, PARAMETERS, Value, largest_code, ramp_of
from dgnet_platform.search.stopping import StoppingRule
from dgnet_platform.search.stopping import distances as distances_of


class SpaceError(UserError):
    """A space that cannot be searched; the message names the parameter and the remedy."""


# ----------------------------------------------------------------------------------------------------------------
# The space


@dataclass(frozen=True)
class Space:
    """What a search varies, by parameter; one that is not named has the base's value."""

    dimensions: Mapping[str, Any]
    """As YAML files and the command line have them: a value fixes a parameter, `{low: ..., high: ..., log: ..., step:
    ...}` is a range with both ends included, `{choices: [...]}` lists values. Kept in the order of PARAMETERS, with
    values of their types and nothing that is a default: this is what JSON holds of a space."""
    distributions: Mapping[str, BaseDistribution] = field(init=False, compare=False)
    """Optuna's, of the parameters that are searched."""

    def __post_init__(self) -> None:
        for name in self.dimensions:
            _check_known(name)
        found = {name: _dimension(name, self.dimensions[name]) for name in PARAMETERS if name in self.dimensions}
        object.__setattr__(self, "dimensions", MappingProxyType({name: kept for name, (kept, _) in found.items()}))
        searched = {name: distribution for name, (_, distribution) in found.items() if distribution is not None}
        object.__setattr__(self, "distributions", MappingProxyType(searched))

    @classmethod
    def default(cls, base: DGNetConfig) -> "Space":
        """The paper's own question (its section 3.3 and Figure 8) around a run's settings: re-id weights and warm-up.

        Warm-up starts stand on a grid of 5 % of the run, from 10 % to 50 %, that the base's own start is on. All else
        is fixed as the base has it, also what acts from the first iteration on (lambda_img, lambda_id, learning
        rates): trials that differ in it would share nothing.
        """
        found: dict[str, Any] = {name: parameter.read(base) for name, parameter in PARAMETERS.items()}
        loss = base.loss
        found["prim"] = {"low": 0.0, "high": 2 * loss.prim or 4.0}
        found["alpha"] = {"low": min(0.05, loss.alpha or 0.05), "high": max(1.0, loss.alpha), "log": True}
        step = max(1, base.iterations // 20)
        start = loss.teacher_warmup.start
        low = start - (start - math.ceil(0.1 * base.iterations)) // step * step  # the first one on the base's grid
        steps = (base.iterations // 2 - low) // step
        if steps >= 1:
            found["warmup_start"] = {"low": low, "high": low + steps * step, "step": step}
        ramp = ramp_of(base)
        found["ramp"] = {"low": max(1, ramp // 4), "high": 2 * ramp, "log": True}
        return cls(found)

    @property
    def searched(self) -> tuple[str, ...]:
        """Names of the parameters that are not fixed."""
        return tuple(self.distributions)

    def overridden(self, dimensions: Mapping[str, object]) -> "Space":
        """The space with other dimensions for some parameters.

        Raises:
            SpaceError: an unknown parameter, or a dimension that is none.
        """
        return Space({**self.dimensions, **dimensions})

    def texts(self) -> dict[str, str]:
        """The dimensions in words."""
        return {name: _in_words(dimension) for name, dimension in self.dimensions.items()}

    def values(self, name: str) -> Collection[Value]:
        """What a parameter may be: its value, choices or the ends of its range; none: it is not named."""
        if name not in self.dimensions:
            return ()
        dimension = self.dimensions[name]
        return _ends(dimension) if isinstance(dimension, Mapping) else (dimension,)

    def holds(self, name: str, value: Any) -> bool:
        """Whether a searched parameter can have a value."""
        distribution = self.distributions[name]
        try:
            return bool(distribution._contains(distribution.to_internal_repr(value)))
        except (ValueError, TypeError):
            return False

    def defaults(self, base: DGNetConfig) -> dict[str, Value] | None:
        """The base's own setting of the searched parameters, for a study's first trial.

        None if one of them lies outside its dimension: then the setting is no point of the space, and cannot be
        enqueued. Nothing is moved into the space, for that would be another setting: the first trial is then
        `apply(base, {})` all the same, and the study does not learn from it.
        """
        found = {name: PARAMETERS[name].read(base) for name in self.searched}
        return found if all(self.holds(name, value) for name, value in found.items()) else None

    def draw(self, count: int, seed: int) -> list[dict[str, Value]]:
        """Random points: values of the searched parameters."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
        return [study.ask(dict(self.distributions)).params for _ in range(count)]

    def apply(self, base: DGNetConfig, values: Mapping[str, object]) -> DGNetConfig:
        """The run of a trial.

        A parameter that has the base's own value changes nothing, so the base's setting is the base itself, also where
        its two groups of ramped weights start or ramp apart. Otherwise `warmup_start` and `ramp` hold for both groups:
        lambda_prim, and the largest of the code and cycle weights, are at their maxima `ramp` iterations after it.

        Args:
            base: all that the space does not set.
            values: of the searched parameters; one that is missing is the base's.

        Raises:
            SpaceError: a parameter that is not searched, or a value that is none for it.
        """
        chosen = {name: value for name, value in self.dimensions.items() if name not in self.distributions}
        for name, value in values.items():
            _check_known(name)
            if name not in self.distributions:
                raise SpaceError(f"{name} = {value!r}: it is not searched here")
            chosen[name] = _typed(name, value)
        changed = {name: value for name, value in chosen.items() if value != PARAMETERS[name].read(base)}
        ramp = chosen.get("ramp", ramp_of(base))

        try:
            for name, value in changed.items():
                base = PARAMETERS[name].write(base, value)
        except ValueError as error:
            raise SpaceError(f"{error} (in the space: {', '.join(changed)})") from None
        loss = base.loss
        teacher, code = loss.teacher_warmup, loss.code_warmup
        if "warmup_start" in changed:
            teacher, code = (replace(warmup, start=changed["warmup_start"]) for warmup in (teacher, code))
        if changed.keys() & {"prim", "ramp"}:
            teacher = _with_ramp(teacher, loss.prim, ramp)
        if changed.keys() & {*CODE, "ramp"}:
            code = _with_ramp(code, largest_code(loss), ramp)
        return replace(base, loss=replace(loss, teacher_warmup=teacher, code_warmup=code))

    def distances(self, base: DGNetConfig, stopping: StoppingRule, every: int = 1) -> tuple[int, ...]:
        """How many iterations after its ramp's end every trial of this space is judged at the earliest.

        Args:
            base: what all trials have in common.
            stopping: how often, and where.
            every: iterations between evaluations.

        Raises:
            SpaceError: a trial would not get to the maxima of its ramped weights, or not to all of its rungs, or has a
                value that no run can have.
        """
        for name in self.searched:
            for value in _ends(self.dimensions[name]):
                self.apply(base, {name: value})  # refuses what no run can have
        start, ramp = self._largest("warmup_start", base), self._largest("ramp", base)
        latest = max(start + ramp, ramp_end(self.apply(base, {})))
        if latest >= base.iterations:
            raise SpaceError(
                f"warmup_start up to {start:,} and ramp up to {ramp:,} end at iteration {latest:,}: runs have"
                f" {base.iterations:,}; use earlier starts, shorter ramps or longer runs"
            )
        try:
            return distances_of(base.iterations - latest, stopping, every)
        except ValueError as error:
            raise SpaceError(str(error)) from None

    def __rich__(self) -> Table:
        """The parameters, what they mean, and what is searched."""
        table = Table(title="Search space", title_justify="left")
        for column in ("parameter", "values", "meaning"):
            table.add_column(column, overflow="fold")
        for name, text in self.texts().items():
            table.add_row(name, text, PARAMETERS[name].meaning, style=None if name in self.distributions else "dim")
        return table

    def _largest(self, name: str, base: DGNetConfig) -> int:
        dimension = self.dimensions.get(name, PARAMETERS[name].read(base))
        if not isinstance(dimension, Mapping):
            return dimension
        return max(dimension["choices"]) if "choices" in dimension else dimension["high"]


# ----------------------------------------------------------------------------------------------------------------
# Details


def _ends(dimension: Mapping[str, Any]) -> Collection[Any]:
    """The options of a dimension that is searched, or the ends of its range."""
    return dimension["choices"] if "choices" in dimension else (dimension["low"], dimension["high"])


def _check_known(name: str) -> None:
    if name not in PARAMETERS:
        raise SpaceError(f"unknown parameter {name!r}: {_advice(name, PARAMETERS)}")


def _advice(name: object, known: Collection[str]) -> str:
    close = get_close_matches(str(name), known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"


def _typed(name: str, value: object) -> Any:
    """A value from a file or the command line in its parameter's type."""
    if isinstance(value, bool):  # pydantic would take it for 0 or 1
        raise SpaceError(f"{name} = {value!r}: true and false are no values of it")
    try:
        return TypeAdapter(PARAMETERS[name].type).validate_python(value)
    except ValidationError as error:
        raise SpaceError(f"{name} = {value!r}: {error.errors()[0]['msg']}") from None


def _dimension(name: str, given: Any) -> tuple[Any, BaseDistribution | None]:
    """A dimension with values of its parameter's type, and its distribution; None: it is fixed."""
    if not isinstance(given, Mapping):
        return _typed(name, given), None
    keys = ("choices",) if "choices" in given else ("low", "high", "log", "step")
    for key in given:
        if key not in keys:
            raise SpaceError(f"{name}: unknown key {key!r}: {_advice(key, keys)}")
    if "choices" in given:
        options = given["choices"]
        if not isinstance(options, list | tuple):
            raise SpaceError(f"{name}: choices = {options!r}: a list is needed")
        options = [_typed(name, option) for option in options]
        if len(set(options)) < len(options):
            raise SpaceError(f"{name}: choices {', '.join(map(_text, options))}: each may be there only once")
        return {"choices": options}, _distribution(name, CategoricalDistribution, {"choices": options})
    for key in ("low", "high"):
        if given.get(key) is None:
            raise SpaceError(f"{name}: {key} is missing: {{low: ..., high: ...}}, {{choices: [...]}} or a value")
    kept = {key: _typed(name, given[key]) for key in ("low", "high", "step") if given.get(key) is not None}
    low, high, log = kept["low"], kept["high"], given.get("log", False)
    if isinstance(low, str):
        raise SpaceError(f"{name}: a range of texts: list the choices, {{choices: [{low}, {high}]}}")
    if type(log) is not bool:
        raise SpaceError(f"{name}: log = {log!r}: true or false is needed")
    if low == high:
        raise SpaceError(f"{name}: low = high = {low:g} leaves nothing to search: give the value itself to fix it")
    kept = {"low": low, "high": high} | ({"log": True} if log else {}) | kept
    found = _distribution(name, IntDistribution if isinstance(low, int) else FloatDistribution, kept)
    if found.high != high:
        raise SpaceError(
            f"{name}: step = {kept['step']:g} does not lead from low = {low:g} to high = {high:g}: use high ="
            f" {max(found.high, low + kept['step']):g} or another step"
        )
    return kept, found


def _distribution(name: str, kind: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Optuna's distribution, which refuses what is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a step that does not lead to high is refused, not mended
        try:
            return kind(**values)
        except ValueError as error:
            raise SpaceError(f"{name} = {values}: {error}") from None


def _in_words(dimension: Any) -> str:
    if not isinstance(dimension, Mapping):
        return _text(dimension)
    if "choices" in dimension:
        return ", ".join(map(_text, dimension["choices"]))
    step = f", step {_text(dimension['step'])}" if "step" in dimension else ""
    return f"{_text(dimension['low'])} to {_text(dimension['high'])}{', log' if 'log' in dimension else step}"


def _with_ramp(warmup: Warmup, maximum: float, ramp: int) -> Warmup:
    """The warm-up after which a weight of this maximum is reached in exactly `ramp` iterations."""
    slope = maximum / ramp or 1.0
    while math.ceil(maximum / slope) > ramp or slope * ramp < maximum:  # rounding
        slope = math.nextafter(slope, math.inf)
    return replace(warmup, slope=slope)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
