"""What searches' winners are worth on query and gallery, beside the best trial that any of the searches has trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dgnet_core.ranking.intervals import Estimate, estimate
from dgnet_platform.data.store import Store
from dgnet_platform.errors import UserError
from dgnet_platform.evaluation.config import EvaluateConfig
from dgnet_platform.evaluation.evaluate import evaluate
from dgnet_platform.evaluation.extraction import Progress
from dgnet_platform.evaluation.results import QUERIES, replacing, write
from dgnet_platform.runs.checkpoint import newest
from dgnet_platform.search.report.leaderboard import FINISHED


class RegretError(UserError):
    """A search that cannot be compared; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Regret:
    """A search's winner on query and gallery."""

    search: str
    winner: int
    """Number of its trial."""
    mean: Estimate
    """Its mAP."""
    best: str
    """The run with the best mAP of all finished trials of all searches."""
    regret: Estimate
    """That run's mAP minus the winner's, paired by query. The best of many is good by chance too: a search that knew
    everything would have 0, and one that picks at random has not much more where trials hardly differ."""


def regrets(searches: Sequence[Path], store: str, out: Path, progress: Progress) -> list[Regret]:
    """Evaluate all finished trials of some searches, and compare their winners with the best of all.

    Args:
        searches: their folders, beside those of their trials.
        store: with query and gallery.
        out: folder for each trial's results; those that are there already are taken.
        progress: told of each evaluation.

    Raises:
        RegretError: a search has no leaderboard, or no finished trial, or two have one name.
        EvaluationError, StoreError, CheckpointError: a trial cannot be evaluated.
    """
    names = [search.name for search in searches]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RegretError(f"two searches are named {min(twice)}: compare searches of different names")
    found: dict[str, tuple[Tensor, Tensor]] = {}
    winners: dict[Path, dict[str, Any]] = {}
    for search in searches:
        file = search / "leaderboard.csv"
        if not file.exists():
            raise RegretError(f"{search} has no leaderboard.csv: name the folder of a search that is over")
        board = pd.read_csv(file)
        finished = board.query(f"state == '{FINISHED}'")
        if finished.empty:
            raise RegretError(f"{search} has no finished trial")
        chosen = finished.query("winner") if "winner" in finished else finished
        winners[search] = chosen.to_dict("records")[0]
        for trial in finished.to_dict("records"):
            queries = _queries(search.parent / trial["name"], trial["beta"], store, out, progress)
            found[trial["name"]] = _precision(queries)
    best = max(found, key=lambda name: float(found[name][0].mean()))
    return [
        Regret(
            search=search.name,
            winner=int(trial["trial"]),
            mean=estimate(*found[trial["name"]]),
            best=best,
            regret=estimate(found[best][0] - found[trial["name"]][0], found[best][1]),
        )
        for search, trial in winners.items()
    ]


def _queries(run: Path, beta: float, store: str, out: Path, progress: Progress) -> pd.DataFrame:
    """What a trial's last checkpoint says of each query, evaluated unless it is below `out`."""
    out = out / f"{run.name}-beta-{beta:g}-of-{Store.open(store).info.fingerprint[:8]}"
    if not (out / QUERIES).exists():
        path = newest(run, set_aside=False)
        if path is None:
            raise RegretError(f"{run} has no checkpoint: its trial cannot be evaluated")
        config = EvaluateConfig(
            store=(store,), out=out, checkpoint=path, beta=None if math.isnan(beta) else beta, swap_pairs=0,
            queries_shown=0, swap_grid=False, interpolations=False, failures=False,
        )  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as folder:
            write(evaluate(config, progress), folder)
    return pd.read_parquet(out / QUERIES)


def _precision(queries: pd.DataFrame) -> tuple[Tensor, Tensor]:
    """Average precision and identity of each query, by the best descriptor that the run has."""
    rows = queries[(queries["query"] == "single") & ~queries["reranked"]]
    feature = "both" if "both" in set(rows["feature"]) else "f_prim"
    rows = rows[rows["feature"] == feature]
    return torch.tensor(rows["mAP"].tolist(), dtype=torch.float64), torch.tensor(rows["person_id"].tolist())
