"""The call to the model as a plain program makes it with google-genai; nothing of Darkroom's own is used here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.genai import Client
    from google.genai.types import Content, GenerateContentConfig, GenerateContentResponse

NAME = "gemini-nano-banana-2.1"
PROMPT = "A professional corporate portrait of the person in the photo, soft light, neutral background."


def open_client(url: str) -> "Client":
    """A client that asks `url`, and asks once."""
    from google.genai import Client
    from google.genai.types import HttpOptions, HttpRetryOptions

    options = HttpOptions(base_url=url, retry_options=HttpRetryOptions(attempts=1))
    return Client(vertexai=False, api_key="benchmark", http_options=options)


async def ask(client: "Client", photo: bytes) -> bytes:
    """One picture by the asynchronous client."""
    contents, config = _request(photo)
    return _picture(await client.aio.models.generate_content(model=NAME, contents=contents, config=config))


def ask_blocking(client: "Client", photo: bytes) -> bytes:
    """One picture by the blocking client."""
    contents, config = _request(photo)
    return _picture(client.models.generate_content(model=NAME, contents=contents, config=config))


def _request(photo: bytes) -> "tuple[Content, GenerateContentConfig]":
    from google.genai import types

    parts = [types.Part(inline_data=types.Blob(data=photo, mime_type="image/jpeg")), types.Part(text=PROMPT)]
    config = types.GenerateContentConfig(
        response_modalities=["IMAGE"],
        image_config=types.ImageConfig(aspect_ratio="3:4"),
        automatic_continuation=False,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
    )
    return types.Content(role="user", parts=parts), config


def _picture(response: "GenerateContentResponse") -> bytes:
    for part in response.parts or []:
        if part.inline_data is not None and part.inline_data.data is not None:
            return part.inline_data.data
    raise RuntimeError("the model answered no picture")
