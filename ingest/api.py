"""The public ingest API: jobs are opened, shown, listed and cancelled here. It opens no photo and calls no model."""

import asyncio
import json
import re

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from common.auth import Users
from common.cors import cors
from common.errors import NotFound, Rejected, Unavailable
from common.google.service import on_google_cloud
from common.health import health_routes
from common.job import Job, Kind, Status
from common.kept import Kept
from common.links import ResultLinks
from common.lookup import check_job_id, find_job
from common.names import upload_name
from common.ports import Engine, FirestoreToken
from common.problems import HANDLERS, parse, read_body
from common.request_id import RequestIds
from common.settings import Settings
from common.telemetry import logger
from common.views import JobView, Upload, job_view, signed_view
from ingest.docs import doc_routes
from ingest.intake import Intake
from ingest.schemas import FirestoreAccess, JobList, JobRequest

log = logger(__name__)

body_bytes_max = 64 * 1024
wait_s_max = 60
page_size_max = 100
# An owner who asks again and again costs one signature in ten minutes, and has fifty left of the token's hour.
token_keep_s = 600
tokens_max = 10_000
_scan_pages_max = 10
_SMALL_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")
_PREFER_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})(?:$|[,;\s])")


class JobsApi:
    """The handlers of `/v1/jobs`. A job of somebody else answers exactly like one that never was."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._users = Users(settings, engine.now)
        self._intake = Intake(engine, settings)
        self._links = ResultLinks(engine, settings)
        self._tokens: Kept[FirestoreToken] = Kept(engine.now, keep_s=token_keep_s, entries_max=tokens_max)

    async def create(self, request: Request) -> Response:
        """POST /v1/jobs: 201 with the job, and for a portrait with its signed upload."""
        owner = self._users.owner(request)
        wanted = parse(JobRequest, await _json(request))
        job = self._intake.draft(owner, wanted)
        # Signed first: a job whose client was never told where to upload would only wait for its end.
        upload = await self._upload(job, wanted) if job.kind is Kind.PORTRAIT else None
        view = job_view(await self._intake.open_job(job), self._settings).model_copy(update={"upload": upload})
        return _answer(view, status=201, headers={"location": view.links.self})

    async def show(self, request: Request) -> Response:
        """GET /v1/jobs/{id}: the job with signed image URLs; `Prefer: wait=N` answers when it is done."""
        owner = self._users.owner(request)
        job = await find_job(self._engine, owner, request.path_params["job_id"])
        headers = {}
        preference = _PREFER_WAIT.search(request.headers.get("prefer", ""))
        if preference:
            wait_s = min(int(preference[1]), wait_s_max)
            headers["preference-applied"] = f"wait={wait_s}"
            if not job.done:
                job = await self._wait(job, wait_s)
        return _answer(await signed_view(job, self._settings, self._links), headers=headers)

    async def page(self, request: Request) -> Response:
        """GET /v1/jobs: the caller's jobs, newest first; `status` filters, so a page may come short."""
        owner = self._users.owner(request)
        size = _page_size(request.query_params.get("page_size", "20"))
        status = _status(request.query_params.get("status"))
        token = request.query_params.get("page_token") or None
        jobs: list[Job] = []
        for _ in range(_scan_pages_max):
            page = await self._engine.store.page(Job, owner=owner, limit=size - len(jobs), token=token)
            jobs += [item.record for item in page.items if status is None or item.record.status is status]
            token = page.next_token
            if token is None or len(jobs) >= size:
                break
        views = [job_view(job, self._settings) for job in jobs]
        return _answer(JobList.model_construct(jobs=views, next_page_token=token))

    async def cancel(self, request: Request) -> Response:
        """POST /v1/jobs/{id}/cancel: the cancelled job; its ledger shows a call that was already sent."""
        owner = self._users.owner(request)
        job_id = request.path_params["job_id"]
        check_job_id(job_id)
        job = await self._intake.cancel(owner, job_id)
        return _answer(job_view(job, self._settings))

    async def image(self, request: Request) -> Response:
        """GET /v1/jobs/{id}/images/{index}: 302 to the signed image, or its thumbnail."""
        owner = self._users.owner(request)
        job = await find_job(self._engine, owner, request.path_params["job_id"])
        index = _small_number(request.path_params["index"])
        if index is None or index >= len(job.images):
            raise NotFound(f"job {job.id} has {len(job.images)} image(s), counted from 0")
        image = job.images[index]
        thumbnail = request.query_params.get("variant") == "thumbnail"
        name = image.thumbnail_name if thumbnail else image.name
        if name is None:
            if job.done:
                raise NotFound(f"image {index} of job {job.id} was not made")
            raise Rejected("not_ready", f"job {job.id} is {job.status}")
        url = await self._links.url(name)
        return RedirectResponse(url, 302, headers={"cache-control": "private, no-store"})

    async def firestore_token(self, request: Request) -> Response:
        """POST /v1/firestore-token: a token with which the caller listens to its jobs in Firestore itself."""
        owner = self._users.owner(request)
        mint = self._engine.firestore_token
        if mint is None:
            raise Rejected("no_firestore", "this server keeps its jobs elsewhere")
        made = await self._tokens.get(owner, lambda: mint(owner))
        return _answer(
            FirestoreAccess(
                token=made.token,
                expires_at=made.expires_at,
                project_id=made.project_id,
                database=made.database,
                collection=Job.collection,
                owner=owner,
            )
        )

    async def _wait(self, job: Job, wait_s: int) -> Job:
        try:
            async with asyncio.timeout(wait_s), self._engine.feed.watch_job(job.id) as states:
                async for job in states:
                    if job.done:
                        break
        except TimeoutError:
            pass
        except Unavailable as exc:
            # The job was read a moment ago; that it cannot be followed is no reason to keep it from the caller.
            log.warning("wait.broken", extra={"job_id": job.id, "detail": exc.detail})
        return job

    async def _upload(self, job: Job, wanted: JobRequest) -> Upload:
        signed = await self._engine.blobs.sign_put(
            self._settings.uploads_bucket,
            upload_name(job.owner, job.id),
            content_type=wanted.content_type,
            bytes_max=self._settings.upload_bytes_max,
            expires_s=self._settings.upload_window_s,
        )
        return Upload(url=signed.url, headers=dict(signed.headers), expires_at=signed.expires_at)


