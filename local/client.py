"""The public HTTP API as the command line uses it, and nothing that only our own server could do."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx2
from pydantic import ValidationError

from common.errors import CODES
from common.job import Status
from common.loopback import LOOPBACK
from common.views import ImageView, JobView
from local import photos

KIB = 1024
# The server sends a heartbeat every 15 s; a stream that is silent for longer is dead.
silence_s_max = 45.0
answer_s_max = 30.0
upload_tries_max = 3
# What a bucket has taken is told to us within a second or so.
arrival_looks_max = 5
arrival_look_s = 1.0
reconnects_max = 8
reconnect_wait_s = 2.0

_XML_CODE = re.compile(r"<Code>(\w{1,64})</Code>")


class NoServer(Exception):
    """Nothing answers there, or nothing that speaks as a Darkroom server does."""


class Refused(Exception):
    """The server said no, for a reason with a stable `code`.

    `is_wrong_use`: asking for something else would help. `is_passing`: waiting would.
    """

    def __init__(self, code: str, detail: str, advice: str, *, is_wrong_use: bool, is_passing: bool = False) -> None:
        super().__init__(" ".join(filter(None, [f"{detail.rstrip('.')}.", advice, f"({code})"])))
        self.code = code
        self.detail = detail
        self.advice = advice
        self.is_wrong_use = is_wrong_use
        self.is_passing = is_passing


class Client:
    """One server, one caller; use it as a context. Every method may raise NoServer, and Refused where it asks.

    The token goes to the API only; signed URLs carry their own right.
    """

    def __init__(self, server: str, token: str | None = None) -> None:
        url = urlsplit(server)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise photos.WrongUse(f"{server!r} is no address of a server: write --server http://127.0.0.1:8080")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise photos.WrongUse("the token has characters that no token has: check --token or DARKROOM_TOKEN")
        self.server = server.rstrip("/")
        self._is_near = url.hostname in LOOPBACK
        self._authority = {"authorization": f"Bearer {token}"} if token else {}
        # A proxy set for the internet cannot know this machine's own servers.
        self._http = httpx2.AsyncClient(timeout=answer_s_max, trust_env=not self._is_near)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def create(self, order: Mapping[str, object]) -> JobView:
        """POST /v1/jobs; never repeated, since a second job might cost a second time."""
        return self._job((await self._ask("POST", "/v1/jobs", order)).content)

    async def job(self, job_id: str) -> JobView:
        """The job as it is now."""
        return self._job((await self._ask("GET", f"/v1/jobs/{quote(job_id, safe='')}")).content)

    async def cancel(self, job_id: str) -> JobView:
        """End it. Raises Refused("already_ended") where it has."""
        return self._job((await self._ask("POST", f"/v1/jobs/{job_id}/cancel")).content)

    async def webhook_secret(self) -> str:
        """What this caller's webhooks are signed with; the service's root says where to ask."""
        root = (await self._ask("GET", "/v1")).json()
        return str((await self._ask("GET", root["webhook_secret"])).json()["secret"])

    async def upload(self, job: JobView, photo: Path, told: Callable[[int], None]) -> None:
        """Stream the file to the job's signed URL, telling the bytes sent so far; a broken connection starts over.

        The URL takes one object only, so a repetition is safe: 412 means that it arrived. So may 403, because the
        signer may create objects but not replace any, and be told that first; the job knows
        (roles/storage.objectCreator, https://cloud.google.com/storage/docs/access-control/iam-roles).
        """
        upload = job.upload
        assert upload is not None, "a portrait always comes with its upload"
        headers = {**upload.headers, "content-length": str(photos.size_of(photo))}
        tries = 0
        while True:
            tries += 1
            try:
                answer = await self._http.put(upload.url, headers=headers, content=photos.chunks(photo, told))
            except httpx2.HTTPError as exc:
                if tries == upload_tries_max:
                    raise self._gone(exc, upload.url) from exc
                continue
            if answer.status_code < 500 or tries == upload_tries_max:
                if not await self._may_have_arrived(answer, job.id):
                    _check_uploaded(answer)
                return

    async def watch(self, job: JobView) -> AsyncIterator[JobView]:
        """Each state of the job newer than the last one, its present one first, until it is done.

        A lost stream is taken up again; states passed meanwhile are not repeated, the newest one is.
        """
        seen = 0
        failures = 0
        while failures < reconnects_max:
            try:
                async with aclosing(self._states(job.links.events)) as states:
                    async for state in states:
                        failures = 0
                        if state.revision > seen:
                            seen = state.revision
                            yield state
                        if state.done:
                            return
            except httpx2.HTTPError:
                failures += 1
            except Refused as exc:
                if not exc.is_passing:
                    raise
                failures += 1
            await asyncio.sleep(reconnect_wait_s)
        raise NoServer(
            f"{self.server} was lost, but the job goes on there: `darkroom watch {job.id}` takes it up again"
        )

    async def picture(self, job: JobView, image: ImageView) -> bytes:
        """A finished image of the job whole, as its hash says; by the API's own link where no signed one came."""
        body = await self.fetch(image.url or await self._signed(job.links.images[image.index]))
        if sha256(body).hexdigest() != image.sha256:
            raise NoServer(f"image {image.index} arrived damaged from {self.server}: try again")
        return body

    async def fetch(self, signed_url: str) -> bytes:
        """What lies behind a signed URL of a picture: a few megabytes at most."""
        try:
            answer = await self._http.get(signed_url)
        except httpx2.HTTPError as exc:
            raise self._gone(exc, signed_url) from exc
        if answer.status_code != 200:
            raise NoServer(f"the picture's link answered {answer.status_code}; ask for the job again")
        return answer.content

    async def _states(self, url: str) -> AsyncGenerator[JobView]:
        headers = {**self._authority, "accept": "text/event-stream", "cache-control": "no-store"}
        timeout = httpx2.Timeout(answer_s_max, read=silence_s_max)
        async with self._http.stream("GET", url, headers=headers, timeout=timeout) as answer:
            if answer.status_code != 200:
                await answer.aread()
                raise self._refusal(answer)
            async for event in httpx2.EventSource(answer):
                if event.event == "job":
                    yield self._job(event.data)

    async def _may_have_arrived(self, answer: httpx2.Response, job_id: str) -> bool:
        """Whether a photo is there in spite of a 403, for all that its job says within some seconds."""
        if answer.status_code != 403 or _reason(answer) == "SignatureDoesNotMatch":
            return False
        for look in range(arrival_looks_max):
            if look:
                await asyncio.sleep(arrival_look_s)
            job = await self.job(job_id)
            if job.status is not Status.AWAITING_UPLOAD or job.stage is not None:
                return True
        return False

    async def _signed(self, link: str) -> str:
        """Where an API link to an image leads."""
        try:
            answer = await self._http.get(link, headers=self._authority)
        except httpx2.HTTPError as exc:
            raise self._gone(exc, link) from exc
        if not answer.has_redirect_location:
            raise self._refusal(answer)
        return answer.headers["location"]

    async def _ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> httpx2.Response:
        url = path if "://" in path else self.server + path
        try:
            answer = await self._http.request(method, url, json=body, headers=self._authority)
        except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
            raise self._gone(exc, url) from exc
        if not answer.is_success:
            raise self._refusal(answer)
        return answer

    def _job(self, text: str | bytes) -> JobView:
        try:
            return JobView.model_validate_json(text)
        except ValidationError as exc:
            raise NoServer(
                f"{self.server} does not describe jobs as this version of darkroom does; is it another version?"
            ) from exc

    def _gone(self, exc: Exception, url: str) -> NoServer:
        origin = f"{urlsplit(url).scheme}://{urlsplit(url).netloc.rpartition('@')[2]}"
        if isinstance(exc, httpx2.ConnectError):
            advice = "run `make serve`" if self._is_near else "check --server and your connection"
            return NoServer(f"no server at {origin}: {advice}")
        return NoServer(f"{origin} broke off the conversation ({type(exc).__name__}): try again")

    def _refusal(self, answer: httpx2.Response) -> Exception:
        problem = _problem(answer)
        if problem is None and answer.status_code >= 500:
            entry = CODES["unavailable"]
            return Refused("unavailable", entry.title, entry.advice, is_wrong_use=False, is_passing=True)
        if problem is None:
            return NoServer(f"{self.server} answered {answer.status_code}, not as Darkroom does: check --server")
        advice = str(problem.get("advice", ""))
        if "`detail`" in advice:
            # For readers of JSON; here the choices have just been read out.
            advice = ""
        if answer.status_code == 401:
            advice = "Give a token with --token or DARKROOM_TOKEN."
        return Refused(
            str(problem["code"]),
            str(problem.get("detail", answer.status_code)),
            advice,
            is_wrong_use=answer.status_code < 500 and answer.status_code != 429,
            is_passing=answer.status_code in {429, 503},
        )


# https://cloud.google.com/storage/docs/xml-api/reference-status
_REFUSED_UPLOADS = {
    "EntityTooLarge": "upload_too_large",
    "EntityTooSmall": "upload_empty",
    "ExpiredToken": "upload_expired",
}


def _problem(answer: httpx2.Response) -> dict[str, Any] | None:
    if not answer.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        body = answer.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) and "code" in body else None


def _reason(answer: httpx2.Response) -> str:
    found = _XML_CODE.search(answer.text[: 4 * KIB])
    return found[1] if found else str(answer.status_code)


def _check_uploaded(answer: httpx2.Response) -> None:
    if answer.is_success or answer.status_code == 412:
        return
    reason = _reason(answer)
    if reason in _REFUSED_UPLOADS:
        entry = CODES[_REFUSED_UPLOADS[reason]]
        raise Refused(_REFUSED_UPLOADS[reason], entry.title, entry.advice, is_wrong_use=True)
    raise NoServer(f"the bucket refused the upload ({reason}): try again")
