"""What the API says about itself: `/v1`, `/openapi.json` and a docs page that needs no internet."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from common.errors import NotFound
from common.openapi import document
from common.settings import Settings
from ingest.schemas import FirestoreAccess, JobList, JobRequest

_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Darkroom API</title>
<link rel="stylesheet" href="docs/swagger-ui.css">
<link rel="icon" href="docs/favicon-32x32.png">
</head>
<body>
<div id="docs"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>
SwaggerUIBundle({url: "openapi.json", dom_id: "#docs", deepLinking: true, tryItOutEnabled: true, validatorUrl: null})
</script>
</body>
</html>
"""


def doc_routes(settings: Settings) -> list[Route]:
    """Routes that need no sign-in: they say nothing but what the API is."""

    @cache
    def described() -> dict[str, object]:
        # Built when first asked for: few instances ever are, and every cold start would pay 10 ms.
        return document(JobRequest, JobList, FirestoreAccess, api_url=settings.api_url, events_url=settings.events_url)

    async def root(_: Request) -> Response:
        api, events = settings.api_url, settings.events_url
        return JSONResponse(
            {
                "jobs": f"{api}/v1/jobs",
                "events": f"{events}/v1/jobs/{{job_id}}/events",
                "webhook_secret": f"{events}/v1/webhook-secret",
                "openapi": f"{api}/openapi.json",
                "docs": f"{api}/docs",
            }
        )

    async def openapi(_: Request) -> Response:
        return JSONResponse(described())

    async def page(_: Request) -> Response:
        return HTMLResponse(_PAGE)

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            raise NotFound("the docs have no such file")
        headers = {"cache-control": "public, max-age=86400"}
        return FileResponse(_asset_folder() / name, media_type=_ASSETS[name], headers=headers)

    async def redoc(_: Request) -> Response:
        return RedirectResponse("docs", 308)

    return [
        Route("/v1", root),
        Route("/openapi.json", openapi),
        Route("/docs", page),
        Route("/docs/{name}", asset),
        Route("/redoc", redoc),
    ]


@cache
def _asset_folder() -> Path:
    """Swagger UI as the package swagger-ui-py ships it; the package's own code is never run."""
    spec = find_spec("swagger_ui")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the docs page needs swagger-ui-py; install the project's requirements")
    return Path(spec.origin).parent / "static"
