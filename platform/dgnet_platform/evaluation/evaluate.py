"""Evaluation of trained networks on stores: retrieval figures, ranked lists, swaps.

Whatever can be wrong with stores and checkpoints is found before anything is extracted.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.features import Features, multi_query
from dgnet_core.ranking.reordering import Reordering, Unscaled
from dgnet_core.ranking.reranking import Reranking
from dgnet_core.ranking.retrieval import SWEEP, sweep_beta
from dgnet_platform.compute.devices import own_device
from dgnet_platform.data.cache import cached
from dgnet_platform.data.people.people import People
from dgnet_platform.data.readers import READERS
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.canonical import two_models
from dgnet_platform.evaluation.config import EvaluateConfig
from dgnet_platform.evaluation.extraction import Extraction, Progress, extract_on_workers, extract_splits
from dgnet_platform.evaluation.identity import failure_picture
from dgnet_platform.evaluation.pictures import ranked_picture, stored_pictures
from dgnet_platform.evaluation.results import Evaluation, EvaluationError, Ranked, by_query, differences_of
from dgnet_platform.evaluation.swaps import (
    fidelity_rows,
    interpolation_pictures,
    invented_picture,
    people_of,
    stored_grid,
)
from dgnet_platform.runs.exported import ExportedNetwork
from dgnet_platform.runs.loading import TrainedNetworks, digest_of, open_teacher, open_trained
from dgnet_platform.storage.files import staging

TWO_MODELS = {"model A": 0.0, "model B": math.inf, "A and B": 1.0}
"""PN-GAN's rows: its model A on the pictures, model B on their renderings in canonical poses, both side by side."""
_Features = dict[str, dict[str, Features]]
"""Of a store, by model and split."""
_Extract = Callable[[Store, Progress], tuple[_Features, dict[str, float]]]
"""Gives a store's features, and how long that took."""
_Rows = defaultdict[str, list[dict[str, object]]]
"""Rows of the tables of an `Evaluation` by its field."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Model:
    """One thing that extracts features."""

    name: str
    network: DescriptorNetwork | ExportedNetwork
    trained_on: str
    betas: Mapping[str, float]
    """Weight of f_fine by descriptor, the best last."""
    reordering: Reordering | None = None
    """A second stage that puts the nearest in another order, for a row of its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Subject:
    """What is evaluated."""

    models: Sequence[_Model]
    """What extracts features, in the order of the tables' rows."""
    trained: TrainedNetworks | None
    """What draws; None: a teacher alone, or an exported file."""
    source: str
    """What it is, for people."""
    height: int
    """Of its images, in pixels."""
    width: int


def evaluate(config: EvaluateConfig, progress: Progress) -> Evaluation:
    """Evaluate what `config` names.

    Raises:
        CheckpointError, StoreError, PoseError: a file is missing, damaged or foreign.
        EvaluationError: networks do not go together, a store has no query or gallery, a query has no match, features
            are not finite, the descriptors of another run are in the way, or workers cannot be had.
    """
    device = _device(config)
    stores = _named([_checked(location, config.distributed, progress) for location in config.store])
    people = {name: people_of(store) for name, store in stores.items()}
    subject = _subject(config, stores, device)
    trained, extract = subject.trained, _extracting(config, subject, device)
    rows: _Rows = defaultdict(list)
    queries: list[pd.DataFrame] = []
    pictures: dict[str, Image.Image] = {}
    for name, store in stores.items():
        report = _prefixed(name, progress)
        features: _Features = {}
        if subject.models:
            try:
                features, timing = extract(store, report)
            except ValueError as error:
                raise EvaluationError(str(error)) from error
            rows["extraction"].append({"store": name, **timing})
            ranked = _rank_store(config, subject.models, name, store, features, rows)
            queries += [by_query(name, row) for row in ranked]
            if config.queries_shown:
                pictures[f"ranked_{_slug(name)}.png"] = _ranked_lists(config, subject.models[-1], name, store, features)
        pictures |= _drawn(config, subject, name, store, people[name], features)
        drawn_people = people[name]
        if trained is not None and trained.method.draw is not None and drawn_people is not None and config.swap_pairs:
            found = fidelity_rows(trained, store, drawn_people, config.swap_pairs, partial(report, "swaps"))
            rows["swaps"] += [{"store": name} | row for row in found]
    if trained is not None and config.export_release is not None:
        _export(trained, config.export_release)
    return Evaluation(
        source=subject.source,
        drawn=any(store.info.origin for store in stores.values()),
        retrieval=pd.DataFrame(rows["retrieval"]),
        sweep=pd.DataFrame(rows["sweep"]),
        differences=pd.DataFrame(rows["differences"]),
        queries=pd.concat(queries, ignore_index=True) if queries else pd.DataFrame(),
        swaps=pd.DataFrame(rows["swaps"]),
        extraction=pd.DataFrame(rows["extraction"]),
        pictures=pictures,
    )


