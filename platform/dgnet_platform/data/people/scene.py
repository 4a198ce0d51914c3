"""Where a drawn person is seen: a camera's backdrop, its shadows, what stands in the way, and its optics.

Each camera of each seed has one wide backdrop (a street, a lawn, a brick wall, a shop front, a plaza or a
hall), drawn once per process. A picture shows a window of it, so pictures of one camera share a place without
being alike.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from dgnet_platform.data.people.cloth import draw_figure, skirt_hem
from dgnet_platform.data.people.factors import Appearance, Light, Structure
from dgnet_platform.data.people.figure import FRAME_METRES, SUPERSAMPLING, pose_figure
from dgnet_platform.data.people.relief import Relief
from dgnet_platform.data.people.sizes import Scenery

BACKDROP_METRES = 12.0
"""Width of a backdrop."""
GROUND_METRES = 2.1
"""Height of the ground on a backdrop, under its wall."""
_PPM = 96  # backdrop pixels per metre
_WIDE, _TALL = round(BACKDROP_METRES * _PPM), round(4.4 * _PPM)
_FOOT = _TALL - round(GROUND_METRES * _PPM)  # the row where wall and ground meet
_PAINTS = (
    (150, 30, 30),
    (200, 200, 204),
    (36, 52, 96),
    (30, 30, 34),
    (120, 124, 130),
    (184, 150, 60),
    (50, 96, 80),
)  # of cars, shop signs and notice boards


@dataclass(frozen=True, kw_only=True)
class Passer:
    """Another person in the picture, in front of or behind its subject."""

    appearance: Appearance
    structure: Structure
    in_front: bool
    """Of the subject."""


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Everything of a picture that is not the person."""

    place: tuple[int, int]
    """Seed and camera number: which backdrop."""
    scenery: Scenery
    """How much of the backdrop is to be seen."""
    left: float
    """Left edge of the window on the backdrop, metres."""
    ground: float
    """Metres of ground between the wall and the feet, as they appear."""
    light: Light
    shadow: float
    """Darkness of the cast shadow, 0 to 1."""
    shadow_fall: tuple[float, float]
    """Where a shadow of height 1 ends: to the right, and up in the picture."""
    gain: float
    """Exposure: factor on all channels."""
    gamma: float
    """Exponent of the tone curve: below 1 lifts the shadows."""
    cast: tuple[float, float, float]
    """Factors on red, green and blue."""
    blur: float
    """Radius in picture pixels at a height of 128."""
    noise: float
    """Standard deviation in gray levels."""
    occluder: Literal["none", "pole", "railing", "car", "hedge"]
    occluder_x: float
    """Where it stands, 0 at the left edge to 1 at the right."""
    passer: Passer | None
    quality: int
    """JPEG quality."""


# ------------------------------------------------------------------------------------------------------------
# Backdrops


