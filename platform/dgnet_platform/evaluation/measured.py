"""What was measured of generated people: tables, figures for MLflow, and a folder that is always complete."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from dgnet_core.generation.inception import Mode
from dgnet_platform.evaluation.results import DRAWN, FORMAT, JSON, PARQUET
from dgnet_platform.storage.files import flush

TABLES = "distances", "diversity", "people", "identity"
GENERATED = "generated"
"""The generator's rows in all tables; the others are references."""
GROUP = f"test/{GENERATED}"
"""Of MLflow's charts: after the curves, which a reader looks at first."""


@dataclass(kw_only=True, eq=False)
class Measured:
    """All that came out."""

    source: str
    """Whose pictures were measured, how many, and against what."""
    drawn: bool
    """Whether they are drawn people, whose figures stand for no photographs."""
    networks: dict[str, str]
    """Digests of the networks that distances and identity are judged by, by name."""
    mode: Mode | None
    """How the FID network's pictures were resized; None: it did not judge."""
    distances: pd.DataFrame
    """A row for each figure and what it compares: figure, compared, pictures, value, deviation over KID's subsets."""
    diversity: pd.DataFrame
    """DSSIM by set and size: mean and deviation of independent rounds, and Table 2's running means."""
    people: pd.DataFrame
    """Figures within the silhouette, of the generator and of references; empty for photographs without key points."""
    identity: pd.DataFrame
    """How often the identities of appearance and structure come first, and their median ranks; needs a teacher."""
    left_out: list[str]
    """Measures that were not taken, each with its reason."""
    pictures: dict[str, Image.Image] = field(default_factory=dict)
    """Pictures to look at by file name."""

    def figures(self) -> dict[str, float]:
        """The generator's finite figures by name, for MLflow."""
        found: dict[str, float] = {}
        for row in self.distances.to_dict("records"):
            name = row["figure"] if row["compared"] == GENERATED else f"{row['figure']}_floor"
            found.setdefault(f"{GROUP}/{name}", row["value"])  # the first row has the most pictures
        for row in self.diversity.to_dict("records"):
            name = "diversity" if row["picture"] == GENERATED else "diversity_real"
            found.setdefault(f"{GROUP}/{name}", row["DSSIM"])
        for table in (self.people, self.identity):
            for row in table.to_dict("records"):
                if row["picture"] == GENERATED:
                    values = {str(k): v for k, v in row.items() if k not in ("picture", "pictures")}
                    found |= {f"{GROUP}/{name}": value for name, value in values.items()}
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}


def write(measured: Measured, folder: Path) -> None:
    """Tables as results.json and results.parquet, and the pictures, into a folder."""
    tables = {name: getattr(measured, name) for name in TABLES}
    table = pd.concat([table.assign(part=name) for name, table in tables.items() if len(table)], ignore_index=True)
    table.to_parquet(folder / PARQUET, index=False)
    for name, picture in measured.pictures.items():
        picture.save(folder / name, "PNG")
    values: dict[str, Any] = {
        "format": FORMAT,
        "source": measured.source,
        "note": DRAWN if measured.drawn else None,
        "files": sorted([JSON, PARQUET, *measured.pictures]),
        "networks": measured.networks,
        "mode": measured.mode,
        "left_out": measured.left_out,
        **{name: json.loads(table.to_json(orient="records", double_precision=10)) for name, table in tables.items()},
    }
    (folder / JSON).write_text(json.dumps(values, indent=2) + "\n")
    for path in folder.iterdir():
        flush(path)
