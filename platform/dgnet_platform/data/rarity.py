"""How rare each picture of a training set is, by its camera and by which way the person faces."""

import torch
from torch import Tensor

from dgnet_core.learning.config import Partners
from dgnet_core.learning.joints import JOINTS
from dgnet_platform.data.images import ImageSet

SIDEWAYS = 0.25
"""A person whose shoulders are nearer to each other than this, in heights of the torso, is seen from the side."""
_SHOULDERS = [JOINTS.index(f"{side} shoulder") for side in ("left", "right")]
_HIPS = [JOINTS.index(f"{side} hip") for side in ("left", "right")]


def rarity(images: ImageSet, partners: Partners) -> Tensor | None:
    """Weights (N,) float64 of pictures: one over the number of those of the same group; None: no groups.

    Args:
        images: with joints for rare_pose.
        partners: what makes a group: its camera, or its camera and facing.
    """
    if partners == "uniform":
        return None
    groups = images.camera_ids
    if partners == "rare_pose":
        assert images.joints is not None
        groups = groups * 4 + facing(images.joints)
    _, of, counts = groups.unique(return_inverse=True, return_counts=True)
    return 1 / counts[of].double()


def facing(joints: Tensor) -> Tensor:
    """0 back, 1 side, 2 front, 3 unknown (N,) int64, of joints (N, 18, 3); shoulders and hips tell.

    Sides are the person's own: from the front, the left shoulder is further to the right of the picture.
    """
    known = (joints[:, _SHOULDERS + _HIPS, 2] > 0).all(dim=1)
    shoulders, hips = joints[:, _SHOULDERS], joints[:, _HIPS]
    torso = (hips[..., 1].mean(dim=1) - shoulders[..., 1].mean(dim=1)).abs().clamp(min=1e-6)
    breadth = (shoulders[:, 0, 0] - shoulders[:, 1, 0]) / torso
    seen = 1 + (breadth > SIDEWAYS).long() - (breadth < -SIDEWAYS).long()
    return torch.where(known, seen, 3)
