"""The wall clock and random ids: what an Engine has where no test says otherwise."""

import secrets
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


def new_id() -> str:
    """32 random hex digits."""
    return secrets.token_hex(16)
