"""Figures and pictures of a run under way: always of the same people, so that they can be compared over time."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dgnet_core.generation.distances import kernel_distance
from dgnet_core.learning.augment import normalise, to_symmetric
from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.precision import autocast, dtype_of
from dgnet_core.learning.state import State
from dgnet_core.methods import method_of
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.networks.statistics import reestimated
from dgnet_core.ranking.extraction import extract
from dgnet_core.ranking.retrieval import SWEEP, sweep_beta
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.evaluation.pictures import PicturesOf, ranked_picture
from dgnet_platform.evaluation.swaps import (
    GENERATED,
    choose_pairs,
    different_people,
    fidelity,
    grid_picture,
    invented_picture,
    reconstruction,
    same_person_pairs,
)
from dgnet_platform.runs.loading import TrainedNetworks
from dgnet_platform.storage.files import flush, naming, write_whole

PAIRS = 32
"""Generated pictures that are compared with the true ones."""
QUERIES_SHOWN = 6
QUERIES = "val_queries.npz"
"""File in a run's folder with what the latest validation says of each query."""
THUMBNAILS = 128
"""People drawn from noise that are compared with as many of the gallery."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What came out after some iteration."""

    metrics: dict[str, float]
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    queries: dict[str, Tensor] = field(default_factory=dict)
    """(Q) of each held-out query: person_ids; and its average precision by the descriptor of the run's own beta
    (`own`), and of the beta that is best here (`best`)."""
    statistics: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """BatchNorm's statistics that were evaluated with, by network and buffer, where they are not the run's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Validator:
    """Validates on a query and a gallery."""

    config: MethodConfig
    group: str
    """Before the names of metrics: "val" for held-out training identities, "test" for query and gallery,
    "train" for what is trained on, which is drawn and not ranked: there is nothing else."""
    query: ImageSet
    gallery: ImageSet
    people: People | None
    """Who is drawn in the pictures; None for photographs."""
    batches: Callable[[], Iterable[Tensor]] = lambda: ()
    """Images (B, 3, H, W) from which BatchNorm's statistics are estimated anew; none: the run's own serve."""

    def __call__(self, state: State) -> Validation:
        """What the method can do: retrieval figures in [0, 1] and ranked lists, swaps and how close they come.

        `reconstruction/` is of pictures that are drawn from another one of the same person, `swap/` of swaps among
        drawn people, `thumbnails/` of people drawn from noise.
        """
        trained = TrainedNetworks(
            state=state, config=self.config, source=f"iteration {state.iteration:,}", dataset=None, fingerprint=None
        )
        validation = Validation(metrics={}, pictures={})
        with self._precise(trained, validation):
            if trained.method.describe is not None and self.group != "train":
                self._rank(trained, trained.method.describe(state), validation)
            if trained.method.draw is not None:
                self._draw(trained, validation)
        if trained.method.invent is not None:
            validation.pictures["people"] = invented_picture(trained, trained.source)
            validation.metrics[f"{self.group}/thumbnails/KID"] = self._apart(trained)
        return validation

    @contextmanager
    def _precise(self, trained: TrainedNetworks, validation: Validation) -> Iterator[None]:
        """Meanwhile, statistics of BatchNorm are those of a fixed number of batches, which are kept."""
        if trained.method.describe is None or not self.config.precise_batches:
            yield
            return
        network = trained.method.describe(trained.state)
        [name] = [name for name in trained.state.networks if trained.state.describing(name) is network]

        def describe(images: Tensor) -> None:
            with autocast(self.config.step, images.device):
                network.describe(images.to(dtype_of(self.config.step)))

        with reestimated(network, describe, self.batches()):
            validation.statistics[name] = {key: buffer.clone() for key, buffer in network.named_buffers()}
            yield

    def _rank(self, trained: TrainedNetworks, network: DescriptorNetwork, validation: Validation) -> None:
        """Add retrieval figures and ranked lists."""
        precision = "bfloat16" if self.config.step.precision == "bfloat16" else "float32"
        query, gallery = (
            extract(
                network,
                images.images,
                images.person_ids,
                images.camera_ids,
                height=trained.network.height,
                width=trained.network.width,
                precision=precision,
            )
            for images in (self.query, self.gallery)
        )
        features = trained.method.features(self.config, trained.state.iteration)
        swept = SWEEP if self._chooses and len(features) > 1 else ()
        results = sweep_beta(query, gallery, [*features.values(), *swept])
        metrics = validation.metrics
        for feature, result in zip(features, results, strict=False):
            for figure, value in result.summary().items():
                if not figure.startswith("queries"):
                    metrics[f"{self.group}/{feature}/{figure}"] = value
        own = best = results[len(features) - 1]
        if swept:
            by_beta = {b: r.mean_average_precision for b, r in zip(swept, results[len(features) :], strict=True)}
            metrics |= {f"{self.group}/mAP_by_beta/{b:g}": value for b, value in by_beta.items()}
            best = max(results[len(features) :], key=lambda result: result.mean_average_precision)
        if self._chooses:
            metrics |= {f"{self.group}/best/mAP": best.mean_average_precision, f"{self.group}/best/beta": best.beta}
            validation.queries.update(person_ids=own.person_ids, own=own.average_precision, best=best.average_precision)
        beta = own.beta
        shown = _pictures_of(self.query), _pictures_of(self.gallery)
        validation.pictures["ranked"] = ranked_picture(trained.source, query, gallery, *shown, beta, QUERIES_SHOWN)

    def _draw(self, trained: TrainedNetworks, validation: Validation) -> None:
        """Add swaps, and how close drawn pictures come to the true ones."""
        rows = different_people(self.query.person_ids.tolist())
        names = [self.query.file_names[row] for row in rows]
        shown = _pictures_of(self.query)(rows)
        joints = None if self.query.joints is None else self.query.joints[rows]
        validation.pictures["swaps"] = grid_picture(trained, shown, names, self.people, trained.source, joints)
        again = same_person_pairs(self.gallery.person_ids.tolist(), PAIRS)
        if again:
            rows = [row for pair in again for row in pair]
            shown = _pictures_of(self.gallery)(rows)
            joints = None if self.gallery.joints is None else self.gallery.joints[rows]
            scores = reconstruction(trained, shown, [(n, n + 1) for n in range(0, len(shown), 2)], joints)
            validation.metrics.update({f"{self.group}/reconstruction/{name}": value for name, value in scores.items()})
        if self.people is not None:
            pairs = choose_pairs([shot_of(name) for name in self.gallery.file_names], PAIRS)
            scores = fidelity(trained, self.people, pairs)[GENERATED] if pairs else {}
            validation.metrics.update({f"{self.group}/swap/{name}": value for name, value in scores.items()})

    def _apart(self, trained: TrainedNetworks) -> float:
        """Kernel distance between people drawn from noise and the gallery's, over pictures of 16 x 8 in [-1, 1]."""
        count = min(THUMBNAILS, len(self.gallery))
        rows = torch.linspace(0, len(self.gallery) - 1, count).long()
        real = normalise(self.gallery.images[rows].cpu(), trained.network.height, trained.network.width)
        sides = [
            F.interpolate(to_symmetric(images.float().cpu()), (16, 8), mode="area").flatten(1)
            for images in (real, trained.invent(count, 0))
        ]
        return kernel_distance(*sides).mean

    @property
    def _chooses(self) -> bool:
        """Whether the weight of f_fine may be chosen here: not on query and gallery, which measure the choice."""
        return self.group == "val" and method_of(self.config).chooses_beta

    @property
    def objective(self) -> str | None:
        """The metric to choose a checkpoint by: mAP of the best descriptor, SSIM where nothing is described, or none
        where no person who exists is drawn."""
        method = method_of(self.config)
        if method.describe is None:
            return None if method.draw is None else f"{self.group}/reconstruction/SSIM"
        feature, _ = method.best_feature(self.config, self.config.iterations)
        return f"{self.group}/{'best' if self._chooses else feature}/mAP"


