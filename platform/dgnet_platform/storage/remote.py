"""Files at a URI such as s3://bucket/folder: what is wrong with one is said within seconds, and with the remedy."""

import os
import shutil
from collections.abc import Callable
from copy import copy
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from dgnet_platform.errors import UserError
from dgnet_platform.storage.files import appearing, resolved

_CREDENTIALS = (
    "credentials are taken from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, from ~/.aws or from the machine's role"
)
_REMEDIES = {
    "NO_SUCH_BUCKET": "there is no such bucket: make it, or name another",
    "bucket does not exist": "there is no such bucket: make it, or name another",
    "' not found": "there is no such bucket: make it, or name another",
    "ACCESS_DENIED": f"permission is missing, or there are no credentials: {_CREDENTIALS}",
    "INVALID_ACCESS_KEY_ID": f"the credentials are not known there: {_CREDENTIALS}",
    "INVALID_CLIENT_TOKEN_ID": f"the credentials are not known there: {_CREDENTIALS}",
    "SIGNATURE_DOES_NOT_MATCH": f"the credentials are wrong: {_CREDENTIALS}",
    "EXPIRED_TOKEN": f"the credentials are out of date: {_CREDENTIALS}",
    "OAuth2": "there are no credentials: set GOOGLE_APPLICATION_CREDENTIALS to a key file, or use the machine's role",
    "PERMISSION_DENIED": "the credentials do not permit it: grant them access to the bucket's objects",
}
"""What helps, by what pyarrow says of S3 and of Google's storage."""
_AWAY = ("NETWORK_CONNECTION", "UNAVAILABLE", "DEADLINE_EXCEEDED")


CHUNK = 16 * 2**20
"""Bytes that are asked for, or sent, at once."""


class RemoteError(UserError):
    """A place that cannot be used; the message names it and the remedy."""


def open_place(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a folder or URI, and the path in it.

    Raises:
        RemoteError: it is no place that pyarrow knows, or its server does not say where it is.
    """
    if "://" not in location:
        return fs.LocalFileSystem(), resolved(location).as_posix()
    try:
        server = urlsplit(location).netloc
    except ValueError as error:
        raise RemoteError(f"{location!r} is no URI ({error}): write s3://bucket/folder") from None
    if "@" in server:
        raise RemoteError(
            f"{location.partition('://')[0]}://... holds credentials, which would be shown: {_CREDENTIALS}"
        )
    patient = location.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in location
    limit = ("&" if "?" in location else "?") + "retry_limit_seconds=10" if patient else ""
    try:
        filesystem, root = fs.FileSystem.from_uri(location + limit)
    except (pa.ArrowInvalid, UnicodeEncodeError) as error:
        raise RemoteError(
            f"{location} is no place pyarrow can read ({error}): use a path, s3://bucket/folder or gs://bucket/folder"
        ) from None
    except OSError as error:
        raise refusal(location, error) from error
    if not root.strip("/"):
        raise RemoteError(f"{location} names no bucket: write s3://bucket/folder")
    # What a URI opens on S3 tries 30 times, a copy as often as the constructor's default says: 3 times.
    return (copy(filesystem) if isinstance(filesystem, fs.S3FileSystem) else filesystem), root.rstrip("/")


def remedy_for(error: BaseException) -> str | None:
    """What helps against an error of pyarrow's that a server or its credentials are to blame for; None: another one."""
    said = str(error)
    known = next((remedy for words, remedy in _REMEDIES.items() if words in said), None)
    if known is None and any(words in said for words in _AWAY):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        server = f"AWS_ENDPOINT_URL, {endpoint}," if endpoint and "AWS" in said else "its server"
        return f"{server} does not answer: check the address and the network"
    return known


def refusal(location: str, error: BaseException, remedy: str = "is it there, and may it be used?") -> RemoteError:
    """What to raise when a place cannot be used: it names the remedy that fits, or else the one given."""
    said = str(error).strip().partition("\n")[0]
    return RemoteError(f"{location} cannot be used ({said}): {remedy_for(error) or remedy}")


def check_writable(location: str) -> tuple[fs.FileSystem, str]:
    """`open_place`, and that files can be written there; errors as there."""
    filesystem, root = open_place(location)
    probe = f"{root}/.probe.{os.getpid()}"
    try:
        if isinstance(filesystem, fs.LocalFileSystem):
            filesystem.create_dir(root)
        with filesystem.open_output_stream(probe) as file:
            file.write(b"")
        filesystem.delete_file(probe)
    except OSError as error:
        raise refusal(location, error, "may it be written?") from error
    return filesystem, root


def put(source: Path, filesystem: fs.FileSystem, target: str) -> None:
    """Copy a local file to a place, where it appears whole or not at all; raises OSError."""
    if isinstance(filesystem, fs.LocalFileSystem):
        with appearing(Path(target)) as partial:
            shutil.copyfile(source, partial)
        return
    # pyarrow's own copy_files takes a failed upload for a finished one.
    with source.open("rb") as file, filesystem.open_output_stream(target) as stream:
        shutil.copyfileobj(file, stream, CHUNK)


def get(filesystem: fs.FileSystem, source: str, target: Path, progress: Callable[[int], None] = lambda _: None) -> None:
    """Copy a file from a place to this machine, where it appears whole or not at all.

    Args:
        filesystem: of the place.
        source: the file's path in it.
        target: where it goes; folders are made.
        progress: called now and then with the number of bytes that came since.

    Raises:
        OSError: it could not be copied.
    """
    with appearing(target) as partial:
        with filesystem.open_input_stream(source) as stream, partial.open("wb") as file:
            while chunk := stream.read(CHUNK):
                file.write(chunk)
                progress(len(chunk))
        size, came = filesystem.get_file_info(source).size, partial.stat().st_size
        if came != size:
            raise OSError(f"{source} ended after {came:,} of {size:,} bytes")
