"""Our transfer engine as a process of its own, for bench_transfer: what uploader and `homerun pull` do with a group.

python -m benchmarks.ours up|down BUCKET PREFIX FOLDER [PARTS AT ONCE]    endpoint and keys in the environment
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from homerun.bucket.s3 import CONCURRENCY, S3Store
from homerun.bucket.store import FILES_AT_ONCE
from homerun.bucket.wire import Endpoint


def main(way: str, bucket: str, prefix: str, folder: str, parts: str = str(CONCURRENCY)) -> None:
    endpoint = Endpoint(os.environ["S3"], bucket, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    store, root = S3Store(endpoint, concurrency=int(parts)), Path(folder)
    notes = Path(os.environ["NOTES"]) / f"{prefix}.json"
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        if way == "up":
            paths = sorted(root.iterdir())
            landed = list(pool.map(lambda path: store.upload(path, f"{prefix}/{path.name}"), paths))
            store.confirm({f"{prefix}/{path.name}": one for path, one in zip(paths, landed, strict=True)})
            notes.write_text(json.dumps({path.name: vars(one) for path, one in zip(paths, landed, strict=True)}))
        else:
            items = json.loads(notes.read_text()).items()
            list(pool.map(lambda item: store.download(f"{prefix}/{item[0]}", root / item[0], **item[1]), items))


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)
