"""A data set as it arrives: a folder or a .zip, read without unpacking and without ever writing to it."""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dgnet_platform.errors import UserError

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_ENTRY_BYTES = 64 * 2**20
"""No picture or list file of a data set is nearly as large as this; what is, is not read."""
MAX_ARCHIVE_BYTES = 200 * 2**30
"""What a .zip may declare to unpack to, in all; MSMT17, the largest public set here, is below 3 GiB."""

UNREAD_ENDINGS = (".avif", ".gif", ".heic", ".jfif", ".ppm", ".tif", ".tiff")
"""Of pictures too, but of kinds that are not read."""
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX(/|$))")
_ABSOLUTE = re.compile(r"/|[A-Za-z]:")
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""The fixed part of a zip entry's own header: signature, ..., lengths of the name and of the extra field."""


class SourceError(UserError):
    """A source that cannot be read as the data set it was named as; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of a data set, named relative to `root`, with '/' between folders."""

    path: Path
    """The folder or .zip."""
    names: tuple[str, ...]
    """Every file below `root`, sorted."""
    read_entry: Callable[[str], bytes]
    """Content of a file named from `path`; raises SourceError."""
    root: str = ""
    """'' or the folder inside `path` that holds the data set, with a '/' at its end."""

    def read(self, name: str) -> bytes:
        """Content of the file `name`; raises SourceError when it cannot be read whole."""
        return self.read_entry(self.root + name)

    def read_text(self, name: str) -> str:
        """The text file `name`; raises SourceError when it is not UTF-8."""
        try:
            return self.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise SourceError(f"{self.where(name)} is not UTF-8 text ({error}): save it as UTF-8") from None

    def where(self, name: str) -> str:
        """`name` as a person finds it again."""
        return f"{self.path}/{self.root}{name}"

    def top_folders(self) -> list[str]:
        """Names of the first level's folders, without the ones that archivers add."""
        tops = {name.split("/", 1)[0] for name in self.names if "/" in name}
        return sorted(top for top in tops if not _HIDDEN.search(top))

    def under(self, folder: str) -> "Source":
        """The same source seen from `folder`."""
        prefix = f"{folder}/"
        names = tuple(name.removeprefix(prefix) for name in self.names if name.startswith(prefix))
        return replace(self, names=names, root=self.root + prefix)


def is_picture(name: str) -> bool:
    """Whether a file counts as a picture by its name: a known ending in any case, no hidden folder."""
    return name.lower().endswith(PICTURE_ENDINGS) and not _HIDDEN.search(name)


def climbs_out(name: str) -> bool:
    """Whether a relative name would lead out of the folder it is joined to."""
    return _ABSOLUTE.match(name) is not None or ".." in name.split("/")


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a folder or a .zip for reading.

    Raises:
        SourceError: There is nothing, no complete archive, or an archive that is not safe to read.
    """
    if path.is_dir():
        try:
            names = tuple(sorted(_walk(path)))
        except OSError as error:
            raise _unreadable(error.filename, error) from None
        yield Source(path=path, names=names, read_entry=partial(_read_file, path))
    elif path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise SourceError(
                f"{path} is neither a folder nor a complete .zip ({error}): download it again, or unpack it "
                "and name the folder"
            ) from None
        with archive, path.open("rb") as file:
            entries = _safe_entries(path, archive.infolist())
            read = partial(_read_zip_entry, path, file.fileno(), entries)
            yield Source(path=path, names=tuple(sorted(entries)), read_entry=read)
    else:
        raise SourceError(f"{path} does not exist: name the folder or the .zip of the data set")


def _walk(folder: Path, prefix: str = "", above: Sequence[Path] = ()) -> Iterator[str]:
    """Files below a folder, each with `prefix`; through links but never in circles."""
    above = (*above, folder.resolve())
    with os.scandir(folder) as children:  # knows what is a folder: an eighth of iterdir's time
        for child in children:
            if child.is_dir():
                if not (child.is_symlink() and Path(child.path).resolve() in above):
                    yield from _walk(Path(child.path), f"{prefix}{child.name}/", above)
            elif child.is_file() or child.is_symlink():  # a link to nothing is told when it is read
                yield prefix + child.name


def _read_file(folder: Path, name: str) -> bytes:
    file = f"{folder}/{name}"
    try:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            if size > MAX_ENTRY_BYTES:
                raise SourceError(f"{file} has {size:,} bytes, over the limit of {MAX_ENTRY_BYTES:,}: remove it")
            return os.read(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(file, error) from None


def _unreadable(file: str, error: OSError) -> SourceError:
    return SourceError(f"{file} cannot be read ({error.strerror}): check the disk and the permissions")


def _safe_entries(path: Path, infos: Sequence[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The files of an archive by name; raises SourceError for what a data set's archive never holds."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.replace("\\", "/")
        trust = "do not use this archive, download it again from its authors"
        if climbs_out(name):
            raise SourceError(f"{path}: entry {info.filename!r} climbs out of the archive: {trust}")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise SourceError(f"{path}: entry {info.filename!r} is a link: {trust}")
        if info.is_dir() or name.endswith("/"):
            continue
        name = name.removeprefix("./")
        if name in entries:
            raise SourceError(f"{path}: two entries are named {name!r}: {trust}")
        entries[name] = info
    declared = sum(info.file_size for info in entries.values())
    if declared > MAX_ARCHIVE_BYTES:
        raise SourceError(
            f"{path} declares {declared:,} bytes, over the limit of {MAX_ARCHIVE_BYTES:,}: it looks like a "
            "zip bomb; if you trust it, unpack it and name the folder"
        )
    return entries


def _read_zip_entry(path: Path, descriptor: int, entries: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    """One entry, straight from the file: safe from many threads, and an eighth of zipfile's own time.

    Reading it here also sees what zipfile does not tell: an entry that unpacks to more than it declares.
    """
    info = entries[name]
    problem = None
    if max(info.file_size, info.compress_size) > MAX_ENTRY_BYTES:
        problem = f"declares {info.file_size:,} bytes, over the limit of {MAX_ENTRY_BYTES:,}"
    elif info.flag_bits & 0x1:
        problem = "is encrypted"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        problem = "is packed by a method other than store and deflate"
    if problem:
        raise SourceError(f"{path}: entry {name!r} {problem}: unpack the archive and name the folder")

    content = b""
    try:
        header = os.pread(descriptor, _LOCAL_HEADER.size, info.header_offset)
        signature, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        if signature == b"PK\x03\x04":
            content = os.pread(descriptor, info.compress_size, start)
        if info.compress_type == zipfile.ZIP_DEFLATED:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, info.file_size + 1)
    except (OSError, struct.error, zlib.error):
        content = b""
    if len(content) > info.file_size:
        raise SourceError(
            f"{path}: entry {name!r} unpacks to more than the {info.file_size:,} bytes that it declares: "
            "do not use this archive, download it again from its authors"
        )
    if len(content) < info.file_size or zlib.crc32(content) != info.CRC:
        raise SourceError(f"{path}: entry {name!r} is damaged: download the archive again")
    return content
