"""A small renderer of posed bodies: rounded limbs and upright solids before one orthographic camera.

Canvas axes: x right, y down, z towards the camera, in canvas pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Point = tuple[float, float, float]
Span = tuple[float, float]

_MAX_PIECES = 40


class Opening(NamedTuple):
    """The front of a solid that is left open, as hair is at the face.

    The solid is there where its surface coordinate is above a level. The level goes from `front` to `back`
    between the angles `start` and `end` (radians) off its front.
    """

    front: float
    back: float
    start: float
    end: float


class Relief:
    """What the camera sees of a figure.

    For each canvas pixel: which `piece` is in front (0: none), its `depth`, the place `along` the piece and
    the place `across` it (-1 at its left edge in the picture, 1 at the right). All else follows from the
    piece, and is worked out for the visible pixels alone.
    """

    def __init__(self, height: int, width: int):
        self.piece = np.zeros((height, width), np.uint8)
        self.depth = np.full((height, width), -1e6, np.float32)
        self.along = np.empty((height, width), np.float32)
        self.across = np.empty((height, width), np.float32)
        self.parts = [0]
        # By piece and canvas row: angle from the middle of the piece to its front, steepness of its outline,
        # and how much its axis lies on its side.
        self.front = np.zeros((_MAX_PIECES, height), np.float32)
        self.slope = np.zeros((_MAX_PIECES, height), np.float32)
        self.axis = np.zeros((_MAX_PIECES, 2), np.float32)
        self.boxy = np.zeros(_MAX_PIECES, bool)
        self._x = np.arange(width, dtype=np.float32) + np.float32(0.5)
        self._y = np.arange(height, dtype=np.float32) + np.float32(0.5)

    def _box(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice] | None:
        height, width = self.piece.shape
        x0, x1 = max(0, int(left)), min(width, int(right) + 2)
        y0, y1 = max(0, int(top)), min(height, int(bottom) + 2)
        return (slice(y0, y1), slice(x0, x1)) if x0 < x1 and y0 < y1 else None

    def _write(self, box: tuple[slice, slice], part: int, seen, depth, along, across) -> int:
        piece = len(self.parts)
        self.parts.append(part)
        seen &= depth > self.depth[box]
        for plane, value in ((self.depth, depth), (self.along, along), (self.across, across)):
            np.copyto(plane[box], value, where=seen)
        np.copyto(self.piece[box], np.uint8(piece), where=seen)
        return piece

    def limb(self, part: int, a: Point, b: Point, radius_a: float, radius_b: float, along: Span, yaw: float) -> None:
        """Draws a rounded cone from `a` to `b` (canvas units).

        Args:
            part: Number of the part of the body.
            a: One end of the axis.
            b: The other.
            radius_a: At `a`.
            radius_b: At `b`.
            along: Surface coordinate at `a` and at `b`.
            yaw: Radians between the front of the body and the camera.
        """
        (ax, ay, az), (bx, by, bz) = a, b
        box = self._box(
            min(ax - radius_a, bx - radius_b),
            min(ay - radius_a, by - radius_b),
            max(ax + radius_a, bx + radius_b),
            max(ay + radius_a, by + radius_b),
        )
        if box is None:
            return
        length = math.hypot(bx - ax, by - ay) + 1e-3
        ux, uy = (bx - ax) / length, (by - ay) / length
        x, y = self._x[box[1]] - np.float32(ax), (self._y[box[0]] - np.float32(ay))[:, None]
        axial, lateral = x * ux + y * uy, x * uy - y * ux
        on_axis = np.minimum(np.maximum(axial, 0), length)
        radius = on_axis * ((radius_b - radius_a) / length)
        radius += radius_a
        axial -= on_axis
        inside = radius * radius
        inside -= lateral * lateral
        inside -= axial * axial
        seen = inside > 0
        depth = np.sqrt(np.maximum(inside, 0, out=inside), out=inside)
        depth += on_axis * ((bz - az) / length) + az
        on_axis *= (along[1] - along[0]) / length
        on_axis += along[0]
        lateral /= radius
        piece = self._write(box, part, seen, depth, on_axis, lateral)
        self.front[piece] = math.remainder(yaw, 2 * math.pi)
        self.axis[piece] = uy, -ux

    def solid(
        self,
        part: int,
        bottom: Point,
        top: Point,
        profile: np.ndarray,
        along: Span,
        yaw: float,
        pitch: float,
        *,
        opening: Opening | None = None,
        boxy: bool = False,
    ) -> None:
        """Draws an upright solid of elliptic section about the axis from `bottom` to `top` (canvas units).

        Args:
            part: Number of the part of the body.
            bottom: Lower end of the axis.
            top: Upper end.
            profile: (knots, 3): place on the axis from bottom to top (0-1), half width, half depth (canvas
                units).
            along: Surface coordinate at the bottom and at the top.
            yaw: Radians between the front of the solid and the camera.
            pitch: Radians by which the camera looks down.
            opening: Where the solid is left open.
            boxy: Whether to light it as a box with rounded edges.
        """
        (xb, yb, zb), (xt, yt, zt) = bottom, top
        tall = max(yb - yt, 1e-3)
        droop = math.tan(pitch)
        reach = float(profile[:, 1:].max())
        box = self._box(min(xb, xt) - reach, yt - droop * reach, max(xb, xt) + reach, yb + droop * reach)
        if box is None:
            return
        v = (np.float32(yb) - self._y[box[0]]) / np.float32(tall)
        w, d = (np.interp(v, profile[:, 0], profile[:, k]).astype(np.float32) + 1e-3 for k in (1, 2))
        cos, sin = math.cos(yaw), math.sin(yaw)
        half = np.hypot(w * cos, d * sin)
        front = np.arctan2(d * sin, w * cos)
        across = self._x[box[1]] - (xb + v * (xt - xb))[:, None]
        across /= half[:, None]
        inside = 1 - across * across
        seen = inside > 0
        c = np.sqrt(np.maximum(inside, 0, out=inside), out=inside)
        # Depth of an ellipse, as a function of the place across it.
        z = across * ((d * d - w * w) * (sin * cos) / half)[:, None]
        z += c * (w * d / half)[:, None]
        # The near side of a ring lies lower in the picture: hems and stripes become arcs.
        height = z * (droop / tall)
        height += v[:, None]
        seen &= height > 0
        seen &= (v < 1)[:, None]
        height *= along[1] - along[0]
        height += along[0]
        if opening is not None:
            turn = np.abs(np.arcsin(np.clip(across, -1, 1)) - front[:, None])
            turn = np.minimum(turn, 2 * math.pi - turn)
            aside = np.clip((turn - opening.start) / (opening.end - opening.start), 0, 1)
            seen &= height > opening.front + aside * (opening.back - opening.front)
        z += (zb + v * (zt - zb))[:, None]
        piece = self._write(box, part, seen, z, height, across)
        self.front[piece, box[0]] = front
        if len(v) > 1:
            self.slope[piece, box[0].start : box[0].stop - 1] = np.clip(half[1:] - half[:-1], -0.4, 0.4)
        self.axis[piece] = 1, 0
        self.boxy[piece] = boxy

    def visible(self, girth: np.ndarray) -> Visible:
        """Gathers the visible pixels; `girth` is the radius (body heights) of each part, by its number."""
        index = np.flatnonzero(self.piece)
        piece = self.piece.ravel()[index]
        across = np.minimum(np.maximum(self.across.ravel()[index], -1), 1)
        height, width = self.piece.shape
        place = piece.astype(np.int32) * height + index.astype(np.int32) // width
        turn = np.arcsin(across) - self.front.ravel()[place]
        turn += np.float32(2 * math.pi) * ((turn < -math.pi).astype(np.int8) - (turn > math.pi))
        slope = self.slope.ravel()[place]
        flat = 1 / np.sqrt(1 + slope * slope)
        bent = np.where(self.boxy[piece], across * across * across, across)
        part = np.array(self.parts, np.uint8)[piece]
        return Visible(
            index=index,
            part=part,
            depth=self.depth.ravel()[index],
            along=self.along.ravel()[index],
            turn=turn,
            around=turn * girth[part],
            nx=bent * self.axis[:, 0][piece] * flat,
            ny=bent * self.axis[:, 1][piece] - slope * flat,
            nz=np.sqrt(1 - bent * bent) * flat,
        )


@dataclass(frozen=True, kw_only=True)
class Visible:
    """The n visible pixels of a relief, each field (n,)."""

    index: np.ndarray
    """Place in the flattened canvas."""
    part: np.ndarray
    """Number of the part of the body."""
    depth: np.ndarray
    """Canvas units, towards the camera."""
    along: np.ndarray
    """Body heights above the ground (arms: below the shoulder; bags: share of their own height)."""
    turn: np.ndarray
    """Radians around the part from its front, to the person's left."""
    around: np.ndarray
    """The same in body heights of cloth."""
    nx: np.ndarray
    """The normal, canvas axes."""
    ny: np.ndarray
    nz: np.ndarray
