"""Pages that repeat what the code says are held to it."""

import re
from pathlib import Path

from common.errors import CODES
from common.job import TRANSITIONS, Status
from common.settings import Settings

ROOT = Path(__file__).parents[2]


def test_the_drawing_of_the_state_machine_is_the_state_machine() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+)", (ROOT / "docs/job.md").read_text(), re.MULTILINE)
    table = {(before.value, after.value) for before, targets in TRANSITIONS.items() for after in targets}
    assert set(drawn) == table


def test_every_status_is_described() -> None:
    described = re.findall(r"^\*\*(\w+)\*\*", (ROOT / "docs/job.md").read_text(), re.MULTILINE)
    assert described == [status.value for status in Status]


def test_the_readme_lists_every_error_code_with_status_and_advice() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+|job) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert rows == [(code, str(entry.status or "job"), entry.advice) for code, entry in CODES.items()]


def test_the_example_environment_names_every_setting_with_its_default() -> None:
    text = (ROOT / ".env.example").read_text()
    named = dict(re.findall(r"^# ?([A-Z_]+)=(.*)$", text, re.MULTILINE))
    assert set(named) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, int | float | str) and not isinstance(field.default, bool) and field.default:
            assert named[name.upper()] == str(field.default), name


def test_the_changelog_names_the_version() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()
