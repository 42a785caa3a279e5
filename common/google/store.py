"""The Store port on Firestore; twin of local/engine/store.py.

A record is the document `{collection}/{key}` (common/google/documents.py), its etag the document's `update_time`.
Queries need three composite indexes, each in the collections whose records have the fields:

    owner ascending, created_at descending      `page`
    owner ascending, changed_at ascending       `changed`
    shard ascending, wake_at ascending          `due`

Nothing else needs an index, and rising times indexed by themselves would hold a collection at 500 writes a second,
so all automatic ones should be off (https://firebase.google.com/docs/firestore/best-practices).

Writes are spelled out as protobuf messages, because the client's batch can replace a whole document or hold it to an
`update_time`, but not both: its `update` would leave whatever field the new record lacks. It also takes 1.9 ms of CPU
for a job and its Work, where this takes 0.8. Everything else is the client's public interface.

`changed_at` is the moment at which Firestore received the commit, in whole milliseconds; the commit is seen a little
later, perhaps after another with a later `changed_at`. Whoever asks for changes again begins some seconds earlier.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, cast

from common.documents import check_key, check_owner, read_token, write_token
from common.errors import Conflict, Rejected, Unavailable
from common.google.calls import call_s_max, last_error, retry, try_s_max
from common.google.credentials import Loader
from common.google.documents import plain, put, to_fields
from common.google.opening import Opening
from common.google.snapshots import in_millis, readable, stored
from common.ports import Change, Create, Delete, Page, Stored, Update
from common.records import Record
from common.telemetry import logger

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.cloud.firestore_v1 import AsyncClient, AsyncCollectionReference, AsyncQuery, DocumentSnapshot
    from google.cloud.firestore_v1.types import WriteResult

log = logger(__name__)

R = TypeVar("R", bound=Record)
T = TypeVar("T")
Answer = tuple[Stored[Record] | None, ...]

_reason_chars = 500


class FirestoreStore:
    """Records as documents. Opens no connection before the first call; heeds FIRESTORE_EMULATOR_HOST."""

    def __init__(self, project: str, database: str, loader: Loader | None = None) -> None:
        self._project = project
        self._database = database
        self._loader = loader or Loader()
        self._opening = Opening("the store", self._prepare, self._make, _close)

    async def aclose(self) -> None:
        """Close the connection; what is called after that, or under way, raises Unavailable."""
        await self._opening.aclose()

    async def get(self, kind: type[R], key: str) -> Stored[R] | None:
        """See Store.get."""
        check_key(key)
        found = await self._ask(
            "get",
            lambda client: client.document(kind.collection, key).get(retry=None, timeout=try_s_max),
        )
        if not found.exists:
            return None
        records = readable(kind, [found])
        if not records:
            raise Unavailable(f"{kind.collection}/{key} was written by a version that knew more")
        return records[0]

    async def commit(self, changes: Sequence[Change], *, save_id: str) -> Answer:
        """See Store.commit."""
        places = [_place(change) for change in changes]
        if len(set(places)) < len(places):
            raise Rejected("unsafe_record", "a commit changes each record once")
        encoded = [{} if isinstance(change, Delete) else to_fields(change.record, save_id) for change in changes]
        if not changes:
            return ()
        async with self._opening.call("commit") as client:
            # Here, where it has been loaded in a thread.
            from google.api_core import exceptions

            writes = [self._message(change, fields) for change, fields in zip(changes, encoded, strict=True)]
            try:
                return await retry()(_write)(client, changes, writes)
            except exceptions.InvalidArgument as exc:
                # Who asked can do nothing about it, and is not told what Google says to us.
                log.error("store.refused", extra={"reason": exc.message[:_reason_chars], "records": places})
                raise Rejected("unsafe_record", "Firestore does not take the record") from exc
            except exceptions.GoogleAPIError as exc:
                if not _is_refusal(exc):
                    raise
                # Perhaps by what an earlier try has written, whose answer was lost.
                return await retry()(_find_mine)(client, changes, save_id)

    async def page(self, kind: type[R], *, owner: str, limit: int, token: str | None = None) -> Page[R]:
        """See Store.page."""
        check_owner(owner)
        after = None if token is None else read_token(kind, owner, token)

        def query(client: "AsyncClient") -> "AsyncQuery":
            listed = (
                _of_owner(client, kind, owner)
                .order_by("created_at", direction="DESCENDING")
                .order_by("__name__", direction="DESCENDING")
                .limit(limit + 1)
            )
            return listed if after is None else listed.start_after({"created_at": after[0], "__name__": after[1]})

        found = await self._list("page", query)
        items = readable(kind, found[:limit])
        if len(found) <= limit:
            return Page(items, None)
        last = found[limit - 1]
        return Page(items, write_token(kind, owner, plain(last.get("created_at")), last.id))

    async def changed(self, kind: type[R], *, owner: str, since: datetime, limit: int) -> tuple[Stored[R], ...]:
        """See Store.changed."""
        check_owner(owner)

        def query(client: "AsyncClient") -> "AsyncQuery":
            return _where(_of_owner(client, kind, owner), "changed_at", ">=", since).order_by("changed_at").limit(limit)

        return readable(kind, await self._list("changed", query))

    async def due(self, kind: type[R], *, shards: Sequence[str], before: datetime, limit: int) -> tuple[Stored[R], ...]:
        """See Store.due."""
        if not shards:
            return ()

        def query(client: "AsyncClient") -> "AsyncQuery":
            watched = _where(client.collection(kind.collection), "shard", "in", list(shards))
            return _where(watched, "wake_at", "<=", before).order_by("wake_at").limit(limit)

        return readable(kind, await self._list("due", query))

    async def _list(self, what: str, query: "Callable[[AsyncClient], AsyncQuery]") -> "list[DocumentSnapshot[Any]]":
        # A thousand records take a second or more, so the first try may take all the time there is.
        found = await self._ask(what, lambda client: query(client).get(retry=None, timeout=call_s_max))
        return list(found)

    async def _ask(self, what: str, question: "Callable[[AsyncClient], Awaitable[T]]") -> T:
        async with self._opening.call(what) as client:
            # Around the whole answer: the client's own retry ends where a stream of results begins.
            return await retry()(question)(client)

    async def _prepare(self) -> "Credentials | None":
        """Who we are, unless an emulator is there and does not care."""
        # 200 ms of modules.
        await self._loader.in_thread(lambda: import_module("google.cloud.firestore_v1"))
        return None if os.environ.get("FIRESTORE_EMULATOR_HOST") else await self._loader.credentials()

    def _make(self, credentials: "Credentials | None") -> "AsyncClient":
        from google.cloud.firestore_v1 import AsyncClient

        return AsyncClient(project=self._project, database=self._database, credentials=credentials)

    def _message(self, change: Change, fields: Mapping[str, Any]) -> Any:
        """The raw protobuf Write that makes this change, and only as it may."""
        from google.cloud.firestore_v1.types import DocumentTransform, Write

        collection, key = _place(change)
        path = f"projects/{self._project}/databases/{self._database}/documents/{collection}/{key}"
        message: Any = Write.pb()()
        if isinstance(change, Delete):
            message.delete = path
            return message
        message.update.name = path
        for name, content in fields.items():
            # A document that stays as it is keeps its update_time; the new save_id makes every commit a change.
            put(content, message.update.fields[name])
        if _shows_changes(change.record):
            request_time = DocumentTransform.FieldTransform.ServerValue.REQUEST_TIME
            message.update_transforms.add(field_path="changed_at", set_to_server_value=request_time)
        if isinstance(change, Create):
            message.current_document.exists = False
            return message
        try:
            message.current_document.update_time.FromJsonString(change.etag)
        except ValueError as exc:
            raise Conflict(f"{collection}/{key} never was the version {change.etag}") from exc
        return message


async def _close(client: "AsyncClient") -> None:
    # Its own `close` leaves the channel open.
    await client._firestore_api.transport.close()


async def _write(client: "AsyncClient", changes: Sequence[Change], writes: Sequence[Any]) -> Answer:
    from google.cloud.firestore_v1.types import Write

    batch = client.batch()
    batch._add_write_pbs([Write.wrap(message) for message in writes])
    results = await batch.commit(retry=None, timeout=try_s_max)
    read_at = in_millis(cast(datetime, batch.commit_time))
    return tuple(
        None if isinstance(change, Delete) else _written(change.record, result, read_at)
        for change, result in zip(changes, results, strict=True)
    )


def _written(record: Record, result: "WriteResult", read_at: datetime) -> Stored[Record]:
    if _shows_changes(record):
        (stamp,) = result.transform_results
        record = record.model_copy(update={"changed_at": plain(stamp.timestamp_value)})
    return Stored(record, result.update_time.rfc3339(), read_at)


async def _find_mine(client: "AsyncClient", changes: Sequence[Change], save_id: str) -> Answer:
    """What this very commit wrote when it was applied before and its answer was lost. Raises Conflict if it was not.

    The rule is the twin's: what it deleted may be there again, but nothing that it wrote may have changed since.
    """
    documents = [client.document(*_place(change)) for change in changes]
    there = {
        snapshot.reference.path: snapshot
        async for snapshot in client.get_all(documents, retry=None, timeout=try_s_max)
        if snapshot.exists
    }
    found = [there.get(document.path) for document in documents]
    mine = [snapshot is not None and (snapshot.to_dict() or {}).get("save_id") == save_id for snapshot in found]
    if not any(mine):
        if all(_may_apply(change, snapshot) for change, snapshot in zip(changes, found, strict=True)):
            # Nothing stands against it but others' commits that came between, so it is no Conflict.
            raise Unavailable("the commit was kept from being applied")
        raise Conflict(f"{documents[0].path}, or a record committed with it, exists already or has changed")
    if not all(own or isinstance(change, Delete) for change, own in zip(changes, mine, strict=True)):
        raise Conflict("this commit was applied before, and a record has changed since")
    return tuple(
        None if isinstance(change, Delete) or snapshot is None else stored(type(change.record), snapshot)
        for change, snapshot in zip(changes, found, strict=True)
    )


def _may_apply(change: Change, there: "DocumentSnapshot[Any] | None") -> bool:
    """Whether what is there is what the change demands."""
    match change:
        case Create():
            return there is None
        case Update():
            return there is not None and there.update_time.rfc3339() == change.etag
    return True


def _is_refusal(exc: Exception) -> bool:
    """Whether Firestore refused a commit for what is there, or could not get at it for others' commits to the end."""
    from google.api_core import exceptions

    return isinstance(
        last_error(exc),
        exceptions.Aborted | exceptions.AlreadyExists | exceptions.FailedPrecondition | exceptions.NotFound,
    )


def _place(change: Change) -> tuple[str, str]:
    if isinstance(change, Delete):
        check_key(change.key)
        return change.kind.collection, change.key
    return change.record.collection, change.record.key


def _of_owner(client: "AsyncClient", kind: type[Record], owner: str) -> "AsyncQuery":
    return _where(client.collection(kind.collection), "owner", "==", owner)


def _where(query: "AsyncCollectionReference | AsyncQuery", field: str, operator: str, value: object) -> "AsyncQuery":
    from google.cloud.firestore_v1.base_query import FieldFilter

    return query.where(filter=FieldFilter(field, operator, value))


def _shows_changes(record: Record) -> bool:
    return "changed_at" in type(record).model_fields
