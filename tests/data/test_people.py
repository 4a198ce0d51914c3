import hashlib
import io
import itertools
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, ImageFilter

from dgnet_platform.data.people.people import DISTRACTOR, JUNK, People, Shot, contact_sheet
from dgnet_platform.data.people.people_set import file_name, load, plan, shot_of, write_market
from dgnet_platform.data.people.scene import draw_picture
from dgnet_platform.data.people.sizes import SIZES, Size

SHOTS = [Shot(i, c, f) for i, c, f in itertools.product((1, 2, 3, DISTRACTOR, JUNK), (1, 4), (0, 7))]
FOLDERS = ("bounding_box_train", "bounding_box_test", "query", "gt_bbox")
SMALL = Size(
    train_identities=2,
    test_identities=2,
    cameras=3,
    train=8,
    queries=5,
    gallery=6,
    distractors=3,
    junk=3,
    hand_drawn=2,
)


@pytest.fixture(scope="module")
def people():
    return People(7)


@pytest.fixture(scope="module")
def tiny(people, tmp_path_factory):
    return write_market(people, tmp_path_factory.mktemp("drawn") / "tiny", "tiny")


def pixels(file):
    return np.asarray(Image.open(file))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------------
# Pictures


def test_picture_depends_on_seed_and_shot_alone(people):
    one = {shot: people.jpeg(shot) for shot in SHOTS}
    again = People(7)
    assert {shot: again.jpeg(shot) for shot in reversed(SHOTS)} == one
    assert len(set(one.values())) == len(SHOTS)
    other = People(8)
    assert all(other.jpeg(shot) != one[shot] for shot in SHOTS)


def test_picture_is_the_decoded_file_at_any_size(people):
    for seen, shape in ((people, (128, 64, 3)), (People(7, height=96, width=40), (96, 40, 3))):
        picture = seen.picture(3, 2, 5)
        assert picture.shape == shape
        assert picture.dtype == np.uint8
        assert picture.flags.writeable
        assert np.array_equal(picture, pixels(io.BytesIO(seen.jpeg(Shot(3, 2, 5)))))


def test_identity_owns_appearance_and_body(people):
    shots = [Shot(5, camera, frame) for camera in (1, 2, 6) for frame in (0, 3)]
    assert len({people.appearance(shot) for shot in shots}) == 1
    assert len({people.body(shot) for shot in shots}) == 1
    assert len({people.structure(shot).pose for shot in shots}) == len(shots)
    strangers = [Shot(DISTRACTOR, 1, frame) for frame in range(4)]
    assert len({people.appearance(shot) for shot in strangers}) == 4


def test_confusable_people_share_appearance_and_nothing_else_does(people):
    appearance = {i: people.appearance(Shot(i, 1, 0)) for i in range(1, 81)}
    body = {i: people.body(Shot(i, 1, 0)) for i in appearance}
    for i, j in itertools.combinations(appearance, 2):
        alike = appearance[i] == appearance[j]
        assert alike == (j in people.confusable_with(i)) == (i in people.confusable_with(j))
        assert body[i] != body[j]
    assert sum(bool(people.confusable_with(i)) for i in appearance) == 40
    assert people.confusable_with(DISTRACTOR) == people.confusable_with(JUNK) == ()


def test_contact_sheet_holds_the_pictures(people):
    sheet = contact_sheet(people, (1, 2), (3, 4, 5), frame=6)
    assert sheet.shape == (256, 192, 3)
    assert np.array_equal(sheet[128:, 64:128], people.picture(2, 4, 6))


