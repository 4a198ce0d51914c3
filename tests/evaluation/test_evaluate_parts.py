"""What an evaluation is made of: descriptors of whole splits, swaps and what they are compared with, pictures."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from dgnet_core.dgnet.generator import Generator, render
from dgnet_core.dgnet.state import TrainState
from dgnet_core.generation.fidelity import swap_fidelity
from dgnet_core.learning.augment import denormalise, normalise
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.extraction import extract
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.compute.parts import PartsError
from dgnet_platform.data import images as images_module
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.people.people import People, Shot
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.evaluation import identity, swaps
from dgnet_platform.evaluation.extraction import Extraction, extract_on_workers, extract_splits
from dgnet_platform.evaluation.pictures import RankedRow, ranked_lists, stored_pictures
from dgnet_platform.evaluation.swaps import people_of
from dgnet_platform.runs.loading import TrainedNetworks, open_trained
from tests.helpers.evaluations import CONFIG, SMALL, frames

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------------------------
# Descriptors


def test_streamed_features_are_those_of_the_whole_split(store: Path, monkeypatch: pytest.MonkeyPatch):
    opened, size = Store.open(store), (SMALL.height, SMALL.width)
    torch.manual_seed(0)
    networks = {"DG-Net": TrainState.build(CONFIG).appearance_encoder, "baseline": Teacher(SMALL, 5)}
    modes = [module.training for network in networks.values() for module in network.modules()]
    wholes = {split: ImageSet.load(opened, split, height=size[0], width=size[1]) for split in ("query", "gallery")}
    decoded: list[bytes] = []
    decode = images_module.decode
    monkeypatch.setattr(
        images_module, "decode", lambda picture, *place: decoded.append(picture) or decode(picture, *place)
    )
    how = Extraction(
        height=size[0], width=size[1], batch_size=6, precision="float32", device=torch.device("cpu"), threads=2
    )
    seen: list[tuple[str, int, int]] = []
    features, timing = extract_splits(networks, opened, list(wholes), how, lambda *at: seen.append(at))
    assert len(decoded) == 8 + 20  # once for both networks
    assert seen == [("query", done, 8) for done in (6, 8)] + [("gallery", done, 20) for done in (6, 12, 18, 20)]
    assert timing["pictures"] == 8 + 20
    assert 0 <= timing["waiting"] < 1
    assert modes == [module.training for network in networks.values() for module in network.modules()]
    for name, network in networks.items():
        for split, images in wholes.items():
            labels = images.person_ids, images.camera_ids
            whole = extract(network, images.images, *labels, height=size[0], width=size[1], batch_size=6)
            for field in ("prim", "fine", "person_ids", "camera_ids"):
                assert torch.equal(getattr(features[name][split], field), getattr(whole, field)), (name, split, field)


def test_features_in_parts_are_the_same_and_are_made_once(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here by this process; Ray's workers are told the same."""
    monkeypatch.setattr("dgnet_platform.evaluation.extraction.PART", 7)  # the next whole batch ends at 12
    opened, splits = Store.open(store), ("query", "gallery")
    torch.manual_seed(0)
    networks = {"DG-Net": TrainState.build(CONFIG).appearance_encoder, "baseline": Teacher(SMALL, 5)}
    how = Extraction(
        height=SMALL.height, width=SMALL.width, batch_size=6, precision="float32", device=torch.device("cpu"), threads=2
    )
    options = {"folder": tmp_path, "settings": {"checkpoint": "a"}, "workers": 0, "gpus": False}
    seen: list[tuple[str, int, int]] = []

    def stop_after_one_part(*at: object) -> None:
        seen.append(at)  # pyright: ignore[reportArgumentType]
        if at == ("gallery", 12, 20):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_on_workers(networks, opened, splits, how, stop_after_one_part, **options)
    assert seen == [("query", 0, 8), ("gallery", 0, 20), ("query", 8, 8), ("gallery", 12, 20)]
    seen.clear()
    features, timing = extract_on_workers(networks, opened, splits, how, lambda *at: seen.append(at), **options)
    assert seen == [("query", 8, 8), ("gallery", 12, 20), ("gallery", 20, 20)]
    assert timing["pictures"] == 8
    local, _ = extract_splits(networks, opened, splits, how, lambda *_: None)
    for name in networks:
        for split in splits:
            for field in ("prim", "fine", "person_ids", "camera_ids"):
                assert torch.equal(getattr(features[name][split], field), getattr(local[name][split], field))

    for changed, named in (
        ({"how": replace(how, batch_size=4)}, "batch_size: 6 -> 4"),
        ({"settings": {"checkpoint": "b"}}, "checkpoint: 'a' -> 'b'"),
    ):
        given = {"how": how, **options, **changed}
        with pytest.raises(PartsError, match=named):
            extract_on_workers(networks, opened, splits, given.pop("how"), lambda *_: None, **given)


