"""Processes that live and die with the one that started them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time


def obey_the_parent(parent: int) -> None:
    """Leave Ctrl-C to the process ``parent``, and end when it ends, however it ends."""
    # Ctrl-C reaches every process of a terminal; the parent alone decides what it means. An exit
    # rather than sudden death lets a worker clear away a file that it has half written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    # A worker that outlived a killed sweep would write into the table of the next one.
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