def _cloud(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """(height, width, 1) smooth noise about 0, features about `cell` pixels wide."""
    grid = rng.standard_normal((height // cell + 3, width // cell + 3), dtype=np.float32)
    field = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(field)[:, :, None]


def _rough(rng: np.random.Generator, height: int, width: int, fine: float, coarse: float) -> np.ndarray:
    """(height, width, 1) factor about 1 with grain and blotches."""
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    return 1 + fine * (0.6 * grain + _cloud(rng, height, width, 4)) + coarse * _cloud(rng, height, width, 50)


def _laid(rng, x: np.ndarray, y: np.ndarray, size: tuple[float, float], bond: float, spread: float, gap: float):
    """Factor of stones laid in courses at coordinates x, y: each stone its own tint, dark joints between."""
    row = np.floor(y / size[1])
    u = x / size[0] + bond * (row % 2)
    tint = 1 + spread * rng.standard_normal((64, 64), dtype=np.float32)
    factor = tint[row.astype(int) & 63, np.floor(u).astype(int) & 63]
    joint = (u % 1 < gap * size[1] / size[0]) | (y / size[1] % 1 < gap)
    return np.where(joint, 0.72, factor)[:, :, None].astype(np.float32)


def _ground_grid() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates on the ground of the pixels below the wall, in near pixels: rows shrink with distance."""
    row = np.arange(_TALL - _FOOT, dtype=np.float32)[:, None]
    closeness = 0.6 + 0.4 * row / row[-1]
    x = (np.arange(_WIDE, dtype=np.float32)[None, :] - _WIDE / 2) / closeness + 4096
    return x, np.broadcast_to(row / (0.32 * closeness), x.shape)


def _colour(rng: np.random.Generator, *choices: tuple[int, int, int]) -> np.ndarray:
    return (
        np.array(choices[rng.integers(len(choices))], np.float32) * rng.uniform(0.88, 1.12) * rng.uniform(0.96, 1.04, 3)
    )


def _tuple(colour) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(colour, 0, 255))


def _windows(draw: ImageDraw.ImageDraw, rng, top: int, bottom: int, width: int, gap: int, frame) -> None:
    x = int(rng.integers(-width, 0))
    while x < _WIDE:
        glass = rng.uniform(0.5, 1.0) * np.array((95, 112, 125)) * rng.uniform(0.9, 1.1, 3)
        draw.rectangle((x, top, x + width, bottom), fill=_tuple(frame))
        draw.rectangle((x + 6, top + 6, x + width - 6, bottom - 6), fill=_tuple(glass))
        slant = int(rng.integers(10, width // 2))
        draw.polygon(
            [
                (x + 6, bottom - 6),
                (x + 6, bottom - 6 - slant),
                (x + 6 + slant, top + 6),
                (x + 6 + 2 * slant, top + 6),
            ],
            fill=_tuple(glass * 1.35),
        )
        draw.line((x + width // 2, top, x + width // 2, bottom), fill=_tuple(frame), width=4)
        x += width + gap


def _car(draw: ImageDraw.ImageDraw, x: float, foot: float, length: float, colour: np.ndarray) -> None:
    """A parked car seen from its side, standing on row `foot`; also used close by, as an occluder."""
    u = length / 100
    dark, glass = colour * 0.55, (42, 50, 58)
    draw.ellipse((x - 2 * u, foot - 3 * u, x + 102 * u, foot + 4 * u), fill=(38, 38, 40))
    body = [(1, 9), (0, 17), (4, 22), (22, 24), (34, 35), (66, 36), (80, 24), (97, 21), (100, 15), (99, 8)]
    draw.polygon([(x + a * u, foot - b * u) for a, b in body], fill=_tuple(colour))
    sill = [(1, 9), (0, 15), (100, 13), (99, 8)]
    draw.polygon([(x + a * u, foot - b * u) for a, b in sill], fill=_tuple(dark))
    draw.line(
        [(x + 4 * u, foot - 21 * u), (x + 97 * u, foot - 20 * u)],
        fill=_tuple(colour * 1.3 + 25),
        width=max(1, int(u)),
    )
    for pane in ([(27, 24), (36, 33), (49, 33.5), (49, 24)], [(52, 24), (52, 33.5), (65, 33.5), (75, 24)]):
        draw.polygon([(x + a * u, foot - b * u) for a, b in pane], fill=glass)
    for wheel in (19, 80):
        draw.ellipse((x + (wheel - 9) * u, foot - 16 * u, x + (wheel + 9) * u, foot + 2 * u), fill=(25, 25, 27))
        draw.ellipse((x + (wheel - 5) * u, foot - 12 * u, x + (wheel + 5) * u, foot - 2 * u), fill=(130, 132, 136))


def _tree(draw: ImageDraw.ImageDraw, rng, x: int, foot: int, leaves: np.ndarray) -> None:
    bark = _colour(rng, (84, 66, 48), (96, 88, 76), (64, 54, 46))
    girth = int(rng.integers(9, 20))
    draw.ellipse((x - 3 * girth, foot - 5, x + 3 * girth, foot + 9), fill=_tuple(bark * 0.6))
    draw.polygon([(x - girth, foot), (x - girth * 0.6, 0), (x + girth * 0.6, 0), (x + girth, foot)], fill=_tuple(bark))
    draw.polygon(
        [(x - girth, foot), (x - girth * 0.6, 0), (x - girth * 0.2, 0), (x - girth * 0.4, foot)],
        fill=_tuple(bark * 1.35),
    )
    for _ in range(70):
        cx, cy, radius = x + rng.normal(0, 70), rng.normal(5, 32), rng.uniform(7, 20)
        draw.ellipse(
            (cx - radius, cy - radius, cx + radius, cy + radius),
            fill=_tuple(leaves * rng.uniform(0.55, 1.35)),
        )


def _bicycle(draw: ImageDraw.ImageDraw, rng, x: int, foot: int) -> None:
    colour = _tuple(_colour(rng, (170, 40, 36), (30, 80, 150), (30, 30, 32), (190, 190, 60)))
    for dx in (0, 92):
        draw.ellipse((x + dx - 30, foot - 60, x + dx + 30, foot), outline=(28, 28, 28), width=4)
    for line in (
        (0, 30, 36, 72),
        (36, 72, 80, 74),
        (36, 32, 80, 74),
        (0, 30, 36, 32),
        (36, 72, 36, 32),
        (92, 30, 78, 88),
    ):
        draw.line((x + line[0], foot - line[1], x + line[2], foot - line[3]), fill=colour, width=4)
    draw.line((x + 24, foot - 80, x + 46, foot - 80), fill=(20, 20, 20), width=6)
    draw.line((x + 66, foot - 92, x + 84, foot - 88), fill=(20, 20, 20), width=4)


def _leafy(rng, height: int, width: int, colour: np.ndarray) -> np.ndarray:
    """(height, width, 3) foliage."""
    clumps = _cloud(rng, height, width, 11) + 0.7 * _cloud(rng, height, width, 5) + 0.5 * _cloud(rng, height, width, 40)
    return colour * np.clip(1 + 0.38 * clumps, 0.25, 2)


@lru_cache(maxsize=32)
def backdrop(seed: int, number: int, scenery: Scenery) -> Image.Image:
    """The backdrop of camera `number` (1, 2, ...): RGB, 12 m wide and 4.4 m high at 96 pixels a metre."""
    if scenery != "busy":
        blurred = backdrop(seed, number, "busy").filter(ImageFilter.GaussianBlur(0.4 * _PPM))
        return ImageEnhance.Color(blurred).enhance(0.4)
    rng = np.random.default_rng((seed, 101, number))
    wall_height, ground_height = _FOOT, _TALL - _FOOT
    wy, wx = np.mgrid[0:wall_height, 0:_WIDE].astype(np.float32)
    gx, gy = _ground_grid()
    leaves = _colour(rng, (78, 94, 62), (92, 104, 70), (72, 90, 68))
    kind = ("street", "lawn", "brick", "shop", "plaza", "hall")[(number - 1) % 6]

    match kind:
        case "street":
            wall = _colour(rng, (176, 166, 148), (150, 152, 156), (188, 176, 150)) * _rough(
                rng, wall_height, _WIDE, 0.03, 0.05
            )
            ground = _colour(rng, (126, 125, 124), (116, 117, 120)) * _rough(rng, ground_height, _WIDE, 0.07, 0.05)
        case "lawn":
            wall = _leafy(rng, wall_height, _WIDE, leaves)
            ground = _leafy(rng, ground_height, _WIDE, _colour(rng, (104, 116, 80), (118, 122, 86)))
            ground = 0.6 * ground.mean((0, 1)) + 0.4 * ground
        case "brick":
            wall = _colour(rng, (140, 92, 76), (152, 112, 92), (126, 98, 88)) * _laid(
                rng, wx, wy, (22, 8), 0.5, 0.10, 0.18
            )
            wall = wall * _rough(rng, wall_height, _WIDE, 0.04, 0.05)
            ground = _colour(rng, (150, 144, 136), (136, 134, 132)) * _laid(rng, gx, gy, (62, 62), 0, 0.04, 0.05)
            ground = ground * _rough(rng, ground_height, _WIDE, 0.03, 0.04)
        case "shop":
            wall = _colour(rng, (98, 100, 102), (112, 106, 98)) * _rough(rng, wall_height, _WIDE, 0.03, 0.12)
            ground = _colour(rng, (152, 146, 138), (158, 155, 152)) * _laid(rng, gx, gy, (44, 44), 0, 0.05, 0.07)
            ground = ground * _rough(rng, ground_height, _WIDE, 0.02, 0.03)
        case "plaza":
            wall = _colour(rng, (172, 168, 160), (158, 162, 166)) * _laid(rng, wx, wy, (110, 62), 0.5, 0.025, 0.04)
            wall = wall * _rough(rng, wall_height, _WIDE, 0.03, 0.06)
            ground = _colour(rng, (154, 146, 136), (148, 146, 144)) * _laid(rng, gx, gy, (52, 26), 0.5, 0.08, 0.1)
            ground = ground * _rough(rng, ground_height, _WIDE, 0.03, 0.04)
        case _:
            wall = _colour(rng, (182, 176, 164), (172, 175, 176)) * _rough(rng, wall_height, _WIDE, 0.012, 0.04)
            ground = _colour(rng, (142, 137, 130), (130, 133, 135)) * _laid(rng, gx, gy, (84, 84), 0, 0.02, 0.03)
            shine = np.exp(-(((wx[:1] % 260 - 130) / 38) ** 2))[:, :, None]
            ground = ground * (1 + 0.35 * shine * np.linspace(1, 0.2, ground_height, dtype=np.float32)[:, None, None])
    picture = np.concatenate([np.broadcast_to(wall, (wall_height, _WIDE, 3)), ground])
    picture[_FOOT - 2 : _FOOT + 14] *= np.linspace(0.62, 1, 16, dtype=np.float32)[:, None, None]
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    _furnish(ImageDraw.Draw(image), rng, kind, leaves)

    light = np.asarray(image) * (1 + 0.05 * _cloud(rng, _TALL, _WIDE, 130))
    if kind in ("lawn", "plaza", "street"):  # patches of sun under the trees
        dapple = np.clip(1.4 * (_cloud(rng, ground_height, _WIDE, 40) - rng.uniform(0.1, 0.7)), 0, 1)
        light[_FOOT:] *= 1 - 0.25 * dapple
    return Image.fromarray(np.clip(light, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.9))


def _furnish(draw: ImageDraw.ImageDraw, rng: np.random.Generator, kind: str, leaves: np.ndarray) -> None:
    """Windows, doors, cars, trees, signs and the like along the wall of a backdrop."""
    places = (np.arange(6) * _WIDE / 6 + rng.uniform(0, _WIDE / 6 - 110, 6)).astype(int)
    match kind:
        case "street":
            _windows(draw, rng, 20, 118, 92, 70, (210, 206, 198))
            draw.rectangle((0, _FOOT - 10, _WIDE, _FOOT + 12), fill=(150, 148, 142))
            draw.rectangle((0, _FOOT + 12, _WIDE, _FOOT + 20), fill=(96, 95, 92))
            for x in range(int(rng.integers(-300, 0)), _WIDE, 430):
                _car(draw, x, _FOOT + 26, rng.uniform(330, 380), _colour(rng, *_PAINTS))
            draw.line((0, _TALL - 70, _WIDE, _TALL - 46), fill=(196, 192, 176), width=9)
        case "lawn":
            path = [(0, _FOOT + 40), (_WIDE, _FOOT + 64), (_WIDE, _TALL), (0, _TALL - 30)]
            draw.polygon(path, fill=_tuple(_colour(rng, (168, 156, 132), (150, 146, 140))))
            for x in places[::2]:
                _tree(draw, rng, int(x), _FOOT + int(rng.integers(0, 26)), leaves)
            draw.line((0, _FOOT - 84, _WIDE, _FOOT - 84), fill=(92, 88, 80), width=5)
            for x in range(0, _WIDE, 64):
                draw.line((x, _FOOT - 92, x, _FOOT + 4), fill=(84, 80, 74), width=5)
        case "brick":
            _windows(draw, rng, -30, 96, 110, 190, (226, 222, 214))
            door = int(places[2])
            draw.rectangle(
                (door, 8, door + 104, _FOOT),
                fill=_tuple(_colour(rng, (54, 74, 60), (70, 50, 40), (40, 52, 80))),
            )
            draw.rectangle((door + 14, 24, door + 90, 96), outline=(30, 30, 30), width=4)
            draw.rectangle((0, _FOOT - 16, _WIDE, _FOOT), fill=(112, 106, 100))
            for x in places[3:5]:
                _bicycle(draw, rng, int(x), _FOOT + 12)
        case "shop":
            _windows(draw, rng, 56, _FOOT - 14, 210, 26, (64, 62, 62))
            x = 0
            while x < _WIDE:
                width = int(rng.integers(180, 420))
                draw.rectangle((x, 6, x + width, 50), fill=_tuple(_colour(rng, *_PAINTS)))
                for k in range(x + 24, x + width - 40, 26):
                    draw.rectangle((k, 18, k + int(rng.integers(8, 18)), 38), fill=(232, 228, 214))
                x += width
            for x in places:
                draw.rectangle(
                    (x, 88, x + 52, 160),
                    fill=_tuple(_colour(rng, (214, 90, 60), (220, 200, 90), (90, 150, 190), (225, 225, 220))),
                )
                draw.ellipse((x + 12, 100, x + 40, 128), fill=_tuple(_colour(rng, (250, 240, 220), (60, 50, 50))))
        case "plaza":
            for step in range(4):
                top = _FOOT - 72 + 18 * step
                draw.rectangle((0, top, _WIDE, top + 9), fill=(196, 190, 180))
                draw.rectangle((0, top + 9, _WIDE, top + 18), fill=(140, 134, 126))
            for x in places[:2]:
                draw.rectangle((x, 0, x + 46, _FOOT - 60), fill=(186, 182, 174))
                draw.rectangle((x + 30, 0, x + 46, _FOOT - 60), fill=(140, 137, 131))
            for x in places[2:]:
                draw.rectangle((x, _FOOT - 20, x + 90, _FOOT + 24), fill=(120, 112, 104))
                draw.ellipse((x - 6, _FOOT - 72, x + 96, _FOOT), fill=_tuple(leaves))
                for _ in range(26):
                    cx, cy = x + rng.uniform(4, 86), _FOOT - rng.uniform(14, 66)
                    draw.ellipse((cx - 9, cy - 9, cx + 9, cy + 9), fill=_tuple(leaves * rng.uniform(0.6, 1.4)))
        case _:
            draw.rectangle((0, _FOOT - 18, _WIDE, _FOOT), fill=(98, 88, 78))
            draw.rectangle((0, _FOOT - 110, _WIDE, _FOOT - 100), fill=(150, 130, 104))
            for x in places[::2]:
                draw.rectangle(
                    (x, 14, x + 108, _FOOT - 2),
                    fill=_tuple(_colour(rng, (134, 98, 64), (104, 116, 126), (172, 160, 140))),
                )
                draw.rectangle((x + 8, 22, x + 100, _FOOT - 2), outline=(84, 70, 56), width=3)
                draw.rectangle((x + 72, 50, x + 90, 110), fill=(190, 206, 214))
            for x in places[1::2]:
                draw.rectangle((x, 40, x + 120, 110), fill=_tuple(_colour(rng, *_PAINTS)))
                draw.rectangle((x + 10, 50, x + 110, 100), fill=(226, 222, 212))


# ------------------------------------------------------------------------------------------------------------
# One picture


def draw_picture(
    appearance: Appearance,
    structure: Structure,
    camera: Camera,
    rng: np.random.Generator,
    height: int,
    width: int,
) -> tuple[bytes, np.ndarray]:
    """Draws one picture: backdrop, shadow, person, what stands in front, optics, JPEG.

    Args:
        appearance: Of the person.
        structure: Of the person.
        camera: Everything else.
        rng: For the noise, the creases in the cloth and the look of an occluder.
        height: Picture pixels.
        width: Picture pixels.

    Returns:
        The JPEG file, and the mask of the person on the canvas (`SUPERSAMPLING` x height and width, bool),
        without what other people in front hide.
    """
    shape = (height * SUPERSAMPLING, width * SUPERSAMPLING)
    view = _window(camera, structure, shape)
    creases = int(rng.integers(1 << 14))
    silhouette = np.zeros(shape, bool)
    figures = [(appearance, structure, True)]
    if camera.passer is not None:
        at = 1 if camera.passer.in_front else 0
        figures.insert(at, (camera.passer.appearance, camera.passer.structure, False))
    drawn = [draw_figure(shape, clothes, pose, camera.light, creases) for clothes, pose, _ in figures]
    for (_, pose, _), (_, _, mask) in zip(figures, drawn, strict=True):
        _cast_shadow(view, mask, pose, camera)
    canvas = np.array(view)
    for (_, _, is_subject), (index, colour, mask) in zip(figures, drawn, strict=True):
        canvas.reshape(-1, 3)[index] = colour
        silhouette = mask if is_subject else silhouette & ~mask
    image = Image.fromarray(canvas)
    if camera.occluder != "none":
        _occlude(image, camera, rng)
    data = io.BytesIO()
    _expose(image, camera, rng).save(data, "JPEG", quality=camera.quality)
    return data.getvalue(), silhouette


def covered(camera: Camera, rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """What stands between camera and person: a passer in front, a pole, a railing, a car or a hedge.

    Args:
        camera: Of the picture.
        rng: In the state in which `draw_picture` is given it.
        shape: Height and width of the canvas.

    Returns:
        (height, width) bool: canvas pixels that they cover.
    """
    mask = np.zeros(shape, bool)
    passer = camera.passer
    if passer is not None and passer.in_front:
        relief, appearance = Relief(*shape), passer.appearance
        pose_figure(relief, passer.structure, skirt_hem(appearance), math.radians(camera.light.pitch))
        mask |= relief.piece > 0
    if camera.occluder != "none":
        rng.integers(1 << 14)  # the creases, which draw_picture draws first
        blank = Image.new("RGB", (shape[1], shape[0]), (255, 0, 255))
        _occlude(blank, camera, rng)
        mask |= (np.asarray(blank) != (255, 0, 255)).any(axis=2)
    return mask


def _window(camera: Camera, structure: Structure, shape: tuple[int, int]) -> Image.Image:
    """The camera's window on its backdrop at the size of the canvas, feet on the ground."""
    pose = structure.pose
    tall = FRAME_METRES / pose.scale * _PPM
    wide = tall * shape[1] / shape[0]
    bottom = _FOOT + camera.ground * _PPM + pose.y * _PPM
    top = min(max(bottom - tall, 0), _TALL - tall)
    left = min(max(camera.left * _PPM, 0), _WIDE - wide)
    box = (left, top, left + wide, top + tall)
    return backdrop(*camera.place, camera.scenery).resize((shape[1], shape[0]), Image.Resampling.NEAREST, box=box)


def _cast_shadow(view: Image.Image, mask: np.ndarray, structure: Structure, camera: Camera) -> None:
    """Darkens the ground by the figure's own outline, laid down away from the light."""
    height, width = mask.shape
    metre = height / FRAME_METRES * structure.pose.scale
    foot = height - (structure.pose.y + 0.03) * metre
    right, up = camera.shadow_fall
    reach = up * 1.9 * metre  # no person is taller
    y0, y1 = max(0, int(foot - max(reach, 0) - 8)), min(height, int(foot - min(reach, 0) + 10))
    if y1 - y0 < 4:
        return
    # Row y of the shadow takes the outline at (foot - y) / up above the feet.
    outline = Image.fromarray(mask.astype(np.uint8) * 255)
    a, b = 1 / up, foot - (foot - y0) / up
    laid = outline.transform(
        (width, y1 - y0), Image.Transform.AFFINE, (1, right * a, -right * (foot - b), 0, a, b)
    ).filter(ImageFilter.BoxBlur(height / 90))
    view.paste((0, 0, 0), (0, y0, width, y1), laid.point(lambda level: int(level * camera.shadow)))


def _occlude(image: Image.Image, camera: Camera, rng: np.random.Generator) -> None:
    """Draws what stands between camera and person over the canvas."""
    draw = ImageDraw.Draw(image)
    width, height = image.size
    metre, x = height / FRAME_METRES, camera.occluder_x * width
    match camera.occluder:
        case "pole":
            girth, gray = rng.uniform(0.04, 0.09) * metre, rng.uniform(60, 150)
            for k in range(12):
                shade = gray * (0.5 + 0.8 * math.sin(math.pi * (k + 1.5) / 14))
                left = x + (k / 6 - 1) * girth
                draw.rectangle((left, 0, left + girth / 6 + 1, height), fill=_tuple((shade, shade, shade * 1.03)))
        case "railing":
            colour, top = (
                _tuple(_colour(rng, (150, 152, 156), (70, 72, 70), (170, 150, 60))),
                height - rng.uniform(0.6, 0.95) * metre,
            )
            for bar in (0, 0.22, 0.44):
                draw.line(
                    (0, top + bar * metre, width, top + (bar + 0.04) * metre),
                    fill=colour,
                    width=int(0.035 * metre),
                )
            for post in np.arange(x % (0.5 * metre), width, 0.5 * metre):
                draw.line(
                    (post, top - 2, post, height),
                    fill=_tuple(np.array(colour) * 0.8),
                    width=int(0.045 * metre),
                )
        case "car":
            colour = _colour(rng, (150, 30, 30), (205, 205, 208), (36, 52, 96), (34, 34, 38), (124, 128, 134))
            length, inside = rng.uniform(3.6, 4.4) * metre, rng.uniform(0.5, 1.1) * width
            start = inside - length if camera.occluder_x < 0.5 else width - inside
            _car(draw, start, height + rng.uniform(0.35, 0.65) * metre, length, colour)
        case "hedge":
            tall = int(rng.uniform(0.3, 0.62) * metre)
            leaves = _leafy(rng, tall, width, _colour(rng, (60, 88, 42), (78, 100, 50)))
            edge = _cloud(rng, 1, width, 9)[0, :, 0] * 0.06 * metre
            mask = np.arange(tall)[:, None] > edge[None, :] + 0.1 * metre
            image.paste(
                Image.fromarray(np.clip(leaves, 0, 255).astype(np.uint8)),
                (0, height - tall),
                Image.fromarray(mask.astype(np.uint8) * 255),
            )


def _expose(canvas: Image.Image, camera: Camera, rng: np.random.Generator) -> Image.Image:
    """Lens and sensor: blur, exposure, colour cast, noise; from the canvas to the picture."""
    image = canvas.reduce(SUPERSAMPLING)
    if camera.blur > 0:
        image = image.filter(ImageFilter.BoxBlur(camera.blur * image.height / 128))
    level = (np.arange(256) / 255) ** camera.gamma * (255 * camera.gain)
    curves = np.clip(np.outer(camera.cast, level), 0, 255).astype(np.uint8)
    exposed = np.asarray(image.point(curves.ravel().tolist())).astype(np.float32)
    height, width = exposed.shape[:2]
    y, x = rng.integers(0, _GRAIN, 2)
    sheet = _grain(height, width)
    exposed += camera.noise * sheet[y : y + height, x : x + width]
    return Image.fromarray(np.clip(exposed, 0, 255, out=exposed).astype(np.uint8))


_GRAIN = 256


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> np.ndarray:
    """(height + 256, width + 256, 3) noise of unit deviation in brightness and half that in each colour."""
    rng = np.random.default_rng(19)
    shape = (height + _GRAIN, width + _GRAIN)
    return rng.standard_normal((*shape, 1), np.float32) + 0.5 * rng.standard_normal((*shape, 3), np.float32)
