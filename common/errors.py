"""Every way Darkroom says no, as one tree and one table of codes; no handling of errors lives here."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Code:
    """What a stable error code means to the person who meets it.

    `status` is the HTTP status of the problem document, or None for a code that only ends a job.
    `retryable` says whether asking for the same thing again, unchanged, may succeed.
    """

    status: int | None
    title: str
    advice: str
    retryable: bool = False


CODES: Mapping[str, Code] = MappingProxyType(
    {
        # The request.
        "malformed_request": Code(400, "The request cannot be read", "Send one JSON object in UTF-8."),
        "invalid_request": Code(422, "A field has a value we cannot use", "Correct the fields named in `errors`."),
        "prompt_empty": Code(422, "The prompt is empty", "Say in a sentence what the picture shows."),
        "prompt_too_long": Code(422, "The prompt is too long", "Shorten it to 1,000 characters."),
        "unknown_style": Code(422, "There is no such style", "Choose a style from the list in `detail`."),
        "unknown_model": Code(422, "There is no such model", "Choose a model from the list in `detail`."),
        "unsupported_ratio": Code(422, "The model cannot draw that ratio", "Choose a ratio from `detail`."),
        "unsupported_size": Code(422, "The model cannot draw that size", "Choose a size from `detail`."),
        "body_too_large": Code(413, "The request body is too large", "Send less; photos go to the signed URL."),
        "unsupported_media_type": Code(415, "The body is not JSON", "Send `Content-Type: application/json`."),
        "method_not_allowed": Code(405, "That method is not offered here", "Use a method from the `Allow` header."),
        "unauthenticated": Code(401, "We do not know who is asking", "Send `Authorization: Bearer …`."),
        "host_refused": Code(403, "That host name is not served", "Call the server by 127.0.0.1 or localhost."),
        "origin_refused": Code(403, "That web origin may not call", "Add the origin to CORS_ORIGINS."),
        "not_found": Code(404, "There is no such thing", "Check the id; jobs of other owners look absent too."),
        "not_ready": Code(409, "The picture is not there yet", "Wait until the job is done, then ask again.", True),
        "already_ended": Code(409, "The job has already ended", "Look at the job; an end never changes."),
        "conflict": Code(409, "Somebody else changed it first", "Read it again, then repeat.", True),
        "no_firestore": Code(404, "There is no Firestore to listen to", "Follow the job by its `events` link instead."),
        "unavailable": Code(503, "A part of the service does not answer", "Try again in a few seconds.", True),
        "internal": Code(500, "Something broke on our side", "Try again; if it stays, tell us the `request_id`."),
        # The photo. A job ends with one of these; nothing was billed.
        "upload_expired": Code(
            None, "No photo arrived in time", "Create a new job and upload before `upload_expires_at`."
        ),
        "upload_empty": Code(None, "The uploaded file is empty", "Check that the file is complete, then upload it."),
        "upload_too_large": Code(None, "The file is too large", "Export a smaller copy and upload that."),
        "not_an_image": Code(None, "The file is not a photo we read", "Send a JPEG, PNG or WebP photo."),
        "unsupported_image": Code(None, "We do not read this kind of image", "Export it as JPEG and upload that."),
        "image_damaged": Code(None, "The image is damaged", "Open and save it again, or take another photo."),
        "image_too_many_pixels": Code(
            None, "The image has too many pixels", "Scale it down, e.g. to 4000 pixels wide."
        ),
        "image_too_complex": Code(None, "The image takes too long to read", "Save it as a plain JPEG and upload that."),
        # The model.
        "content_blocked_input": Code(None, "The model refused the request", "Use another photo or other words."),
        "content_blocked_output": Code(None, "The model withheld its picture", "Change the words or the photo."),
        "content_recitation": Code(None, "The picture resembled a protected work", "Ask for something more your own."),
        "no_image": Code(None, "The model answered without a picture", "Describe a picture, then try again.", True),
        "generation_failed": Code(None, "The model could not draw it", "Try again, or change the words.", True),
        "bad_output": Code(None, "The model's picture was damaged", "Try again.", True),
        "not_kept": Code(None, "The picture was made but could not be kept", "Try again.", True),
        "invalid_input": Code(None, "The model cannot use this request", "Change the words, the photo or the size."),
        "busy": Code(None, "The model stayed busy", "Try again in some minutes.", True),
        "quota_exhausted": Code(None, "Today's model quota is used up", "Try again tomorrow.", True),
        "upstream_unavailable": Code(None, "The model could not be reached", "Try again in some minutes.", True),
        "timeout": Code(None, "The model did not answer in time", "Try again; the call may have been billed.", True),
        "service_config": Code(
            None, "The service may not use the model", "Tell the operator: key or rights are wrong."
        ),
        "model_retired": Code(None, "The model is no longer offered", "Choose another model."),
        "deadline_exceeded": Code(None, "The job did not finish in time", "Try again later.", True),
        # Configuration and internals.
        "unsafe_record": Code(500, "A record does not fit the store", "Tell us the `request_id`."),
    }
)


class DarkroomError(Exception):
    """The root of the tree: a stable `code`, a `detail` for this case, and advice.

    Raises KeyError at once if the code is not in the table, so that no undocumented code can leave the house.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        entry = CODES[code]
        self.code = code
        self.detail = detail or entry.title
        super().__init__(f"{code}: {self.detail}")

    @property
    def entry(self) -> Code:
        """The row of the table that explains this error."""
        return CODES[self.code]

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross from worker processes by pickle, which would call __init__ with the joined text.
        return _rebuild, (type(self), dict(self.__dict__))


class Rejected(DarkroomError):
    """Never: repeating the same request gives the same answer."""


class Deferred(DarkroomError):
    """At a known time: the wait is saved as `wake_at`, so the message is done with."""

    def __init__(self, code: str, wake_at: datetime, detail: str = "") -> None:
        super().__init__(code, detail)
        self.wake_at = wake_at


class Retryable(DarkroomError):
    """Soon: our own infrastructure failed; the bus or the caller tries again."""


class Conflict(Retryable):
    """A compare-and-set lost: the record changed since it was read, or exists already."""

    def __init__(self, detail: str) -> None:
        super().__init__("conflict", detail)


class Unavailable(Retryable):
    """The store, the bucket or the bus did not answer as it should."""

    def __init__(self, detail: str) -> None:
        super().__init__("unavailable", detail)


class NotFound(Rejected):
    """It does not exist, or belongs to somebody else: the answer is the same."""

    def __init__(self, detail: str = "") -> None:
        super().__init__("not_found", detail)


def _rebuild(kind: type[DarkroomError], fields: dict[str, object]) -> DarkroomError:
    error = kind.__new__(kind)
    error.__dict__.update(fields)
    error.args = (f"{fields['code']}: {fields['detail']}",)
    return error
