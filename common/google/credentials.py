"""Application Default Credentials, found once for all that calls Google; and threads for whatever may hang thereby."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import Unavailable
from common.google.calls import call_s_max, translated, try_s_max
from common.google.opening import Life, Shared
from common.telemetry import logger

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.auth.transport.requests import Request

log = logger(__name__)

T = TypeVar("T")

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
# Finding and renewing are each done by one thread at a time; the others are for loading modules.
_threads_max = 4


class Loader:
    """The service account on Google Cloud, whatever gcloud knows elsewhere. Nothing is read or asked before its use.

    It has threads of its own: the event loop's write paid pictures, and a metadata server that hangs must not take
    them, or wait behind them.
    """

    def __init__(self) -> None:
        self._life = Life("the service's identity")
        self._threads = ThreadPoolExecutor(_threads_max, thread_name_prefix="credentials")
        self._finding = Shared(self._find)
        self._credentials: Credentials | None = None

    async def credentials(self) -> "Credentials":
        """The service's own, for any Google API. Raises Unavailable, after 5 s at the latest."""
        if self._credentials is not None:
            return self._credentials
        with self._life.held(), translated("credentials"):
            return await self._finding.result()

    async def in_thread(self, call: Callable[[], T]) -> T:
        """What `call` returns, in a thread that it may block. Raises what it raises, and Unavailable when closed."""
        with self._life.held():
            return await asyncio.wrap_future(self._threads.submit(call))

    def close(self) -> None:
        """Begin nothing more; a thread that still asks ends within seconds. Safe to repeat."""
        self._life.closed = True
        self._finding.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _find(self) -> "Credentials":
        try:
            self._credentials = await self.in_thread(_default)
        except Exception as exc:
            from google.auth.exceptions import DefaultCredentialsError

            if not isinstance(exc, DefaultCredentialsError):
                raise
            log.error("identity.absent", extra={"reason": str(exc)})
            raise Unavailable("this service has no Google credentials") from exc
        return self._credentials


def refresh(credentials: "Credentials") -> None:
    """Have them get a new token. Blocks for up to 7 s; raises google.auth's errors and TimeoutError."""
    with _bounded_request() as request:
        credentials.refresh(request)  # type: ignore[no-untyped-call]


def _default() -> "Credentials":
    import google.auth

    with _bounded_request() as request:
        credentials, _ = google.auth.default(scopes=[_SCOPE], request=request)
    return credentials


@contextmanager
def _bounded_request() -> "Iterator[Request]":
    """How google-auth asks, but that a try takes 2 s at most, and no try begins after 3 s; closed after its use.

    Left to itself it gives the metadata server 3 s five times over, with growing pauses between.
    """
    from google.auth.transport.requests import Request
    from requests import Session

    until = time.monotonic() + call_s_max - try_s_max

    class Bounded(Request):
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            # No error of google-auth's, which it would take for one more that passes.
            if time.monotonic() > until:
                raise TimeoutError("nobody said in time who this service is")
            return super().__call__(*arguments, **{**named, "timeout": try_s_max})  # type: ignore[no-untyped-call]

    with Session() as session:
        yield Bounded(session)
