"""A drawn pedestrian: the posed body of rounded limbs and upright solids.

The drawing is deferred, as in a renderer. The *structure* alone decides (here), for each pixel of the canvas,
which part of the body is seen, its normal and its place on the surface; the *appearance* then only says
(`cloth.py`) which colour that place has. Appearance of one person in the structure of another is therefore
the same drawing with other cloth. The one outline that an appearance brings along is that of a skirt or a
dress.

Lengths are in body heights unless said otherwise. Body axes: x to the person's left, y up from the ground, z
to the front. Canvas axes: x right, y down, z towards the camera. The canvas is `SUPERSAMPLING` times the
picture.
"""

from __future__ import annotations

import math

import numpy as np

from dgnet_platform.data.people.factors import Body, Structure
from dgnet_platform.data.people.relief import Opening, Point, Relief, Span
from dgnet_platform.data.people.skeleton import AVERAGE_HEAD, CHIN, HEAD_PROFILE, HIP, SIDES, head_height, skeleton

SUPERSAMPLING = 2
FRAME_METRES = 1.85
"""Height of the scene that a picture shows when `Pose.scale` is 1."""

NUM_PARTS = 13
NOTHING, TORSO, ARM, LEG, SKIRT, HEAD, NECK, HAND, SHOE, HAIR, HAT, BAG, STRAP = range(NUM_PARTS)
# Radius of each part in body heights: turns the angle around a limb into a length of cloth.
GIRTH = np.array([0, 0.1, 0.035, 0.045, 0.12, 0.05, 0.03, 0.02, 0.02, 0.05, 0.05, 0.08, 0.01], np.float32)


# Profiles of solids, in body heights: place on the axis from bottom to top (0-1), half width, half depth.
_TRUNK = np.array([
    (0.00, 0.062, 0.052), (0.11, 0.087, 0.064), (0.22, 0.093, 0.068), (0.42, 0.079, 0.058),
    (0.62, 0.092, 0.066), (0.76, 0.099, 0.066), (0.85, 0.100, 0.060), (0.92, 0.088, 0.050),
    (0.965, 0.058, 0.042), (1.0, 0.033, 0.036),
])  # fmt: skip
_CURTAIN = np.array([(0, 0.03, 0.012), (0.1, 0.052, 0.02), (0.6, 0.058, 0.024), (1, 0.046, 0.03)])
_CAP = np.array([(0, 0.042, 0.051), (0.35, 0.042, 0.051), (0.7, 0.036, 0.044), (0.92, 0.021, 0.026), (1, 0.008, 0.01)])
_BRIM = np.array([(0, 0.086, 0.09), (0.6, 0.08, 0.086), (1, 0.05, 0.06)])
_BACKPACK = np.array(
    [(0, 0.072, 0.04), (0.12, 0.086, 0.056), (0.5, 0.086, 0.06), (0.85, 0.078, 0.048), (1, 0.04, 0.02)]
)
_SATCHEL = np.array([(0, 0.026, 0.066), (0.1, 0.034, 0.082), (0.85, 0.032, 0.08), (1, 0.018, 0.06)])
_HANDBAG = np.array([(0, 0.024, 0.07), (0.1, 0.03, 0.078), (0.9, 0.026, 0.066), (1, 0.014, 0.05)])

_CROTCH, _WAIST, _NECK = 0.455, 0.60, 0.848

# By style: volume of the hair over the head, and where it ends at the nape (head heights above the chin).
_HAIR_SHAPE = {
    "short": (1.09, 0.22), "bob": (1.2, -0.12), "long": (1.16, 0.0), "ponytail": (1.07, 0.2),
    "bun": (1.07, 0.2), "curly": (1.42, 0.0),
}  # fmt: skip


