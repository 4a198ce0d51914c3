"""Refusals that name the field, its value and the remedy."""

import math
from typing import Any, get_args


def check(ok: bool, section: object, name: str, remedy: str) -> None:
    """Raise a ValueError that names `section.name`, its value and what would be accepted."""
    if not ok:
        raise ValueError(f"{type(section).__name__}.{name} = {getattr(section, name)!r}: {remedy}")


def check_choices(section: object, **choices: object) -> None:
    """Refuse fields that hold none of the options of their `Literal`."""
    for name, options in choices.items():
        allowed = get_args(options)
        check(getattr(section, name) in allowed, section, name, f"choose one of {', '.join(allowed)}")


def check_positive(section: object, *names: str) -> None:
    """Refuse fields that are not positive and finite."""
    for name in names:
        value = getattr(section, name)
        check(value > 0 and math.isfinite(value), section, name, "must be positive and finite")


def check_weight(section: object, *names: str) -> None:
    """Refuse fields that are negative or not finite."""
    for name in names:
        value = getattr(section, name)
        check(value >= 0 and math.isfinite(value), section, name, "a weight is a finite number >= 0")


def check_milestones(section: Any) -> None:
    """Refuse milestones that are not iterations in rising order."""
    ordered = list(section.milestones) == sorted(set(section.milestones)) and min(section.milestones, default=1) > 0
    check(ordered, section, "milestones", "iterations > 0 in rising order")
