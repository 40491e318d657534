"""What lets a worker come back at another address: parameter servers call it through a relay on loopback.

A parameter server reads its gradients from the worker, at the address that it was told when it started;
TensorFlow has no way to tell it another. A worker that is started again, on another host, has another one.
So the server is told loopback addresses, and what comes in there goes on to where the worker is now.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_CHUNK_BYTES = 1 << 18
Locate = Callable[[], str | None]
"""Says where to go on to, host:port; None where nobody is."""


@contextmanager
def relays(targets: Sequence[Locate], host: str = "127.0.0.1") -> Iterator[tuple[str, ...]]:
    """Relay connections to each target while the block runs; yields an address on `host` for each."""
    loop = asyncio.new_event_loop()
    servers = [loop.run_until_complete(_serve(locate, host)) for locate in targets]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield tuple("{}:{}".format(*server.sockets[0].getsockname()) for server in servers)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for server in servers:
            server.close()
        _cancel_all(loop)
        loop.close()


async def _serve(locate: Locate, host: str) -> asyncio.Server:
    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            address = locate()
            if address is not None:
                far_host, _, port = address.rpartition(":")
                far_reader, far_writer = await asyncio.open_connection(
                    far_host, int(port), limit=_CHUNK_BYTES
                )
                await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        writer.close()

    return await asyncio.start_server(relay, host, 0, limit=_CHUNK_BYTES)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until either side ends."""
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    except OSError:
        pass  # the worker died: whoever reads sees an end
    finally:
        writer.close()


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    async def end(tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(end(asyncio.all_tasks(loop)))
