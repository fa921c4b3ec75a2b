"""Run the benchmarks one after another: `python -m benchmarks [name ...]`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main(chosen: list[str]) -> int:
    names = sorted(path.stem[6:] for path in Path(__file__).parent.glob("bench_*.py"))
    if unknown := sorted(set(chosen) - set(names)):
        print(f"No benchmark {unknown[0]!r}. There are: {', '.join(names)}.", file=sys.stderr)
        return 2
    failed = []
    for number, name in enumerate(chosen or names, 1):
        print(f"[{number}/{len(chosen or names)}] {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.bench_{name}"]).returncode:
            failed.append(name)
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
