"""Generators beside each other, as the paper's Figure 3 and Table 2 have them: the same people in the same poses."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dgnet_core.generation.grids import to_pixels
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.config import CompareConfig, MeasureConfig
from dgnet_platform.evaluation.extraction import Progress
from dgnet_platform.evaluation.measure import measure
from dgnet_platform.evaluation.measured import GENERATED, Measured
from dgnet_platform.evaluation.pictures import labelled_rows, stored_pictures
from dgnet_platform.evaluation.results import DRAWN, FORMAT, JSON, EvaluationError
from dgnet_platform.evaluation.swaps import different_people, people_of
from dgnet_platform.runs.loading import TrainedNetworks, open_trained
from dgnet_platform.storage.files import flush

FIGURE, MARKDOWN, CSV = "figure3.png", "table2.md", "table2.csv"
PAPER: dict[str, tuple[float | None, float | None]] = {
    "real": (7.22, 0.350), "lsgan": (136.26, None), "pg2gan": (151.16, None), "fdgan": (257.00, 0.247),
    "pngan": (54.23, 0.335), "dgnet": (18.24, 0.360),
}  # fmt: skip
"""FID and diversity ("SSIM") in DG-Net's Table 2, on Market-1501."""
_TIMED = 8
"""Pictures that are drawn at once to take the time."""


@dataclass(kw_only=True, eq=False)
class Comparison:
    """All that came out."""

    source: str
    data: str
    """Fingerprint of the store that all were trained on."""
    drawn: bool
    """Whether it is of drawn people, whose figures stand for no photographs."""
    table: pd.DataFrame
    """A row for the real pictures, and one for each seed of each generator."""
    left_out: list[str]
    """Measures that were not taken, each with its reason."""
    figure: Image.Image
    kept: tuple[Path, ...] = ()
    """Folders of what was generated and measured, without which a command that was killed would begin again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    """Checkpoints of one generator, which differ in their seeds alone."""

    name: str
    paths: tuple[Path, ...]
    trained: tuple[TrainedNetworks, ...]


def compare(config: CompareConfig, progress: Progress) -> Comparison:
    """Measure generators, and draw the same people in the same poses with each.

    Args:
        config: which, all trained on its store, and what they are measured by.
        progress: called with what is being done, how much of it is done and how much there is.

    Raises:
        CheckpointError, StoreError, PoseError, PictureSetError, PartsError: a file is missing, damaged or foreign.
        EvaluationError: the generators were trained on different data, or there are none.
    """
    store = Store.open(config.store)
    if not config.checkpoint:
        raise EvaluationError("--checkpoint or --train is needed: which generators are compared?")
    compared = _generators(config.checkpoint)
    for generator in compared:
        _check_data(generator, store)
    figure = _figure({generator.name: generator.trained[0] for generator in compared}, store, config.shown)
    rows: list[dict[str, object]] = []
    left_out: list[str] = []
    kept: list[Path] = []
    for generator in compared:
        for path, networks in zip(generator.paths, generator.trained, strict=True):
            name, seed = generator.name, networks.config.seed
            own = _measuring(config, path, f"{name} {seed}")
            measured = measure(
                own, lambda what, *count, name=f"{name}, seed {seed}": progress(f"{name}: {what}", *count)
            )
            if not rows:
                rows.append({"generator": "real", "kind": "real", **_figures(measured, real=True)})
            about = {"generator": name, "seed": seed, "kind": networks.method.name}
            rows.append({**about, **_figures(measured), **_cost(networks, store)})
            left_out += [f"{name}: {reason}" for reason in measured.left_out]
            kept += own.parts, own.made
    for row in rows:
        row["paper_FID"], row["paper_SSIM"] = PAPER.get(str(row["kind"]), (None, None))
    return Comparison(
        source=f"{', '.join(generator.name for generator in compared)}, trained on {store.location}",
        data=store.info.fingerprint,
        drawn=bool(store.info.origin),
        table=pd.DataFrame(rows).astype({"seed": "Int64"}),
        left_out=list(dict.fromkeys(left_out)),
        figure=figure,
        kept=tuple(kept),
    )


# ------------------------------------------------------------------------------------------------------------
# What is compared


def _check_data(generator: _Compared, store: Store) -> None:
    """Refuse generators that were trained on other data; the authors' releases do not name theirs."""
    for networks, path in zip(generator.trained, generator.paths, strict=True):
        if networks.fingerprint not in (None, store.info.fingerprint):
            raise EvaluationError(
                f"{path} was trained on {networks.dataset} of fingerprint {networks.fingerprint[:12]},"
                f" {store.location} has {store.info.fingerprint[:12]}: compare generators of the same data"
            )


