"""firestore.rules under attack, over the REST API that any browser may call: own jobs are readable, nothing else is."""

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from common.google.custom_token import token_claims, uid
from common.google.store import FirestoreStore
from common.job import Job
from common.ports import Create, Stored
from common.records import Record
from tests.contract.samples import job
from tests.google.emulators import Emulators
from tests.google.firebase import id_token, signed_in_with

ACME, OTHER = "key:acme", "key:other"
OWN, FOREIGN, FIREBASE, ABSENT = (job(number).id for number in range(1, 5))
# Not an owner of ours, but what a rule could take for nobody, for everybody, or for a text.
NO_OWNERS: tuple[object, ...] = (None, True, 1, 1.5, "", "*", [ACME], {"owner": ACME}, {ACME: True})
OWNERS = (
    "key:Zoë",
    "key:Zoe\u0308",
    "key:日本の写真館",
    "key:🦊📷",
    "key:a'b\"c\\d",
    "key:two\nlines\0",
    "key:.*",
    "jwt:" + "x" * 255,
)
Json = dict[str, Any]


def until(seconds: float = 3600) -> int:
    return int(time.time() + seconds)


@dataclass(frozen=True)
class Firestore:
    """A project's Firestore as somebody with this ID token reaches it. "owner" is a server's, says the emulator."""

    http: httpx2.Client
    project: str
    token: str | None

    def someone(self, user: str, claims: Mapping[str, object] | None = None) -> "Firestore":
        return Firestore(self.http, self.project, id_token(self.project, user, claims or {}))

    def listener(self, owner: str) -> "Firestore":
        """Who signed in with a token that we made for the owner."""
        said = token_claims(owner, email="api@test.iam.gserviceaccount.com", issued_at=int(time.time()))
        return Firestore(self.http, self.project, signed_in_with(self.project, said))

    def call(self, method: str, path: str, body: object = None) -> httpx2.Response:
        headers = {} if self.token is None else {"authorization": f"Bearer {self.token}"}
        url = f"/v1/projects/{self.project}/databases/(default)/documents{path}"
        return self.http.request(method, url, headers=headers, json=body)

    def may_get(self, path: str) -> bool:
        return allowed(self.call("GET", f"/{quote(path)}"))

    def may_query(self, where: Json | None, *, parent: str = "", collection: str = "jobs", **more: object) -> bool:
        selector = {"collectionId": collection, "allDescendants": more.pop("everywhere", False)}
        query = {"from": [selector], **({"where": where} if where else {}), **more}
        return allowed(self.call("POST", f"{parent}:runQuery", {"structuredQuery": query}))

    def listed(self, owner: str) -> set[str]:
        """The ids of what a query for the owner's jobs brings."""
        answer = self.call("POST", ":runQuery", {"structuredQuery": {"from": [JOBS], "where": owned_by(owner)}})
        assert answer.status_code == 200, answer.text
        return {found["document"]["name"].rpartition("/")[2] for found in answer.json() if "document" in found}

    def put(self, path: str, owner: str) -> None:
        self.call("PATCH", f"/{path}", {"fields": {"owner": {"stringValue": owner}}}).raise_for_status()


JOBS = {"collectionId": "jobs"}


def allowed(answer: httpx2.Response) -> bool:
    """Whether the rules let it through. Anything but yes and their no is a mistake of the test."""
    if answer.status_code == 200:
        return True
    assert answer.status_code == 403, answer.text
    assert "PERMISSION_DENIED" in answer.text
    return False


def field(name: str, op: str, value: Json) -> Json:
    return {"fieldFilter": {"field": {"fieldPath": name}, "op": op, "value": value}}


def owned_by(owner: str) -> Json:
    return field("owner", "EQUAL", {"stringValue": owner})


