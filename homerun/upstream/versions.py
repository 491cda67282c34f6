"""Which torch a script's own Python has, told without importing it: torch takes seconds to import."""

import shutil
import subprocess
from collections.abc import Mapping

TELL = "import importlib.metadata as m; print(m.version('torch'))"
PATIENCE_SECONDS = 10.0  # it takes 0.1 s


def torch_version(environ: Mapping[str, str]) -> str | None:
    """`2.9.1+cu128`, of the `python` that is first in this environment's PATH; None where it has no torch."""
    python = shutil.which("python", path=environ.get("PATH"))
    if python is None:
        return None
    try:
        asked = subprocess.run(
            [python, "-I", "-c", TELL], env=environ, capture_output=True, text=True, timeout=PATIENCE_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
