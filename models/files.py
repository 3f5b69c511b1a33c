"""Files that are either complete or absent: how everything here is saved."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def default_cache() -> Path:
    """Return the folder for what can be made or fetched again: ``$TUNECAST_CACHE`` if set."""
    return Path(os.environ.get("TUNECAST_CACHE") or Path.home() / ".cache" / "tunecast")


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Replace ``path`` by what ``write`` writes, in one step or not at all.

    Parameters
    ----------
    path : str or Path
        The file to make or replace. Its folder must exist.
    write : callable
        Called once with a temporary path in the same folder and with the same suffix, so that
        writers which choose a format by the name still do. It must create that file.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    IsADirectoryError
        If ``path`` is a folder.
    OSError
        Whatever ``write`` or the disk raises, after the temporary file is removed. The old file,
        if there was one, is untouched.

    Notes
    -----
    A symbolic link is followed: its target is replaced and the link stays. A device or a pipe
    such as ``/dev/stdout`` holds nothing to protect and is written directly.
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; give the name of a file to write.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder '{Path(path).parent}' does not exist; make it first.")
    if target.exists() and not target.is_file():
        write(target)
        return
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        write(temporary)
        if target.exists():
            shutil.copymode(target, temporary)
        _flush_to_disk(temporary)
        os.replace(temporary, target)
    except BaseException:  # an interrupt must not leave a half-written file behind either
        temporary.unlink(missing_ok=True)
        raise


def _flush_to_disk(path: Path) -> None:
    # Without it a power cut can leave the new name pointing at empty blocks.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: str | Path, *, what: str = "", wait: bool = True) -> Iterator[None]:
    """Hold the lock that belongs to ``path``.

    Parameters
    ----------
    path : str or Path
        The file to guard. The lock is a hidden file beside it, ``.NAME.lock``, which stays:
        removing it would let two processes hold locks on different files of one name.
    what : str, optional
        A word for the lock, where a file has several: the lock is then ``.NAME.WHAT.lock``.
    wait : bool, optional
        Whether to wait until other holders let go.

    Raises
    ------
    BlockingIOError
        If somebody else holds it and ``wait`` is false.
    OSError
        If the lock cannot be made.
    """
    import fcntl  # here, so that reading tables works where there is no fcntl

    target = Path(path).resolve()
    lock = target.with_name(f".{target.name}.{what}.lock" if what else f".{target.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)  # closing releases the lock