@pytest.fixture(scope="module")
def server(emulators: Emulators) -> Iterator[Firestore]:
    """A project under our rules with three owners' jobs in it, as a server reaches it; no test changes anything."""
    project = f"rules-{secrets.token_hex(4)}"
    emulators.put_rules(project)
    with httpx2.Client(base_url=f"http://{emulators.firestore_host}", trust_env=False) as http:
        server = Firestore(http, project, "owner")
        for job_id, owner in ((OWN, ACME), (FOREIGN, OTHER), (FIREBASE, "fb:alice")):
            server.put(f"jobs/{job_id}", owner)
        yield server


@pytest.fixture
def acme(server: Firestore) -> Firestore:
    return server.listener(ACME)


async def test_the_services_write_and_read_as_ever_and_an_owner_reads_what_they_wrote(server: Firestore) -> None:
    store = FirestoreStore(server.project, "(default)")
    try:
        written = job(17, owner="key:studio")
        await store.commit([Create(written)], save_id="s")
        stored: Stored[Job] | None = await store.get(Job, written.id)
        (listed,) = (await store.page(Job, owner="key:studio", limit=9)).items
    finally:
        await store.aclose()
    assert stored is not None
    assert (stored.record.id, listed.record.id) == (written.id, written.id)
    fields = server.listener("key:studio").call("GET", f"/jobs/{written.id}").raise_for_status().json()["fields"]
    assert fields["owner"] == {"stringValue": "key:studio"}
    assert fields["status"] == {"stringValue": "pending"}
    assert fields["done"] == {"booleanValue": False}
    assert fields["revision"] == {"integerValue": "1"}


def test_an_owner_gets_lists_and_counts_own_jobs(acme: Firestore) -> None:
    assert acme.may_get(f"jobs/{OWN}")
    assert acme.listed(ACME) == {OWN}
    latest = [{"field": {"fieldPath": "created_at"}, "direction": "DESCENDING"}]
    assert acme.may_query(owned_by(ACME), orderBy=latest, limit=20)
    count = {
        "structuredAggregationQuery": {
            "structuredQuery": {"from": [JOBS], "where": owned_by(ACME)},
            "aggregations": [{"alias": "n", "count": {}}],
        }
    }
    assert allowed(acme.call("POST", ":runAggregationQuery", count))


def test_another_owners_job_and_one_that_never_was_look_the_same(acme: Firestore) -> None:
    # The emulator alone adds which rule said no, and why.
    foreign, absent = (acme.call("GET", f"/jobs/{job_id}").json()["error"] for job_id in (FOREIGN, ABSENT))
    assert (
        foreign | {"message": ""}
        == absent | {"message": ""}
        == {"code": 403, "message": "", "status": "PERMISSION_DENIED"}
    )


@pytest.mark.parametrize(
    "where",
    [
        None,
        owned_by(OTHER),
        field("owner", "GREATER_THAN_OR_EQUAL", {"stringValue": ACME}),
        field("owner", "NOT_EQUAL", {"stringValue": ""}),
        field("owner", "IN", {"arrayValue": {"values": [{"stringValue": ACME}, {"stringValue": OTHER}]}}),
        field("status", "EQUAL", {"stringValue": "completed"}),
        field("owner.name", "EQUAL", {"stringValue": ACME}),
        {"compositeFilter": {"op": "OR", "filters": [owned_by(ACME), owned_by(OTHER)]}},
        {"compositeFilter": {"op": "OR", "filters": [owned_by(ACME), field("done", "EQUAL", {"booleanValue": True})]}},
    ],
)
def test_a_query_that_could_bring_anothers_job_is_refused(acme: Firestore, where: Json | None) -> None:
    assert not acme.may_query(where)


