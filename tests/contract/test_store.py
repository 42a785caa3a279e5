"""What a Store promises, on every engine. Times are compared with what the store itself said, never with a clock."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import cast

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from common.errors import Conflict, Rejected, Unavailable
from common.job import Job
from common.ports import Change, Create, Delete, Engine, Store, Stored, Update
from common.records import Desk, shard_names
from tests.contract.samples import ANN, BEN, NOON, LaterNote, Note, Secret, job

save_ids = iter(range(1_000_000_000))
on_one_store = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def new_save() -> str:
    return f"save-{next(save_ids)}"


async def commit(store: Store, *changes: Change) -> list[Stored[Note]]:
    """Commit under a save_id of its own; answers what was written."""
    return [cast(Stored[Note], stored) for stored in await store.commit(changes, save_id=new_save()) if stored]


async def create(store: Store, note: Note) -> Stored[Note]:
    (stored,) = await commit(store, Create(note))
    return stored


async def refusal(work: Awaitable[object]) -> str | None:
    """The code that it is Rejected with, or None."""
    try:
        await work
    except Rejected as exc:
        return exc.code
    return None


async def there(store: Store, key: str) -> Stored[Note]:
    stored = await store.get(Note, key)
    assert stored is not None
    return stored


async def outlived(store: Store, stored: Stored[Note]) -> Stored[Note]:
    """The record read again until the store's time, which may go in steps of a millisecond, is past its change."""
    while True:
        read = await there(store, stored.record.key)
        if read.read_at > cast(datetime, stored.record.changed_at):
            return read


async def test_what_is_created_is_there(engine: Engine) -> None:
    written = await create(engine.store, Note(id="a", text="hello"))
    read = await there(engine.store, "a")
    assert read.record == written.record
    assert read.etag == written.etag
    assert read.record.text == "hello"


async def test_absent_record_is_none(engine: Engine) -> None:
    assert await engine.store.get(Note, "nobody") is None


async def test_same_key_in_two_collections_is_two_records(engine: Engine) -> None:
    await engine.store.commit([Create(Note(id="a", text="one")), Create(Secret(id="a", text="two"))], save_id="s")
    assert (await there(engine.store, "a")).record.text == "one"
    secret = await engine.store.get(Secret, "a")
    assert secret is not None
    assert secret.record.text == "two"


async def test_update_replaces_the_record_under_a_new_etag(engine: Engine) -> None:
    first = await create(engine.store, Note(id="a", text="old", number=7))
    (second,) = await commit(engine.store, Update(Note(id="a", text="new"), first.etag))
    read = await there(engine.store, "a")
    assert (read.record.text, read.record.number) == ("new", 0)
    assert read.etag == second.etag != first.etag


async def test_deleted_record_is_gone(engine: Engine) -> None:
    await create(engine.store, Note(id="a"))
    assert await engine.store.commit([Delete(Note, "a")], save_id="s") == (None,)
    assert await engine.store.get(Note, "a") is None


async def test_delete_of_an_absent_record_is_fine(engine: Engine) -> None:
    assert await engine.store.commit([Delete(Note, "a")], save_id="s") == (None,)


async def test_create_over_an_existing_record_conflicts(engine: Engine) -> None:
    await create(engine.store, Note(id="a", text="first"))
    with pytest.raises(Conflict):
        await create(engine.store, Note(id="a", text="second"))
    assert (await there(engine.store, "a")).record.text == "first"


async def test_update_of_a_version_that_moved_conflicts(engine: Engine) -> None:
    first = await create(engine.store, Note(id="a"))
    await commit(engine.store, Update(Note(id="a", text="second"), first.etag))
    with pytest.raises(Conflict):
        await commit(engine.store, Update(Note(id="a", text="third"), first.etag))
    assert (await there(engine.store, "a")).record.text == "second"


async def test_update_of_a_deleted_record_conflicts(engine: Engine) -> None:
    first = await create(engine.store, Note(id="a"))
    await commit(engine.store, Delete(Note, "a"))
    with pytest.raises(Conflict):
        await commit(engine.store, Update(Note(id="a"), first.etag))
    assert await engine.store.get(Note, "a") is None