# ------------------------------------------------------------------------------------------------------------
# Swaps and pictures


def test_people_of_a_store(store: Path):
    opened = Store.open(store)
    people = people_of(opened)
    assert people is not None
    assert (people.seed, people.height, people.width) == (1, 128, 64)
    assert people_of(replace(opened, info=replace(opened.info, origin={}))) is None
    origin = {**opened.info.origin, "drawn_people": 0}
    with pytest.raises(StoreError, match="drawn by version 0"):
        people_of(replace(opened, info=replace(opened.info, origin=origin)))


def test_swaps_are_compared_with_the_truth_about_the_same_two_people(
    store: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    opened, people = Store.open(store), People(1)
    height, width = SMALL.height, SMALL.width

    def seen_as(appearance_of: Shot, structure_of: Shot) -> torch.Tensor:
        picture = people.draw(appearance_of=appearance_of, structure_of=structure_of)
        return normalise(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None], height, width)[0]

    files = {split: opened.index(split)["file_name"].tolist() for split in ("train", "query", "gallery")}
    shots = {seen_as(shot, shot).numpy().tobytes(): shot for names in files.values() for shot in map(shot_of, names)}
    asked: list[tuple[Shot, Shot]] = []

    def oracle(appearance: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
        pairs = [
            (shots[one.numpy().tobytes()], shots[other.numpy().tobytes()])
            for one, other in zip(appearance, structure, strict=True)
        ]
        asked.extend(pairs)
        return torch.stack([seen_as(*pair) for pair in pairs])

    monkeypatch.setattr(TrainedNetworks, "draw", property(lambda _: oracle))
    done: list[tuple[int, int]] = []
    rows = swaps.fidelity_rows(open_trained(trained), opened, people, 40, lambda *at: done.append(at))
    assert done == [(40, 80), (80, 80)]
    assert [row["SSIM"] == 1 and row["L1"] == 0 for row in rows] == [True, False, False] * 2
    assert [row["transfer"] == 1 for row in rows] == [True, False, False] * 2
    assert all(i.identity != j.identity and min(i.identity, j.identity) > 0 for i, j in asked)
    assert {shot.identity for pair in asked[:40] for shot in pair} == {1, 2, 3}
    assert {shot.identity for pair in asked[40:] for shot in pair} == {4, 5, 6, 7}


def test_pictures_are_drawn_again_from_others_of_the_same_person(trained: Path, store: Path):
    opened, network = Store.open(store), open_trained(trained)
    people = opened.index("gallery")["person_id"].tolist()
    pairs = swaps.same_person_pairs(people, 9)
    assert len(pairs) == 9
    assert all(i != j and people[i] == people[j] > 0 for i, j in pairs)
    assert {people[i] for i, _ in pairs} == {person for person in people if person > 0 and people.count(person) > 1}
    assert swaps.same_person_pairs([1, 2, 0, 0, -1, -1], 9) == []

    pictures = stored_pictures(opened, "gallery", range(len(people)))
    scores = swaps.reconstruction(network, pictures, pairs, batch_size=4)
    tensors = [normalise(torch.from_numpy(picture.copy())[None], SMALL.height, SMALL.width) for picture in pictures]
    means = []
    for i, j in pairs:
        generated = denormalise(network.draw(tensors[i], tensors[j]))
        means.append(float(swap_fidelity(generated, denormalise(tensors[j])).ssim))
    assert scores["SSIM"] == pytest.approx(np.mean(means), abs=1e-4)
    assert set(scores) == {"L1", "PSNR", "SSIM"}


@pytest.mark.parametrize("code", ["appearance", "structure"])
def test_interpolations_lead_from_one_person_to_another(
    code: str, store: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    grids: list[np.ndarray] = []
    shown = swaps.captioned_grids

    def note(title: str, panels: Sequence[tuple[str, np.ndarray]], *, cell_height: int) -> Image.Image:
        grids.extend(grid for _, grid in panels)
        return shown(title, panels, cell_height=cell_height)

    monkeypatch.setattr(swaps, "captioned_grids", note)
    networks = open_trained(trained)
    pictures = swaps.interpolation_pictures(networks, Store.open(str(store)), "interpolated")
    assert list(pictures) == ["appearance", "structure"]
    grid = torch.from_numpy(grids[list(pictures).index(code)])
    height, width = SMALL.height, SMALL.width
    row = grid[:, :height]
    assert 4 * height < grid.shape[1] < 5 * height  # a row for each of the four identities
    white = (row == 255).all(dim=0).all(dim=0).nonzero().flatten().tolist()
    lefts = [0, *(x + 1 for x in white if x + 1 not in white)]
    assert len(lefts) == 11
    other, first, *between, last = (row[:, :, left : left + width][None] for left in lefts)
    assert not torch.equal(other, first)
    assert not torch.equal(first, last)
    for end, generated in ((first, between[0]), (last, between[-1])):
        pair = (end, other) if code == "appearance" else (other, end)
        expected = denormalise(
            render(cast(Generator, networks.state), *(normalise(picture, height, width) for picture in pair))
        ).cpu()
        assert (expected.int() - generated.int()).abs().max() <= 2  # the pictures shown are rounded
    assert not torch.equal(between[0], between[-1])


class Pooled(DescriptorNetwork):
    """Describes a picture by itself, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return adaptive_avg_pool2d(x, (8, 4)).flatten(1), x.new_zeros(len(x), 0)


def test_failures_are_the_swaps_whose_identity_is_lost(store: Path, trained: Path, monkeypatch: pytest.MonkeyPatch):
    """Of every second appearance another picture of the person is drawn, of the others one of the structure's."""
    opened, networks, judge = Store.open(store), open_trained(trained), Pooled()
    ids = torch.from_numpy(opened.index("gallery")["person_id"].to_numpy(copy=True))
    pixels = torch.from_numpy(np.stack(stored_pictures(opened, "gallery", range(len(ids)))))
    gallery = extract(judge, pixels, ids, ids, height=SMALL.height, width=SMALL.width)
    images, drawn = networks.images([*pixels.numpy()]), []

    def row_of(image: Tensor) -> int:
        return int((images - image).abs().amax(dim=(1, 2, 3)).argmin())

    def another(row: int) -> int:
        return next(other for other in range(len(ids)) if other != row and ids[other] == ids[row])

    def draw(sources: Tensor, targets: Tensor) -> Tensor:
        pairs = [(row_of(i), row_of(j)) for i, j in zip(sources, targets, strict=True)]
        assert all(ids[i] != ids[j] and min(ids[i], ids[j]) > 0 for i, j in pairs)
        drawn.extend(another(i if i % 2 else j) for i, j in pairs)
        return images[drawn[-len(pairs) :]]

    def note(title: str, panels: Sequence[tuple[str, np.ndarray]], *, cell_height: int) -> Image.Image:
        (kept, _), (lost, grid) = panels
        assert kept == "identity kept, rank 1"
        worst = re.fullmatch(r"identity lost, rank (?:(\d+) to )?(\d+)", lost)
        assert worst is not None
        assert int(worst[2]) > 1
        shown.append(grid)
        return Image.new("RGB", (1, 1))

    shown: list[np.ndarray] = []
    monkeypatch.setattr(identity, "captioned_grids", note)
    monkeypatch.setattr(TrainedNetworks, "draw", staticmethod(draw))
    assert identity.failure_picture(networks, opened, judge, gallery, "title") is not None
    assert len(drawn) == int((ids > 0).sum())
    corner = torch.from_numpy(shown[0])[:, :, -SMALL.width :]  # the worst comes last: appearance, structure, drawn
    rows = [row_of(normalise(part[None], SMALL.height, SMALL.width)[0])
            for part in (corner[:, : SMALL.height], corner[:, -SMALL.height :])]  # fmt: skip
    assert ids[rows[0]] != ids[rows[1]]
    assert rows[0] % 2 == 0


def test_ranked_lists_that_run_out(tmp_path: Path):
    grey = np.full((3, 20, 10), 99, np.uint8)
    row = RankedRow(query=grey, caption=("AP 50.0 %",), ranked=[grey, grey], is_match=[True, False])
    picture = ranked_lists("a title", [row], 4)
    frame = 72 * 136 - 64 * 128
    assert frames(picture) == (frame, frame)


def test_stored_pictures_are_the_stored_ones(store: Path):
    opened = Store.open(store)
    first, again, last = stored_pictures(opened, "query", [0, 0, 7])
    assert np.array_equal(first, again)
    names = opened.index("query")["file_name"].tolist()
    for found, name in ((first, names[0]), (last, names[7])):
        identity, camera = int(name[:4]), int(name[6])
        assert np.array_equal(found.transpose(1, 2, 0), People(1).picture(identity, camera, 0))
