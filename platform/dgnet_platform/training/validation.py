"""Figures and pictures of a run under way: always of the same people, so that they can be compared over time."""

from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.ranking.extraction import extract
from dgnet_core.ranking.features import BETA
from dgnet_core.ranking.retrieval import sweep_beta
from dgnet_core.teacher.state import TeacherState
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.evaluation.pictures import PicturesOf, ranked_picture
from dgnet_platform.evaluation.swaps import (
    choose_pairs,
    different_people,
    fidelity,
    grid_picture,
    reconstruction,
    same_person_pairs,
)
from dgnet_platform.runs.checkpoint import State
from dgnet_platform.runs.experiment import ModelConfig
from dgnet_platform.runs.loading import Trained
from dgnet_platform.storage.files import flush

BETAS = {"prim": 0.0, "fine": float("inf"), "both": BETA}
SWEEP = tuple(step / 10 for step in range(11))
"""Weights of f_fine that are tried on held-out identities, to choose the best of."""
PAIRS = 32
"""Generated pictures that are compared with the true ones."""
QUERIES_SHOWN = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What came out after some iteration."""

    metrics: dict[str, float]
    pictures: dict[str, Image.Image] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Validator:
    """Validates on a query and a gallery."""

    config: ModelConfig
    group: str
    """Before the names of metrics: "val" for held-out training identities, "test" for query and gallery."""
    query: ImageSet
    gallery: ImageSet
    people: People | None
    """Who is drawn in the pictures; None for photographs."""

    def __call__(self, state: State) -> Validation:
        """Retrieval figures in [0, 1], ranked lists; for DG-Net swaps, and how close pictures come to the true ones.

        `reconstruction/` is of pictures that are drawn from another one of the same person, `swap/` of swaps among
        drawn people.
        """
        network = state.teacher if isinstance(state, TeacherState) else state.appearance_encoder
        size = self.config.network.height, self.config.network.width
        precision = "bfloat16" if self.config.step.precision == "bfloat16" else "float32"
        query, gallery = (
            extract(
                network,
                images.images,
                images.person_ids,
                images.camera_ids,
                height=size[0],
                width=size[1],
                precision=precision,
            )
            for images in (self.query, self.gallery)
        )
        betas = {"baseline": 0.0} if isinstance(state, TeacherState) else BETAS
        swept = SWEEP if self.chooses_beta else ()
        results = sweep_beta(query, gallery, [*betas.values(), *swept])
        metrics = {
            f"{self.group}/{feature}/{figure}": value
            for feature, result in zip(betas, results, strict=False)
            for figure, value in result.summary().items()
            if not figure.startswith("queries")
        }
        if swept:
            by_beta = {b: r.mean_average_precision for b, r in zip(swept, results[len(betas) :], strict=True)}
            best = max(by_beta, key=by_beta.__getitem__)
            metrics |= {f"{self.group}/best/mAP": by_beta[best], f"{self.group}/best/beta": best}
            metrics |= {f"{self.group}/mAP_by_beta/{b:g}": value for b, value in by_beta.items()}
        title = f"iteration {state.iteration:,}"
        beta = list(betas.values())[-1]
        pictures = {
            "ranked": ranked_picture(
                title, query, gallery, _pictures_of(self.query), _pictures_of(self.gallery), beta, QUERIES_SHOWN
            )
        }
        if not isinstance(state, TeacherState):
            trained = Trained(state=state, network=self.config.network, source=title, dataset=None, fingerprint=None)
            rows = different_people(self.query.person_ids.tolist())
            names = [self.query.file_names[row] for row in rows]
            pictures["swaps"] = grid_picture(trained, _pictures_of(self.query)(rows), names, self.people, title)
            again = same_person_pairs(self.gallery.person_ids.tolist(), PAIRS)
            if again:
                rows = [place for pair in again for place in pair]
                shown = _pictures_of(self.gallery)(rows)
                scores = reconstruction(trained, shown, [(n, n + 1) for n in range(0, len(rows), 2)])
                metrics |= {f"{self.group}/reconstruction/{figure}": value for figure, value in scores.items()}
            if self.people is not None:
                pairs = choose_pairs([shot_of(name) for name in self.gallery.file_names], PAIRS)
                scores = fidelity(trained, self.people, pairs)["G(a_i, s_j)"] if pairs else {}
                metrics |= {f"{self.group}/swap/{figure}": value for figure, value in scores.items()}
        return Validation(metrics=metrics, pictures=pictures)

    @property
    def chooses_beta(self) -> bool:
        """Whether the weight of f_fine may be chosen here: not on query and gallery, which measure the choice."""
        return isinstance(self.config, DGNetConfig) and self.group == "val"

    @property
    def objective(self) -> str:
        """The metric to choose a checkpoint by."""
        feature = "best" if self.chooses_beta else "both" if isinstance(self.config, DGNetConfig) else "baseline"
        return f"{self.group}/{feature}/mAP"


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
