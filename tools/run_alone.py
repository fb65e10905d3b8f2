"""Run every notebook alone, as on a machine where nothing was made before: .venv/bin/python tools/run_alone.py [NOTEBOOK ...]

Each lesson gets an empty run folder and an empty MEDLAB_CACHE_DIR of its own. The room notebooks get empty run folders and share one cache,
which is empty at the beginning. Two run side by side; the longest lessons start first. Prints a line for each, and the output of those that fail;
one that is not done after `--limit` seconds fails, with the line at which each of its threads stood.

A notebook runs in a process of its own, forked from one that has imported the large libraries (and nothing of medlab), which takes longer than most of them.
"""

import argparse
import atexit
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parent.parent
folder = root / "nbs"
LIBRARIES = ["nbdev.test", "matplotlib.pyplot", "pandas", "torch", "datasets", "peft", "transformers.models.auto.modeling_auto", "transformers.trainer"]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("notebooks", nargs="*", type=Path, help="default: all below nbs/")
    options.add_argument("--jobs", type=int, default=2, help="how many run side by side")
    options.add_argument("--limit", type=int, default=900, help="seconds a notebook may take")
    given = options.parse_args()
    found = [path.resolve() for path in given.notebooks] or sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    lessons, rooms = [path for path in found if is_lesson(path)], [path for path in found if not is_lesson(path)]
    ordered = sorted(lessons, key=lambda path: path.name, reverse=True) + rooms  # a late lesson makes all steps before it
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0", JUPYTER_PATH="")  # two run side by side
    for name in ("PYTHONDONTWRITEBYTECODE", "MEDLAB_SMOKE_RUN"):
        os.environ.pop(name, None)
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(LIBRARIES)
    with tempfile.TemporaryDirectory(prefix="medlab-alone-", ignore_cleanup_errors=True) as scratch, ThreadPoolExecutor(given.jobs) as pool:
        passed = pool.map(lambda path: run(path, Path(scratch), forks, given.limit), ordered)
        failed = [path.relative_to(folder).as_posix() for path, good in zip(ordered, passed) if not good]
    if failed:
        sys.exit(f"{len(failed)} of {len(ordered)} notebooks failed: {', '.join(failed)}")
    print(f"{len(ordered)} notebooks ran, each alone.")


def is_lesson(path):
    return path.parent == folder and path.name[:2].isdigit()


def run(path, scratch, forks, limit):
    "Run one notebook; returns whether it passed."
    own = Path(tempfile.mkdtemp(dir=scratch))
    cache = own / "cache" if is_lesson(path) else scratch / "shared cache"
    started = time.monotonic()
    process = forks.Process(target=execute, args=(path, own, cache, limit))
    process.start()
    process.join(limit + 30)
    good = process.exitcode == 0
    try:
        os.killpg(process.pid, signal.SIGKILL)  # what it left running, or itself
    except ProcessLookupError:
        pass
    print(f"{'ok    ' if good else 'FAILED'} {path.relative_to(folder).as_posix():<34} {time.monotonic() - started:6.1f} s", flush=True)
    if not good:
        print((own / "output").read_text(errors="replace")[-6000:] if (own / "output").exists() else f"ended with {process.exitcode} before it began", flush=True)
    return good


def execute(path, own, cache, limit):
    "What happens in a notebook's own process."
    os.setsid()
    os.environ.update(MEDLAB_RUN=str(own / "run"), MEDLAB_CACHE_DIR=str(cache))
    output = os.open(own / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.dump_traceback_later(limit, exit=True)
    os.chdir(root)
    from nbdev.config import get_config
    from nbdev.test import test_nb

    passed, _ = test_nb(path, skip_flags=get_config().tst_flags.split(), basepath=root)
    atexit._run_exitfuncs()  # multiprocessing leaves them out; servers are stopped there
    sys.exit(not passed)


if __name__ == "__main__":
    main()
