"""What README and docs promise exists: files, commands and their options, the map of the rooms."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dgnet_platform.cli.evaluate import _PERSON
from tests.helpers.runs import ROOT

README = ROOT / "README.md"
JOBS = sorted((ROOT / "jobs").glob("[a-z]*.py"))
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"^ {4,}\S.*(?:\n {4,}\S.*)*", re.MULTILINE)
"""Indented blocks."""
ROOMS = [
    *(ROOT / "dgnet_core").glob("*/__init__.py"),
    *(ROOT / "platform" / "dgnet_platform").glob("*/__init__.py"),
]


def name(page: Path) -> str:
    return page.stem


def code_of(page: Path) -> str:
    """All code of a page: indented blocks, fenced ones, and what stands in backticks; continued lines as one."""
    text = page.read_text(encoding="utf-8")
    pieces = [*CODE.findall(text), *re.findall(r"```.*?```", text, re.DOTALL), *re.findall(r"`([^`]+)`", text)]
    return "\n".join(pieces).replace("\\\n", " ")


@cache
def help_of(job: str) -> str:
    done = subprocess.run([sys.executable, ROOT / job, "--help"], cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("job", JOBS, ids=name)
def test_jobs_run_by_path_and_explain_themselves(job: Path) -> None:
    assert len(help_of(job.relative_to(ROOT).as_posix())) > 100
    assert job.stat().st_mode & 0o111, f"{job} is not executable"
    assert job.read_text(encoding="utf-8").startswith("#!"), f"{job} has no shebang"


def test_the_readme_is_one_page_that_starts_with_two_commands():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    commands = [line.strip() for line in lines[: lines.index("## What the first run shows")] if line.startswith("    ")]
    assert [re.sub(r"\s+#.*", "", command) for command in commands] == [
        "pip install uv",
        "uv run jobs/train_market.py",
        "uv run pytest",
    ]


def test_the_readme_says_what_the_figures_of_people_mean():
    described = set(re.findall(r"\*(\w+)\*", README.read_text()))
    assert set(_PERSON) <= described


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_it_names_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([\w./-]+\.\w+)[)#]", text) if "://" not in link]
    assert all((page.parent / link).exists() for link in links), links
    named = re.findall(r"\b(?:jobs|platform|dgnet_core|tests|docs)/[\w/]*\w\.(?:py|yaml|md|sh)\b", text)
    named += [
        f"platform/dgnet_platform/{path}" for path in re.findall(r"`((?:search|runs|training|data)/\w+\.py)`", text)
    ]
    missing = [path for path in named if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_that_it_names_exist(page):
    wrong = []
    for job, rest in re.findall(r"(jobs/\w+\.py)((?: +[^\n#`|]+)?)", code_of(page)):
        shown = help_of(job)
        for option in re.findall(r"(?<!\S)--[\w.-]+", rest):
            if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w.-])", shown):
                wrong.append(f"{job} {option}")
    assert not wrong
    everything = "".join(help_of(str(path.relative_to(ROOT))) for path in JOBS)
    others = {"--extra", "--env-manager", "--artifacts-destination"}  # of uv and MLflow
    for option in re.findall(r"`(--[\w.-]+)", page.read_text()):
        assert option in others or option in everything, option


def test_the_map_has_every_room_and_its_sentence():
    shown = dict(re.findall(r"^ +([\w/]+)/ +(\S.*)$", README.read_text(), re.MULTILINE))
    for init in ROOMS:
        room, sentence = init.parent.name, init.read_text().strip().strip('"')
        assert shown.get(room) == sentence, room
        assert len(list(init.parent.glob("*.py"))) - 1 <= 14, f"{room} has more than 14 files"
    assert shown["jobs"] == (ROOT / "jobs" / "__init__.py").read_text().strip().strip('"')


def test_the_step_by_itself_runs():
    """The code of docs/step.md, on pictures that it leaves to the reader."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "step.md").read_text(), re.DOTALL)
    assert block is not None
    import torch

    labels = torch.arange(24) % 12
    pixels = torch.randint(256, (24, 3, 64, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scope: dict[str, Any] = {"labels": labels, "pixels": pixels}
    exec(block[1].replace("751", "12"), scope)
    assert scope["metrics"]["L_img1"] > 0
    assert scope["state"].iteration == 1