def _generators(checkpoints: Sequence[Path]) -> list[_Compared]:
    """Checkpoints by generator: settings and iteration decide, seeds do not.

    A generator's name is its method's, with run and checkpoint where there are two of one method, or the whole path
    where runs of that name are in two folders.
    """
    found: dict[object, list[tuple[Path, TrainedNetworks]]] = {}
    for path in {path.resolve(): path for path in checkpoints}.values():
        networks = open_trained(path)
        settings = replace(networks.config.portable(), seed=0), path.resolve().name
        known = {other.config.seed for _, other in found.get(settings, [])}
        key = (*settings, path) if networks.config.seed in known else settings
        found.setdefault(key, []).append((path, networks))
    titles = [group[0][1].method.title for group in found.values()]
    wholes = [group[0][0].resolve() for group in found.values()]
    places = ["/".join(whole.parts[-2:]) for whole in wholes]
    names = [
        title if titles.count(title) == 1 else f"{title} ({place if places.count(place) == 1 else whole})"
        for title, place, whole in zip(titles, places, wholes, strict=True)
    ]
    return [
        _Compared(
            name=name,
            paths=tuple(path for path, _ in group),
            trained=tuple(networks for _, networks in group),
        )
        for name, group in zip(names, found.values(), strict=True)
    ]


def _measuring(config: CompareConfig, checkpoint: Path, name: str) -> MeasureConfig:
    shared = {
        field: getattr(config, field)
        for field in (
            "store", "teacher", "inception", "resnet", "split", "pictures", "people", "diversity_pairs", "seed",
            "batch_size", "workers", "gpus", "threads",
        )
    }  # fmt: skip
    slug = "".join(c if c.isalnum() else "-" for c in name.lower())
    return MeasureConfig(checkpoint=checkpoint, out=config.out.parent / f"{config.out.name}-{slug}", **shared)


# ------------------------------------------------------------------------------------------------------------
# Table 2


def _figures(measured: Measured, *, real: bool = False) -> dict[str, object]:
    """A row's figures; those of the real pictures are against their other half."""
    found: dict[str, object] = {}
    for row in measured.distances.to_dict("records"):
        if row["compared"].startswith("real") if real else row["compared"] == GENERATED:
            found.setdefault(str(row["figure"]), row["value"])
    for row in measured.diversity.to_dict("records"):
        if row["picture"] == ("real" if real else GENERATED):
            found.setdefault("DSSIM", row["DSSIM"])
    if real:
        return found
    for table, columns in (
        (measured.people, ("person_L1", "person_SSIM", "upper_colour", "lower_colour", "transfer")),
        (measured.identity, ("appearance_rank1",)),
    ):
        for row in table.to_dict("records"):
            if row["picture"] == GENERATED:
                found |= {column: row[column] for column in columns}
    return found


