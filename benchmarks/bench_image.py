"""The image in figures: size and its parts, build times, and how long a box takes to answer and to begin.

    python benchmarks/bench_image.py [--image NAME] [--builds] [--build-args '--build-arg EXTRAS=serve,train']

Needs a Docker engine (DOCKER_HOST). --builds also times a cold build and two rebuilds. Start times are medians of five,
with the tiny upstream of the tests and the folder bucket: container start → port bound and
→ first event in the journal, beside a bare python in the same image; and what fetching the wrapper takes.
"""

import argparse
import json
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests import fake_upstream  # noqa: E402
from tests.fakes.gist import FakeGist  # noqa: E402
from tests.s3 import free_ports  # noqa: E402

REPEATS = 5


def docker(*arguments: str, cwd: Path = ROOT) -> str:
    return subprocess.run(["docker", *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def build(image: str, arguments: list[str], *flags: str) -> float:
    return timed(lambda: docker("build", *arguments, *flags, "-f", "Dockerfile.training", "-t", image, "."))


def sizes(image: str) -> None:
    total = int(docker("image", "inspect", "--format", "{{.Size}}", image))
    print(f"size                       {total / 1e6:8.0f} MB")
    for line in docker("history", "--no-trunc", "--format", "{{json .}}", image).splitlines():
        layer = json.loads(line)
        if layer["Size"].endswith("MB") or layer["Size"].endswith("GB"):
            print(f"  {layer['Size']:>10}  {' '.join(layer['CreatedBy'].split())[:90]}")


def start_times(image: str, folder: Path) -> None:
    upstream = fake_upstream.make(folder / "upstream")
    bare, bound, begun = [], [], []
    for _ in range(REPEATS):
        bare.append(timed(lambda: docker("run", "--rm", "--network", "host", image, "python3", "-c", "pass")))
        port = free_ports(1)[0]
        env = ["--env", f"HOMERUN_PORT={port}", "--env", "NPROC_PER_NODE=0", "--env", "HOMERUN_UPSTREAM=/upstream"]
        name = docker("create", "--network", "host", *env, "-v", f"{upstream}:/upstream:ro", image).strip()
        began = time.time()
        docker("start", name)
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.005)
        bound.append(time.time() - began)
        docker("wait", name)
        copied = folder / "data"
        docker("cp", f"{name}:/data/homerun/runs", str(copied))
        journal = next(copied.rglob("journal.jsonl"))
        lines = journal.read_text().splitlines()
        begun.append(json.loads(lines[0])["t"] - began)
        subprocess.run(["rm", "-rf", str(copied)], check=True)
        docker("rm", "-f", name)
    for title, values in (("bare python in it", bare), ("start → port bound", bound), ("start → first event", begun)):
        print(f"{title:26} {statistics.median(values):8.2f} s   ({min(values):.2f} to {max(values):.2f})")


def fetch_times(image: str) -> None:
    """The wrapper, fetched and proven inside the image; the gist's service answers from this machine at once."""
    with FakeGist() as gist:
        name = gist.write({"train_and_upload.py": (ROOT / "train_and_upload.py").read_bytes()})
        env = [word for key, value in gist.environ.items() for word in ("--env", f"{key}={value}")]

        def run(url: str, *command: str) -> float:
            flags = ["--rm", "--network", "host", "--env", f"SCRIPT_URL={url}", *env]
            return timed(lambda: docker("run", *flags, image, "python3", *command))

        pinned = gist.raw(name, revision=gist.revision(name))
        for title, url in (("fetch, newest revision", gist.raw(name)), ("fetch, pinned revision", pinned)):
            fetch = "/opt/homerun/entrypoint/fetch.py"
            took = [run(url, fetch, "--check") - run(url, "-c", "pass") for _ in range(REPEATS)]
            print(
                f"{title:26} {statistics.median(took):8.2f} s   ({min(took):.2f} to {max(took):.2f}), over bare python"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default="nanochat-training:bench")
    parser.add_argument("--builds", action="store_true", help="time builds too; makes --image")
    parser.add_argument("--build-args", default="", help="words for docker build")
    arguments = parser.parse_args()
    words = shlex.split(arguments.build_args)
    if arguments.builds:
        print(f"cold build                 {build(arguments.image, words, '--no-cache'):8.1f} s")
        print(f"rebuild, nothing changed   {build(arguments.image, words):8.1f} s")
        marker = ROOT / "homerun" / "_bench_marker.py"
        try:
            marker.write_text('"""Changes what the image is made of; removed again."""\n')
            print(f"rebuild, homerun changed   {build(arguments.image, words):8.1f} s")
        finally:
            marker.unlink()
        print("after a wrapper change          0 s   (no rebuild: it is fetched at start)")
    sizes(arguments.image)
    fetch_times(arguments.image)
    with tempfile.TemporaryDirectory() as folder:
        start_times(arguments.image, Path(folder))


if __name__ == "__main__":
    main()
