"""A cluster of Ray: how it is reached, and functions and generators that run on its machines."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tunecast.models.errors import TunecastError, one_line

LOCAL = "local"
# Workers that one run may lose before it is given up: machines of a cluster come and go, but a run
# that does not fit into memory takes down every worker it is given to.
LOSSES = 3
# Seconds to wait for a cluster's address; Ray itself would try for minutes.
ANSWER = 10.0


@dataclass(frozen=True, slots=True)
class Lost:
    """A task that ended without an answer.

    Parameters
    ----------
    reason : str
        What Ray says of it.
    """

    reason: str


@contextmanager
def connected(address: str, workers: int) -> Iterator[None]:
    """Connect to a cluster, or start Ray on this machine, and let go of it in the end.

    A process that is connected already stays so, whatever the address.

    Parameters
    ----------
    address : str
        ``"local"``, ``"auto"`` for the cluster that this machine belongs to, or ``"HOST:PORT"``.
    workers : int
        Tasks side by side where Ray is started here; a cluster decides itself.

    Raises
    ------
    TunecastError
        If Ray is not installed, there is no such cluster, or Ray does not start.
    """
    try:
        import ray
    except ImportError:
        raise TunecastError("a sweep on Ray needs ray: pip install 'tunecast[cluster]'.") from None
    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        raise TunecastError(
            f"'{address}' is the address of a Ray client, which cannot stream rows; run the sweep "
            "on a machine of the cluster with --ray auto."
        )
    host, _, port = address.rpartition(":")
    if host:
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        except (OSError, ValueError, OverflowError):
            raise TunecastError(f"no Ray cluster answers at '{address}'.") from None
    elif address not in (LOCAL, "auto"):
        raise TunecastError(f"'{address}' is no address of Ray; give local, auto or HOST:PORT.")
    here: dict[str, Any] = (
        {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
    )
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except ConnectionError:
        raise TunecastError("no Ray cluster runs on this machine.") from None
    except Exception as error:  # a bare one, where its start took too long
        raise TunecastError(f"Ray cannot be started: {one_line(error)}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def gpus_for(asked: float | None) -> float:
    """Return the GPUs of a run: those asked for, else one where the cluster has any.

    Raises
    ------
    TunecastError
        If no machine of the cluster has so many.
    """
    import ray

    most = max(node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"])
    if asked is None:
        return min(1.0, most)
    if asked > most:
        raise TunecastError(
            f"a run asks for {asked:g} GPUs, but no machine of the cluster has more than {most:g}."
        )
    return asked


def each_done(
    work: Callable[..., object], calls: Iterable[Sequence[object]], gpus: float
) -> Iterator[object]:
    """Call a function once with each of some arguments, side by side; give what it returns.

    Raises
    ------
    TunecastError
        What the function raises, and if workers are lost again and again.
    """
    import ray

    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=LOSSES)(work)
    pending = [task.remote(*arguments) for arguments in calls]
    while pending:
        (ref, *_), pending = ray.wait(pending)
        try:
            with _explained():
                yield ray.get(ref)
        except ray.exceptions.RayError as error:
            raise TunecastError(
                f"workers were lost {LOSSES + 1} times while getting base models and text ready "
                f"({type(error).__name__}), perhaps for want of memory."
            ) from error


class Streams:
    """Generators that run side by side on a cluster.

    Parameters
    ----------
    work : callable
        A generator function.
    gpus : float
        For each, parts of one allowed.
    """

    def __init__(self, work: Callable[..., Iterable[object]], gpus: float) -> None:
        import ray

        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0, num_returns="streaming")(
            work
        )
        self._pending: dict[Any, Any] = {}

    def add(self, key: object, *arguments: object) -> None:
        """Begin one more, to be known by a key."""
        self._pending[self._task.remote(*arguments)] = key

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Give each item under its key as it comes, or a `Lost`; more may be added meanwhile.

        Raises
        ------
        TunecastError
            What the generator raises.
        """
        import ray

        while self._pending:
            ready, _ = ray.wait(list(self._pending))
            stream: Any = ready[0]
            try:
                with _explained():
                    item = ray.get(next(stream))
            except StopIteration:
                del self._pending[stream]
            except ray.exceptions.RayError as error:
                # The machine may only be out of reach: what it still sends is not looked at.
                yield self._pending.pop(stream), Lost(type(error).__name__)
            else:
                yield self._pending[stream], item


@contextmanager
def _explained() -> Iterator[None]:
    """Raise what a task raised as if it had been called here."""
    import ray

    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TunecastError):
            raise TunecastError(str(error.cause)) from None
        raise RuntimeError(f"a task of the sweep failed: {error}") from error
