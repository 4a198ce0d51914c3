"""Key points of drawn people: on the figure, on the right side, seen or hidden, and as an estimator would find them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dgnet_core.learning.joints import BONES, FLIP, HIDDEN, JOINTS, LIMBS, MISSING, SEEN
from dgnet_core.learning.poses import capsule_mask
from dgnet_platform.data.people.figure import pose_figure
from dgnet_platform.data.people.keypoints import draw_keypoints
from dgnet_platform.data.people.people import DISTRACTOR, JUNK, People, Shot
from dgnet_platform.data.people.relief import Relief

PEOPLE = People(5)
SHOTS = [Shot(i, 1 + i % 6, i % 4) for i in range(1, 201)]
INDEX = {name: joint for joint, name in enumerate(JOINTS)}
COURSES = (0, 35, 90, 145, 180, 215, 270, 325)
# The numbers of the pieces of a relief, in the order in which they are drawn.
OWN_PIECES = {"left knee": (1, 2), "left ankle": (2, 3), "right knee": (4, 5), "right ankle": (5, 6)}
OWN_PIECES |= {"left elbow": (9, 10), "left wrist": (10, 11), "right elbow": (12, 13), "right wrist": (13, 14)}


def facing(shot: Shot, yaw: float):
    """The structure of a shot's person who strides at an angle, empty-handed, bald, and looks ahead."""
    structure = PEOPLE.structure(shot)
    pose = replace(structure.pose, yaw=yaw, arms="swing", head_turn=0.0, x=0.0, y=0.05, scale=1.0, stride=20.0)
    body = replace(structure.body, bag="none", hat="none", hair="bald")
    return replace(structure, pose=pose, body=body)


def test_tables_are_openposes():
    assert (JOINTS[14], JOINTS[16], JOINTS[2], JOINTS[13]) == ("right eye", "right ear", "right shoulder", "left ankle")
    assert [FLIP[j] for j in FLIP] == list(range(18))
    assert {JOINTS[j] for j in range(18) if FLIP[j] == j} == {"nose", "neck"}
    assert (len(BONES), len(LIMBS)) == (17, 23)


def test_seen_joints_lie_on_the_figure():
    on = []
    for shot in SHOTS:
        places, visibility = PEOPLE.keypoints(shot)
        share = PEOPLE.silhouette(appearance_of=shot, structure_of=shot)
        columns, rows = places[visibility == SEEN].astype(int).T
        on += (share[rows, columns] > 0).tolist()
    assert len(on) > 2000
    assert np.mean(on) > 0.99  # measured: 1


def test_capsules_overlap_the_silhouettes():
    shots = SHOTS[120:]  # the radii are fitted to earlier ones
    joints = np.stack([np.column_stack(PEOPLE.keypoints(shot)) for shot in shots])
    capsules = capsule_mask(torch.from_numpy(joints).float(), 128, 64).numpy() > 0
    exact = np.stack([PEOPLE.silhouette(appearance_of=shot, structure_of=shot) for shot in shots]) > 0.5
    overlap = (capsules & exact).sum((1, 2)) / (capsules | exact).sum((1, 2))
    assert np.mean(overlap) > 0.75
    assert np.min(overlap) > 0.5
    missing = torch.zeros(1, 18, 3)
    assert not capsule_mask(missing, 128, 64).any()


@pytest.mark.parametrize("course", COURSES)
def test_left_is_left_for_every_course(course):
    own = []
    for shot in SHOTS[:25]:
        structure, camera = facing(shot, course), replace(PEOPLE.camera(shot), occluder="none", passer=None)
        places, visibility = draw_keypoints(structure, camera, np.random.default_rng(0), 128, 64)
        relief = Relief(256, 128)
        pose_figure(relief, structure, None, math.radians(camera.light.pitch))
        for name, pieces in OWN_PIECES.items():
            if visibility[INDEX[name]] == SEEN:
                x, y = places[INDEX[name]]
                own.append(relief.piece[int(2 * y), int(2 * x)] in pieces)
        x = places[:, 0]
        for part in ("shoulder", "hip"):
            across = x[INDEX[f"left {part}"]] - x[INDEX[f"right {part}"]]
            assert across * math.cos(math.radians(course)) >= -1e-4  # facing the camera, left is right
        turned = math.sin(math.radians(course))
        if abs(turned) == 1:  # walks to the right of the picture: shows the right side
            near, far = ("right", "left") if turned > 0 else ("left", "right")
            assert visibility[INDEX[f"{near} shoulder"]] == visibility[INDEX[f"{near} ear"]] == SEEN
            assert visibility[INDEX[f"{far} shoulder"]] == visibility[INDEX[f"{far} ear"]] == HIDDEN
        face = visibility[[INDEX["nose"], INDEX["left eye"], INDEX["right eye"]]]
        assert (face == (SEEN if course == 0 else HIDDEN)).all() or course not in (0, 180)
    assert len(own) > 60
    assert np.mean(own) > 0.9


def test_what_stands_in_front_hides():
    shot = next(shot for shot in SHOTS if PEOPLE.camera(shot).occluder == "hedge")
    camera = PEOPLE.camera(shot)
    structure = facing(shot, 0)
    _, behind = draw_keypoints(structure, camera, np.random.default_rng(0), 128, 64)
    _, free = draw_keypoints(structure, replace(camera, occluder="none"), np.random.default_rng(0), 128, 64)
    ankles = [INDEX["left ankle"], INDEX["right ankle"]]
    assert (behind[ankles] == HIDDEN).all()
    assert (free[ankles] == SEEN).all()


def test_empty_scenes_and_half_a_person_have_joints_missing():
    empty = [PEOPLE.keypoints(Shot(DISTRACTOR, 1, frame)) for frame in range(12)]
    assert any((visibility == MISSING).all() for _, visibility in empty)
    for places, visibility in [*empty, *(PEOPLE.keypoints(Shot(JUNK, 2, frame)) for frame in range(12))]:
        assert (places[visibility == MISSING] == 0).all()
        assert ((places >= 0) & (places < (64, 128))).all()


def test_key_points_of_another_size_are_the_same_places():
    wide = People(5, height=256, width=128)
    for shot in SHOTS[:5]:
        (small, seen), (large, still) = PEOPLE.keypoints(shot), wide.keypoints(shot)
        assert np.allclose(2 * small, large, atol=1e-3)
        assert np.mean(seen == still) > 0.9


def test_an_estimator_errs():
    exact = [PEOPLE.keypoints(shot) for shot in SHOTS]
    found = [PEOPLE.keypoints(shot, estimated=True) for shot in SHOTS]
    again = PEOPLE.keypoints(SHOTS[3], estimated=True)
    assert np.array_equal(found[3][0], again[0])
    assert np.array_equal(found[3][1], again[1])
    both = [(a[1] != MISSING) & (b[1] != MISSING) for a, b in zip(exact, found, strict=True)]
    moved = np.concatenate([np.abs(a[0] - b[0])[ok] for a, b, ok in zip(exact, found, both, strict=True)])
    assert 0.6 < np.median(moved) < 1.2
    dropped = np.mean([(visibility == MISSING).mean() for _, visibility in found])
    assert 0.1 < dropped < 0.4
    swapped = [
        np.abs(b[0][9] - a[0][12]).sum() < np.abs(b[0][9] - a[0][9]).sum() - 6
        for a, b, ok in zip(exact, found, both, strict=True)
        if ok[[9, 12]].all()
    ]
    assert 0.01 < np.mean(swapped) < 0.3
