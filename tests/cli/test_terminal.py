"""The frame around all commands: exit statuses, what terminals cannot show, commands to copy, files of settings."""

import io
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console

from dgnet_platform.cli import terminal
from dgnet_platform.cli.experiments import parse
from dgnet_platform.cli.options import TrainTeacher
from dgnet_platform.cli.terminal import progress_bars, run
from dgnet_platform.errors import ExperimentError, TrainingError
from dgnet_platform.progress import in_words
from dgnet_platform.runs.tracking_uri import sqlite_uri, where_to_look


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ExperimentError("name another"), 2),
        (FileNotFoundError(2, "No such file", "nowhere"), 2),
        (TrainingError("a loss was not finite"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_decides_the_exit_status(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]):
    def fail(description: str | None, args: Sequence[str], console: Console) -> int:
        raise error

    assert run(fail, None, []) == status
    shown = capsys.readouterr().out
    assert str(error) in shown if status != 130 else "the same command resumes" in shown


def test_an_error_of_ours_is_not_hidden():
    def fail(description: str | None, args: Sequence[str], console: Console) -> int:
        raise KeyError("a mistake in the code")

    with pytest.raises(KeyError):
        run(fail, None, [])


def test_what_a_terminal_cannot_show_never_ends_a_command(monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="latin-1"))

    def show(description: str | None, args: Sequence[str], console: Console) -> int:
        console.print("runs[v2] \u5b66\u4e60 \u00e9")
        return 0

    assert run(show, None, []) == 0
    sys.stdout.flush()
    assert written.getvalue().decode("latin-1") == "runs[v2] ?? \u00e9\n"


@pytest.mark.parametrize("folder", ["my runs", "o'neil", "runs[v2]", "a;b", "50% ?#"])
def test_a_printed_command_can_be_copied(folder: str):
    uri = sqlite_uri(Path(f"/home/{folder}/mlflow.db"))
    command, then = where_to_look(uri, "1", "abc").splitlines()
    assert shlex.split(command) == ["uv", "run", "mlflow", "ui", "--workers", "1", "--backend-store-uri", uri]
    page = "/#/experiments/1/runs/abc/model-metrics?workflowType=machine_learning"
    assert then.split() == ["then", f"http://127.0.0.1:5000{page}"]
    assert where_to_look("http://server:80/", "1", "abc") == f"http://server:80{page}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_settings_are_read_whatever_the_locale(encoding: str, tmp_path: Path):
    file = tmp_path / "settings.yaml"
    file.write_bytes("# \u5b66\u4e60\u7387\r\nkeep: 3\r\ndata: ''\r\n".encode(encoding))
    _, experiment = parse(TrainTeacher, None, ["--config", str(file)])
    assert experiment.keep == 3


def test_settings_in_another_encoding_are_refused(tmp_path: Path):
    file = tmp_path / "settings.yaml"
    file.write_bytes("# d\u00e9but\nkeep: 3\n".encode("latin-1"))
    with pytest.raises(ExperimentError, match=r"settings.yaml is not UTF-8 text \(.*\): save it as UTF-8"):
        parse(TrainTeacher, None, ["--config", str(file)])


def test_without_a_terminal_lines_say_how_far_it_is(monkeypatch: pytest.MonkeyPatch):
    seconds = iter(range(0, 1_000, 10))
    monkeypatch.setattr(terminal, "time", Mock(monotonic=lambda: next(seconds)))
    written = io.StringIO()
    with progress_bars(Console(file=written, soft_wrap=True)) as show:
        for done in range(1, 8):
            show("pictures", done, 1_400)
    assert re.fullmatch(r"(pictures: \d of 1,400(, about .* left)?\n){2,3}", written.getvalue())


def test_on_a_terminal_there_are_bars():
    written = io.StringIO()
    with progress_bars(Console(file=written, force_terminal=True)) as show:
        show("pictures", 3, 1_400)
    assert re.search(r"pictures .*3/1400", written.getvalue())


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.2, "3 s"), (89, "89 s"), (90, "2 min"), (600, "10 min"), (5_400, "1.5 h")]
)
def test_a_time_in_words(seconds: float, words: str):
    assert in_words(seconds) == words
