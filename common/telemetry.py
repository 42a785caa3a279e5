"""Logs: one line per decision, an event name and fields; never payloads, signed URLs, tokens or prompts."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


def logger(name: str) -> logging.Logger:
    """The logger of a module; pass `__name__`."""
    return logging.getLogger(f"darkroom.{name}")


def configure(level: str, *, people: bool | None = None) -> None:
    """Send logs to stderr: JSON as Cloud Logging reads it, or short lines where a person watches.

    `people` decides; None asks whether stderr is a terminal. Safe to call again.
    """
    handler = logging.StreamHandler()
    watched = sys.stderr.isatty() if people is None else people
    handler.setFormatter(_LineFormatter() if watched else _JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("darkroom").setLevel(level)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class _JsonFormatter(logging.Formatter):
    """https://cloud.google.com/logging/docs/structured-logging names `severity`, `message` and `time`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "severity": record.levelname,
            "message": record.getMessage(),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "logger": record.name,
            **_fields(record),
        }
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
