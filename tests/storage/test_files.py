"""Files that appear at once and whole, and locks."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dgnet_platform.errors import UserError
from dgnet_platform.runs.journal import Journal
from dgnet_platform.search.stopping import StoppingRule, Verdicts
from dgnet_platform.storage.files import appearing, lock, locked, naming, resolved, staging, write_whole
from tests.helpers.studies import opened


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "made" / "record"
    with appearing(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with pytest.raises(IsADirectoryError), appearing(path) as partial:
        partial.write_text(f"half, and {tmp_path.read_text(encoding='utf-8')}")
    assert path.read_text() == "old"
    write_whole(path, b"new")
    assert path.read_text() == "new"
    assert names(path.parent) == ["record"]


def test_a_folder_takes_the_place_of_another(tmp_path: Path):
    path = tmp_path / "folder"
    for name in ("old", "new"):
        with appearing(path) as partial:
            partial.mkdir()
            (partial / name).touch()
    assert names(path) == ["new"]
    with appearing(path):
        pass  # nothing was written
    assert names(path) == ["new"]
    assert names(tmp_path) == ["folder"]


def of_journal(folder: Path) -> Callable[[], object]:
    journal = Journal(folder, 0)
    return lambda: journal.write(1, {"loss": 0.5})


def of_verdicts(folder: Path) -> Callable[[], object]:
    return lambda: Verdicts(folder / "rungs.jsonl").judge(0, 0, 0.5, StoppingRule())


def of_study(folder: Path) -> Callable[[], object]:
    return opened(folder).ask


def of_appearing(folder: Path) -> Callable[[], object]:
    return lambda: write_whole(folder / "whole.json", b"{}")


@pytest.fixture
def small_files() -> Iterator[Callable[[], None]]:
    """Call it, and no file grows any more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the journal stays open
@pytest.mark.parametrize(
    ("writer", "name"),
    [
        (of_journal, "metrics.jsonl"),
        (of_verdicts, "rungs.jsonl"),
        (of_study, "study.jsonl"),
        (of_appearing, "whole.json"),
    ],
)
def test_a_full_disks_error_names_the_file(writer, name: str, tmp_path: Path, small_files: Callable[[], None]):
    write = writer(tmp_path)
    small_files()
    with pytest.raises(OSError, match=rf"File too large.*/{name}"):
        write()


def test_an_error_of_waiting_for_the_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    opened(tmp_path)
    with (tmp_path / "study.jsonl").open("a") as file:
        file.write("half a line")
    journal = Journal(tmp_path, 0)
    monkeypatch.setattr(os, "fsync", broken)
    for name, wait in (("metrics", journal.sync), ("study", lambda: opened(tmp_path))):
        with pytest.raises(OSError, match=rf"Input/output error.*/{name}\.jsonl"):
            wait()
    journal.close()


def test_a_file_that_an_error_names_stays(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="missing"), naming(tmp_path / "other"):
        (tmp_path / "missing").read_text()
    with pytest.raises(OSError, match=r"^ended$"), naming(tmp_path / "other"):
        raise OSError("ended")


KILLED = """
import os, signal, sys
from pathlib import Path
from dgnet_platform.storage.files import appearing
if sys.argv[2] == "between":
    rename = Path.rename
    def once(self, target):
        rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = once
with appearing(Path(sys.argv[1])) as partial:
    partial.mkdir()
    (partial / "new").touch()
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["writing", "between"])
def test_what_was_there_outlives_a_kill(tmp_path: Path, moment: str):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    subprocess.run([sys.executable, "-c", KILLED, path, moment], check=False)
    with appearing(path) as partial:
        assert names(path) == ["old"]
        assert not partial.exists()
    assert names(tmp_path) == ["folder"]


def test_a_full_disk_is_told_with_the_file(tmp_path: Path):
    with pytest.raises(OSError, match="No space left on device") as raised, appearing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as write() on a descriptor does
    assert raised.value.filename == str(tmp_path / "file")


def test_a_lock_keeps_others_out_whoever_they_are(tmp_path: Path):
    with (tmp_path / "lock").open("w") as file:
        lock(file)
        with (tmp_path / "lock").open("w") as other, pytest.raises(BlockingIOError):
            lock(other, wait=False)
        posix = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        command = [sys.executable, "-c", posix, tmp_path / "lock"]  # as an NFS server does for its clients
        assert b"BlockingIOError" in subprocess.run(command, capture_output=True, check=False).stderr
    with (tmp_path / "lock").open("w") as file:
        lock(file, wait=False)


def test_a_shared_lock_is_for_many(tmp_path: Path):
    with (tmp_path / "lock").open("a+") as one, (tmp_path / "lock").open("a+") as two:
        lock(one, shared=True)
        lock(two, shared=True)
        with (tmp_path / "lock").open("w") as other, pytest.raises(BlockingIOError):
            lock(other, wait=False)


def test_a_lock_file_is_removed_and_its_lock_never_had_by_two(tmp_path: Path):
    path, inside, most = tmp_path / "lock", 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with locked(path):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert names(tmp_path) == []
    with locked(path), pytest.raises(UserError, match="wait for it"), locked(path, "busy: wait for it"):
        pass


@pytest.mark.parametrize("location", ["~0", "~no-such-user/runs"])
def test_a_home_of_no_user_is_named(location: str):
    with pytest.raises(UserError, match=rf"{location}: .* Write ./{location} if it is a name"):
        resolved(location)


@pytest.mark.parametrize("location", ["a\0b", "\ud800"])
def test_what_no_folder_can_be_called_is_named(location: str):
    with pytest.raises(UserError, match=r"is no name of a folder \(.*\): name another one"):
        resolved(location)


def test_a_location_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert resolved("~/runs") == (tmp_path / "home" / "runs").resolve()
    assert resolved("a/../runs") == (tmp_path / "runs").resolve()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    without = pytest.raises(UserError, match=f"{tmp_path} is on a file system without locks .* mount it with them")
    with without, staging(tmp_path / "store"):
        pass
    assert names(tmp_path) == []