def _pictures_of(images: ImageSet) -> PicturesOf:
    """Gives the pictures of some rows of an image set."""
    return lambda rows: [images.images[row].cpu().numpy() for row in rows]


def save_pictures(pictures: dict[str, Image.Image], folder: Path, iteration: int) -> dict[str, str]:
    """Write pictures below a run's folder; returns their paths relative to it, by name."""
    files = {}
    for name, picture in pictures.items():
        file = Path("pictures") / name / f"{iteration:08d}.png"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        with naming(folder / file):
            picture.save(folder / file, "PNG")
            flush(folder / file)  # the checkpoint and the journal that speak of it are flushed too
        files[name] = file.as_posix()
    return files


def save_queries(queries: dict[str, Tensor], folder: Path, iteration: int) -> None:
    """Write what a validation says of each query into a run's folder, in place of an earlier one's."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {name: values.numpy() for name, values in queries.items()}
    np.savez(file, iteration=iteration, **arrays)
    write_whole(folder / QUERIES, file.getvalue())


def read_queries(folder: Path, iteration: int) -> dict[str, Tensor] | None:
    """What `save_queries` wrote; None: nothing, or of another iteration."""
    try:
        with np.load(folder / QUERIES) as found:
            if int(found["iteration"]) != iteration:
                return None
            return {name: torch.from_numpy(found[name]) for name in found.files if name != "iteration"}
    except FileNotFoundError:
        return None