async def test_etag_is_not_reused_after_delete_and_create(engine: Engine) -> None:
    etags = []
    for _ in range(3):
        etags.append((await create(engine.store, Note(id="a"))).etag)
        await commit(engine.store, Delete(Note, "a"))
    await create(engine.store, Note(id="a", text="last"))
    assert len(set(etags)) == 3
    for etag in etags:
        with pytest.raises(Conflict):
            await commit(engine.store, Update(Note(id="a"), etag))


async def test_commit_answers_in_the_order_of_its_changes(engine: Engine) -> None:
    await create(engine.store, Note(id="gone"))
    answers = await engine.store.commit([Create(Note(id="b")), Delete(Note, "gone"), Create(Note(id="a"))], save_id="s")
    assert [answer.record.key if answer else None for answer in answers] == ["b", None, "a"]


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_commit_applies_nothing_if_one_change_conflicts(engine: Engine, position: int) -> None:
    first = await create(engine.store, Note(id="kept", text="old"))
    await create(engine.store, Note(id="doomed"))
    await create(engine.store, Note(id="taken"))
    changes: list[Change] = [Update(Note(id="kept", text="new"), first.etag), Delete(Note, "doomed")]
    changes.insert(position, Create(Note(id="taken")))
    with pytest.raises(Conflict):
        await commit(engine.store, *changes)
    assert (await there(engine.store, "kept")).etag == first.etag
    assert (await there(engine.store, "kept")).record.text == "old"
    assert await engine.store.get(Note, "doomed") is not None


async def test_commit_applies_nothing_if_one_record_is_unsafe(engine: Engine) -> None:
    with pytest.raises(Rejected) as refused:
        await commit(engine.store, Create(Note(id="a")), Create(Note(id="b", text="x" * 1_000_000)))
    assert refused.value.code == "unsafe_record"
    assert await engine.store.get(Note, "a") is None


async def test_record_named_twice_in_one_commit_is_refused(engine: Engine) -> None:
    with pytest.raises(Rejected) as refused:
        await commit(engine.store, Create(Note(id="a", text="one")), Delete(Note, "a"))
    assert refused.value.code == "unsafe_record"
    assert await engine.store.get(Note, "a") is None


async def test_repeated_commit_answers_what_it_wrote_and_does_nothing(engine: Engine) -> None:
    kept = await create(engine.store, Note(id="kept"))
    changes: list[Change] = [Create(Note(id="a", text="x")), Update(Note(id="kept", text="y"), kept.etag)]
    first = await engine.store.commit(changes, save_id="mine")
    again = await engine.store.commit(changes, save_id="mine")
    assert [(s.record, s.etag) for s in again if s] == [(s.record, s.etag) for s in first if s]
    assert (await there(engine.store, "a")).etag == cast(Stored[Note], first[0]).etag


async def test_repeated_commit_under_another_save_id_conflicts(engine: Engine) -> None:
    changes = [Create(Note(id="a", text="x"))]
    await engine.store.commit(changes, save_id="mine")
    with pytest.raises(Conflict):
        await engine.store.commit(changes, save_id="yours")


async def test_repeated_commit_does_not_delete_again(engine: Engine) -> None:
    await create(engine.store, Note(id="old"))
    changes: list[Change] = [Create(Note(id="a")), Delete(Note, "old")]
    await engine.store.commit(changes, save_id="mine")
    await create(engine.store, Note(id="old", text="of somebody else"))
    await engine.store.commit(changes, save_id="mine")
    assert (await there(engine.store, "old")).record.text == "of somebody else"


async def test_repeated_commit_does_not_bring_back_what_was_deleted_since(engine: Engine) -> None:
    changes: list[Change] = [Create(Note(id="a")), Create(Note(id="b"))]
    await engine.store.commit(changes, save_id="mine")
    await commit(engine.store, Delete(Note, "b"))
    with pytest.raises(Conflict):
        await engine.store.commit(changes, save_id="mine")
    assert await engine.store.get(Note, "b") is None


