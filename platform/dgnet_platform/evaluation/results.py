"""Results of an evaluation: on the terminal, and as a folder that is always complete."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from dgnet_core.ranking.retrieval import RetrievalResult
from dgnet_platform.errors import UserError
from dgnet_platform.storage.files import flush, staging


class EvaluationError(UserError):
    """What was asked for cannot be evaluated; the message says why and what to do."""


@dataclass(kw_only=True, eq=False)
class Evaluation:
    """All that came out, store by store."""

    source: str
    """What was evaluated."""
    drawn: bool
    """Whether a store holds drawn people, whose figures stand for no photographs."""
    retrieval: pd.DataFrame
    """A row for each store, feature, query mode and ranking; shares in [0, 1], with the ends of the 95 % intervals of
    Rank@1 and mAP over identities; beta where it has a part."""
    sweep: pd.DataFrame
    """The same for each beta of the sweep, without intervals; empty without one."""
    differences: pd.DataFrame
    """Rows of `retrieval` minus earlier ones, paired by query: their 95 % intervals, and whether one is better."""
    queries: pd.DataFrame
    """Rank@1 and average precision of each query, with its identity, for each row of `retrieval`."""
    swaps: pd.DataFrame
    """Swap fidelity on drawn people; empty without them."""
    extraction: pd.DataFrame
    """Pictures, seconds and, where this process did it, share of them spent waiting for data, of each store."""
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    """Pictures to look at by file name."""


FORMAT = 1
"""Version of results.json."""
JSON, PARQUET, QUERIES = "results.json", "results.parquet", "queries.parquet"
DRAWN = "Drawn people are no photographs: these figures stand for no public data set."


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """A row of the results table."""

    head: dict[str, object]
    """feature, beta, query, reranked and neighbours."""
    result: RetrievalResult

    @property
    def asked(self) -> tuple[object, object]:
        """How was ranked: rows that agree in it are compared."""
        return self.head["query"], self.head["reranked"]


def differences_of(ranked: Sequence[Ranked]) -> list[dict[str, object]]:
    """Each row minus each earlier one that was ranked alike, paired by query."""
    rows: list[dict[str, object]] = []
    for earlier, later in combinations(ranked, 2):
        if earlier.asked != later.asked:
            continue
        row: dict[str, object] = {"feature": later.head["feature"], "minus": earlier.head["feature"]}
        row |= {name: later.head[name] for name in ("query", "reranked")}
        for figure, found in later.result.minus(earlier.result).items():
            row[figure] = found.value
            if found.interval is not None:
                row[f"{figure}_low"], row[f"{figure}_high"] = found.interval
            row[f"{figure}_verdict"] = found.verdict
        rows.append(row)
    return rows


def by_query(store: str, row: Ranked) -> pd.DataFrame:
    """What a row says of each query: what runs are compared by later."""
    figures = {name: values.numpy() for name, values in row.result.by_query().items()}
    return pd.DataFrame({"person_id": row.result.person_ids.numpy()} | figures).assign(
        **{"store": store} | {name: row.head[name] for name in ("feature", "query", "reranked")}
    )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to write new results to; at the end of the context it takes the place of `out`.

    Raises:
        EvaluationError: `out` holds something else than earlier results.
        UserError: another run is writing there.
        OSError: it cannot be written to.
    """
    if out.exists() and not out.is_dir():
        raise EvaluationError(f"--out {out} is a file: name a folder")
    if out.exists() and any(out.iterdir()) and not _is_results(out):
        raise EvaluationError(f"--out {out} holds other things than results of an evaluation: name another folder")
    if out.exists() and not os.access(out.parent, os.W_OK):
        raise PermissionError(f"--out {out}: results are replaced as a whole, and {out.parent} cannot be written to")
    with staging(out) as folder:
        yield folder


def write(evaluation: Evaluation, folder: Path) -> None:
    """Tables as results.json and results.parquet, and the pictures, into a folder."""
    table = pd.concat(
        [evaluation.retrieval.assign(part="table"), evaluation.sweep.assign(part="sweep over beta")],
        ignore_index=True,
    )
    table.to_parquet(folder / PARQUET, index=False)
    evaluation.queries.to_parquet(folder / QUERIES, index=False)
    for name, picture in evaluation.pictures.items():
        picture.save(folder / name, "PNG")
    values: dict[str, Any] = {
        "format": FORMAT,
        "source": evaluation.source,
        "note": DRAWN if evaluation.drawn else None,
        "files": sorted([JSON, PARQUET, QUERIES, *evaluation.pictures]),
        **{
            name: json.loads(getattr(evaluation, name).to_json(orient="records", double_precision=10))
            for name in ("retrieval", "sweep", "differences", "swaps", "extraction")
        },
    }
    (folder / JSON).write_text(json.dumps(values, indent=2) + "\n")
    for path in folder.iterdir():
        flush(path)


def read(folder: Path) -> Evaluation:
    """The evaluation that `write` was given, without its pictures; an earlier version's has no differences."""
    values = json.loads((folder / JSON).read_text())
    return Evaluation(
        source=values["source"],
        drawn=values["note"] is not None,
        retrieval=pd.DataFrame(values["retrieval"]),
        sweep=pd.DataFrame(values["sweep"]),
        differences=pd.DataFrame(values.get("differences", [])),
        queries=pd.read_parquet(folder / QUERIES) if (folder / QUERIES).exists() else pd.DataFrame(),
        swaps=pd.DataFrame(values["swaps"]),
        extraction=pd.DataFrame(values["extraction"]),
    )


def _is_results(out: Path) -> bool:
    """Whether a folder holds the results of an evaluation and nothing else."""
    try:
        values = json.loads((out / JSON).read_text())
        return values["format"] >= 1 and {path.name for path in out.iterdir()} <= set(values["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
