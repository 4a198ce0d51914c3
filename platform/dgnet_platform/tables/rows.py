"""The paper's tables as data: a row is an experiment, which a function makes from the run of the paper.

A new row is a label and such a function (`changes.py`), a new table a function in `tables_of`. Rows that come to the
same experiment share its runs, within a table and between tables.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from dgnet_core.dgnet.config import SoftLabel
from dgnet_core.networks.config import StructureInput
from dgnet_platform.errors import UserError
from dgnet_platform.tables.changes import (
    Change,
    baseline,
    fed,
    fine_weight,
    full,
    labelled,
    lsgan,
    partnered,
    silent_code,
    structure_from,
    warm_until,
    without_feeding,
    without_generated_identity,
    without_identity,
)
from dgnet_platform.tables.config import TableName

Published = Mapping[str, tuple[float | None, float]]
"""Rank@1 and mAP in percent by data set, as published."""


class RowsError(UserError):
    """A row that no table has; the message names it and those that there are."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table."""

    label: str
    change: Change | None = None
    """None: nothing is trained, the row is published figures alone."""
    generator: Change | None = None
    """Whose pictures the row trains on beside the real ones, drawn once that is trained; None: the real ones alone."""
    feature: str = "both"
    """By which descriptor of the trained networks is ranked: both, f_prim, f_fine, or baseline for a teacher."""
    beta: float | None = None
    """Of a table of held-out identities: the weight of f_fine; None: 0.5."""
    note: str = ""
    """What has to be known to read it."""
    published: Published = field(default_factory=dict)
    source: str = ""
    """Where the published figures stand: publication, and table and row as far as they are known."""
    trained_on: str = ""
    """Location of the store; none: the command's --data."""
    tested_on: str = ""
    """The same, where query and gallery come from."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper, or one in its manner."""

    name: TableName
    title: str
    rows: tuple[Row, ...]
    reference: str = ""
    """Label of the row that others are compared with, seed by seed and query by query; none: nothing is compared."""
    held_out: bool = False
    """Runs keep identities out of training, and are compared on them: for settings that are chosen by the figures."""
    swaps: bool = False
    """Swaps of drawn people are compared as well."""


# ----------------------------------------------------------------------------------------------------------------
# The tables

PAPER = "Zheng et al., CVPR 2019"
ABLATION = f"{PAPER}, table of baseline, f_prim, f_fine and both"
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
BETAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
STARTS = (0.1, 0.2, 0.3, 0.5, 0.7)


def ablation() -> Table:
    """What each part of the method brings."""
    return Table(
        name="ablation",
        title="Ablation: what each part brings",
        reference="both",
        rows=(
            Row(
                label="baseline", change=baseline, feature="baseline", source=f"{ABLATION}, row baseline",
                published={"market1501": (89.6, 74.5), "dukemtmc-reid": (82.0, 65.3), "msmt17": (68.8, 36.2)},
            ),
            Row(
                label="f_prim", change=full, feature="f_prim", source=f"{ABLATION}, row f_prim",
                published={"market1501": (94.0, 84.4), "dukemtmc-reid": (85.6, 72.7), "msmt17": (76.0, 49.7)},
            ),
            Row(
                label="f_fine", change=full, feature="f_fine", source=f"{ABLATION}, row f_fine",
                published={"market1501": (91.6, 75.3), "dukemtmc-reid": (78.7, 61.2), "msmt17": (71.5, 43.5)},
            ),
            Row(label="both", change=full, source=f"{ABLATION}, row f_prim, f_fine", published=OURS),
            Row(
                label="without online feeding", change=without_feeding, feature="f_prim",
                note="f_prim: nothing trains f_fine without fed pictures",
            ),
            Row(label="without identity loss on generated", change=without_generated_identity),
            Row(
                label="without Eq. 3 and 6", change=without_identity,
                note="no identity loss on real and generated pictures, while L_prim and L_fine stay; by the paper's"
                " equations: the release's detached appearance code would leave the appearance encoder without any"
                " gradient until the warm-up",
            ),
            Row(
                label="offline feeding", change=baseline, feature="baseline", generator=without_feeding,
                published={"market1501": (None, 84.4)}, source=f"{PAPER}, offline against online generation",
                note="the baseline on real pictures and as many that the run without online feeding has drawn, one of"
                " each appearance, with its owner's label; as many iterations as the baseline",
            ),
            Row(
                label="without teacher", change=labelled("appearance"),
                note="L_prim with the label of the appearance's owner; a preset that starts the trunk from the"
                " teacher still does",
            ),
        ),
    )  # fmt: skip


