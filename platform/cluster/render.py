#!/usr/bin/env python
"""Write what all clusters have in common from cluster.yaml into its siblings: `uv run platform/cluster/render.py`.

The upper part of each file is its own, and yours to change. Lines that end in `# NFS` are for clouds, where the head
shares its disk; machines that one already has share a folder by themselves.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
CLUSTER = FOLDER.parents[1] / "cluster.yaml"
RULE = "# ---"


def rendered(sibling: Path) -> str:
    """A sibling's text: its own part, then that of cluster.yaml."""
    common = CLUSTER.read_text().partition(RULE)[2].splitlines(keepends=True)
    if sibling.name == "local.yaml":
        common = [line for line in common if not line.rstrip().endswith("# NFS")]
    return sibling.read_text().partition(RULE)[0].rstrip() + f"\n\n{RULE}" + "".join(common)


def siblings() -> list[Path]:
    """The cluster files beside this one that `ray up` takes."""
    return [FOLDER / name for name in ("local.yaml", "gcp.yaml")]


if __name__ == "__main__":
    for path in siblings():
        path.write_text(rendered(path))
