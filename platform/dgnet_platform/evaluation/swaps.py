"""Swaps on a store: a grid to look at, and on drawn people how close they come to the true picture.

The true picture of "the appearance of i in the structure of j" can be drawn, because every factor of a
drawn person is known. Figures on drawn people say how well codes are told apart there; they are never
figures on photographs.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dgnet_core.generation.fidelity import swap_fidelity
from dgnet_core.generation.grids import framed_grid, swap_grid, tile, to_pixels
from dgnet_core.generation.people import PersonFidelity, joined_fidelity, person_fidelity, person_figures
from dgnet_core.learning.augment import denormalise, normalise
from dgnet_platform.data.people.people import People, Shot
from dgnet_platform.data.people.people_set import people_from, shot_of
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.evaluation.pictures import captioned_grids, stored_pictures
from dgnet_platform.runs.loading import TrainedNetworks

APPEARANCES, STRUCTURES = 5, 7
"""Rows and columns of the swap grid."""
INTERPOLATIONS = 4
"""Rows of a picture of interpolations."""
GENERATED, UNCHANGED, NOISY = "G(a_i, s_j)", "x_j as it is", "true, JPEG 75"
"""What is compared with the true picture: the generator's, and what two references reach."""
QUALITY = 75
"""Of the JPEG whose noise the second reference has: Pillow's default, as the paper's pictures had."""


def people_of(store: Store) -> People | None:
    """Who is drawn in a store of drawn people; None for photographs.

    Raises:
        StoreError: they were drawn by another version of the drawing.
    """
    try:
        return people_from(store.info.origin)
    except KeyError:
        return None
    except ValueError as error:
        raise StoreError(f"{store.location}: {error}") from None


def fidelity_rows(
    trained: TrainedNetworks, store: Store, people: People, pairs: int, progress: Callable[[int, int], None]
) -> list[dict[str, object]]:
    """Rows of a table: how close G(a_i, s_j) comes to the true picture, whole and without its background, averaged.

    For comparison also x_j as it is, which a generator that does nothing would reach, and the true picture with the
    noise of a JPEG.

    Pairs are two persons of the training split ("seen", if the networks were trained on this very store; those
    held out for validation are left out) or two persons of query and gallery ("unseen"). They are the same in
    every call.
    """
    trained_here = trained.fingerprint == store.info.fingerprint
    groups = {
        "seen" if trained_here else "train split, not trained on": ("train",),
        "unseen": ("query", "gallery"),
    }
    groups = {name: [s for s in splits if s in store.info.splits] for name, splits in groups.items()}
    groups = {name: splits for name, splits in groups.items() if splits}
    rows: list[dict[str, object]] = []
    for number, (name, splits) in enumerate(groups.items()):
        shots = [shot_of(file) for split in splits for file in store.index(split)["file_name"]]
        if name == "seen":
            trained_on = set(store.info.classes[: trained.config.num_classes])
            shots = [shot for shot in shots if shot.identity in trained_on]
        chosen = choose_pairs(shots, pairs)
        scores = person_scores(trained, people, chosen) if chosen else {}
        for picture, values in scores.items():
            rows.append({"identities": name, "picture": picture, "pairs": len(chosen), **values})
        progress((number + 1) * pairs, len(groups) * pairs)
    return rows


def fidelity(
    trained: TrainedNetworks, people: People, pairs: Sequence[tuple[Shot, Shot]], *, batch_size: int = 32
) -> dict[str, dict[str, float]]:
    """Mean L1, PSNR and SSIM of G(a_i, s_j), and of x_j as it is, against the true picture of each pair (i, j)."""
    scores: dict[str, list[Tensor]] = {GENERATED: [], UNCHANGED: []}
    for first in range(0, len(pairs), batch_size):
        true, compared = _compared(trained, people, pairs[first : first + batch_size])
        for picture in scores:
            parts = swap_fidelity(compared[picture], true)
            scores[picture].append(torch.stack([parts.l1, parts.psnr, parts.ssim]))
    means = {picture: torch.cat(parts, dim=1).double().mean(dim=1).tolist() for picture, parts in scores.items()}
    return {picture: dict(zip(("L1", "PSNR", "SSIM"), values, strict=True)) for picture, values in means.items()}


