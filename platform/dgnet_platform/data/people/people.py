"""Drawn people: endless pedestrians with known factors, for person re-identification without photographs.

Each picture is a pure function of (seed, identity, camera, frame), whatever else is drawn and in whichever
order. Its factors fall apart as DG-Net's two codes do. *Appearance*: the colours of skin, hair, clothes,
shoes, bag and hat, the patterns and the cut of the clothes. *Structure*: body size, hair style, which bag and
hat, pose, viewpoint, position, and the *camera* with background, light, occlusion and optics. So the true
picture of "the appearance of one person in the structure of another" can be drawn, and a generated one be
scored against it.

Identities come in fours. The first two of each four wear the same appearance, to the last shade, and differ
in hair, bag or body alone: colour does not tell them apart. Identity 0 stands for distractors (each frame
another stranger, or an empty scene) and -1 for junk (badly cropped boxes), as in Market-1501. `people_set.py` writes
sets of them.
"""

from __future__ import annotations

import io
import math
from bisect import bisect
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image

from dgnet_platform.data.people.factors import RGB, Appearance, Bag, Body, Garment, HairStyle, Light, Pose, Structure
from dgnet_platform.data.people.figure import SUPERSAMPLING
from dgnet_platform.data.people.keypoints import as_estimated, draw_keypoints
from dgnet_platform.data.people.scene import BACKDROP_METRES, GROUND_METRES, Camera, Passer, draw_picture
from dgnet_platform.data.people.sizes import Scenery

DISTRACTOR, JUNK = 0, -1
_FOUR = 4

# Streams of random numbers, one for each factor: none depends on how many numbers another takes.
_APPEARANCE, _BODY, _CAMERA, _TRACK, _SHOT, _PIXELS, _ESTIMATE = range(1, 8)


class Shot(NamedTuple):
    """One picture: who, by which camera (1, 2, ...), at which frame (0, 1, ...)."""

    identity: int
    camera: int
    frame: int


# ------------------------------------------------------------------------------------------------------------
# Factors

# Cloth colours as they are met in streets, with their weights: mostly dark, white and blue.
_CLOTH = (
    ((28, 28, 32), 16), ((236, 236, 232), 12), ((126, 128, 132), 8), ((70, 74, 82), 7), ((30, 40, 78), 9),
    ((62, 92, 146), 6), ((126, 164, 204), 5), ((164, 34, 40), 7), ((204, 88, 98), 4), ((226, 170, 180), 3),
    ((96, 36, 52), 3), ((52, 92, 60), 4), ((112, 118, 70), 3), ((140, 190, 150), 2), ((220, 186, 60), 4),
    ((222, 122, 48), 3), ((116, 82, 56), 4), ((196, 172, 136), 5), ((108, 72, 138), 3), ((60, 150, 160), 3),
)  # fmt: skip
_LEGWEAR = (
    ((30, 30, 34), 18), ((44, 56, 90), 14), ((78, 104, 146), 12), ((120, 146, 178), 6), ((92, 94, 98), 8),
    ((186, 166, 130), 8), ((112, 104, 78), 5), ((232, 230, 224), 5), ((96, 66, 48), 4), ((150, 40, 46), 2),
    ((70, 84, 66), 3),
)  # fmt: skip
_SHOES = (
    ((32, 30, 30), 10), ((232, 230, 226), 9), ((104, 70, 46), 4), ((110, 112, 118), 4), ((160, 36, 40), 2),
    ((44, 66, 120), 2), ((196, 176, 146), 2),
)  # fmt: skip
_SKIN = (
    ((240, 204, 178), 4), ((226, 182, 148), 5), ((200, 150, 114), 3), ((152, 104, 74), 2), ((104, 70, 50), 2),
)  # fmt: skip
_HAIR = (
    ((26, 22, 22), 8), ((58, 38, 26), 6), ((104, 70, 42), 4), ((178, 142, 88), 2), ((134, 60, 34), 1),
    ((160, 158, 156), 1),
)  # fmt: skip


