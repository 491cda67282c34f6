"""The toy corpus: real English that every machine already has, Python's own documentation.

One source for each topic of the language reference (`pydoc_data.topics`) and one for each module of the standard
library (its docstrings, under the names they document): about 500 sources and 2 MB, cut between paragraphs into
documents of about a page, and shuffled, so that a batch mixes many subjects. No network, no licence question.

Held out honestly: whole sources, chosen by a hash of their names; every paragraph appears once in the whole corpus;
and a held-out paragraph that shares 13 words in a row with the training text is dropped.
"""

import ast
import re
import sysconfig
import warnings
import zlib
from collections.abc import Iterator, Set
from pathlib import Path
from typing import NamedTuple

HELD_OUT = 0.08  # of the sources
PAGE = 1000  # characters
NGRAM = 13  # words in a row that make a held-out paragraph a copy (the figure of arXiv:2005.14165, appendix C)
# tests, tools that some distributions package apart, generated tables
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
LEFT_OUT |= {"pydoc_data", "encodings"}
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


class Document(NamedTuple):
    name: str
    text: str


def topics() -> Iterator[Document]:
    import pydoc_data.topics as reference

    for name, text in sorted(reference.topics.items()):
        yield Document(name, text.strip())


def docstrings(stdlib: Path) -> Iterator[Document]:
    """One document a module: each docstring under the dotted name and the arguments of what it documents."""
    for path in sorted(stdlib.rglob("*.py")):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if LEFT_OUT.intersection(parts) or parts[0].startswith("_sysconfigdata"):
            continue
        module = ".".join(parts).removesuffix(".__init__")
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template, not a module
        text = "\n\n".join(described(tree, module))
        if text:
            yield Document(module, text)


def described(node: ast.AST, name: str) -> Iterator[str]:
    """The docstrings of a module, class or function and of all inside it, in the order of the source."""
    if isinstance(node, ast.Module | ast.ClassDef | FUNCTION) and (doc := ast.get_docstring(node)):
        yield f"{name}({ast.unparse(node.args)})\n\n{doc}" if isinstance(node, FUNCTION) else f"{name}\n\n{doc}"
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | FUNCTION):
            yield from described(child, f"{name}.{child.name}")


def ngrams(text: str) -> Iterator[int]:
    words = re.findall(r"\w+", text.lower())
    for i in range(len(words) - NGRAM + 1):
        yield hash(tuple(words[i : i + NGRAM]))


def deduplicated(documents: list[Document], seen: set[str], unlike: Set[int] = frozenset()) -> list[Document]:
    """The documents without the paragraphs in `seen` (which grows) and those that share an n-gram with `unlike`."""
    kept = []
    for name, text in documents:
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", text):
            key = " ".join(paragraph.split()).lower()
            if key and key not in seen and unlike.isdisjoint(ngrams(paragraph)):
                seen.add(key)
                paragraphs.append(paragraph.rstrip())
        if paragraphs:
            kept.append(Document(name, "\n\n".join(paragraphs)))
    return kept


def pages(document: Document) -> Iterator[Document]:
    """The document cut between paragraphs, each piece as long as it takes to reach PAGE characters."""
    piece: list[str] = []
    for paragraph in document.text.split("\n\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) >= PAGE:
            yield Document(document.name, "\n\n".join(piece))
            piece = []
    if piece:
        yield Document(document.name, "\n\n".join(piece))


def corpus() -> tuple[list[Document], list[Document]]:
    """(training, held-out) documents of this Python, the same on every call, in an order that mixes the subjects."""
    sources = [*topics(), *docstrings(Path(sysconfig.get_path("stdlib")))]
    held_out = [zlib.crc32(b"held out: " + s.name.encode()) < HELD_OUT * 2**32 for s in sources]
    seen: set[str] = set()
    train = deduplicated([s for s, held in zip(sources, held_out, strict=True) if not held], seen)
    trained_on = {g for s in train for g in ngrams(s.text)}
    test = deduplicated([s for s, held in zip(sources, held_out, strict=True) if held], seen, trained_on)
    return shuffled(train), shuffled(test)


def shuffled(sources: list[Document]) -> list[Document]:
    documents = [page for source in sources for page in pages(source)]
    return sorted(documents, key=lambda d: (zlib.crc32(d.text.encode()), d.text))
