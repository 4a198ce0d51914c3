"""How far long work is, in words."""

LINES_EVERY = 30.0
"""Seconds after which a line is due where no terminal shows bars."""


def in_words(seconds: float) -> str:
    """A time that is left: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
