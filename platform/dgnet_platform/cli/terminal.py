"""What all commands show, and which errors end them with a line instead of a traceback."""

from rich.console import Console

from dgnet_platform.data.decode import PictureError
from dgnet_platform.data.images import ImageMemoryError
from dgnet_platform.data.source import SourceError
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.errors import ExperimentError, TrackingError, printable
from dgnet_platform.runs.checkpoint import CheckpointError
from dgnet_platform.runs.experiment import AnyExperiment
from dgnet_platform.training.driver import TrainingError

USER_ERRORS = (
    CheckpointError, ExperimentError, ImageMemoryError, OSError, PictureError, SourceError, StoreError, TrackingError,
    TrainingError, ValueError,
)  # fmt: skip


def greet(experiment: AnyExperiment, console: Console) -> None:
    """Say what trains on what, and what to watch out for."""
    info = Store.open(experiment.data).info
    if info.origin:
        console.print("On drawn people, who are no photographs: no figure here stands for a public data set.")
    if experiment.elastic:
        console.print(
            f"--workers {experiment.workers}: BatchNorm's batches change with their number, and so does the run.",
            style="yellow",
        )


def printable_lines(error: BaseException) -> str:
    """An error's message, safe to show, with its line breaks."""
    return "\n".join(printable(line) for line in (str(error) or type(error).__name__).splitlines())
