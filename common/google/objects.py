"""Objects by Cloud Storage's synchronous client: what the threads of CloudBlobs do. Every method here blocks.

Sums are ours, in both directions. The client's own check of an upload in a session deletes what it finds damaged, by
its name alone: by then that may be another's object.
"""

import base64
import os
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from common.errors import Unavailable
from common.google.calls import call_s_max, try_s_max
from common.ports import Blob
from common.settings import MIB

if TYPE_CHECKING:
    from google.api_core.retry import Retry
    from google.cloud import storage  # type: ignore[attr-defined]
    from requests import Response

bytes_a_second_min = MIB
_chunk_bytes = MIB
_first_pause_s = 0.05
_pause_s_max = 1.0


class Objects:
    """The client, at `url`; without one it goes where the environment says, and shows no token.

    A call is tried again within 3 s, and a try given up after 2 s without a sign of life; an upload gives that when all
    of it is there, so it has one more second for each MiB. When `closed` says so, no further try is made. The methods
    raise what the client and `requests` raise, and OSError.
    """

    def __init__(self, url: str | None, connections: int, closed: Callable[[], bool]) -> None:
        from google.auth.credentials import AnonymousCredentials
        from google.auth.transport.requests import AuthorizedSession
        from google.cloud import storage  # type: ignore[attr-defined]
        from google.oauth2.credentials import Credentials
        from requests.adapters import HTTPAdapter

        # Else it looks up each bucket once, in a thread of its own, for traces that nobody collects.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        self._bearer = None if url is None else Credentials("")  # type: ignore[no-untyped-call]
        options = None if url is None else {"api_endpoint": url}
        credentials = self._bearer or AnonymousCredentials()  # type: ignore[no-untyped-call]
        session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
        for scheme in ("https://", "http://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=connections))
        session.hooks["response"] = [_read_refusal]
        self._client = storage.Client(project=None, credentials=credentials, _http=session, client_options=options)
        self._retry = _retry(closed)

    @property
    def shows_token(self) -> bool:
        """Whether it needs one."""
        return self._bearer is not None

    def show(self, token: str) -> None:
        """Use this access token from now on. Left to itself each thread would renew its own, all at once."""
        if self._bearer is not None:
            self._bearer.token = token

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._client.close()

    def write(
        self, bucket: str, name: str, data: bytes | Path, size: int, content_type: str, metadata: Mapping[str, str]
    ) -> Blob:
        """Write the object if the name is free. Cloud Storage makes none of bytes that have another sum than ours."""
        blob = self._blob(bucket, name)
        blob.metadata = dict(metadata)
        with BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
            blob.crc32c = told = _crc32c_of(file)
            blob.upload_from_file(
                file, rewind=True, size=size, content_type=content_type, checksum=None, if_generation_match=0,
                timeout=_timeout(size), retry=self._retry,
            )  # fmt: skip
        if blob.crc32c != told:
            raise Unavailable("an object was damaged on its way")
        return _described(blob)

    def describe(self, bucket: str, name: str, generation: int | None = None) -> Blob:
        """What is there."""
        blob = self._blob(bucket, name, generation)
        blob.reload(timeout=_timeout(0), retry=self._retry)
        return _described(blob)

    def fetch(self, bucket: str, name: str, generation: int | None, file: IO[bytes]) -> None:
        """Write the object's bytes as they lie in the bucket. Raises Unavailable if they arrive damaged.

        Not unpacked: whoever uploads may call his bytes gzip, and 10 MiB can then become 10 GB.
        """
        from google.cloud.storage.exceptions import DataCorruption  # type: ignore[import-untyped]

        blob = self._blob(bucket, name, generation)
        checked = _Checked(file)
        timeout, retry = _timeout(0), self._retry
        try:
            blob.download_to_file(checked, raw_download=True, checksum="crc32c", timeout=timeout, retry=retry)
        except DataCorruption as exc:
            raise Unavailable("an object arrived damaged") from exc
        # The client resumes a broken download, and checks no sum then.
        if blob.crc32c != checked.crc32c:
            raise Unavailable("an object arrived damaged")

    def delete(self, bucket: str, name: str) -> None:
        """Remove the object."""
        self._blob(bucket, name).delete(timeout=_timeout(0), retry=self._retry)

    def look(self, bucket: str) -> None:
        """Raise NotFound if there is no such bucket. Whoever may read its objects may ask (roles/storage.objectViewer).

        Who may not list objects is told 403 instead of 404 where there is none, and never comes here.
        """
        listed = self._client.list_blobs(
            bucket, max_results=1, fields="items(name)", timeout=_timeout(0), retry=self._retry
        )
        next(iter(listed), None)

    def _blob(self, bucket: str, name: str, generation: int | None = None) -> "storage.Blob":
        return self._client.bucket(bucket).blob(name, generation=generation)


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
        return _in_base64(self._sum)


def _crc32c_of(file: IO[bytes]) -> str:
    from google_crc32c import Checksum

    total: Any = Checksum()  # type: ignore[no-untyped-call]
    while chunk := file.read(_chunk_bytes):
        total.update(chunk)
    return _in_base64(total)


def _in_base64(checksum: Any) -> str:
    return base64.b64encode(checksum.digest()).decode()


def _described(found: "storage.Blob") -> Blob:
    return Blob(
        bucket=found.bucket.name,
        name=found.name,
        generation=found.generation,
        size=found.size,
        content_type=found.content_type or "application/octet-stream",
        created_at=found.time_created,
        metadata=found.metadata or {},
    )


def _read_refusal(answer: "Response", **_: object) -> None:
    # The client does not read why a download was refused before it tries again, which would lose the connection.
    if answer.status_code >= 400:
        answer.content  # noqa: B018


def _timeout(bytes_to_send: int) -> tuple[float, float]:
    """Seconds to connect, and between two signs of life."""
    return try_s_max, try_s_max + bytes_to_send / bytes_a_second_min


def _retry(closed: Callable[[], bool]) -> "Retry":
    from google.api_core.retry import Retry
    from google.cloud.storage.retry import DEFAULT_RETRY  # type: ignore[import-untyped]

    passes = DEFAULT_RETRY._predicate
    return Retry(
        predicate=lambda exc: not closed() and passes(exc),
        initial=_first_pause_s,
        maximum=_pause_s_max,
        multiplier=2,
        # No try begins later, so that the last one ends in time.
        timeout=call_s_max - try_s_max,
    )
