#!/usr/bin/env python
"""Write what all clusters have in common from cluster.yaml into its siblings: `uv run platform/cluster/render.py`.

The upper part of each file is its own, and yours to change. Lines that end in `# cloud` are not for machines that one
already has: they share a folder by themselves, and no cloud takes them back. The Dockerfile makes an image of the same
setup, for kuberay.yaml.
"""

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
CLUSTER = FOLDER.parents[1] / "cluster.yaml"
RULE = "# ---"
DOCKERFILE = """\
# An image of what cluster.yaml sets up, for kuberay.yaml; written by render.py. From the repository's folder:
#     docker build -f platform/cluster/Dockerfile -t REGISTRY/dgnet . && docker push REGISTRY/dgnet
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
SHELL ["/bin/bash", "-c"]
ENV HOME=/root BASH_ENV=/root/dgnet/environment.sh PATH=/root/dgnet/.venv/bin:$PATH
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
"""


def rendered(path: Path) -> str:
    """A sibling's text: its own part, then that of cluster.yaml."""
    common = CLUSTER.read_text(encoding="utf-8").partition(RULE)[2].splitlines(keepends=True)
    if path.name == "Dockerfile":
        config = yaml.safe_load(CLUSTER.read_text(encoding="utf-8"))
        copies = {to: here for to, here in config["file_mounts"].items() if not here.startswith("~")}
        steps = [f"COPY {here} {to.replace('~', '/root')}" for to, here in copies.items()]
        return DOCKERFILE + "\n".join([*steps, *(f"RUN {command}" for command in config["setup_commands"])]) + "\n"
    if path.name == "local.yaml":
        common = [line for line in common if not line.rstrip().endswith("# cloud")]
    return path.read_text(encoding="utf-8").partition(RULE)[0].rstrip() + f"\n\n{RULE}" + "".join(common)


def siblings() -> list[Path]:
    """The files beside this one that are written from cluster.yaml."""
    return [FOLDER / name for name in ("local.yaml", "gcp.yaml", "Dockerfile")]


if __name__ == "__main__":
    for path in siblings():
        path.write_text(rendered(path), encoding="utf-8")
