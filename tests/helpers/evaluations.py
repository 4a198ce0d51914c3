"""Evaluations of an untrained DG-Net on drawn stores."""

from pathlib import Path

import numpy as np
from PIL import Image

from dgnet_core.dgnet.state import TrainState
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import write_market
from dgnet_platform.data.people.sizes import Size
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.pictures import MATCH, WRONG
from dgnet_platform.runs import checkpoint
from jobs.evaluate import main
from tests.helpers.tiny import small_config

SIZE = Size(
    train_identities=3, test_identities=4, cameras=2,
    train=8, queries=8, gallery=16, distractors=2, junk=2, hand_drawn=2,
)  # fmt: skip
CONFIG = small_config(3).rescaled(100)  # checkpoints at 40 are from after the warm-up
SMALL = CONFIG.network


def drawn_store(folder: Path, seed: int) -> Path:
    """A store of drawn people, which its seed tells from others."""
    write_market(People(seed), folder / "people", SIZE)
    prepare(PrepareConfig(dataset="people", source=folder / "people", out=folder / f"store{seed}", threads=1))
    return folder / f"store{seed}"


def untrained(store: Path, folder: Path) -> Path:
    """A checkpoint of a run on a store, past the warm-up by its number, with its first weights."""
    state = TrainState.build(CONFIG)
    state.iteration = 40
    info = Store.open(store).info
    return checkpoint.save(state, CONFIG, folder, dataset=info.dataset, fingerprint=info.fingerprint)


def run(*arguments: object) -> int:
    """jobs/evaluate.py in this process; its exit status."""
    return main([str(argument) for argument in arguments])


def frames(picture: Image.Image) -> tuple[int, int]:
    """Numbers of pixels in the colours of a match's and of a wrong picture's frame."""
    pixels = np.asarray(picture)
    return tuple(int((pixels == colour).all(axis=2).sum()) for colour in (MATCH, WRONG))  # pyright: ignore[reportReturnType]
