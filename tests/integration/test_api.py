"""The public API: what is asked well is answered, what is asked badly gets a problem that says what to do."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from common.errors import CODES
from tests.world import World, jpeg, open_world

SECRET = "s" * 40


def check_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document, checked for form."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = answer.json()
    assert (body["code"], body["status"]) == (code, status)
    assert body["type"] == f"urn:darkroom:error:{code}"
    assert body["advice"] == CODES[code].advice
    return body


async def test_a_new_portrait_says_where_its_photo_goes(world: World) -> None:
    answer = await world.api.post("/v1/jobs", json={"metadata": {"order": "17"}})
    job = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, job["links"]["self"])
    assert (job["kind"], job["style"], job["aspect_ratio"], job["size"]) == ("portrait", "corporate", "3:4", "1K")
    assert (job["status"], job["done"], job["metadata"]) == ("awaiting_upload", False, {"order": "17"})
    assert job["upload"]["method"] == "PUT"
    assert set(job["upload"]["headers"]) == {
        "Content-Type",
        "x-goog-content-length-range",
        "x-goog-if-generation-match",
    }


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        ({"style": "baroque"}, "unknown_style"),
        ({"style": "photo"}, "unknown_style"),
        ({"model": "gpt-image"}, "unknown_model"),
        ({"aspect_ratio": "7:5"}, "unsupported_ratio"),
        ({"size": "8K"}, "unsupported_size"),
        ({"kind": "image"}, "prompt_empty"),
        ({"kind": "image", "prompt": "   "}, "prompt_empty"),
        ({"kind": "image", "prompt": "x" * 1001}, "prompt_too_long"),
        ({"negative_prompt": "x" * 1001}, "prompt_too_long"),
        ({"kind": "film"}, "invalid_request"),
        ({"num_images": 5}, "invalid_request"),
        ({"num_images": 0}, "invalid_request"),
        ({"content_type": "image/gif"}, "invalid_request"),
        ({"colour": "red"}, "invalid_request"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "invalid_request"),
        ({"metadata": {"key": "x" * 257}}, "invalid_request"),
        ({"metadata": {"__key__": "x"}}, "invalid_request"),
        ({"num_images": True}, "invalid_request"),
        ({"webhook": {"url": "http://127.0.0.1:99999/"}}, "invalid_request"),
        ({"webhook": {"url": "https://example.com/a b"}}, "invalid_request"),
        ({"webhook": {"url": "ftp://example.com"}}, "invalid_request"),
        ({"webhook": {"url": "http://example.com/hook"}}, "invalid_request"),
        ({"webhook": {"url": "https://me@example.com/"}}, "invalid_request"),
    ],
)
async def test_a_wish_that_cannot_be_met_is_refused_and_nothing_is_stored(
    world: World, wishes: dict[str, Any], code: str
) -> None:
    body = check_problem(await world.api.post("/v1/jobs", json=wishes), 422, code)
    assert body["detail"]
    assert (await world.api.get("/v1/jobs")).json()["jobs"] == []


async def test_a_refused_choice_names_the_choices(world: World) -> None:
    styles = check_problem(await world.api.post("/v1/jobs", json={"style": "baroque"}), 422, "unknown_style")
    assert "corporate" in styles["detail"]
    ratios = check_problem(await world.api.post("/v1/jobs", json={"aspect_ratio": "7:5"}), 422, "unsupported_ratio")
    assert "3:4" in ratios["detail"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"job"', b"\xff\xfe", b'{"num_images": NaN}', b'{"size": "1K", "size": "2K"}', b"[" * 9999],
)
async def test_a_body_that_is_no_json_object_is_malformed(world: World, body: bytes) -> None:
    answer = await world.api.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    check_problem(answer, 400, "malformed_request")


async def test_half_a_character_is_refused(world: World) -> None:
    body = b'{"kind": "image", "prompt": "\\ud800"}'
    answer = await world.api.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
    check_problem(answer, 422, "invalid_request")


async def test_a_body_of_another_type_or_too_large_is_refused_before_it_is_read(world: World) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    check_problem(await world.api.post("/v1/jobs", content=b"a=b", headers=form), 415, "unsupported_media_type")
    huge = json.dumps({"prompt": "x" * 100_000}).encode()
    typed = {"content-type": "application/json"}
    check_problem(await world.api.post("/v1/jobs", content=huge, headers=typed), 413, "body_too_large")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    check_problem(await world.api.post("/v1/jobs", content=endless(), headers=typed), 413, "body_too_large")


@pytest.mark.parametrize("path", ["/v1/jobs/nope", f"/v1/jobs/{'0' * 32}", f"/v1/jobs/{'0' * 32}/events", "/nowhere"])
async def test_what_does_not_exist_is_not_found(world: World, path: str) -> None:
    check_problem(await world.api.get(path), 404, "not_found")


async def test_a_method_that_is_not_offered_says_which_are(world: World) -> None:
    answer = await world.api.put("/v1/jobs/" + "0" * 32, json={})
    check_problem(answer, 405, "method_not_allowed")
    assert "GET" in answer.headers["allow"]


async def test_waiting_answers_when_the_job_is_done(world: World) -> None:
    job = await world.create(kind="image", prompt="a pear")
    waiting = asyncio.create_task(world.api.get(f"/v1/jobs/{job['id']}", headers={"prefer": "wait=30"}))
    await world.run()
    answer = await waiting
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("completed", "wait=30")


async def test_waiting_for_a_job_that_does_not_end_answers_with_what_there_is(world: World) -> None:
    job = await world.create()
    answer = await world.api.get(f"/v1/jobs/{job['id']}", headers={"prefer": "respond-async, wait=0"})
    assert answer.json()["status"] == "awaiting_upload"


async def test_pages_go_through_all_jobs_newest_first_without_signed_links(world: World) -> None:
    made = []
    for number in range(5):
        world.clock.advance(1)
        made.append((await world.create(kind="image", prompt=f"pear {number}"))["id"])
    seen, token = [], ""
    while True:
        page = (await world.api.get("/v1/jobs", params={"page_size": 2, "page_token": token})).json()
        seen += [job["id"] for job in page["jobs"]]
        assert all(image.get("url") is None for job in page["jobs"] for image in job["images"])
        token = page["next_page_token"]
        if token is None:
            break
    assert seen == made[::-1]


async def test_a_page_can_be_limited_to_a_status(world: World) -> None:
    await world.create()
    job = await world.create(kind="image", prompt="a pear")
    await world.run()
    page = (await world.api.get("/v1/jobs", params={"status": "completed"})).json()
    assert [job["id"] for job in page["jobs"]] == [job["id"]]


@pytest.mark.parametrize(
    "query",
    [
        "page_size=0",
        "page_size=101",
        "page_size=x",
        "page_size=",
        "page_size=-1",
        "page_size=%C2%B2",
        "page_size=000000001000",
        f"page_size=000000001{'0' * 30}",
        f"page_size=000000001{'0' * 5000}",
        "page_token=%00",
        "page_token=abc",
        "status=odd",
    ],
)
async def test_a_bad_query_is_refused(world: World, query: str) -> None:
    check_problem(await world.api.get(f"/v1/jobs?{query}"), 422, "invalid_request")


async def test_cancelling_ends_a_job_once(world: World) -> None:
    job = await world.create(kind="image", prompt="a pear")
    answer = await world.api.post(job["links"]["cancel"])
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    check_problem(await world.api.post(job["links"]["cancel"]), 409, "already_ended")
    asked = world.asked()
    await world.run()
    assert world.asked() == asked


async def test_an_image_is_a_redirect_to_where_it_lies(world: World) -> None:
    job = await world.create(kind="image", prompt="a pear")
    link = job["links"]["images"][0]
    check_problem(await world.api.get(link), 409, "not_ready")
    await world.run()
    for query, kind in (("", "image/jpeg"), ("?variant=thumbnail", "image/webp")):
        answer = await world.api.get(link + query)
        assert answer.status_code == 302
        picture = await world.api.get(answer.headers["location"])
        assert (picture.status_code, picture.headers["content-type"]) == (200, kind)
    check_problem(await world.api.get(link[:-1] + "1"), 404, "not_found")


@pytest.mark.parametrize("index", ["1", "9" * 5000, "00", "-1", "x", "%C2%B2", "0.0"])
async def test_an_image_that_is_not_there_is_not_found(world: World, index: str) -> None:
    job = await world.create(kind="image", prompt="a pear")
    check_problem(await world.api.get(f"/v1/jobs/{job['id']}/images/{index}"), 404, "not_found")


async def test_many_unknown_fields_give_a_short_answer(world: World) -> None:
    answer = await world.api.post("/v1/jobs", json={f"f{number}": 1 for number in range(5000)})
    assert check_problem(answer, 422, "invalid_request")["errors_omitted"] == 4980
    assert len(answer.content) < 4000


@pytest.mark.parametrize(
    ("wishes", "refused"),
    [
        ({"webhook": {"url": "https://example.com", "events": ["awaiting_upload"]}}, "webhook.events"),
        (
            {"kind": "image", "prompt": "a pear", "webhook": {"url": "https://example.com", "events": ["pending"]}},
            "pending",
        ),
        ({"webhook": {"url": "https://example.com", "events": []}}, "webhook.events"),
    ],
)
async def test_a_webhook_cannot_wait_for_news_that_are_never_told(
    world: World, wishes: dict[str, Any], refused: str
) -> None:
    assert refused in check_problem(await world.api.post("/v1/jobs", json=wishes), 422, "invalid_request")["detail"]


async def test_a_webhook_may_hear_that_a_portrait_is_pending(world: World) -> None:
    job = await world.create(webhook={"url": "https://example.com/", "events": ["pending", "completed", "pending"]})
    assert job["webhook"]["events"] == ["pending", "completed"]


async def test_the_document_names_the_statuses_a_webhook_may_hear_of(world: World) -> None:
    schemas = (await world.api.get("/openapi.json")).json()["components"]["schemas"]
    events = schemas["WebhookRequest"]["properties"]["events"]
    assert set(events["items"]["enum"]) == {"pending", "processing", "completed", "failed", "cancelled", "expired"}


@pytest.mark.parametrize("path", ["/v1/jobs", f"/v1/jobs/{'0' * 32}/events", "/health/live"])
async def test_both_public_apps_answer_with_a_request_id(world: World, path: str) -> None:
    assert (await world.api.get(path, headers={"x-request-id": "mine-1"})).headers["x-request-id"] == "mine-1"
    assert len((await world.api.get(path)).headers["x-request-id"]) == 32


async def test_a_stream_shows_the_present_and_then_every_change_until_the_end(world: World) -> None:
    job = await world.create()
    events: list[tuple[str, dict[str, Any]]] = []

    async def listen() -> None:
        # ASGITransport hands a stream over only when it has ended, so the whole of it is read at once.
        text = (await world.api.get(job["links"]["events"])).text
        for block in text.replace("\r\n", "\n").strip().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
            events.append((fields["id"], json.loads(fields["data"])))

    async with asyncio.TaskGroup() as group:
        group.create_task(listen())
        await asyncio.sleep(0)
        await world.upload(job, jpeg())
        await world.run()
    revisions = [state["revision"] for _, state in events]
    assert revisions == sorted(set(revisions))
    assert events[-1][1]["status"] == "completed"
    assert events[-1][1]["images"][0]["url"]
    assert events[-1][0] == f"{job['id']}.{events[-1][1]['reached']['completed']}"


async def test_the_root_names_what_there_is_and_every_link_works(world: World) -> None:
    root = (await world.api.get("/v1")).json()
    for name in ("jobs", "webhook_secret", "openapi", "docs"):
        assert (await world.api.get(root[name])).status_code == 200, name


async def test_the_docs_page_loads_nothing_from_elsewhere(world: World) -> None:
    page = (await world.api.get("/docs")).text
    assert "://" not in page
    for asset in ("docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "openapi.json"):
        assert asset in page
        assert (await world.api.get(f"/{asset}")).status_code == 200
    check_problem(await world.api.get("/docs/swagger-ui.js.map"), 404, "not_found")


async def test_every_route_is_in_the_openapi_document(world: World) -> None:
    document = (await world.api.get("/openapi.json")).json()
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item if method != "servers"
    }
    assert {
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/{job_id}"),
        ("POST", "/v1/jobs/{job_id}/cancel"),
        ("GET", "/v1/jobs/{job_id}/images/{index}"),
        ("POST", "/v1/firestore-token"),
        ("GET", "/v1/jobs/{job_id}/events"),
        ("GET", "/v1/webhook-secret"),
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/health"),
    } == described
    references = set(json.dumps(document).split('"$ref": "#/components/schemas/')[1:])
    assert {reference.partition('"')[0] for reference in references} <= set(document["components"]["schemas"])


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "169.254.169.254", ""])
async def test_a_local_server_answers_only_to_its_own_names(world: World, host: str) -> None:
    check_problem(await world.api.get("/v1/jobs", headers={"host": host}), 403, "host_refused")


async def test_a_page_of_another_origin_may_not_use_a_local_server(world: World) -> None:
    check_problem(
        await world.api.post("/v1/jobs", json={}, headers={"origin": "https://evil.example"}), 403, "origin_refused"
    )
    assert (await world.api.post("/v1/jobs", json={}, headers={"origin": "http://localhost:3000"})).status_code == 201


def bearer(world: World, subject: str, **claims: Any) -> dict[str, str]:
    now = world.clock()
    token = jwt.encode({"sub": subject, "exp": now + timedelta(hours=1), **claims}, SECRET, algorithm="HS256")
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
async def signed_in(tmp_path: Path, stand_in_url: str) -> AsyncIterator[World]:
    origins = ("https://app.example",)
    async with open_world(
        tmp_path,
        stand_in_url,
        local_owner=None,
        jwt_secret=SECRET,
        public_url="https://api.example",
        cors_origins=origins,
    ) as world:
        yield world


async def test_without_a_valid_token_nothing_is_shown(signed_in: World) -> None:
    expired = bearer(signed_in, "ann", exp=signed_in.clock() - timedelta(minutes=5))
    forged = {"authorization": "Bearer " + jwt.encode({"sub": "ann", "exp": 9e9}, "t" * 40, algorithm="HS256")}
    unsigned = {"authorization": "Bearer " + jwt.encode({"sub": "ann", "exp": 9e9}, "", algorithm="none")}
    for headers in ({}, {"authorization": "Basic x"}, {"authorization": "Bearer"}, expired, forged, unsigned):
        answer = await signed_in.api.get("/v1/jobs", headers=headers)
        check_problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_job_of_another_owner_looks_like_no_job(signed_in: World) -> None:
    ann, bob = bearer(signed_in, "ann"), bearer(signed_in, "bob")
    job = (await signed_in.api.post("/v1/jobs", json={"kind": "image", "prompt": "a pear"}, headers=ann)).json()
    assert (await signed_in.api.get(job["links"]["self"], headers=ann)).status_code == 200
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/images/0"), ("GET", "/events")):
        theirs = await signed_in.api.request(method, job["links"]["self"] + path, headers=bob)
        unknown = await signed_in.api.request(
            method, job["links"]["self"].replace(job["id"], "0" * 32) + path, headers=bob
        )
        assert check_problem(theirs, 404, "not_found")["title"] == unknown.json()["title"]
        assert theirs.text.replace(job["id"], "0" * 32) == unknown.text
    assert (await signed_in.api.get("/v1/jobs", headers=bob)).json()["jobs"] == []


async def test_only_listed_origins_may_call_from_a_page(signed_in: World) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    allowed = await signed_in.api.options("/v1/jobs", headers={"origin": "https://app.example", **asked})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    refused = await signed_in.api.options("/v1/jobs", headers={"origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers
