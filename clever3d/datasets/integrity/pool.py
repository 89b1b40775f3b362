"""One function over many arguments in processes of their own, of which some may die."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from clever3d.errors import InputError

_K = TypeVar("_K")
_A = TypeVar("_A")
_R = TypeVar("_R")

# Tasks handed out at a time, for each process: the next one lies ready when one is done (our choice).
_AHEAD = 2
# The processes share the cores already; threads of linear algebra on top of them only get in each other's way.
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ProcessDied(Exception):
    """The process ended without an answer: killed, out of memory, or crashed in native code."""


def run_isolated(
    function: Callable[[_A], _R], items: Iterable[tuple[_K, _A]], jobs: int
) -> Iterator[tuple[_K, _R | Exception]]:
    """(key, function(argument)) of all (key, argument), as they get done; the exception where there is one.

    Functions and arguments are pickled and go to `jobs` spawned processes, 2 * jobs at a time. When a process dies,
    which argument it had cannot be known: those that were out are then done one at a time, each alone, and one whose
    process dies again gets ProcessDied; all others go on as if nothing had happened. jobs = 0: here, unprotected.
    """
    if jobs == 0:
        for key, argument in items:
            yield key, _here(function, argument)
        return
    pool = _start(jobs)
    out: dict[Future[_R], tuple[_K, _A]] = {}
    try:
        for item in items:
            broken = [] if _submit(pool, function, item, out) else [item]
            if len(out) >= _AHEAD * jobs:
                yield from _take(out, broken)
            if broken:
                yield from _take(out, broken, everything=True)
                yield from _alone(function, broken)
                pool.shutdown()
                pool = _start(jobs)
        while out:
            broken = []
            yield from _take(out, broken, everything=True)
            yield from _alone(function, broken)
    finally:
        pool.shutdown(cancel_futures=True)


def _here(function: Callable[[_A], _R], argument: _A) -> _R | Exception:
    try:
        return function(argument)
    except Exception as error:
        return error


def _submit(
    pool: ProcessPoolExecutor, function: Callable[[_A], _R], item: tuple[_K, _A], out: dict[Future[_R], tuple[_K, _A]]
) -> bool:
    try:
        out[pool.submit(function, item[1])] = item
    except BrokenProcessPool:
        return False
    return True


def _take(
    out: dict[Future[_R], tuple[_K, _A]], broken: list[tuple[_K, _A]], *, everything: bool = False
) -> Iterator[tuple[_K, _R | Exception]]:
    """What is done, at least one; those whose pool broke go to `broken`. everything: wait for all."""
    done, _ = wait(out) if everything else wait(out, return_when=FIRST_COMPLETED)
    for future in done:
        item = out.pop(future)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            broken.append(item)
        elif error is None:
            yield item[0], future.result()
        elif isinstance(error, Exception):
            yield item[0], error
        else:
            raise error


def _alone(function: Callable[[_A], _R], items: list[tuple[_K, _A]]) -> Iterator[tuple[_K, _R | Exception]]:
    pool: ProcessPoolExecutor | None = None
    try:
        for key, argument in items:
            pool = pool or _start(1)
            try:
                yield key, pool.submit(function, argument).result()
            except BrokenProcessPool:
                pool.shutdown()
                pool = None
                yield key, ProcessDied("the process died while it had this frame; is there memory enough?")
            except Exception as error:
                yield key, error
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _start(jobs: int) -> ProcessPoolExecutor:
    """A pool whose processes run and leave Ctrl-C to this one."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    try:
        with _quiet_children():
            for future in [pool.submit(os.getpid) for _ in range(jobs)]:
                future.result()
    except BrokenProcessPool as error:
        hint = 'use fewer, or 0 for none; a script needs `if __name__ == "__main__":` around its call'
        raise InputError(f"jobs={jobs}: the processes cannot be started; {hint}") from error
    return pool


@contextlib.contextmanager
def _quiet_children() -> Iterator[None]:
    """Processes started in here ignore Ctrl-C from their first moment, and use one thread each."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if in_main_thread:
            signal.signal(signal.SIGINT, signal.SIG_DFL if handler is None else handler)