def _cost(trained: TrainedNetworks, store: Store) -> dict[str, object]:
    """Million parameters and GMAC of what draws a picture, and the least seconds that one takes in a batch here."""
    used: set[str] = set()
    hooks = [
        network.register_forward_hook(lambda *_, name=name: used.add(name))
        for name, network in trained.state.networks.items()
    ]
    split = "train" if "train" in store.info.splits else min(store.info.splits)
    rows = list(range(min(_TIMED, store.count(split))))
    images = trained.images(stored_pictures(store, split, rows))
    joints = trained.joints(store, split, store.index(split).iloc[rows])
    with FlopCounterMode(display=False) as counter:
        _draw(trained, images[:1], images[:1], None if joints is None else joints[:1])
    for hook in hooks:
        hook.remove()
    seconds = math.inf
    for _ in range(3):  # the least: others may use the machine
        start = time.perf_counter()
        _draw(trained, images, images, joints)
        seconds = min(seconds, (time.perf_counter() - start) / len(images))
    parameters = sum(p.numel() for name in used for p in trained.state.networks[name].parameters())
    gmac = counter.get_total_flops() / 2e9
    return {"seconds": seconds, "parameters_M": parameters / 1e6, "GMAC": gmac}


# ------------------------------------------------------------------------------------------------------------
# Figure 3


def _figure(trained: Mapping[str, TrainedNetworks], store: Store, shown: int) -> Image.Image:
    """Sources, targets and what each generator makes of them, row by row; on drawn people the true pictures too."""
    index, people = store.index("query"), people_of(store)
    rows = different_people(index["person_id"].tolist())
    half = min(shown, len(rows) // 2)
    if not half:
        raise EvaluationError(f"query of {store.location} shows fewer than two people: name a store that shows more")
    i, j = rows[:half], rows[half : 2 * half]
    pictures = stored_pictures(store, "query", [*i, *j])
    lines: list[tuple[str, Sequence[np.ndarray]]] = [("who", pictures[:half]), ("in the pose of", pictures[half:])]
    for name, networks in trained.items():
        sources, targets = (networks.images(part) for part in (pictures[:half], pictures[half:]))
        drawn = to_pixels(_draw(networks, sources, targets, networks.joints(store, "query", index.iloc[j])))
        lines.append((f"{name}{' (from noise)' if networks.method.draw is None else ''}", list(drawn.numpy())))
    if people is not None:
        files = index["file_name"].tolist()
        shots = [(shot_of(files[a]), shot_of(files[b])) for a, b in zip(i, j, strict=True)]
        lines.append(("true, for DG-Net", _true(people, shots, posed=False)))
        if any(networks.method.posed for networks in trained.values()):
            lines.append(("true, with its own body", _true(people, shots, posed=True)))
    return labelled_rows(f"The same people in the same poses: {store.info.dataset}", lines)


def _true(people: People, shots: Sequence[tuple[Any, Any]], *, posed: bool) -> list[np.ndarray]:
    return [
        people.draw(appearance_of=i, structure_of=j, body_of=i if posed else None).transpose(2, 0, 1) for i, j in shots
    ]


def _draw(trained: TrainedNetworks, sources: Tensor, targets: Tensor, joints: Tensor | None) -> Tensor:
    if trained.method.draw is None:
        return trained.invent(len(sources), 0)
    return trained.draw(sources, targets if joints is None else joints)


# ------------------------------------------------------------------------------------------------------------
# Results

HEADINGS = {
    "generator": "generator", "DSSIM": "DSSIM", "person_L1": "person L1", "person_SSIM": "person SSIM",
    "transfer": "transfer", "appearance_rank1": "identity kept", "seconds": "ms",
    "parameters_M": "M parameters", "GMAC": "GMAC", "paper_FID": "paper's FID*", "paper_SSIM": "paper's SSIM*",
}  # fmt: skip
"""Columns of the Markdown table that have another heading than in the CSV."""


def table2(comparison: Comparison) -> tuple[list[str], list[list[str]], list[str]]:
    """Header and rows of Table 2 as texts, and what its figures stand for."""
    left = ("kind", "seed", "upper_colour", "lower_colour")
    table = comparison.table[[column for column in comparison.table if column not in left]]
    ahead = sorted(set(table) - set(HEADINGS))  # distances, named after their network
    columns = ["generator", *ahead, *[column for column in HEADINGS if column in table and column != "generator"]]
    lines = [
        [_shown(column, rows[column].tolist()) for column in columns]
        for _, rows in table.groupby("generator", sort=False)
    ]
    seeds = sorted(set(comparison.table.groupby("generator")["seed"].nunique()) - {0})  # the real pictures have none
    notes = [
        "person: within the silhouette of the true picture that the generator can know. A pose generator sees the"
        " target's joints alone, so there the body is the source's; DG-Net's is the target's.",
        "transfer: 1 - L1 / L1 of the target's picture as it is. identity kept: how often the source comes first."
        " ms: of one picture in a batch.",
        "* on Market-1501, as the paper's Table 2 has them: not to be compared with other data.",
    ]
    if seeds[-1] > 1:
        count = " to ".join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))
        notes.append(f"Mean ± standard deviation over {count} seeds.")
    notes += [DRAWN] if comparison.drawn else []
    return [HEADINGS.get(column) or str(column) for column in columns], lines, notes


