"""The store beyond the port: who gets in, what it says when Firestore is not as it should be, and how it ends."""

import asyncio
import secrets
from contextlib import aclosing

import httpx2
import pytest

from common.errors import Rejected, Unavailable
from common.google.store import FirestoreStore
from common.ports import Create
from tests.contract.samples import ANN, NOON, Note
from tests.google.emulators import Emulators
from tests.google.fakes import Fakes
from tests.google.silence import grpc_settled, silence

NOBODY = """
rules_version = '2';
service cloud.firestore {
  match /databases/{database}/documents { match /{anything=**} { allow read, write: if false; } }
}
"""


@pytest.fixture
async def closed_project(emulators: Emulators) -> str:
    """A project whose rules let nobody in."""
    project = f"closed-{secrets.token_hex(4)}"
    rules = {"rules": {"files": [{"name": "firestore.rules", "content": NOBODY}]}}
    async with httpx2.AsyncClient(base_url=f"http://{emulators.firestore_host}") as http:
        (await http.put(f"/emulator/v1/projects/{project}:securityRules", json=rules)).raise_for_status()
        anonymous = await http.get(f"/v1/projects/{project}/databases/(default)/documents/notes/a")
    assert anonymous.status_code == 403
    return project


# Firestore's rules are for apps: whatever they say, the services get in as the emulator's owner.


async def test_services_read_and_write_where_rules_let_nobody_in(closed_project: str) -> None:
    note = Note(id="a", wake_at=NOON)
    async with aclosing(FirestoreStore(closed_project, "(default)")) as store:
        written = await store.commit([Create(note)], save_id="s")
        found = [
            await store.get(Note, "a"),
            *(await store.page(Note, owner=ANN, limit=1)).items,
            *(await store.due(Note, shards=[str(note.shard)], before=NOON, limit=1)),
        ]
    assert [stored and stored.etag for stored in found] == [stored and stored.etag for stored in written] * 3


async def test_calls_under_way_at_the_end_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    async with silence() as server:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", server.host)
        store = FirestoreStore("test-silent", "(default)")
        calls = [
            asyncio.create_task(call)
            for call in (
                store.get(Note, "a"),
                store.page(Note, owner=ANN, limit=1),
                store.commit([Create(Note(id="a"))], save_id="s"),
            )
        ]
        await server.asked()
        await store.aclose()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        await grpc_settled()
    assert [type(end) for end in ends] == [Unavailable] * 3


async def test_while_nobody_says_who_we_are_all_wait_no_longer_than_one(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIRESTORE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("common.google.opening.call_s_max", 0.5)
    store = FirestoreStore("test-nameless", "(default)")
    fakes.answering.clear()
    try:
        async with asyncio.timeout(2):
            ends = await asyncio.gather(*(store.get(Note, str(n)) for n in range(10)), return_exceptions=True)
    finally:
        fakes.answering.set()
    assert {type(end) for end in ends} == {Unavailable}
    await store.aclose()


@pytest.mark.usefixtures("emulators")
async def test_what_firestore_says_of_a_record_is_for_us_and_not_for_who_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with aclosing(FirestoreStore("no//project", "(default)")) as store:
        with pytest.raises(Rejected) as refused:
            await store.commit([Create(Note(id="a"))], save_id="s")
    assert refused.value.detail == "Firestore does not take the record"
    assert "no//project" in next(vars(r)["reason"] for r in caplog.records if r.message == "store.refused")