def test_nothing_is_listed_or_counted_without_asking_for_own_jobs(acme: Firestore) -> None:
    assert not allowed(acme.call("GET", "/jobs"))
    count = {"structuredQuery": {"from": [JOBS]}, "aggregations": [{"alias": "n", "count": {}}]}
    assert not allowed(acme.call("POST", ":runAggregationQuery", {"structuredAggregationQuery": count}))
    names = [f"projects/{acme.project}/databases/(default)/documents/jobs/{job_id}" for job_id in (OWN, FOREIGN)]
    assert not allowed(acme.call("POST", ":batchGet", {"documents": names}))


def kinds() -> list[str]:
    """Every collection that our services write, but jobs."""
    found = {kind.collection for kind in Record.__subclasses__() if kind.__module__.startswith("common.")}
    assert "jobs" in found
    return sorted((found | {"anything", "users"}) - {"jobs"})


@pytest.mark.parametrize("collection", kinds())
def test_no_other_collection_is_visible_even_where_the_owner_is_right(
    server: Firestore, acme: Firestore, collection: str
) -> None:
    server.put(f"{collection}/{OWN}", ACME)
    assert not acme.may_get(f"{collection}/{OWN}")
    assert not acme.may_query(owned_by(ACME), collection=collection)


def test_a_collection_named_jobs_elsewhere_is_not_ours(server: Firestore, acme: Firestore) -> None:
    for path in (f"jobs/{OWN}/jobs/{OWN}", f"jobs/{OWN}/secrets/x", f"users/x/jobs/{OWN}"):
        server.put(path, ACME)
        assert not acme.may_get(path)
    assert not acme.may_query(owned_by(ACME), everywhere=True)
    assert not acme.may_query(owned_by(ACME), parent=f"/jobs/{OWN}")
    assert not acme.may_query(None, collection="", everywhere=True)


@pytest.mark.parametrize("job_id", [OWN, FOREIGN, ABSENT])
def test_nobody_writes_not_even_to_own_jobs(server: Firestore, acme: Firestore, job_id: str) -> None:
    before = server.call("GET", f"/jobs/{OWN}").json()
    mine = {"fields": {"owner": {"stringValue": ACME}}}
    name = f"projects/{acme.project}/databases/(default)/documents/jobs/{job_id}"
    touch = {"document": name, "fieldTransforms": [{"fieldPath": "revision", "increment": {"integerValue": "1"}}]}
    for refused in (
        acme.call("PATCH", f"/jobs/{job_id}", mine),
        acme.call("PATCH", f"/jobs/{job_id}?updateMask.fieldPaths=status", {"fields": {}}),
        acme.call("POST", f"/jobs?documentId={job_id}", mine),
        acme.call("DELETE", f"/jobs/{job_id}"),
        acme.call("POST", ":commit", {"writes": [{"update": {"name": name, **mine}}]}),
        acme.call("POST", ":commit", {"writes": [{"transform": touch}]}),
        acme.call("POST", ":commit", {"writes": [{"delete": name}]}),
    ):
        assert not allowed(refused)
    assert server.call("GET", f"/jobs/{OWN}").json() == before


def test_nobody_writes_elsewhere_either(acme: Firestore) -> None:
    for path in ("work/x", "anything/x", f"jobs/{OWN}/notes/x"):
        assert not allowed(acme.call("PATCH", f"/{path}", {"fields": {"owner": {"stringValue": ACME}}}))


def test_who_is_not_signed_in_sees_nothing(server: Firestore) -> None:
    stranger = Firestore(server.http, server.project, None)
    assert not stranger.may_get(f"jobs/{OWN}")
    assert not stranger.may_query(owned_by(ACME))
    assert not stranger.may_query(None)
    assert not allowed(stranger.call("PATCH", "/jobs/x", {"fields": {}}))


def sees_something(someone: Firestore) -> bool:
    return (
        any(someone.may_get(f"jobs/{job_id}") for job_id in (OWN, FOREIGN, FIREBASE, ABSENT))
        or any(someone.may_query(owned_by(owner)) for owner in (ACME, OTHER, "fb:alice"))
        or someone.may_query(None)
    )


