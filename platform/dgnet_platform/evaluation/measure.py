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
from dgnet_core.generation.inception import TABLE_2
from dgnet_core.generation.people import PersonFidelity, person_figures
from dgnet_core.learning.draws import purpose_word
from dgnet_platform.compute.parts import Part, make_parts, missing, owned, parts_of
from dgnet_platform.data.pose_files import PoseError
from dgnet_platform.data.poses import KeyPoints
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.config import GenerateConfig, MeasureConfig
from dgnet_platform.evaluation.extraction import Progress
from dgnet_platform.evaluation.generate import generate
from dgnet_platform.evaluation.identity import best_and_worst, identity_rows
from dgnet_platform.evaluation.judges import (
    DESCRIPTOR,
    PICTURES,
    POOLED,
    TEACHER,
    DissimilarityMaker,
    FeatureMaker,
    FeatureNetwork,
    PersonJudge,
    PhotographJudge,
    inception_features,
    resnet_features,
    teacher_features,
)
from dgnet_platform.evaluation.measured import GENERATED, Measured
from dgnet_platform.evaluation.picture_sets import SOURCES, PictureSet, PictureSetError, generated_set, stored_set
from dgnet_platform.evaluation.swaps import people_of
from dgnet_platform.runs.loading import digest_of, load_teacher, open_teacher
from dgnet_platform.runs.run import Run

INCEPTION = "inception"
PART, PART_OF_PEOPLE, PART_OF_IDENTITIES = 512, 32, 8
"""Pictures, drawn people and identities in a part: all that a kill costs a worker."""


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
        "keypoints": job.keypoints and job.keypoints.digest,
        "pictures": generated.digest(),
        "networks": digests,
        **{name: getattr(config, name) for name in _DECISIVE},
    }
    with owned(config.parts, settings):
        features = job.features()
        dissimilarities = job.diversity()
        fidelity, descriptors, rows = job.people()
        identity, ranks = identity_rows(features, descriptors, rows, generated, real)
        return Measured(
            source=f"{len(generated):,} pictures of {config.checkpoint or config.generated}, against {len(real):,} of"
            f" {config.split} of {store.location}",
            drawn=bool(store.info.origin),
            networks=digests,
            mode=config.mode if INCEPTION in networks else None,
            distances=pd.DataFrame(_distances(features, config, job.left_out)),
            diversity=pd.DataFrame(dissimilarities),
            people=pd.DataFrame(fidelity),
            identity=pd.DataFrame(identity),
            left_out=job.left_out,
            pictures={"swaps.png": best_and_worst(generated, real, ranks, str(config.checkpoint or config.generated))},
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
        self.drawn = people_of(self.store) if self.config.people else None
        self.keypoints: KeyPoints | None = None
        if self.config.people and self.drawn is None:
            try:
                self.keypoints = KeyPoints.open(self.store)
            except PoseError as error:
                self.left_out.append(f"people without their background: {error}")

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
                self.left_out.append(f"diversity of {name}: no identity has two pictures: it needs two of one or more")
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
        index, count, none = self.sets[GENERATED].index, self.config.people, np.empty(0, np.int64)
        if self.drawn is None and self.keypoints is None:
            return [], None, none
        known = np.flatnonzero((index[[*SOURCES]] != "").all(axis=1))
        if not len(known):
            self.left_out.append(
                "people without their background: the manifest has no columns appearance and structure, so their true"
                " pictures are not known"
            )
            return [], None, none
        chosen = np.random.default_rng([self.config.seed, purpose_word("people")]).permutation(known)
        if self.drawn is not None:
            rows = np.sort(chosen[:count])
            arguments = {"people": self.drawn, "teacher": self.networks.get(TEACHER)}
            parts = self._judged("drawn people", PersonJudge, rows, arguments)
            descriptors = np.concatenate(self._arrays(parts, DESCRIPTOR), axis=1) if TEACHER in self.networks else None
            return self._person_rows(parts, PICTURES, len(rows)), descriptors, rows
        # The true picture is known of the few that have both sources of one person: they are half, if there are enough.
        same = (index["person_id"] == index["structure_id"]).to_numpy()[chosen]
        first = chosen[same][: count // 2]
        rows = np.sort(np.concatenate([first, chosen[~np.isin(chosen, first)]])[:count])
        parts = self._judged("people", PhotographJudge, rows, self._sources(rows))
        table = self._person_rows(parts, PICTURES[:2], len(rows))
        if not same.any():
            self.left_out.append(
                "person_L1, person_PSNR and person_SSIM: no photograph shows the true swap but where appearance and"
                " structure are two pictures of one person, of which there is none"
            )
        return table, None, none

    def _sources(self, rows: np.ndarray) -> dict[str, object]:
        """What generated pictures were made from: rows of the real ones (2, P), and their joints (2, P, 18, 3)."""
        assert self.keypoints is not None
        generated, real, split = self.sets[GENERATED], self.sets["real"], self.config.split
        assert generated.size is not None
        height, width = generated.size
        place = {name: row for row, name in enumerate(real.index["file_name"])}
        table = self.store.index(split).set_index("file_name", drop=False)
        names = [generated.index[column].iloc[rows] for column in SOURCES]
        return {
            "real": real,
            "places": np.array([[place[name] for name in own] for own in names]),
            "joints": np.stack(
                [self.keypoints.joints(split, table.loc[own], height=height, width=width) for own in names]
            ),
        }

    def _judged(
        self, what: str, judge: Callable[..., Any], rows: np.ndarray, arguments: Mapping[str, Any]
    ) -> list[Part]:
        """Parts that a judge of people made of some generated pictures."""
        parts = parts_of("people", len(rows), PART_OF_PEOPLE)
        self._make(what, parts, judge, {"generated": self.sets[GENERATED], "rows": rows, **arguments})
        return parts

    def _person_rows(self, parts: Sequence[Part], pictures: Sequence[str], count: int) -> list[dict[str, object]]:
        """Rows of the table of people; the second picture is x_j as it is."""
        figures = np.concatenate(self._arrays(parts, "figures"), axis=2)
        names = [field.name for field in fields(PersonFidelity)]
        scores = [PersonFidelity(**dict(zip(names, torch.from_numpy(own), strict=True))) for own in figures]
        return [
            {"picture": picture, "pictures": count, **person_figures(own, scores[1])}
            for picture, own in zip(pictures, scores, strict=True)
        ]

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

    def mixed(name: str, kind: str) -> Tensor:
        """A set in an order of its own: as it is, by identity, its first pictures would be of a few people."""
        rng = np.random.default_rng([config.seed, purpose_word(name)])
        return features[name][kind][torch.from_numpy(rng.permutation(len(features[name][kind])))]

    rows: list[dict[str, object]] = []
    for kind in (kind for kind in features["real"] if kind.endswith(f".{POOLED}")):
        network = kind.removesuffix(f".{POOLED}")
        frechet, kernel = f"frechet_{network}", f"kid_{network}"
        if network == INCEPTION:  # figures of two modes are not comparable; those of Table 2 have the plain name
            frechet, kernel = (name if config.mode == "table2" else f"{name}_{config.mode}" for name in ("fid", "kid"))
        generated, real = mixed(GENERATED, kind), mixed("real", kind)
        n = min(len(generated), len(real), config.pictures)
        others, floor = (real[len(real) // 2 :], "real, other half")
        m = min(n, len(real) // 2)
        if config.floor == "gallery":
            others, floor = mixed("gallery", kind), "real, gallery"
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
