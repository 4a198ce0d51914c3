"""What lies on S3, and this node's cache of it."""

from pathlib import Path

import pytest
from pyarrow import fs

from dgnet_platform.data import cache
from dgnet_platform.data.store import Store
from dgnet_platform.storage import remote
from dgnet_platform.storage.remote import open_place


def names(uri: str) -> list[str]:
    """All files at a URI."""
    filesystem, root = open_place(uri)
    found = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
    return sorted(file.path.removeprefix(f"{root}/") for file in found if file.type == fs.FileType.File)


def upload(store: Path, uri: str) -> Store:
    """A copy of a store at a URI."""
    filesystem, root = open_place(uri)
    for file in store.iterdir():
        remote.put(file, filesystem, f"{root}/{file.name}")
    return Store.open(uri)


def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this node's cache, empty."""
    monkeypatch.setenv("DGNET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_used", {})
    return tmp_path / "cache" / "stores"
