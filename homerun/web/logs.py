"""The run's logs, a window at a time: a gigabyte is read, searched and followed without being loaded.

Only the redacted copies directly in `logs/aNN/` have names here; nothing else can be asked for.
"""

import re
from pathlib import Path
from typing import Any

from homerun.errors import RequestError

WINDOW = 1 << 18  # bytes of one answer, at most
SEARCH = 1 << 27  # bytes that one search reads, at most: under half a second from the page cache
HITS = 200
_NAME = re.compile(r"logs/a\d+/[\w.-]+\.log", re.ASCII)


class Logs:
    def __init__(self, run: Path):
        self._run = run

    def list(self) -> list[dict[str, Any]]:
        """[{name, bytes}], in the order in which they were begun."""
        paths = sorted(self._run.glob("logs/a*/*.log"))
        return [{"name": str(path.relative_to(self._run)), "bytes": path.stat().st_size} for path in paths]

    def path(self, name: str) -> Path:
        """RequestError for any name that is not a log's."""
        path = self._run / name
        if not _NAME.fullmatch(name) or path.is_symlink() or not path.is_file():
            raise RequestError(f"there is no log {name!r}", "/api/logs lists them")
        return path

    def read(self, name: str, offset: int, limit: int = WINDOW) -> dict[str, Any]:
        """{"offset", "next", "size", "text"}: at most `limit` bytes from `offset`, from the end if it is negative.

        The text begins and ends at a line's edge where there is one; `next` is where to read on.
        """
        path = self.path(name)
        size = path.stat().st_size
        start = max(0, size + offset) if offset < 0 else min(offset, size)
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(max(0, min(limit, WINDOW)))
        if offset < 0 and start > 0 and (cut := data.find(b"\n") + 1):
            start, data = start + cut, data[cut:]
        if start + len(data) < size and (whole := data.rfind(b"\n") + 1):
            data = data[:whole]
        data = _whole_characters(data)
        return {
            "offset": start,
            "next": start + len(data),
            "size": size,
            "text": data.decode("utf-8", "replace"),
        }

    def search(self, name: str, words: str, offset: int = 0) -> dict[str, Any]:
        """{"hits": [{"offset", "text"}], "next"}: lines from `offset` on that hold `words`, letters' case aside.

        `next` is where to go on, or None when the end was reached.
        """
        wanted = words.encode().lower()
        hits: list[dict[str, Any]] = []
        read, at = 0, max(0, offset)
        with self.path(name).open("rb") as file:
            file.seek(at)
            while read < SEARCH and len(hits) < HITS:
                block = file.read(1 << 22)
                if not block:
                    return {"hits": hits, "next": None}
                block += file.readline(WINDOW)  # up to a line's end, so that no hit is cut
                low, begin = block.lower(), 0
                while len(hits) < HITS and (found := low.find(wanted, begin)) >= 0:
                    first = block.rfind(b"\n", 0, found) + 1
                    last = block.find(b"\n", found)
                    begin = len(block) if last < 0 else last + 1
                    line = block[first : min(begin, first + 2000)]
                    hits.append({"offset": at + first, "text": line.decode("utf-8", "replace").rstrip("\n")})
                if len(hits) >= HITS:
                    return {"hits": hits, "next": at + begin}
                at += len(block)
                read += len(block)
        return {"hits": hits, "next": at}


def _whole_characters(data: bytes) -> bytes:
    """`data` without a UTF-8 character that its end cuts in two."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if length > back and len(data) > back else data
    return data
