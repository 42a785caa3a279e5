"""Who the service is, while the metadata server hangs: nobody waits for long, nor behind others; and how it ends."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from google.auth.compute_engine import Credentials as ComputeCredentials
from google.auth.exceptions import GoogleAuthError

from common.errors import Unavailable
from common.google.credentials import refresh
from common.google.identity import Identity, _Token
from common.settings import Settings
from tests.bench import Clock
from tests.google.fakes import Fakes
from tests.google.silence import silence


@contextmanager
def hanging(fakes: Fakes) -> Iterator[None]:
    """The metadata server says nothing meanwhile."""
    fakes.answering.clear()
    try:
        yield
    finally:
        fakes.answering.set()


async def test_token_that_lives_is_used_at_once_while_the_metadata_server_hangs(
    identity: Identity, fakes: Fakes, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.google.identity._patience_s", 0.1)
    token = await identity.access_token()
    clock.advance(3600 - 200)
    with hanging(fakes):
        async with asyncio.timeout(1):
            assert await asyncio.gather(*(identity.access_token() for _ in range(10))) == [token] * 10
        async with asyncio.timeout(0):
            assert await identity.access_token() == token
    clock.advance(11)
    monkeypatch.undo()
    assert await identity.access_token() != token


async def test_without_a_token_all_wait_for_one_renewal_and_no_longer_than_one_would(
    identity: Identity, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.google.identity.call_s_max", 0.2)
    with hanging(fakes):
        async with asyncio.timeout(1):
            ends = await asyncio.gather(*(identity.access_token() for _ in range(10)), return_exceptions=True)
        assert {type(end) for end in ends} == {Unavailable}
    monkeypatch.undo()
    assert await identity.access_token() in fakes.tokens


def test_thread_that_asks_a_metadata_server_which_hangs_ends_by_itself(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left to itself it would ask five times, and stay for half a minute."""
    monkeypatch.setattr("common.google.credentials.call_s_max", 0.3)
    monkeypatch.setattr("common.google.credentials.try_s_max", 0.1)
    credentials = ComputeCredentials()  # type: ignore[no-untyped-call]
    before = time.monotonic()
    with hanging(fakes), pytest.raises((TimeoutError, GoogleAuthError)):
        refresh(credentials)
    assert time.monotonic() - before < 5


async def test_who_we_are_is_asked_beside_a_loop_whose_threads_are_all_busy(identity: Identity) -> None:
    free = threading.Event()
    asyncio.get_running_loop().set_default_executor(pool := ThreadPoolExecutor(1))
    pool.submit(free.wait, 30)
    try:
        assert await identity.access_token()
    finally:
        free.set()


def test_token_shows_nowhere() -> None:
    assert "ya29" not in repr(_Token("ya29.secret", None))


# The end.


async def test_what_is_closed_is_unavailable_and_opens_nothing(identity: Identity) -> None:
    await identity.access_token()
    for _ in range(2):
        await identity.aclose()
        for call in (identity.access_token(), identity.email(), identity.sign_blob(b"text"), identity.sign_jwt({})):
            with pytest.raises(Unavailable, match="closed"):
                await call
    assert identity._client is None


async def test_signature_and_token_under_way_at_the_end_are_unavailable(fakes: Fakes, clock: Clock) -> None:
    async with silence() as server:
        identity = Identity(Settings(iam_credentials_url=server.url), clock)
        signing = asyncio.create_task(identity.sign_blob(b"text"))
        await server.asked()
        await identity.aclose()
        with pytest.raises(Unavailable):
            await signing
    identity = Identity(Settings(**fakes.settings), clock)  # type: ignore[arg-type]
    await identity.email()
    identity.forget_token()
    with hanging(fakes):
        asking = asyncio.create_task(identity.access_token())
        await asyncio.sleep(0)
        await identity.aclose()
        with pytest.raises(Unavailable):
            await asking
