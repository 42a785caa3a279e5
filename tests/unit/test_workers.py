"""What worker processes promise: a bad call costs that call only, and no process outlives its owner."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from common.errors import Rejected, Unavailable
from common.workers import WorkerDied, Workers, WorkerTimeout

MIB = 1024 * 1024
ROOT = Path(__file__).parents[2]


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    pool = Workers(count=2, memory_bytes_max=256 * MIB, preload=[__name__])
    await pool.start()
    yield pool
    await pool.aclose()


@pytest.fixture
async def lone_worker() -> AsyncIterator[Workers]:
    pool = Workers(count=1, memory_bytes_max=256 * MIB, preload=[__name__])
    await pool.start()
    yield pool
    await pool.aclose()


def hang_in_c() -> None:
    # PyDLL keeps the interpreter lock, as a decoder stuck in C would: no Python signal handler or thread runs.
    ctypes.PyDLL(None).sleep(60)


def segfault() -> None:
    # os.kill, not a null pointer: pytest's faulthandler would print a traceback.
    os.kill(os.getpid(), signal.SIGSEGV)


def allocate(size: int) -> int:
    return len(bytearray(size))


def refuse() -> None:
    raise Rejected("image_damaged", "for the test")


def overrun() -> None:
    raise TimeoutError("the function's own")


def write_pid_and_hang(path: Path) -> None:
    path.write_text(str(os.getpid()))
    hang_in_c()


def sleep_and_answer(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def traits(module: str) -> tuple[int, signal.Handlers, bool]:
    handler = signal.getsignal(signal.SIGINT)
    assert isinstance(handler, signal.Handlers)
    return os.nice(0), handler, module in sys.modules


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - another process changes it
            await asyncio.sleep(0.01)


async def test_a_call_returns_what_the_function_returns(workers: Workers) -> None:
    assert await workers.run(allocate, 5, timeout_s=5) == 5


async def test_a_rejection_arrives_with_code_and_detail(workers: Workers) -> None:
    with pytest.raises(Rejected) as caught:
        await workers.run(refuse, timeout_s=5)
    assert (caught.value.code, caught.value.detail) == ("image_damaged", "for the test")


async def test_the_functions_own_timeout_error_is_not_the_workers_timeout(workers: Workers) -> None:
    with pytest.raises(TimeoutError, match="the function's own"):
        await workers.run(overrun, timeout_s=5)


async def test_a_call_stuck_in_c_is_killed_and_the_next_call_works(lone_worker: Workers) -> None:
    before = time.monotonic()
    with pytest.raises(WorkerTimeout):
        await lone_worker.run(hang_in_c, timeout_s=0.2)
    assert await lone_worker.run(allocate, 5, timeout_s=5) == 5
    assert time.monotonic() - before < 3


@pytest.mark.parametrize("crash", [segfault, os.abort])
async def test_a_crash_costs_that_call_only(lone_worker: Workers, crash: Callable[[], None]) -> None:
    with pytest.raises(WorkerDied):
        await lone_worker.run(crash, timeout_s=5)
    assert await lone_worker.run(allocate, 5, timeout_s=5) == 5


async def test_a_process_that_exits_costs_that_call_only(lone_worker: Workers) -> None:
    with pytest.raises(WorkerDied):
        await lone_worker.run(os._exit, 3, timeout_s=5)
    assert await lone_worker.run(allocate, 5, timeout_s=5) == 5


async def test_a_call_over_the_memory_limit_dies_and_the_next_one_works(lone_worker: Workers) -> None:
    with pytest.raises(WorkerDied):
        await lone_worker.run(allocate, 300 * MIB, timeout_s=5)
    assert await lone_worker.run(allocate, 100 * MIB, timeout_s=5) == 100 * MIB


async def test_a_bad_call_does_not_disturb_its_neighbour(workers: Workers) -> None:
    slow = asyncio.create_task(workers.run(sleep_and_answer, 0.6, timeout_s=5))
    for bad in (segfault, hang_in_c):
        with pytest.raises((WorkerDied, WorkerTimeout)):
            await workers.run(bad, timeout_s=0.15)
    assert await slow == 0.6


async def test_waiting_for_a_free_worker_does_not_count_as_running(lone_worker: Workers) -> None:
    calls = [lone_worker.run(sleep_and_answer, 0.3, timeout_s=0.8) for _ in range(3)]
    assert await asyncio.gather(*calls) == [0.3, 0.3, 0.3]


async def test_cancelling_ends_the_process_and_frees_its_place(lone_worker: Workers, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    call = asyncio.create_task(lone_worker.run(write_pid_and_hang, note, timeout_s=60))
    await until(lambda: note.exists() and note.read_text() != "")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await lone_worker.run(allocate, 5, timeout_s=5) == 5
    assert not is_alive(int(note.read_text()))


async def test_cancelling_while_a_process_starts_leaves_none_behind() -> None:
    pool = Workers(count=1, memory_bytes_max=256 * MIB)
    call = asyncio.create_task(pool.run(os.getpid, timeout_s=5))
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await pool.aclose()
    await until(lambda: not workers_of(os.getpid()))


async def test_a_worker_killed_while_idle_is_replaced(lone_worker: Workers) -> None:
    victim = await lone_worker.run(os.getpid, timeout_s=5)
    os.kill(victim, signal.SIGKILL)
    try:
        successor = await lone_worker.run(os.getpid, timeout_s=5)
    except Unavailable:  # The death was not noticed yet when the call was handed over; the caller may repeat it.
        successor = await lone_worker.run(os.getpid, timeout_s=5)
    assert successor != victim


async def test_a_worker_told_to_end_is_not_the_fault_of_its_call(lone_worker: Workers) -> None:
    with pytest.raises(Unavailable):
        await lone_worker.run(os.kill, await lone_worker.run(os.getpid, timeout_s=5), signal.SIGTERM, timeout_s=5)


async def test_workers_are_nice_ignore_ctrl_c_and_hold_the_preloaded_modules(workers: Workers) -> None:
    assert await workers.run(traits, __name__, timeout_s=5) == (os.nice(0) + 5, signal.SIG_IGN, True)


async def test_a_module_that_cannot_be_imported_is_told_at_the_start() -> None:
    pool = Workers(count=1, memory_bytes_max=256 * MIB, preload=["no_such_module"])
    with pytest.raises(Unavailable):
        await pool.start()
    await pool.aclose()


async def test_after_closing_no_process_is_left_and_no_call_is_taken() -> None:
    pool = Workers(count=2, memory_bytes_max=256 * MIB)
    await pool.start()
    running = await asyncio.gather(*(pool.run(os.getpid, timeout_s=5) for _ in range(2)))
    await pool.aclose()
    await pool.aclose()
    assert not any(is_alive(pid) for pid in running)
    with pytest.raises(RuntimeError):
        await pool.run(os.getpid, timeout_s=5)


async def test_no_worker_survives_a_parent_killed_by_sigkill(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = (
        "import asyncio, pathlib\n"
        "from common.workers import Workers\n"
        "from tests.unit.test_workers import write_pid_and_hang\n"
        "workers = Workers(count=2, memory_bytes_max=2**28)\n"
        f"asyncio.run(workers.run(write_pid_and_hang, pathlib.Path({str(note)!r}), timeout_s=60))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        await until(lambda: note.exists() and note.read_text() != "")
        family = descendants(parent.pid)
        assert int(note.read_text()) in family
    finally:
        parent.kill()
        parent.wait()
    await until(lambda: not any(is_alive(pid) for pid in family))


def is_alive(pid: int) -> bool:
    """Whether the process still runs; a zombie that nobody has buried yet does not. Linux only, like `descendants`."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def descendants(pid: int) -> set[int]:
    own = children(pid)
    return own.union(*(descendants(child) for child in own))


def workers_of(pid: int) -> set[int]:
    """The children of the fork server, which is a child itself."""
    return descendants(pid) - children(pid)


def children(pid: int) -> set[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for found in lists for child in found.read_text().split()}
