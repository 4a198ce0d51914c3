"""How trials are run and compared: read before anything heavy is imported."""

from dataclasses import dataclass, field
from typing import Literal

from dgnet_platform.search.stopping import StoppingRule

METRIC = "val/best/mAP"
"""What trials are compared by: mAP on the held-out identities, with the weight of f_fine that is best for it."""
SECOND: dict[str, str] = {"swap": "val/swap/SSIM", "reconstruction": "val/reconstruction/SSIM"}
"""Metrics of second objectives."""
BETA, METRIC_BY_BETA = "val/best/beta", "val/mAP_by_beta"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How trials are run and compared."""

    stopping: StoppingRule = field(default_factory=StoppingRule)
    """When trials are stopped early."""
    second: Literal["none", "swap", "reconstruction"] = "none"
    """A second objective beside mAP: the SSIM of swaps with the true pictures (drawn people only), or of held-out
    pictures that are drawn from another one of the same person. The best compromises are then the result, and trials
    run to their ends (--stopping.kind none)."""
    seed: int = 0
    """Of what is tried."""
    confirm: int = 0
    """With how many other seeds the best three trials and the preset are trained again before a winner is named: the
    best of many noisy figures is too good by chance. 0: not at all."""
    sharing: bool = True
    """Train what trials have in common before their warm-up once. It changes no result, only how long they take."""
    workers_per_trial: int = 0
    """Ray Train workers of a trial, each with its share of the batch; 0 or 1: its own process trains, which saves half
    a minute a trial."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial, over all its workers."""
    concurrent: int = 0
    """Trials at once; 0: as many as fit, on CPUs alone one a machine."""
    retries: int = 2
    """How often a trial starts again from its newest checkpoint when its process dies."""
    prefix_gib: float = 50.0
    """GiB that shared prefixes may take in the storage folder; those longest unused go first."""
    warm_start: tuple[str, ...] = ()
    """Earlier studies as PATH:STUDY, whose best trials are tried after the first one."""

    def __post_init__(self) -> None:
        for name in ("seed", "workers_per_trial", "gpus_per_trial", "concurrent", "retries", "prefix_gib", "confirm"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: must be 0 or more")
        if self.second != "none" and self.stopping.kind != "none":
            raise ValueError(
                f"second {self.second}: early stopping would judge trials by mAP alone: pass --stopping.kind none too"
            )

    @property
    def objectives(self) -> tuple[str, ...]:
        """Metrics that trials are compared by, the larger the better."""
        return METRIC, *([SECOND[self.second]] if self.second != "none" else [])