class Pen:
    """Draws in body axes on a relief: turns them to the camera and scales them to the canvas."""

    def __init__(self, relief: Relief, structure: Structure, pitch: float):
        pose = structure.pose
        height, width = relief.piece.shape
        metre = height / FRAME_METRES * pose.scale
        self.relief, self.pitch, self.yaw = relief, pitch, math.radians(pose.yaw)
        self.joints = skeleton(structure)
        self.up = self.joints.up
        self.unit = metre * structure.body.height
        self.origin = width / 2 + pose.x * metre, height - pose.y * metre
        self.turned = math.cos(self.yaw), math.sin(self.yaw), math.cos(pitch), math.sin(pitch)

    def see(self, point: Point, bias: float = 0.0) -> Point:
        """From body axes to canvas axes; `bias` brings the point nearer to the camera."""
        x, y, z = point
        cos, sin, cos_pitch, sin_pitch = self.turned
        across, ahead = x * cos + z * sin, z * cos - x * sin
        return (
            self.origin[0] + self.unit * across,
            self.origin[1] - self.unit * (y * cos_pitch - ahead * sin_pitch),
            self.unit * (ahead * cos_pitch + y * sin_pitch + bias),
        )

    def limb(self, part: int, a: Point, b: Point, radii: tuple[float, float], along: Span = (0.0, 0.0)) -> None:
        """As `Relief.limb`, in body axes."""
        radius_a, radius_b = radii
        self.relief.limb(part, self.see(a), self.see(b), self.unit * radius_a, self.unit * radius_b, along, self.yaw)

    def solid(
        self,
        part: int,
        bottom: Point,
        top: Point,
        profile: np.ndarray,
        along: Span,
        *,
        turn: float = 0.0,
        opening: Opening | None = None,
        bias: float = 0.0,
        boxy: bool = False,
    ) -> None:
        """As `Relief.solid`, in body axes; `turn` is the angle of its front against the body's."""
        ends = self.see(bottom, bias), self.see(top, bias)
        on_canvas = profile * (1, self.unit, self.unit)
        self.relief.solid(part, *ends, on_canvas, along, self.yaw + turn, self.pitch, opening=opening, boxy=boxy)


def pose_figure(relief: Relief, structure: Structure, skirt_hem: float | None, pitch: float) -> None:
    """Draws a posed body into a relief.

    Args:
        relief: Canvas.
        structure: Body and pose.
        skirt_hem: Height (body heights) at which a skirt or dress ends, or None.
        pitch: Radians by which the camera looks down.
    """
    pen = Pen(relief, structure, pitch)
    body, pose = structure.body, structure.pose
    build, thick, stride = body.build, 0.5 + 0.5 * body.build, math.radians(pose.stride)
    _draw_legs(pen, body, thick)

    trunk = _TRUNK * (1, build, 0.35 + 0.65 * build)
    pen.solid(TORSO, pen.up(0, _CROTCH), pen.up(0, _NECK), trunk, (_CROTCH, _NECK))
    pen.limb(NECK, pen.up(0, 0.825, -0.008), pen.up(0, 0.89, 0.004), (0.031 * thick, 0.028 * thick))
    if skirt_hem is not None:
        flare = 0.02 + 0.10 * (_WAIST - skirt_hem)
        sweep = 0.45 * math.sin(stride) * (_WAIST - skirt_hem)
        skirt = np.array([(0, 0.098 + flare, 0.075 + flare + sweep), (0.55, 0.101, 0.08), (1, 0.083, 0.064)])
        ends = pen.up(0, skirt_hem), pen.up(0, _WAIST)
        # The bias keeps the striding legs inside the skirt.
        pen.solid(SKIRT, *ends, skirt * (1, build, build), (skirt_hem, _WAIST), bias=0.04)
    _draw_arms(pen, thick)
    _draw_head(pen, body, math.radians(pose.head_turn))
    _draw_bag(pen, body)


def _draw_legs(pen: Pen, body: Body, thick: float) -> None:
    joints = pen.joints
    for side in SIDES:
        hip, knee, ankle = joints.hips[side], joints.knees[side], joints.ankles[side]
        pen.limb(LEG, hip, knee, (0.055 * body.build, 0.039 * thick), (HIP, 0.27))
        pen.limb(LEG, knee, ankle, (0.039 * thick, 0.027 * thick), (0.27, 0.04))
        pen.limb(SHOE, joints.heels[side], joints.toes[side], (0.025, 0.019))


def _draw_arms(pen: Pen, thick: float) -> None:
    joints = pen.joints
    for side in SIDES:
        shoulder, elbow, wrist = joints.shoulders[side], joints.elbows[side], joints.wrists[side]
        pen.limb(ARM, shoulder, elbow, (0.031 * thick, 0.029 * thick), (0.0, 0.165))
        pen.limb(ARM, elbow, wrist, (0.029 * thick, 0.021 * thick), (0.165, 0.305))
        pen.limb(HAND, wrist, joints.hands[side], (0.017, 0.019))


