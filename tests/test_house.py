"""The house rules of docs/design.md: imports point one way, and rooms on one level do not import each other."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "homerun"
LEVELS = [
    {"commands", "cli", "__main__"},
    {"job", "clouds", "flows", "federated"},
    {"preflight", "upstream", "bucket", "console", "report", "web"},
    {"serve"},
    {"trainer"},
    {"budget", "projection", "cost", "state", "curve", "machine"},
    {"journal", "settings", "redact"},
    {"errors"},
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
CHAIN = ["budget", "projection", "cost", "state", "curve"]  # each may import those after it
FOLDS = {(a, b) for i, a in enumerate(CHAIN) for b in CHAIN[i + 1 :]}
SAME_LEVEL_OK = {("settings", "redact"), ("cli", "commands"), ("__main__", "cli"), *FOLDS}


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("homerun.")}
    return found & (set(LEVEL) | {path.name for path in ROOT.iterdir()})


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = _room(path)
    if room == "__init__":
        return
    assert room in LEVEL, f"{room} is not a room of docs/design.md"
    for other in _imports(path) - {room}:
        assert other in LEVEL, f"{path.name} imports homerun.{other}, which is not a room"
        allowed = LEVEL[other] > LEVEL[room] or (room, other) in SAME_LEVEL_OK
        assert allowed, f"{path.relative_to(ROOT)} ({room}) may not import {other}"
