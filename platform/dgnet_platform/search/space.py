"""What a search varies: parameters by name, each fixed, in a range or one of several choices."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from rich.table import Table

from dgnet_core.dgnet.config import DGNetConfig, SoftLabel
from dgnet_core.dgnet.schedule import ramp_end
from dgnet_core.learning.config import Warmup
from dgnet_platform.search.stopping import StoppingRule
from dgnet_platform.search.stopping import distances as distances_of

Value = float | int | str


class SpaceError(ValueError):
    """A space that cannot be searched; the message names the parameter and the remedy."""


# ----------------------------------------------------------------------------------------------------------------
# Dimensions


@dataclass(frozen=True)
class Fixed:
    """A parameter that is not searched."""

    value: Value
    """What it is."""

    def __str__(self) -> str:
        return _text(self.value)


@dataclass(frozen=True)
class Range:
    """A number between two others, both included."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Search its logarithm: for scales."""
    step: float | None = None
    """Only values low + k step; None: all of them."""

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            value = getattr(self, name)
            if not _is_number(value) and not (name == "step" and value is None):
                raise SpaceError(f"{name} = {value!r}: a finite number is needed")
        if type(self.log) is not bool:
            raise SpaceError(f"log = {self.log!r}: true or false is needed")
        if self.low > self.high:
            raise SpaceError(f"low = {self.low:g} is above high = {self.high:g}: swap them")
        if self.low == self.high:
            raise SpaceError(f"low = high = {self.low:g} leaves nothing to search: give the value itself to fix it")
        if self.log and self.low <= 0:
            raise SpaceError(f"low = {self.low:g} has no logarithm: use low > 0 or log = false")
        if self.step is None:
            return
        if self.log:
            raise SpaceError(f"step = {self.step:g} with log = true: use one of them, or list the choices")
        if self.step <= 0:
            raise SpaceError(f"step = {self.step:g}: must be positive")
        steps = (self.high - self.low) / self.step
        if not math.isclose(steps, round(steps), abs_tol=1e-6) or round(steps) < 1:
            reached = self.low + max(1, math.floor(steps + 1e-6)) * self.step
            raise SpaceError(
                f"step = {self.step:g} does not lead from low = {self.low:g} to high = {self.high:g}: use high ="
                f" {reached:g} or another step"
            )

    def __str__(self) -> str:
        how = ", log" if self.log else f", step {_text(self.step)}" if self.step is not None else ""
        return f"{_text(self.low)} to {_text(self.high)}{how}"


@dataclass(frozen=True)
class Choice:
    """One of several values."""

    options: tuple[Value, ...]
    """The values, all different."""

    def __post_init__(self) -> None:
        if isinstance(self.options, str) or not isinstance(self.options, list | tuple):
            raise SpaceError(f"choices = {self.options!r}: a list is needed")
        object.__setattr__(self, "options", tuple(self.options))
        if not all(isinstance(option, str | int | float) for option in self.options):
            raise SpaceError(f"choices = {list(self.options)!r}: numbers or texts are needed")
        if not self.options:
            raise SpaceError("choices are empty: list at least one")
        if len(set(self.options)) < len(self.options):
            raise SpaceError(f"choices {', '.join(map(_text, self.options))}: each may be there only once")

    def __str__(self) -> str:
        return ", ".join(map(_text, self.options))


Dimension = Fixed | Range | Choice


