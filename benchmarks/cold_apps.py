"""What `cold_start.py` starts beside ingest-api; nothing heavier than Starlette is imported here."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def bare() -> Starlette:
    """The least that answers `/health/live`."""
    return Starlette(routes=[Route("/health/live", _live)])


async def _live(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})