async def test_repeated_commit_conflicts_once_somebody_else_has_gone_on(engine: Engine) -> None:
    changes: list[Change] = [Create(Note(id="a")), Create(Note(id="b"))]
    first = await engine.store.commit(changes, save_id="mine")
    await commit(engine.store, Update(Note(id="a", text="newer"), cast(Stored[Note], first[0]).etag))
    with pytest.raises(Conflict):
        await engine.store.commit(changes, save_id="mine")
    assert (await there(engine.store, "a")).record.text == "newer"


async def tally(attempts: list[Awaitable[object]]) -> list[type[BaseException] | None]:
    """How each of some racing attempts ended: None for success, or the type of its error."""
    ended = await asyncio.gather(*attempts, return_exceptions=True)
    return [type(end) if isinstance(end, BaseException) else None for end in ended]


async def test_of_twenty_racing_updates_exactly_one_wins(engine: Engine) -> None:
    first = await create(engine.store, Note(id="a"))
    racing = [commit(engine.store, Update(Note(id="a", number=n), first.etag)) for n in range(1, 21)]
    ended = await tally([*racing])
    assert sorted(map(str, ended)) == sorted(map(str, [None, *[Conflict] * 19]))
    assert (await there(engine.store, "a")).record.number == ended.index(None) + 1


async def test_of_twenty_racing_creates_exactly_one_wins(engine: Engine) -> None:
    ended = await tally([commit(engine.store, Create(Note(id="a", number=n))) for n in range(20)])
    assert ended.count(None) == 1
    assert ended.count(Conflict) == 19
    assert (await there(engine.store, "a")).record.number == ended.index(None)


async def test_racing_commits_over_crossing_records_are_all_or_nothing(engine: Engine) -> None:
    a, b = await create(engine.store, Note(id="a")), await create(engine.store, Note(id="b"))

    def both(number: int) -> list[Change]:
        changes: list[Change] = [
            Update(Note(id="a", number=number), a.etag),
            Update(Note(id="b", number=number), b.etag),
        ]
        return changes[:: 1 if number % 2 else -1]

    ended = await tally([commit(engine.store, *both(number)) for number in range(1, 11)])
    assert ended.count(None) == 1
    winner = ended.index(None) + 1
    assert [(await there(engine.store, key)).record.number for key in ("a", "b")] == [winner, winner]


async def test_counter_under_compare_and_set_loses_no_step(engine: Engine) -> None:
    await create(engine.store, Note(id="a"))

    async def add_one() -> None:
        while True:
            seen = await there(engine.store, "a")
            try:
                await commit(engine.store, Update(Note(id="a", number=seen.record.number + 1), seen.etag))
            except Conflict:
                continue
            return

    await asyncio.gather(*(add_one() for _ in range(8)))
    assert (await there(engine.store, "a")).record.number == 8


async def test_changed_at_is_the_stores_time_whatever_the_writer_says(engine: Engine) -> None:
    await create(engine.store, Note(id="before"))
    earlier = (await there(engine.store, "before")).read_at
    written = await create(engine.store, Note(id="a", changed_at=NOON - timedelta(days=999)))
    read = await there(engine.store, "a")
    assert written.record.changed_at is not None
    assert earlier <= written.record.changed_at <= read.read_at
    assert read.record.changed_at == written.record.changed_at
    assert read.read_at.tzinfo is not None


async def test_changed_at_rises_with_every_commit(engine: Engine) -> None:
    stored = await create(engine.store, Note(id="a"))
    seen = [stored.record.changed_at]
    for number in range(5):
        stored = await outlived(engine.store, stored)
        (stored,) = await commit(engine.store, Update(Note(id="a", number=number), stored.etag))
        seen.append(stored.record.changed_at)
    assert seen == sorted(cast(list[datetime], seen))
    assert len(set(seen)) == 6


