"""Encoded pictures to pixels: Pillow's, whatever decodes them, and what is broken is found."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from dgnet_platform.data.decode import PictureError, decode, picture_size
from tests.helpers.market import WHOLE, encode, noise


def test_pictures_are_upright_rgb():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    picture = encode((200, 0, 0), (4, 8), exif=exif)
    assert decode(picture).shape == (4, 8, 3)
    assert picture_size(picture) == (8, 4)
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "1"):
        file = io.BytesIO()
        Image.new(mode, (3, 2)).save(file, "JPEG" if mode == "CMYK" else "PNG")
        assert decode(file.getvalue()).shape == (2, 3, 3)


def test_sixteen_bits_of_grey_are_scaled_and_not_clipped():
    grey = np.array([[0, 255, 256], [4096, 32768, 65535]], np.uint16)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, "PNG")
    assert decode(file.getvalue())[..., 0].tolist() == [[0, 0, 1], [16, 128, 255]]
    assert picture_size(file.getvalue()) == (3, 2)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_is_black(kind: str):
    pixels = np.full((4, 4, 4), 200, np.uint8)
    pixels[..., 3] = 255
    pixels[:2, :, 3] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, lossless=True, exact=True)
    assert decode(file.getvalue())[..., 0].tolist() == [[0] * 4] * 2 + [[200] * 4] * 2


JPEG_KINDS = {
    "plain": {},
    "whole colours": {"subsampling": 0},
    "half colours": {"subsampling": 1},
    "progressive": {"progressive": True},
    "coarse": {"quality": 20},
    "restarts": {"restart_marker_rows": 1},
    "not YCbCr": {"keep_rgb": True},
    "described": {"comment": b"x" * 60_000, "icc_profile": b"y" * 70_000},
}


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_every_kind_of_jpeg_has_pillows_pixels(kind: str, mode: str):
    for width, height in ((64, 128), (1, 1), (7, 5), (33, 17)):
        with Image.open(io.BytesIO(noise(height, width))) as image:
            file = io.BytesIO()
            image.convert(mode).save(file, "JPEG", **JPEG_KINDS[kind])
        picture, place = file.getvalue(), np.empty((height, width, 3), np.uint8)
        for pixels in (decode(picture), decode(picture, place), decode(picture, place[1:])):
            assert np.array_equal(pixels, pillows_pixels(picture))
        assert picture_size(picture) == (width, height)


def pillows_pixels(picture: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("progressive", [False, True])
def test_measuring_finds_what_decoding_finds(progressive: bool):
    file = io.BytesIO()
    with Image.open(io.BytesIO(WHOLE)) as image:
        image.save(file, "JPEG", progressive=progressive)
    whole = file.getvalue()
    assert picture_size(whole) == (64, 128)
    for length in range(0, len(whole) - 2, len(whole) // 40):
        for read in (decode, picture_size):
            with pytest.raises(PictureError):
                read(whole[:length])
    for place in range(20, len(whole), len(whole) // 200):
        broken = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        assert outcome(decode, broken) == outcome(picture_size, broken)
        if outcome(decode, broken) == "decodes":  # though libjpeg may warn
            assert np.array_equal(decode(broken), pillows_pixels(broken))
        else:
            with pytest.raises((OSError, SyntaxError)):
                pillows_pixels(broken)


def outcome(read: Callable[[bytes], object], picture: bytes) -> str:
    try:
        read(picture)
    except PictureError as error:
        return str(error)
    return "decodes"
