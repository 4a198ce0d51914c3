"""The best trials and the preset again, with other seeds: what a search publishes of its winner."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from dgnet_core.ranking.intervals import Estimate, estimate
from dgnet_platform.search.plan import SearchPlan
from dgnet_platform.search.siblings import Sibling
from dgnet_platform.search.study import Study, is_base
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.training.validation import read_queries

CONFIRMED = 3
"""How many of the best trials are trained again."""


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """A trial's settings under other seeds, at the weight of f_fine that the search chose for them."""

    scores: Mapping[int, float]
    """mAP on the held-out identities in [0, 1] by seed, of the runs that are finished."""
    difference: Estimate | None
    """To the preset under the same seeds, paired by seed and query; None: no such pair, or it is the preset."""
    missing: Mapping[int, str] = field(default_factory=dict)
    """Seeds without a score, and why: "not finished", or "failed" with its reason."""

    @property
    def mean(self) -> float | None:
        """Over seeds; None: of none."""
        return statistics.fmean(self.scores.values()) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Over seeds, as a sample's; None: of one seed."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


def chosen(trials: Sequence[FrozenTrial]) -> list[int]:
    """Numbers of the finished trials that are trained again: the preset, then the best three others."""
    finished = [t for t in trials if t.state == TrialState.COMPLETE and math.isfinite(t.values[0])]
    others = sorted((t for t in finished if not is_base(t)), key=lambda t: (-t.values[0], t.number))
    return [t.number for t in finished if is_base(t)][:1] + [t.number for t in others[:CONFIRMED]]


def confirmations(plan: SearchPlan, study: Study) -> dict[tuple[int, int], Sibling]:
    """The runs by trial and seed; none as long as trials are missing, for others may turn out to be the best."""
    if not plan.config.confirm or study.missing or study.running:
        return {}
    seeds = range(plan.base.model.seed + 1, plan.base.model.seed + 1 + plan.config.confirm)
    found: dict[tuple[int, int], Sibling] = {}
    for number in chosen(study.trials):
        beta = study.notes(number).get("beta")
        model = plan.model(study.values(number))
        model = model if beta is None else replace(model, beta=beta)
        for seed in seeds:
            found[number, seed] = Sibling(name=f"{number:03d}-seed-{seed}", model=replace(model, seed=seed))
    return found


def confirmed(plan: SearchPlan, study: Study) -> dict[int, Confirmation]:
    """What has come out so far, by trial."""
    found: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    missing: dict[int, dict[int, str]] = {}
    for (number, seed), sibling in confirmations(plan, study).items():
        folder = plan.sibling_folder(sibling)
        queries, runs = finished_queries(folder, plan.base.model.iterations), found.setdefault(number, {})
        if queries is not None:
            runs[seed] = queries["own"], queries["person_ids"]
        else:
            progress = TrialProgress.read(folder)
            reason = f"failed: {progress.reason or 'no reason known'}" if progress.over else "not finished"
            missing.setdefault(number, {})[seed] = reason
    preset = next((t.number for t in study.trials if is_base(t) and t.number in found), None)
    return {
        number: Confirmation(
            scores={seed: float(precision.mean()) for seed, (precision, _) in runs.items()},
            difference=_difference(runs, found[preset]) if preset is not None and number != preset else None,
            missing=missing.get(number, {}),
        )
        for number, runs in found.items()
    }


def finished_queries(folder: Path, iterations: int) -> dict[str, Tensor] | None:
    """What a finished run says of each held-out query; None: it is not finished."""
    return read_queries(folder, iterations) if TrialProgress.read(folder).ending == "finished" else None


def _difference(
    runs: Mapping[int, tuple[Tensor, Tensor]], preset: Mapping[int, tuple[Tensor, Tensor]]
) -> Estimate | None:
    seeds = sorted(runs.keys() & preset.keys())
    if not seeds:
        return None
    differences = torch.stack([runs[seed][0] - preset[seed][0] for seed in seeds])
    return estimate(differences, runs[seeds[0]][1])
