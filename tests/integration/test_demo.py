"""Proves the demo: it explains a real walk through the service, and spends nobody's key unasked."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from local.gemini import running

STEPS = ["created", "uploaded", "checked", "queued", "generating", "completed", "streamed", "notified"]


@pytest.fixture(scope="module")
def google() -> Iterator[str]:
    """What the environment names as Google: a stand-in of the test's own, which counts its calls."""
    with running() as url:
        yield url


def demo(data_dir: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local.cli", "demo", "--data-dir", str(data_dir), *map(str, arguments)],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def calls(url: str) -> int:
    return int(httpx2.get(f"{url}/standin/stats").json()["calls"])


def test_the_demo_tells_the_whole_way_and_keeps_the_pictures(tmp_path: Path, google: str) -> None:
    before = calls(google)
    # A key, another address and sign-in, as a shell may have them: the demo heeds none of it.
    surroundings = {"GEMINI_API_KEY": "k", "GEMINI_BASE_URL": google, "PUBLIC_URL": "https://x.example"}
    result = demo(tmp_path, **surroundings, JWT_SECRET="0123456789abcdef0123456789abcdef", GOOGLE_API_KEY="k")
    assert result.returncode == 0, result.stderr
    assert calls(google) == before
    assert re.findall(r"^  (\w+) +[\d,]+ ms +[\d,]+ ms ", result.stdout, re.MULTILINE) == STEPS
    assert "1536×1536 JPEG, 292 KB, stored sideways, with GPS, camera, date" in result.stdout
    assert re.search(r"the model got +512×512 JPEG, \d+ KB, upright, no metadata\n", result.stdout)
    assert "A stand-in drew this, not Gemini" in result.stdout
    for name in ("input.jpg", "result.jpg", "thumbnail.webp"):
        with Image.open(tmp_path / "demo" / name) as picture:
            picture.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_real_demo_names_model_and_price_and_then_asks_google(tmp_path: Path, google: str) -> None:
    before = calls(google)
    result = demo(tmp_path, "--real", GEMINI_API_KEY="k", GEMINI_BASE_URL=google)
    assert result.returncode == 0, result.stderr
    assert calls(google) == before + 1
    assert "Google's gemini-nano-banana-2.1, $0.0336 a picture at 1K" in result.stdout
    assert result.stdout.index("$0.0336") < result.stdout.index("generating")
    assert re.search(r"It cost \$0\.0\d+", result.stdout)


def test_a_real_demo_without_a_key_is_refused_in_one_line(tmp_path: Path) -> None:
    result = demo(tmp_path, "--real")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("darkroom: Google wants a key: set GEMINI_API_KEY")
    assert len(result.stderr.splitlines()) == 1


def test_a_photo_that_fails_ends_the_demo_with_code_and_advice(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes((Path(__file__).parents[2] / "local" / "sample" / "portrait.jpg").read_bytes()[:5000])
    result = demo(tmp_path, "--photo", damaged)
    assert result.returncode == 1
    assert "(image_damaged)" in result.stderr
    assert "Traceback" not in result.stderr
