"""Parts of what is measured of generated people: features, DSSIM, and drawn people beside the true pictures.

Each class maps a part to its files, here or on workers, see `compute.parts`.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.generation.distances import dssim
from dgnet_core.generation.inception import Mode, inception_input, read_inception
from dgnet_core.generation.people import colour_errors, person_fidelity
from dgnet_core.learning.augment import normalise
from dgnet_core.learning.poses import capsule_mask
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.modes import evaluating
from dgnet_core.networks.resnet import ResNetTrunk, load_imagenet
from dgnet_core.ranking.features import mirror_average
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.compute.parts import Files, Part
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.evaluation.picture_sets import BODY, SOURCES, PictureSet, PictureSetError
from dgnet_platform.evaluation.swaps import NOISY, UNCHANGED, noisy
from dgnet_platform.threads import map_in_threads

TEACHER = "teacher"
"""Name of the network that re-identifies people."""
POOLED, DESCRIPTOR = "pooled", "descriptor"
"""Names of a network's features: what distances compare, and what re-identifies people."""
PICTURES = "generated", UNCHANGED, NOISY
"""What is compared with the true picture: the generator's, and what two references reach."""


# ------------------------------------------------------------------------------------------------------------
# Networks whose features are compared


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """A network, and how it turns pictures into features."""

    network: nn.Module
    features: Callable[[nn.Module, Tensor], dict[str, Tensor]]
    """(B, 3, h, w), uint8, on the network's device -> (B, D) by name, POOLED among them."""


def teacher_features(teacher: Teacher, height: int, width: int) -> FeatureNetwork:
    """The teacher's pooled features, and its descriptor as retrieval has it."""
    return FeatureNetwork(network=teacher, features=_Teacher(height, width))


def inception_features(path: Path, mode: Mode) -> FeatureNetwork:
    """The FID network of a file.

    Raises:
        PictureSetError: the file is of another network, or no file of tensors.
        FileNotFoundError: no such file.
    """
    try:
        return FeatureNetwork(network=read_inception(path), features=_Inception(mode))
    except ValueError as error:
        raise PictureSetError(f"--inception {error}") from error


def resnet_features(path: Path) -> tuple[str, FeatureNetwork]:
    """A ResNet of a torchvision file, by its name such as resnet50, on pictures of 256 x 128.

    Raises:
        PictureSetError: the file is of another network, or no file of tensors.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        layers = [
            sum(name.startswith(f"layer{stage}.") and name.endswith(".conv1.weight") for name in tensors)
            for stage in (1, 2, 3, 4)
        ]
        config = NetworkConfig(
            appearance_layers=(layers[0], layers[1], layers[2], layers[3]),
            appearance_width=len(tensors["conv1.weight"]),
            pretrained=str(path),
        )
        trunk = ResNetTrunk(config, last_stride=2)
        load_imagenet(trunk, config)
    except FileNotFoundError:
        raise
    except Exception as error:  # PyTorch meets foreign bytes with almost any exception
        raise PictureSetError(
            f"--resnet {path} is no ResNet of bottleneck blocks as torchvision saves it ({error}): name such a file"
        ) from error
    features = _ResNet(config.height, config.width)
    return f"resnet{3 * sum(layers) + 2}", FeatureNetwork(network=trunk, features=features)


@dataclass(frozen=True)
class _Teacher:
    height: int
    width: int

    def __call__(self, teacher: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        teacher = cast(Teacher, teacher)
        x = normalise(pixels, self.height, self.width)
        pooled = teacher.pooled(torch.cat([x, x.flip(3)]))
        descriptors = mirror_average(*teacher.head(pooled).chunk(2))
        return {POOLED: pooled[: len(x)], DESCRIPTOR: descriptors}


@dataclass(frozen=True)
class _ResNet:
    height: int
    width: int

    def __call__(self, trunk: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        return {POOLED: trunk(normalise(pixels, self.height, self.width)).mean(dim=(2, 3))}


@dataclass(frozen=True)
class _Inception:
    mode: Mode

    def __call__(self, network: nn.Module, pixels: Tensor) -> dict[str, Tensor]:
        return {POOLED: network(inception_input(pixels, self.mode))}


# ------------------------------------------------------------------------------------------------------------
# Work


class FeatureMaker:
    """Features of parts of picture sets: each picture is decoded once for all networks."""

    def __init__(
        self,
        *,
        device: torch.device,
        sets: Mapping[str, PictureSet],
        networks: Mapping[str, FeatureNetwork],
        batch_size: int,
        threads: int,
    ) -> None:
        self._sets = sets
        self._networks = networks
        self._device = device
        self._batch_size = batch_size
        self._threads = threads
        for network in networks.values():
            network.network.to(device)

    def __call__(self, part: Part) -> Files:
        """`<network>.<feature>.npy`, float32, of the part's rows; its split names the set."""
        pictures = self._sets[part.split]
        batches = torch.arange(part.first, part.stop).split(self._batch_size)
        # Pictures of several sizes go through a network by themselves: each makes its own input of them.
        decoded = map_in_threads(lambda rows: [pictures.decode([row]) for row in rows.tolist()], batches, self._threads)
        found: dict[str, list[Tensor]] = {}
        with evaluating(*(network.network for network in self._networks.values())):
            for singles in decoded:
                for name, network in self._networks.items():
                    for kind, values in self._features(network, singles).items():
                        found.setdefault(f"{name}.{kind}.npy", []).append(values.float().cpu())
        return {name: npy(torch.cat(values).numpy()) for name, values in found.items()}

    def _features(self, network: FeatureNetwork, singles: list[Tensor]) -> dict[str, Tensor]:
        if len({single.shape for single in singles}) == 1:
            return network.features(network.network, torch.cat(singles).to(self._device))
        alone = [network.features(network.network, single.to(self._device)) for single in singles]
        return {kind: torch.cat([features[kind] for features in alone]) for kind in alone[0]}