def create_app(engine: Engine, settings: Settings) -> Starlette:
    """The ingest-api service. Raises SettingsError if nobody could sign in."""
    jobs = JobsApi(engine, settings)
    routes = [
        Route("/v1/jobs", jobs.create, methods=["POST"]),
        Route("/v1/jobs", jobs.page, methods=["GET"]),
        Route("/v1/jobs/{job_id}", jobs.show, methods=["GET"]),
        Route("/v1/jobs/{job_id}/cancel", jobs.cancel, methods=["POST"]),
        Route("/v1/jobs/{job_id}/images/{index}", jobs.image, methods=["GET"]),
        Route("/v1/firestore-token", jobs.firestore_token, methods=["POST"]),
        *doc_routes(settings),
        *health_routes(engine),
    ]
    middleware = [Middleware(RequestIds, new_id=engine.new_id), *cors(settings)]
    return Starlette(routes=routes, exception_handlers=HANDLERS, middleware=middleware)


app = on_google_cloud(create_app)


async def _json(request: Request) -> object:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Rejected("unsupported_media_type")
    body = await read_body(request, bytes_max=body_bytes_max)
    try:
        value = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as exc:
        raise Rejected("malformed_request", "the body is not valid JSON") from exc
    if not isinstance(value, dict):
        raise Rejected("malformed_request", "the body must be one JSON object")
    return value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field stands twice")
    return found


def _page_size(text: str) -> int:
    size = _small_number(text)
    if size is None or not 1 <= size <= page_size_max:
        raise Rejected("invalid_request", f"page_size: must be 1 to {page_size_max}")
    return size


def _small_number(text: str) -> int | None:
    """0 to 999 in plain digits, else None; int() alone takes other scripts' digits and fails on thousands of them."""
    return int(text) if _SMALL_NUMBER.fullmatch(text) else None


def _status(text: str | None) -> Status | None:
    if text is None:
        return None
    try:
        return Status(text)
    except ValueError as exc:
        raise Rejected("invalid_request", f"status: must be one of {', '.join(Status)}") from exc


def _answer(
    body: JobView | JobList | FirestoreAccess, *, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    # `model_construct` left nested models as they were, so serialisation is duck-typed and needs no validation.
    text = body.__pydantic_serializer__.to_json(body, warnings=False)
    return Response(
        text, status, headers={"cache-control": "no-store", **(headers or {})}, media_type="application/json"
    )