def person_scores(
    trained: TrainedNetworks, people: People, pairs: Sequence[tuple[Shot, Shot]], *, batch_size: int = 32
) -> dict[str, dict[str, float]]:
    """As `fidelity`, and the same people within their silhouettes; also of the true picture with a JPEG's noise."""
    whole: dict[str, list[Tensor]] = {}
    persons: dict[str, list[PersonFidelity]] = {}
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        true, compared = _compared(trained, people, batch)
        bodies = [i if trained.method.posed else None for i, _ in batch]
        masks = np.stack(
            [
                people.silhouette(appearance_of=i, structure_of=j, body_of=b)
                for (i, j), b in zip(batch, bodies, strict=True)
            ]
        )
        silhouette = F.interpolate(torch.from_numpy(masks)[:, None], true.shape[2:], mode="area")[:, 0]
        for picture, pixels in {**compared, NOISY: noisy(true)}.items():
            parts = swap_fidelity(pixels, true)
            whole.setdefault(picture, []).append(torch.stack([parts.l1, parts.psnr, parts.ssim]))
            persons.setdefault(picture, []).append(person_fidelity(pixels, true, silhouette))
    joined = {picture: joined_fidelity(parts) for picture, parts in persons.items()}
    means = {picture: torch.cat(parts, dim=1).double().mean(dim=1).tolist() for picture, parts in whole.items()}
    return {
        picture: {
            **dict(zip(("L1", "PSNR", "SSIM"), values, strict=True)),
            **person_figures(joined[picture], joined[UNCHANGED]),
        }
        for picture, values in means.items()
    }


def noisy(pixels: Tensor) -> Tensor:
    """Pictures (N, 3, H, W), uint8, with the noise of a JPEG of quality 75."""
    decoded = []
    for picture in pixels.permute(0, 2, 3, 1).contiguous().numpy():
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=QUALITY)
        decoded.append(np.asarray(Image.open(file).convert("RGB")))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


