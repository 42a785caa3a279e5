"""The obvious alternative: one web handler that takes the photo, shrinks it, asks the model and answers the picture.

It keeps nothing, tells nobody and forgets everything when its process ends; that is what it is compared for.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO

from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks import model

EDGE_PX = 512


def create_app(model_url: str, *, blocking: bool) -> Starlette:
    """`blocking` runs photo and model in Starlette's thread pool; otherwise the photo is shrunk on the event loop."""
    client = model.open_client(model_url)

    async def inline(request: Request) -> Response:
        photo = shrink(await request.body())
        return Response(await model.ask(client, photo), media_type="image/jpeg")

    async def threads(request: Request) -> Response:
        body = await request.body()
        return Response(await run_in_threadpool(_work, body), media_type="image/jpeg")

    def _work(body: bytes) -> bytes:
        return model.ask_blocking(client, shrink(body))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aio.aclose()
        client.close()

    routes = [Route("/generate", threads if blocking else inline, methods=["POST"]), Route("/health/live", health)]
    return Starlette(routes=routes, lifespan=lifespan)


def shrink(photo: bytes) -> bytes:
    """As tutorials do it: decode all of it, turn it upright, make a thumbnail, save."""
    with Image.open(BytesIO(photo)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    upright.thumbnail((EDGE_PX, EDGE_PX))
    buffer = BytesIO()
    upright.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
