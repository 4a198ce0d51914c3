"""How good generated people are: distances between sets, diversity, people without their background, identity kept.

All that takes long is done in parts, here or on workers; a command that was stopped resumes with the missing ones. The
figures are equal on any number of workers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from dgnet_core.generation.distances import (
    Moments,
    TooFewPicturesError,
    diversity,
    frechet_distance,
    identity_pairs,
    kernel_distance,
    moments,
)
from dgnet_core.generation.grids import tile
from dgnet_core.generation.inception import TABLE_2
from dgnet_core.generation.people import PersonFidelity, identity_ranks, person_figures
from dgnet_core.learning.draws import purpose_word
from dgnet_platform.compute.parts import Part, make_parts, missing, owned, parts_of
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.config import GenerateConfig, MeasureConfig
from dgnet_platform.evaluation.extraction import Progress
from dgnet_platform.evaluation.generate import generate
from dgnet_platform.evaluation.judges import (
    DESCRIPTOR,
    PICTURES,
    POOLED,
    DissimilarityMaker,
    FeatureMaker,
    FeatureNetwork,
    PersonJudge,
    inception_features,
    resnet_features,
    teacher_features,
)
from dgnet_platform.evaluation.measured import GENERATED, Measured
from dgnet_platform.evaluation.picture_sets import SOURCES, PictureSet, PictureSetError, generated_set, stored_set
from dgnet_platform.evaluation.pictures import captioned_grids
from dgnet_platform.evaluation.swaps import people_of
from dgnet_platform.runs.loading import digest_of, load_teacher, open_teacher
from dgnet_platform.runs.run import Run

INCEPTION, TEACHER = "inception", "teacher"
PART, PART_OF_PEOPLE, PART_OF_IDENTITIES = 512, 32, 8
"""Pictures, drawn people and identities in a part: all that a kill costs a worker."""
SHOWN = 8
"""Swaps in each half of the picture of the best and the worst."""


def measure(config: MeasureConfig, progress: Progress) -> Measured:
    """Measure what `config` names.

    Args:
        config: whose pictures, and what they are measured by.
        progress: called with what is being done, how much of it is done and how much there is.

    Raises:
        CheckpointError, StoreError, PictureSetError: a file is missing, damaged, foreign or says too little.
        PartsError: what is measured so far is of other settings, or workers cannot be had.
    """
    store = Store.open(config.store)
    networks, digests = _networks(config)
    real = stored_set(store, config.split)
    generated = _chosen(_generated(config, real, progress), config.pictures, config.seed)
    sets = {GENERATED: generated, "real": real}
    if config.floor == "gallery":
        sets["gallery"] = stored_set(store, "gallery")
    job = _Job(config=config, store=store, sets=sets, networks=networks, progress=progress)
    settings = {
        "store": store.info.fingerprint,
        "pictures": generated.digest(),
        "networks": digests,
        **{name: getattr(config, name) for name in _DECISIVE},
    }
    with owned(config.parts, settings):
        features = job.features()
        dissimilarities = job.diversity()
        fidelity, descriptors, rows = job.people()
        identity, ranks = _identity(features, descriptors, rows, generated, real)
        return Measured(
            source=f"{len(generated):,} pictures of {config.checkpoint or config.generated}, against {len(real):,} of"
            f" {config.split} of {store.location}",
            drawn=bool(store.info.origin),
            distances=pd.DataFrame(_distances(features, config, job.left_out)),
            diversity=pd.DataFrame(dissimilarities),
            people=pd.DataFrame(fidelity),
            identity=pd.DataFrame(identity),
            left_out=job.left_out,
            pictures={"swaps.png": _picture(generated, real, ranks, str(config.checkpoint or config.generated))},
        )


_DECISIVE = "split", "floor", "people", "diversity_pairs", "diversity_rounds", "seed", "batch_size", "mode"
"""Settings that decide what the parts hold."""


# ------------------------------------------------------------------------------------------------------------
# Before: what is measured, and by what


def _networks(config: MeasureConfig) -> tuple[dict[str, FeatureNetwork], dict[str, str]]:
    """Networks whose features are compared, and their digests, by name."""
    found: dict[str, FeatureNetwork] = {}
    digests: dict[str, str] = {}
    teacher = config.teacher
    if teacher is None and config.checkpoint is not None and (run := Run.find(config.checkpoint.resolve().parent)):
        teacher = Path(run.teacher) if run.teacher else None
    if teacher is not None:
        network = open_teacher(teacher).config.network
        found[TEACHER] = teacher_features(load_teacher(teacher), network.height, network.width)
        digests[TEACHER] = digest_of(teacher)
    if config.inception is not None:
        found[INCEPTION] = inception_features(config.inception, config.mode)
        digests[INCEPTION] = digest_of(config.inception)
    if config.resnet is not None:
        name, network = resnet_features(config.resnet)
        found[name], digests[name] = network, digest_of(config.resnet)
    if not found:
        raise PictureSetError(
            "no network says how far pictures are apart: name --teacher, --resnet, or the FID network's file with"
            " --inception"
        )
    return found, digests


def _generated(config: MeasureConfig, real: PictureSet, progress: Progress) -> PictureSet:
    """The generator's pictures; a checkpoint's are made first, as the paper made those of its Table 2."""
    folder = config.generated
    if config.checkpoint is not None:
        folder = config.made
        made = GenerateConfig(
            checkpoint=config.checkpoint, store=config.store, out=folder, split=config.split, per_image=1, quality=75,
            seed=config.seed, workers=config.workers, gpus=config.gpus, threads=config.threads,
        )  # fmt: skip
        generate(made, partial(progress, "generating"))
    assert folder is not None
    return generated_set(folder, real, config.threads)


def _chosen(pictures: PictureSet, count: int, seed: int) -> PictureSet:
    """At most so many pictures of a set, in its order."""
    if len(pictures) <= count:
        return pictures
    rng = np.random.default_rng([seed, purpose_word("generated")])
    rows = np.sort(rng.permutation(len(pictures))[:count])
    index = pictures.index.iloc[rows].reset_index(drop=True)
    return PictureSet(name=pictures.name, pictures=pictures.pictures.take(rows), index=index)


# ------------------------------------------------------------------------------------------------------------
# What is made in parts


@dataclass(kw_only=True, eq=False)
class _Job:
    """All that is made in parts, gathered."""

    config: MeasureConfig
    store: Store
    sets: Mapping[str, PictureSet]
    networks: Mapping[str, FeatureNetwork]
    progress: Progress

    def __post_init__(self) -> None:
        self.left_out: list[str] = []

    def features(self) -> dict[str, dict[str, Tensor]]:
        """Features by set and `<network>.<feature>`."""
        config = self.config
        size = -(-PART // config.batch_size) * config.batch_size
        parts = {name: parts_of(name, len(pictures), size) for name, pictures in self.sets.items()}
        arguments = {
            "sets": self.sets, "networks": self.networks, "batch_size": config.batch_size, "threads": config.threads,
        }  # fmt: skip
        self._make("features", [part for own in parts.values() for part in own], FeatureMaker, arguments)
        names = [f"{name}.{POOLED}" for name in self.networks]
        names += [f"{TEACHER}.{DESCRIPTOR}"] if TEACHER in self.networks else []
        return {
            name: {kind: torch.from_numpy(np.concatenate(self._arrays(own, kind))) for kind in names}
            for name, own in parts.items()
        }

    def diversity(self) -> list[dict[str, object]]:
        """Rows of the table of diversity."""
        config = self.config
        chosen: dict[str, tuple[PictureSet, tuple[int, int], np.ndarray]] = {}
        for name in (GENERATED, "real") if config.diversity_pairs else ():
            pictures = self.sets[name]
            people = pictures.index["person_id"].to_numpy()
            seed = config.seed ^ purpose_word("diversity")
            pairs = identity_pairs(people, config.diversity_pairs, config.diversity_rounds, seed=seed)
            if not pairs.shape[1]:
                self.left_out.append(f"diversity of {name}: no identity has two pictures")
                continue
            pairs = pairs.reshape(len(pairs), -1, config.diversity_pairs, 2)
            chosen[f"{name}-table2"] = pictures, TABLE_2, pairs
            if pictures.size is None:
                self.left_out.append(f"diversity of {name} at its native size: its pictures are of several sizes")
            elif pictures.size != TABLE_2:
                chosen[f"{name}-native"] = pictures, pictures.size, pairs
        parts = {
            name: parts_of(f"dssim-{name}", pairs.shape[1], PART_OF_IDENTITIES)
            for name, (_, _, pairs) in chosen.items()
        }
        sets = {f"dssim-{name}": value for name, value in chosen.items()}
        self._make("DSSIM", [part for own in parts.values() for part in own], DissimilarityMaker, {"sets": sets})
        rows: list[dict[str, object]] = []
        for name, (_, (height, width), pairs) in chosen.items():
            values = np.concatenate(self._arrays(parts[name], "dssim"), axis=1)
            found = diversity(torch.from_numpy(values).flatten(1))
            rows.append(
                {
                    "picture": name.rpartition("-")[0], "height": height, "width": width, "rounds": len(pairs),
                    "pairs": values[0].size, "DSSIM": found.mean, "deviation": found.deviation,
                    "table2": found.table2, "table2_range": found.table2_range,
                }
            )  # fmt: skip
        return rows

    def people(self) -> tuple[list[dict[str, object]], np.ndarray | None, np.ndarray]:
        """Rows of the table of people, descriptors (PICTURES, P, D), and which P generated pictures they are of."""
        generated, none = self.sets[GENERATED], np.empty(0, np.int64)
        people = people_of(self.store)
        if people is None or not self.config.people:
            return [], None, none
        known = np.flatnonzero((generated.index[[*SOURCES]] != "").all(axis=1))
        if not len(known):
            self.left_out.append(
                "people without their background: the manifest has no columns appearance and structure, so their true"
                " pictures are not known"
            )
            return [], None, none
        rng = np.random.default_rng([self.config.seed, purpose_word("people")])
        rows = np.sort(rng.permutation(known)[: self.config.people])
        parts = parts_of("people", len(rows), PART_OF_PEOPLE)
        arguments = {
            "people": people, "generated": generated, "rows": rows, "teacher": self.networks.get(TEACHER),
        }  # fmt: skip
        self._make("drawn people", parts, PersonJudge, arguments)
        figures = np.concatenate(self._arrays(parts, "figures"), axis=2)
        names = [field.name for field in fields(PersonFidelity)]
        scores = [PersonFidelity(**dict(zip(names, torch.from_numpy(own), strict=True))) for own in figures]
        table: list[dict[str, object]] = [
            {"picture": picture, "pictures": len(rows), **person_figures(own, scores[1])}
            for picture, own in zip(PICTURES, scores, strict=True)
        ]
        descriptors = np.concatenate(self._arrays(parts, DESCRIPTOR), axis=1) if TEACHER in self.networks else None
        return table, descriptors, rows

    def _make(self, what: str, parts: Sequence[Part], work: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
        """Make the parts that are missing, with progress."""
        folder, config = self.config.parts, self.config
        lacking, total = missing(folder, parts), sum(map(len, parts))
        done = total - sum(map(len, lacking))
        self.progress(what, done, total)

        def written(part: Part) -> None:
            nonlocal done
            done += len(part)
            self.progress(what, done, total)

        gpus = config.gpus if config.workers else None
        make_parts(folder, lacking, work, arguments, workers=config.workers, gpus=gpus, progress=written)

    def _arrays(self, parts: Sequence[Part], name: str) -> list[np.ndarray]:
        return [np.load(self.config.parts / part.name / f"{name}.npy", allow_pickle=False) for part in parts]


# ------------------------------------------------------------------------------------------------------------
# After: figures


def _distances(
    features: Mapping[str, Mapping[str, Tensor]], config: MeasureConfig, left_out: list[str]
) -> list[dict[str, object]]:
    """Rows of the table of distances: of the generator, of the floor, and of the generator at the floor's number."""
    rng = np.random.default_rng([config.seed, purpose_word("real")])
    order = torch.from_numpy(rng.permutation(len(features["real"][next(iter(features["real"]))])))
    rows: list[dict[str, object]] = []
    for kind in (kind for kind in features["real"] if kind.endswith(f".{POOLED}")):
        network = kind.removesuffix(f".{POOLED}")
        frechet, kernel = ("fid", "kid") if network == INCEPTION else (f"frechet_{network}", f"kid_{network}")
        generated, real = features[GENERATED][kind], features["real"][kind][order]
        n = min(len(generated), len(real), config.pictures)
        others, floor = (real[len(real) // 2 :], "real, other half")
        m = min(n, len(real) // 2)
        if config.floor == "gallery":
            others, floor = features["gallery"][kind], "real, gallery"
            m = min(n, len(others))
        compared = [(GENERATED, generated[:n]), (floor, others[:m])]
        compared += [(f"{GENERATED}, as many", generated[:m])] if m < n else []
        known: dict[int, Moments] = {}
        for name, values in compared:
            row = {"compared": name, "pictures": len(values)}
            try:
                if len(values) not in known:
                    known[len(values)] = moments(real[: len(values)])
                distance = frechet_distance(known[len(values)], moments(values))
                rows.append({"figure": frechet, **row, "value": distance, "deviation": None})
            except TooFewPicturesError as error:
                left_out.append(f"{frechet} of {name}: {error}")
            try:
                distance = kernel_distance(real[: len(values)], values, seed=config.seed)
                deviation = {"value": distance.mean, "deviation": distance.deviation, "subset": distance.subset_size}
                rows.append({"figure": kernel, **row, **deviation})
            except TooFewPicturesError as error:
                left_out.append(f"{kernel} of {name}: {error}")
    return rows


def _identity(
    features: Mapping[str, Mapping[str, Tensor]],
    descriptors: np.ndarray | None,
    rows: np.ndarray,
    generated: PictureSet,
    real: PictureSet,
) -> tuple[list[dict[str, object]], Tensor | None]:
    """Rows of the table of identities, and the appearance's rank for each generated picture."""
    kind = f"{TEACHER}.{DESCRIPTOR}"
    if kind not in features["real"]:
        return [], None
    place = {name: row for row, name in enumerate(real.index["file_name"])}
    columns = [[place.get(name, -1) for name in generated.index[column]] for column in SOURCES]
    left_out = torch.tensor(columns).T
    gallery_ids = torch.from_numpy(real.index["person_id"].to_numpy(np.int64, copy=True))
    ids = [torch.from_numpy(generated.index[c].to_numpy(np.int64, copy=True)) for c in ("person_id", "structure_id")]
    queries = {GENERATED: (features[GENERATED][kind], torch.arange(len(generated)))}
    if descriptors is not None:
        for picture, own in zip(PICTURES[1:], descriptors[1:], strict=True):
            queries[picture] = torch.from_numpy(own), torch.from_numpy(rows)
    table: list[dict[str, object]] = []
    of_generated: Tensor | None = None
    for picture, (own, asked) in queries.items():
        row: dict[str, object] = {"picture": picture, "pictures": len(asked)}
        for name, wanted in zip(SOURCES, ids, strict=True):
            ranks = identity_ranks(own, features["real"][kind], gallery_ids, wanted[asked], left_out[asked])
            if name == SOURCES[0] and picture == GENERATED:
                of_generated = ranks
            ranks = ranks[ranks > 0].double()  # of the others, the store has no second picture
            row[f"{name}_rank1"] = float((ranks == 1).double().mean()) if len(ranks) else float("nan")
            row[f"{name}_median"] = float(ranks.median()) if len(ranks) else float("nan")
        table.append({**row, "identities": len(gallery_ids.unique())})
    return table, of_generated


def _picture(generated: PictureSet, real: PictureSet, ranks: Tensor | None, title: str) -> Image.Image:
    """Swaps that keep the appearance's identity best and worst (the paper's Figure 7): sources above the generated."""
    if ranks is None:
        halves = {"generated": np.arange(min(2 * SHOWN, len(generated)))}
    else:
        ranked = torch.where(ranks > 0, ranks, ranks.max() + 1).argsort(stable=True).numpy()
        count = min(SHOWN, -(-len(ranked) // 2))
        worst = [row for row in ranked[::-1] if ranks[int(row)] > 0][:count]
        halves = {
            f"identity kept, rank {_span(ranks, ranked[:count])}": ranked[:count],
            f"identity lost, rank {_span(ranks, worst)}": np.array(worst[::-1], dtype=np.int64),
        }
    size = generated.size
    assert size is not None
    place = {name: row for row, name in enumerate(real.index["file_name"])}
    first_of = {person: row for row, person in reversed(list(enumerate(real.index["person_id"])))}
    grids = []
    for caption, rows in halves.items():
        if not len(rows):
            continue
        shown = generated.index.iloc[rows]
        cells = [
            real.decode([place.get(n, first_of.get(p, 0)) for n, p in zip(shown[c], shown[i], strict=True)], size)
            for c, i in zip(SOURCES, ("person_id", "structure_id"), strict=True)
            if shown[i].isin(list(first_of)).any()  # else no person who exists is shown
        ]
        grids.append((caption, tile(torch.stack([*cells, generated.decode(rows)]), wide_rows=(len(cells),)).numpy()))
    return captioned_grids(f"{title}: appearance, structure, generated", grids, cell_height=size[0])


def _span(ranks: Tensor, rows: Sequence[int] | np.ndarray) -> str:
    """The ranks of some pictures, in words."""
    found = ranks[torch.from_numpy(np.array(rows, dtype=np.int64))]
    if not len(found):
        return "unknown"
    low, high = int(found.min()), int(found.max())
    return str(low) if low == high else f"{low} to {high}"
