"""A headless Chromium for end-to-end tests, and pages bundled from npm packages; what is missing skips the test."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from playwright.async_api import Browser, async_playwright

install_s_max = 180
# How npm says that there was no way to a registry, rather than that what is asked for is wrong.
_NO_NETWORK = (
    "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "EHOSTUNREACH", "ENETUNREACH", "ENOTFOUND", "ERR_SOCKET_TIMEOUT",
    "ETIMEDOUT",
)  # fmt: skip


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium, or whichever is installed; Playwright's own is never fetched."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium here; Debian: apt-get install chromium")
    # Chromium's sandbox refuses to run as root, which CI is. The pages are this project's own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


def bundle(folder: Path) -> str:
    """`page.js` of a folder as one script, with the npm packages of its lock.

    Installing takes ten seconds, so the script is kept in the user's cache until anything in the folder changes.
    """
    sources = [folder / name for name in ("package.json", "package-lock.json", "page.js")]
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "darkroom", f"{folder.name}-{digest}.js")
    if not kept.exists():
        if shutil.which("npm") is None:
            pytest.skip("the page is made with npm, and there is none; Debian: apt-get install npm")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=kept.parent) as work:
            for source in sources:
                shutil.copy(source, work)
            _install(Path(work))
            _run(Path(work), "node_modules/.bin/esbuild", "page.js", "--bundle", "--format=iife", "--outfile=made.js")
            Path(work, "made.js").replace(kept)
    return kept.read_text()


def _install(folder: Path) -> None:
    try:
        _run(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--fetch-retries=1", "--fetch-timeout=30000")
    except subprocess.CalledProcessError as exc:
        code = next((code for code in _NO_NETWORK if code in exc.stderr), None)
        if code is not None:
            pytest.skip(f"npm reaches no registry: {code}")
        raise AssertionError(f"npm did not install the page's packages:\n{exc.stderr}") from exc


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=install_s_max)
