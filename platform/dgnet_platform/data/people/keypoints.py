"""Key points of drawn people: where each of the 18 joints is in the picture, and whether it is seen."""

from __future__ import annotations

import math

import numpy as np

from dgnet_core.learning.joints import FLIP, HIDDEN, JOINTS, MISSING, SEEN
from dgnet_platform.data.people.factors import Structure
from dgnet_platform.data.people.figure import SUPERSAMPLING, Pen, pose_figure
from dgnet_platform.data.people.relief import Point, Relief
from dgnet_platform.data.people.scene import Camera, covered
from dgnet_platform.data.people.skeleton import LEFT, RIGHT, Skeleton

_FLESH, _SKIN = 0.09, 0.02
"""Body heights of its own body that may lie over a joint, and over a point of the face, that still counts as seen."""
_FACE = tuple(JOINTS.index(name) for name in ("nose", "right eye", "left eye", "right ear", "left ear"))
_LIMB_PARTS = (("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle"))
"""What an estimator confuses together: both arms, or both legs."""


def draw_keypoints(
    structure: Structure, camera: Camera, rng: np.random.Generator, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Key points of one picture.

    A joint under clothes is seen; one behind another part of the body, a bag, hair, or what stands in front is hidden.

    Args:
        structure: Of the person.
        camera: Everything else.
        rng: In the state in which `draw_picture` is given it.
        height: Picture pixels.
        width: Picture pixels.

    Returns:
        (18, 2) float32 x and y in picture pixels, pixel k from k to k + 1, and (18,) uint8 visibility. Joints outside
        the picture are missing.
    """
    shape = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    relief, pitch = Relief(*shape), math.radians(camera.light.pitch)
    pose_figure(relief, structure, None, pitch)
    pen = Pen(relief, structure, pitch)
    places = np.array([pen.see(joint) for joint in _joints(pen.joints)])
    x, y, depth = places.T
    inside = (x >= 0) & (x < shape[1]) & (y >= 0) & (y < shape[0])
    rows, columns = np.where(inside, y, 0).astype(int), np.where(inside, x, 0).astype(int)
    cover = np.full(len(JOINTS), _FLESH)
    cover[list(_FACE)] = _SKIN
    buried = relief.depth[rows, columns] - depth > pen.unit * cover
    hidden = buried | covered(camera, rng, shape)[rows, columns]
    visibility = np.where(inside, np.where(hidden, HIDDEN, SEEN), MISSING).astype(np.uint8)
    at = np.where(inside[:, None], places[:, :2] / SUPERSAMPLING, 0)
    return at.astype(np.float32), visibility


def _joints(body: Skeleton) -> list[Point]:
    """The 18 joints of a skeleton in the order of `JOINTS`."""
    arms = [[body.shoulders[side], body.elbows[side], body.wrists[side]] for side in (RIGHT, LEFT)]
    legs = [[body.hips[side], body.knees[side], body.ankles[side]] for side in (RIGHT, LEFT)]
    face = [body.eyes[RIGHT], body.eyes[LEFT], body.ears[RIGHT], body.ears[LEFT]]
    return [body.nose, body.neck, *arms[0], *arms[1], *legs[0], *legs[1], *face]


def as_estimated(
    places: np.ndarray, visibility: np.ndarray, structure: Structure, rng: np.random.Generator, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Key points as a pose estimator would find them: jittered, some dropped, left and right confused in side views.

    Args:
        places: (18, 2), as `draw_keypoints` returns them.
        visibility: (18,).
        structure: Of the person.
        rng: For the errors.
        height: Picture pixels.

    Returns:
        New places and visibility; what is found counts as seen.
    """
    places = places + rng.normal(0, 1.2 * height / 128, places.shape)
    lost = rng.random(len(JOINTS)) < np.where(visibility == HIDDEN, 0.4, 0.02)
    lost[list(_FACE)] |= visibility[list(_FACE)] == HIDDEN
    found = (visibility != MISSING) & ~lost
    side_view = abs(math.sin(math.radians(structure.pose.yaw))) > 0.8
    for parts, chance in zip(_LIMB_PARTS, rng.random(len(_LIMB_PARTS)), strict=True):
        if side_view and chance < 0.3:
            limb = [joint for joint, name in enumerate(JOINTS) if name.endswith(parts)]
            other = [FLIP[joint] for joint in limb]
            places[limb], found[limb] = places[other], found[other]
    places = np.where(found[:, None], places, 0)
    return places.astype(np.float32), np.where(found, SEEN, MISSING).astype(np.uint8)