def _rank_store(
    config: EvaluateConfig, models: Sequence[_Model], name: str, store: Store, features: _Features, rows: _Rows
) -> list[Ranked]:
    """Rank one store by each model; adds the rows of the tables."""
    ranked: list[Ranked] = []
    drawn = {"drawn": bool(store.info.origin)}
    for model in models:
        head = {"model": model.name, "trained_on": model.trained_on, "store": name}
        found, swept = _rank(features[model.name], config, model)
        ranked += found
        rows["retrieval"] += [head | row.head | row.result.summary() | row.result.intervals() | drawn for row in found]
        rows["sweep"] += [head | row | drawn for row in swept]
    rows["differences"] += [{"store": name} | row for row in differences_of(ranked)]
    return ranked


def _ranked_lists(config: EvaluateConfig, model: _Model, name: str, store: Store, features: _Features) -> Image.Image:
    """Ranked lists of some queries by a model's best descriptor."""
    sides = features[model.name]["query"], features[model.name]["gallery"]
    pictures = partial(stored_pictures, store, "query"), partial(stored_pictures, store, "gallery")
    return ranked_picture(name, *sides, *pictures, list(model.betas.values())[-1], config.queries_shown)


def _drawn(
    config: EvaluateConfig, subject: _Subject, name: str, store: Store, people: People | None, features: _Features
) -> dict[str, Image.Image]:
    """Pictures of people whom the networks draw, by file name."""
    trained, slug = subject.trained, _slug(name)
    pictures: dict[str, Image.Image] = {}
    if trained is not None and trained.method.invent is not None:
        pictures[f"people_{slug}.png"] = invented_picture(trained, trained.source)
    if trained is None or trained.method.draw is None:
        return pictures
    title = f"{name}: swaps of {trained.source}"
    if config.swap_grid:
        pictures[f"swaps_{slug}.png"] = stored_grid(trained, store, people, title)
    if config.interpolations:
        for code, picture in interpolation_pictures(trained, store, f"{name}: {trained.source}").items():
            pictures[f"interpolated_{code}_{slug}.png"] = picture
    if config.failures and subject.models:
        judge = subject.models[0]
        assert isinstance(judge.network, DescriptorNetwork)  # an exported one draws nothing
        failures = failure_picture(trained, store, judge.network, features[judge.name]["gallery"], title)
        if failures is not None:
            pictures[f"failures_{slug}.png"] = failures
    return pictures


# ------------------------------------------------------------------------------------------------------------
# Before: what is to be evaluated