def _compared(
    trained: TrainedNetworks, people: People, pairs: Sequence[tuple[Shot, Shot]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The true pictures (N, 3, H, W), uint8, of pairs, and what is compared with them: G(a_i, s_j) and x_j."""
    appearance = _pictured(people, [i for i, _ in pairs], trained)
    structure = _pictured(people, [j for _, j in pairs], trained)
    targets = _poses(people, [j for _, j in pairs], trained) if trained.method.posed else structure
    true = denormalise(_true(people, pairs, trained))
    images = {GENERATED: trained.draw(appearance, targets), UNCHANGED: structure}
    return true, {picture: denormalise(own).cpu() for picture, own in images.items()}


def reconstruction(
    trained: TrainedNetworks,
    pictures: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
    joints: Tensor | None = None,
    *,
    batch_size: int = 32,
) -> dict[str, float]:
    """Mean L1, PSNR and SSIM of G(a_i, s_j) against x_j, for i and j of the same person (paper, Eq. 2).

    Args:
        trained: the networks.
        pictures: (3, h, w), uint8.
        pairs: places i and j of two pictures of a person each, see `same_person_pairs`.
        joints: of the pictures, (N, 18, 3) in pixels of the networks' images, for methods that are posed.
        batch_size: images drawn at once.
    """
    scores: list[Tensor] = []
    for first in range(0, len(pairs), batch_size):
        sides = list(zip(*pairs[first : first + batch_size], strict=True))
        appearance, structure = (trained.images([pictures[place] for place in side]) for side in sides)
        targets = structure if joints is None else joints[list(sides[1])]
        generated = denormalise(trained.draw(appearance, targets)).cpu()
        parts = swap_fidelity(generated, denormalise(structure))
        scores.append(torch.stack([parts.l1, parts.psnr, parts.ssim]))
    return dict(zip(("L1", "PSNR", "SSIM"), torch.cat(scores, dim=1).double().mean(dim=1).tolist(), strict=True))


def stored_grid(trained: TrainedNetworks, store: Store, people: People | None, title: str) -> Image.Image:
    """Swaps among queries of different persons; for drawn people beside the true ones."""
    index = store.index("query")
    rows = different_people(index["person_id"].tolist())
    pictures = stored_pictures(store, "query", rows)
    joints = trained.joints(store, "query", index.iloc[rows])
    names = index["file_name"].tolist()
    return grid_picture(trained, pictures, [names[row] for row in rows], people, title, joints)


def invented_picture(trained: TrainedNetworks, title: str) -> Image.Image:
    """People drawn from noise, always the same noise."""
    drawn = to_pixels(trained.invent(APPEARANCES * STRUCTURES, 0)).unflatten(0, (APPEARANCES, STRUCTURES))
    grids = [("drawn from noise", tile(drawn).numpy())]
    return captioned_grids(title, grids, cell_height=trained.network.height)


def interpolation_pictures(trained: TrainedNetworks, store: Store, title: str) -> dict[str, Image.Image]:
    """Interpolations among queries of different persons (paper, Figures 5 and 9), by the code that is interpolated.

    In each row one person's code turns into another's in equal steps, while a third one gives all else.
    """
    rows = different_people(store.index("query")["person_id"].tolist())
    images = trained.images(stored_pictures(store, "query", rows))
    count = len(images)
    first = torch.arange(min(INTERPOLATIONS, count))
    second, third = (first + count // 3) % count, (first + 2 * count // 3) % count
    pictures: dict[str, Image.Image] = {}
    for code, interpolate in trained.method.interpolations.items():
        caption = f"each row: the {code} from the second picture to the last, all else of the first one"
        grid = interpolate(trained.state, images[first], images[second], images[third])
        pictures[code] = captioned_grids(
            f"{title}: {code} interpolated", [(caption, grid.numpy())], cell_height=trained.network.height
        )
    return pictures


def different_people(person_ids: Sequence[int]) -> list[int]:
    """Rows of pictures of different persons, enough for a grid, spread over all there are."""
    first = list({person: row for row, person in reversed(list(enumerate(person_ids)))}.values())[::-1]
    places = np.linspace(0, len(first) - 1, min(len(first), APPEARANCES + STRUCTURES)).round().astype(int)
    return [first[place] for place in np.unique(places)]


def grid_picture(
    trained: TrainedNetworks,
    pictures: Sequence[np.ndarray],
    file_names: Sequence[str],
    people: People | None,
    title: str,
    joints: Tensor | None = None,
) -> Image.Image:
    """Swaps among pictures (3, h, w) uint8 of different persons; for drawn people beside the true ones.

    Args:
        trained: the networks.
        pictures: every other one gives an appearance, the rest a structure.
        file_names: theirs; drawn people are drawn again from them.
        people: who is drawn in them; None for photographs.
        title: above the picture.
        joints: of the pictures, (N, 18, 3) in pixels of the networks' images, for methods that are posed.
    """
    places = range(len(pictures))
    appearance_places = [*places[::2]][:APPEARANCES]
    structure_places = [place for place in places if place not in appearance_places] or [*places]
    appearance, structure = (
        trained.images([pictures[place] for place in part]) for part in (appearance_places, structure_places)
    )
    grids = [
        (
            "rendered: each row an appearance, each column a structure",
            swap_grid(trained.draw, appearance, structure, None if joints is None else joints[list(structure_places)]),
        )
    ]
    if people is not None:
        i, j = ([shot_of(file_names[place]) for place in part] for part in (appearance_places, structure_places))
        true = denormalise(_true(people, [(one, other) for one in i for other in j], trained))
        cells = true.unflatten(0, (len(i), len(j)))
        grids.append(("drawn: the true pictures", framed_grid(cells, denormalise(structure), denormalise(appearance))))
    return captioned_grids(
        title, [(caption, grid.numpy()) for caption, grid in grids], cell_height=trained.network.height
    )


def choose_pairs(shots: Sequence[Shot], pairs: int) -> list[tuple[Shot, Shot]]:
    """Pairs of shots of two different persons, the same in every call; none of distractors and junk."""
    shots = [shot for shot in shots if shot.identity > 0]
    if len({shot.identity for shot in shots}) < 2:
        return []
    rng = np.random.default_rng(0)
    chosen: list[tuple[Shot, Shot]] = []
    while len(chosen) < pairs:
        i, j = (shots[k] for k in rng.integers(0, len(shots), 2))
        if i.identity != j.identity:
            chosen.append((i, j))
    return chosen


def same_person_pairs(person_ids: Sequence[int], pairs: int) -> list[tuple[int, int]]:
    """Places of two different pictures of one person each, at most so many, the same in every call."""
    places: dict[int, list[int]] = {}
    for place, person in enumerate(person_ids):
        if person > 0:  # neither distractors nor junk
            places.setdefault(person, []).append(place)
    several = [own for own in places.values() if len(own) > 1]
    rng = np.random.default_rng(0)
    chosen: list[tuple[int, int]] = []
    while several and len(chosen) < pairs:
        i, j = rng.choice(several[len(chosen) % len(several)], 2, replace=False).tolist()
        chosen.append((i, j))
    return chosen


def _true(people: People, pairs: Sequence[tuple[Shot, Shot]], trained: TrainedNetworks) -> Tensor:
    """Normalised pictures (N, 3, H, W) of the appearance of the first in the structure of the second.

    Methods that are posed see the second's joints alone: there the body is the first's.
    """
    posed = trained.method.posed
    return _resized(
        [people.draw(appearance_of=i, structure_of=j, body_of=i if posed else None) for i, j in pairs], trained
    )


def _pictured(people: People, shots: Sequence[Shot], trained: TrainedNetworks) -> Tensor:
    """Normalised pictures (N, 3, H, W) of shots as they are."""
    return _resized([people.picture(*shot) for shot in shots], trained)


def _poses(people: People, shots: Sequence[Shot], trained: TrainedNetworks) -> Tensor:
    """Joints (N, 18, 3) of shots in pixels of the networks' images."""
    scale = trained.network.width / people.width, trained.network.height / people.height
    found = [people.keypoints(shot) for shot in shots]
    return torch.from_numpy(np.stack([np.column_stack([places * scale, seen]) for places, seen in found])).float()


def _resized(pictures: Sequence[np.ndarray], trained: TrainedNetworks) -> Tensor:
    stacked = np.stack([picture.transpose(2, 0, 1) for picture in pictures])
    return normalise(torch.from_numpy(stacked), trained.network.height, trained.network.width)
