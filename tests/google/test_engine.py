"""The cloud engine as a whole: how its parts close, where it may lead on a laptop, and what it never shows."""

import asyncio
import logging

import pytest

from common.clock import utc_now
from common.google.engine import close_together, open_engine
from common.settings import Settings, SettingsError
from common.v4 import HmacKey
from local.emulated import EMULATORS, check_emulators


class Part:
    """Closes as it is told to."""

    def __init__(self, failing: BaseException | None = None, *, hanging: bool = False) -> None:
        self.closed = False
        self._failing = failing
        self._hanging = hanging

    async def aclose(self) -> None:
        if self._hanging:
            await asyncio.Event().wait()
        if self._failing is not None:
            raise self._failing
        self.closed = True


async def test_part_that_cannot_close_is_logged_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("common.google.engine.close_s_max", 0.05)
    last = Part()
    await close_together(Part(OSError("broken")), Part(asyncio.CancelledError()), Part(hanging=True), last)
    assert last.closed
    logged = [record.exc_info[0] for record in caplog.records if record.exc_info and record.levelno == logging.ERROR]
    assert logged == [OSError, asyncio.CancelledError, TimeoutError]


async def test_engine_that_was_never_used_closes() -> None:
    engine = open_engine(Settings(google_cloud_project="p"))
    await engine.aclose()
    await engine.aclose()


def test_laptop_signs_nothing_with_a_real_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EMULATORS:
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with pytest.raises(SettingsError, match=r"IAM_CREDENTIALS_URL.*make emulators"):
        check_emulators(Settings(google_cloud_project="p"))
    settings = Settings(google_cloud_project="p", iam_credentials_url="http://127.0.0.1:2")
    assert check_emulators(settings).storage_url == "http://127.0.0.1:1"


def test_secrets_show_in_no_repr() -> None:
    key = HmacKey("local", b"secret")
    signed = key.sign("GET", "http://127.0.0.1/results/a", {}, expires_s=60, now=utc_now())
    assert "secret" not in repr(key)
    assert "X-Goog-Signature" not in repr(signed)
    assert "X-Goog-Signature" in signed.url