def labels() -> Table:
    """What labels generated pictures get in L_prim."""
    styles: dict[SoftLabel, tuple[str, str]] = {
        "dynamic": ("dynamic soft labels", "the teacher's softmax (paper)"),
        "pseudo": ("hard pseudo labels", "the teacher's first guess"),
        "appearance": ("appearance's owner", "its identity as a hard label"),
        "uniform": ("uniform (LSRO)", "the same probability for all identities"),
        "two_label": ("two labels", "half appearance's owner, half structure's"),
        "owners": ("two owners, by the teacher", "its probabilities of the two, scaled to sum 1 (release)"),
        "none": ("no L_prim", "L_fine alone feeds generated pictures"),
    }
    rows = [Row(label=label, change=labelled(style), note=note) for style, (label, note) in styles.items()]
    return Table(name="labels", title="Labels of generated pictures", reference="dynamic soft labels", rows=tuple(rows))


def transfer(stores: Mapping[str, str]) -> Table:
    """Trained on one data set, tested on another.

    Args:
        stores: names of data sets by the location of their stores.
    """
    rows = [
        Row(
            label=f"{name} -> {other}",
            change=full,
            trained_on=location,
            tested_on=elsewhere,
            published={other: TRANSFER[name, other]} if (name, other) in TRANSFER else {},
            source=f"README of NVlabs/DG-Net, direct transfer, {name} to {other}" if (name, other) in TRANSFER else "",
        )
        for location, name in stores.items()
        for elsewhere, other in stores.items()
        if location != elsewhere
    ]
    return Table(name="transfer", title="Direct transfer", rows=tuple(rows))


def sensitivity() -> Table:
    """alpha = lambda_fine / lambda_prim, and beta of the descriptor, on held-out identities (paper, Figure 8)."""
    alphas = [Row(label=f"alpha {alpha:g}, beta 0.5", change=fine_weight(alpha), beta=0.5) for alpha in ALPHAS]
    betas = [
        Row(label=f"alpha 0.2, beta {beta:g}", change=fine_weight(0.2), beta=beta) for beta in BETAS if beta != 0.5
    ]
    return Table(
        name="sensitivity", title="Sensitivity to alpha and beta, on held-out identities (Figure 8)",
        reference="alpha 0.2, beta 0.5", rows=(*alphas, *betas), held_out=True,
    )  # fmt: skip


def warmup() -> Table:
    """When generated pictures begin to feed the heads."""
    rows = [Row(label=f"from {share:.0%} of the run", change=warm_until(share)) for share in STARTS]
    return Table(
        name="warmup", title="When to start feeding generated pictures", reference="from 30% of the run",
        rows=tuple(rows),
    )  # fmt: skip


def structure() -> Table:
    """What tells the decoder of clothes: how much of their lightness the structure encoder reads, and whether the
    appearance code teaches it."""
    inputs: dict[str, StructureInput] = {"gray": "gray", "local contrast": "contrast"}
    rows = [
        Row(label=f"{label}{', negatives' if negatives else ''}", change=structure_from(read, negatives=negatives))
        for label, read in inputs.items()
        for negatives in (False, True)
    ]
    rows.append(Row(label="Eq. 4 teaches nothing", change=silent_code, note="as in the release"))
    return Table(
        name="structure", title="What tells the decoder of clothes", reference="local contrast", rows=tuple(rows),
        swaps=True,
    )  # fmt: skip


def generators() -> Table:
    """What pictures of a compared generator bring the baseline; jobs/compare_generators.py makes Table 2."""
    return Table(
        name="generators",
        title="The baseline on pictures of a compared generator",
        reference="baseline",
        rows=(
            Row(label="baseline", change=baseline, feature="baseline"),
            Row(
                label="LSGAN, uniform labels", change=baseline, feature="baseline", generator=lsgan,
                note="LSRO (Zheng et al., ICCV 2017): the baseline on real pictures and as many of people who do not"
                " exist, who get the same probability for all identities; as many iterations as the baseline",
            ),
        ),
    )  # fmt: skip


def state_of_the_art() -> Table:
    """Published figures, and ours."""
    return Table(
        name="state_of_the_art",
        title="State of the art",
        rows=(
            Row(
                label="PN-GAN", source=f"Qian et al., ECCV 2018, as in {PAPER}, Table 7, row PN-GAN",
                published={"market1501": (89.4, 72.6), "dukemtmc-reid": (73.6, 53.2)},
            ),
            Row(
                label="FD-GAN", source="Ge et al., NeurIPS 2018",
                published={"market1501": (90.5, 77.7), "dukemtmc-reid": (80.0, 64.5)},
            ),
            Row(label="DG-Net", source=f"{PAPER}, tables of comparison, row DG-Net", published=OURS),
            Row(label="ours", change=full),
        ),
    )  # fmt: skip


