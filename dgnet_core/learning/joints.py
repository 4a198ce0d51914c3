"""The 18 joints of a pose in OpenPose's order, and the bones between them: tables without PyTorch."""

JOINTS = (
    "nose", "neck",
    "right shoulder", "right elbow", "right wrist", "left shoulder", "left elbow", "left wrist",
    "right hip", "right knee", "right ankle", "left hip", "left knee", "left ankle",
    "right eye", "left eye", "right ear", "left ear",
)  # fmt: skip
"""Sides are the person's own: facing the camera, the right hand is at the left of the picture."""

MISSING, HIDDEN, SEEN = 0, 1, 2
"""Visibility of a joint, as COCO numbers it. The place of a missing joint is (0, 0) and says nothing."""


def _mirrored(name: str) -> str:
    side, _, part = name.partition(" ")
    return {"left": f"right {part}", "right": f"left {part}"}.get(side, name)


FLIP = tuple(JOINTS.index(_mirrored(name)) for name in JOINTS)
"""Which joint of a picture joint j of its mirror image is: left and right change places."""

BONES = (
    (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7),
    (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""OpenPose's 17 bones, what a stick figure shows."""

LIMBS = (*BONES, (1, 16), (1, 17), (8, 11), (8, 2), (11, 5), (16, 17))
"""The 23 limbs that make up PG2's pose mask: the bones, neck to ears, hip to hip, hips to shoulders, ear to ear."""