async def test_records_of_one_commit_changed_at_the_same_time(engine: Engine) -> None:
    a, b = await commit(engine.store, Create(Note(id="a")), Create(Note(id="b")))
    assert a.record.changed_at == b.record.changed_at


async def pages(store: Store, owner: str, limit: int) -> list[list[str]]:
    """The keys on every page of an owner's notes."""
    found: list[list[str]] = []
    token: str | None = None
    while True:
        page = await store.page(Note, owner=owner, limit=limit, token=token)
        found.append([item.record.key for item in page.items])
        token = page.next_token
        if token is None:
            return found


async def test_page_shows_the_newest_first(engine: Engine) -> None:
    for number in (2, 0, 3, 1):
        await create(engine.store, Note(id=f"n{number}", created_at=NOON + timedelta(microseconds=number)))
    assert await pages(engine.store, ANN, 10) == [["n3", "n2", "n1", "n0"]]


@pytest.mark.parametrize(
    ("limit", "lengths"), [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (6, [6, 1]), (7, [7]), (8, [7])]
)
async def test_pages_together_show_each_record_once(engine: Engine, limit: int, lengths: list[int]) -> None:
    # Three of them were created in the same microsecond.
    moments = [0, 1, 1, 1, 2, 3, 4]
    notes = [Note(id=f"n{i}", created_at=NOON + timedelta(microseconds=m)) for i, m in enumerate(moments)]
    await commit(engine.store, *map(Create, notes))
    found = await pages(engine.store, ANN, limit)
    assert [len(page) for page in found] == lengths
    assert sorted(key for page in found for key in page) == [f"n{i}" for i in range(7)]


async def test_page_of_an_owner_without_records_is_empty(engine: Engine) -> None:
    assert await pages(engine.store, ANN, 10) == [[]]


async def test_page_goes_on_where_it_was_though_newer_records_came_and_others_went(engine: Engine) -> None:
    notes = [Note(id=f"n{i}", created_at=NOON + timedelta(seconds=i)) for i in range(4)]
    await commit(engine.store, *map(Create, notes))
    first = await engine.store.page(Note, owner=ANN, limit=2)
    await commit(engine.store, Delete(Note, "n2"), Create(Note(id="new", created_at=NOON + timedelta(hours=1))))
    second = await engine.store.page(Note, owner=ANN, limit=2, token=first.next_token)
    assert [item.record.key for item in second.items] == ["n1", "n0"]


async def test_page_shows_no_record_of_another_owner_or_kind(engine: Engine) -> None:
    await commit(
        engine.store,
        Create(Note(id="mine")),
        Create(Note(id="theirs", owner=BEN)),
        Create(Note(id="similar", owner=f"{ANN}a")),
        Create(job()),
        Create(Secret(id="secret")),
    )
    assert await pages(engine.store, ANN, 10) == [["mine"]]
    assert (await engine.store.page(Secret, owner=ANN, limit=10)).items == ()


