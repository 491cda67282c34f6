"""A curve of bounded size, whatever its length: at most about `POINTS` points, each stretch of steps by its lowest and
highest value, so no spike is lost.
"""

from typing import NamedTuple

POINTS = 2000  # more than a screen has pixels


class Point(NamedTuple):
    """One reading: `step` of the phase (or Unix seconds, for machine curves), `t` in Unix seconds, and the value."""

    step: int
    t: float
    value: float


class Curve:
    """A bounded curve with growing steps; a step at or before the last one (a resume) cuts the curve back to it."""

    def __init__(self, limit: int = POINTS):
        self.limit, self.count = limit, 0
        self.last: Point | None = None
        self._stride, self._filled = 1, 0  # readings per bucket; readings in the newest bucket
        self._buckets: list[tuple[Point, Point]] = []  # lowest and highest of each bucket

    def add(self, step: int, t: float, value: float) -> None:
        if self.last is not None and step <= self.last.step:
            self._cut(step)
        point = self.last = Point(step, t, value)
        self.count += 1
        if self._buckets and self._filled < self._stride:
            low, high = self._buckets[-1]
            self._buckets[-1] = (point if value < low.value else low, point if value > high.value else high)
            self._filled += 1
        else:
            self._buckets.append((point, point))
            self._filled = 1
            if len(self._buckets) > self.limit // 2:
                self._halve()

    def _halve(self) -> None:
        buckets = self._buckets
        odd = buckets.pop() if len(buckets) % 2 else None
        merged = [
            (min(a[0], b[0], key=_value), max(a[1], b[1], key=_value))
            for a, b in zip(buckets[::2], buckets[1::2], strict=True)
        ]
        if odd:
            merged.append(odd)  # the newest bucket goes on filling, to twice the old size
        else:
            self._filled += self._stride
        self._stride *= 2
        self._buckets = merged

    def _cut(self, step: int) -> None:
        while self._buckets and max(point.step for point in self._buckets[-1]) >= step:
            kept = [point for point in self._buckets.pop() if point.step < step]
            if kept:
                self._buckets.append((min(kept, key=_value), max(kept, key=_value)))
                break
        self._filled = self._stride  # the next reading opens a bucket

    def points(self) -> list[Point]:
        """In step order, the newest reading included."""
        found = [point for low, high in self._buckets for point in sorted({low, high})]
        if self.last is not None and (not found or found[-1] != self.last):
            found.append(self.last)
        return found


def _value(point: Point) -> float:
    return point.value