# ----------------------------------------------------------------------------------------------------------------
# Parameters


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Something that a search may vary."""

    meaning: str
    """In words, with the paper's name."""
    read: Callable[[DGNetConfig], Value]
    """Its value in a run."""
    kind: type[float] | type[int] | type[str] = float
    """Type of its values."""
    least: float = 0.0
    """Smallest value that is allowed."""
    above: bool = False
    """Whether `least` itself is not allowed."""
    options: tuple[str, ...] = ()
    """All values of a text."""

    def typed(self, value: object) -> Value:
        """A value from a file or the command line in the parameter's type.

        Raises:
            SpaceError: it is of another type or out of bounds.
        """
        if self.kind is str:
            if value not in self.options:
                raise SpaceError(f"{value!r}: choose one of {', '.join(self.options)}")
            return str(value)
        number = self.number(value)
        if number < self.least or (self.above and number == self.least):
            raise SpaceError(f"{number:g}: must be {'more than' if self.above else 'at least'} {self.least:g}")
        return number

    def number(self, value: object) -> float | int:
        """As `typed`, of a number without bounds, such as a step."""
        needed = "an integer" if self.kind is int else "a number"
        if isinstance(value, str):  # YAML reads 1e-4 as a text
            try:
                value = float(value)
            except ValueError:
                raise SpaceError(f"{value!r}: {needed} is needed") from None
        if not isinstance(value, int | float) or not _is_number(value) or (self.kind is int and value != int(value)):
            raise SpaceError(f"{value!r}: {needed} is needed")
        return self.kind(value)  # pyright: ignore[reportReturnType]


def _weight(section: str, name: str, meaning: str, *, above: bool = False) -> Parameter:
    return Parameter(meaning=meaning, read=lambda config: getattr(getattr(config, section), name), above=above)


def _ramp_of(config: DGNetConfig) -> int:
    """Iterations from the warm-up start until the largest ramped weight that a run has is at its maximum."""
    loss = config.loss
    teacher = loss.teacher_warmup.end(loss.prim) - loss.teacher_warmup.start
    code = loss.code_warmup.end(_largest_code(config)) - loss.code_warmup.start
    return teacher or code or 1


def _largest_code(config: DGNetConfig) -> float:
    return max(config.loss.appearance_code, config.loss.structure_code, config.loss.cycle)


PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        "image": _weight("loss", "image", "lambda_img, reconstruction of the image (Eq. 1, 2)"),
        "generated_identity": _weight("loss", "generated_identity", "lambda_id, identity of generated images (Eq. 6)"),
        "prim": _weight("loss", "prim", "lambda_prim at its maximum (Eq. 8)"),
        "alpha": _weight("loss", "alpha", "lambda_fine / lambda_prim (Eq. 9)"),
        "appearance_code": _weight("loss", "appearance_code", "maximum weight of the appearance code's term (Eq. 4)"),
        "structure_code": _weight("loss", "structure_code", "maximum weight of the structure code's term (Eq. 5)"),
        "cycle": _weight("loss", "cycle", "maximum weight of the cycle term (release)"),
        "warmup_start": Parameter(
            kind=int,
            meaning="last iteration at which all ramped weights are 0, of both groups (section 3.3)",
            read=lambda config: config.loss.teacher_warmup.start,
        ),
        "ramp": Parameter(
            kind=int,
            least=1,
            meaning="iterations from there to the maxima, of both groups (section 3.3)",
            read=_ramp_of,
        ),
        "soft_label": Parameter(
            kind=str,
            options=get_args(SoftLabel),
            meaning="target of L_prim",
            read=lambda config: config.recipe.soft_label,
        ),
        "appearance_lr": _weight("optim", "appearance_lr", "learning rate of the appearance encoder", above=True),
        "generator_lr": _weight("optim", "generator_lr", "learning rate of structure encoder and decoder", above=True),
        "discriminator_lr": _weight("optim", "discriminator_lr", "learning rate of the discriminator", above=True),
    }
)
"""Everything that can be searched, by name."""

_CODE = {"appearance_code", "structure_code", "cycle"}
_RATES = {"appearance_lr", "generator_lr", "discriminator_lr"}
_WEIGHTS = {"image", "generated_identity", "prim", "alpha", *_CODE}


# ----------------------------------------------------------------------------------------------------------------
# The space


