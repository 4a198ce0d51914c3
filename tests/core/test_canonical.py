"""Canonical poses: clusters with a known truth, missing joints, medoids; and PN-GAN's two models as one network."""

from typing import cast

import pytest
import torch
import torch.nn.functional as F

from dgnet_core.learning.config import StepConfig
from dgnet_core.learning.joints import JOINTS
from dgnet_core.methods import METHODS
from dgnet_core.networks.config import ImageSize
from dgnet_core.networks.modes import evaluating
from dgnet_core.pngan.canonical import CanonicalNetwork, canonical_poses
from dgnet_core.pngan.config import PNGANConfig
from dgnet_core.pngan.step import build, render
from dgnet_core.ranking.features import Features, mirror_average
from dgnet_core.ranking.retrieval import sweep_beta
from dgnet_core.teacher.networks import Teacher
from tests.helpers.generators import tiny_method, upright
from tests.helpers.tiny import tiny_config

TRUNK = [JOINTS.index(f"{side} {part}") for side in ("right", "left") for part in ("hip", "shoulder")]


def crowd(each: int = 6) -> torch.Tensor:
    """Eight kinds of poses, `each` of them everywhere in the picture and of every size: (8 * each, 18, 3)."""
    draws = torch.Generator().manual_seed(0)
    kinds = upright(128, 64, 1).repeat(8, 1, 1)
    free = [joint for joint in range(len(JOINTS)) if joint not in TRUNK]
    kinds[:, free, :2] += 60 * torch.rand(8, len(free), 2, generator=draws)
    poses = kinds.repeat(each, 1, 1)  # one of each kind after the other
    poses[..., :2] += torch.rand(len(poses), 18, 2, generator=draws)
    size, place = (
        0.5 + torch.rand(len(poses), 1, 1, generator=draws),
        50 * torch.rand(len(poses), 1, 2, generator=draws),
    )
    poses[..., :2] = size * poses[..., :2] + place
    return poses


def without(poses: torch.Tensor, row: int, joint: int) -> None:
    poses[row, joint] = 0


def test_each_kind_of_pose_gives_one_wherever_it_is_and_however_large():
    poses = crowd()
    rows = canonical_poses(poses)
    assert sorted((rows % 8).tolist()) == list(range(8))
    assert torch.equal(rows, canonical_poses(poses))
    for seed in range(1, 4):
        assert len(canonical_poses(poses, seed=seed).unique()) == 8


def test_larger_clusters_come_first():
    poses = crowd(2)
    rows = canonical_poses(torch.cat([poses, *[poses[5::8]] * 3]))
    kind = torch.cat([torch.arange(16) % 8, torch.full((6,), 5)])
    assert kind[rows[0]] == 5


def test_missing_joints_say_nothing_and_their_pose_stands_for_none():
    poses, nose = crowd(), JOINTS.index("nose")
    found = canonical_poses(poses)
    for row in found.tolist():  # the former representatives lose a joint
        without(poses, row, nose)
    rows = canonical_poses(poses)
    assert sorted((rows % 8).tolist()) == list(range(8))
    assert not set(rows.tolist()) & set(found.tolist())


def test_where_a_joint_lies_says_nothing_of_poses_that_lack_it():
    draws = torch.Generator().manual_seed(0)
    poses, wrist = upright(128, 64, 1).repeat(60, 1, 1), JOINTS.index("left wrist")
    free = [joint for joint in range(len(JOINTS)) if joint not in TRUNK]
    poses[:, free, :2] += 60 * torch.rand(60, len(free), 2, generator=draws)
    poses[::2, wrist] = 0
    elsewhere = poses.clone()
    elsewhere[1::2, wrist, 0] += 1_000  # as far in all poses: no distance between any two changes
    for seed in range(5):
        assert torch.equal(canonical_poses(poses, seed=seed), canonical_poses(elsewhere, seed=seed))


def test_a_medoid_is_the_member_nearest_the_mean():
    poses = upright(128, 64, 1).repeat(5, 1, 1)
    wrist = JOINTS.index("left wrist")
    poses[:, wrist, 0] += torch.tensor([0.0, 1, 2, 3, 9])  # mean 3
    assert canonical_poses(poses, 1).tolist() == [3]


def test_poses_without_a_trunk_take_no_part():
    poses = crowd(1)
    without(poses, 3, TRUNK[0])
    assert 3 not in canonical_poses(poses, 7).tolist()
    with pytest.raises(ValueError, match=r"7 of 8 poses show .*, too few .* for 8 canonical poses"):
        canonical_poses(poses)
    with pytest.raises(ValueError, match="too few of them different ones for 2"):
        canonical_poses(poses[:1].repeat(20, 1, 1), 2)


def test_two_models_are_the_original_and_the_maximum_over_renderings():
    torch.manual_seed(0)
    config, size = cast(PNGANConfig, tiny_method(METHODS["pngan"], step=StepConfig())), tiny_config().network
    generator, a, b = build(config).networks["generator"], Teacher(size, 5), Teacher(size, 5)
    poses = upright(64, 56, 8)
    same = ImageSize(height=size.height, width=size.width)
    network = CanonicalNetwork(generator, config, poses, (a, same), (b, same))
    x = torch.randn(3, 3, 64, 56, generator=torch.Generator().manual_seed(1))

    def resized(images: torch.Tensor) -> torch.Tensor:
        return F.interpolate(images, (size.height, size.width), mode="bicubic", antialias=True)

    with evaluating(network):
        prim, fine = network.describe(x)
        one_by_one = [b.describe(resized(render(generator, config, x, pose.expand(3, -1, -1))))[0] for pose in poses]
        assert torch.allclose(prim, a.describe(resized(x))[0], atol=1e-5)
    assert torch.allclose(fine, torch.stack([F.normalize(f) for f in one_by_one]).amax(0), atol=1e-5)
    # a weight of 1 ranks by both side by side, each of unit length
    prim, fine = mirror_average(prim, prim), mirror_average(fine, fine)
    query = Features(prim=prim, fine=fine, person_ids=torch.tensor([1, 2, 3]), camera_ids=torch.tensor([1, 1, 1]))
    joined = torch.cat([prim, fine], dim=1)
    alone = Features(prim=joined, fine=fine[:, :0], person_ids=query.person_ids, camera_ids=torch.tensor([2, 2, 2]))
    gallery = Features(prim=prim, fine=fine, person_ids=query.person_ids, camera_ids=alone.camera_ids)
    (both,) = sweep_beta(query, gallery, [1.0])
    (expected,) = sweep_beta(Features(
        prim=joined, fine=fine[:, :0], person_ids=query.person_ids, camera_ids=query.camera_ids
    ), alone, [0.0])  # fmt: skip
    assert both.summary() == expected.summary()