@pytest.mark.parametrize(
    "token",
    ["", "x", "!!!!", "AAAA", "MTIzL2E", "MTIzL2E=", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5L2E", "\ud800", "ü", "a" * 5000],
)
async def test_token_that_the_store_never_gave_is_rejected(engine: Engine, token: str) -> None:
    with pytest.raises(Rejected) as refused:
        await engine.store.page(Note, owner=ANN, limit=1, token=token)
    assert refused.value.code == "invalid_request"


async def test_token_of_another_owner_or_kind_is_rejected(engine: Engine) -> None:
    await commit(engine.store, *(Create(Note(id=f"{owner}{n}", owner=owner)) for owner in (ANN, BEN) for n in range(3)))
    token = (await engine.store.page(Note, owner=BEN, limit=1)).next_token
    assert token is not None
    with pytest.raises(Rejected):
        await engine.store.page(Note, owner=ANN, limit=1, token=token)
    with pytest.raises(Rejected):
        await engine.store.page(Job, owner=BEN, limit=1, token=token)


async def test_altered_token_is_rejected(engine: Engine) -> None:
    await commit(engine.store, *(Create(Note(id=f"n{n}")) for n in range(3)))
    token = (await engine.store.page(Note, owner=ANN, limit=1)).next_token
    assert token is not None
    for altered in (token[:-1], token[1:], f"{token}A", f"{token}=", f"{token[:4]}!{token[4:]}", token.swapcase()):
        with pytest.raises(Rejected):
            await engine.store.page(Note, owner=ANN, limit=1, token=altered)


async def test_token_fits_into_a_url_as_it_is(engine: Engine) -> None:
    notes = [Note(id=f"ü~?&{n}", owner="fb:ä/ö+ü") for n in range(3)]
    await commit(engine.store, *map(Create, notes))
    token = (await engine.store.page(Note, owner="fb:ä/ö+ü", limit=1)).next_token
    assert token is not None
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")


async def changed(store: Store, since: datetime, *, owner: str = ANN, limit: int = 10) -> list[str]:
    return [item.record.key for item in await store.changed(Note, owner=owner, since=since, limit=limit)]


async def test_changed_shows_what_changed_since_then_oldest_change_first(engine: Engine) -> None:
    first = await outlived(engine.store, await create(engine.store, Note(id="first")))
    second = await outlived(engine.store, await create(engine.store, Note(id="second")))
    third = await outlived(engine.store, await create(engine.store, Note(id="third")))
    (again,) = await commit(engine.store, Update(Note(id="first", text="new"), first.etag))
    moments = [stored.record.changed_at for stored in (first, second, third, again)]
    at_first, at_second, at_third, at_again = cast(list[datetime], moments)
    assert await changed(engine.store, at_first) == ["second", "third", "first"]
    assert await changed(engine.store, at_second) == ["second", "third", "first"]
    assert await changed(engine.store, at_second + timedelta(microseconds=1)) == ["third", "first"]
    assert await changed(engine.store, at_third, limit=1) == ["third"]
    assert await changed(engine.store, at_again) == ["first"]
    assert await changed(engine.store, at_again + timedelta(microseconds=1)) == []


async def test_changed_shows_no_record_of_another_owner_and_no_deleted_one(engine: Engine) -> None:
    await commit(engine.store, Create(Note(id="mine")), Create(Note(id="gone")), Create(Note(id="theirs", owner=BEN)))
    await commit(engine.store, Delete(Note, "gone"))
    long_ago = datetime(1971, 1, 1, tzinfo=UTC)
    assert await changed(engine.store, long_ago) == ["mine"]
    assert await changed(engine.store, long_ago, owner=BEN) == ["theirs"]


async def due(store: Store, shard: str, before: datetime, *, limit: int = 100) -> list[str]:
    return [item.record.key for item in await store.due(Note, shards=[shard], before=before, limit=limit)]


def in_one_shard(count: int, **fields: object) -> list[Note]:
    """Notes whose keys all fall into the shard of the first."""
    notes = (Note.model_validate({"id": f"n{number}", **fields}) for number in range(100_000))
    first = next(notes)
    return [
        first,
        *(note for note, _ in zip((n for n in notes if n.shard == first.shard), range(count - 1), strict=False)),
    ]


async def test_due_shows_the_longest_due_first_up_to_the_limit(engine: Engine) -> None:
    notes = in_one_shard(4)
    waits = [3, 1, 2, 4]
    await commit(
        engine.store,
        *(
            Create(note.model_copy(update={"wake_at": NOON + timedelta(microseconds=wait)}))
            for note, wait in zip(notes, waits, strict=True)
        ),
    )
    shard = cast(str, notes[0].shard)
    expected = [note.key for _, note in sorted(zip(waits, notes, strict=True), key=lambda pair: pair[0])]
    assert await due(engine.store, shard, NOON + timedelta(microseconds=3)) == expected[:3]
    assert await due(engine.store, shard, NOON + timedelta(microseconds=3), limit=2) == expected[:2]
    assert await due(engine.store, shard, NOON) == []


async def test_record_is_due_in_its_own_shard_only(engine: Engine) -> None:
    note = Note(id="a", wake_at=NOON)
    await create(engine.store, note)
    shards = [shard for desk in Desk for shard in shard_names(desk)]
    assert [shard for shard in shards if await due(engine.store, shard, NOON)] == [note.shard]


async def test_record_without_wake_at_is_not_due(engine: Engine) -> None:
    await create(engine.store, Note(id="a", wake_at=None))
    assert await due(engine.store, cast(str, Note(id="a").shard), NOON + timedelta(days=9999)) == []


async def test_record_that_goes_to_sleep_or_changes_desk_is_no_longer_due_there(engine: Engine) -> None:
    stored = await create(engine.store, Note(id="a", wake_at=NOON))
    shard = cast(str, stored.record.shard)
    (moved,) = await commit(engine.store, Update(Note(id="a", wake_at=NOON, desk=Desk.NOTIFIER), stored.etag))
    assert await due(engine.store, shard, NOON) == []
    assert await due(engine.store, cast(str, moved.record.shard), NOON) == ["a"]
    (asleep,) = await commit(engine.store, Update(Note(id="a", desk=Desk.NOTIFIER), moved.etag))
    assert await due(engine.store, cast(str, asleep.record.shard), NOON) == []


async def test_due_record_carries_the_etag_it_can_be_updated_with(engine: Engine) -> None:
    note = Note(id="a", wake_at=NOON)
    await create(engine.store, note)
    (found,) = await engine.store.due(Note, shards=[cast(str, note.shard)], before=NOON, limit=1)
    await commit(engine.store, Update(Note(id="a", text="done"), found.etag))
    assert (await there(engine.store, "a")).record.text == "done"


BAD_KEYS = ["", "/", "a/b", ".", "..", "__", "____", "__a__", "__a\nb__", "x" * 1501, "ü" * 751, "\ud800", "a\udfffb"]


@pytest.mark.parametrize("key", [key for key in BAD_KEYS if key != "__"])
async def test_key_that_firestore_would_not_take_is_refused_everywhere(engine: Engine, key: str) -> None:
    uses: list[Callable[[], Awaitable[object]]] = [
        lambda: engine.store.get(Note, key),
        lambda: commit(engine.store, Create(Note.model_construct(id=key))),
        lambda: commit(engine.store, Update(Note.model_construct(id=key), "1")),
        lambda: commit(engine.store, Delete(Note, key)),
    ]
    for use in uses:
        with pytest.raises(Rejected) as refused:
            await use()
        assert refused.value.code == "unsafe_record"


@given(key=st.text(min_size=1, max_size=40))
@example(key="__")
@example(key="...")
@example(key=" ")
@example(key="a\0b")
@example(key="x" * 1500)
@example(key="__a")
@example(key="ü" * 750)
@example(key="Straße")
@example(key="\u00e9")
@example(key="e\u0301")
@on_one_store
async def test_key_is_refused_or_names_exactly_one_record(engine: Engine, key: str) -> None:
    bad = key in {".", ".."} or "/" in key or (key.startswith("__") and key.endswith("__") and len(key) > 3)
    code = await refusal(create(engine.store, Note.model_construct(id=key, text=key)))
    assert code == ("unsafe_record" if bad else None)
    if bad:
        return
    stored = await there(engine.store, key)
    assert (stored.record.key, stored.record.text) == (key, key)
    await commit(engine.store, Delete(Note, key))
    assert await engine.store.get(Note, key) is None


def nested(levels: int) -> JsonValue:
    """Maps within maps; the record itself is the first level."""
    value: JsonValue = "deep"
    for _ in range(levels - 1):
        value = {"next": value}
    return value


async def refused(store: Store, note: Note) -> bool:
    """Whether the store takes the record for unsafe; if it takes it, it must give it back."""
    code = await refusal(create(store, note))
    if code is not None:
        assert code == "unsafe_record"
        assert await store.get(Note, note.key) is None
        return True
    kept = (await there(store, note.key)).record
    assert kept.model_copy(update={"changed_at": None}) == note
    return False


async def test_record_of_900_kb_is_the_largest(engine: Engine) -> None:
    assert not await refused(engine.store, Note(id="a", text="x" * 899_000))
    assert await refused(engine.store, Note(id="b", text="x" * 900_001))
    assert await refused(engine.store, Note(id="c", text="ü" * 450_001))


async def test_record_may_be_20_levels_deep(engine: Engine) -> None:
    assert not await refused(engine.store, Note(id="a", extra=nested(20)))
    assert await refused(engine.store, Note(id="b", extra=nested(22)))
    assert await refused(engine.store, Note(id="c", extra=[nested(22)]))


async def test_record_deeper_than_any_parser_goes_is_refused(engine: Engine) -> None:
    bottomless = Note.model_construct(**dict(Note(id="a")) | {"extra": nested(5000)})
    with pytest.raises(Rejected) as error:
        await create(engine.store, bottomless)
    assert error.value.code == "unsafe_record"


@pytest.mark.parametrize(
    "extra",
    [
        [[1]],
        [[]],
        {"a": [["b"]]},
        {"a": [{"b": [[]]}]},
        {"": 1},
        {"__a__": 1},
        [{"____": 1}],
        {"x" * 1501: 1},
        2**63,
        -(2**63) - 1,
        {"a": [10**30]},
    ],
)
async def test_content_that_firestore_would_not_take_is_refused(engine: Engine, extra: JsonValue) -> None:
    assert await refused(engine.store, Note(id="a", extra=extra))


@pytest.mark.parametrize(
    "extra",
    [
        [],
        {},
        [{"a": [1]}, {"b": [2]}],
        {"a.b": 1, "`": 2, "__a": 3, "a__": 4, " ": 5},
        2**63 - 1,
        -(2**63),
        [True, False, None, 0, "", 1.5, -0.0, 1e300],
        '[["a"]] {"__b__": {"": 99999999999999999999}}',
        "x" * 1501,
    ],
)
async def test_content_that_firestore_takes_comes_back(engine: Engine, extra: JsonValue) -> None:
    assert not await refused(engine.store, Note(id="a", extra=extra))


async def test_unsafe_number_in_a_plain_field_is_refused(engine: Engine) -> None:
    assert await refused(engine.store, Note(id="a", number=2**63))
    assert not await refused(engine.store, Note(id="b", number=2**63 - 1))


texts = st.text(st.characters(exclude_categories=()), max_size=30)


@given(text=texts, name=texts, item=texts)
@example(text="\0", name="\0", item="\0")
@example(text="\ud83d", name="a", item="\ude00")
@example(text="\ud83d\ude00", name="a", item="")
@example(text="👩‍🚀 ‮ é é \u2028 \x7f \x85", name="\\\"'`$.[]", item='"}],')
@on_one_store
async def test_text_comes_back_unchanged_or_is_refused(engine: Engine, text: str, name: str, item: str) -> None:
    key = f"n{next(save_ids)}"
    note = Note.model_construct(**dict(Note(id=key)) | {"text": text, "extra": {name: [item]}})
    has_surrogates = any(0xD800 <= ord(c) <= 0xDFFF for c in text + name + item)
    reserved = not name or (name.startswith("__") and name.endswith("__") and len(name) > 3)
    assert await refused(engine.store, note) is (has_surrogates or reserved)


@pytest.mark.parametrize("owner", ["a\0b", "ü", "x" * 1023, "'; DROP TABLE records", "%", "*"])
async def test_owner_may_be_any_text(engine: Engine, owner: str) -> None:
    await commit(engine.store, Create(Note(id="a", owner=owner)), Create(Note(id="b", owner=owner[:1])))
    assert "a" in [key for page in await pages(engine.store, owner, 10) for key in page]
    assert await pages(engine.store, owner + "x", 10) == [[]]


@pytest.mark.parametrize("owner", ["\ud800", "jwt:\udfff", "x" * 1025, "ü" * 513])
async def test_owner_that_is_no_text_or_too_long_owns_nothing(engine: Engine, owner: str) -> None:
    with pytest.raises(Rejected):
        await engine.store.page(Note, owner=owner, limit=1)
    with pytest.raises(Rejected):
        await engine.store.changed(Note, owner=owner, since=NOON, limit=1)
    assert await refused(engine.store, Note.model_construct(**dict(Note(id="a")) | {"owner": owner}))


moments = st.datetimes(
    min_value=datetime(1970, 1, 2), max_value=datetime(9999, 12, 30),  # noqa: DTZ001 - hypothesis wants them naive
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-11))]),
)  # fmt: skip