_SOLES = (((225, 222, 214), 3), ((46, 42, 40), 2))
_CUTS = (("trousers", 60), ("shorts", 18), ("skirt", 13), ("dress", 9))
_HEMS = {"trousers": (0.028, 0.045), "shorts": (0.24, 0.34), "skirt": (0.24, 0.34), "dress": (0.14, 0.30)}
_PATTERNS = (
    ("plain", 30), ("print", 13), ("open", 12), ("stripes", 10), ("checks", 9), ("two-tone", 8),
    ("raglan", 7), ("pinstripes", 4), ("dots", 4), ("camouflage", 4),
)  # fmt: skip
_LEG_PATTERNS = (("plain", 85), ("checks", 6), ("pinstripes", 6), ("camouflage", 3))
_HAIR_STYLES = (
    ("short", 32), ("long", 18), ("bob", 16), ("ponytail", 14), ("bald", 7), ("curly", 7), ("bun", 6),
)  # fmt: skip
_BAGS = (("none", 30), ("backpack", 28), ("shoulder", 16), ("hand", 14), ("messenger", 12))
_HATS = (("none", 82), ("cap", 9), ("beanie", 5), ("brim", 4))
_OCCLUDERS = (("none", 900), ("car", 30), ("railing", 25), ("pole", 25), ("hedge", 20))


def _generator(seed: int, stream: int, *key: int) -> np.random.Generator:
    # One more than each number: identity -1 becomes 0, and no key is another with zeros behind it, which
    # would draw the same numbers.
    return np.random.default_rng((seed, stream, *(k + 1 for k in key)))


def _pick(rng: np.random.Generator, table: Iterable[tuple]):
    """One of the values of a table of (value, weight)."""
    values, weights = zip(*table, strict=True)
    sums = list(accumulate(weights))
    return values[bisect(sums, rng.random() * sums[-1])]


def _shade(rng: np.random.Generator, table: Iterable[tuple], jitter: float = 0.07) -> RGB:
    """One of the colours of a table of (colour, weight), a little lighter or darker and off its hue."""
    bright = rng.uniform(1 - 2 * jitter, 1 + 2 * jitter)
    off_hue = rng.normal(0, 90 * jitter, 3)
    red, green, blue = (int(min(max(c * bright + n, 8), 250)) for c, n in zip(_pick(rng, table), off_hue, strict=True))
    return red, green, blue


@lru_cache(maxsize=2048)
def _appearance(seed: int, *key: int) -> Appearance:
    rng = _generator(seed, _APPEARANCE, *key)
    cut, pattern = _pick(rng, _CUTS), _pick(rng, _PATTERNS)
    colour = second = _shade(rng, _CLOTH)
    while sum(abs(a - b) for a, b in zip(colour, second, strict=True)) < 130:
        second = _shade(rng, _CLOTH)
    scale, motif = float(rng.uniform(0.032, 0.065)), int(rng.integers(1, 1000))
    upper = Garment(colour=colour, second=second, pattern=pattern, scale=scale, motif=motif)
    colour = _shade(rng, _CLOTH if cut == "skirt" else _LEGWEAR)
    red, green, blue = colour
    lower = Garment(
        colour=colour,
        second=(int(0.7 * red + 12), int(0.7 * green + 12), int(0.7 * blue + 12)),
        pattern=_pick(rng, _LEG_PATTERNS),
        scale=float(rng.uniform(0.03, 0.05)),
        motif=motif,
    )
    short_sleeves = pattern != "open" and rng.random() < (0.75 if cut in ("shorts", "dress") else 0.45)
    return Appearance(
        skin=_shade(rng, _SKIN, 0.03),
        hair=_shade(rng, _HAIR, 0.03),
        upper=upper,
        sleeve=float(rng.uniform(0.08, 0.15) if short_sleeves else rng.uniform(0.27, 0.31)),
        lower=upper if cut == "dress" else lower,
        cut=cut,
        hem=float(rng.uniform(*_HEMS[cut])),
        shoes=_shade(rng, _SHOES),
        soles=_shade(rng, _SOLES),
        bag=_shade(rng, _CLOTH),
        hat=_shade(rng, _CLOTH),
    )


@lru_cache(maxsize=2048)
def _body(seed: int, *key: int) -> Body:
    rng = _generator(seed, _BODY, *key)
    return Body(
        height=float(np.clip(rng.normal(1.72, 0.09), 1.50, 1.93)),
        build=float(np.clip(rng.normal(1.07, 0.11), 0.88, 1.4)),
        hair=_pick(rng, _HAIR_STYLES),
        bag=_pick(rng, _BAGS),
        bag_side=_pick(rng, (("left", 1), ("right", 1))),
        hat=_pick(rng, _HATS),
    )


