"""The one adapter to Gemini, over Google's own client. No retries here; outcomes.py says what a call came to."""

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from processor.outcomes import Action, Answer, ModelFailure, from_exception, read_answer

if TYPE_CHECKING:
    from google.genai import Client
    from google.genai.types import GenerateContentResponse


class GeminiNotConfigured(ValueError):
    """Neither an API key nor a Vertex project is set, so no model can be asked."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One picture to ask for: checked against the catalogue, since the SDK checks nothing. `photo` is for portraits."""

    model: str
    prompt: str
    aspect_ratio: str
    size: str
    photo: bytes | None = None
    photo_content_type: str = "image/jpeg"


class Gemini:
    """One SDK client per process. A Vertex project wins over an API key; `base_url` redirects either (stand-in, tests).

    Nothing is imported or opened before the first call. The key is never part of a `repr` or an error.
    Raises GeminiNotConfigured at once when there is no way to authenticate.
    """

    def __init__(
        self,
        *,
        api_key: str | None,
        base_url: str | None,
        vertex_project: str | None,
        vertex_location: str | None,
        deadline_s: float,
    ) -> None:
        if not api_key and not vertex_project:
            raise GeminiNotConfigured("set VERTEX_PROJECT (Vertex AI) or GEMINI_API_KEY (Gemini API)")
        self._api_key = api_key
        self._base_url = base_url
        self._vertex_project = vertex_project
        self._vertex_location = vertex_location or "global"
        self._deadline_s = deadline_s
        self._building = asyncio.Lock()
        self._client: Client | None = None

    async def generate(self, ask: Ask) -> Answer:
        """Ask for one picture with one HTTP request, at most `deadline_s` long. Repeating it costs money again.

        Raises ModelFailure for every other outcome, with its cause, and nothing else but CancelledError;
        a cancelled call may have been billed. About 2.2 ms of CPU on the event loop for 60 KB in and 250 KB out.
        """
        try:
            client = await self._opened()
        except Exception as exc:
            raise ModelFailure(Action.WAIT, "service_config", billed="no", detail=type(exc).__name__) from exc
        try:
            started = time.perf_counter()
            async with asyncio.timeout(self._deadline_s):
                response = await self._unary(client, ask)
            return read_answer(response, model_ms=round((time.perf_counter() - started) * 1000))
        except ModelFailure:
            raise
        except Exception as exc:
            raise from_exception(exc) from exc

    async def warm(self) -> None:
        """Import the SDK and build its client now, so that the first call does not pay for it. Never raises."""
        with suppress(Exception):
            await self._opened()

    async def aclose(self) -> None:
        """Close connections; safe to repeat. A later `generate` opens a new client."""
        client, self._client = self._client, None
        if client is not None:
            await client.aio.aclose()
            client.close()

    async def _unary(self, client: "Client", ask: Ask) -> "GenerateContentResponse":
        from google.genai import types

        parts = [types.Part(text=ask.prompt)]
        if ask.photo is not None:
            parts.insert(0, types.Part(inline_data=types.Blob(data=ask.photo, mime_type=ask.photo_content_type)))
        return await client.aio.models.generate_content(
            model=ask.model,
            contents=[types.Content(role="user", parts=parts)],
            config=types.GenerateContentConfig(
                response_modalities=["IMAGE"],
                image_config=types.ImageConfig(
                    aspect_ratio=ask.aspect_ratio,
                    # 1K is what the API draws unasked, and the models that draw nothing else do not know the field.
                    image_size=None if ask.size == "1K" else ask.size,
                ),
                # Both would send further paid requests on their own.
                automatic_continuation=False,
                automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            ),
        )

    async def _opened(self) -> "Client":
        async with self._building:
            if self._client is None:
                # 0.6 s of importing and reading certificates, which must not hold up the other calls.
                self._client = await asyncio.to_thread(self._build)
            return self._client

    def _build(self) -> "Client":
        from google.genai import Client
        from google.genai.types import HttpOptions, HttpRetryOptions

        # attempts=1, because without it the SDK answers a lost connection on aiohttp with a second paid request.
        options = HttpOptions(base_url=self._base_url, retry_options=HttpRetryOptions(attempts=1))
        if self._vertex_project:
            return Client(
                vertexai=True, project=self._vertex_project, location=self._vertex_location, http_options=options
            )
        return Client(vertexai=False, api_key=self._api_key, http_options=options)
