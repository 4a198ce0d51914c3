"""Evaluation of trained networks on stores: retrieval figures, ranked lists, swaps.

Whatever can be wrong with stores and checkpoints is found before anything is extracted.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.features import Features, multi_query
from dgnet_core.ranking.reordering import Reordering, Unscaled
from dgnet_core.ranking.reranking import Reranking
from dgnet_core.ranking.retrieval import RetrievalResult, sweep_beta
from dgnet_platform.data.cache import cached
from dgnet_platform.data.readers import READERS
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.canonical import two_models
from dgnet_platform.evaluation.config import EvaluateConfig
from dgnet_platform.evaluation.extraction import Extraction, Progress, extract_on_workers, extract_splits
from dgnet_platform.evaluation.identity import failure_picture
from dgnet_platform.evaluation.pictures import ranked_picture, stored_pictures
from dgnet_platform.evaluation.results import Evaluation, EvaluationError
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

SWEEP = tuple(tenth / 10 for tenth in range(11))
"""Weights of f_fine in a sweep."""
TWO_MODELS = {"model A": 0.0, "model B": math.inf, "A and B": 1.0}
"""PN-GAN's rows: its model A on the pictures, model B on their renderings in canonical poses, both side by side."""


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


def evaluate(config: EvaluateConfig, progress: Progress) -> Evaluation:
    """Evaluate what `config` names.

    Raises:
        CheckpointError, StoreError, PoseError: a file is missing, damaged or foreign.
        EvaluationError: networks do not go together, a store has no query or gallery, a query has no match, features
            are not finite, the descriptors of another run are in the way, or workers cannot be had.
    """
    # Over 80 lines: read once from top to bottom; parts of it would hand each other its ten lists and networks.
    device = _device(config)
    stores = _named([_checked(location, config.distributed, progress) for location in config.store])
    people = {name: people_of(store) for name, store in stores.items()}
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

    networks = {model.name: model.network for model in models}
    splits = {
        name: [split for split in ("query", "gallery", "multi_query") if split in store.info.splits]
        for name, store in stores.items()
    }
    how = Extraction(
        height=size[0],
        width=size[1],
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
    retrieval: list[dict[str, object]] = []
    sweep: list[dict[str, object]] = []
    differences: list[dict[str, object]] = []
    queries: list[pd.DataFrame] = []
    swaps: list[dict[str, object]] = []
    extraction: list[dict[str, object]] = []
    pictures: dict[str, Image.Image] = {}
    for name, store in stores.items():
        report = _prefixed(name, progress)
        ranked: list[_Ranked] = []
        features: dict[str, dict[str, Features]] = {}
        if models:
            try:
                features, timing = extract(networks, store, splits[name], how, report)
            except ValueError as error:
                raise EvaluationError(str(error)) from error
            extraction.append({"store": name, **timing})
        for model in models:
            head = {"model": model.name, "trained_on": model.trained_on, "store": name}
            drawn = {"drawn": bool(store.info.origin)}
            rows, swept = _rank(features[model.name], config, model)
            ranked += rows
            retrieval += [head | row.head | row.result.summary() | row.result.intervals() | drawn for row in rows]
            sweep += [head | row | drawn for row in swept]
        differences += [{"store": name} | row for row in _differences(ranked)]
        queries += [_by_query(name, row) for row in ranked]
        if config.queries_shown and models:
            best = features[models[-1].name]
            pictures[f"ranked_{_slug(name)}.png"] = ranked_picture(
                name,
                best["query"],
                best["gallery"],
                partial(stored_pictures, store, "query"),
                partial(stored_pictures, store, "gallery"),
                list(models[-1].betas.values())[-1],
                config.queries_shown,
            )
        if trained is not None and trained.method.invent is not None:
            pictures[f"people_{_slug(name)}.png"] = invented_picture(trained, trained.source)
        if trained is not None and trained.method.draw is not None:
            title = f"{name}: swaps of {trained.source}"
            if config.swap_grid:
                pictures[f"swaps_{_slug(name)}.png"] = stored_grid(trained, store, people[name], title)
            if config.interpolations:
                for code, picture in interpolation_pictures(trained, store, f"{name}: {trained.source}").items():
                    pictures[f"interpolated_{code}_{_slug(name)}.png"] = picture
            if config.failures and models:
                judge = models[0].network
                assert isinstance(judge, DescriptorNetwork)  # an exported one draws nothing
                gallery = features[models[0].name]["gallery"]
                if (failures := failure_picture(trained, store, judge, gallery, title)) is not None:
                    pictures[f"failures_{_slug(name)}.png"] = failures
            if (drawn_people := people[name]) is not None and config.swap_pairs:
                rows = fidelity_rows(trained, store, drawn_people, config.swap_pairs, partial(report, "swaps"))
                swaps += [{"store": name} | row for row in rows]
    if trained is not None and config.export_release is not None:
        _export(trained, config.export_release)
    return Evaluation(
        source=source,
        drawn=any(store.info.origin for store in stores.values()),
        retrieval=pd.DataFrame(retrieval),
        sweep=pd.DataFrame(sweep),
        differences=pd.DataFrame(differences),
        queries=pd.concat(queries, ignore_index=True) if queries else pd.DataFrame(),
        swaps=pd.DataFrame(swaps),
        extraction=pd.DataFrame(extraction),
        pictures=pictures,
    )


# ------------------------------------------------------------------------------------------------------------
# Before: what is to be evaluated


def _device(config: EvaluateConfig) -> torch.device:
    """Where networks run in this process; workers have devices of their own."""
    if config.device == "cuda" and not config.distributed and not torch.cuda.is_available():
        raise EvaluationError("--device cuda: PyTorch finds no GPU on this machine; use --device cpu")
    return torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranked:
    """A row of the results table."""

    head: dict[str, object]
    """feature, beta, query, reranked and neighbours."""
    result: RetrievalResult

    @property
    def asked(self) -> tuple[object, object]:
        """How was ranked: rows that agree in it are compared."""
        return self.head["query"], self.head["reranked"]


def _rank(
    features: dict[str, Features], config: EvaluateConfig, model: _Model
) -> tuple[list[_Ranked], list[dict[str, object]]]:
    """Rows of the results table and of the sweep for one model on one store."""
    query, gallery = features["query"], features["gallery"]
    reranking = Reranking().within(len(query) + len(gallery)) if config.rerank else None
    rankings = (None, reranking) if reranking is not None else (None,)
    try:
        queries = {"single": query}
        if "multi_query" in features:
            queries["multi"] = multi_query(query, features["multi_query"])
        rows = [
            _Ranked(
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
                rows.append(_Ranked(head=head | {"reranked": False, "neighbours": None}, result=result))
        swept = sweep_beta(query, gallery, SWEEP) if config.sweep and "both" in model.betas else []
    except ValueError as error:
        raise EvaluationError(f"{model.name}: {error}") from error
    return rows, [{"feature": "both", "beta": result.beta, **result.summary()} for result in swept]


def _differences(ranked: Sequence[_Ranked]) -> list[dict[str, object]]:
    """Each row minus each earlier one that was ranked alike, paired by query."""
    rows: list[dict[str, object]] = []
    for earlier, later in combinations(ranked, 2):
        if earlier.asked != later.asked:
            continue
        row: dict[str, object] = {"feature": later.head["feature"], "minus": earlier.head["feature"]}
        row |= {name: later.head[name] for name in ("query", "reranked")}
        for figure, found in later.result.minus(earlier.result).items():
            row[figure] = found.value
            if found.interval is not None:
                row[f"{figure}_low"], row[f"{figure}_high"] = found.interval
            row[f"{figure}_verdict"] = found.verdict
        rows.append(row)
    return rows


def _by_query(store: str, row: _Ranked) -> pd.DataFrame:
    """What a row says of each query: what runs are compared by later."""
    figures = {name: values.numpy() for name, values in row.result.by_query().items()}
    return pd.DataFrame({"person_id": row.result.person_ids.numpy()} | figures).assign(
        **{"store": store} | {name: row.head[name] for name in ("feature", "query", "reranked")}
    )
