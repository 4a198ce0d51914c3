"""The factors of a drawn person: what the appearance code and the structure code should hold, and the light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dgnet_platform.data.people.relief import Point

RGB = tuple[int, int, int]
Pattern = Literal[
    "plain", "stripes", "pinstripes", "checks", "dots", "print", "two-tone", "raglan", "open", "camouflage"
]
HairStyle = Literal["bald", "short", "bob", "long", "ponytail", "bun", "curly"]
Bag = Literal["none", "backpack", "shoulder", "hand", "messenger"]


@dataclass(frozen=True, kw_only=True)
class Garment:
    """Cloth: two colours and how they are laid out."""

    colour: RGB
    second: RGB
    """Colour of stripes, print, yoke or the shirt under an open jacket."""
    pattern: Pattern = "plain"
    scale: float = 0.04
    """Period of the pattern in body heights."""
    motif: int = 0
    """Which print, and where a camouflage starts."""


@dataclass(frozen=True, kw_only=True)
class Appearance:
    """What the appearance code should hold: every colour of a person and the cut of the clothes.

    Bags and hats have their colour here and their kind in `Body`: the structure encoder sees gray pictures.
    """

    skin: RGB
    hair: RGB
    upper: Garment
    sleeve: float
    """Length of the sleeves from the shoulder: 0.165 ends at the elbow, 0.305 at the wrist."""
    lower: Garment
    cut: Literal["trousers", "shorts", "skirt", "dress"]
    hem: float
    """Height of the lower hem above the ground."""
    shoes: RGB
    soles: RGB
    bag: RGB
    hat: RGB


@dataclass(frozen=True, kw_only=True)
class Body:
    """The part of the structure that a person keeps from picture to picture."""

    height: float
    """Metres."""
    build: float
    """Width relative to an average person of that height."""
    hair: HairStyle
    bag: Bag
    bag_side: Literal["left", "right"]
    hat: Literal["none", "cap", "beanie", "brim"]


@dataclass(frozen=True, kw_only=True)
class Pose:
    """The part of the structure that changes from picture to picture."""

    yaw: float
    """Degrees: 0 faces the camera, 90 walks to the right of the picture, 180 shows the back."""
    phase: float
    """Gait phase in radians."""
    stride: float
    """Swing of the thighs in degrees; near 0 stands."""
    arms: Literal["swing", "phone", "pocket", "folded"]
    head_turn: float
    """Degrees of the head against the body."""
    lean: float
    """Forward lean of the trunk in degrees."""
    x: float
    """Metres to the right of the middle of the picture."""
    y: float
    """Metres of the feet above the lower edge of the picture."""
    scale: float
    """Magnification."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the structure code should hold of a person: body and pose."""

    body: Body
    pose: Pose


@dataclass(frozen=True, kw_only=True)
class Light:
    """Where the light comes from and how hard it is."""

    direction: Point
    """Canvas axes, unit length, from the figure towards the light."""
    ambient: float
    """Share of light that comes from everywhere, 0 to 1."""
    pitch: float
    """Degrees by which the camera looks down."""
