"""A split in memory: pixels, labels, memory limits and the validation split."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from dgnet_platform.data import images as images_module
from dgnet_platform.data import pack as pack_module
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.held_out import held_out_people
from dgnet_platform.data.images import ImageMemoryError, ImageSet, image_bytes, stream, validation_split
from dgnet_platform.data.people.people_set import plan, shot_of
from dgnet_platform.data.people.sizes import SIZES
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store, StoreError

CPU = torch.device("cpu")


def pixels(number: int, height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(number).integers(0, 256, (3, 2, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def prepared(tmp_path: Path, pictures: dict[str, np.ndarray]) -> Store:
    """A store of `folder` layout whose pictures are lossless."""
    for name, picture in pictures.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, "PNG")
    prepare(PrepareConfig(dataset="folder", source=tmp_path / "own", out=tmp_path / "store"))
    return Store.open(tmp_path / "store")


@pytest.fixture
def pictures() -> dict[str, np.ndarray]:
    names = [f"train/{person}/c{camera}_{shot}.png" for person in (9, 30, 4) for camera in (1, 2) for shot in "ab"]
    return {name: pixels(number, 16, 8) for number, name in enumerate(names)}


def test_pixels_and_ids(tmp_path: Path, pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images_module, "CHUNK", 5)
    monkeypatch.setattr(pack_module, "ROW_GROUP_BYTES", 600)
    store = prepared(tmp_path, pictures)
    seen: list[tuple[int, int]] = []
    images = ImageSet.load(store, "train", height=16, width=8, threads=3, progress=lambda *at: seen.append(at))
    assert images.file_names == tuple(sorted(name.removeprefix("train/") for name in pictures))
    for row, name in enumerate(images.file_names):
        assert np.array_equal(images.images[row].permute(1, 2, 0).numpy(), pictures[f"train/{name}"])
    assert images.images.dtype == torch.uint8
    assert images.images.is_contiguous(memory_format=torch.channels_last)
    assert images.person_ids.tolist() == [30] * 4 + [4] * 4 + [9] * 4
    assert images.camera_ids.tolist() == [1, 1, 2, 2] * 3
    assert images.classes.tolist() == [4, 9, 30] == list(store.info.classes)
    assert images.labels.tolist() == [2] * 4 + [0] * 4 + [1] * 4
    assert images.labels.dtype == torch.int64
    assert seen[-1] == (12, 12)
    assert len(images) == 12


def test_other_sizes_are_resized_as_pillow_does(tmp_path: Path):
    smooth = {f"train/1/c1_{number}.png": pixels(number, 20 + number // 3, 11) for number in range(9)}
    smooth["train/1/c1_9.png"] = pixels(9, 32, 16)
    images = ImageSet.load(prepared(tmp_path, smooth), "train", height=32, width=16, threads=2)
    for row, name in enumerate(images.file_names):
        expected = Image.fromarray(smooth[f"train/{name}"]).resize((16, 32), Image.Resampling.BICUBIC)
        difference = images.images[row].permute(1, 2, 0).numpy().astype(int) - np.array(expected)
        assert np.abs(difference).max() <= 2


def test_threads_do_not_change_the_result(tmp_path: Path, pictures: dict[str, np.ndarray]):
    store = prepared(tmp_path, pictures)
    one, many = (ImageSet.load(store, "train", height=24, width=12, threads=threads) for threads in (1, 4))
    assert torch.equal(one.images, many.images)
    assert one.file_names == many.file_names


def test_streamed_batches_are_the_image_sets_pictures(
    tmp_path: Path, pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pack_module, "ROW_GROUP_BYTES", 600)
    others = {f"gallery/{40 + n}/c{n}.png": pixels(n, 20 + n % 2, 9) for n in range(1, 8)}
    query = {f"query/{40 + n}/c0.png": pixels(n, 16, 8) for n in range(1, 8)}
    store = prepared(tmp_path, pictures | others | query)
    assert len(list(store.row_groups("train"))) > 2
    splits = ("gallery", "train", "query")
    batches = list(stream(store, splits, height=16, width=8, batch_size=5, threads=3))
    sizes = [(split, len(batch)) for split, batch in batches]
    assert sizes == [
        ("gallery", 5),
        ("gallery", 2),
        ("train", 5),
        ("train", 5),
        ("train", 2),
        ("query", 5),
        ("query", 2),
    ]
    for split in splits:
        whole = ImageSet.load(store, split, height=16, width=8).images
        assert torch.equal(torch.cat([batch for name, batch in batches if name == split]), whole)
    for rows in (range(12), range(1, 2), range(3, 11), range(10, 12), range(4, 4)):
        part = list(stream(store, ["train"], height=16, width=8, batch_size=5, rows=rows, threads=3))
        assert [len(batch) for _, batch in part] == [len(rows[first : first + 5]) for first in range(0, len(rows), 5)]
        whole = ImageSet.load(store, "train", height=16, width=8).images[rows.start : rows.stop]
        assert torch.equal(torch.cat([batch for _, batch in part] or [whole]), whole)


def test_only_row_groups_with_wanted_rows_are_read(
    tmp_path: Path, pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pack_module, "ROW_GROUP_BYTES", 600)
    store = prepared(tmp_path, pictures)
    sizes = [len(table) for table in store.row_groups("train")]
    names = store.index("train")["file_name"].tolist()
    first = sizes[0]
    for rows, tables in ((range(first), 1), (range(first - 1, first + 1), 2), (range(first, first + sizes[1]), 1)):
        found = list(store.row_groups("train", ["file_name"], rows))
        assert len(found) == tables
        assert [name for table in found for name in table["file_name"].to_pylist()] == names[rows.start : rows.stop]


def test_streaming_decodes_a_bounded_number_of_batches_ahead(
    tmp_path: Path, pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    store = prepared(tmp_path, pictures)
    decoded = []
    decode = images_module.decode
    monkeypatch.setattr(images_module, "decode", lambda *given: decoded.append(given) or decode(*given))
    batches = stream(store, ["train", "train"], height=16, width=8, batch_size=1, threads=1)
    for taken in range(1, 24 + 1):
        next(batches)
        asked = time.monotonic()
        while len(decoded) < min(taken + 4, 24) and time.monotonic() - asked < 10:
            time.sleep(0.001)
        time.sleep(0.005)
        assert len(decoded) == min(taken + 4, 24)  # also of the split that comes next
    assert next(batches, None) is None


def test_a_streamed_picture_that_does_not_decode_is_named(
    tmp_path: Path, pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    store = prepared(tmp_path, pictures)
    bad = store.index("train")["file_name"][7]
    content = (tmp_path / "own" / "train" / bad).read_bytes()
    decode = images_module.decode
    monkeypatch.setattr(
        images_module,
        "decode",
        lambda picture, place: decode(picture[:-30] if picture == content else picture, place),
    )
    batches = stream(store, ["train"], height=16, width=8, batch_size=4, threads=2)
    assert len(next(batches)[1]) == 4
    with pytest.raises(StoreError, match=rf"train\.parquet: {bad}: does not decode"):
        next(batches)
    with pytest.raises(StoreError, match=rf"train\.parquet: {bad}: does not decode"):
        ImageSet.load(store, "train", height=16, width=8)


def test_a_picture_that_went_bad_is_named(tmp_path: Path, pictures: dict[str, np.ndarray]):
    store = prepared(tmp_path, pictures)
    file = tmp_path / "store" / "train.parquet"
    file.write_bytes(file.read_bytes().replace(b"IHDR", b"IHDX", 1))
    with pytest.raises(StoreError, match=r"train\.parquet cannot be read .*CRC"):
        ImageSet.load(store, "train", height=16, width=8)


def test_memory_is_estimated_before_it_is_taken(
    tmp_path: Path, pictures: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    store = prepared(tmp_path, pictures)
    assert image_bytes(12_936, 128, 64) == 317_915_136
    assert images_module.free_bytes(CPU) > 10**6
    free = image_bytes(12, 16, 8) + 1
    monkeypatch.setattr(images_module, "free_bytes", lambda device: free)
    with pytest.raises(ImageMemoryError, match=r"train of .* needs .* fewer workers"):
        ImageSet.load(store, "train", height=16, width=8)
    free *= 2
    images = ImageSet.load(store, "train", height=16, width=8)
    assert images.fits(CPU)
    assert images.to(CPU) is images
    meta = torch.device("meta")
    assert images.to(meta).images.device == meta
    free //= 2
    assert not images.fits(meta)
    with pytest.raises(ImageMemoryError, match=r"12 pictures needs .* of meta are free .* keep the"):
        images.to(meta)


@pytest.mark.gpu
def test_images_on_the_gpu(tmp_path: Path, pictures: dict[str, np.ndarray]):
    images = ImageSet.load(prepared(tmp_path, pictures), "train", height=16, width=8)
    there = images.to(torch.device("cuda"))
    assert there.images.is_cuda
    assert torch.equal(there.images.cpu(), images.images)
    assert torch.equal(there.labels.cpu(), images.labels)


@pytest.mark.gpu
def test_batches_in_pinned_memory(tmp_path: Path, pictures: dict[str, np.ndarray]):
    store = prepared(tmp_path, pictures)
    plain, pinned = (
        [batch for _, batch in stream(store, ["train"], height=16, width=8, batch_size=5, pinned=pinned)]
        for pinned in (False, True)
    )
    assert all(batch.is_pinned() for batch in pinned)
    assert torch.equal(torch.cat(pinned), torch.cat(plain))


def image_set(person_ids: list[int], camera_ids: list[int]) -> ImageSet:
    count = len(person_ids)
    return ImageSet(
        images=torch.arange(count).view(count, 1, 1, 1).expand(count, 3, 1, 1).to(torch.uint8),
        person_ids=torch.tensor(person_ids),
        camera_ids=torch.tensor(camera_ids),
        file_names=tuple(f"{number:05d}.jpg" for number in range(count)),
    )


def ids(images: ImageSet) -> set[int]:
    return set(images.person_ids.tolist())


def test_the_papers_validation_split():
    people = [*range(2, 1502, 2), 1501]
    split = validation_split(image_set([p for p in people for _ in range(4)], [1, 1, 2, 2] * 751))
    assert ids(split.train) == set(people[:651])
    assert ids(split.query) == ids(split.gallery) == set(people[651:])
    assert split.train.labels.unique().tolist() == list(range(651))
    assert (len(split.train), len(split.query), len(split.gallery)) == (2604, 200, 200)


def test_validation_queries_have_a_match_and_no_picture_is_lost():
    #               trained          one camera    two cameras           three single shots
    persons = [1, 1, 2, 2, 3, 3, *[4, 4, 4], *[5, 5, 5, 5, 5, 5], *[6, 6, 6]]
    cameras = [1, 2, 1, 2, 1, 2, *[1, 1, 1], *[1, 2, 1, 2, 1, 3], *[1, 2, 3]]
    images = image_set(persons, cameras)
    with pytest.raises(ValueError, match="none of the 2 held-out identities has two pictures"):
        validation_split(images.select(torch.nonzero(images.person_ids != 6).flatten()[:9]))
    split = validation_split(image_set([*persons, 7, 7, 7], [*cameras, 1, 2, 2]))
    assert ids(split.train) == {1, 2, 3, 4, 5}
    assert split.query.file_names == ("00019.jpg",)
    assert split.gallery.file_names == ("00015.jpg", "00016.jpg", "00017.jpg", "00018.jpg", "00020.jpg")
    assert split.gallery.images[:, 0, 0, 0].tolist() == [15, 16, 17, 18, 20]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=60))
def test_validation_split_parts_the_pictures(shots: list[tuple[int, int]]):
    images = image_set([person for person, _ in shots], [camera for _, camera in shots])
    held_out = sorted(ids(images))[-2:]
    under = {person: Counter(camera for other, camera in shots if other == person) for person in held_out}
    if len(ids(images)) < 4 or not any(len(seen) > 1 and max(seen.values()) > 1 for seen in under.values()):
        with pytest.raises(ValueError, match=r"nothing can be validated on them|needs 4 or more"):
            validation_split(images)
        return
    split = validation_split(images)
    parts = (split.train, split.query, split.gallery)
    assert sorted(name for part in parts for name in part.file_names) == list(images.file_names)
    assert ids(split.gallery) == set(held_out)
    assert ids(split.train) == ids(images) - set(held_out)
    gallery = list(zip(split.gallery.person_ids.tolist(), split.gallery.camera_ids.tolist(), strict=True))
    for person, camera in zip(split.query.person_ids.tolist(), split.query.camera_ids.tolist(), strict=True):
        assert any(other == person and place != camera for other, place in gallery)


@given(st.permutations([7, 7, 5, 0, 12, 30, 30]))
def test_labels_are_positions_in_the_sorted_ids(person_ids: list[int]):
    labels: Tensor = image_set(person_ids, [1] * 7).labels
    assert labels.tolist() == [sorted(set(person_ids)).index(person) for person in person_ids]


def test_further_people_to_validate_on_change_nothing_of_what_is_trained_on():
    people, cameras = [p for p in range(1, 20) for _ in range(4)], [1, 1, 2, 2] * 19
    images = image_set(people, cameras)
    more = image_set([p + 100 for p in people], cameras)
    alone, joined = validation_split(images), validation_split(images, more)
    assert torch.equal(alone.train.images, joined.train.images)
    assert torch.equal(alone.train.labels, joined.train.labels)
    for name in ("query", "gallery"):
        own, both = getattr(alone, name), getattr(joined, name)
        assert torch.equal(both.person_ids[: len(own)], own.person_ids)
        assert len(both) == len(own) + len(more) // 2
        assert set(both.person_ids[len(own) :].tolist()) == set(range(101, 120))
    assert len(set(joined.query.file_names) & set(joined.gallery.file_names)) <= len(set(images.file_names))


def test_laptop_people_are_validated_on_120_identities():
    """13 of 96 that are held out, and 107 whom nobody trains on; the rest of the set is as it was without them."""
    size = SIZES["laptop"]
    assert held_out_people(size.train_identities) + size.validation_identities == 120
    folders = plan(size, 0)
    without = plan(replace(size, validation_identities=0, validation=0), 0)
    assert {name: folders[name] for name in without} == without
    assert len(folders["bounding_box_validation"]) == size.validation
    identities = [shot_of(name).identity for name in folders["bounding_box_validation"]]
    assert min(identities) == 1 + size.train_identities + size.test_identities
