"""Where the joints of a drawn person are: one pure function that the drawing and the key points share.

Lengths are in body heights. Body axes: x to the person's left, y up from the ground, z to the front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dgnet_platform.data.people.factors import Body, Pose, Structure
from dgnet_platform.data.people.relief import Point

LEFT, RIGHT = 1, -1
SIDES = (LEFT, RIGHT)

# Profile of the head, in body heights: place on its axis from chin to crown (0-1), half width, half depth.
HEAD_PROFILE = np.array([
    (0.00, 0.0194, 0.0230), (0.08, 0.0292, 0.0347), (0.22, 0.0370, 0.0439), (0.42, 0.0421, 0.0500),
    (0.62, 0.0439, 0.0520), (0.80, 0.0387, 0.0459), (0.92, 0.0267, 0.0316), (1.00, 0.0052, 0.0061),
])  # fmt: skip
AVERAGE_HEAD = 0.132
HIP, CHIN = 0.50, 0.868
_THIGH, _SHANK, _UPPER_ARM, _FOREARM = 0.235, 0.225, 0.165, 0.14

# Height above the chin (share of the head) and angle from the nose (radians) of what `cloth._face` paints.
_NOSE, _EYE, _EAR = (0.40, 0.0), (0.50, 0.42), (0.45, 1.5)


def head_height(body: Body) -> float:
    """In body heights: small people have larger heads for their height."""
    return AVERAGE_HEAD * (1.0 + 0.35 * (1.72 - body.height))


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """Joints of a posed body, body axes. Pairs are by side: `LEFT` and `RIGHT` of the person."""

    lift: float
    """By how much the gait raises the upper body."""
    lean: float
    """By how much the upper body moves forward for each height above the hips."""
    hips: dict[int, Point]
    knees: dict[int, Point]
    ankles: dict[int, Point]
    heels: dict[int, Point]
    toes: dict[int, Point]
    shoulders: dict[int, Point]
    elbows: dict[int, Point]
    wrists: dict[int, Point]
    hands: dict[int, Point]
    neck: Point
    """The middle of the shoulders, as OpenPose has it."""
    nose: Point
    eyes: dict[int, Point]
    ears: dict[int, Point]

    def up(self, x: float, y: float, z: float = 0.0) -> Point:
        """A point of the upper body, which leans forward about the hips and rises and falls with the gait."""
        return x, y + self.lift, z + (y - HIP) * self.lean


def skeleton(structure: Structure) -> Skeleton:
    """The joints of a body in its pose: a pure function of the structure."""
    body, pose = structure.body, structure.pose
    lift, hips, knees, ankles, heels, toes = _legs(pose, body.build)
    lean = math.sin(math.radians(pose.lean))
    shoulders = {side: _raised(lift, lean, 0.092 * side * body.build, 0.797) for side in SIDES}
    arms = {side: _arm(pose, side, shoulders[side]) for side in SIDES}
    left, right = shoulders[LEFT], shoulders[RIGHT]
    eye, ear = (
        {side: _raised(lift, lean, *_on_head(body, pose, height, side * angle)) for side in SIDES}
        for height, angle in (_EYE, _EAR)
    )
    return Skeleton(
        lift=lift,
        lean=lean,
        hips=hips,
        knees=knees,
        ankles=ankles,
        heels=heels,
        toes=toes,
        shoulders=shoulders,
        elbows={side: arm[0] for side, arm in arms.items()},
        wrists={side: arm[1] for side, arm in arms.items()},
        hands={side: arm[2] for side, arm in arms.items()},
        neck=((left[0] + right[0]) / 2, (left[1] + right[1]) / 2, (left[2] + right[2]) / 2),
        nose=_raised(lift, lean, *_on_head(body, pose, *_NOSE)),
        eyes=eye,
        ears=ear,
    )


def _raised(lift: float, lean: float, x: float, y: float, z: float = 0.0) -> Point:
    return x, y + lift, z + (y - HIP) * lean


def _legs(pose: Pose, build: float) -> tuple[float, *tuple[dict[int, Point], ...]]:
    """Thighs swing, a knee bends while its leg comes forward, and the lower foot is on the ground."""
    stride = math.radians(pose.stride)
    legs = []
    for side in SIDES:
        phase = pose.phase + (0 if side > 0 else math.pi)
        thigh = stride * math.sin(phase)
        shank = thigh - 0.06 - 1.5 * stride * max(0.0, math.cos(phase)) ** 2
        knee_y, knee_z = HIP - _THIGH * math.cos(thigh), _THIGH * math.sin(thigh)
        ankle_y, ankle_z = knee_y - _SHANK * math.cos(shank), knee_z + _SHANK * math.sin(shank)
        legs.append((side, shank, knee_y, knee_z, ankle_y, ankle_z))
    lift = 0.04 - min(leg[4] for leg in legs)
    hips, knees, ankles, heels, toes = ({} for _ in range(5))
    for side, shank, knee_y, knee_z, ankle_y, ankle_z in legs:
        hips[side] = 0.047 * side * build, HIP + lift, 0.0
        knees[side] = 0.047 * side * build, knee_y + lift, knee_z
        ankle = ankles[side] = 0.043 * side, ankle_y + lift, ankle_z
        tip = max(-0.1, -0.75 * shank)  # a foot behind stands on its toes
        heel = heels[side] = ankle[0], ankle[1] - 0.016, ankle[2] - 0.012
        toes[side] = heel[0] + 0.018 * side, heel[1] - 0.004 - 0.095 * math.sin(tip), heel[2] + 0.095 * math.cos(tip)
    return lift, hips, knees, ankles, heels, toes


def _arm(pose: Pose, side: int, shoulder: Point) -> tuple[Point, Point, Point]:
    """Elbow, wrist and hand of one side."""
    swing = math.radians(0.9 * pose.stride) * math.sin(pose.phase + (math.pi if side > 0 else 0))
    bend, out, inward = 0.25 + 0.5 * max(0.0, swing), 0.10, 0.0
    if pose.arms == "phone" and side > 0:
        swing, bend, inward = 0.35, 2.0, 0.5
    elif pose.arms == "pocket":
        swing, bend, out, inward = -0.35, 0.75, 0.30, 0.35
    elif pose.arms == "folded":
        swing, bend, out, inward = 0.15, 1.55, 0.12, 1.1
    x, y, z = shoulder
    elbow = (
        x + side * _UPPER_ARM * math.sin(out),
        y - _UPPER_ARM * math.cos(swing),
        z + _UPPER_ARM * math.sin(swing),
    )
    forearm = (
        side * (0.01 - _FOREARM * math.sin(inward) * math.sin(bend)),
        -_FOREARM * math.cos(swing + bend),
        _FOREARM * math.sin(swing + bend) * math.cos(inward),
    )
    wrist, hand = ((elbow[0] + k * forearm[0], elbow[1] + k * forearm[1], elbow[2] + k * forearm[2]) for k in (1, 1.16))
    return elbow, wrist, hand


def _on_head(body: Body, pose: Pose, height: float, angle: float) -> Point:
    """A point on the surface of the head, upright body, `angle` radians from the nose to the person's left."""
    tall, turn = head_height(body), math.radians(pose.head_turn)
    size = tall / AVERAGE_HEAD
    size *= 0.94  # a little under the skin, so that a nose in profile is on the picture of the head
    width, depth = (size * float(np.interp(height, HEAD_PROFILE[:, 0], HEAD_PROFILE[:, k])) for k in (1, 2))
    x, z = width * math.sin(angle), depth * math.cos(angle)
    axis = 0.012 + height * (0.008 - 0.012)
    return (
        x * math.cos(turn) + z * math.sin(turn),
        CHIN + height * tall,
        axis + z * math.cos(turn) - x * math.sin(turn),
    )
