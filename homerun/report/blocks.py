"""What a report is made of: markdown.py and html.py set it."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]
    numbers: frozenset[int] = frozenset()  # columns that are set right-aligned


@dataclass(frozen=True)
class Code:
    """Commands or output, to be set as they are."""

    text: str


@dataclass(frozen=True)
class Bar:
    """Shares of a whole: (name, share between 0 and 1, its words)."""

    parts: list[tuple[str, float, str]]


@dataclass(frozen=True)
class Plots:
    """Where the page has its curves; `note` is what a report without pictures says instead."""

    note: str


@dataclass(frozen=True)
class Link:
    """A sentence that leads somewhere."""

    text: str
    href: str


Block = str | Table | Code | Bar | Plots | Link


@dataclass
class Section:
    title: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Report:
    """title: the run's id; verdict: the first line, one sentence."""

    title: str
    status: str
    verdict: str
    sections: list[Section]
