"""A client that asks again as soon as it has an answer, while something is done to what it asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

import grpc
import httpx
from typing_extensions import Self


class ClosedLoop:
    """Asks for as long as the `with` block lasts, and notes what came. Of what, its kinds say."""

    pause_seconds = 0.002  # two cores: leave some for what is watched

    def __init__(self) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self.seen: list[int] = []
        """Who answered, each run of the same one noted once."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _asking(self) -> AbstractContextManager[Callable[[], int]]:
        """Return what asks once, and returns who answered; it raises what a failed answer raises."""
        raise NotImplementedError

    def _run(self) -> None:
        with self._asking() as ask:
            while not self._over.wait(self.pause_seconds):
                self.answers += 1
                try:
                    who = ask()
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                else:
                    if self.seen[-1:] != [who]:
                        self.seen.append(who)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(30)