PINNED = """
    77d22e62 efbbddc7 186995b8 8a20029d 8dfc4bc8 052031a3 8c8a8dca ba982c81 e3954d43 e78d970b d3a0a11a f0916620
    efe604c9 887b564f af1bf98d 99d0751d 115ed11a 431c60ed ab70270f 5c11c5a9 02b3d4e5 9a3b921b 8bbe22f6 c52dc4ea
    b5307b61 0f8e4e0b a5c42033 6f212279 a0f0fd88 bfc29b17 76b75ce0 cd7bbeec f0a9b0a7 15008528 7441db14 d2a2f7f9
    17cca549 c36efe96 4828b102 793a2fd2 3266b913 46b367b0 76c08df1 b30aa0d4 a4bcb017 0892cbbf bb752203 2b5fe256
    719cdc8e c5755d07 104f7205 28602c40 7a20b521 20a4092e b0728c11 74b2c6aa f1797282 21ad0b2e ef03335a 2daaeffb
    e0a156ea d3e5d97f b56ea8e1 876fab49 e33a17d4 029c3b7b ed710206 f365cb52 4080b0e5 50ac038d 9a986b91 89c38837
    ce9c6b6a 686aa8f8 c89a7648 3c9ef5d9 8bd31956 1ef6c3c1 653cd9f5 023ece25 1a76435c 45be9b6d 74f6e061 53bfc31b
    ca323bf7 cb59ba87 635d9ed7 7394641b 8678f22f 850fe2bd 0a51873a 2e819aa1 0d16e87a accfc343 982c9a5b 8cb963b3
"""


def test_pictures_are_those_of_version_1():
    people = People(3)
    shots = [Shot(i, c, 0) for i, c in itertools.product([*range(1, 31), DISTRACTOR, JUNK], (1, 3, 6))]
    digests = [hashlib.sha256(people.picture(*shot).tobytes()).hexdigest()[:8] for shot in shots]
    assert digests == PINNED.split(), "other pixels than stores hold: undo it, or raise people_set.VERSION"


# ------------------------------------------------------------------------------------------------------------
# The true swap


def test_swap_with_itself_is_the_picture(people):
    for shot in SHOTS:
        assert np.array_equal(people.draw(appearance_of=shot, structure_of=shot), people.picture(*shot))


def test_swap_takes_colour_from_one_and_shape_from_the_other(people):
    def inside(picture, mask):
        return histogram(picture[mask > 0.99][None, :], stripes=1)

    colour, alike, unlike, aside, skirted = [], [], [], [], []
    for i, camera in itertools.product(range(29, 45), (2, 5)):
        a, b = Shot(i, camera, 1), Shot(i + 3, camera, 2)
        own = {"appearance_of": a, "structure_of": a}
        other = {"appearance_of": b, "structure_of": b}
        swap = {"appearance_of": a, "structure_of": b}
        mask_a, mask_b, mask = (people.silhouette(**pair) for pair in (own, other, swap))
        of_a, of_b, of_swap = (
            inside(people.draw(**pair), m) for pair, m in ((own, mask_a), (other, mask_b), (swap, mask))
        )
        colour.append(of_swap @ of_a > of_swap @ of_b)
        alike.append(overlap(mask, mask_b))
        unlike.append(overlap(mask, mask_a))
        skirted.append(any(people.appearance(shot).cut in ("skirt", "dress") for shot in (a, b)))
        # So far off both figures, blur and JPEG blocks tell nothing of the clothes.
        figure = Image.fromarray(np.maximum(mask, mask_b) > 0).convert("L")
        off = np.asarray(figure.filter(ImageFilter.MaxFilter(25))) == 0
        aside.append(np.abs(people.draw(**swap)[off].astype(int) - people.picture(*b)[off]).mean())
    alike, skirted = np.array(alike), np.array(skirted)
    assert np.mean(colour) > 0.9  # measured: all
    assert 0 < skirted.sum() < len(skirted)
    assert (alike[~skirted] == 1).all()
    assert alike[skirted].min() > 0.6  # a skirt has an outline of its own
    assert np.median(unlike) < 0.75
    assert np.median(aside) < 0.3  # the shadow of a skirt apart, the same background and noise
    assert max(aside) < 3


def overlap(a, b):
    return np.minimum(a, b).sum() / np.maximum(a, b).sum()


# ------------------------------------------------------------------------------------------------------------
# Sets on disk


