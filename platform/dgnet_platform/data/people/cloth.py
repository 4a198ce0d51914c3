"""Dresses and lights a drawn figure: what each visible place of a posed body is dyed with, and how bright."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from dgnet_platform.data.people.factors import Appearance, Body, Garment, Light, Structure
from dgnet_platform.data.people.figure import (
    ARM,
    BAG,
    GIRTH,
    HAIR,
    HAND,
    HAT,
    HEAD,
    LEG,
    NECK,
    NUM_PARTS,
    SHOE,
    SKIRT,
    STRAP,
    TORSO,
    pose_figure,
)
from dgnet_platform.data.people.relief import Relief, Visible
from dgnet_platform.data.people.skeleton import CHIN, head_height

# What each visible place is dyed with: an index into the palette that `_palette` makes of an appearance.
_INKS = range(18)
SKIN, TRESS, SHOE_INK, SOLE, BAG_INK, HAT_INK, UPPER, UPPER_MIX, UPPER_SECOND = _INKS[:9]
LOWER, LOWER_MIX, LOWER_SECOND, EYE, SOCKET, BROW, LIP, SCALP, STRAP_INK = _INKS[9:]

_INK_OF_PART = np.zeros(NUM_PARTS, np.uint8)
_INK_OF_PART[[HEAD, NECK, HAND, ARM, LEG]] = SKIN
_INK_OF_PART[[SHOE, HAIR, HAT, BAG, STRAP]] = SHOE_INK, TRESS, HAT_INK, BAG_INK, STRAP_INK

# By part: depth of creases across the cloth and along it, and gloss.
_CLOTH = np.zeros((NUM_PARTS, 3), np.float32)
_CLOTH[:, 0] = 0.02
_CLOTH[[TORSO, ARM, LEG]] = 0.075, 0.035, 0
_CLOTH[SKIRT] = 0.02, 0.13, 0
_CLOTH[HAIR] = 0, 0.15, 40
_CLOTH[[BAG, SHOE], 2] = 38

_UPPER_HEM = 0.545


@cache
def _noise(seed: int) -> np.ndarray:
    """(128, 128) smooth tileable noise about 0 with unit spread."""
    rng = np.random.default_rng((seed, 17))
    fx, fy = np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128))
    spectrum = np.fft.fft2(rng.standard_normal((128, 128))) * np.exp(-((fx**2 + fy**2) / 0.004))
    noise = np.fft.ifft2(spectrum).real
    return (noise / noise.std()).astype(np.float32)


def _tile(noise: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return noise.ravel()[((i.astype(np.int32) & 127) << 7) | (j.astype(np.int32) & 127)]


@cache
def _motif(motif: int) -> np.ndarray:
    """(8, 8) bool: a symmetric print."""
    half = np.random.default_rng((motif, 23)).random((8, 4)) < 0.55
    return np.concatenate([half, half[:, ::-1]], axis=1)


def _palette(appearance: Appearance) -> np.ndarray:
    """(3, inks) float32 colours."""
    skin, hair = np.array(appearance.skin, np.float32), np.array(appearance.hair, np.float32)
    palette = np.zeros((len(_INKS), 3), np.float32)
    palette[[SKIN, TRESS, SHOE_INK, SOLE]] = skin, hair, appearance.shoes, appearance.soles
    palette[[BAG_INK, HAT_INK]] = appearance.bag, appearance.hat
    palette[STRAP_INK] = 0.85 * palette[BAG_INK]
    for first, garment in ((UPPER, appearance.upper), (LOWER, appearance.lower)):
        palette[[first, first + 2]] = garment.colour, garment.second
        palette[first + 1] = (palette[first] + palette[first + 2]) / 2
    palette[[EYE, SOCKET, BROW]] = (52, 40, 36), 0.85 * skin, 0.45 * skin + 0.45 * hair
    palette[[LIP, SCALP]] = skin * (0.72, 0.5, 0.5), 0.7 * skin + 0.3 * hair
    return np.ascontiguousarray(palette.T)


def _second(garment: Garment, along, around, turn, torso) -> np.ndarray | int:
    """How much of the second colour each place of a garment has: 0 none, 1 half, 2 all."""
    period = garment.scale
    match garment.pattern:
        case "stripes":
            return 2 * ((along / period) % 1 < 0.42)
        case "pinstripes":
            return 2 * ((around / (0.6 * period)) % 1 < 0.3)
        case "checks":
            return ((along / period) % 1 < 0.45).astype(np.uint8) + ((around / period) % 1 < 0.45)
        case "dots":
            row = np.floor(along / (0.6 * period))
            dx, dy = (around / (0.6 * period) + 0.5 * row) % 1 - 0.5, (along / (0.6 * period)) % 1 - 0.5
            return 2 * (dx * dx + dy * dy < 0.09)
        case "print":  # on the chest and on the back
            facing = np.where(np.abs(turn) < math.pi / 2, turn, math.pi - np.abs(turn))
            column, row = (facing * 7 + 4).astype(np.int32) & 7, ((along - 0.66) * 75).astype(np.int32) & 7
            inside = torso & (np.abs(facing) < 0.56) & (along > 0.66) & (along < 0.765)
            return 2 * (inside & _motif(garment.motif)[row, column])
        case "two-tone":
            return 2 * (torso & (along > 0.70 + period))
        case "raglan":
            return 2 * ~torso
        case "open":
            return 2 * (torso & (np.abs(turn) < 0.22 + 0.8 * np.maximum(0, along - 0.74)))
        case "camouflage":
            return 2 * (_tile(_noise(garment.motif), along * 260, around * 260) > 0.2)
    return 0


def _dress(seen: Visible, appearance: Appearance, body: Body) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns each visible pixel's ink (n,), how much seams dim it (n,), and whether it is clothed (n,)."""
    part, along, turn = seen.part, seen.along, seen.turn
    torso, arm, leg, skirt, shoe, bag = (part == p for p in (TORSO, ARM, LEG, SKIRT, SHOE, BAG))
    ink = _INK_OF_PART[part]
    gown = appearance.cut == "dress"

    upper = (torso & (along > (0.0 if gown else _UPPER_HEM))) | (arm & (along < appearance.sleeve))
    if gown:
        upper |= skirt
    lower = (torso | skirt) & ~upper
    if appearance.cut in ("trousers", "shorts"):
        lower |= leg & (along > appearance.hem)
    for worn, first, garment in ((upper, UPPER, appearance.upper), (lower, LOWER, appearance.lower)):
        if garment.pattern == "plain":
            ink[worn] = first
        else:
            k = np.flatnonzero(worn)
            height = np.where(arm[k], 0.80 - along[k], along[k])
            ink[k] = first + _second(garment, height, seen.around[k], turn[k], torso[k])

    dim = np.ones_like(along)
    edge = arm & (np.abs(along - appearance.sleeve) < 0.007)
    edge |= leg & lower & (along < appearance.hem + 0.008)
    if not gown:
        edge |= torso & (np.abs(along - _UPPER_HEM) < 0.006)
    dim[edge] = 0.72
    ink[leg & ~lower & (along < 0.06)] = SHOE_INK
    neckline = torso & (along > 0.838 - 0.045 * np.maximum(np.cos(turn), 0) ** 6)
    if appearance.sleeve < 0.25:
        ink[neckline] = SKIN
    else:
        dim[neckline] = 0.8
    ink[shoe & (seen.ny > 0.55)] = SOLE
    if body.bag != "none":
        dim[bag & (along < 0.46)] = 0.88
        dim[bag & (np.abs(along - 0.52) < 0.025)] = 0.6
    if body.bag == "backpack":
        ink[torso & (np.abs(np.abs(turn) - 0.66) < 0.12) & (along > 0.62)] = STRAP_INK
    elif body.bag == "messenger":
        side = 1 if body.bag_side == "left" else -1
        ink[torso & (np.abs(along - 0.70 + 0.125 * side * np.sin(turn)) < 0.014) & (along > 0.56)] = STRAP_INK

    head = np.flatnonzero(part == HEAD)
    ink[head] = _face((along[head] - CHIN) / head_height(body), turn[head], body.hair == "bald")
    return ink, dim, upper | lower


