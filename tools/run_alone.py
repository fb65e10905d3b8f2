"""Run every notebook alone, as on a machine where nothing was made before: .venv/bin/python tools/run_alone.py [NOTEBOOK ...]

Each lesson gets an empty run folder and an empty MEDLAB_CACHE_DIR of its own. The room notebooks get empty run folders and share one cache,
which is empty at the beginning. Two run side by side; the longest lessons start first. Prints a line for each, and the output of those that fail.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parent.parent
folder = root / "nbs"


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("notebooks", nargs="*", type=Path, help="default: all below nbs/")
    options.add_argument("--jobs", type=int, default=2, help="how many run side by side")
    given = options.parse_args()
    found = [path.resolve() for path in given.notebooks] or sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    lessons, rooms = [path for path in found if is_lesson(path)], [path for path in found if not is_lesson(path)]
    ordered = sorted(lessons, key=lambda path: path.name, reverse=True) + rooms  # a late lesson makes all steps before it
    with tempfile.TemporaryDirectory(prefix="medlab-alone-") as scratch, ThreadPoolExecutor(given.jobs) as pool:
        failed = [path for path, good in zip(ordered, pool.map(lambda path: run(path, Path(scratch)), ordered)) if not good]
    if failed:
        sys.exit(f"{len(failed)} of {len(ordered)} notebooks failed: {', '.join(path.relative_to(folder).as_posix() for path in failed)}")
    print(f"{len(ordered)} notebooks ran, each alone.")


def is_lesson(path):
    return path.parent == folder and path.name[:2].isdigit()


def run(path, scratch):
    "Run one notebook; returns whether it passed."
    own = Path(tempfile.mkdtemp(dir=scratch))
    cache = own / "cache" if is_lesson(path) else scratch / "shared cache"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONDONTWRITEBYTECODE", "MEDLAB_SMOKE_RUN")}
    environment |= {"MEDLAB_RUN": str(own / "run"), "MEDLAB_CACHE_DIR": str(cache), "JUPYTER_PATH": ""}
    started = time.monotonic()
    done = subprocess.run(
        [str(Path(sys.executable).parent / "nbdev_test"), "--path", str(path), "--n_workers", "0", "--do_print"],
        cwd=root, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    good = done.returncode == 0
    print(f"{'ok    ' if good else 'FAILED'} {path.relative_to(folder).as_posix():<34} {time.monotonic() - started:6.1f} s", flush=True)
    if not good:
        print((done.stdout + done.stderr)[-4000:], flush=True)
    return good


if __name__ == "__main__":
    main()
