"""`python -m benchmarks [NAME …]`: run benchmarks/bench_NAME.py, each in a process of its own; by default all."""

import subprocess
import sys
from pathlib import Path

names = sorted(path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*.py"))
wanted = sys.argv[1:] or names
if unknown := set(wanted) - set(names):
    sys.exit(f"error: no benchmark {', '.join(sorted(unknown))}. There are: {', '.join(names)}")
for name in wanted:
    print(f"== {name}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.bench_{name}"], check=False)