def _subject(config: EvaluateConfig, stores: Mapping[str, Store], device: torch.device) -> _Subject:
    """What `config` names, opened and checked."""
    models: list[_Model] = []
    trained: TrainedNetworks | None = None
    source, size = "", (256, 128)
    if config.teacher is not None and config.rendered_teacher is None:
        baseline = open_teacher(config.teacher, device)
        models += _models(baseline, stores, config)
        source, size = f"teacher {config.teacher.name}", (baseline.network.height, baseline.network.width)
    if config.checkpoint is not None and config.exported:
        exported = ExportedNetwork(config.checkpoint, device)
        name, origin = exported.about["method"], _origin(exported, stores)
        models.append(_Model(name=name, network=exported, trained_on=origin, betas={"descriptor": 0.0}))
        source, size = exported.source, (exported.height, exported.width)
    elif config.checkpoint is not None:
        trained = open_trained(config.checkpoint, device)
        if config.export_release is not None:
            _check_export(trained, config.export_release)
        models += _models(trained, stores, config)
        if config.teacher is not None and config.rendered_teacher is not None:
            own = next(iter(stores.values()))
            network = two_models(trained, config.teacher, config.rendered_teacher, own, device)
            models.append(_Model(name="PN-GAN", network=network, trained_on=_origin(trained, stores), betas=TWO_MODELS))
        source, size = trained.source, (trained.network.height, trained.network.width)
    return _Subject(models=models, trained=trained, source=source, height=size[0], width=size[1])


def _extracting(config: EvaluateConfig, subject: _Subject, device: torch.device) -> _Extract:
    """What extracts the features of a store, here or on workers."""
    networks = {model.name: model.network for model in subject.models}
    how = Extraction(
        height=subject.height,
        width=subject.width,
        batch_size=config.batch_size,
        precision=config.precision,
        device=device,
        threads=config.threads,
    )
    extract = extract_splits
    if config.distributed:
        names = "teacher", "checkpoint", "rendered_teacher"
        given = {name: path for name in names if (path := getattr(config, name)) is not None}
        extract = partial(
            extract_on_workers,
            folder=config.descriptors,
            settings={name: digest_of(path) for name, path in given.items()},
            workers=config.workers,
            gpus={"auto": None, "cpu": False, "cuda": True}[config.device],
        )

    def extract_store(store: Store, report: Progress) -> tuple[_Features, dict[str, float]]:
        splits = [split for split in ("query", "gallery", "multi_query") if split in store.info.splits]
        return extract(networks, store, splits, how, report)

    return extract_store


def _device(config: EvaluateConfig) -> torch.device:
    """Where networks run in this process; workers have devices of their own."""
    if config.device == "cuda" and not config.distributed and not torch.cuda.is_available():
        raise EvaluationError("--device cuda: PyTorch finds no GPU on this machine; use --device cpu")
    return own_device(gpu=config.device != "cpu")


