"""SIGTERM and SIGINT, heard from the first moment: as PID 1 of a container, nothing else would end us."""

from __future__ import annotations

import os
import signal
import threading


class StopSignals:
    """`requested` is set by the first signal; the second ends the process at once, with 128 + its number.

    Python's own handlers run in the main thread between two bytecodes, which an import of TensorFlow may
    keep waiting, and where a lock may be held. The wakeup descriptor is written to by the C handler.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._numbers, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def _listen(self) -> None:
        os.read(self._numbers, 1)
        self.requested.set()
        os._exit(128 + os.read(self._numbers, 1)[0])