@given(created_at=moments, wake_at=moments)
@on_one_store
async def test_datetimes_keep_their_microseconds(engine: Engine, created_at: datetime, wake_at: datetime) -> None:
    key = f"n{next(save_ids)}"
    note = Note(id=key, owner=key, created_at=created_at, wake_at=wake_at)
    await create(engine.store, note)
    kept = (await there(engine.store, key)).record
    assert (kept.created_at, kept.wake_at) == (created_at, wake_at)
    assert key in await due(engine.store, cast(str, note.shard), wake_at, limit=10_000)
    assert key not in await due(engine.store, cast(str, note.shard), wake_at - timedelta(microseconds=1), limit=10_000)


@pytest.mark.parametrize("field", ["created_at", "wake_at"])
async def test_datetime_without_time_zone_is_refused(engine: Engine, field: str) -> None:
    naive = {field: NOON.replace(tzinfo=None)}
    with pytest.raises(Rejected) as error:
        await create(engine.store, Note(id="a").model_copy(update=naive))
    assert error.value.code == "unsafe_record"


async def test_job_comes_back_as_it_was(engine: Engine) -> None:
    saved = job()
    await engine.store.commit([Create(saved)], save_id="s")
    read = await engine.store.get(Job, saved.id)
    assert read is not None
    assert read.record.model_copy(update={"changed_at": None}) == saved
    assert json.loads(read.record.model_dump_json())["cost"]["quoted_usd"] == "0.0336"


