"""One build of a book at a time: two in one folder would destroy each other's database."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there two builds are the user's care
    fcntl = None

PATIENCE = 5  # seconds that a build which was just stopped has to end


class BusyError(RuntimeError):
    """Another build runs in the folder."""


@contextlib.contextmanager
def only_build(folder: Path) -> Iterator[None]:
    """Be the only build in a folder, until the end or until the process dies.

    Args:
        folder: Where builds write, made if need be.

    Raises:
        BusyError: If another build is there; it names the process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    # No child inherits it: one that outlives this process would keep others out for ever.
    held = os.open(folder / "build.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(held, folder)
        os.ftruncate(held, 0)
        os.pwrite(held, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(held)


def _lock(held: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                process = os.pread(held, 20, 0).decode() or "unknown"
                raise BusyError(
                    f"another build of this book runs in {folder} (process {process}); wait for "
                    f"its end, or stop it with: kill {process}"
                ) from error
        except OSError:  # a file system without locks
            return
        time.sleep(0.1)
