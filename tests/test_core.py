"Steps, runs and profiles: what makes a step work again, what it never destroys, and what is refused before anything is touched."

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import package_folder, read_json, write_json
from medlab.core import LESSONS, NOT_HERE, STEPS, Outcome, Params, Run, find_step, load_profile, open_run, step
from medlab.course import import_lessons

HASHES = """
import json, sys
from medlab.core import LESSONS, module_hash
print(json.dumps({name: module_hash(f"medlab.{name}") for name in LESSONS}))
"""


@pytest.fixture
def package(tmp_path):
    "A copy of the package that a test may change, and the hashes of its lessons' code."
    shutil.copytree(package_folder(), tmp_path / "copy" / "medlab", ignore=shutil.ignore_patterns("__pycache__"))

    def hashes():
        made = subprocess.run([sys.executable, "-c", HASHES], cwd=tmp_path, capture_output=True, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(tmp_path / "copy")})  # fmt: skip
        return json.loads(made.stdout)

    return tmp_path / "copy" / "medlab", hashes


@pytest.mark.parametrize("changed, steps", [
    ("sources/cdc.py", {"collect"}),
    ("builders/qa.py", {"instruct"}),
    ("splitting/groups.py", {"preprocess"}),
    ("finetune.py", {"finetune"}),
    ("engines/llama_cpp.py", {"quantize", "deploy", "serve", "evaluate", "judge"}),
])  # fmt: skip
def test_a_comment_changes_the_key_of_those_steps_alone_that_use_the_code(package, changed, steps):
    folder, hashes = package
    before = hashes()
    with open(folder / changed, "a") as stream:
        stream.write("\n# a comment\n")
    after = hashes()
    assert {name for name in LESSONS if before[name] != after[name]} - {"course"} == steps


class NumbersParams(Params):
    step = "test_numbers"
    upto: int = 3


class SumParams(Params):
    step = "test_sum"


@pytest.fixture
def toy():
    "Two steps, the second of which reads the first; `calls` counts their work, `behave` is called in the middle of the first."
    calls, behave = [], {"numbers": lambda folder: None, "inputs": lambda profile: {}}

    @step("test_numbers", params=NumbersParams, outputs=["numbers.json"], inputs=lambda profile: behave["inputs"](profile))
    def numbers(run, profile):
        calls.append("numbers")
        folder = run.folder("test_numbers")
        outcome = behave["numbers"](folder)
        write_json(folder / "numbers.json", list(range(profile.params(NumbersParams).upto)))
        return outcome

    @step("test_sum", params=SumParams, outputs=["sum.json"], needs=["test_numbers"])
    def total(run, profile):
        calls.append("sum")
        write_json(run.folder("test_sum") / "sum.json", sum(read_json(run.file("test_numbers", "numbers.json"))))

    yield numbers, total, calls, behave
    del STEPS["test_numbers"], STEPS["test_sum"]
    for kind in (NumbersParams, SumParams):
        Params.known[kind.step] = kind


@pytest.fixture
def opened(tmp_path):
    return open_run("smoke", tmp_path / "run")


def upto(number):
    return load_profile("smoke", [f"test_numbers.upto={number}"])


def test_a_step_is_found_by_its_name_and_an_unknown_one_is_named():
    assert find_step("collect").name == "collect"
    with pytest.raises(InputError, match="did you mean 'collect'"):
        find_step("colect")


def test_unchanged_steps_do_nothing_and_a_changed_output_is_followed(toy, opened):
    numbers, total, calls, _ = toy
    run, profile = opened
    total(run, profile)
    total(run, profile)
    assert calls == ["numbers", "sum"] and read_json(run.file("test_sum", "sum.json")) == 3
    total(run, upto(5))
    assert calls == ["numbers", "sum"] * 2 and read_json(run.file("test_sum", "sum.json")) == 10


def test_a_file_beside_the_steps_that_comes_changes_or_goes_makes_its_reader_work_again(toy, opened):
    "Such as a benchmark's result, which a command leaves in the run folder."
    numbers, _, calls, _ = toy
    numbers.beside = ("found/*.json",)
    run, profile = opened
    numbers(run, profile)
    place = run.folder("found") / "one.json"
    for change in (lambda: write_json(place, 1), lambda: write_json(place, 2), place.unlink):
        assert numbers.finished(run, profile)
        change()
        assert not numbers.finished(run, profile)
        numbers(run, profile)
    (place.parent / "notes.txt").write_text("nothing that it reads")
    assert numbers.finished(run, profile) and calls == ["numbers"] * 4


