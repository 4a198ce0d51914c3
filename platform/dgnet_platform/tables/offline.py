"""Offline feeding: pictures are generated once, and packed with the real ones into a store that anything trains on."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import pandas as pd

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.readers.folder import COLUMNS, MANIFEST
from dgnet_platform.data.records import JUNK
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.config import GenerateConfig
from dgnet_platform.evaluation.generate import TABLE, generate
from dgnet_platform.runs.experiment import AnyExperiment, TaughtExperiment
from dgnet_platform.runs.provenance import training_digest
from dgnet_platform.storage.files import locked
from dgnet_platform.storage.serialize import to_dict


def offline_location(generator: AnyExperiment, store: Store) -> str:
    """Where the store with a run's pictures goes: by all that decides what it draws."""
    taught = [to_dict(generator.baseline), generator.teacher] if isinstance(generator, TaughtExperiment) else []
    values = [to_dict(generator.model), *taught, generator.hold_out, store.info.fingerprint, training_digest()]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return str(Path(generator.storage) / f"offline-{digest[:12]}")


def pack_offline(checkpoint: Path, location: str, classes: int, out: Path) -> None:
    """Make a store of a store's pictures and as many generated ones, each with the identity of its appearance.

    People who do not exist have none, person -1. Stopped, it resumes.

    Args:
        checkpoint: what draws.
        location: of the real pictures' store.
        classes: how many of its training identities the checkpoint was trained on. Generated pictures show these only,
            in structures of these only: others are held out.
        out: folder of the new store.
    """
    store, drawn, merged = Store.open(location), out.with_name(f".{out.name}.drawn"), out.with_name(f".{out.name}.all")
    with locked(out.with_name(f".{out.name}.lock.offline")):
        if not out.exists():
            generate(GenerateConfig(checkpoint=checkpoint, store=location, out=drawn, per_image=1), lambda *_: None)
            shutil.rmtree(merged, ignore_errors=True)
            rows = _real(store, merged) + _generated(drawn, merged, {JUNK, *store.info.classes[:classes]})
            with (merged / MANIFEST).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([COLUMNS, *rows])
            prepare(PrepareConfig(dataset="folder", source=merged, out=out, unlabelled=True))
        shutil.rmtree(merged, ignore_errors=True)
        shutil.rmtree(drawn, ignore_errors=True)


def _real(store: Store, folder: Path) -> list[tuple[str, int, int, str]]:
    """Write a store's pictures as files; returns the rows of a manifest."""
    rows: list[tuple[str, int, int, str]] = []
    for split in store.info.splits:
        (folder / "real" / split).mkdir(parents=True)
        for group in store.row_groups(split):
            for row in group.select(["image", "person_id", "camera_id", "file_name"]).to_pylist():
                path = f"real/{split}/{len(rows):08d}{Path(row['file_name']).suffix}"
                (folder / path).write_bytes(row["image"])
                rows.append((path, row["person_id"], row["camera_id"], split))
    return rows


def _generated(drawn: Path, folder: Path, known: set[int]) -> list[tuple[str, int, int, str]]:
    """Give generated pictures of known identities, or of none, a second name; returns the rows of a manifest."""
    rows: list[tuple[str, int, int, str]] = []
    for row in pd.read_parquet(drawn / TABLE).to_dict("records"):
        if row["person_id"] not in known or row["structure_person_id"] not in known:
            continue
        path = Path("generated") / row["path"]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(drawn / row["path"], folder / path)
        rows.append((path.as_posix(), row["person_id"], row["camera_id"], "train"))
    return rows
