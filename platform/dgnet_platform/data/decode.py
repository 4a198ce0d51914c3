"""Encoded pictures to pixels, and the threads that do it."""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from dgnet_platform.errors import UserError
from dgnet_platform.threads import Result

FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
MAX_PIXELS = 2**25
"""An 8K video frame; a crop of a person is a thousandth of it."""

_EXIF = b"Exif\0\0"
"""How the block begins that may say that the camera was turned."""

Image.preinit()  # Pillow's decoders are imported now, not while the first batch is waited for


class PictureError(UserError):
    """Bytes that are no whole picture."""


def decode(encoded: bytes, place: np.ndarray | None = None) -> np.ndarray:
    """The upright RGB pixels (height, width, 3) uint8 of a picture.

    Of 16 bits of grey the upper 8 are taken, as viewers do. What is transparent becomes black.

    Args:
        encoded: The picture's file.
        place: (height, width, 3) uint8, contiguous. A JPEG of this size is decoded there, and this array returned.

    Raises:
        PictureError: The bytes are cut off, broken, no picture at all, or unreasonably large when unpacked.
    """
    if size := _jpeg_size(encoded):
        target = place if place is not None and place.shape[1::-1] == size else None
        try:
            pixels = simplejpeg.decode_jpeg(encoded, buffer=target)
            return pixels if target is None else target
        except ValueError:
            pass  # Pillow reads what libjpeg only warns of, and tells what is wrong with the rest
    return _read(encoded, _pixels)


def picture_size(encoded: bytes) -> tuple[int, int]:
    """Width and height of the upright picture, after a proof that all of it decodes.

    Of a JPEG every coefficient is read, which is all that can fail, but pixels are made for an eighth of the
    width and height only: that saves a quarter of the time. Other formats are decoded as they are.

    Raises:
        PictureError: As `decode`.
    """
    if size := _jpeg_size(encoded):
        try:
            simplejpeg.decode_jpeg(encoded, min_height=1, min_width=1, min_factor=8)
            return size
        except ValueError:
            pass  # as above
    return _read(encoded, _proven_size)


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a plain JPEG, which libjpeg-turbo reads as Pillow does, in less than half of the time.

    None for everything else: other formats, pictures that may have to be turned, CMYK, and too large ones.
    """
    if encoded[:2] != b"\xff\xd8" or _EXIF in encoded:
        return None
    try:
        lines, columns, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    width, height = int(columns), int(lines)
    return (width, height) if colours in ("YCbCr", "RGB", "Gray") and width * height <= MAX_PIXELS else None


def _read(encoded: bytes, take: Callable[[Image.Image], Result]) -> Result:
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise PictureError(f"a decompression bomb: {width} x {height} pixels, over {MAX_PIXELS:,} in all")
        return take(image)
    except PictureError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"a decompression bomb: {error}") from None
    except Exception as error:
        # Decoders meet broken bytes with almost any exception; whichever it is, the picture is bad.
        reason = "no picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise PictureError(f"does not decode: {reason}") from None


def _pixels(image: Image.Image) -> np.ndarray:
    if image.mode != "RGB" or "exif" in image.info or "transparency" in image.info:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:  # the colours of transparent pixels are not meant to be seen
            black = Image.new("RGBA", image.size, "black")
            image = Image.alpha_composite(black, image.convert("RGBA"))
        image = image.convert("RGB")
    return np.asarray(image)


def _proven_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    image.draft(None, (max(width // 8, 1), max(height // 8, 1)))
    image.load()
    lies_on_its_side = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if lies_on_its_side else (width, height)
