"""Pictures to look at: ranked lists, and grids with captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from dgnet_core.ranking.features import Features
from dgnet_core.ranking.retrieval import evaluate, top_matches
from dgnet_platform.data.decode import decode
from dgnet_platform.data.store import Store

MATCH, WRONG, QUERY, EMPTY = (22, 150, 72), (214, 44, 38), (120, 124, 130), (240, 241, 243)
"""Frames of a match, of a wrong picture and of a query; a place in a list that has run out."""
_INK, _PALE, _PAPER = (34, 36, 40), (118, 122, 128), (255, 255, 255)
LIST_LENGTH = 10
"""Gallery pictures shown for a query."""
_CELL = 64, 128  # width and height of a picture in a ranked list
_FRAME, _GAP, _MARGIN = 4, 6, 18


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedRow:
    """A query and the head of its ranked list."""

    query: np.ndarray
    """(3, h, w) uint8."""
    caption: tuple[str, ...]
    """Lines of text beside the query."""
    ranked: Sequence[np.ndarray]
    """Gallery pictures (3, h, w) uint8, best first."""
    is_match: Sequence[bool]


PicturesOf = Callable[[Sequence[int]], Sequence[np.ndarray]]
"""Gives the pictures (3, h, w) uint8 of some rows."""


def ranked_picture(
    name: str,
    query: Features,
    gallery: Features,
    query_pictures: PicturesOf,
    gallery_pictures: PicturesOf,
    beta: float,
    count: int,
) -> Image.Image:
    """Ranked lists of some queries, from the worst to the best average precision.

    Args:
        name: of the data, for the title.
        query: features of the queries.
        gallery: features of the gallery.
        query_pictures: what the queries look like.
        gallery_pictures: what the gallery looks like; only the listed ones are asked for.
        beta: weight of f_fine; without a part if there is none.
        count: queries shown.
    """
    beta = beta if query.fine.shape[1] else 0.0
    precision = evaluate(query, gallery, beta).average_precision
    places = torch.linspace(0, len(query) - 1, min(count, len(query))).round().long()
    rows = precision.argsort(stable=True)[places]
    on_device = rows.to(query.prim.device)
    shown = replace(
        query,
        prim=query.prim[on_device],
        fine=query.fine[on_device],
        person_ids=query.person_ids[on_device],
        camera_ids=query.camera_ids[on_device],
    )
    lists = top_matches(shown, gallery, LIST_LENGTH, beta)
    listed = sorted({row for row in lists.gallery_index.flatten().tolist() if row >= 0})
    pictures = dict(zip(listed, gallery_pictures(listed), strict=True))
    of_queries = query_pictures(rows.tolist())
    indices, matches = lists.gallery_index.tolist(), lists.is_match.tolist()
    ranked_rows = [
        RankedRow(
            query=of_queries[k],
            caption=(
                f"AP {100 * precision[row]:.1f} %",
                f"person {shown.person_ids[k]}",
                f"camera {shown.camera_ids[k]}",
            ),
            ranked=[pictures[index] for index in indices[k] if index >= 0],
            is_match=matches[k],
        )
        for k, row in enumerate(rows.tolist())
    ]
    feature = f"f_prim and {beta:g} f_fine" if query.fine.shape[1] else "the baseline"
    title = f"{name}: queries ranked by {feature}, from the worst to the best (green: same person, red: another)"
    return ranked_lists(title, ranked_rows)


def ranked_lists(title: str, rows: Sequence[RankedRow], length: int = LIST_LENGTH) -> Image.Image:
    """Queries with the first `length` of their ranked lists: green frames are matches, red ones are wrong."""
    width, height = (side + 2 * _FRAME for side in _CELL)
    caption_width, head = 92, 62
    first = _MARGIN + caption_width + width + 3 * _GAP
    size = (
        first + length * (width + _GAP) - _GAP + _MARGIN,
        head + len(rows) * (height + _GAP) - _GAP + _MARGIN,
    )
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 14), title, _INK, _font(15))
    draw.text((first - 3 * _GAP - width // 2, head - 7), "query", _PALE, _font(12), anchor="ms")
    for place in range(length):
        centre = first + place * (width + _GAP) + width // 2
        draw.text((centre, head - 7), str(place + 1), _PALE, _font(12), anchor="ms")
    for number, row in enumerate(rows):
        top = head + number * (height + _GAP)
        for line, text in enumerate(row.caption):
            draw.text((_MARGIN, top + 42 + 18 * line), text, _INK if line == 0 else _PALE, _font(13))
        _framed(picture, row.query, (_MARGIN + caption_width, top), QUERY)
        for place in range(length):
            corner = first + place * (width + _GAP), top
            if place < len(row.ranked):
                _framed(picture, row.ranked[place], corner, MATCH if row.is_match[place] else WRONG)
            else:
                draw.rectangle((*corner, corner[0] + width - 1, top + height - 1), EMPTY)
    return picture


def captioned_grids(title: str, grids: Sequence[tuple[str, np.ndarray]], *, cell_height: int) -> Image.Image:
    """Grids (3, H, W) uint8 beside each other, each under its caption, with cells about 128 pixels high."""
    scale = max(1, round(_CELL[1] / cell_height))
    panels = []
    for caption, grid in grids:
        panel = Image.fromarray(np.ascontiguousarray(grid.transpose(1, 2, 0)))
        panels.append((caption, panel.resize((panel.width * scale, panel.height * scale), Image.Resampling.BICUBIC)))
    head, between = 66, 40
    width = sum(panel.width for _, panel in panels) + between * (len(panels) - 1) + 2 * _MARGIN
    height = head + max(panel.height for _, panel in panels) + _MARGIN
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 14), title, _INK, _font(15))
    left = _MARGIN
    for caption, panel in panels:
        draw.text((left, head - 10), caption, _PALE, _font(13), anchor="ls")
        picture.paste(panel, (left, head))
        left += panel.width + between
    return picture


def labelled_rows(title: str, rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Image.Image:
    """Rows of pictures (3, h, w) uint8, each behind its label."""
    width, height = (side + 2 * _FRAME for side in _CELL)
    label_width, head = 150, 44
    columns = max(len(pictures) for _, pictures in rows)
    size = (
        _MARGIN + label_width + columns * (width + _GAP) - _GAP + _MARGIN,
        head + len(rows) * (height + _GAP) - _GAP + _MARGIN,
    )
    picture = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 14), title, _INK, _font(15))
    for number, (label, pictures) in enumerate(rows):
        top = head + number * (height + _GAP)
        draw.text((_MARGIN, top + height // 2), label, _INK, _font(13), anchor="lm")
        for place, pixels in enumerate(pictures):
            _framed(picture, pixels, (_MARGIN + label_width + place * (width + _GAP), top), _PAPER)
    return picture


def stored_pictures(store: Store, split: str, rows: Sequence[int]) -> list[np.ndarray]:
    """A few pictures of a split as they are stored, (3, h, w) uint8 each; only these are decoded.

    Raises:
        StoreError: no such split, or a damaged file.
        PictureError: a damaged picture.
    """
    wanted, found, first = set(rows), {}, 0
    for table in store.row_groups(split, ["image"]):
        for row in sorted(wanted.intersection(range(first, first + table.num_rows))):
            found[row] = decode(table["image"][row - first].as_py()).transpose(2, 0, 1)
        first += table.num_rows
    return [found[row] for row in rows]


def _framed(picture: Image.Image, pixels: np.ndarray, corner: tuple[int, int], colour: tuple[int, int, int]) -> None:
    """Paste a picture at `corner` with a frame around it."""
    inner = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).resize(_CELL, Image.Resampling.LANCZOS)
    framed = Image.new("RGB", (_CELL[0] + 2 * _FRAME, _CELL[1] + 2 * _FRAME), colour)
    framed.paste(inner, (_FRAME, _FRAME))
    picture.paste(framed, corner)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