_OTHER_HAIR: dict[str, HairStyle] = {
    "bald": "bob", "short": "long", "bob": "short", "long": "short", "ponytail": "curly", "bun": "long",
    "curly": "bald",
}  # fmt: skip
_OTHER_BAG: dict[str, Bag] = {
    "none": "backpack", "backpack": "shoulder", "shoulder": "backpack", "hand": "messenger",
    "messenger": "none",
}  # fmt: skip


def _look_alike(body: Body, turn: int) -> Body:
    """The body of a person who wears the same clothes: by turns, other hair, another bag, or another size."""
    match turn % 3:
        case 0:
            return replace(body, hair=_OTHER_HAIR[body.hair])
        case 1:
            side = "left" if body.bag_side == "right" else "right"
            return replace(body, bag=_OTHER_BAG[body.bag], bag_side=side)
        case _:
            taller = 0.17 if body.height < 1.72 else -0.17
            wider = 0.26 if body.build < 1.1 else -0.26
            return replace(body, height=body.height + taller, build=body.build + wider)


@lru_cache(maxsize=64)
def _mount(seed: int, number: int, scenery: Scenery) -> Camera:
    """What a camera keeps from shot to shot."""
    rng = _generator(seed, _CAMERA, number)
    aim, sun = float(rng.uniform(-1.1, 1.1)), rng.random() < 0.55
    x, y, z = 0.8 * math.sin(aim), -float(rng.uniform(0.5, 0.8)), 0.55
    far = math.hypot(x, y, z)
    red, green, blue = rng.normal(1, 0.035, 3)
    mount = Camera(
        place=(seed, number),
        scenery=scenery,
        left=0.0,
        ground=0.0,
        light=Light(
            direction=(x / far, y / far, z / far),
            ambient=0.38 if sun else 0.62,
            pitch=float(rng.uniform(7, 17)),
        ),
        shadow=float(rng.uniform(0.4, 0.6)) if sun else 0.35,
        shadow_fall=(-1.4 * math.sin(aim), float(rng.choice((-0.22, 0.26)))) if sun else (0.0, 0.06),
        gain=float(rng.uniform(0.95, 1.2)),
        gamma=float(rng.uniform(0.8, 1.05)),
        cast=(float(red), float(green), float(blue)),
        blur=float(rng.uniform(0.2, 0.8)),
        noise=float(rng.uniform(1, 4)),
        occluder="none",
        occluder_x=0.0,
        passer=None,
        quality=int(rng.integers(78, 93)),
    )
    if scenery != "dusk":
        return mount
    red, green, blue = np.clip(rng.normal(1, 0.1, 3), 0.75, 1.25)
    return replace(
        mount,
        gain=mount.gain * float(rng.uniform(0.45, 0.85)),
        cast=(float(red), float(green), float(blue)),
        noise=mount.noise + float(rng.uniform(2, 6)),
    )


# ------------------------------------------------------------------------------------------------------------
# People


