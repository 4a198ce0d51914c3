"""Figures and pictures of a run under way: always of the same people, so that they can be compared over time."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from dgnet_core.generation.distances import kernel_distance
from dgnet_core.learning.augment import normalise, to_symmetric
from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.state import State
from dgnet_core.methods import method_of
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.extraction import extract
from dgnet_core.ranking.retrieval import sweep_beta
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.evaluation.pictures import PicturesOf, ranked_picture
from dgnet_platform.evaluation.swaps import (
    choose_pairs,
    different_people,
    fidelity,
    grid_picture,
    invented_picture,
    reconstruction,
    same_person_pairs,
)
from dgnet_platform.runs.loading import TrainedNetworks
from dgnet_platform.storage.files import flush

SWEEP = tuple(step / 10 for step in range(11))
"""Weights of f_fine that are tried on held-out identities, to choose the best of."""
PAIRS = 32
"""Generated pictures that are compared with the true ones."""
QUERIES_SHOWN = 6
THUMBNAILS = 128
"""People drawn from noise that are compared with as many of the gallery."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What came out after some iteration."""

    metrics: dict[str, float]
    pictures: dict[str, Image.Image] = field(default_factory=dict)


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

    def __call__(self, state: State) -> Validation:
        """What the method can do: retrieval figures in [0, 1] and ranked lists, swaps and how close they come.

        `reconstruction/` is of pictures that are drawn from another one of the same person, `swap/` of swaps among
        drawn people, `thumbnails/` of people drawn from noise.
        """
        trained = TrainedNetworks(
            state=state, config=self.config, source=f"iteration {state.iteration:,}", dataset=None, fingerprint=None
        )
        validation = Validation(metrics={}, pictures={})
        if trained.method.describe is not None and self.group != "train":
            self._rank(trained, trained.method.describe(state), validation)
        if trained.method.draw is not None:
            self._draw(trained, validation)
        if trained.method.invent is not None:
            validation.pictures["people"] = invented_picture(trained, trained.source)
            validation.metrics[f"{self.group}/thumbnails/KID"] = self._apart(trained)
        return validation

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
        features = trained.method.features
        swept = SWEEP if self.chooses_beta else ()
        results = sweep_beta(query, gallery, [*features.values(), *swept])
        metrics = validation.metrics
        for feature, result in zip(features, results, strict=False):
            for figure, value in result.summary().items():
                if not figure.startswith("queries"):
                    metrics[f"{self.group}/{feature}/{figure}"] = value
        if swept:
            by_beta = {b: r.mean_average_precision for b, r in zip(swept, results[len(features) :], strict=True)}
            best = max(by_beta, key=by_beta.__getitem__)
            metrics |= {f"{self.group}/best/mAP": by_beta[best], f"{self.group}/best/beta": best}
            metrics |= {f"{self.group}/mAP_by_beta/{b:g}": value for b, value in by_beta.items()}
        beta = list(features.values())[-1]
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
            scores = fidelity(trained, self.people, pairs)["G(a_i, s_j)"] if pairs else {}
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
    def chooses_beta(self) -> bool:
        """Whether the weight of f_fine may be chosen here: not on query and gallery, which measure the choice."""
        return len(method_of(self.config).features) > 1 and self.group == "val"

    @property
    def objective(self) -> str | None:
        """The metric to choose a checkpoint by: mAP of the best descriptor, SSIM where nothing is described, or none
        where no person who exists is drawn."""
        features = method_of(self.config).features
        if not features and method_of(self.config).draw is None:
            return None
        if not features:
            return f"{self.group}/reconstruction/SSIM"
        return f"{self.group}/{'best' if self.chooses_beta else list(features)[-1]}/mAP"


def _pictures_of(images: ImageSet) -> PicturesOf:
    """Gives the pictures of some rows of an image set."""
    return lambda rows: [images.images[row].cpu().numpy() for row in rows]


def save_pictures(pictures: dict[str, Image.Image], folder: Path, iteration: int) -> dict[str, str]:
    """Write pictures below a run's folder; returns their paths relative to it, by name."""
    files = {}
    for name, picture in pictures.items():
        file = Path("pictures") / name / f"{iteration:08d}.png"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / file, "PNG")
        flush(folder / file)  # the checkpoint and the journal that speak of it are flushed too
        files[name] = file.as_posix()
    return files
