"""One Firestore Listen stream for any number of targets: connection, resume tokens, reconnection; knows no jobs.

https://firebase.google.com/docs/firestore/reference/rpc/google.firestore.v1#google.firestore.v1.Firestore.Listen
The library's async client has no more than the bare stream; how it is kept up here follows the library for Node.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from common.errors import Unavailable
from common.google.connection import Connection, Pauses
from common.google.targets import Target
from common.telemetry import logger

if TYPE_CHECKING:
    from google.cloud.firestore_v1.types import BatchGetDocumentsResponse, ListenRequest

log = logger(__name__)

silence_s_max = 120.0
"""On a healthy stream Google says something every 30 s or so; Node's library gives up a silent one after as long."""
answer_s_max = 3.0
"""How long Firestore may say nothing while it owes us an answer: a connection, a target's state, a consistent whole."""
farewell_s_max = 0.5
"""How long Firestore may take to end the stream when the last target has gone; then it is cut off."""
restarts_max = 3
"""How often a target is started afresh on one stream before its watchers are told that it does not work."""

_id_max = 2**31 - 1
# google.rpc.Code: cancelled, unknown, deadline_exceeded, resource_exhausted, aborted, internal, unavailable, and
# unauthenticated, because tokens run out; 0 is no reason given. All other errors are there to stay.
_passing = frozenset({0, 1, 2, 4, 8, 10, 13, 14, 16})
_resource_exhausted = 8


class _QuotaExhausted(Exception):
    """Firestore has removed a target because a quota ran out: whatever else is asked now would only prolong that."""


