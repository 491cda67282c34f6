"""Puts a server far away: a TCP relay with a round trip and a window, as between a GPU cloud and a bucket.

python -m benchmarks.relay HOST PORT ROUND_TRIP_MS WINDOW_KIB    prints the port that it listens on
"""

import asyncio
import sys
from contextlib import suppress


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trip: float, window: int) -> None:
    """One direction: bytes arrive half a round trip later, and at most `window` of them are on their way."""
    loop = asyncio.get_running_loop()
    credit, free = window, asyncio.Event()
    coming: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    def acknowledge(size: int) -> None:
        nonlocal credit
        credit += size
        free.set()

    async def deliver() -> None:
        while True:
            due, data = await coming.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                with suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
            loop.call_later(trip / 2, acknowledge, len(data))

    async def read() -> None:
        nonlocal credit
        data = b"."
        while data:
            while credit <= 0:
                free.clear()
                await free.wait()
            data = await reader.read(min(1 << 16, credit))
            credit -= len(data)
            coming.put_nowait((loop.time() + trip / 2, data))

    async with asyncio.TaskGroup() as both:
        both.create_task(read())
        both.create_task(deliver())


async def main(host: str, port: int, trip: float, window: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, away = await asyncio.open_connection(host, port)
        try:
            with suppress(ExceptionGroup):  # either end hung up
                async with asyncio.TaskGroup() as both:
                    both.create_task(pump(reader, away, trip, window))
                    both.create_task(pump(there, writer, trip, window))
        finally:
            away.close()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) / 1000, int(sys.argv[4]) << 10))