def _face(v: np.ndarray, turn: np.ndarray, shaved: bool) -> np.ndarray:
    """Inks of a head at heights `v` (0 chin, 1 crown) and angles `turn` from the nose."""
    ink = np.full(v.shape, SKIN, np.uint8)
    off_eye = np.abs(np.abs(turn) - 0.42)
    ink[(off_eye < 0.22) & (np.abs(v - 0.50) < 0.07)] = SOCKET
    ink[(off_eye < 0.15) & (np.abs(v - 0.50) < 0.035)] = EYE
    ink[(off_eye < 0.26) & (np.abs(v - 0.60) < 0.02)] = BROW
    ink[(np.abs(turn) < 0.11) & (v > 0.30) & (v < 0.38)] = SOCKET  # under the nose
    ink[(np.abs(turn) < 0.30) & (np.abs(v - 0.19) < 0.035)] = LIP
    if shaved:
        ink[(v > 0.76) | ((np.abs(turn) > 1.4) & (v > 0.3))] = SCALP
    return ink


def _shade(seen: Visible, clothed: np.ndarray, light: Light, creases: int, shape: tuple) -> tuple:
    """Returns brightness (n,) and gloss (n,): light, creases, and the shade of nearer parts."""
    lx, ly, lz = light.direction
    diffuse = np.maximum(seen.nx * lx + seen.ny * ly + seen.nz * lz, 0)
    bright = light.ambient * (0.8 - 0.2 * seen.ny) + (1.25 * (1 - light.ambient)) * diffuse

    # A place that lies deeper than its surroundings gets less light.
    far = float(seen.depth.min())
    depth = (seen.depth - far) * (215 / max(float(seen.depth.max()) - far, 1.0)) + 40
    plane = np.zeros(shape, np.uint8)
    plane.ravel()[seen.index] = depth
    blurred = Image.fromarray(plane).reduce(2).filter(ImageFilter.BoxBlur(shape[0] / 120))
    around = np.asarray(blurred.resize(shape[::-1], Image.Resampling.NEAREST)).ravel()[seen.index]
    bright *= 1 - np.clip((around - depth - 4) / 70, 0, 0.45)

    noise, i, j = _noise(0), creases % 128, creases // 128 % 128
    across = _tile(noise, seen.along * 330 + seen.around * 120 + i, seen.around * 130 + j)
    upright = _tile(noise, seen.along * 70 + j, seen.around * 420 + i)
    kind = np.where(clothed | (seen.part > NECK), seen.part, NECK)
    bright *= 1 + _CLOTH[:, 0][kind] * across + _CLOTH[:, 1][kind] * upright
    return bright, _CLOTH[:, 2][kind] * diffuse**6