def test_set_has_the_layout_and_counts_of_its_size(tiny):
    size = SIZES["tiny"]
    assert names(tiny) == sorted([*FOLDERS, "people.json"])
    files = {folder: names(tiny / folder) for folder in FOLDERS}
    for file in itertools.chain.from_iterable(files.values()):
        assert re.fullmatch(r"(-1|\d{4})_c\ds\d_\d{6}_0[01]\.jpg", file)
        assert file_name(shot_of(file), hand_drawn=file.endswith("_00.jpg")) == file
    owners = {folder: Counter(shot_of(file).identity for file in files[folder]) for folder in FOLDERS}
    assert set(owners["bounding_box_train"]) == set(range(1, 13))
    assert set(owners["query"]) == set(owners["gt_bbox"]) == set(range(13, 25))
    assert set(owners["bounding_box_test"]) == {DISTRACTOR, JUNK, *range(13, 25)}
    assert owners["bounding_box_test"][DISTRACTOR] == size.distractors
    assert owners["bounding_box_test"][JUNK] == size.junk
    counts = {folder: owner.total() for folder, owner in owners.items()}
    assert counts == {
        "bounding_box_train": size.train,
        "bounding_box_test": size.gallery + size.distractors + size.junk,
        "query": size.queries,
        "gt_bbox": size.queries * size.hand_drawn,
    }


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_query_has_a_match_under_another_camera_and_hand_drawn_boxes(size):
    files = {folder: [shot_of(file) for file in content] for folder, content in plan(size, 3).items()}
    gallery = {shot[:2] for shot in files["bounding_box_test"]}
    hand_drawn = Counter(shot[:2] for shot in files["gt_bbox"])
    assert len({shot[:2] for shot in files["query"]}) == len(files["query"]) == size.queries
    for identity, camera, _ in files["query"]:
        assert any((identity, other) in gallery for other in range(1, size.cameras + 1) if other != camera)
        assert hand_drawn[identity, camera] == size.hand_drawn
    assert set(files["query"]) <= set(files["gt_bbox"])
    assert not set(files["gt_bbox"]) & set(files["bounding_box_test"])


def test_market_size_has_the_counts_of_market_1501():
    files = plan(SIZES["market"], 0)
    train = {shot_of(file).identity for file in files["bounding_box_train"]}
    test = {shot_of(file).identity for file in files["query"]}
    counts = [len(files[folder]) for folder in ("bounding_box_train", "query", "bounding_box_test")]
    assert (len(train), len(test), *counts) == (751, 750, 12_936, 3_368, 19_732)
    assert not train & test
    assert plan(SIZES["market"], 0) == files != plan(SIZES["market"], 1)


def test_files_do_not_depend_on_the_size_of_the_set_or_on_the_process(people, tiny, tmp_path):
    done = []
    small = write_market(people, tmp_path / "small", SMALL, workers=2, progress=lambda *at: done.append(at))
    assert done[-1] == (8 + 6 + 3 + 3 + 5 + 10,) * 2
    common = [f"{name}/{file}" for name in FOLDERS for file in {*names(small / name)} & {*names(tiny / name)}]
    assert len(common) >= 8
    for file in common:
        assert (small / file).read_bytes() == (tiny / file).read_bytes()


