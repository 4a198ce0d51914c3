"""Whose identity generated people keep: ranks of both sources, and the swaps that keep it best and worst."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgnet_core.generation.grids import tile, to_pixels
from dgnet_core.generation.people import identity_ranks
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.extraction import BATCH_SIZE, extract
from dgnet_core.ranking.features import Features
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.judges import DESCRIPTOR, PICTURES, TEACHER
from dgnet_platform.evaluation.measured import GENERATED
from dgnet_platform.evaluation.picture_sets import SOURCES, PictureSet
from dgnet_platform.evaluation.pictures import captioned_grids, stored_pictures
from dgnet_platform.runs.loading import TrainedNetworks

SHOWN = 8
"""Swaps in each half of the picture of the best and the worst."""
JUDGED = 128
"""Swaps that it is chosen from, where they are drawn for it."""


def identity_rows(
    features: Mapping[str, Mapping[str, Tensor]],
    descriptors: np.ndarray | None,
    rows: np.ndarray,
    generated: PictureSet,
    real: PictureSet,
) -> tuple[list[dict[str, object]], Tensor | None]:
    """Rows of the table of identities, and the appearance's rank for each generated picture."""
    kind = f"{TEACHER}.{DESCRIPTOR}"
    if kind not in features["real"]:
        return [], None
    place = {name: row for row, name in enumerate(real.index["file_name"])}
    columns = [[place.get(name, -1) for name in generated.index[column]] for column in SOURCES]
    left_out = torch.tensor(columns).T
    gallery_ids = torch.from_numpy(real.index["person_id"].to_numpy(np.int64, copy=True))
    ids = [torch.from_numpy(generated.index[c].to_numpy(np.int64, copy=True)) for c in ("person_id", "structure_id")]
    queries = {GENERATED: (features[GENERATED][kind], torch.arange(len(generated)))}
    if descriptors is not None:
        for picture, own in zip(PICTURES[1:], descriptors[1:], strict=True):
            queries[picture] = torch.from_numpy(own), torch.from_numpy(rows)
    table: list[dict[str, object]] = []
    of_generated: Tensor | None = None
    for picture, (own, asked) in queries.items():
        row: dict[str, object] = {"picture": picture, "pictures": len(asked)}
        for name, wanted in zip(SOURCES, ids, strict=True):
            ranks = identity_ranks(own, features["real"][kind], gallery_ids, wanted[asked], left_out[asked])
            if name == SOURCES[0] and picture == GENERATED:
                of_generated = ranks
            ranks = ranks[ranks > 0].double()  # of the others, the store has no second picture
            row[f"{name}_rank1"] = float((ranks == 1).double().mean()) if len(ranks) else float("nan")
            row[f"{name}_median"] = float(ranks.median()) if len(ranks) else float("nan")
        table.append({**row, "identities": len(gallery_ids.unique())})
    return table, of_generated


def best_and_worst(generated: PictureSet, real: PictureSet, ranks: Tensor | None, title: str) -> Image.Image:
    """Swaps that keep the appearance's identity best and worst (the paper's Figure 7): sources above the generated."""
    halves = {"generated": np.arange(min(2 * SHOWN, len(generated)))} if ranks is None else _halves(ranks)
    size = generated.size
    assert size is not None
    place = {name: row for row, name in enumerate(real.index["file_name"])}
    first_of = {person: row for row, person in reversed(list(enumerate(real.index["person_id"])))}
    grids = []
    for caption, rows in halves.items():
        shown = generated.index.iloc[rows]
        cells = [
            real.decode([place.get(n, first_of.get(p, 0)) for n, p in zip(shown[c], shown[i], strict=True)], size)
            for c, i in zip(SOURCES, ("person_id", "structure_id"), strict=True)
            if shown[i].isin(list(first_of)).any()  # else no person who exists is shown
        ]
        grids.append((caption, tile(torch.stack([*cells, generated.decode(rows)]), wide_rows=(len(cells),)).numpy()))
    return captioned_grids(f"{title}: appearance, structure, generated", grids, cell_height=size[0])


def failure_picture(
    trained: TrainedNetworks, store: Store, judge: DescriptorNetwork, gallery: Features, title: str
) -> Image.Image | None:
    """The same of swaps among a store's gallery, the same ones in every call; None: no identity there has two
    pictures.

    Args:
        trained: what draws them.
        store: with the gallery.
        judge: ranks identities by its f_prim.
        gallery: what it extracted of the gallery.
        title: above the picture.
    """
    index = store.index("gallery")
    people = index["person_id"]
    several = np.flatnonzero((people > 0) & people.duplicated(keep=False))
    if people.iloc[several].nunique() < 2:
        return None
    rng = np.random.default_rng(0)
    i = rng.permutation(several)[:JUDGED]
    j = np.array([rng.choice(several[people.iloc[several] != people.iloc[row]]) for row in i])
    size = trained.network.height, trained.network.width
    pixels = dict(zip(rows := np.unique([i, j]).tolist(), stored_pictures(store, "gallery", rows), strict=True))
    appearance, structure = (trained.images([pixels[row] for row in own]) for own in (i.tolist(), j.tolist()))
    targets = trained.joints(store, "gallery", index.iloc[j])
    targets = structure if targets is None else targets
    pairs = zip(appearance.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True)
    drawn = torch.cat([to_pixels(trained.draw(*pair)) for pair in pairs])

    ids = torch.from_numpy(people.to_numpy(np.int64, copy=True))
    found = extract(judge, drawn, ids[i], ids[i], height=size[0], width=size[1]).prim.cpu()
    known = (ids > 0).nonzero()[:, 0]  # neither distractors nor junk
    sources = torch.searchsorted(known, torch.from_numpy(np.stack([i, j], axis=1)))
    ranks = identity_ranks(found, gallery.prim.cpu()[known], ids[known], ids[i], sources)
    shown = torch.stack([to_pixels(appearance), to_pixels(structure), drawn])
    grids = [(caption, tile(shown[:, rows], wide_rows=(2,)).numpy()) for caption, rows in _halves(ranks).items()]
    return captioned_grids(f"{title}: appearance, structure, generated", grids, cell_height=size[0])


def _halves(ranks: Tensor) -> dict[str, np.ndarray]:
    """Rows of the best and of the worst ranks, the worst last, by their captions; 0 is no rank."""
    ranked = torch.where(ranks > 0, ranks, ranks.max() + 1).argsort(stable=True).numpy()
    count = min(SHOWN, -(-len(ranked) // 2))
    worst = [row for row in ranked[::-1] if ranks[int(row)] > 0][:count]
    halves = {
        f"identity kept, rank {_span(ranks, ranked[:count])}": ranked[:count],
        f"identity lost, rank {_span(ranks, worst)}": np.array(worst[::-1], dtype=np.int64),
    }
    return {caption: rows for caption, rows in halves.items() if len(rows)}


def _span(ranks: Tensor, rows: Sequence[int] | np.ndarray) -> str:
    """The ranks of some pictures, in words."""
    found = ranks[torch.from_numpy(np.array(rows, dtype=np.int64))]
    if not len(found):
        return "unknown"
    low, high = int(found.min()), int(found.max())
    return str(low) if low == high else f"{low} to {high}"