def _draw_head(pen: Pen, body: Body, turn: float) -> None:
    """Head, hair and hat; `turn` is the angle of the head against the body."""
    tall = head_height(body)
    top, size = CHIN + tall, tall / AVERAGE_HEAD
    grown = (1, size, size)
    head = HEAD_PROFILE * grown
    pen.solid(HEAD, pen.up(0, CHIN, 0.012), pen.up(0, top, 0.008), head, (CHIN, top), turn=turn)
    back_x = 0.03 * math.sin(turn)
    if body.hair != "bald":
        volume, nape = _HAIR_SHAPE[body.hair]
        low, crown = CHIN + nape * tall, top + 0.05 * (volume - 1) + 0.004
        at = np.linspace(low, crown, 21)
        knots = CHIN + head[:, 0] * (crown - CHIN)
        width, depth = (volume * np.interp(at, knots, head[:, k]) for k in (1, 2))
        hair = np.stack([np.linspace(0, 1, 21), width, depth], axis=1)
        face = Opening(CHIN + 0.76 * tall, low, 0.85, 1.05 if body.hair == "bob" else 1.5)
        ends = pen.up(0, low, 0.004), pen.up(0, crown, 0.002)
        pen.solid(HAIR, *ends, hair, (low, crown), turn=turn, opening=face)
    if body.hair == "long":  # over the shoulders and down the back
        behind = -0.022 - 0.055 * (0.35 + 0.65 * body.build)
        ends = pen.up(-1.5 * back_x, 0.69, behind), pen.up(-0.6 * back_x, CHIN + 0.07, -0.022)
        pen.solid(HAIR, *ends, _CURTAIN * grown, (0.69, CHIN + 0.07), turn=turn)
    elif body.hair == "ponytail":
        ends = pen.up(-1.9 * back_x, 0.955, -0.062), pen.up(-2.2 * back_x, 0.80, -0.088)
        pen.limb(HAIR, *ends, (0.022, 0.012), (0.955, 0.8))
    elif body.hair == "bun":
        pen.limb(
            HAIR,
            pen.up(-back_x, 0.995, -0.035),
            pen.up(-back_x, 1.005, -0.04),
            (0.026, 0.026),
            (0.99, 1.0),
        )
    if body.hat == "none":
        return
    low, crown = CHIN + (0.66 if body.hat == "beanie" else 0.70) * tall, top + 0.022
    wide = size * (1.18 if body.hair in ("bald", "short", "ponytail", "bun") else 1.26)
    pen.solid(
        HAT,
        pen.up(0, low, 0.006),
        pen.up(0, crown, 0.002),
        _CAP * (1, wide, wide),
        (low, crown),
        turn=turn,
    )
    if body.hat == "cap":
        x, z = math.sin(turn), math.cos(turn)
        pen.limb(
            HAT,
            pen.up(0.03 * x, low + 0.006, 0.045 * z),
            pen.up(0.085 * x, low - 0.002, 0.095 * z),
            (0.022, 0.012),
        )
    elif body.hat == "brim":
        ends = pen.up(0, low - 0.006, 0.004), pen.up(0, low + 0.02, 0.004)
        pen.solid(HAT, *ends, _BRIM * grown, (low - 0.006, low + 0.02), turn=turn)


def _draw_bag(pen: Pen, body: Body) -> None:
    """The bag; straps over the chest are painted on the trunk with the clothes."""
    side = 1 if body.bag_side == "left" else -1
    hip = side * 0.11 * body.build
    if body.bag == "backpack":
        back = -0.045 - 0.045 * body.build
        pen.solid(BAG, pen.up(0, 0.57, back), pen.up(0, 0.815, back + 0.012), _BACKPACK, (0, 1), boxy=True)
    elif body.bag in ("shoulder", "messenger"):
        low = 0.50 if body.bag == "shoulder" else 0.44
        ends = pen.up(hip + side * 0.022, low, -0.01), pen.up(hip + side * 0.018, low + 0.13, -0.01)
        pen.solid(BAG, *ends, _SATCHEL, (0, 1), boxy=True)
        for z in (0.05, -0.055) if body.bag == "shoulder" else ():
            shoulder = pen.up(side * 0.085 * body.build, 0.838)
            pen.limb(STRAP, shoulder, pen.up(hip + side * 0.02, low + 0.12, z), (0.006, 0.006))
    elif body.bag == "hand":
        x, y, z = pen.joints.hands[side]
        pen.solid(BAG, (x, y - 0.19, z), (x, y - 0.045, z), _HANDBAG, (0, 1), boxy=True)
        for shift in (0.035, -0.035):
            pen.limb(STRAP, (x, y, z), (x, y - 0.05, z + shift), (0.005, 0.005))
