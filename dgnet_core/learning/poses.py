"""Joints as networks see them: heat maps, discs, a pose mask and stick figures, from one primitive.

Joints are (N, 18, 3) floats: x and y in pixels of the image, pixel k from k to k + 1, and visibility, 0 where one is
missing. Their order is that of `joints.JOINTS`.
"""

import colorsys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.learning.joints import BONES, FLIP, JOINTS, LIMBS

_POINTS = tuple((joint, joint) for joint in range(len(JOINTS)))
_COLOURS = tuple(colorsys.hsv_to_rgb(bone / len(BONES), 1.0, 1.0) for bone in range(len(BONES)))
_CAPSULES: tuple[tuple[float, tuple[tuple[int, int], ...]], ...] = (
    (5.0, ((0, 14), (0, 15), (14, 16), (15, 17), (16, 17))),  # head
    (4.5, ((1, 0),)),
    (4.5, ((2, 5), (2, 8), (5, 11), (8, 11), (1, 8), (1, 11))),  # trunk
    (3.5, ((2, 3), (5, 6))),
    (3.0, ((3, 4), (6, 7))),
    (6.0, ((8, 9), (11, 12))),
    (4.0, ((9, 10), (12, 13))),
)
"""Radii in pixels of an image of height 128, and the limbs that have them: fitted to drawn people's silhouettes."""
_REFERENCE = 128
"""Height of the images that radii and deviations are given for; they grow with the height."""


def bone_distances(joints: Tensor, bones: Sequence[tuple[int, int]], height: int, width: int) -> Tensor:
    """Distance in pixels of each pixel's centre to each bone, (N, bones, height, width).

    Args:
        joints: (N, 18, 3).
        bones: pairs of joints; a joint with itself is a point. Infinitely far where one of the two is missing.
        height: of the image.
        width: of the image.
    """
    first, second = ([bone[end] for bone in bones] for end in (0, 1))
    places, present = joints[..., :2], joints[..., 2] > 0
    start = places[:, first]  # (N, bones, 2)
    x, y = (places[:, second] - start)[..., None, None].unbind(2)  # (N, bones, 1, 1): along the bone
    columns = torch.arange(width, device=joints.device, dtype=joints.dtype) + 0.5
    rows = torch.arange(height, device=joints.device, dtype=joints.dtype)[:, None] + 0.5
    right, down = columns - start[..., 0, None, None], rows - start[..., 1, None, None]
    share = ((right * x + down * y) / (x * x + y * y).clamp(min=1e-6)).clamp_(0, 1)
    distance = torch.hypot(right - share * x, down - share * y)
    return distance.masked_fill_(~(present[:, first] & present[:, second])[..., None, None], torch.inf)


def heat_maps(joints: Tensor, height: int, width: int, *, sigma: float | Tensor) -> Tensor:
    """One Gaussian a joint, 1 at its place, (N, 18, height, width); 0 for a missing joint.

    `sigma` is in pixels of an image of height 128: one, or one for each pose, (N, 1, 1, 1).
    """
    distance = bone_distances(joints, _POINTS, height, width)
    return torch.exp(-0.5 * (distance / (sigma * height / _REFERENCE)).square())


def discs(joints: Tensor, height: int, width: int, *, radius: float = 4.0) -> Tensor:
    """One disc a joint, (N, 18, height, width): 1 within `radius` pixels (of an image of height 128), else 0."""
    near = bone_distances(joints, _POINTS, height, width) <= radius * height / _REFERENCE
    return near.to(joints.dtype)


def pose_mask(joints: Tensor, height: int, width: int, *, radius: float = 4.0, closing: int = 5) -> Tensor:
    """The person's rough outline, (N, 1, height, width), 1 inside: all that is near a limb, with small gaps closed.

    PG2, section 3.2: `radius` and the side `closing` of the square that closes are pixels of an image of height 128.
    """
    scale = height / _REFERENCE
    near = (bone_distances(joints, LIMBS, height, width) <= radius * scale).any(dim=1, keepdim=True)
    reach = round(closing * scale) // 2
    wide = F.max_pool2d(near.to(joints.dtype), 2 * reach + 1, stride=1, padding=reach)
    return -F.max_pool2d(-wide, 2 * reach + 1, stride=1, padding=reach)  # padded by minus infinity: edges stay


def capsule_mask(joints: Tensor, height: int, width: int) -> Tensor:
    """The person as capsules around the limbs, (N, height, width), 1 inside, for pictures without a silhouette.

    A capsule is as thick as its part of the body; coats and bags are left out. On drawn people that the radii were not
    fitted to, it overlaps the exact silhouette by a mean IoU of 0.82 (0.53 at worst).
    """
    inside = [
        bone_distances(joints, limbs, height, width).amin(dim=1) <= radius * height / _REFERENCE
        for radius, limbs in _CAPSULES
    ]
    return torch.stack(inside).any(dim=0).to(joints.dtype)


def stick_figures(joints: Tensor, height: int, width: int, *, thickness: float = 2.0) -> Tensor:
    """The skeleton drawn in colours on black, (N, 3, height, width) in [-1, 1]: each bone has its hue.

    `thickness` is half a bone's width in pixels of an image of height 128.
    """
    distance, bone = bone_distances(joints, BONES, height, width).min(dim=1)  # (N, height, width)
    colours = torch.tensor(_COLOURS, dtype=joints.dtype).to(joints.device)
    drawn = colours[bone].permute(0, 3, 1, 2) * (distance <= thickness * height / _REFERENCE)[:, None]
    return 2 * drawn - 1


def mirrored(joints: Tensor, width: int) -> Tensor:
    """Joints (..., 18, 3) of the mirror images: left and right change places."""
    partners = torch.tensor(FLIP).to(joints.device, non_blocking=True)  # a list as index stalls a GPU
    swapped = joints.index_select(-2, partners)
    return torch.stack([width - swapped[..., 0], swapped[..., 1], swapped[..., 2]], dim=-1)
