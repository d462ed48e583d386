"""A TCP proxy that makes a link slow and cuts it: latency, bandwidth, and everything hung up at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading


class SlowLink:
    """Listens on a port of the loopback and passes bytes on to another, late and few at a time.

    Parameters
    ----------
    delay_s
        Each way.
    bytes_per_s
        Each way, of each connection.
    """

    def __init__(self, to_port: int, *, delay_s: float, bytes_per_s: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.is_cut = False
        self._to_port, self._delay_s, self._bytes_per_s = to_port, delay_s, bytes_per_s
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="slow-link", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def cut(self) -> None:
        """Break every connection and take no new one."""
        self.is_cut = True
        self._loop.call_soon_threadsafe(self._hang_up)

    def mend(self) -> None:
        """Take connections again."""
        self.is_cut = False

    def close(self) -> None:
        """End."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _end(self) -> None:
        self.is_cut = True
        self._server.close()
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _hang_up(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(AttributeError, RuntimeError):
                writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(far_writer)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        late = asyncio.create_task(self._write_late(line, writer))
        free_at_s = 0.0
        try:
            while data := await reader.read(1024):
                now_s = self._loop.time()
                free_at_s = max(now_s, free_at_s) + len(data) / self._bytes_per_s
                await line.put((free_at_s + self._delay_s, data))
        except OSError:
            pass
        finally:
            late.cancel()
            writer.transport.abort()

    async def _write_late(
        self, line: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due_s, data = await line.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()