class Stream:
    """Opens at once and stays open until `aclose`, through every break that may pass.

    After an error that is there to stay, such as a missing permission, `failure` says so, its targets have failed,
    and new ones fail at once.
    """

    def __init__(self, connection: Connection, *, closed: "Callable[[Stream], None]") -> None:
        """`closed` is called when the stream's task has ended; `users` is for whoever shares it out."""
        self.users = 0
        self.failure: str | None = None
        self._connection = connection
        self._targets: dict[int, Target] = {}
        self._named: dict[str, Target] = {}
        self._last_id = 0
        self._closing = False
        self._requests: asyncio.Queue[ListenRequest | None] | None = None
        self._silence: asyncio.Timeout | None = None
        self._consistent = False
        self._opened = asyncio.Event()
        # It serves all watchers: in the log it must not pass for a part of the first one's trace.
        self._task = asyncio.create_task(self._run(), context=Context())
        self._task.add_done_callback(lambda _: closed(self))

    @property
    def parent(self) -> str:
        """The full name of what all collections are under."""
        return f"{self._connection.database}/documents"

    def find(self, name: str) -> Target | None:
        """The target of that name, unless it has failed."""
        return self._named.get(name)

    def add(self, target: Target) -> None:
        """Listen to one more target; its `ready` tells when that is so."""
        if self.failure is not None:
            target.fail(self.failure)
        else:
            self._named[target.name] = target
            self._start(target)

    def remove(self, target: Target) -> None:
        """Listen to it no longer. Nothing happens if it has failed."""
        if self._named.get(target.name) is target:
            del self._named[target.name]
            self._stop(target)

    async def look(self, document: str) -> "BatchGetDocumentsResponse":
        """See Connection.look."""
        await self._opened.wait()
        if self.failure is not None:
            raise Unavailable(self.failure)
        return await self._connection.look(document)

    async def aclose(self) -> None:
        """End the stream and close its connection; targets that are left fail. Safe to repeat."""
        self._closing = True
        try:
            if self._requests is not None:
                # Firestore ends a stream that asks for nothing more. One that is cut off while a change is on its way
                # makes the emulator refuse the commit that brought the change.
                self._requests.put_nowait(None)
                await asyncio.wait([self._task], timeout=farewell_s_max)
        finally:
            self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        reason = "the feed was closed"
        try:
            await self._connection.open()
            self._opened.set()
            reason = await self._listen_on()
        except Exception as exc:
            # Whatever it was: nobody reads the stream any more, and its watchers would wait for ever.
            log.exception("feed.failed")
            reason = f"the stream of changes failed: {type(exc).__name__}"
        finally:
            self._fail(reason)
            await self._connection.aclose()

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._opened.set()
        failed = list(self._named.values())
        self._targets.clear()
        self._named.clear()
        for target in failed:
            target.fail(reason)

    async def _listen_on(self) -> str:
        """Listen again after every break; answers why that is of no use any more."""
        pauses = Pauses()
        while True:
            begun = asyncio.get_running_loop().time()
            code, passing = await self._listen()
            if self._closing:
                return "the feed was closed"
            if not passing:
                log.error("feed.refused", extra={"code": code})
                return f"Firestore refuses the stream of changes: {code}"
            for target in self._targets.values():
                target.interrupt()
            pause_s = pauses.after(asyncio.get_running_loop().time() - begun, code)
            log.info("feed.interrupted", extra={"code": code, "targets": len(self._targets), "pause_s": pause_s})
            await asyncio.sleep(pause_s)

    async def _listen(self) -> tuple[str, bool]:
        """One stream from its opening to its end, and why it ended; what the targets missed before comes first."""
        from google.cloud.firestore_v1.types import ListenResponse
        from grpc.aio import AioRpcError

        requests: asyncio.Queue[ListenRequest | None] = asyncio.Queue()
        call = self._connection.listen(requests)
        try:
            async with asyncio.timeout(silence_s_max) as self._silence:
                self._requests = requests
                for target in self._targets.values():
                    self._request(target)
                async for response in call:
                    if response is None:
                        # The emulator garbles a message now and then, when a commit falls together with the first
                        # answer for a target.
                        return "garbled", True
                    self._hear(ListenResponse.pb(response))
                    self._allow_silence()
            return "ended", True
        except AioRpcError as exc:
            return exc.code().name, exc.code().value[0] in _passing
        except _QuotaExhausted:
            return "RESOURCE_EXHAUSTED", True
        except TimeoutError:
            return "silent", True
        finally:
            call.cancel()
            self._requests = None
            requests.put_nowait(None)

    def _allow_silence(self) -> None:
        """Firestore has said something; but where it owes more, that has to come soon."""
        if self._silence is not None and not self._silence.expired():
            settled = self._consistent and all(target.current for target in self._targets.values())
            limit_s = silence_s_max if settled else answer_s_max
            self._silence.reschedule(asyncio.get_running_loop().time() + limit_s)

    def _expect_answer(self) -> None:
        """Firestore was asked for something."""
        self._consistent = False
        if self._silence is not None and not self._silence.expired():
            soon = asyncio.get_running_loop().time() + answer_s_max
            self._silence.reschedule(min(soon, self._silence.when() or soon))

    def _hear(self, response: Any) -> None:
        match response.WhichOneof("response_type"):
            case "document_change":
                for target in self._known(response.document_change.target_ids):
                    target.change(response.document_change.document)
            case "document_delete":
                for target in self._known(response.document_delete.removed_target_ids):
                    target.gone()
            case "document_remove":
                # Sent in place of a deletion or of a change that cannot be told; a fresh start tells which.
                for target in self._known(response.document_remove.removed_target_ids):
                    if target.count is not None:
                        self._restart(target)
            case "filter":
                for target in self._known([response.filter.target_id]):
                    if target.count not in (None, response.filter.count):
                        self._restart(target)
            case "target_change":
                self._hear_of_targets(response.target_change)

    def _hear_of_targets(self, change: Any) -> None:
        from google.cloud.firestore_v1.types import TargetChange

        kinds = TargetChange.TargetChangeType
        targets = self._known(change.target_ids) if change.target_ids else list(self._targets.values())
        match change.target_change_type:
            case kinds.CURRENT:
                self._consistent = False
                for target in targets:
                    target.settle()
            case kinds.RESET:
                for target in targets:
                    target.reset()
            case kinds.NO_CHANGE if not change.target_ids:
                # Promised after each of the others.
                self._consistent = True
            case kinds.REMOVE:
                for target in targets:
                    self._removed(target, change.cause.code)
        if change.resume_token:
            for target in targets:
                # It says "all up to here was told", which does not hold for a target that is still catching up.
                if target.current:
                    target.told_until(change)

    def _removed(self, target: Target, code: int) -> None:
        """Firestore has removed it unasked: perhaps its token is too old, perhaps it may not be listened to at all."""
        log.warning("feed.removed", extra={"target": target.name, "code": code, "resumed": bool(target.token)})
        if code == _resource_exhausted:
            raise _QuotaExhausted
        del self._targets[target.id]
        if target.token or code in _passing:
            self._restart(target)
        else:
            self._refuse(target, code)

    def _restart(self, target: Target) -> None:
        """Start it afresh, under another id: what is still on the way for the old one is not meant for it."""
        self._stop(target)
        target.reset()
        target.restarts += 1
        if target.restarts > restarts_max:
            self._refuse(target, 0)
        else:
            self._start(target)

    def _refuse(self, target: Target, code: int) -> None:
        del self._named[target.name]
        target.fail(f"Firestore does not let us listen (code {code})")

    def _start(self, target: Target) -> None:
        target.id = self._new_id()
        self._targets[target.id] = target
        self._request(target)

    def _stop(self, target: Target) -> None:
        from google.cloud.firestore_v1.types import ListenRequest

        if self._targets.pop(target.id, None) is not None and self._requests is not None:
            self._requests.put_nowait(ListenRequest(database=self._connection.database, remove_target=target.id))

    def _request(self, target: Target) -> None:
        from google.cloud.firestore_v1.types import ListenRequest

        if self._requests is not None:
            selection = target.selection()
            selection.target_id = target.id
            if target.token:
                selection.resume_token = target.token
            self._requests.put_nowait(ListenRequest(database=self._connection.database, add_target=selection))
            self._expect_answer()

    def _new_id(self) -> int:
        """One that comes again only after two thousand million others."""
        while True:
            self._last_id = self._last_id % _id_max + 1
            if self._last_id not in self._targets:
                return self._last_id

    def _known(self, ids: Iterable[int]) -> list[Target]:
        # What was removed goes on for a moment, until Firestore has heard of it.
        return [target for number in ids if (target := self._targets.get(number)) is not None]