class People:
    """Endless drawn pedestrians.

    Args:
        seed: Of everything, 0 or more.
        height: Picture height in pixels, 32 or more.
        width: Picture width in pixels, 16 or more.
        scenery: What is around the people.

    Raises:
        ValueError: For a seed, a size or a scenery out of range.
    """

    def __init__(self, seed: int = 0, *, height: int = 128, width: int = 64, scenery: Scenery = "busy"):
        for name, value, least in (("seed", seed, 0), ("height", height, 32), ("width", width, 16)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least {least}")
        if scenery not in get_args(Scenery):
            raise ValueError(f"scenery is {scenery!r}; it must be one of {', '.join(get_args(Scenery))}")
        self.seed, self.height, self.width, self.scenery = seed, height, width, scenery

    def _rng(self, stream: int, *key: int) -> np.random.Generator:
        return _generator(self.seed, stream, *key)

    def confusable_with(self, identity: int) -> tuple[int, ...]:
        """The other identities of exactly the same appearance: one for two identities in four, else none."""
        _check(Shot(identity, 1, 0))
        place = (identity - 1) % _FOUR
        return (identity + 1 - 2 * place,) if identity > 0 and place < 2 else ()

    def appearance(self, shot: Shot) -> Appearance:
        """Appearance in a shot; for a person (identity above 0) the same in all their shots."""
        identity, camera, frame = _check(shot)
        if identity > 0:
            place = (identity - 1) % _FOUR
            if place > 1:
                return _appearance(self.seed, identity)
            shared = _appearance(self.seed, identity - place)
            return replace(shared, bag=shared.upper.colour)  # or the colour of a bag would tell the two apart
        return _appearance(self.seed, identity, camera, frame)

    def body(self, shot: Shot) -> Body:
        """Body in a shot; for a person (identity above 0) the same in all their shots."""
        identity, camera, frame = _check(shot)
        if identity > 0:
            group, place = divmod(identity - 1, _FOUR)
            if place == 1:
                return _look_alike(_body(self.seed, identity - 1), group)
            return _body(self.seed, identity)
        return _body(self.seed, identity, camera, frame)

    def structure(self, shot: Shot) -> Structure:
        """Body and pose in a shot."""
        identity, camera, frame = _check(shot)
        # A track is one walk of a person through a camera's view: its frames share direction and manner.
        track = self._rng(_TRACK, identity, camera, 0 if identity > 0 else frame)
        rng = self._rng(_SHOT, identity, camera, frame)
        course = track.choice((0, 35, 90, 145, 180, 215, 270, 325)) + track.normal(0, 12)
        stands, busy = track.random() < 0.2, track.random()
        arms = "phone" if busy < 0.1 else "pocket" if busy < 0.2 else "folded" if busy < 0.25 else "swing"
        stride = rng.uniform(2, 6) if stands else track.uniform(16, 27) * rng.uniform(0.85, 1.1)
        body = self.body(shot)
        pose = Pose(
            yaw=float(course + rng.normal(0, 14 if stands else 8) + (180 if rng.random() < 0.12 else 0)),
            phase=float(rng.uniform(0, 2 * np.pi)),
            stride=float(stride),
            arms="pocket" if body.bag == "hand" and arms == "folded" else arms,
            head_turn=float(rng.normal(0, 14)),
            lean=float(rng.normal(2.5, 2.0)),
            x=float(rng.normal(0, 0.035)),
            y=float(rng.uniform(0.02, 0.11)),
            # Boxes are cut to the person, so most of the height shows in the proportions alone.
            scale=float(rng.normal(1.0, 0.035) * (1.72 / body.height) ** 0.6),
        )
        if identity == JUNK:  # a box that caught half a person, or missed
            pose = replace(
                pose,
                x=float(rng.choice((-1, 1)) * rng.uniform(0.22, 0.75)),
                y=float(rng.uniform(-1.1, 0.35)),
                scale=float(rng.uniform(0.75, 2.2)),
            )
        elif identity == DISTRACTOR and rng.random() < 0.35:  # an empty scene
            pose = replace(pose, x=9.0)
        return Structure(body=body, pose=pose)

    def camera(self, shot: Shot) -> Camera:
        """Background, light, occlusion and optics of a shot."""
        identity, number, frame = _check(shot)
        mount = _mount(self.seed, number, self.scenery)
        track = self._rng(_TRACK, identity, number, 0 if identity > 0 else frame, 1)
        left, ground = track.uniform(0, BACKDROP_METRES - 1.1), track.uniform(0.25, GROUND_METRES - 0.25)
        rng = self._rng(_SHOT, identity, number, frame, 1)
        occluder = _pick(rng, _OCCLUDERS)
        crowded = occluder == "none" and rng.random() < 0.1
        if self.scenery != "busy":
            occluder, crowded = "none", False
        red, green, blue = np.array(mount.cast) * rng.normal(1, 0.012, 3)
        return replace(
            mount,
            left=float(left + rng.normal(0, 0.8)),
            ground=float(np.clip(ground + rng.normal(0, 0.15), 0.15, GROUND_METRES - 0.2)),
            gain=float(mount.gain * rng.uniform(0.88, 1.12)),
            cast=(float(red), float(green), float(blue)),
            blur=float(mount.blur + rng.exponential(0.2)),
            occluder=occluder,
            occluder_x=float(rng.choice((rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0)))),
            passer=self._passer(shot) if crowded else None,
        )

    def _passer(self, shot: Shot) -> Passer:
        rng = self._rng(_SHOT, *shot, 2)
        in_front = bool(rng.random() < 0.4)
        pose = Pose(
            yaw=float(rng.uniform(0, 360)),
            phase=float(rng.uniform(0, 2 * np.pi)),
            stride=float(rng.uniform(5, 25)),
            arms="swing",
            head_turn=0.0,
            lean=2.0,
            x=float(rng.choice((-1, 1)) * (rng.uniform(0.38, 0.52) if in_front else rng.uniform(0.2, 0.45))),
            y=float(rng.uniform(-0.12, -0.02) if in_front else rng.uniform(0.2, 0.4)),
            scale=float(rng.uniform(1.02, 1.12) if in_front else rng.uniform(0.72, 0.86)),
        )
        return Passer(
            appearance=_appearance(self.seed, *shot, 2),
            structure=Structure(body=_body(self.seed, *shot, 2), pose=pose),
            in_front=in_front,
        )

    def _draw(self, appearance_of: Shot, structure_of: Shot, body_of: Shot | None = None) -> tuple[bytes, np.ndarray]:
        appearance, structure = self.appearance(appearance_of), self.structure(structure_of)
        if body_of is not None:
            structure = replace(structure, body=self.body(body_of))
        rng = self._rng(_PIXELS, *structure_of)
        return draw_picture(appearance, structure, self.camera(structure_of), rng, self.height, self.width)

    def jpeg(self, shot: Shot) -> bytes:
        """The picture of a shot as the JPEG file that `write_market` writes."""
        return self._draw(shot, shot)[0]

    def picture(self, identity: int, camera: int, frame: int) -> np.ndarray:
        """The picture of a shot, (height, width, 3) uint8: exactly the pixels of its file."""
        shot = Shot(identity, camera, frame)
        return self.draw(appearance_of=shot, structure_of=shot)

    def draw(self, *, appearance_of: Shot, structure_of: Shot, body_of: Shot | None = None) -> np.ndarray:
        """The true swap, (height, width, 3) uint8.

        Colours and clothes (`Appearance`) come from the first shot; body, hair style, bag, hat, pose,
        viewpoint, position, background, camera and noise from the second. Equal shots give that shot's
        picture, bit for bit. With `body_of`, body, hair style, bag and hat are that shot's: what a generator
        that sees no more of its target than the joints can know.

        Raises:
            ValueError: For a shot whose identity, camera or frame is out of range.
        """
        return np.array(Image.open(io.BytesIO(self._draw(appearance_of, structure_of, body_of)[0])))

    def silhouette(self, *, appearance_of: Shot, structure_of: Shot, body_of: Shot | None = None) -> np.ndarray:
        """Share of each pixel of `draw` that the person fills, (height, width) float32 in 0-1.

        Other people in front are cut out of it; poles, cars and hedges are not.

        Raises:
            ValueError: For a shot whose identity, camera or frame is out of range.
        """
        mask = self._draw(appearance_of, structure_of, body_of)[1].astype(np.float32)
        return mask.reshape(self.height, SUPERSAMPLING, self.width, SUPERSAMPLING).mean((1, 3))

    def keypoints(self, shot: Shot, *, estimated: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Where the 18 joints of a shot's person are, exactly or as a pose estimator would find them.

        Returns:
            (18, 2) float32 x and y in picture pixels, and (18,) uint8 visibility: 0 missing, 1 hidden, 2 seen.

        Raises:
            ValueError: For a shot whose identity, camera or frame is out of range.
        """
        structure, rng = self.structure(shot), self._rng(_PIXELS, *shot)
        found = draw_keypoints(structure, self.camera(shot), rng, self.height, self.width)
        if not estimated:
            return found
        return as_estimated(*found, structure, self._rng(_ESTIMATE, *shot), self.height)


def _check(shot: Shot) -> Shot:
    identity, camera, frame = shot
    if identity < JUNK or not 1 <= camera <= 99 or not 0 <= frame <= 999_999:
        raise ValueError(
            f"{shot} is no shot: identity must be at least -1 (junk), camera 1 to 99 and frame 0 to 999999"
        )
    return shot


def contact_sheet(people: People, identities: Iterable[int], cameras: Iterable[int], frame: int = 0) -> np.ndarray:
    """Identities down, cameras across, as one (rows x height, columns x width, 3) uint8 picture."""
    cameras = list(cameras)
    rows = [np.concatenate([people.picture(i, c, frame) for c in cameras], axis=1) for i in identities]
    return np.concatenate(rows)
