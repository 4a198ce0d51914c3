"""PN-GAN's canonical poses of a store, and its two models for re-id as one network."""

from pathlib import Path

import torch

from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.pngan.canonical import canonical_poses
from dgnet_platform.data.poses import KeyPoints, PoseError
from dgnet_platform.data.records import JUNK
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.results import EvaluationError
from dgnet_platform.runs.loading import TrainedNetworks, open_teacher

_HEIGHT, _WIDTH = 256, 128


def canonical_rows(store: Store) -> list[int]:
    """Rows of the training pictures whose poses stand for all; they are a function of the store and its key points.

    Pictures without identity take no part.

    Raises:
        PoseError: the store has no key points, or too few usable ones.
        StoreError: it has no training split.
    """
    store.count("train")
    index = store.index("train").query(f"person_id != {JUNK}")
    joints = KeyPoints.open(store).joints("train", index, height=_HEIGHT, width=_WIDTH)
    try:
        return index.index[canonical_poses(torch.from_numpy(joints)).numpy()].tolist()
    except ValueError as error:
        raise PoseError(f"{store.location}, train: {error}") from None


def two_models(
    trained: TrainedNetworks,
    teacher: Path,
    rendered_teacher: Path,
    store: Store,
    device: torch.device,
) -> DescriptorNetwork:
    """PN-GAN's models A and B as one network.

    Args:
        trained: the generator.
        teacher: model A.
        rendered_teacher: model B.
        store: what the generator was trained on: its training split gives the canonical poses.
        device: where the networks go.

    Raises:
        EvaluationError: another method's networks, or another store's.
        CheckpointError, StoreError, PoseError: a file is missing, damaged or foreign.
    """
    if trained.method.canonical is None:
        raise EvaluationError(
            f"--rendered-teacher is for PN-GAN, --checkpoint is {trained.method.title}'s: leave it out"
        )
    if trained.fingerprint not in (None, store.info.fingerprint):
        raise EvaluationError(
            f"PN-GAN was trained on {trained.dataset} of fingerprint {str(trained.fingerprint)[:12]}, {store.location}"
            f" has {store.info.fingerprint[:12]}: name its own --store first, which gives the canonical poses"
        )
    index = store.index("train").iloc[canonical_rows(store)]
    poses = trained.joints(store, "train", index)
    assert poses is not None
    models = [open_teacher(path, device) for path in (teacher, rendered_teacher)]
    described = [(model.method.describe(model.state), model.network) for model in models if model.method.describe]
    return trained.method.canonical(trained.state, trained.config, poses, *described).to(device)