def strong(*, posed: bool) -> Table:
    """Whether generated people help, and which: of a preset strong or strong-laptop, on a strong baseline.

    Args:
        posed: the store has key points, which the row of rare poses needs.
    """
    rare_poses = Row(
        label="structures of rare poses", change=partnered("rare_pose"),
        note="batch b, whose images give structures, by one over the pictures of its camera and facing",
    )  # fmt: skip
    return Table(
        name="strong",
        title="Generated people on this preset's baseline",
        reference="without online feeding",
        rows=(
            Row(label="baseline", change=baseline, feature="baseline"),
            Row(
                label="without online feeding", change=without_feeding, feature="f_prim",
                note="f_prim: nothing trains f_fine without fed pictures",
            ),
            Row(label="with, f_prim", change=full, feature="f_prim"),
            Row(label="with", change=full),
            Row(
                label="confident pictures only", change=fed(confidence="filter"),
                note="the teacher's largest probability is at least feed.least_confidence",
            ),
            Row(
                label="weighted by confidence", change=fed(confidence="weight"),
                note="by the teacher's largest probability",
            ),
            Row(label="two pictures a structure", change=fed(pictures=2)),
            Row(label="share from 100 to 0 %", change=fed(last_share=0.0), note="from the warm-up to the run's end"),
            Row(label="share from 0 to 100 %", change=fed(share=0.0), note="from the warm-up to the run's end"),
            Row(
                label="structures of rare cameras", change=partnered("rare_camera"),
                note="batch b, whose images give structures, by one over its camera's pictures",
            ),
            *([rare_poses] if posed else []),
        ),
    )  # fmt: skip


def settings(files: Mapping[str, Change]) -> Table:
    """What settings bring that a search has found, beside the preset's.

    Args:
        files: what those of a file make of the preset's run, by the file's path.
    """
    rows = [Row(label="preset", change=full), *(Row(label=path, change=change) for path, change in files.items())]
    return Table(name="settings", title="Settings beside the preset's", reference="preset", rows=tuple(rows))


OURS: Published = {
    "market1501": (94.8, 86.0), "dukemtmc-reid": (86.6, 74.8), "msmt17": (77.2, 52.3),
}  # fmt: skip
"""The paper's own figures of DG-Net."""
TRANSFER: Mapping[tuple[str, str], tuple[float, float]] = {
    ("market1501", "dukemtmc-reid"): (42.62, 24.25), ("dukemtmc-reid", "market1501"): (56.12, 26.83),
    ("market1501", "msmt17"): (17.11, 5.41), ("msmt17", "market1501"): (61.76, 33.62),
    ("dukemtmc-reid", "msmt17"): (20.59, 6.35), ("msmt17", "dukemtmc-reid"): (61.89, 40.69),
}  # fmt: skip
"""Rank@1 and mAP of the release's direct transfer."""


def tables_of(
    names: tuple[TableName, ...],
    stores: Mapping[str, str],
    *,
    posed: bool,
    files: Mapping[str, Change] | None = None,
    only: tuple[str, ...] = (),
) -> list[Table]:
    """Tables by their names.

    Args:
        names: in this order.
        stores: names of data sets by the location of their stores, the first being --data's.
        posed: --data's has key points; rows that need them are left out where it has none.
        files: as in `settings`.
        only: labels of the rows that are kept, beside each table's reference; none: all. A table that has none of
            them is left out.

    Raises:
        RowsError: no table has a row of that label.
    """
    makers: Mapping[TableName, Callable[[], Table]] = {
        "ablation": ablation,
        "labels": labels,
        "transfer": lambda: transfer(stores),
        "sensitivity": sensitivity,
        "warmup": warmup,
        "structure": structure,
        "generators": generators,
        "state_of_the_art": state_of_the_art,
        "strong": lambda: strong(posed=posed),
        "settings": lambda: settings(files or {}),
    }
    tables = [makers[name]() for name in dict.fromkeys(names)]
    known = sorted({row.label for table in tables for row in table.rows})
    if missing := [label for label in only if label not in known]:
        raise RowsError(f"rows: {missing[0]!r} is no row of {', '.join(names)}; they have: {'; '.join(known)}")
    return [_with_rows(table, only) for table in tables if not only or any(row.label in only for row in table.rows)]


def _with_rows(table: Table, only: tuple[str, ...]) -> Table:
    kept = tuple(row for row in table.rows if not only or row.label in (*only, table.reference))
    return replace(table, rows=kept)
