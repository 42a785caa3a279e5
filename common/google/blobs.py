"""The BlobStore port on Cloud Storage; twin of local/engine/blobs.py. The first call that needs the SDK loads it.

Signing needs no SDK, no thread and no key: common/v4.py says what is signed, Identity has it signed.
"""

import asyncio
import base64
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from common import v4
from common.errors import Conflict, NotFound, Unavailable
from common.google.calls import call_s_max, translated, try_s_max
from common.google.identity import Identity
from common.ports import Blob, SignedRequest
from common.settings import MIB, Settings

if TYPE_CHECKING:
    from google.api_core.retry import Retry
    from google.cloud import storage  # type: ignore[attr-defined]
    from google.oauth2.credentials import Credentials
    from requests import Response

T = TypeVar("T")

calls_max = 32
"""Calls under way at once: as many threads, and as many kept connections. Whoever comes later waits for a thread."""
_bytes_a_second_min = MIB
_read_bytes_expected = 16 * MIB
_first_pause_s = 0.05
_pause_s_max = 1.0


class CloudBlobs:
    """Objects in Cloud Storage, by its synchronous client in threads; anonymous where STORAGE_EMULATOR_HOST leads.

    A call is tried again within 3 s, and given up after 5 s and one more for each MiB that travels, its wait for a
    thread included; a try is given up after 2 s without a sign of life, which an upload gives when all of it is there:
    one more second for each MiB. Every transfer is checked by its CRC32C. Buckets are never looked at or listed.
    """

    def __init__(self, settings: Settings, identity: Identity, now: Callable[[], datetime]) -> None:
        self._url = settings.storage_url.rstrip("/")
        self._identity = identity
        self._now = now
        self._opening = asyncio.Lock()
        self._client: storage.Client | None = None
        self._bearer: Credentials | None = None
        self._closed = False
        self._threads = ThreadPoolExecutor(calls_max, thread_name_prefix="cloud-storage")

    async def put(
        self, bucket: str, name: str, data: bytes | Path, *, content_type: str, metadata: Mapping[str, str]
    ) -> Blob:
        """See BlobStore.put. Conflict may also mean that an earlier try of this call was applied."""
        client = await self._open()
        with translated("put"):
            size = _size(data)

        def write() -> Blob:
            blob = client.bucket(bucket).blob(name)
            blob.metadata = dict(metadata)
            with BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
                blob.upload_from_file(
                    file, size=size, content_type=content_type, checksum="crc32c", if_generation_match=0,
                    timeout=_timeout(size), retry=_retry(),
                )  # fmt: skip
            return _blob(blob)

        from google.api_core.exceptions import Forbidden

        try:
            return await self._call(f"put into {bucket}", write, size)
        except NotFound as exc:
            raise Unavailable(f"there is no bucket {bucket}") from exc
        except Unavailable as exc:
            # Who may create but not delete is told 403, whatever the precondition, where it would replace an object.
            if isinstance(exc.__cause__, Forbidden) and await self.stat(bucket, name) is not None:
                raise Conflict(f"{bucket}/{name} exists already") from exc
            raise

    async def stat(self, bucket: str, name: str) -> Blob | None:
        """See BlobStore.stat."""
        client = await self._open()
        try:
            return await self._call(f"stat in {bucket}", lambda: _blob(_described(client, bucket, name, None)))
        except NotFound:
            return None

    async def download(self, bucket: str, name: str, target: Path, *, generation: int | None = None) -> Blob:
        """See BlobStore.download. Two calls: what it is, then the bytes of exactly that generation."""
        client = await self._open()
        described = await self._call(f"stat in {bucket}", lambda: _described(client, bucket, name, generation))
        blob = _blob(described)

        def write() -> None:
            with target.open("xb") as file:
                try:
                    _fetch(client, bucket, name, blob.generation, file)
                except BaseException:
                    target.unlink()
                    raise

        def forget() -> None:
            target.unlink(missing_ok=True)

        await self._call(f"download from {bucket}", write, blob.size, undo=forget)
        return blob

    async def read(self, bucket: str, name: str) -> bytes:
        """See BlobStore.read. Meant for what fits into memory: 16 MiB have their time."""
        client = await self._open()

        def fetch() -> bytes:
            with BytesIO() as file:
                _fetch(client, bucket, name, None, file)
                return file.getvalue()

        return await self._call(f"read from {bucket}", fetch, _read_bytes_expected)

    async def delete(self, bucket: str, name: str) -> None:
        """See BlobStore.delete."""
        client = await self._open()

        def remove() -> None:
            client.bucket(bucket).blob(name).delete(timeout=_timeout(0), retry=_retry())

        try:
            await self._call(f"delete in {bucket}", remove)
        except NotFound:
            return

    async def sign_put(
        self, bucket: str, name: str, *, content_type: str, bytes_max: int, expires_s: int
    ) -> SignedRequest:
        """See BlobStore.sign_put."""
        return await self._sign("PUT", bucket, name, v4.upload_headers(content_type, bytes_max), expires_s)

    async def sign_get(self, bucket: str, name: str, *, expires_s: int) -> SignedRequest:
        """See BlobStore.sign_get. The signer must be allowed to read the object."""
        return await self._sign("GET", bucket, name, {}, expires_s)

    async def aclose(self) -> None:
        """Wait for calls under way, a matter of seconds, and close the connections; then all is Unavailable."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def _sign(
        self, method: str, bucket: str, name: str, headers: Mapping[str, str], expires_s: int
    ) -> SignedRequest:
        url = v4.object_url(self._url, bucket, name)
        email = await self._identity.email()
        draft = v4.unsigned(v4.RSA_ALGORITHM, email, method, url, headers, expires_s=expires_s, now=self._now())
        return draft.signed((await self._identity.sign_blob(draft.text)).hex())

    async def _open(self) -> "storage.Client":
        """The client, with a token that lives for minutes. Left to itself each thread would renew it, all at once."""
        if self._closed:
            raise Unavailable("the buckets are closed")
        async with self._opening:
            if self._client is None:
                emulated = bool(os.environ.get("STORAGE_EMULATOR_HOST"))
                self._client, self._bearer = await self._call("open", lambda: _client(None if emulated else self._url))
        if self._bearer is not None:
            self._bearer.token = await self._identity.access_token()
        return self._client

    async def _call(self, what: str, call: Callable[[], T], size: int = 0, undo: Callable[[], None] | None = None) -> T:
        """What `call` returns, in a thread. If nobody waits any more and it ends well after all, it is undone."""
        with translated(what):
            work = self._threads.submit(call)
            try:
                async with asyncio.timeout(call_s_max + size / _bytes_a_second_min):
                    return await asyncio.wrap_future(work)
            except BaseException as exc:
                if undo is not None and not work.cancel():
                    work.add_done_callback(lambda done: done.exception() or undo())
                if _is_refused_token(exc):
                    self._identity.forget_token()
                raise


def _client(url: str | None) -> "tuple[storage.Client, Credentials | None]":
    """A client for `url` and what it shows there; without one it goes where the environment says and shows nothing."""
    from google.auth.credentials import AnonymousCredentials
    from google.auth.transport.requests import AuthorizedSession
    from google.cloud import storage  # type: ignore[attr-defined]
    from google.oauth2.credentials import Credentials
    from requests.adapters import HTTPAdapter

    # Else it looks up each bucket once, in a thread of its own, for traces that nobody collects.
    os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
    bearer = None if url is None else Credentials("")  # type: ignore[no-untyped-call]
    options = None if url is None else {"api_endpoint": url}
    credentials = bearer or AnonymousCredentials()  # type: ignore[no-untyped-call]
    session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_maxsize=calls_max))
    session.hooks["response"] = [_read_refusal]
    client = storage.Client(project=None, credentials=credentials, _http=session, client_options=options)
    return client, bearer


def _read_refusal(answer: "Response", **_: object) -> None:
    # The client does not read why a download was refused before it tries again, which would lose the connection.
    if answer.status_code >= 400:
        answer.content  # noqa: B018


def _is_refused_token(exc: BaseException) -> bool:
    from google.auth.exceptions import RefreshError

    # The session answers 401 by renewing its credentials, which ours leave to Identity.
    return isinstance(exc, RefreshError)


def _described(client: "storage.Client", bucket: str, name: str, generation: int | None) -> "storage.Blob":
    blob = client.bucket(bucket).blob(name, generation=generation)
    blob.reload(timeout=_timeout(0), retry=_retry())
    return blob


def _fetch(client: "storage.Client", bucket: str, name: str, generation: int | None, file: IO[bytes]) -> None:
    """Write the object's bytes as they lie in the bucket.

    Not unpacked: whoever uploads may call his bytes gzip, and 10 MiB can then become 10 GB.
    """
    from google.cloud.storage.exceptions import DataCorruption  # type: ignore[import-untyped]

    blob = client.bucket(bucket).blob(name, generation=generation)
    checked = _Checked(file)
    try:
        blob.download_to_file(checked, raw_download=True, checksum="crc32c", timeout=_timeout(0), retry=_retry())
    except DataCorruption as exc:
        raise Unavailable("an object arrived damaged") from exc
    # The client resumes a broken download, and checks no sum then.
    if blob.crc32c != checked.crc32c:
        raise Unavailable("an object arrived damaged")


class _Checked:
    """A file that sums up what is written to it, in the form that Cloud Storage gives its own sums."""

    def __init__(self, file: IO[bytes]) -> None:
        from google_crc32c import Checksum

        self._file = file
        self._sum: Any = Checksum()  # type: ignore[no-untyped-call]

    def write(self, data: bytes) -> int:
        self._sum.update(data)
        return self._file.write(data)

    @property
    def crc32c(self) -> str:
        return base64.b64encode(self._sum.digest()).decode()


def _blob(found: "storage.Blob") -> Blob:
    return Blob(
        bucket=found.bucket.name,
        name=found.name,
        generation=found.generation,
        size=found.size,
        content_type=found.content_type or "application/octet-stream",
        created_at=found.time_created,
        metadata=found.metadata or {},
    )


def _size(data: bytes | Path) -> int:
    return len(data) if isinstance(data, bytes) else data.stat().st_size


def _timeout(bytes_to_send: int) -> tuple[float, float]:
    """Seconds to connect, and between two signs of life."""
    return try_s_max, try_s_max + bytes_to_send / _bytes_a_second_min


def _retry() -> "Retry":
    from google.cloud.storage.retry import DEFAULT_RETRY  # type: ignore[import-untyped]

    # No try begins later, so that the last one ends in time.
    delayed: Retry = DEFAULT_RETRY.with_delay(initial=_first_pause_s, maximum=_pause_s_max, multiplier=2)
    return delayed.with_timeout(call_s_max - try_s_max)
