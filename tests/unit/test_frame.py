"""Holds what a newcomer meets first: the Makefile's help and complaints, and locks that name no registry."""

import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
TARGETS = ("demo", "test", "soak", "serve", "bench", "lint", "clean", "help")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh clone as far as make can tell: the files that fill .venv, and no .venv."""
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    # The make that runs these tests passes its flags and variables on through MAKE*; this one starts clean.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PYTHON"}
    return subprocess.run(
        ["make", *arguments],
        cwd=directory,
        env=inherited | variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def fake_python(directory: Path, body: str) -> str:
    script = directory / "fake-python"
    script.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return str(script)


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.10"])
def test_an_old_python_is_refused_in_one_sentence(checkout: Path, version: str) -> None:
    python = fake_python(checkout, f"echo {version}")
    refused = make(checkout, "demo", f"PYTHON={python}")
    assert refused.returncode == 2
    assert refused.stdout == ""
    (sentence,) = refused.stderr.splitlines()
    assert f"Darkroom needs Python 3.11 or newer, and {python} is {version}; choose another" in sentence
    assert "make PYTHON=/path/to/python3.12 demo" in sentence
    assert not (checkout / ".venv").exists()


def test_a_python_that_does_not_run_is_named(checkout: Path) -> None:
    refused = make(checkout, "test", PYTHON="no-such-python")
    assert refused.returncode == 2
    assert "no-such-python does not run here" in refused.stderr
    assert "make PYTHON=/path/to/python3.12 test" in refused.stderr


def test_a_python_without_venv_or_pip_is_told_how_to_get_them(checkout: Path) -> None:
    python = fake_python(checkout, 'case "$2" in *ensurepip*) exit 1 ;; *) echo 3.13 ;; esac')
    refused = make(checkout, "serve", PYTHON=python)
    assert refused.returncode == 2
    assert "apt-get install python3-venv" in refused.stderr


def test_make_alone_lists_every_target(checkout: Path) -> None:
    shown = make(checkout)
    assert shown.returncode == 0
    listed = {line.split()[1] for line in shown.stdout.splitlines()}
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    assert listed == set(phony[1].split()) >= set(TARGETS)


def test_no_test_target_lets_a_google_key_through(checkout: Path) -> None:
    python = fake_python(checkout, "echo 3.13")
    keys = {"GEMINI_API_KEY": "x", "GOOGLE_API_KEY": "x", "GOOGLE_APPLICATION_CREDENTIALS": "x", "GCLOUD_PROJECT": "x"}
    for target in ("test", "soak", "bench"):
        planned = make(checkout, "--dry-run", target, PYTHON=python, **keys).stdout.splitlines()[-1]
        assert all(f"-u {name} " in planned for name in keys), planned


def test_money_is_spent_only_when_real_is_asked_for(checkout: Path) -> None:
    python = fake_python(checkout, "echo 3.13")
    for unasked in ({}, {"GEMINI_API_KEY": "x"}):
        planned = make(checkout, "--dry-run", "demo", PYTHON=python, **unasked).stdout
        assert "darkroom demo" in planned
        assert "--real" not in planned
    assert "--real" in make(checkout, "--dry-run", "demo", PYTHON=python, REAL="1").stdout
    for unclear in ("0", "yes", "true"):
        refused = make(checkout, "--dry-run", "demo", PYTHON=python, REAL=unclear)
        assert refused.returncode == 2
        assert "REAL=1" in refused.stderr


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "make lock" in text.splitlines()[1]
    assert not re.findall(r"://|--index|--extra-index|--find-links|--trusted-host|@ file", text)
    pins = re.findall(r"^\S+==\S+.*$", text, re.MULTILINE)
    assert pins
    assert all(pin.endswith("\\") for pin in pins), "a package without a hash"


def test_the_locks_fit_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = (project["project"]["dependencies"], project["dependency-groups"]["dev"])
    for name, requirements in zip(LOCKS, wanted, strict=True):
        locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))
        stale = [
            each
            for each in map(Requirement, requirements)
            if not each.specifier.contains(locked.get(canonicalize_name(each.name), "0"))
        ]
        assert not stale, f"run `make lock`: {name} lacks {[str(each) for each in stale]}"
