"""Joints as networks see them, against hand-made ones, and how they move with their images."""

import math

import pytest
import torch

from dgnet_core.learning.augment import flip_and_crop, flip_and_shift, from_symmetric, to_symmetric, training_batch
from dgnet_core.learning.batches import Position
from dgnet_core.learning.config import AugmentConfig
from dgnet_core.learning.joints import BONES, FLIP, JOINTS, LIMBS
from dgnet_core.learning.poses import bone_distances, discs, heat_maps, mirrored, pose_mask, stick_figures
from tests.helpers.tiny import tiny_config


def pose(**places: tuple[float, float]) -> torch.Tensor:
    """(1, 18, 3): the joints named are seen, the others missing."""
    joints = torch.zeros(1, 18, 3)
    for name, place in places.items():
        joints[0, JOINTS.index(name.replace("_", " "))] = torch.tensor((*place, 2.0))
    return joints


def test_distance_to_a_bone_is_that_to_its_nearest_point():
    joints = pose(right_hip=(2.5, 2.5), right_knee=(2.5, 6.5))
    hip, knee = JOINTS.index("right hip"), JOINTS.index("right knee")
    distance = bone_distances(joints, [(hip, knee), (hip, hip), (hip, 0)], 10, 8)
    assert distance.shape == (1, 3, 10, 8)
    bone, point, missing = distance[0]
    assert bone[4, 2] == bone[2, 2] == bone[6, 2] == 0
    assert bone[4, 6] == 4
    assert bone[9, 6] == pytest.approx(5)
    assert point[6, 5] == pytest.approx(5)
    assert missing.isinf().all()


def test_heat_maps_and_discs():
    joints = pose(nose=(20.5, 30.5))
    maps = heat_maps(joints, 128, 64, sigma=6.0)
    assert maps[0, 0, 30, 20] == 1
    assert maps[0, 0, 30, 26] == pytest.approx(math.exp(-0.5))
    assert maps[0, 0, 42, 20] == pytest.approx(math.exp(-2))
    assert (maps[0, 1:] == 0).all()
    twice = heat_maps(joints * torch.tensor([2.0, 2.0, 1.0]), 256, 128, sigma=6.0)
    assert twice[0, 0].max() > 0.99
    assert twice[0, 0].sum() == pytest.approx(4 * float(maps[0, 0].sum()), rel=1e-3)
    around = discs(joints, 128, 64)
    assert around[0, 0].sum() == 49  # lattice points within 4 of one
    assert around.sum() == 49


def test_pose_mask_covers_limbs_and_closes_small_gaps():
    joints = pose(left_hip=(20.5, 60.5), left_knee=(20.5, 90.5), right_hip=(34.5, 60.5), right_knee=(34.5, 90.5))
    mask = pose_mask(joints, 128, 64)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask[0, 0, 75, 16:25].tolist() == [1] * 9  # radius 4
    assert mask[0, 0, 75, 15] == mask[0, 0, 75, 27] == 0
    assert mask[0, 0, 60, 27] == 1  # hip to hip
    apart = pose(left_hip=(20.5, 60.5), left_knee=(20.5, 90.5), right_knee=(31.5, 60.5), right_ankle=(31.5, 90.5))
    gap = pose_mask(apart, 128, 64)[0, 0, 75]
    assert gap[16:36].tolist() == [1] * 20  # 2 pixels between them are closed
    assert gap.sum() == 20
    assert pose_mask(pose(), 128, 64).sum() == 0
    assert pose_mask(joints / 2, 64, 32).mean() == pytest.approx(float(mask.mean()), abs=0.02)


def test_stick_figures_give_each_bone_its_colour():
    joints = pose(neck=(32.5, 20.5), right_shoulder=(20.5, 20.5), left_shoulder=(44.5, 20.5))
    figure = stick_figures(joints, 128, 64)
    assert figure.shape == (1, 3, 128, 64)
    assert figure[0, :, 100, 5].tolist() == [-1, -1, -1]
    right, left = figure[0, :, 20, 25], figure[0, :, 20, 40]
    assert right.tolist() == [1, -1, -1]  # the first hue
    assert (left != right).any()
    assert ((figure > -1).any(dim=1)).sum() == pytest.approx(24 * 5, abs=15)
    assert len(BONES) == 17
    assert len(LIMBS) == 23


def test_mirrored_joints_swap_left_and_right():
    joints = torch.rand(2, 18, 3)
    turned = mirrored(joints, 10)
    assert torch.equal(turned[:, JOINTS.index("left eye"), 0], 10 - joints[:, JOINTS.index("right eye"), 0])
    assert torch.equal(turned[:, 0, 1:], joints[:, 0, 1:])
    assert torch.allclose(mirrored(turned, 10), joints, atol=1e-5)
    assert torch.equal(turned[..., 2], joints[:, list(FLIP), 2])


def test_joints_move_with_their_images():
    torch.manual_seed(0)
    joints = torch.cat([torch.rand(6, 18, 2) * torch.tensor([8.0, 16.0]) + 4, torch.full((6, 18, 1), 2.0)], dim=2)
    draws = torch.rand(6, 3)
    draws[:, 0] = torch.tensor([0.1, 0.9] * 3)
    points = heat_maps(joints, 24, 16, sigma=4.0)
    moved_images = flip_and_crop(points, draws, 0.5, 3)
    moved = heat_maps(flip_and_shift(joints, draws, 0.5, 3, 16), 24, 16, sigma=4.0)
    flipped = moved_images[::2][:, list(FLIP)]  # channels of mirror images are the other side's joints
    inside = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    assert torch.allclose(moved[::2][inside], flipped[inside], atol=1e-5)
    assert torch.allclose(moved[1::2][inside], moved_images[1::2][inside], atol=1e-5)


def test_training_batch_scales_joints_to_the_image():
    config = tiny_config(augment=AugmentConfig(flip=0.0, pad=0, erase=0.0))
    pixels = torch.zeros(4, 2, 3, 48, 48, dtype=torch.uint8)
    joints = torch.ones(4, 2, 18, 3)
    batch = training_batch(pixels, torch.zeros(2, 2, dtype=torch.int64), Position(seed=0, iteration=0), config, joints)
    assert batch.joints is not None
    assert batch.joints.dtype == batch.images.dtype
    assert batch.joints[0, 0, 0].tolist() == [0.25, 0.5, 1.0]
    assert training_batch(pixels, torch.zeros(2, 2).long(), Position(seed=0, iteration=0), config).joints is None


def test_symmetric_range():
    pixels = torch.tensor([0.0, 127.5, 255.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    images = (pixels - mean) / std
    assert torch.allclose(to_symmetric(images)[0, 1, 0], torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6)
    assert torch.allclose(from_symmetric(to_symmetric(images)), images, atol=1e-6)


def test_normal_draws_are_normal_and_by_place():
    whole = Position(seed=1, iteration=3).normal("noise", (4000, 5), "cpu")
    assert whole.mean().abs() < 0.03
    assert whole.std() == pytest.approx(1, abs=0.02)
    part = Position(seed=1, iteration=3, first=10, total=4000).normal("noise", (7, 5), "cpu")
    assert torch.equal(part, whole[10:17])
