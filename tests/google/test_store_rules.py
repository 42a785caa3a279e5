"""Firestore's rules are for apps: whatever they say, the services get in as the emulator's owner."""

import secrets
from contextlib import aclosing

import httpx2
import pytest

from common.google.store import FirestoreStore
from common.ports import Create
from tests.contract.samples import ANN, NOON, Note
from tests.google.emulators import Emulators

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