class DissimilarityMaker:
    """DSSIM of pairs of pictures of one identity, in parts of identities."""

    def __init__(
        self,
        *,
        device: torch.device,
        sets: Mapping[str, tuple[PictureSet, tuple[int, int], np.ndarray]],
    ) -> None:
        self._sets = sets
        self._device = device

    def __call__(self, part: Part) -> Files:
        """`dssim.npy` (rounds, identities, pairs) of the part's identities."""
        pictures, size, pairs = self._sets[part.split]
        found = []
        for identity in range(part.first, part.stop):
            chosen = pairs[:, identity]  # (rounds, pairs, 2)
            rows, places = np.unique(chosen, return_inverse=True)
            pixels = pictures.decode(rows, size).to(self._device)
            values = dssim(pixels, torch.from_numpy(places.reshape(-1, 2)))
            found.append(values.cpu().numpy().reshape(chosen.shape[:2]))
        return {"dssim.npy": npy(np.stack(found, axis=1))}


class PersonJudge:
    """Generated drawn people beside the true pictures, and two references beside them too."""

    def __init__(
        self,
        *,
        device: torch.device,
        people: People,
        generated: PictureSet,
        rows: np.ndarray,
        teacher: FeatureNetwork | None,
    ) -> None:
        self._people = people
        self._generated = generated
        self._rows = rows
        self._teacher = teacher
        self._device = device
        if teacher is not None:
            teacher.network.to(device)

    def __call__(self, part: Part) -> Files:
        """`figures.npy` (PICTURES, 8, B), as PersonFidelity; with a teacher `descriptor.npy` (PICTURES, B, D)."""
        rows = self._rows[part.first : part.stop]
        generated = self._generated.decode(rows)
        size = tuple(generated.shape[2:])
        sources = self._generated.index.iloc[rows]
        shots = [map(shot_of, sources[column]) for column in (*SOURCES, BODY)]
        wanted = [{"appearance_of": i, "structure_of": j, "body_of": b} for i, j, b in zip(*shots, strict=True)]
        true = _stacked([self._people.draw(**one) for one in wanted], size)
        unchanged = _stacked([self._people.picture(*one["structure_of"]) for one in wanted], size)
        mask = np.stack([self._people.silhouette(**one) for one in wanted])
        silhouette = F.interpolate(torch.from_numpy(mask)[:, None], size, mode="area")[:, 0]
        compared = generated, unchanged, noisy(true)
        scores = [person_fidelity(pixels, true, silhouette) for pixels in compared]
        figures = [[getattr(own, field.name).numpy() for field in fields(own)] for own in scores]
        files = {"figures.npy": npy(np.array(figures))}
        if self._teacher is not None:
            network = self._teacher.network
            with evaluating(network):
                found = [self._teacher.features(network, pixels.to(self._device))[DESCRIPTOR] for pixels in compared]
            files["descriptor.npy"] = npy(torch.stack(found).float().cpu().numpy())
        return files


class PhotographJudge:
    """Generated people in photographs' structures, within capsules around their key points.

    Where appearance and structure are two pictures of one person, the structure's is the true picture. Everywhere the
    clothes' colours are compared with those of the appearance's picture.
    """

    def __init__(
        self,
        *,
        device: torch.device,  # decoding takes longer than all that follows  # noqa: ARG002
        generated: PictureSet,
        rows: np.ndarray,
        real: PictureSet,
        places: np.ndarray,
        joints: np.ndarray,
    ) -> None:
        """`places` (2, P) are rows of `real`, `joints` (2, P, 18, 3) in pixels of the generated pictures."""
        self._generated = generated
        self._rows = rows
        self._real = real
        self._places = places
        self._joints = torch.from_numpy(joints)
        index = generated.index.iloc[rows]
        self._same = torch.from_numpy((index["person_id"] == index["structure_id"]).to_numpy(copy=True))

    def __call__(self, part: Part) -> Files:
        """`figures.npy` (2, 8, B), as PersonFidelity: of the generated pictures, and of x_j as it is."""
        chosen = slice(part.first, part.stop)
        generated = self._generated.decode(self._rows[chosen])
        height, width = generated.shape[2:]
        appearance, structure = (self._real.decode(places[chosen], (height, width)) for places in self._places)
        worn, mask = (capsule_mask(joints[chosen], height, width) for joints in self._joints)
        same = self._same[chosen]
        figures = []
        for pixels, has_true in ((generated, same), (structure, torch.zeros_like(same))):
            scores = asdict(person_fidelity(pixels, structure, mask))
            scores = {name: values.where(has_true, torch.nan) for name, values in scores.items()}
            scores["upper_colour"], scores["lower_colour"] = colour_errors(pixels, mask, appearance, worn)
            figures.append([values.numpy() for values in scores.values()])
        return {"figures.npy": npy(np.array(figures))}


def npy(values: np.ndarray) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def _stacked(pictures: list[np.ndarray], size: tuple[int, ...]) -> Tensor:
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return pixels if pixels.shape[2:] == size else F.interpolate(pixels, size, mode="bicubic", antialias=True)