def test_a_failing_step_leaves_the_finished_result_and_its_own_progress(toy, opened):
    numbers, _, _, behave = toy
    run, _ = opened
    numbers(run, upto(3))
    seen = []

    def fails(folder):
        seen.append((folder / "progress").exists())
        (folder / "progress").write_text("half")
        raise InputError("got nothing")

    behave["numbers"] = fails
    for _ in range(2):
        with pytest.raises(InputError, match="got nothing"):
            numbers(run, upto(7))
    assert seen == [False, True]  # the second try found what the first had made
    assert read_json(run.file("test_numbers", "numbers.json")) == [0, 1, 2] and numbers.finished(run, upto(3))
    behave["numbers"] = lambda folder: None
    numbers(run, upto(7))
    assert len(read_json(run.file("test_numbers", "numbers.json"))) == 7
    assert not [path.name for path in run.path.iterdir() if path.name.startswith(".test_numbers")]


def test_half_files_in_subfolders_are_swept(toy, opened):
    numbers, _, _, behave = toy
    run, _ = opened

    def dies(folder):
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / ".loss.png.123-456.tmp").write_text("half")
        raise KeyboardInterrupt

    behave["numbers"] = dies
    with pytest.raises(KeyboardInterrupt):
        numbers(run, upto(3))
    behave["numbers"] = lambda folder: None
    numbers(run, upto(3))
    assert not list(run.path.rglob("*.tmp"))


KILLED = """
import os, signal, sys
from medlab.core import Params, load_profile, Run, step
from medlab.basics.files import write_json
class NumbersParams(Params):
    step = "test_numbers"
    upto: int = 3
@step("test_numbers", params=NumbersParams, outputs=["numbers.json"])
def numbers(run, profile):
    if profile.params(NumbersParams).upto == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(run.folder("test_numbers") / "numbers.json", [1, 2, 3])
numbers(Run(sys.argv[1]), load_profile("smoke", [f"test_numbers.upto={sys.argv[2]}"]))
"""


def test_a_killed_step_leaves_the_finished_result(opened):
    run, _ = opened
    for upto, code in [("3", 0), ("9", -signal.SIGKILL), ("3", 0)]:
        assert subprocess.run([sys.executable, "-c", KILLED, run.path, upto]).returncode == code
    assert read_json(run.file("test_numbers", "numbers.json")) == [1, 2, 3]


def test_a_result_is_not_replaced_by_one_that_lacks_an_input(toy, opened, monkeypatch):
    numbers, _, calls, behave = toy
    run, _ = opened
    behave["inputs"] = lambda profile: {"source pond": "a hash"}
    numbers(run, upto(3))
    behave["inputs"] = lambda profile: {"source pond": f"{NOT_HERE}: name it in MEDLAB_POND"}
    with pytest.raises(MissingError, match="source pond.*MEDLAB_POND.*--replace"):
        numbers(run, upto(3))
    assert calls == ["numbers"] and read_json(run.file("test_numbers", "numbers.json")) == [0, 1, 2]
    monkeypatch.setenv("MEDLAB_REPLACE", "1")
    numbers(run, upto(3))
    assert calls == ["numbers"] * 2
    numbers(run, upto(3))
    assert calls == ["numbers"] * 2  # made without it, it is unchanged without it


def test_a_result_is_not_replaced_by_one_that_had_to_leave_something_out(toy, opened, monkeypatch):
    numbers, _, _, behave = toy
    run, _ = opened
    numbers(run, upto(3))
    behave["inputs"] = lambda profile: {"something": "new"}
    behave["numbers"] = lambda folder: Outcome(missing=["pond"], notes=["pond skipped: it is dry"])
    with pytest.raises(MissingError, match="pond.*it is dry"):
        numbers(run, upto(3))
    assert read_json(run.file("test_numbers", "numbers.json")) == [0, 1, 2]
    numbers(run, upto(4))  # other parameters: the user asked for another result
    assert len(read_json(run.file("test_numbers", "numbers.json"))) == 4


def test_an_incomplete_step_goes_on_when_asked_again(toy, opened):
    numbers, total, calls, behave = toy
    run, profile = opened
    behave["numbers"] = lambda folder: Outcome(incomplete=True)
    numbers(run, profile)
    total(run, profile)
    assert calls == ["numbers", "sum"]  # good enough for the next step
    behave["numbers"] = lambda folder: None
    numbers(run, profile)
    assert calls == ["numbers", "sum", "numbers"]
    numbers(run, profile)
    assert calls == ["numbers", "sum", "numbers"]


def test_the_run_keeps_its_own_profile_until_one_is_named(tmp_path):
    run, profile = open_run("cpu", tmp_path / "mine")
    text = (run.path / "profile.yaml").read_text()
    again, same = open_run(run_dir=tmp_path / "mine")
    assert same == profile and (run.path / "profile.yaml").read_text() == text
    assert open_run("smoke", tmp_path / "mine")[1].name == "smoke"


