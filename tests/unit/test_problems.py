"""Problem documents: short whatever was sent, quiet when the caller left, and traceable when something broke."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from common.errors import Rejected
from common.problems import HANDLERS, fields_max, invalid, parse, problem, read_body
from common.request_id import RequestIds

MADE = "0" * 31 + "1"


class Form(BaseModel):
    """A body that takes one field."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""


def refusal(body: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        Form.model_validate(body)
    return caught.value


def test_a_thousand_wrong_fields_give_a_short_answer_that_says_how_many_more() -> None:
    answer = invalid(refusal({f"unknown_{number}": 1 for number in range(1000)}))
    body = bytes(answer.body)
    assert len(body) < 4000
    assert body.count(b'"field"') == fields_max == 20
    assert b'"errors_omitted":980' in body
    assert b"and 997 more" in body


def test_few_wrong_fields_are_all_named() -> None:
    body = bytes(invalid(refusal({"one": 1, "two": 2, "name": 7})).body)
    assert body.count(b'"field"') == 3
    assert b"more" not in body
    assert b"errors_omitted" not in body


def test_the_name_of_a_wrong_field_is_cut_short() -> None:
    assert len(bytes(invalid(refusal({"x" * 60_000: 1})).body)) < 1000


@pytest.mark.parametrize("code", ["upload_expired", "busy"])
def test_a_code_that_only_ends_jobs_is_no_answer_to_a_request(code: str) -> None:
    with pytest.raises(KeyError, match=code):
        problem(code)


def asking(handler: Callable[[Request], Awaitable[Response]]) -> Starlette:
    routes = [Route("/", handler, methods=["GET", "POST"])]
    return Starlette(
        routes=routes, exception_handlers=HANDLERS, middleware=[Middleware(RequestIds, new_id=lambda: MADE)]
    )


async def ask(handler: Callable[[Request], Awaitable[Response]], **headers: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=asking(handler), raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api.local") as client:
        raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
        return await client.get("/", headers=raw)


async def fine(_: Request) -> Response:
    return Response()


async def broken(_: Request) -> Response:
    raise RuntimeError("a bug")


async def refused(_: Request) -> Response:
    raise Rejected("unsafe_record")


async def misreading(_: Request) -> Response:
    # What our own records look like is not the caller's business.
    Form.model_validate({"secret_field_of_ours": 1})
    return Response()


async def parsing(_: Request) -> Response:
    parse(Form, {"wrong": 1})
    return Response()


async def reading(request: Request) -> Response:
    return Response(await read_body(request, bytes_max=10))


async def test_every_answer_carries_the_callers_request_id_or_one_of_ours() -> None:
    assert (await ask(fine)).headers["x-request-id"] == MADE
    given = "Zz-9_" + "x" * 59
    assert (await ask(fine, **{"x-request-id": given})).headers["x-request-id"] == given


@pytest.mark.parametrize("odd", ["", "x" * 65, "a b", 'a"', "a/b", "é"])
async def test_a_request_id_that_could_harm_a_log_is_replaced(odd: str) -> None:
    answer = await ask(fine, **{"x-request-id": odd})
    assert answer.headers["x-request-id"] == MADE


async def test_a_bug_is_answered_and_logged_under_one_request_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="darkroom"):
        answer = await ask(broken, **{"x-request-id": "abc-1"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (500, "abc-1")
    assert answer.json()["request_id"] == "abc-1"
    assert "a bug" not in answer.text
    (line,) = [record for record in caplog.records if record.getMessage() == "request.crashed"]
    assert vars(line)["request_id"] == "abc-1"


async def test_what_the_caller_sent_wrong_is_named() -> None:
    answer = await ask(parsing)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == ["wrong"]


async def test_a_record_that_does_not_fit_is_our_bug_and_not_the_callers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="darkroom"):
        answer = await ask(misreading)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret_field_of_ours" not in answer.text
    assert "request.crashed" in caplog.messages


async def test_every_answer_whose_advice_names_the_request_id_has_it() -> None:
    assert (await ask(refused)).json()["request_id"] == MADE


async def test_a_caller_who_hangs_up_leaves_one_quiet_line(caplog: pytest.LogCaptureFixture) -> None:
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "http_version": "1.1"}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    with caplog.at_level(logging.INFO, logger="darkroom"):
        await asking(reading)(scope, receive, send)
    (line,) = [record for record in caplog.records if record.name.startswith("darkroom")]
    assert (line.levelname, line.getMessage(), line.exc_info) == ("INFO", "request.abandoned", None)
    assert sent[0]["status"] < 500


@pytest.mark.parametrize("announced", ["9" * 5000, "11"])
async def test_a_body_announced_too_large_is_refused_however_long_the_number(announced: str) -> None:
    assert (await ask(reading, **{"content-length": announced})).json()["code"] == "body_too_large"


@pytest.mark.parametrize("announced", ["²", "x", ""])
async def test_an_announcement_that_is_no_number_is_not_believed(announced: str) -> None:
    headers = [(b"content-length", announced.encode("latin-1"))]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}

    async def receive() -> Message:
        return {"type": "http.request", "body": b"short", "more_body": False}

    assert await read_body(Request(scope, receive), bytes_max=10) == b"short"
