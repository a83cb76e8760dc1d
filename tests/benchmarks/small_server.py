"""A small HTTP server on real sockets in a thread of its own, which can be told to stall, refuse or drop."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter


class SmallServer:
    """Answers a POST with its body; `drop`, `refuse` and `never` as a body are obeyed.

    Attributes:
        asked: requests by connection.
        stall: while cleared, nobody is answered.
    """

    def __init__(self) -> None:
        self.asked: Counter[int] = Counter()
        self.stall = threading.Event()
        self.stall.set()
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> SmallServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self.stall.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    @property
    def total(self) -> int:
        """Requests so far."""
        return sum(self.asked.values())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, backlog=2000)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0)  # a closed transport gives its socket back in the loop's next turn

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[1]
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                assert length is not None
                body = await reader.readexactly(int(length[1]))
                self.asked[peer] += 1
                while not self.stall.is_set():
                    await asyncio.sleep(0.005)
                if body == b"never":
                    await asyncio.Event().wait()
                if body == b"drop":
                    break
                status = b"503 Service Unavailable" if body == b"refuse" else b"200 OK"
                writer.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        except (asyncio.IncompleteReadError, ConnectionResetError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
