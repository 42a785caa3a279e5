"""The job's state machine: every step it allows, every step it refuses, and what holds after any walk through it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from common.errors import Rejected
from common.job import TRANSITIONS, Image, Job, JobError, Kind, Original, Photo, Stage, Status, Timings
from common.ledger import Attempt, Billed, Cost

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
ENDS = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})
PHOTO = Photo(
    name="test~3Aann/x.jpg",
    generation=1,
    sha256="0" * 64,
    width=384,
    height=512,
    bytes=40_000,
    original=Original(content_type="image/jpeg", width=3000, height=4000, bytes=4_000_000),
)


def new_job(status: Status = Status.AWAITING_UPLOAD, images: int = 2) -> Job:
    """A job that stands at `status` and has reached nothing else."""
    return Job(
        id="0" * 32,
        owner="test:ann",
        kind=Kind.PORTRAIT,
        style="corporate",
        prompt=None,
        negative_prompt=None,
        aspect_ratio="3:4",
        size="1K",
        model="gemini-nano-banana-2.1",
        num_images=images,
        status=status,
        stage=None,
        images=tuple(Image(index=index) for index in range(images)),
        cost=Cost(quoted_usd=Decimal("0.0672")),
        reached={status: 1},
        created_at=NOON,
        deadline_at=NOON + timedelta(minutes=30),
        delete_at=NOON + timedelta(days=30),
    )


def done(job: Job) -> tuple[Image, ...]:
    return tuple(image.model_copy(update={"status": "completed"}) for image in job.images)


def lost(job: Job) -> tuple[Image, ...]:
    error = JobError.of("no_image")
    return tuple(image.model_copy(update={"status": "failed", "error": error}) for image in job.images)


def half(job: Job) -> tuple[Image, ...]:
    return (*done(job)[:1], *lost(job)[1:])


# Each method that moves a job: what it is called, where it leads, and the call.
ADVANCES: dict[str, tuple[Status, Callable[[Job], Job]]] = {
    "accept": (Status.PENDING, lambda job: job.accept(PHOTO, Timings(), NOON, NOON)),
    "send": (Status.PROCESSING, lambda job: job.send(job.images, (), NOON)),
    "finish": (Status.COMPLETED, lambda job: job.finish(done(job), (), NOON)),
    "finish without a picture": (Status.FAILED, lambda job: job.finish(lost(job), (), NOON)),
    "give up": (Status.FAILED, lambda job: job.give_up(JobError.of("image_damaged"), NOON)),
    "cancel": (Status.CANCELLED, lambda job: job.cancel(NOON)),
    "expire": (Status.EXPIRED, lambda job: job.expire(NOON)),
}
SHOWS: dict[str, Callable[[Job], Job]] = {
    "validating": lambda job: job.validating(),
    "settle": lambda job: job.settle(job.images, (), Stage.STORING, 100),
}
PAIRS = [(status, method) for status in Status for method in ADVANCES]


def is_again(status: Status, method: str) -> bool:
    """A second claim of a job that is processed already is no step, but is shown."""
    return method == "send" and status is Status.PROCESSING


ALLOWED = [(s, m) for s, m in PAIRS if ADVANCES[m][0] in TRANSITIONS[s]]
REFUSED = [(s, m) for s, m in PAIRS if (s, m) not in ALLOWED and not is_again(s, m)]


def test_every_pair_is_either_allowed_or_refused() -> None:
    assert len(ALLOWED) + len(REFUSED) + 1 == len(Status) * len(ADVANCES)
    assert {ADVANCES[method][0] for _, method in ALLOWED} == set(Status) - {Status.AWAITING_UPLOAD}


@pytest.mark.parametrize(("status", "method"), ALLOWED)
def test_allowed_step_is_made_and_counted(status: Status, method: str) -> None:
    to, advance = ADVANCES[method]
    before = new_job(status)
    after = advance(before)
    assert after.status is to
    assert after.revision == before.revision + 1
    assert after.reached == {status: 1, to: 2}
    assert after.event_id(to) == f"{before.id}.2"
    assert after.event_id(status) == before.event_id(status)
    assert (after.finished_at is not None) is (to in ENDS)


@pytest.mark.parametrize(("status", "method"), REFUSED)
def test_other_step_is_refused(status: Status, method: str) -> None:
    with pytest.raises(Rejected) as refused:
        ADVANCES[method][1](new_job(status))
    assert refused.value.code == "already_ended"


@pytest.mark.parametrize("method", [*ADVANCES, *SHOWS])
@pytest.mark.parametrize("end", sorted(ENDS))
def test_end_never_changes(end: Status, method: str) -> None:
    step = SHOWS[method] if method in SHOWS else ADVANCES[method][1]
    with pytest.raises(Rejected):
        step(new_job(end))


@pytest.mark.parametrize("status", Status)
def test_done_means_that_it_has_ended(status: Status) -> None:
    assert new_job(status).done is (status in ENDS)


@pytest.mark.parametrize("method", SHOWS)
@pytest.mark.parametrize("status", sorted(set(Status) - ENDS))
def test_showing_raises_the_revision_and_reaches_nothing(status: Status, method: str) -> None:
    before = new_job(status)
    after = SHOWS[method](before)
    assert (after.status, after.revision, after.reached) == (status, 2, before.reached)


def test_second_claim_is_shown_and_reaches_nothing() -> None:
    before = new_job(Status.PROCESSING)
    after = before.send(before.images, (), NOON)
    assert (after.status, after.revision, after.reached) == (Status.PROCESSING, 2, before.reached)


@pytest.mark.parametrize("method", ADVANCES)
def test_methods_leave_the_job_they_were_called_on_alone(method: str) -> None:
    for status in Status:
        job = new_job(status)
        copy = job.model_copy(deep=True)
        try:
            ADVANCES[method][1](job)
        except Rejected:
            continue
        assert job == copy


def test_event_of_a_status_that_was_not_reached_has_no_id() -> None:
    with pytest.raises(KeyError):
        new_job().event_id(Status.COMPLETED)


def test_job_without_any_picture_fails_for_the_first_reason() -> None:
    job = new_job(Status.PROCESSING)
    first, second = JobError.of("no_image", billed="yes"), JobError.of("timeout", billed="maybe")
    images = (
        job.images[0].model_copy(update={"status": "failed", "error": first}),
        job.images[1].model_copy(update={"status": "failed", "error": second}),
    )
    failed = job.finish(images, (), NOON)
    assert (failed.status, failed.error, failed.partial) == (Status.FAILED, first, False)


def test_job_with_some_pictures_completes_in_part() -> None:
    job = new_job(Status.PROCESSING)
    assert job.finish(half(job), (), NOON).partial is True
    assert job.finish(half(job), (), NOON).status is Status.COMPLETED
    assert job.finish(done(job), (), NOON).partial is False


def test_giving_up_keeps_the_pictures_that_are_there() -> None:
    job = new_job(Status.PROCESSING)
    partly = job.model_copy(update={"images": (done(job)[0], job.images[1])})
    given_up = partly.give_up(JobError.of("busy"), NOON)
    assert (given_up.status, given_up.partial, given_up.error) == (Status.COMPLETED, True, None)
    assert [image.status for image in given_up.images] == ["completed", "failed"]


def attempt(image: int = 0, *, cost: str = "0.0336", state: str = "settled", billed: Billed = "yes") -> Attempt:
    return Attempt.model_validate(
        {"image": image, "fence": 1, "model": "m", "state": state, "sent_at": NOON, "billed": billed, "cost_usd": cost}
    )


@pytest.mark.parametrize("step", ["send", "settle", "silently", "finish"])
def test_cost_is_what_the_ledger_says_to_the_last_digit(step: str) -> None:
    job, ledger = new_job(Status.PROCESSING), tuple(attempt(n, cost="0.1") for n in range(3))
    steps = {
        "send": lambda: job.send(job.images, ledger, NOON),
        "settle": lambda: job.settle(job.images, ledger, Stage.STORING, None),
        "silently": lambda: job.settle_silently(ledger),
        "finish": lambda: job.finish(done(job), ledger, NOON),
    }
    after = steps[step]()
    assert after.attempts == ledger
    assert after.cost == Cost(quoted_usd=job.cost.quoted_usd, settled_usd=Decimal("0.3"))


def test_ended_jobs_ledger_is_settled_without_telling() -> None:
    job = new_job(Status.PROCESSING).cancel(NOON)
    after = job.settle_silently((attempt(),))
    assert after.cost.settled_usd == Decimal("0.0336")
    assert after.model_copy(update={"attempts": (), "cost": job.cost}) == job


@pytest.mark.parametrize(
    ("state", "billed", "counts"),
    [
        ("sent", "maybe", True),
        ("unknown", "maybe", True),
        ("unknown", "no", True),
        ("settled", "yes", True),
        ("settled", "maybe", True),
        ("settled", "no", False),
    ],
)
def test_every_call_counts_but_those_known_to_be_free(state: str, billed: Billed, counts: bool) -> None:
    assert attempt(state=state, billed=billed).counts is counts


def test_wait_for_a_worker_is_never_negative() -> None:
    job = new_job(Status.PENDING).model_copy(update={"queued_at": NOON + timedelta(seconds=5)})
    assert job.send(job.images, (), NOON).timings.queued_ms == 0


class Walk(RuleBasedStateMachine):
    """Any sequence of calls, as racing handlers make them; what must hold after each is below."""

    job: Job

    @initialize(status=st.sampled_from([Status.AWAITING_UPLOAD, Status.PENDING]), images=st.integers(1, 4))
    def start(self, status: Status, images: int) -> None:
        self.job = new_job(status, images)
        self.history = [self.job]
        self.news = {status: self.job.event_id(status)}

    @rule(method=st.sampled_from(sorted(ADVANCES)))
    def advance(self, method: str) -> None:
        self._take(ADVANCES[method][1])

    @rule(method=st.sampled_from(sorted(SHOWS)))
    def show(self, method: str) -> None:
        self._take(SHOWS[method])

    @rule(calls=st.integers(0, 4))
    def settle_silently(self, calls: int) -> None:
        before = self.job
        self.job = before.settle_silently(tuple(attempt(n) for n in range(calls)))
        assert self.job.revision == before.revision
        assert self.job.cost.settled_usd == calls * Decimal("0.0336")

    def _take(self, step: Callable[[Job], Job]) -> None:
        before = self.job
        try:
            self.job = step(before)
        except Rejected:
            return
        assert not before.done
        assert self.job.revision == before.revision + 1
        if self.job.status is not before.status:
            assert self.job.status in TRANSITIONS[before.status]
            self.news[self.job.status] = self.job.event_id(self.job.status)
        self.history.append(self.job)

    @invariant()
    def news_keep_their_ids(self) -> None:
        assert {status: self.job.event_id(status) for status in self.job.reached} == self.news
        assert len(set(self.news.values())) == len(self.news)

    @invariant()
    def at_most_one_end_is_reached_and_it_is_the_status(self) -> None:
        ends = ENDS & set(self.job.reached)
        assert ends == ({self.job.status} if self.job.done else set())
        assert (self.job.finished_at is not None) is self.job.done

    @invariant()
    def reason_is_given_exactly_where_there_is_no_picture(self) -> None:
        assert (self.job.error is not None) is (self.job.status in {Status.FAILED, Status.EXPIRED})
        assert self.job.partial is False

    @invariant()
    def survives_its_own_json(self) -> None:
        assert Job.model_validate_json(self.job.model_dump_json()) == self.job

    @invariant()
    def identity_never_changes(self) -> None:
        first = self.history[0]
        for field in ("id", "owner", "kind", "num_images", "created_at", "delete_at", "model"):
            assert getattr(self.job, field) == getattr(first, field)
        assert [image.index for image in self.job.images] == [image.index for image in first.images]


Walk.TestCase.settings = settings(max_examples=60, stateful_step_count=15, deadline=None)
TestAnyWalk = Walk.TestCase