def skirt_hem(appearance: Appearance) -> float | None:
    """Height (body heights) at which a skirt or dress ends; None without one."""
    return appearance.hem if appearance.cut in ("skirt", "dress") else None


def draw_figure(
    shape: tuple[int, int], appearance: Appearance, structure: Structure, light: Light, creases: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one person on an empty canvas.

    Args:
        shape: Height and width of the canvas in pixels; the height shows `FRAME_METRES`.
        appearance: Colours and clothes.
        structure: Body and pose; what lies outside the canvas is cut off.
        light: Light, and pitch of the camera.
        creases: Where the creases of the cloth fall: any number of 0 or more.

    Returns:
        Flat canvas indices (n,) of the figure, its colours there (n, 3) uint8, and its mask (height, width)
        bool.
    """
    relief = Relief(*shape)
    pose_figure(relief, structure, skirt_hem(appearance), math.radians(light.pitch))
    seen = relief.visible(GIRTH)
    mask = relief.piece > 0
    if not len(seen.index):
        return seen.index, np.zeros((0, 3), np.uint8), mask
    ink, dim, clothed = _dress(seen, appearance, structure.body)
    bright, gloss = _shade(seen, clothed, light, creases, shape)
    bright *= dim
    colour = np.empty((len(ink), 3), np.uint8)
    for channel, palette in enumerate(_palette(appearance)):
        colour[:, channel] = np.minimum(palette[ink] * bright + gloss, 255)
    return seen.index, colour, mask