@dataclass(frozen=True)
class Space:
    """The dimensions of a search by the name of their parameter; a parameter without one is the base's."""

    dimensions: Mapping[str, Dimension]
    """In the order of PARAMETERS, with values of their types."""

    def __post_init__(self) -> None:
        for name in self.dimensions:
            _known(name)
        typed = {name: _typed(name, self.dimensions[name]) for name in PARAMETERS if name in self.dimensions}
        object.__setattr__(self, "dimensions", MappingProxyType(typed))

    @classmethod
    def default(cls, base: DGNetConfig) -> "Space":
        """The paper's own question (its section 3.3 and Figure 8) around a run's settings: re-id weights and warm-up.

        Warm-up starts stand on a grid of 5 % of the run, from 10 % to 50 %, that the base's own start is on. All else
        is fixed as the base has it, also what acts from the first iteration on (lambda_img, lambda_id, learning
        rates): trials that differ in it would share nothing.
        """
        fixed: dict[str, Dimension] = {name: Fixed(parameter.read(base)) for name, parameter in PARAMETERS.items()}
        loss = base.loss
        fixed["prim"] = Range(0.0, 2 * loss.prim or 4.0)
        fixed["alpha"] = Range(min(0.05, loss.alpha or 0.05), max(1.0, loss.alpha), log=True)
        step = max(1, base.iterations // 20)
        start = loss.teacher_warmup.start
        low = start - (start - math.ceil(0.1 * base.iterations)) // step * step  # the first one on the base's grid
        steps = (base.iterations // 2 - low) // step
        fixed["warmup_start"] = Range(low, low + steps * step, step=step) if steps >= 1 else Fixed(start)
        ramp = _ramp_of(base)
        fixed["ramp"] = Range(max(1, ramp // 4), 2 * ramp, log=True)
        return cls(fixed)

    @property
    def searched(self) -> tuple[str, ...]:
        """Names of the parameters that are not fixed."""
        return tuple(name for name, dimension in self.dimensions.items() if not isinstance(dimension, Fixed))

    def overridden(self, values: Mapping[str, object]) -> "Space":
        """The space with other dimensions for some parameters.

        Args:
            values: by parameter as they come from a YAML file or the command line: a scalar fixes it, `{low: ..., high:
                ..., log: ..., step: ...}` is a range, `{choices: [...]}` are choices; a `Dimension` is one.

        Raises:
            SpaceError: an unknown parameter, or a dimension that is none.
        """
        return Space({**self.dimensions, **{name: _parsed(_known(name), value) for name, value in values.items()}})

    def values(self) -> dict[str, Any]:
        """The dimensions as `overridden` takes them, in what JSON and YAML hold."""
        return {name: _plain(dimension) for name, dimension in self.dimensions.items()}

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distributions of the searched parameters."""
        return {name: _distribution(name, self.dimensions[name]) for name in self.searched}

    def defaults(self, base: DGNetConfig) -> dict[str, Value] | None:
        """The base's own setting of the searched parameters, for a study's first trial.

        None if one of them lies outside its dimension: then the setting is no point of the space, and cannot be
        enqueued. Nothing is moved into the space, for that would be another setting: the first trial is then
        `apply(base, {})` all the same, and the study does not learn from it.
        """
        found = {name: PARAMETERS[name].read(base) for name in self.searched}
        inside = all(_contains(self.dimensions[name], value) for name, value in found.items())
        return found if inside else None

    def draw(self, rng: np.random.Generator) -> dict[str, Value]:
        """A random point: values of the searched parameters."""
        return {name: _draw(name, self.dimensions[name], rng) for name in self.searched}

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
        chosen: dict[str, Any] = {n: d.value for n, d in self.dimensions.items() if isinstance(d, Fixed)}
        for name, value in values.items():
            if name not in self.searched:
                raise SpaceError(f"{_known(name)} = {value!r}: it is not searched here")
            chosen[name] = _named(name, PARAMETERS[name].typed, value)
        changed = {name: value for name, value in chosen.items() if value != PARAMETERS[name].read(base)}

        loss = replace(base.loss, **{name: value for name, value in changed.items() if name in _WEIGHTS})
        teacher, code = loss.teacher_warmup, loss.code_warmup
        if "warmup_start" in changed:
            teacher, code = (replace(warmup, start=changed["warmup_start"]) for warmup in (teacher, code))
        ramp = chosen.get("ramp", _ramp_of(base))
        if changed.keys() & {"prim", "ramp"}:
            teacher = _with_ramp(teacher, loss.prim, ramp)
        if changed.keys() & {*_CODE, "ramp"}:
            code = _with_ramp(code, max(loss.appearance_code, loss.structure_code, loss.cycle), ramp)
        return replace(
            base,
            loss=replace(loss, teacher_warmup=teacher, code_warmup=code),
            recipe=replace(base.recipe, soft_label=changed.get("soft_label", base.recipe.soft_label)),
            optim=replace(base.optim, **{name: value for name, value in changed.items() if name in _RATES}),
        )

    def remaining(self, base: DGNetConfig) -> int:
        """Iterations that are left of the run after the latest ramp end that a trial can have."""
        start, ramp = (self._largest(name, base) for name in ("warmup_start", "ramp"))
        return base.iterations - max(start + ramp, ramp_end(self.apply(base, {})))

    def distances(self, base: DGNetConfig, stopping: StoppingRule) -> tuple[int, ...]:
        """How many iterations after its ramp's end every trial of this space is judged.

        Raises:
            SpaceError: there is no room for all rungs.
        """
        try:
            return distances_of(self.remaining(base), stopping)
        except ValueError as error:
            raise SpaceError(str(error)) from None

    def check(self, base: DGNetConfig, stopping: StoppingRule | None = None) -> None:
        """Make sure that every trial of this space gets to the maxima of its ramped weights, and to all of its rungs.

        Raises:
            SpaceError: one does not.
        """
        start, ramp = (self._largest(name, base) for name in ("warmup_start", "ramp"))
        if start >= base.iterations:
            raise SpaceError(
                f"warmup_start = {start:,}: runs end after {base.iterations:,} iterations, nothing would be learned"
                " from generated images; use earlier starts or longer runs"
            )
        if self.remaining(base) < 1:
            raise SpaceError(
                f"warmup_start up to {start:,} and ramp up to {ramp:,} end at iteration"
                f" {base.iterations - self.remaining(base):,}: runs have {base.iterations:,}; use earlier starts,"
                " shorter ramps or longer runs"
            )
        if stopping is not None:
            self.distances(base, stopping)

    def __rich__(self) -> Table:
        """The parameters, what they mean, and what is searched."""
        table = Table(title="Search space", title_justify="left")
        for column in ("parameter", "values", "meaning"):
            table.add_column(column, overflow="fold")
        for name, dimension in self.dimensions.items():
            style = "dim" if isinstance(dimension, Fixed) else None
            table.add_row(name, str(dimension), PARAMETERS[name].meaning, style=style)
        return table

    def _largest(self, name: str, base: DGNetConfig) -> int:
        dimension = self.dimensions.get(name, Fixed(PARAMETERS[name].read(base)))
        if isinstance(dimension, Range):
            return int(dimension.high)
        return int(dimension.value if isinstance(dimension, Fixed) else max(dimension.options))


# ----------------------------------------------------------------------------------------------------------------
# Details


def _known(name: str) -> str:
    """The name of a parameter that there is."""
    if name not in PARAMETERS:
        close = get_close_matches(str(name), PARAMETERS, n=1, cutoff=0.4)
        advice = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PARAMETERS)}"
        raise SpaceError(f"unknown parameter {name!r}: {advice}")
    return name


def _named(name: str, function: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns; its errors name the parameter."""
    try:
        return function(*arguments)
    except SpaceError as error:
        raise SpaceError(f"{name}: {error}") from None


def _typed(name: str, dimension: Dimension) -> Dimension:
    """A dimension with values of its parameter's type."""
    parameter = PARAMETERS[name]

    def typed() -> Dimension:
        if isinstance(dimension, Fixed):
            return Fixed(parameter.typed(dimension.value))
        if isinstance(dimension, Choice):
            return Choice(tuple(map(parameter.typed, dimension.options)))
        if not isinstance(dimension, Range):
            raise SpaceError(f"{dimension!r}: Fixed, Range or Choice is needed")
        if parameter.kind is str:
            raise SpaceError(f"a range of texts: list the choices, among {', '.join(parameter.options)}")
        step = None if dimension.step is None else parameter.number(dimension.step)
        return Range(parameter.typed(dimension.low), parameter.typed(dimension.high), dimension.log, step)  # pyright: ignore[reportArgumentType]

    return _named(name, typed)


def _parsed(name: str, value: object) -> Dimension:
    """A dimension as a file or the command line has it."""
    if isinstance(value, Fixed | Range | Choice):
        return value
    if not isinstance(value, Mapping):
        return Fixed(_named(name, PARAMETERS[name].typed, value))
    keys = ("choices",) if "choices" in value else ("low", "high", "log", "step")
    for key in value:
        if key not in keys:
            close = get_close_matches(str(key), keys, n=1, cutoff=0.4)
            advice = f"did you mean {close[0]!r}?" if close else f"{', '.join(keys)} are known"
            raise SpaceError(f"{name}: unknown key {key!r}: {advice}")
    if keys == ("choices",):
        return _named(name, Choice, value["choices"])
    for key in ("low", "high"):
        if key not in value:
            raise SpaceError(f"{name}: {key} is missing: {{low: ..., high: ...}}, {{choices: [...]}} or a value")
    if PARAMETERS[name].kind is str:
        raise SpaceError(f"{name}: a range of texts: list the choices, among {', '.join(PARAMETERS[name].options)}")
    numbers = {
        key: _named(name, PARAMETERS[name].number, value[key])
        for key in ("low", "high", "step")
        if value.get(key) is not None or key != "step"
    }
    return _named(name, lambda: Range(**numbers, log=value.get("log", False)))


def _plain(dimension: Dimension) -> Any:
    if isinstance(dimension, Fixed):
        return dimension.value
    if isinstance(dimension, Choice):
        return {"choices": list(dimension.options)}
    values: dict[str, Any] = {"low": dimension.low, "high": dimension.high}
    return values | ({"log": True} if dimension.log else {}) | ({"step": dimension.step} if dimension.step else {})


def _distribution(name: str, dimension: Dimension) -> BaseDistribution:
    assert not isinstance(dimension, Fixed)
    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.options)
    if PARAMETERS[name].kind is int:
        return IntDistribution(int(dimension.low), int(dimension.high), dimension.log, int(dimension.step or 1))
    return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)


def _contains(dimension: Dimension, value: Value) -> bool:
    if isinstance(dimension, Fixed):
        return value == dimension.value
    if isinstance(dimension, Choice):
        return value in dimension.options
    assert not isinstance(value, str)
    if not dimension.low <= value <= dimension.high:
        return False
    steps = (value - dimension.low) / (dimension.step or 1)
    return dimension.step is None or math.isclose(steps, round(steps), abs_tol=1e-6)


def _draw(name: str, dimension: Dimension, rng: np.random.Generator) -> Value:
    assert not isinstance(dimension, Fixed)
    if isinstance(dimension, Choice):
        return dimension.options[int(rng.integers(len(dimension.options)))]
    low, high = dimension.low, dimension.high
    if dimension.step is not None:
        value = low + dimension.step * int(rng.integers(round((high - low) / dimension.step) + 1))
    elif dimension.log:
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
    else:
        value = float(rng.uniform(low, high))
    value = min(max(value, low), high)
    return round(value) if PARAMETERS[name].kind is int else value


def _with_ramp(warmup: Warmup, maximum: float, ramp: int) -> Warmup:
    """The warm-up after which a weight of this maximum is reached in exactly `ramp` iterations."""
    slope = maximum / ramp or 1.0
    while math.ceil(maximum / slope) > ramp or slope * ramp < maximum:  # rounding
        slope = math.nextafter(slope, math.inf)
    return replace(warmup, slope=slope)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
