"""Logs and the trace they belong to: one line per decision; never payloads, signed URLs, tokens or prompts.

A trace here is an id that goes with the work: from the request to the facts it publishes, to the pushes of these,
and on. Nothing measures or reports spans.
"""

import json
import logging
import re
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from common.clock import new_id

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}

# https://www.w3.org/TR/trace-context/#traceparent-header: no capitals, no ids of zeros, no version ff; a version after
# 00 may say more behind a dash.
_TRACEPARENT = re.compile(
    r"(?:00(?=.{53}$)|(?!00|ff)[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-(?P<flags>[0-9a-f]{2})(?:-.*)?"
)
_sampled = 1
_TOLD = "_darkroom_told"


@dataclass(frozen=True, slots=True)
class _Trace:
    trace_id: str
    span_id: str
    flags: int


_trace: ContextVar[_Trace | None] = ContextVar("trace", default=None)


def follow_trace(*parents: str) -> None:
    """Join the trace of the first W3C `traceparent` that can be read, as a new span of it, or begin a trace.

    It holds until the task ends, which is one request or push, and is not taken back before: Starlette logs bugs
    outside of all middleware, and that line belongs to the trace too. The sampled flag goes on as it came.
    """
    joined = (trace for trace in map(_joined, parents) if trace is not None)
    _trace.set(next(joined, None) or _begun())


def traceparent() -> str:
    """What goes out with a fact or a request made now; where no trace is followed, the beginning of one."""
    trace = _trace.get() or _begun()
    return f"00-{trace.trace_id}-{trace.span_id}-{trace.flags:02x}"


def _joined(parent: str) -> _Trace | None:
    found = _TRACEPARENT.fullmatch(parent)
    if found is None:
        return None
    return _Trace(found["trace"], new_id()[:16], int(found["flags"], 16) & _sampled)


def _begun() -> _Trace:
    return _Trace(new_id(), new_id()[:16], 0)


def logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(f"darkroom.{name}")


def configure(level: str, *, people: bool | None = None, project: str | None = None) -> None:
    """Send logs to stderr: JSON as Cloud Logging reads it, or short lines where a person watches.

    `people` decides; None asks whether stderr is a terminal. In the logs of `project` a line lies beside the request
    that it belongs to. What uvicorn tells goes the same way. Safe to call again.
    """
    handler = logging.StreamHandler()
    watched = sys.stderr.isatty() if people is None else people
    handler.setFormatter(_LineFormatter() if watched else _JsonFormatter(project))
    handler.addFilter(_is_news)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("darkroom").setLevel(level)
    # Uvicorn's own handlers write a traceback as many lines, each of them an entry of its own to Cloud Logging.
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it tells more than that an exception left our app, which has told it already: Starlette passes it on."""
    exc = record.exc_info[1] if record.exc_info else None
    if exc is None:
        return True
    if record.name == "uvicorn.error" and getattr(exc, _TOLD, False):
        return False
    setattr(exc, _TOLD, True)
    return True


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    trace = _trace.get()
    return fields if trace is None else {**fields, "trace_id": trace.trace_id}


class _JsonFormatter(logging.Formatter):
    """https://cloud.google.com/logging/docs/structured-logging names all fields but `logger` and our own."""

    def __init__(self, project: str | None) -> None:
        super().__init__()
        self._project = project

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "severity": record.levelname,
            "message": record.getMessage(),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "logger": record.name,
            **_fields(record),
        }
        if self._project is not None and "trace_id" in line:
            line["logging.googleapis.com/trace"] = f"projects/{self._project}/traces/{line['trace_id']}"
        if record.exc_info:
            line["stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={_plain(value)}" for name, value in _fields(record).items())
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname} "
        text = f"{time} {mark}{record.getMessage()} {fields}".rstrip()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def _plain(value: object) -> str:
    """One line, whatever a stranger put into it."""
    return str(value).encode("unicode_escape").decode()
