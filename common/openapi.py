"""The OpenAPI 3.1 document of both public apps, built from the same models that check and write the bodies."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema

from common.errors import CODES
from common.version import VERSION
from common.views import JobView

JsonObject = dict[str, Any]

# The request and list models live with the service that reads them; it hands them in (see `document`).
_PROBLEM = "application/problem+json"


class Problem(BaseModel):
    """RFC 9457, with our stable `code`, what to do, and whether the same request may succeed later."""

    type: str = Field(examples=["urn:darkroom:error:not_found"])
    title: str
    status: int
    detail: str
    code: str
    advice: str
    retryable: bool
    errors: list[dict[str, str]] | None = Field(None, description="The wrong fields, 20 at most.")
    errors_omitted: int | None = Field(None, description="How many wrong fields there are besides.")
    request_id: str | None = Field(None, description="With status 500: what the log calls this request.")


class Secret(BaseModel):
    """What signatures are verified with."""

    secret: str = Field(examples=["whsec_..."])


def document(
    request: type[BaseModel],
    listing: type[BaseModel],
    firestore: type[BaseModel],
    *,
    api_url: str,
    events_url: str,
) -> JsonObject:
    """The merged document; `request` is the body of POST /v1/jobs, `listing` the answer of GET /v1/jobs.

    `firestore` is the answer of POST /v1/firestore-token.
    """
    inputs, outputs = [request], [JobView, listing, firestore, Problem, Secret]
    pairs: Any = [(m, "validation") for m in inputs] + [(m, "serialization") for m in outputs]
    _, definitions = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Darkroom",
            "version": VERSION,
            "description": "Photos and prompts become images. Create a job, send the photo to the signed URL, "
            "and hear of the result by stream, webhook or by asking.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": api_url}],
        "security": [{"bearer": []}],
        "paths": _paths(request.__name__, listing.__name__, firestore.__name__, events_url),
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _paths(request: str, listing: str, firestore: str, events_url: str) -> JsonObject:
    job = _json("JobView", "The job.")
    job_id = _parameter("job_id", "path", {"type": "string", "pattern": "^[0-9a-f]{32}$"})
    index = _parameter("index", "path", {"type": "integer", "minimum": 0, "maximum": 3})
    variant = _parameter("variant", "query", {"type": "string", "enum": ["thumbnail"]})
    wait = _parameter("prefer", "header", {"type": "string", "examples": ["wait=30"]})
    status = _parameter("status", "query", {"$ref": "#/components/schemas/Status"})
    size = _parameter("page_size", "query", {"type": "integer", "minimum": 1, "maximum": 100, "default": 20})
    token = _parameter("page_token", "query", {"type": "string"})
    created = {**job, "headers": {"Location": {"schema": {"type": "string"}}}, "description": "The new job."}
    redirect = {"description": "To the signed image.", "headers": {"Location": {"schema": {"type": "string"}}}}
    stream = {"description": "Server-sent events named `job`.", "content": {"text/event-stream": {"schema": {}}}}
    health = {"description": "Fit.", "content": {"application/json": {"schema": {"type": "object"}}}}
    body = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
    asked = [400, 401, 413, 415, 422, 503]
    found = [401, 404, 503]
    notifier = {"servers": [{"url": events_url}]}
    return {
        "/v1/jobs": {
            "post": {**_operation("createJob", "Open a job", {"201": created}, asked), "requestBody": body},
            "get": _operation("listJobs", "Your jobs, newest first", {"200": _json(listing, "A page of jobs.")},
                              [401, 422, 503], [status, size, token]),
        },
        "/v1/jobs/{job_id}": {
            "get": _operation("getJob", "One job; `Prefer: wait=N` answers when it is done, after 60 s at most",
                              {"200": job}, found, [job_id, wait]),
        },
        "/v1/jobs/{job_id}/cancel": {
            "post": _operation("cancelJob", "End a job now", {"200": job}, [401, 404, 409, 503], [job_id]),
        },
        "/v1/jobs/{job_id}/images/{index}": {
            "get": _operation("getImage", "An image or its thumbnail", {"302": redirect}, [401, 404, 409, 503],
                              [job_id, index, variant]),
        },
        "/v1/firestore-token": {
            "post": _operation("createFirestoreToken", "Listen to your jobs in Firestore yourself, for an hour",
                               {"200": _json(firestore, "The token, and where the jobs are.")}, [401, 404, 422, 503]),
        },
        "/v1/jobs/{job_id}/events": {
            **notifier,
            "get": _operation("watchJob", "The job as it changes", {"200": stream}, found, [job_id]),
        },
        "/v1/webhook-secret": {
            **notifier,
            "get": _operation("getWebhookSecret", "What verifies your webhooks",
                              {"200": _json("Secret", "The secret.")}, [401]),
        },
        **{
            path: {"get": {**_operation(name, text, {"200": health}, errors), "security": []}}
            for path, name, text, errors in (
                ("/health/live", "live", "Does the process answer?", list[int]()),
                ("/health/ready", "ready", "Does the store answer?", [503]),
                ("/health", "health", "The same, for people", [503]),
            )
        },
    }  # fmt: skip


def _operation(
    name: str,
    summary: str,
    answers: Mapping[str, JsonObject],
    errors: list[int],
    parameters: list[JsonObject] = [],  # noqa: B006
) -> JsonObject:
    problems = {str(status): _problem(status) for status in errors}
    tag = "health" if name in {"live", "ready", "health"} else "jobs"
    operation = {"operationId": name, "summary": summary, "tags": [tag], "responses": {**answers, **problems}}
    return {**operation, "parameters": parameters} if parameters else operation


@cache
def _problem(status: int) -> JsonObject:
    codes = ", ".join(f"`{code}`" for code, entry in CODES.items() if entry.status == status)
    return {"description": f"One of {codes}.", "content": {_PROBLEM: {"schema": _ref("Problem")}}}


def _json(model: str, description: str) -> JsonObject:
    return {"description": description, "content": {"application/json": {"schema": _ref(model)}}}


def _ref(model: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{model}"}


def _parameter(name: str, place: str, schema: JsonObject) -> JsonObject:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}
