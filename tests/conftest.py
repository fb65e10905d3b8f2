"""What tests share: a finished smoke run, real data where it is present, and the commands as a user gives them."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

# The same examples in every run, so that a red run can be repeated. HYPOTHESIS_EXAMPLES=new looks for new ones; when one of them
# fails, the line `@reproduce_failure(...)` that is printed repeats it.
settings.register_profile("same", derandomize=True)
settings.register_profile("new", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_EXAMPLES", "same"))

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # two files are tested at a time, so that no thread may wait in a loop

# A suite started in the background by a shell has Ctrl-C ignored, and so would every program that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than 20 s; runs by default, leave it out with -m 'not slow'")
    config.addinivalue_line("markers", "long: takes many minutes; runs by hand only, with -m long")
    config.addinivalue_line("markers", "fuzz: looks for examples by itself (hypothesis; set by itself, but for a search inside a test); new ones with "
                                       "HYPOTHESIS_EXAMPLES=new pytest -m fuzz")


#: Minutes long. Where two files run at a time these begin, so that both processes end together.
LONGEST_FILES = ["test_course.py", "test_readme.py", "test_instruct.py", "test_quantize.py", "test_preprocess.py", "test_finetune.py", "test_judge.py", "test_evaluate.py",
                 "test_training.py", "test_bench.py"]


def pytest_collection_modifyitems(items):
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONGEST_FILES.index(item.path.name) if item.path.name in LONGEST_FILES else len(LONGEST_FILES))  # a stable sort
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.fuzz)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory, medlab):
    """A finished run of profile smoke, made by the command, and its profile. Read only: copy it (`copied`) before changing anything in it.

    MEDLAB_SMOKE_RUN names one that is finished already.
    """
    from medlab.core import open_run
    from medlab.course import import_lessons
    from medlab.report import report

    place = os.environ.get("MEDLAB_SMOKE_RUN") or tmp_path_factory.mktemp("runs") / "smoke"
    if "PYTEST_XDIST_WORKER" in os.environ and "MEDLAB_SMOKE_RUN" not in os.environ:
        place = tmp_path_factory.getbasetemp().parent / "smoke"  # one for all processes of the suite: the first makes it, the others wait
    with FileLock(f"{place}.pytest.lock"):
        done = medlab("run", "--profile", "smoke", "--run", place)
        assert done.returncode == 0, done.stdout + done.stderr
        import_lessons()
        run, profile = open_run("smoke", place)
        report(run, profile)  # by import: nothing is made again
    return run, profile


@pytest.fixture
def copied(smoke_run, tmp_path):
    "A copy of the finished smoke run that a test may change."
    from medlab.core import Run

    folder = tmp_path / "copied"
    shutil.copytree(smoke_run[0].path, folder)
    return Run(folder), smoke_run[1]


@pytest.fixture
def store(tmp_path):
    "Where the fetchers of a test keep raw answers."
    return tmp_path / "raw"


@pytest.fixture
def quick(store):
    "Make fetchers on `store` that hardly wait; all are closed at the end."
    from servers.collecting import quick_fetcher

    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(quick_fetcher(store, **options))


@pytest.fixture(scope="session")
def shared_data():
    "Real recorded data beside the project; a test that needs it is skipped where it is absent."
    if not SHARED.is_dir():
        pytest.skip(f"no recorded data at {SHARED}: this test checks against real answers that are not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def medlab():
    "Run a `medlab` command as a user would; returns the finished process."

    def command(*words, timeout=1800, **env):
        return subprocess.run(
            [sys.executable, "-m", "medlab.course", *map(str, words)],
            capture_output=True, text=True, timeout=timeout, env={**os.environ, "COLUMNS": "150", **env},
        )  # fmt: skip

    return command
