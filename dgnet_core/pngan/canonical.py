"""The eight poses that stand for all (PN-GAN, section 3.2), and re-id by pictures drawn in them (section 3.3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.generation.grids import placed
from dgnet_core.learning.joints import JOINTS
from dgnet_core.networks.config import ImageSize
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.pngan.config import PNGANConfig
from dgnet_core.pngan.step import render

POSES = 8
"""Canonical poses in the paper."""
_HIPS, _SHOULDERS = ([JOINTS.index(f"{side} {part}") for side in ("right", "left")] for part in ("hip", "shoulder"))
_ROUNDS = 100


def canonical_poses(joints: Tensor, count: int = POSES, *, seed: int = 0) -> Tensor:
    """Choose the poses that stand for many: K-means on joints about the hips, in lengths of the trunk.

    The paper clusters features of pose images, and takes the mean pose image of each cluster. Here each cluster gives
    its medoid, for a mean of poses is no pose: of the members that miss the fewest joints, the one nearest the mean.
    Distances are mean squares over the joints that are there.

    Args:
        joints: (N, 18, 3), x and y in pixels of images of one size, and visibility; a pose without a hip or a shoulder
            takes no part.
        count: clusters.
        seed: of the first centres (k-means++).

    Returns:
        Rows (count) int64, those of larger clusters first.

    Raises:
        ValueError: fewer than `count` different poses show both hips and shoulders.
    """
    present = joints[..., 2] > 0
    hips, shoulders = (joints[:, part, :2].double().mean(dim=1) for part in (_HIPS, _SHOULDERS))
    trunk = (shoulders - hips).norm(dim=1)
    rows = (present[:, [*_HIPS, *_SHOULDERS]].all(dim=1) & (trunk > 0)).nonzero()[:, 0]
    there = present[rows].double()
    poses = (joints[rows, :, :2].double() - hips[rows, None]) / trunk[rows, None, None] * there[..., None]
    if len(poses.flatten(1).unique(dim=0)) < count:
        raise ValueError(
            f"{len(rows)} of {len(joints)} poses show both hips and shoulders, too few of them different ones for"
            f" {count} canonical poses: give key points of more pictures"
        )
    seeds = _seeds(poses, there, count, seed)
    centres, known = poses[seeds], there[seeds]
    cluster = torch.full((len(poses),), -1)
    for _ in range(_ROUNDS):
        distance = _distance(poses, there, centres, known)
        nearest, before = distance.argmin(dim=1), cluster
        cluster = _filled(nearest, distance)
        if torch.equal(cluster, before):
            break
        member = F.one_hot(cluster, count).double().T  # (count, N)
        seen = member @ there
        centres = (member @ poses.flatten(1)).unflatten(1, (-1, 2)) / seen.clamp(min=1)[..., None]
        known = (seen > 0).double()
    distance = _distance(poses, there, centres, known)
    medoids: list[int] = []
    for number in range(count):
        members = (cluster == number).nonzero()[:, 0]
        whole = members[there[members].sum(dim=1) == there[members].sum(dim=1).max()]
        medoids.append(int(whole[distance[whole, number].argmin()]))
    order = torch.bincount(cluster, minlength=count).argsort(descending=True, stable=True)
    return rows[torch.tensor(medoids)[order]]


def _distance(poses: Tensor, there: Tensor, centres: Tensor, known: Tensor) -> Tensor:
    """Mean squared distance (N, K) of poses (N, 18, 2) to centres (K, 18, 2) over the joints that both have."""
    columns = []
    for centre, has in zip(centres, known, strict=True):
        both = there * has
        columns.append(((poses - centre).square().sum(dim=2) * both).sum(dim=1) / both.sum(dim=1))
    return torch.stack(columns, dim=1)


def _seeds(poses: Tensor, there: Tensor, count: int, seed: int) -> list[int]:
    """Rows of the first centres: each is drawn by its squared distance to the nearest one so far (k-means++)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(poses), (1,), generator=generator))]
    while len(chosen) < count:
        near = _distance(poses, there, poses[chosen], there[chosen]).amin(dim=1)
        near[chosen] = 0
        chosen.append(int(torch.multinomial(near, 1, generator=generator)))
    return chosen


def _filled(cluster: Tensor, distance: Tensor) -> Tensor:
    """Clusters (N) in which no number is without a member: such a one gets the pose that is farthest from its own."""
    cluster = cluster.clone()
    for number in range(distance.shape[1]):
        if not (cluster == number).any():
            own = distance.gather(1, cluster[:, None])[:, 0]
            own[torch.bincount(cluster, minlength=distance.shape[1])[cluster] == 1] = -1  # the last of another
            cluster[own.argmax()] = number
    return cluster


class CanonicalNetwork(DescriptorNetwork):
    """PN-GAN's re-id: model A on an image, and model B on what the generator makes of it in the canonical poses.

    B's features, each of unit length, are merged by their maximum. The halves of the descriptor are A's feature and B's
    merged one, so a weight of 1 is both side by side; the paper's text was not to be had on whether A enters the
    maximum instead.
    """

    def __init__(
        self,
        generator: nn.Module,
        config: PNGANConfig,
        poses: Tensor,
        originals: tuple[DescriptorNetwork, ImageSize],
        renderings: tuple[DescriptorNetwork, ImageSize],
    ):
        """Join trained networks.

        Args:
            generator: PN-GAN's.
            config: the generator's.
            poses: joints (P, 18, 3) in pixels of the generator's images.
            originals: model A, and the size of its images.
            renderings: model B, and the size of its images.
        """
        super().__init__()
        self.generator, self.config = generator, config
        self.originals, self.original_size = originals
        self.renderings, self.rendering_size = renderings
        self.poses: Tensor
        self.register_buffer("poses", placed(poses, generator))

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A's feature (N, D) and B's merged one (N, D') of normalised images (N, 3, H, W) of the generator's size."""
        original, _ = self.originals.describe(_resized(x, self.original_size))
        features: list[Tensor] = []
        for pose in self.poses:
            drawn = render(self.generator, self.config, x, pose.expand(len(x), -1, -1))
            feature, _ = self.renderings.describe(_resized(drawn, self.rendering_size))
            features.append(F.normalize(feature.float()))
        return original, torch.stack(features).amax(dim=0)


def _resized(x: Tensor, size: ImageSize) -> Tensor:
    """Images (N, 3, H, W) of another size, if need be."""
    if x.shape[-2:] == (size.height, size.width):
        return x
    return F.interpolate(x.float(), (size.height, size.width), mode="bicubic", antialias=True).to(x.dtype)
