"""Killable worker processes for CPU-bound work on files; what the work is stays unknown here."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from common.errors import Unavailable

if TYPE_CHECKING:
    from pebble import ProcessPool

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_START_TIMEOUT_S = 30.0
# The event loop that feeds the workers, and answers health checks, goes first when cores are short.
_NICENESS = 5


class WorkerTimeout(Exception):
    """The call ran longer than its limit and was killed."""


class WorkerDied(Exception):
    """The call took its process with it: a crash, a kill, or the memory limit."""


class Workers:
    """`count` processes that run one call each; a call that hangs, crashes or eats memory harms no other.

    A process that was lost is replaced in the background within about 0.2 s. `memory_bytes_max` bounds the private
    memory of one process, 20 MB of interpreter included. `preload` names modules to import before the first call.
    Functions, arguments and results travel by pickle: pass paths, not bytes (0.3 ms against 11 ms for 4 MB).
    """

    def __init__(self, *, count: int, memory_bytes_max: int, preload: Sequence[str] = ()) -> None:
        self._workers = [_Worker(memory_bytes_max, tuple(preload)) for _ in range(count)]
        # Last in, first out: the process that ran last has the warmest caches.
        self._idle: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        for worker in self._workers:
            self._idle.put_nowait(worker)
        self._replacements: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Start every process and import `preload` there, so that the first call does not pay for it.

        Optional: a process that is missing is started by the call that needs it. Safe to repeat. Raises Unavailable
        if the system gives no process or a module cannot be imported.
        """
        await asyncio.gather(*(asyncio.to_thread(worker.ready) for worker in self._workers))

    async def run(self, function: Callable[[*Ts], T], *args: *Ts, timeout_s: float) -> T:
        """Run `function(*args)` in a worker and return what it returns, or raise what it raises.

        Waits for a free worker without limit; `timeout_s` counts from the moment the call is handed to one.
        Raises WorkerTimeout when that time is over, WorkerDied when the process crashed or met its memory limit (a
        crash is noticed within 0.1 s; only `os._exit(0)` passes unnoticed until the timeout), and Unavailable when
        it is not the call's fault: no process to be had, or it died idle or by SIGTERM. Cancelling kills the call
        too. Repeat a call only if the function may be repeated: it may have run halfway.
        """
        if self._is_closed:
            raise RuntimeError("the workers are closed")
        worker = await self._idle.get()
        is_sound = False
        try:
            pool = await asyncio.to_thread(worker.ready) if worker.is_missing else worker.pool
            result = await _call(pool, function, *args, timeout_s=timeout_s)
            is_sound = True
            return result
        except (WorkerTimeout, WorkerDied, Unavailable):
            raise
        except Exception:
            is_sound = True  # The function's own answer; its process is well.
            raise
        finally:
            if is_sound:
                self._idle.put_nowait(worker)
            else:
                task = asyncio.create_task(self._replace(worker))
                self._replacements.add(task)
                task.add_done_callback(self._replacements.discard)

    async def aclose(self) -> None:
        """Wait for the running calls, each bounded by its own timeout, then end every process. Safe to repeat."""
        if self._is_closed:
            return
        self._is_closed = True
        for _ in self._workers:
            worker = await self._idle.get()
            await asyncio.to_thread(worker.stop)

    async def _replace(self, worker: "_Worker") -> None:
        try:
            await asyncio.to_thread(worker.stop)
            if not self._is_closed:
                await asyncio.to_thread(worker.ready)
        except Unavailable:
            pass  # The next call tries again, and is told why if it fails.
        finally:
            self._idle.put_nowait(worker)


