"""A phase as a program: where its files are, and how it ends. (Apart from `runtime`: torch takes seconds to import.)"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from homerun.errors import HomerunError

# A file of this name in the base dir asks base training to save after the step it is in. A file, because torchrun hands
# no signal on; hidden, because it is no artifact.
SAVE_NOW = ".save_now"


def base_dir() -> Path:
    """Where the artifact tree is: NANOCHAT_BASE_DIR, else ~/.cache/nanochat."""
    return Path(os.environ.get("NANOCHAT_BASE_DIR") or Path.home() / ".cache" / "nanochat")


def run(main: Callable[[argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Parse the command line and run; what a person can act on becomes one line and its exit code."""
    try:
        main(parser.parse_args())
    except HomerunError as e:
        print(f"error: {e}", file=sys.stderr, flush=True)
        sys.exit(int(e.code))