@pytest.mark.parametrize("claim", NO_OWNERS)
def test_an_owner_claim_that_names_no_owner_opens_nothing(server: Firestore, claim: object) -> None:
    assert not sees_something(server.someone(uid(ACME), {"owner": claim, "owner_until": until()}))


def test_a_job_whose_owner_is_no_text_is_nobodys(server: Firestore) -> None:
    for number, (claim, value) in enumerate(
        [
            (None, {"nullValue": None}),
            (True, {"booleanValue": True}),
            ([ACME], {"arrayValue": {"values": [{"stringValue": ACME}]}}),
            ({ACME: True}, {"mapValue": {"fields": {ACME: {"booleanValue": True}}}}),
        ]
    ):
        path = f"/jobs/{job(40 + number).id}"
        server.call("PATCH", path, {"fields": {"owner": value}}).raise_for_status()
        same = server.someone(uid(ACME), {"owner": claim, "owner_until": until()})
        for someone in (same, server.listener(ACME), server.someone("alice")):
            assert not allowed(someone.call("GET", path))


def test_our_users_without_a_claim_see_nothing(server: Firestore) -> None:
    assert not sees_something(server.someone(uid(ACME)))
    assert not sees_something(server.someone(uid(ACME), {"owner_until": until()}))


def test_a_session_sees_nothing_once_its_time_is_over(server: Firestore) -> None:
    assert sees_something(server.someone(uid(ACME), {"owner": ACME, "owner_until": until(60)}))
    assert not sees_something(server.someone(uid(ACME), {"owner": ACME, "owner_until": until(-1)}))
    assert not sees_something(server.someone(uid(ACME), {"owner": ACME}))


@pytest.mark.parametrize("claim", [0, -1, None, True, "9999999999", [9999999999], {"at": 9999999999}])
def test_a_time_that_makes_no_sense_opens_nothing(server: Firestore, claim: object) -> None:
    assert not sees_something(server.someone(uid(ACME), {"owner": ACME, "owner_until": claim}))


def test_who_signed_in_to_firebase_directly_sees_own_jobs(server: Firestore) -> None:
    alice = server.someone("alice")
    assert alice.may_get(f"jobs/{FIREBASE}")
    assert alice.listed("fb:alice") == {FIREBASE}
    assert not alice.may_get(f"jobs/{OWN}")
    assert not alice.may_query(owned_by(ACME))
    assert not sees_something(server.someone("bob"))


@pytest.mark.parametrize(
    "user",
    ["alice", "mallory", ACME, "Darkroom:x", " darkroom:x", "xdarkroom:x", "darkroom", "x\ndarkroom:x"],
)
def test_other_users_cannot_claim_an_owner(server: Firestore, user: str) -> None:
    claiming = server.someone(user, {"owner": ACME, "owner_until": until()})
    assert not claiming.may_get(f"jobs/{OWN}")
    assert not claiming.may_query(owned_by(ACME))
    assert claiming.may_get(f"jobs/{FIREBASE}") is (user == "alice")


def test_a_uid_of_ours_is_never_a_firebase_owner(server: Firestore) -> None:
    job_id = job(30).id
    server.put(f"jobs/{job_id}", f"fb:{uid(ACME)}")
    for someone in (server.someone(uid(ACME)), server.listener(ACME)):
        assert not someone.may_get(f"jobs/{job_id}")


@pytest.mark.parametrize("owner", OWNERS)
def test_an_owner_may_be_any_text_and_is_compared_exactly(server: Firestore, owner: str) -> None:
    job_id = job(100 + OWNERS.index(owner)).id
    server.put(f"jobs/{job_id}", owner)
    for other in OWNERS:
        listener = server.listener(other)
        assert listener.may_get(f"jobs/{job_id}") is (other == owner)
        assert listener.may_query(owned_by(owner)) is (other == owner)
    assert server.listener(owner).listed(owner) == {job_id}
