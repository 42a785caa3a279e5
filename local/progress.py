"""What a person sees of jobs under way, and the words for it; nothing here asks a server."""

import sys
from datetime import datetime
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from common.job import Status
from common.views import JobView

_WORDS = {
    "awaiting_upload": "waiting for the photo",
    "pending": "queued",
    "processing": "working",
    "validating": "checking the photo",
    "queued": "queued",
    "generating": "the model draws",
    "storing": "keeping the pictures",
}
_name_chars_max = 28


def printable(text: str) -> str:
    """One line that cannot steer the terminal, whoever wrote it."""
    return "".join(char if char.isprintable() else " " for char in text)


def state_of(job: JobView) -> str:
    """Where the job stands, in words; a status or stage of a newer server is shown by its own name."""
    now = job.status if job.done or job.stage is None else job.stage
    return _WORDS.get(now, now)


def seconds(job: JobView) -> float | None:
    """How long an ended job took, from its creation."""
    return None if job.finished_at is None else (job.finished_at - job.created_at).total_seconds()


def ending(job: JobView) -> str:
    """How it ended, in a sentence with code and advice where it went wrong."""
    took = seconds(job)
    if job.status is Status.COMPLETED:
        text = "completed" if took is None else f"completed in {took:.1f} s"
        made = sum(image.status == "completed" for image in job.images)
        return f"{text}, but only {made} of {len(job.images)} images" if job.partial else text
    if job.error is None:
        return str(job.status)
    error = job.error
    billed = {"yes": " Google billed it.", "maybe": " It may have been billed."}.get(error.billed, "")
    return f"{job.status}: {error.message.rstrip('.')}. {error.advice}{billed} ({error.code})"


class Line:
    """One job's line on a Board."""

    def __init__(self, board: "Board", task: TaskID, name: str) -> None:
        self._board = board
        self._task = task
        self._name = name
        self._shown = ""
        self._has_sent = False

    def sent(self, count: int) -> None:
        """So many bytes of the photo are on their way."""
        self._has_sent = True
        self._board.bars.update(self._task, completed=count)
        self._show("uploading")

    def state(self, job: JobView) -> None:
        """The job came to a new state."""
        # The service learns of the upload a moment after us; till then it says that it waits for the photo.
        is_news = job.status is not Status.AWAITING_UPLOAD or job.stage is not None or not self._has_sent
        self._show(state_of(job) if is_news else "uploaded")

    def ends(self) -> None:
        """The line goes; what became of it is a result."""
        self._board.bars.update(self._task, visible=False)

    def _show(self, text: str) -> None:
        if text == self._shown:
            return
        self._shown = text
        self._board.bars.update(self._task, state=text)
        if not self._board.is_live:
            now = datetime.now().astimezone()
            self._board.console.print(Text(f"{now:%H:%M:%S}  {self._name}  {text}"), soft_wrap=True)


class Board:
    """A live line for each job while entered; where nobody watches, a plain line on stderr for each change.

    Results go to stdout. Where that is the same terminal, both share one console, so that a result is written
    above the live lines and not into them.
    """

    def __init__(self, *, json: bool = False) -> None:
        watched = sys.stdout.isatty()
        self._shares_stdout = watched and not json
        self.console = Console(stderr=not self._shares_stdout, highlight=False)
        self.is_live = self.console.is_terminal and not (json and watched)
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[name]}", markup=False),
            _UploadColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.is_live,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def line(self, name: str, *, total_bytes: int | None = None) -> Line:
        """A line for one more job; with `total_bytes` it has a bar that `sent` fills."""
        name = printable(name)
        short = name if len(name) <= _name_chars_max else f"{name[: _name_chars_max - 1]}…"
        return Line(self, self.bars.add_task("", total=total_bytes, name=short, state=""), name)

    def result(self, text: str) -> None:
        """One line on stdout."""
        if self._shares_stdout:
            self.console.print(Text(text), soft_wrap=True)
        else:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()


class _UploadColumn(ProgressColumn):
    """A bar while bytes are sent, nothing before and after."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = BarColumn(bar_width=16)

    def render(self, task: Task) -> RenderableType:
        """See ProgressColumn.render."""
        return Text() if task.total is None or task.completed >= task.total else self._bar.render(task)