def test_a_runs_own_profile_that_is_wrong_is_named_with_what_to_do(tmp_path):
    open_run("smoke", tmp_path)
    (tmp_path / "profile.yaml").write_text("name: smoke\nsed: 1\n")
    with pytest.raises(InputError, match="did you mean 'seed'.*own profile: correct .*profile.yaml, or name another one with --profile"):
        open_run(run_dir=tmp_path)
    assert open_run("smoke", tmp_path)[1].name == "smoke"


def test_half_a_profile_is_swept(tmp_path):
    open_run("smoke", tmp_path)
    (tmp_path / ".profile.yaml.123-456.tmp").write_text("half")
    open_run(run_dir=tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("text, problem", [
    ("steps: []", "valid dictionary"),
    ("steps:", "valid dictionary"),
    ("steps: {collect: [1]}", "valid dictionary"),
    ("1: x", "quotation marks"),
    ("0: x", "quotation marks"),
    ("no: x", "quotation marks"),
    ("steps: {collect: {~: 1}}", "quotation marks"),
    ("seed: 1\nseed: 2", "comes twice"),
    ("steps: {collect: {limit: 1, limit: 2}}", "comes twice"),
    ("a: " + "[" * 5000, "too deep"),
    ("a: &a [1]\nb: *a", "alias"),
    ("seed: 99999999999", "less than"),
    ("seed: -1", "greater than"),
    ("seed: true", "valid integer"),
    (f"steps: {{collect: {{limit: {2**63}}}}}", "finite"),
    (f"steps: {{collect: {{options: {{starter: {{limit: {2**63}}}}}}}}}", "finite"),
    ("steps: {finetune: {learning_rate: .inf}}", "finite"),
    ("steps: {judge: {usd_per_million: [1, .nan]}}", "finite"),
    ("steps: {collect: {options: {starter: {foldr: x}}}}", "folder"),
    ("steps: {collect: {sources: [hub/x]}}", "path"),
    ("steps: {collect: {sources: ['os:path']}}", "not a source"),
    ("name: ../../x", "pattern"),
    ("name: ''", "pattern"),
    ("- a", "got list"),
    ("a: [", "not YAML"),
    ("day: 2026-13-45", "not YAML"),
])  # fmt: skip
def test_a_wrong_profile_is_refused_in_one_line_and_nothing_is_touched(tmp_path, text, problem):
    import_lessons()
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=problem) as caught:
        open_run(tmp_path / "mine.yaml", tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["steps:", "steps: [1]", "steps: {evaluate: 3}"])
def test_overriding_a_broken_profile_says_what_is_broken(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match="mapping|dictionary"):
        load_profile(tmp_path / "mine.yaml", ["evaluate.items_per_task=2"])


@pytest.mark.parametrize("place", ["file/run", "file", "n" * 300, "/proc/none/run"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("no /proc here: another folder in which nothing can be made is not known")
    with pytest.raises(RuntimeError, match="cannot write to") as caught:
        open_run("smoke", tmp_path / place)
    assert "\n" not in str(caught.value)


def test_a_key_in_a_note_is_masked_before_it_is_written(toy, opened, monkeypatch):
    numbers, _, _, behave = toy
    monkeypatch.setenv("NHS_API_KEY", "0123-not-a-key")
    behave["numbers"] = lambda folder: Outcome(notes=["nhs skipped: GET /?key=0123-not-a-key failed"])
    assert numbers(*opened).notes == ["nhs skipped: GET /?key=*** failed"]
    assert "0123-not-a-key" not in (opened[0].path / "test_numbers" / "manifest.json").read_text()


def test_waiting_for_a_run_says_at_once_who_holds_it(tmp_path):
    "At once: while the holder still works, which it does until its input ends."
    hold = "import sys\nfrom medlab.core import Run\nwith Run(sys.argv[1]).lock():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    holder = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "run"], **pipes)
    assert holder.stdout.readline() == "held\n"
    waiter = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "run"], **pipes)
    line = waiter.stderr.readline()
    assert f"process {holder.pid}" in line and "waiting" in line and holder.poll() is None
    for process in (holder, waiter):  # only now does the first one let go
        process.stdin.close()
    assert waiter.stdout.readline() == "held\n"
    assert holder.wait() == waiter.wait() == 0
    with Run(tmp_path / "run").lock():
        pass


@pytest.mark.parametrize("words", [["-c", "from medlab.models import load_spec; load_spec('tiny-random')"], ["-m", "medlab.course", "--help"]])
def test_a_folder_named_medlab_in_the_current_folder_does_no_harm(tmp_path, words):
    "As when the command is given from the folder above the clone."
    (tmp_path / "medlab").mkdir()
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_shipped_files_are_found_from_the_package():
    assert Path(sys.modules["medlab.core"].__file__).parent == package_folder()
