"""Errors that a user can mend, and text that any terminal can show."""


class UserError(ValueError):
    """What the user can mend; the message names what is wrong and what to do."""


class ExperimentError(UserError):
    """An experiment that cannot be run as asked; the message names the setting and the remedy."""


class TrackingError(UserError):
    """MLflow cannot be used as asked; the message names the URI and the remedy."""


class TrainingError(UserError):
    """Training failed on the way; the message says why. What was saved stays."""


def printable(text: str) -> str:
    """Text that is safe to show: file names may hold what no terminal should be sent."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