def test_load_draws_the_true_picture_of_any_file(tiny):
    people = load(tiny)
    for folder in FOLDERS:
        file = names(tiny / folder)[-1]
        shot = shot_of(file)
        drawn = people.draw(appearance_of=shot, structure_of=shot)
        assert np.array_equal(drawn, pixels(tiny / folder / file))


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failure_leaves_nothing_behind(people, tmp_path, error):
    def fail(done, total):
        raise error

    with pytest.raises(type(error)):
        write_market(people, tmp_path / "set", SMALL, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_existing_target_is_refused_untouched(people, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine").write_text("keep")
    with pytest.raises(FileExistsError, match=r"set exists; .* name another"):
        write_market(people, tmp_path / "set", SMALL)
    assert names(tmp_path) == ["set"]
    assert names(tmp_path / "set") == ["mine"]


def test_bad_input_is_named(people, tmp_path):
    with pytest.raises(ValueError, match="seed is -1"):
        People(-1)
    with pytest.raises(ValueError, match=r"height is 8; .* at least 32"):
        People(height=8)
    with pytest.raises(ValueError, match="width is True"):
        People(width=True)
    for shot in (Shot(-2, 1, 0), Shot(1, 0, 0), Shot(1, 1, -1), Shot(1, 1, 1_000_000)):
        with pytest.raises(ValueError, match="is no shot: identity"):
            people.picture(*shot)
        with pytest.raises(ValueError, match="is no shot: identity"):
            people.draw(appearance_of=shot, structure_of=Shot(1, 1, 0))
    for changes, message in (
        ({"train": 5}, "train is 5; .* at least 6"),
        ({"queries": 3}, "queries is 3; .* at least 4"),
        ({"queries": 7, "gallery": 7}, "queries 7"),
        ({"gallery": 4}, "gallery is 4"),
        ({"cameras": 1}, "cameras is 1"),
        ({"cameras": 10, "train": 20}, "cameras is 10"),
        ({"junk": -1}, "junk is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(SMALL, **changes)
    with pytest.raises(ValueError, match="size is 'huge'; it must be a Size or one of tiny, laptop, dusk, market"):
        write_market(people, tmp_path / "set", "huge")
    with pytest.raises(ValueError, match="workers is 0"):
        write_market(people, tmp_path / "set", SMALL, workers=0)
    for name in ("0002_c1_f0046182.jpg", "0002_c0s1_000001_01.jpg", "Thumbs.db", "0002_c1s1_000001_01.png"):
        with pytest.raises(ValueError, match="is no file name of a drawn set"):
            shot_of(name)


OTHER_VERSION = '{"drawn_people": 0, "seed": 1, "height": 128, "width": 64}'


@pytest.mark.parametrize("text", [None, "{", "[]", '{"seed": 1}', OTHER_VERSION])
def test_folder_of_other_people_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "people.json").write_text(text)
    with pytest.raises(ValueError, match=r"people\.json (does not describe drawn people|is of version 0)"):
        load(tmp_path)


# ------------------------------------------------------------------------------------------------------------
# What colour alone can tell, and what it cannot


def histogram(picture, stripes=6, bins=8):
    """Unit vector of the square roots of RGB counts in horizontal stripes."""
    level = picture.astype(np.int32) * bins // 256
    cell = (level[..., 0] * bins + level[..., 1]) * bins + level[..., 2]
    counts = [np.bincount(stripe.ravel(), minlength=bins**3) for stripe in np.array_split(cell, stripes)]
    root = np.sqrt(np.concatenate(counts))
    return root / np.linalg.norm(root)


def colours(picture):
    """Histogram of the middle half, where the person is."""
    return histogram(picture[:, 16:48])


def described(folder):
    shots = [shot_of(file) for file in names(folder)]
    features = np.stack([colours(pixels(folder / file)) for file in names(folder)])
    return features, np.array(shots)


def test_colour_finds_people_above_chance_and_below_certainty(tiny):
    query, asked = described(tiny / "query")
    gallery, there = described(tiny / "bounding_box_test")
    first, chance = [], []
    for row, (identity, camera, _) in zip(query @ gallery.T, asked, strict=True):
        kept = (there[:, 0] != JUNK) & ~((there[:, 0] == identity) & (there[:, 1] == camera))
        match = there[kept, 0] == identity
        first.append(match[row[kept].argmax()])
        chance.append(match.mean())
    assert np.mean(chance) < 0.08
    assert 3 * np.mean(chance) < np.mean(first) < 0.8  # measured over seeds: 0.35 to 0.56


def test_colour_does_not_tell_confusable_people_apart(people):
    told = []
    for first in range(101, 181, 4):
        pair = (first, *people.confusable_with(first))
        shots = [Shot(i, camera, frame) for i in pair for camera in range(1, 5) for frame in range(2)]
        feature = {shot: colours(people.picture(*shot)) for shot in shots}
        for query in shots[::2]:
            others = [shot for shot in shots if shot.camera != query.camera]
            nearest = max(others, key=lambda shot: feature[query] @ feature[shot])
            told.append(nearest.identity == query.identity)
    assert len(told) == 160
    assert 0.35 < np.mean(told) < 0.65  # chance 0.5; measured over seeds: 0.55 to 0.6


def test_confusable_people_differ_in_the_picture(people):
    difference = []
    for first in range(101, 161, 4):
        one, other = Shot(first, 2, 0), Shot(first + 1, 2, 0)
        appearance, structure, camera = people.appearance(one), people.structure(one), people.camera(one)
        assert people.appearance(other) == appearance
        pictures = []
        for body in (structure.body, people.body(other)):
            jpeg, _ = draw_picture(appearance, replace(structure, body=body), camera, np.random.default_rng(0), 128, 64)
            pictures.append(pixels(io.BytesIO(jpeg)).astype(int))
        difference.append(np.abs(pictures[0] - pictures[1]).mean())
    assert min(difference) > 0.2  # gray levels, of pictures alike to the last grain of noise otherwise
    assert np.median(difference) > 2


def test_plain_scenery_changes_what_is_around_people_alone(people):
    plain = People(people.seed, scenery="plain")
    shots = [Shot(identity, camera, frame) for identity in (1, 7) for camera in range(1, 7) for frame in range(20)]
    assert {people.camera(shot).occluder for shot in shots} > {"none"}
    assert any(people.camera(shot).passer for shot in shots)
    edges = {"busy": [], "plain": []}
    for shot in shots:
        camera = plain.camera(shot)
        assert (camera.occluder, camera.passer) == ("none", None)
        assert camera == replace(people.camera(shot), scenery="plain", occluder="none", passer=None)
        assert (plain.appearance(shot), plain.structure(shot)) == (people.appearance(shot), people.structure(shot))
    for shot in shots[::20]:
        mask = people.silhouette(appearance_of=shot, structure_of=shot) + plain.silhouette(
            appearance_of=shot, structure_of=shot
        )
        around = (mask[1:, 1:] + mask[:-1, 1:] + mask[1:, :-1]) == 0
        for drawn in (people, plain):
            gray = drawn.picture(*shot).mean(axis=2)
            steps = np.hypot(gray[1:, 1:] - gray[:-1, 1:], gray[1:, 1:] - gray[1:, :-1])
            edges[drawn.scenery].append(steps[around].mean())
    assert np.mean(edges["plain"]) < 0.7 * np.mean(edges["busy"])
    by_dusk = People(people.seed, scenery="dusk")
    assert all(
        replace(by_dusk.camera(shot), scenery="plain", gain=0, cast=(), noise=0)
        == replace(plain.camera(shot), gain=0, cast=(), noise=0)
        for shot in shots
    )
    assert by_dusk.picture(*shots[0]).mean() < 0.85 * plain.picture(*shots[0]).mean()
    with pytest.raises(ValueError, match="scenery is 'empty'"):
        People(0, scenery="empty")  # pyright: ignore[reportArgumentType]


DRAWS = """
import sys, threading
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import write_market
if __name__ == "__main__":
    write_market(People(0), sys.argv[1], "laptop", workers=2, progress=lambda *done: print(*done, flush=True))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_workers_end_with_the_process_that_draws(tmp_path: Path, number: signal.Signals):
    (tmp_path / "draws.py").write_text(DRAWS)
    command = [sys.executable, tmp_path / "draws.py", tmp_path / "people"]
    # A session of its own: Ctrl-C goes to all processes of a terminal.
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as draws:
        assert draws.stdout is not None
        assert draws.stdout.readline()
        workers = psutil.Process(draws.pid).children(recursive=True)
        assert len(workers) >= 2
        (os.killpg if number == signal.SIGINT else os.kill)(draws.pid, number)
        said = draws.communicate(timeout=60)[1]
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    assert said.count("Traceback") == (number == signal.SIGINT), said  # that of the process itself