class _Worker:
    """One process, held as a pebble pool of one; its methods block and are called in threads.

    Not one pool for all: there a single process killed while idle ends the pool for everybody (BrokenProcessPool),
    and stopping one holds a lock that the others need.
    """

    def __init__(self, memory_bytes_max: int, preload: tuple[str, ...]) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._preload = preload
        self._pool: ProcessPool | None = None
        # A cancelled caller leaves its thread starting a process; whoever comes to stop that process waits here.
        self._lock = threading.Lock()

    @property
    def is_missing(self) -> bool:
        """Whether there is no process that could take a call."""
        return self._pool is None or not self._pool.active

    @property
    def pool(self) -> "ProcessPool":
        if self._pool is None:
            raise Unavailable("the worker was not started")
        return self._pool

    def ready(self) -> "ProcessPool":
        """Start the process if it is missing, and wait until it is warm; raises Unavailable."""
        with self._lock:
            if self.is_missing:
                self._stop()
                self._start()
            return self.pool

    def stop(self) -> None:
        """End the process now, whatever it does."""
        with self._lock:
            self._stop()

    def _start(self) -> None:
        import multiprocessing

        from pebble import ProcessPool

        # The fork server has no threads whose locks a fork would copy, and holds the modules: a process is there in
        # about 50 ms. With spawn it takes 200.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(self._preload))
        arguments = (self._memory_bytes_max, self._preload)
        self._pool = ProcessPool(max_workers=1, context=context, initializer=_prepare, initargs=arguments)
        try:
            self._pool.schedule(os.getpid).result(_START_TIMEOUT_S)
        except (OSError, RuntimeError) as exc:
            self._stop()
            raise Unavailable("no worker process could be started; its own log says why") from exc

    def _stop(self) -> None:
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None


async def _call(pool: "ProcessPool", function: Callable[[*Ts], T], *args: *Ts, timeout_s: float) -> T:
    from concurrent.futures.process import BrokenProcessPool

    from pebble import ProcessExpired

    name = getattr(function, "__qualname__", "the call")
    try:
        future = pool.schedule(function, args=args)
    except RuntimeError as exc:
        raise Unavailable("a worker process died while it was idle") from exc
    try:
        # pebble has a timeout too, but looks only every 0.1 s, and raises what the function itself may raise.
        async with asyncio.timeout(timeout_s) as deadline:
            return await asyncio.wrap_future(future)
    except TimeoutError as exc:
        if not deadline.expired():
            raise
        raise WorkerTimeout(f"{name} ran longer than {timeout_s} s") from exc
    except BrokenProcessPool as exc:
        # pebble says so when the process ended before it took the call.
        raise Unavailable("a worker process died while it was idle") from exc
    except ProcessExpired as exc:
        if exc.exitcode == -signal.SIGTERM:
            # Nothing in here sends it to a running call; systemd does, to the whole group, when it stops a service.
            raise Unavailable("a worker process was told to end") from exc
        raise WorkerDied(f"{name} ended its process (exit code {exc.exitcode})") from exc
    except MemoryError as exc:
        # The process lives, but its heap is fragmented or still full; the next call deserves a fresh one.
        raise WorkerDied(f"{name} reached the memory limit") from exc


def _prepare(memory_bytes_max: int, preload: Sequence[str]) -> None:
    """Make this process a worker: killable at once, bounded, gone when its parent is. Runs in the child."""
    import importlib
    import resource

    # pebble stops a worker by SIGTERM, which it handles in Python: a decoder busy in C would not notice for 3 s.
    # SIGINT is ignored already: Ctrl-C reaches every process of the terminal, but only the parent decides.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_parent()
    os.nice(_NICENESS)
    # A crash must not write somebody's photo to disk as a core file.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Private writable memory only. RLIMIT_AS would count mapped libraries and reserved thread arenas as well.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes_max, memory_bytes_max))
    for module in preload:
        importlib.import_module(module)


def _die_with_parent() -> None:
    """Let the kernel end this process when the parent is gone, even by `kill -9`, whatever runs here.

    multiprocessing gives a child the read end of a pipe whose write end only the parent holds; with O_ASYNC its
    closing sends SIGIO (fcntl(2), F_SETOWN), which ends a process by default. PR_SET_PDEATHSIG would watch the fork
    server, which itself waits for its children; a watching thread would need the interpreter lock.
    """
    import fcntl
    import multiprocessing
    import select

    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this is not a worker process")
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([parent.sentinel], [], [], 0)[0]:
        os._exit(1)  # It went before we listened.
