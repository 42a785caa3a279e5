"""The trace that logs and facts belong to: which `traceparent` is joined, what goes out, and where it is logged."""

import asyncio
import contextvars
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import TypeVar

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.clock import new_id
from common.problems import HANDLERS
from common.request_id import RequestIds
from common.telemetry import configure, follow_trace, logger, traceparent
from local.run import bind

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
T = TypeVar("T")


def apart(call: Callable[[], T]) -> T:
    """Call it as a request of its own would be."""
    return contextvars.Context().run(call)


def after(*parents: str) -> str:
    """What goes out of a request that came with these."""

    def request() -> str:
        follow_trace(*parents)
        return traceparent()

    return apart(request)


@pytest.mark.parametrize(
    ("parent", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", "01"),
        (f"00-{TRACE}-{SPAN}-00", "00"),
        (f"00-{TRACE}-{SPAN}-ff", "01"),
        (f"00-{TRACE}-{SPAN}-02", "00"),
        (f"01-{TRACE}-{SPAN}-01", "01"),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", "01"),
    ],
)
def test_trace_of_a_request_is_joined_as_a_new_span(parent: str, flags: str) -> None:
    version, trace, span, sampled = after(parent).split("-")
    assert (version, trace, sampled) == ("00", TRACE, flags)
    assert re.fullmatch("[0-9a-f]{16}", span)
    assert span != SPAN


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "rubbish",
        TRACE,
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}a-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"FF-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01more",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"00-{'٣' * 32}-{SPAN}-01",
    ],
)
def test_request_without_a_trace_that_can_be_read_begins_one(parent: str) -> None:
    begun = after(parent)
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", begun)
    assert TRACE not in begun
    assert begun != after(parent)


def test_of_several_parents_the_first_that_can_be_read_is_joined() -> None:
    assert after("rubbish", f"00-{TRACE}-{SPAN}-01", f"00-{'a' * 32}-{SPAN}-01").split("-")[1] == TRACE


def test_each_fact_published_outside_of_any_request_begins_a_trace() -> None:
    assert apart(traceparent) != apart(traceparent)


@pytest.fixture
def _logging_restored() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "darkroom", "uvicorn", "uvicorn.access", "uvicorn.error")]
    before = [(one.handlers[:], one.level, one.propagate) for one in loggers]
    yield
    for one, state in zip(loggers, before, strict=True):
        one.handlers[:], one.level, one.propagate = state


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize("people", [False, True])
def test_every_line_carries_the_trace(people: bool, capsys: pytest.CaptureFixture[str]) -> None:
    def request() -> None:
        follow_trace(f"00-{TRACE}-{SPAN}-01")
        logger("x").info("job.advanced", extra={"job_id": "1"})

    configure("INFO", people=people)
    apart(request)
    line = capsys.readouterr().err
    if people:
        assert line.endswith(f"job.advanced job_id=1 trace_id={TRACE}\n")
    else:
        assert json.loads(line)["trace_id"] == TRACE


@pytest.mark.usefixtures("_logging_restored")
def test_line_outside_of_any_request_names_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", people=False)
    apart(lambda: logger("x").info("local.started"))
    assert "trace_id" not in json.loads(capsys.readouterr().err)


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize("project", ["my-project", None])
def test_line_lies_beside_its_request_in_the_projects_logs(
    project: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """https://cloud.google.com/logging/docs/agent/logging/configuration#special-fields"""

    def request() -> None:
        follow_trace(f"00-{TRACE}-{SPAN}-01")
        logger("x").info("job.advanced")

    configure("INFO", people=False, project=project)
    apart(request)
    line = json.loads(capsys.readouterr().err)
    expected = None if project is None else f"projects/my-project/traces/{TRACE}"
    assert line.get("logging.googleapis.com/trace") == expected
    assert line["trace_id"] == TRACE


async def crash(_: Request) -> Response:
    raise RuntimeError("a bug")


@pytest.mark.usefixtures("_logging_restored")
@pytest.mark.parametrize(
    ("headers", "is_joined"),
    [
        ([("traceparent", f"00-{TRACE}-{SPAN}-01")], True),
        ([("traceparent", f"00-{TRACE}-{SPAN}-01"), ("traceparent", f"00-{TRACE}-{SPAN}-01")], False),
        ([("traceparent", "rubbish")], False),
        ([], False),
    ],
)
async def test_bug_is_logged_with_the_trace_of_its_request(
    headers: list[tuple[str, str]], is_joined: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("INFO", people=False)
    app = Starlette(
        routes=[Route("/", crash)],
        exception_handlers=HANDLERS,
        middleware=[Middleware(RequestIds, new_id=new_id)],
    )
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api") as client:
        await client.get("/", headers=headers)
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "request.crashed"
    assert (line["trace_id"] == TRACE) is is_joined


@pytest.mark.usefixtures("_logging_restored")
async def test_bug_behind_uvicorn_is_told_once_as_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    app = Starlette(routes=[Route("/", crash)], exception_handlers=HANDLERS)
    listener = bind("127.0.0.1", 0)
    # With its own configuration of logs, as from the command line.
    server = uvicorn.Server(uvicorn.Config(app, access_log=False, lifespan="off"))
    configure("INFO", people=False, project="p")
    serving = asyncio.create_task(server._serve([listener]))
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.get(f"http://127.0.0.1:{listener.getsockname()[1]}/")
    server.should_exit = True
    await serving
    assert answer.status_code == 500
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    (crashed,) = [line for line in lines if "stack_trace" in line]
    assert crashed["message"] == "request.crashed"


@pytest.mark.usefixtures("_logging_restored")
def test_what_uvicorn_alone_knows_of_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    configure("INFO", people=False)
    logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=RuntimeError("a bug"))
    assert "a bug" in json.loads(capsys.readouterr().err)["stack_trace"]