def markdown(comparison: Comparison) -> str:
    """Table 2 as Markdown, with what its figures stand for."""
    header, rows, notes = table2(comparison)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    lines.insert(1, "| --- |" + " --: |" * (len(header) - 1))
    return "\n".join([*lines, "", *notes]) + "\n"


def metrics_of(comparison: Comparison) -> dict[str, float]:
    """The figures for MLflow, `GENERATOR/FIGURE`: means over seeds."""
    found: dict[str, float] = {}
    columns = [name for name, values in comparison.table.items() if is_numeric_dtype(values)]
    for generator in dict.fromkeys(comparison.table["generator"]):
        rows = comparison.table.query("generator == @generator").to_dict("records")
        for column in set(columns) - {"seed", "paper_FID", "paper_SSIM"}:
            value = fmean(row[column] for row in rows)
            if not math.isnan(value):
                found[f"{generator}/{column}"] = value
    return found


def _shown(column: str, values: Sequence[object]) -> str:
    """A cell: the mean over seeds, and the deviation where they differ."""
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not math.isnan(value)]
    if not numbers:
        return str(values[0]) if isinstance(values[0], str) else ""
    scale, form = {"appearance_rank1": (100, ".0f"), "seconds": (1000, ".1f")}.get(column, (1, ".3g"))
    unit = "%" if column == "appearance_rank1" else ""
    shown = f"{scale * fmean(numbers):{form}}"
    if len(set(numbers)) > 1:
        shown += f" ± {scale * stdev(numbers):{form if scale > 1 else '.2g'}}"
    return shown + unit


def write(comparison: Comparison, folder: Path) -> None:
    """Figure, tables and results.json into a folder."""
    comparison.figure.save(folder / FIGURE, "PNG")
    comparison.table.to_csv(folder / CSV, index=False)
    (folder / MARKDOWN).write_text(markdown(comparison), encoding="utf-8")
    values = {
        "format": FORMAT,
        "source": comparison.source,
        "data": comparison.data,
        "note": DRAWN if comparison.drawn else None,
        "files": sorted([JSON, FIGURE, CSV, MARKDOWN]),
        "left_out": comparison.left_out,
        "table": json.loads(str(comparison.table.to_json(orient="records", double_precision=10))),
    }
    (folder / JSON).write_text(json.dumps(values, indent=2) + "\n")
    for path in folder.iterdir():
        flush(path)


def read(folder: Path) -> Comparison:
    """The comparison that `write` was given.

    Raises:
        FileNotFoundError: there is none.
        EvaluationError: it is damaged, of an earlier version, or no comparison.
    """
    try:
        values = json.loads((folder / JSON).read_text())
        with Image.open(folder / FIGURE) as opened:
            figure = opened.convert("RGB")
        return Comparison(
            source=values["source"],
            data=values["data"],
            drawn=values["note"] is not None,
            table=pd.DataFrame(values["table"]).astype({"seed": "Int64"}),
            left_out=values["left_out"],
            figure=figure,
        )
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{folder} holds no whole comparison of this version ({error!r}): run jobs/compare_generators.py again"
        ) from None
