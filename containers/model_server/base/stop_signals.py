"""Signals to stop, heard from the first moment: as PID 1 of a container, nothing else would end us."""

from __future__ import annotations

import os
import signal
import threading


class StopSignals:
    """`requested` is set by the first; a second SIGTERM or SIGINT ends the process with 128 + its number.

    SIGUSR1 says that another server listens beside this one: `hands_over` is set too, and the clients are
    let go one by one; SIGTERM or SIGINT then sets `at_once`, and only the next one ends the process.
    Python's own handlers run in the main thread between two bytecodes, which an import of TensorFlow may
    keep waiting, and where a lock may be held. The wakeup descriptor is written to by the C handler.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.hands_over = threading.Event()
        self.at_once = threading.Event()
        self._numbers, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def _listen(self) -> None:
        while not self.at_once.is_set():
            self._heard(self._next())
        while (number := self._next()) == signal.SIGUSR1:
            pass
        os._exit(128 + number)

    def _heard(self, number: int) -> None:
        if number != signal.SIGUSR1:
            self.at_once.set()
        elif not self.requested.is_set():
            self.hands_over.set()
        self.requested.set()

    def _next(self) -> int:
        return os.read(self._numbers, 1)[0]
