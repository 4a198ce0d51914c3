"""Results of an evaluation: on the terminal, and as a folder that is always complete."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import pandas as pd
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dgnet_platform.datasets.pack import publish, staging
from dgnet_platform.disk import flush
from dgnet_platform.evaluation import Evaluation, EvaluationError

FORMAT = 1
"""Version of results.json."""
JSON, PARQUET = "results.json", "results.parquet"
DRAWN = "Drawn people are no photographs: these figures stand for no public data set."


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to write new results to; at the end of the context it takes the place of `out`.

    Raises:
        EvaluationError: `out` holds something else than earlier results.
        StoreError: another run is writing there.
        OSError: it cannot be written to.
    """
    former = out.parent / f".{out.name}.former"
    if former.exists() and not out.exists():  # a run was killed between the two renames
        former.rename(out)
    if out.exists() and not out.is_dir():
        raise EvaluationError(f"--out {out} is a file: name a folder")
    if out.exists() and any(out.iterdir()) and not _is_results(out):
        raise EvaluationError(f"--out {out} holds other things than results of an evaluation: name another folder")
    if out.exists() and not os.access(out.parent, os.W_OK):
        raise PermissionError(f"--out {out}: results are replaced as a whole, and {out.parent} cannot be written to")
    with staging(out) as folder:
        yield folder
        if out.exists():
            rmtree(former, ignore_errors=True)
            out.rename(former)
        publish(folder, out)
        rmtree(former, ignore_errors=True)


def write(evaluation: Evaluation, folder: Path) -> None:
    """Tables as results.json and results.parquet, and the pictures, into a folder."""
    table = pd.concat(
        [evaluation.retrieval.assign(part="table"), evaluation.sweep.assign(part="sweep over beta")],
        ignore_index=True,
    )
    table.to_parquet(folder / PARQUET, index=False)
    for name, picture in evaluation.pictures.items():
        picture.save(folder / name, "PNG")
    values: dict[str, Any] = {
        "format": FORMAT,
        "source": evaluation.source,
        "note": DRAWN if evaluation.drawn else None,
        "files": sorted([JSON, PARQUET, *evaluation.pictures]),
        **{
            name: json.loads(getattr(evaluation, name).to_json(orient="records", double_precision=10))
            for name in ("retrieval", "sweep", "swaps", "extraction")
        },
    }
    (folder / JSON).write_text(json.dumps(values, indent=2) + "\n")
    for path in folder.iterdir():
        flush(path)


def read(folder: Path) -> Evaluation:
    """The evaluation that `write` was given, without its pictures."""
    values = json.loads((folder / JSON).read_text())
    return Evaluation(
        source=values["source"],
        drawn=values["note"] is not None,
        retrieval=pd.DataFrame(values["retrieval"]),
        sweep=pd.DataFrame(values["sweep"]),
        swaps=pd.DataFrame(values["swaps"]),
        extraction=pd.DataFrame(values["extraction"]),
    )


def tables(evaluation: Evaluation) -> RenderableType:
    """All tables for a terminal."""
    parts: list[RenderableType] = [
        Text(evaluation.source, style="bold"),
        _retrieval_table(evaluation.retrieval),
    ]
    if len(evaluation.sweep):
        parts.append(_sweep_table(evaluation.sweep))
    if len(evaluation.swaps):
        parts.append(_swap_table(evaluation.swaps))
    if evaluation.drawn:
        parts.append(Text(DRAWN, style="yellow"))
    for row in evaluation.extraction.to_dict("records"):
        speed = row["pictures"] / row["seconds"]
        waited = row.get("waiting")
        waiting = "" if waited is None or math.isnan(waited) else f", {waited:.1%} of it waiting for data"
        done = f"{row['store']}: {row['pictures']:,} pictures extracted in {row['seconds']:.1f} s ({speed:,.0f}/s)"
        parts.append(Text(done + waiting, style="dim"))
    return Group(*parts)


def _retrieval_table(retrieval: pd.DataFrame) -> Table:
    transfers = retrieval["trained_on"] + " → " + retrieval["store"]
    same = len(set(transfers)) == 1
    title = f"Retrieval, %: {transfers.iloc[0]}" if same else "Retrieval, %"
    table = _table(title, *([] if same else ["trained on → store"]), "feature", *_FIGURES)
    for label, rows in retrieval.groupby(transfers, sort=False):
        labels = [] if same else [str(label)]
        for row in rows.to_dict("records"):
            feature = f"both, beta {row['beta']:g}" if row["feature"] == "both" else str(row["feature"])
            how = [", multi-query" if row["query"] == "multi" else "", ", re-ranked" if row["reranked"] else ""]
            table.add_row(*labels, feature + "".join(how), *_percent(row))
            labels = [""] * len(labels)
        table.add_section()
    return table


def _sweep_table(sweep: pd.DataFrame) -> Table:
    table = _table("Weight of f_fine, %", "store", "beta", *_FIGURES)
    for store, rows in sweep.groupby("store", sort=False):
        label = str(store)
        for row in rows.to_dict("records"):
            table.add_row(label, f"{row['beta']:g}", *_percent(row))
            label = ""
        table.add_section()
    return table


def _swap_table(swaps: pd.DataFrame) -> Table:
    same = len(set(swaps["store"])) == 1
    title = f"Swap fidelity against the true picture, {swaps['pairs'].max():,} pairs"
    table = _table(title, *([] if same else ["store"]), "identities", "picture", "L1", "PSNR", "SSIM")
    for row in swaps.to_dict("records"):
        figures = f"{row['L1']:.4f}", f"{row['PSNR']:.2f} dB", f"{row['SSIM']:.4f}"
        table.add_row(*([] if same else [row["store"]]), row["identities"], row["picture"], *figures)
    return table


_FIGURES = {"Rank@1": "rank1", "Rank@5": "rank5", "Rank@10": "rank10", "mAP": "mAP", "mINP": "mINP"}
"""Figures of a results table by their heading."""


def _table(title: str, *columns: str) -> Table:
    """A table whose columns of figures stand right-aligned."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        figures = column in _FIGURES or column in ("beta", "pairs", "L1", "PSNR", "SSIM")
        table.add_column(column, justify="right" if figures else "left", no_wrap=figures)
    return table


def _percent(row: dict[Any, Any]) -> list[str]:
    return [f"{100 * row[name]:.2f}" for name in _FIGURES.values()]


def _is_results(out: Path) -> bool:
    """Whether a folder holds the results of an evaluation and nothing else."""
    try:
        values = json.loads((out / JSON).read_text())
        return values["format"] >= 1 and {path.name for path in out.iterdir()} <= set(values["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