def _check_export(trained: TrainedNetworks, folder: Path) -> None:
    """Refuse to export networks of which no authors' files are known, or into a folder that holds anything."""
    if trained.method.export is None:
        raise EvaluationError(f"--export-release: no authors' files of {trained.method.title} are known: leave it out")
    network = trained.config.network
    if isinstance(network, NetworkConfig) and (network.pooling, network.neck) != ("release", "release"):
        raise EvaluationError(
            f"--export-release: {trained.source} has pooling {network.pooling} and neck {network.neck}, which the"
            " authors' networks have not: leave it out"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EvaluationError(f"--export-release {folder} is not empty: name a new folder")


def _export(trained: TrainedNetworks, out: Path) -> None:
    """Write networks as their authors do, all files or none."""
    assert trained.method.export is not None
    with staging(out) as folder:
        trained.method.export(trained.state, folder)


def _checked(location: str, distributed: bool, progress: Progress) -> Store:
    """A store whose queries can all be answered: on this machine, unless workers on others read it where it is."""
    store = Store.open(location)
    for split in ("query", "gallery"):
        if split not in store.info.splits:
            raise EvaluationError(f"{location} has no {split}, only {', '.join(store.info.splits)}: name another store")
    store = store if distributed else cached(store, partial(progress, f"{location}: bytes"))
    query, gallery = store.index("query"), store.index("gallery")
    seen_by: defaultdict[int, set[int]] = defaultdict(set)
    for person, camera in zip(gallery["person_id"], gallery["camera_id"], strict=True):
        seen_by[person].add(camera)
    lost = query[
        [not seen_by[person] - {camera} for person, camera in zip(query["person_id"], query["camera_id"], strict=True)]
    ]
    if len(lost):
        first = lost.iloc[0]
        raise EvaluationError(
            f"{location}: query {first['file_name']} shows person {first['person_id']}, whom no other camera"
            f" saw in the gallery ({len(lost):,} such queries): prepare it again without them"
        )
    return store


def _named(stores: Sequence[Store]) -> dict[str, Store]:
    """Stores by a name for tables: the data set's, and the folder's where that is not enough."""
    titles = [_title(store.info.dataset) for store in stores]
    named: dict[str, Store] = {}
    for title, store in zip(titles, stores, strict=True):
        folder = store.location.rstrip("/").rpartition("/")[2]
        name = title if titles.count(title) == 1 else f"{title} ({folder})"
        if store.info.dataset == "folder":
            name = folder
        named[name if name not in named else f"{title} ({store.location})"] = store
    return named


def _models(trained: TrainedNetworks, stores: Mapping[str, Store], config: EvaluateConfig) -> list[_Model]:
    """The network that describes, if there is one."""
    method = trained.method
    if method.describe is None:
        return []
    features = method.features(trained.config, trained.state.iteration)
    betas = {f"f_{name}" if name in ("prim", "fine") else name: beta for name, beta in features.items()}
    if list(betas.values()) == [0.0] and "f_prim" not in betas:
        betas = {method.title: 0.0}
    if "both" in betas and config.beta is not None:
        betas["both"] = config.beta
    network, reordering = method.describe(trained.state), None
    if method.verify is not None:
        network, reordering = Unscaled(network), Reordering(compare=method.verify(trained.state))
    origin = _origin(trained, stores)
    return [_Model(name=method.title, network=network, trained_on=origin, betas=betas, reordering=reordering)]


def _origin(trained: TrainedNetworks | ExportedNetwork, stores: Mapping[str, Store]) -> str:
    """What networks were trained on, by the name of the store if it is one of these."""
    here = [name for name, store in stores.items() if store.info.fingerprint == trained.fingerprint]
    return here[0] if here else _title(trained.dataset) if trained.dataset else "unknown"


def _title(dataset: str) -> str:
    """A data set's name as its authors write it."""
    titles = {str(name): reader.title for name, reader in READERS.items()}
    return titles.get(dataset, dataset)


def _prefixed(name: str, progress: Progress) -> Progress:
    """Progress of one store."""
    return lambda what, done, total: progress(f"{name}: {what}", done, total)


def _slug(name: str) -> str:
    """A name as part of a file's."""
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


# ------------------------------------------------------------------------------------------------------------
# Ranking


def _rank(
    features: dict[str, Features], config: EvaluateConfig, model: _Model
) -> tuple[list[Ranked], list[dict[str, object]]]:
    """Rows of the results table and of the sweep for one model on one store."""
    query, gallery = features["query"], features["gallery"]
    reranking = Reranking().within(len(query) + len(gallery)) if config.rerank else None
    rankings = (None, reranking) if reranking is not None else (None,)
    try:
        queries = {"single": query}
        if "multi_query" in features:
            queries["multi"] = multi_query(query, features["multi_query"])
        rows = [
            Ranked(
                head={
                    "feature": feature,
                    "beta": result.beta if feature == "both" else None,
                    "query": mode,
                    "reranked": reranking is not None,
                    "neighbours": reranking.k1 if reranking is not None else None,
                },
                result=result,
            )
            for mode, asked in queries.items()
            for reranking in rankings
            for feature, result in zip(
                model.betas,
                sweep_beta(asked, gallery, list(model.betas.values()), reranking=reranking),
                strict=True,
            )
        ]
        if model.reordering is not None:
            for mode, asked in queries.items():
                (result,) = sweep_beta(asked, gallery, [0.0], reranking=model.reordering)
                head = {"feature": f"{model.name} verified", "beta": None, "query": mode}
                rows.append(Ranked(head=head | {"reranked": False, "neighbours": None}, result=result))
        swept = sweep_beta(query, gallery, SWEEP) if config.sweep and "both" in model.betas else []
    except ValueError as error:
        raise EvaluationError(f"{model.name}: {error}") from error
    return rows, [{"feature": "both", "beta": result.beta, **result.summary()} for result in swept]
