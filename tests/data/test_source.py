"""A .zip as it arrives: what it must never do, and every way to be broken named."""

import struct
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from dgnet_platform.data import source as source_module
from dgnet_platform.data.source import SourceError, open_source
from tests.helpers.layouts import MARKET, PICTURE, listing_of, write, zipped


def archive_with(path: Path, entry: str | zipfile.ZipInfo, content: bytes = PICTURE) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in MARKET:
            file.writestr(name, PICTURE)
        file.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return path


@pytest.mark.parametrize("name", ["../x.jpg", "query/../../x.jpg", "/etc/x.jpg", r"..\x.jpg", r"C:\x.jpg"])
def test_entry_that_climbs_out(tmp_path: Path, name: str):
    archive = archive_with(tmp_path / "a.zip", name)
    with pytest.raises(SourceError, match="climbs out of the archive: do not use"), open_source(archive):
        pass
    assert list(tmp_path.iterdir()) == [archive]


def test_entry_that_is_a_link(tmp_path: Path):
    link = zipfile.ZipInfo("query/passwd.jpg")
    link.external_attr = 0o120777 << 16
    archive = archive_with(tmp_path / "a.zip", link, b"/etc/passwd")
    with pytest.raises(SourceError, match=r"'query/passwd\.jpg' is a link"), open_source(archive):
        pass


def test_two_entries_of_one_name(tmp_path: Path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = archive_with(tmp_path / "a.zip", MARKET[0])
    with pytest.raises(SourceError, match=f"two entries are named '{MARKET[0]}'"), open_source(archive):
        pass


def test_backslashes_of_windows_archivers(tmp_path: Path):
    archive = archive_with(tmp_path / "a.zip", r"bounding_box_train\0007_c1s1_000001_01.jpg")
    assert Counter(r.split for r in listing_of("market1501", archive).records)["train"] == 4


def test_zip_bomb_by_its_declared_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    archive = archive_with(tmp_path / "a.zip", "query/zeros.bin", bytes(10**6))
    monkeypatch.setattr(source_module, "MAX_ARCHIVE_BYTES", 10**6)
    with (
        pytest.raises(SourceError, match=r"declares 1,00\d,\d+ bytes, over the limit .* zip bomb"),
        open_source(archive),
    ):
        pass


@pytest.mark.parametrize("packed", [False, True])
def test_file_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool):
    folder = write(tmp_path / "set", MARKET)
    path = zipped(folder, "") if packed else folder
    monkeypatch.setattr(source_module, "MAX_ENTRY_BYTES", len(PICTURE) - 1)
    with open_source(path) as source, pytest.raises(SourceError, match="over the limit of"):
        source.read(MARKET[0])


def patched(archive: Path, old: bytes, new: bytes) -> Path:
    content = archive.read_bytes()
    assert old in content
    archive.write_bytes(content.replace(old, new))
    return archive


def test_entry_that_unpacks_to_more_than_it_declares(tmp_path: Path):
    name = "query/0001_c3s1_000001_00.jpg"
    archive = archive_with(tmp_path / "a.zip", name, bytes(54_321))
    patched(archive, struct.pack("<L", 54_321), struct.pack("<L", 321))
    with (
        open_source(archive) as source,
        pytest.raises(SourceError, match=r"0001_c3s1.* more than the 321 bytes"),
    ):
        source.read(name)


def test_damaged_entry(tmp_path: Path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.writestr("query/a.jpg", b"0123456789")
        file.writestr("query/b.jpg", PICTURE)
    patched(archive, b"0123456789", b"0123456788")
    with open_source(archive) as source:
        assert source.read("query/b.jpg") == PICTURE
        with pytest.raises(SourceError, match=r"entry 'query/a.jpg' is damaged: download the archive again"):
            source.read("query/a.jpg")


def test_entry_by_another_method(tmp_path: Path):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("query/a.jpg", PICTURE)
    with open_source(archive) as source, pytest.raises(SourceError, match="packed by a method other than"):
        source.read("query/a.jpg")


def test_truncated_archive(tmp_path: Path):
    archive = archive_with(tmp_path / "a.zip", "query/x.jpg")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(SourceError, match=r"nor a complete .zip .*: download it again"), open_source(archive):
        pass
