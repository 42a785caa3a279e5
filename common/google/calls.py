"""How every call to Google is made: tried again within 5 s, and whatever the client raises told in our words."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.errors import Conflict, DarkroomError, NotFound, Unavailable
from common.telemetry import logger

if TYPE_CHECKING:
    from google.api_core.retry import AsyncRetry

log = logger(__name__)

call_s_max = 5.0
"""For all tries of one call together."""
try_s_max = 2.0
"""For one try, so that one lost packet costs no call."""
_first_pause_s = 0.05
_pause_s_max = 1.0
_reason_chars = 500


def retry() -> "AsyncRetry":
    """Try again what did not reach Google, was given up there, or ran into another's commit; 5 s in all.

    Only for calls that may be applied twice: reads, publishes, and commits that know their own `save_id`.
    """
    from google.api_core import exceptions
    from google.api_core.retry import AsyncRetry, if_exception_type

    passing = if_exception_type(
        exceptions.Aborted,
        exceptions.DeadlineExceeded,
        exceptions.InternalServerError,
        exceptions.ResourceExhausted,
        exceptions.ServiceUnavailable,
    )
    return AsyncRetry(
        predicate=passing,
        initial=_first_pause_s,
        maximum=_pause_s_max,
        multiplier=2,
        # No try begins later, so that the last one ends in time.
        timeout=call_s_max - try_s_max,
    )


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise NotFound, Conflict or Unavailable for whatever Google's clients raise; `what` names the call for the log.

    Errors of ours and bugs pass unchanged.
    """
    try:
        yield
    except DarkroomError:
        raise
    except Exception as exc:
        meaning = _meaning(exc, what)
        if meaning is None:
            raise
        raise meaning from exc


@contextmanager
def answered(what: str) -> Iterator[None]:
    """Raise Unavailable for whatever Google's clients raise, and log their reason.

    For calls to which "not found" and "precondition failed" say nothing about what was asked, but that a database or
    an index is missing. Errors of ours and bugs pass unchanged.
    """
    try:
        yield
    except DarkroomError:
        raise
    except Exception as exc:
        if _meaning(exc, what) is None:
            raise
        last = last_error(exc)
        reason = {"call": what, "error": type(last).__name__, "reason": str(last)[:_reason_chars]}
        log.warning("google.no_answer", extra=reason)
        raise Unavailable(f"{what}: {type(last).__name__}") from exc


def last_error(exc: Exception) -> Exception:
    """What ended the last try, where `exc` may say no more than that there were enough."""
    from google.api_core.exceptions import RetryError

    cause = exc.cause if isinstance(exc, RetryError) else None
    return cause if isinstance(cause, Exception) else exc


def _meaning(exc: Exception, what: str) -> DarkroomError | None:
    import grpc
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError

    said = f"{what}: {type(last_error(exc)).__name__}"
    match exc:
        case exceptions.NotFound():
            return NotFound(said)
        case exceptions.FailedPrecondition() | exceptions.PreconditionFailed() | exceptions.Conflict():
            # AlreadyExists and Aborted are kinds of Conflict.
            return Conflict(said)
        case exceptions.GoogleAPIError() | GoogleAuthError() | grpc.RpcError():
            return Unavailable(said)
        case requests.RequestException() | OSError():
            # TimeoutError is one of these.
            return Unavailable(said)
    return None
