#!/usr/bin/env python3
"""Train nanochat here and bring the model home: the whole job on one page.

This file is what a rented machine fetches and runs. Edit it, publish it (`homerun publish`), and the next start of the
container runs your version: no new image. Everything is asked for by environment variables (README, "Settings").
It runs with the image's homerun, or with a newer one that it declares itself (docs/wrapper.md).
On your own computer:  python train_and_upload.py --script recipes/toy.sh
"""

import argparse
import sys

from homerun.errors import HomerunError
from homerun.job.job import Job
from homerun.job.request import Request
from homerun.settings import Settings

# Arguments of your own for upstream's phases, appended to what its script says; the script itself is never edited.
PHASE_ARGS: list[str] = [
    # "base_train=--depth=26 --device-batch-size=16",
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--script", help="a recipe of your own; unset: upstream's speedrun")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run, or with `latest`")
    arguments = parser.parse_args()

    # 1. What is asked for: the environment, then the arguments. A wrong value ends here, by name.
    settings = Settings.load()
    request = Request.from_arguments(settings, script=arguments.script, resume=arguments.resume, phase_args=PHASE_ARGS)

    # 2. Which run this is (new, or found unfinished in the bucket), its lease, its script at its commit.
    with Job(request) as job:
        # 3. What can be checked is checked before the clock matters.
        if job.preflight():
            # 4. The script, byte for byte unmodified, phase by phase; checkpoints leave for the bucket as they appear.
            job.run_script()
        # 5. Everything proven in the bucket, the report, metadata.json, and last of all _SUCCESS.
        job.land()
        # 6. KEEP_ALIVE=true: the page and the chat stay up on port 8000.
        job.keep_alive()
    return int(job.code)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HomerunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(int(error.code))
