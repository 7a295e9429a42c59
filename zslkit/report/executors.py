"""Who computes: processes here, or any executor, such as that of a Dask scheduler."""

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor

_RETRIES = 2  # of a call whose worker was lost, after Dask has moved it to another one
_PATIENCE = 10  # seconds to wait for a scheduler's answer


@contextlib.contextmanager
def executing(executor: Executor | str | None) -> Iterator[Executor | None]:
    """Give an executor; a text is the address of a Dask scheduler, connected to for the block.

    Raises
    ------
    ValueError
        If the ``cluster`` extra is not installed, or it is no address or executor.
    OSError
        If no scheduler answers there.
    """
    if not isinstance(executor, str):
        if executor is not None and not callable(getattr(executor, "submit", None)):
            raise ValueError(
                f"executor={executor!r}: must be a concurrent.futures.Executor or the address of "
                "a Dask scheduler"
            )
        yield executor
        return
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            f"scheduler={executor!r} needs the extra cluster: pip install 'zslkit[cluster]'"
        ) from None
    try:
        client = Client(executor, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(
            f"scheduler={executor!r}: no Dask scheduler answers there ({error}); start one with "
            "dask scheduler, and workers with dask worker ADDRESS --nthreads 1"
        ) from None
    with client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        print(f"scheduler {executor}: {workers} workers" + ("" if workers else ", waiting"))
        # pure: equal calls are still calls of their own
        yield client.get_executor(pure=False, retries=_RETRIES)


@contextlib.contextmanager
def renewed_pool(jobs: int) -> Iterator[Callable[..., Future]]:
    """Give ``submit`` of a pool of processes; after one was killed, that of a new pool.

    A killed process ends Python's own pool, with all that waits in it.
    """

    def new_pool() -> ProcessPoolExecutor:
        # fork would copy torch's thread pools in an unknown state
        return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))

    pool = new_pool()

    def submit(*call) -> Future:
        nonlocal pool
        try:
            return pool.submit(*call)
        except BrokenExecutor:
            pool.shutdown()  # the others save before they end: their folders are free then
            pool = new_pool()
            return pool.submit(*call)

    try:
        yield submit
    finally:
        pool.shutdown(cancel_futures=True)
