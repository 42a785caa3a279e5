"""Which web pages may call the public apps; the same rule for both."""

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from common.settings import Settings


def cors(settings: Settings) -> list[Middleware]:
    """Middleware for the listed origins, or none. Never `*`, so a page must be known before it may use a token."""
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "authorization",
                "content-type",
                "idempotency-key",
                "prefer",
                "last-event-id",
                "x-request-id",
            ],
            expose_headers=["location", "retry-after", "preference-applied", "x-request-id"],
            max_age=3600,
        )
    ]