def unreadable(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Collection and key of the records that the log says could not be read, since it was last asked."""
    found = [vars(line) for line in caplog.records if line.getMessage() == "record.unreadable"]
    caplog.clear()
    return [(line["collection"], line["key"]) for line in found]


async def test_record_that_a_later_version_wrote_is_unavailable_and_not_absent(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    await engine.store.commit([Create(LaterNote(id="later"))], save_id="s")
    with caplog.at_level(logging.ERROR), pytest.raises(Unavailable):
        await engine.store.get(Note, "later")
    assert unreadable(caplog) == [("notes", "later")]


async def test_record_that_a_later_version_wrote_hides_no_other(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    shard_mates = in_one_shard(3, wake_at=NOON)
    old, later, new = (
        note.model_copy(update={"created_at": NOON + timedelta(seconds=age)}) for age, note in enumerate(shard_mates)
    )
    unknown = LaterNote(id=later.id, created_at=later.created_at, wake_at=NOON)
    await engine.store.commit([Create(old), Create(unknown), Create(new)], save_id="s")
    lost = [("notes", later.id)]
    with caplog.at_level(logging.ERROR):
        assert await pages(engine.store, ANN, 1) == [[new.id], [], [old.id]]
        assert unreadable(caplog) == lost
        assert sorted(await changed(engine.store, datetime(1971, 1, 1, tzinfo=UTC))) == sorted([old.id, new.id])
        assert unreadable(caplog) == lost
        assert sorted(await due(engine.store, cast(str, old.shard), NOON)) == sorted([old.id, new.id])
        assert unreadable(caplog) == lost


async def test_commit_of_nothing_is_fine(engine: Engine) -> None:
    assert await engine.store.commit([], save_id="s") == ()


async def test_hundred_records_in_one_commit(engine: Engine) -> None:
    await commit(engine.store, *(Create(Note(id=f"n{n}")) for n in range(100)))
    assert len((await engine.store.page(Note, owner=ANN, limit=100)).items) == 100
