"""What a search comes down to before anything of it runs: its options, checked, its name and its identity."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_platform.data.held_out import check_held_out
from dgnet_platform.data.pose_files import PoseError
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.evaluation.swaps import people_of
from dgnet_platform.runs.experiment import DGNetExperiment
from dgnet_platform.runs.loading import digest_of, keypoints_of
from dgnet_platform.runs.presets import Preset
from dgnet_platform.runs.run import STOP, folder_of
from dgnet_platform.runs.tracking_uri import default_uri
from dgnet_platform.search.config import SearchConfig
from dgnet_platform.search.siblings import Sibling
from dgnet_platform.search.space import Space, Value
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.plan import check_learns, check_shares


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search comes down to; nothing is changed by making one."""

    name: str
    folder: Path
    base: DGNetExperiment
    """What all trials have in common; its model is the first trial's."""
    space: Space
    config: SearchConfig
    store: Store
    preset: Preset
    """Where the base's settings come from."""
    teacher: Path | None
    teacher_digest: str | None
    identity: Mapping[str, Any]
    """All that decides its results."""
    distances: tuple[int, ...]
    """Of the rungs from each trial's own ramp end."""

    @property
    def tracking_uri(self) -> str:
        """MLflow's store or server."""
        return self.base.tracking_uri or default_uri(self.base.storage)

    @property
    def stop_file(self) -> Path:
        """A file that asks all trials to save and stop."""
        return self.folder / STOP

    @property
    def control(self) -> Sibling | None:
        """The run that trials are judged by: the base's, whose re-id heads never see a generated picture. Until its
        warm-up start it is what trials share, and then the ablation's baseline. None: no trial is judged by it."""
        if not self.config.stopping.needs_control:
            return None
        model = self.base.model
        return Sibling(name="control", model=replace(model, recipe=replace(model.recipe, online_feeding=False)))

    def sibling_folder(self, sibling: Sibling) -> Path:
        """Of a run beside the study's trials."""
        return folder_of(self.base.storage, f"{self.name}-{sibling.name}")

    def sibling_folders(self) -> list[Path]:
        """Of the runs beside the trials that have begun."""
        named = re.compile(rf"{re.escape(self.name)}-(control|\d+-seed-\d+)")
        return sorted(path for path in self.folder.parent.glob(f"{self.name}-*/") if named.fullmatch(path.name))

    def trial_folder(self, number: int) -> Path:
        """Of a trial's run."""
        return folder_of(self.base.storage, f"{self.name}-{number:03d}")

    def model(self, values: Mapping[str, Value]) -> DGNetConfig:
        """What a trial trains with values of the space."""
        return self.space.apply(self.base.model, values)


def plan_search(
    base: DGNetExperiment,
    space: Space,
    config: SearchConfig,
    *,
    name: str = "",
    preset: Preset = "laptop",
    teacher: Path | None,
    store: Store | None = None,
) -> SearchPlan:
    """Find out what a search comes down to.

    Args:
        base: what all trials have in common, on a store that exists.
        space: what is searched.
        config: how.
        name: of the search; none: made of the data set and a hash of all that decides the results.
        preset: where the base's settings come from.
        teacher: the teacher's checkpoint.
        store: the base's, if it is open.

    Raises:
        ExperimentError, SpaceError, StoreError, CheckpointError: it cannot be run as asked.
    """
    check_base(base, config)
    store = store or Store.open(base.data)
    if config.second == "swap" and people_of(store) is None:
        raise ExperimentError(
            f"--second swap: the true swaps of the pictures in {store.location} are not known, only those of drawn"
            " people: use --second reconstruction"
        )
    distances = space.distances(base.model, config.stopping, base.evaluate_every)
    for partners in space.values("partners"):
        try:
            keypoints_of(store, replace(base.model, partners=partners))
        except PoseError as error:
            remedy = "leave it out, such as by --set 'partners={choices: [uniform, rare_camera]}'"
            raise ExperimentError(f"partners = {partners}: {error}, or {remedy}") from None
    digest = digest_of(teacher) if teacher else None
    identity = {
        "dataset": store.info.dataset,
        "fingerprint": store.info.fingerprint,
        "teacher": digest,
        "model": to_dict(base.model),
        "space": dict(space.dimensions),
        "stopping": to_dict(config.stopping),
        "objectives": list(config.objectives),
        "seed": config.seed,
    }
    if base.model.batch_norm != "synchronised":
        identity["ranks"] = max(1, config.workers_per_trial)
    if config.warm_start:
        identity["warm_start"] = list(config.warm_start)
    hashed = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    name = name or f"{store.info.dataset}-search-{hashed}"
    return SearchPlan(
        name=name,
        folder=folder_of(base.storage, name),
        base=base,
        space=space,
        config=config,
        store=store,
        preset=preset,
        teacher=teacher,
        teacher_digest=digest,
        identity=identity,
        distances=distances,
    )


def check_compared(base: DGNetExperiment) -> None:
    """Refuse data on which trials cannot be compared; raises ExperimentError. Drawn people always can."""
    if base.data:
        check_held_out(Store.open(base.data), "a search compares trials on such identities: name data that has them")


def check_base(base: DGNetExperiment, config: SearchConfig) -> None:
    """Refuse what no trial could learn from; raises ExperimentError. It asks for no teacher, which may be untrained."""
    if not base.hold_out:
        raise ExperimentError("--no-hold-out: trials are compared on held-out identities, a search needs them")
    check_learns(base.model)
    workers = config.workers_per_trial
    check_shares(base.model, range(workers, workers + 1), f"--workers-per-trial {workers}")
