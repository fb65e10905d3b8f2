"""The runner and the command line as a user meets them: repeat, change, kill, break."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from medlab.basics.errors import MedlabError
from medlab.basics.files import shipped
from medlab.core import LESSONS, Run

STEPS = [name for name in LESSONS if name not in ("core", "fetch", "models", "course")]


def lines_of(output):
    "Lesson name to what its line says."
    return dict(re.findall(r"^\s+(\d\d_\w+)\s+(.*?)\s*$", output, re.M))


def test_given_again_every_lesson_is_unchanged(smoke_run, medlab):
    run = smoke_run[0]
    again = medlab("run", "--profile", "smoke", "--run", run.path)
    assert again.returncode == 0, again.stderr
    said = lines_of(again.stdout)
    assert [name[3:] for name in said] == list(LESSONS)
    assert set(said.values()) == {"unchanged"}
    assert f"Report: {run.path}/report/report.html" in again.stdout
    assert (run.path / "report" / "report.html").stat().st_size > 10_000
    assert all((run.path / "notebooks" / f"{name}.ipynb").exists() for name in said)


def test_a_changed_parameter_of_evaluate_runs_it_and_later_steps_only(copied, medlab):
    folder = copied[0].path
    # the copy's name is part of the deployed model's, so let it settle first
    assert medlab("run", "--profile", "smoke", "--run", folder).returncode == 0
    changed = medlab("run", "--profile", "smoke", "--run", folder, "-p", "evaluate.max_new_tokens=6")
    assert changed.returncode == 0, changed.stderr
    ran = [name[3:] for name, text in lines_of(changed.stdout).items() if text != "unchanged"]
    assert ran == ["evaluate", "judge", "report"]


@pytest.fixture
def lesson(tmp_path):
    "Write a notebook of code cells below one parameters cell, execute it, and return the text of the executed copy."
    import nbformat

    from medlab.course import execute

    def run(*cells, parameters=None, folder=tmp_path):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in ("n = 1", *cells)])
        notebook.cells[0].metadata["tags"] = ["parameters"]
        notebook.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
        folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, folder / "lesson.ipynb")
        try:
            execute(folder / "lesson.ipynb", folder / "out" / "lesson.ipynb", parameters or {"n": 2}, folder)
        finally:
            found = (folder / "out" / "lesson.ipynb").read_text(encoding="utf-8")
        return found

    return run


def test_lessons_run_in_the_python_that_runs_medlab_whatever_kernels_there_are(lesson, tmp_path, monkeypatch):
    for place in ("one", "home/.local/share/jupyter"):
        for name in ("python3", "medlab-lesson"):
            folder = tmp_path / place / "kernels" / name
            folder.mkdir(parents=True)
            (folder / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": name, "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "one"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert sys.executable in lesson("import sys; print(sys.executable)", folder=tmp_path / "here")
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "one")


ODD = "odd {brace} 'quoted' \"twice\" a=b #1 ü 中 {} [x] [/y]"


def test_lessons_run_in_folders_with_odd_names(lesson, tmp_path):
    folder = tmp_path / ODD
    assert "given: " in lesson("print('given:', n)", parameters={"n": str(folder)}, folder=folder)
    assert str(folder) == json.loads((folder / "out" / "lesson.ipynb").read_text())["metadata"]["papermill"]["parameters"]["n"]


def test_a_run_folder_may_have_an_odd_name_and_a_relative_path_begins_where_the_command_is_given(medlab, tmp_path):
    folder, here = tmp_path / ODD, os.path.relpath(shipped("data", "starter"))
    done = medlab("run", "--profile", "smoke", "--run", folder, "-p", f"collect.options={{starter: {{folder: {json.dumps(here)}}}}}", "--only", "core", "collect")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "collect" / "manifest.json").exists() and (folder / "notebooks" / "02_collect.ipynb").exists()
    again = medlab("run", "--run", folder, "--only", "core,collect")
    assert set(lines_of(again.stdout).values()) == {"unchanged"}


def test_no_key_stands_in_an_executed_notebook(lesson, tmp_path, monkeypatch):
    from medlab.basics.errors import MedlabError

    key = "not-a/real key+0123456789"
    monkeypatch.setenv("OPENFDA_API_KEY", key)
    shown = lesson(f"print({key!r}); {{'address': 'https://x.org/?k=not-a%2Freal%20key%2B0123456789'}}")
    assert "***" in shown and key not in shown and "%2Freal" not in shown
    with pytest.raises(MedlabError) as caught:
        lesson(f"raise ValueError('GET /?api_key=' + {key!r})", folder=tmp_path / "failing")
    failed = (tmp_path / "failing" / "out" / "lesson.ipynb").read_text()
    assert "ValueError" in failed and "***" in failed and key not in failed and key not in str(caught.value)


def test_a_run_folder_keeps_its_own_profile(medlab, tmp_path):
    (tmp_path / "mine" / "notebooks").mkdir(parents=True)
    half = tmp_path / "mine" / "notebooks" / ".00_core.ipynb.123-456.tmp"
    half.write_text("what a killed runner left")
    assert medlab("run", "--profile", "cpu", "--run", tmp_path / "mine", "--only", "core").returncode == 0
    assert not half.exists()
    again = medlab("run", "--run", tmp_path / "mine", "--only", "core")
    assert "profile cpu" in again.stdout and "unchanged" in again.stdout


def test_help_lists_the_commands_in_the_roads_order_and_says_what_is_allowed(medlab):
    page = medlab("--help").stdout
    places = [page.index(f" {name} ") for name in ("run", *STEPS)]
    assert places == sorted(places)
    assert re.fullmatch(r"medlab \d+\.\d+\.\d+", medlab("--version").stdout.strip())
    assert "one of auto, ollama, llama_cpp" in " ".join(medlab("deploy", "--help").stdout.split())
    assert "--replace" in medlab("collect", "--help").stdout


def processes_in(folder):
    "Processes whose command line names a folder."
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(str(folder) in word for word in process.info["cmdline"] or []):
            found.append(process)
    return found


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    pytest.fail(f"did not happen within {seconds} s")


KILLED_IN = {
    # step: (what is changed so that it works for a while, what shows that it is in the middle)
    "finetune": (["finetune.steps=40", "finetune.checkpoint_every=5"], "finetune/checkpoints/checkpoint-*/adapter_model.safetensors"),
    "quantize": ([], "quantize/merge.json"),
    "evaluate": (["evaluate.max_new_tokens=24", "evaluate.batch=2"], "ledgers/evaluate.jsonl"),
}


@pytest.mark.parametrize("step", KILLED_IN)
def test_killed_in_the_middle_it_goes_on_and_ends_the_same(step, copied, medlab, tmp_path):
    overrides, evidence = KILLED_IN[step]
    run = copied[0]
    words = ["run", "--profile", "smoke", "--run", run.path, "--only", step, *(f"-p{override}" for override in overrides)]
    for made_before in (step, "ledgers"):
        shutil.rmtree(run.path / made_before)

    process = subprocess.Popen([sys.executable, "-m", "medlab.course", *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: process.poll() is not None or list(run.path.glob(evidence)))
    assert process.poll() is None, f"it ended before it could be killed: {process.stdout.read().decode()}"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run.path / step / "manifest.json").exists()
    wait_for(lambda: not processes_in(run.path), 30)  # neither a kernel nor a server is left

    begun = {path: path.stat().st_mtime_ns for path in run.path.glob(evidence)}
    again = medlab(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    killed = run.manifest(step)
    assert any(path.exists() and path.stat().st_mtime_ns == when for path, when in begun.items()) or step != "quantize"

    whole = Run(tmp_path / "whole")
    shutil.copytree(run.path, whole.path)
    for made_before in (step, "ledgers"):  # else it would only read what was answered
        shutil.rmtree(whole.path / made_before, ignore_errors=True)
    assert medlab(step, "--run", whole.path).returncode == 0  # with the run's own profile
    contents = [{name: output.content for name, output in manifest.outputs.items()} for manifest in (killed, whole.manifest(step))]
    assert contents[0] == contents[1]


def test_only_one_runner_works_in_a_folder_and_a_killed_one_holds_nothing(medlab, tmp_path):
    run = Run(tmp_path / "held")
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import time\nfrom medlab.core import Run\nfrom medlab.course import only_one_runner\n"
         f"with only_one_runner(Run({str(run.path)!r})):\n    print('held', flush=True)\n    time.sleep(600)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout.readline() == b"held\n"
    refused = medlab("run", "--profile", "smoke", "--run", run.path, "--only", "core")
    assert refused.returncode == 1 and f"process {holder.pid}" in refused.stderr and "is using" in refused.stderr
    assert not (run.path / "profile.yaml").exists()  # the profile under which the other one works is left alone
    holder.kill()
    holder.wait()
    assert medlab("run", "--profile", "smoke", "--run", run.path, "--only", "core").returncode == 0


def test_the_page_on_the_data_needs_no_model(medlab, tmp_path):
    done = medlab("report", "--data", "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    count = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in shipped("data", "starter").glob("*.jsonl"))
    assert "data.html" in done.stdout and f"<td class=\"number\">{count:,}</td>" in (tmp_path / "run" / "data.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.is_dir()) == ["collect", "instruct", "preprocess"]


@pytest.mark.parametrize(("words", "said"), [(["--limit", 0], "limit: Input should be greater"), (["--since", ""], "since: Input should be a valid date")])
def test_an_option_of_collect_that_is_nothing_is_not_taken_for_none(words, said, medlab, tmp_path):
    refused = medlab("collect", "--run", tmp_path / "run", *words)
    assert refused.returncode == 1 and said in refused.stderr and "Traceback" not in refused.stderr
    assert medlab("collect", "--run", tmp_path / "run", "--limit", 3).returncode == 0


def test_a_model_that_cannot_become_a_gguf_is_refused_before_its_training(tmp_path):
    "By the runner, which knows that quantize comes; who only trains may have it."
    from medlab.course import run_course
    from medlab.models import load_spec, obtain

    folder = tmp_path / "model"
    shutil.copytree(obtain(load_spec("tiny-random")), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    (folder / "medlab.json").unlink(missing_ok=True)
    (tmp_path / "mine.yaml").write_text(f"seed: 1\nmodel: {folder}\n")
    with pytest.raises(MedlabError, match="changes text first.*choose another model"):
        run_course(str(tmp_path / "mine.yaml"), tmp_path / "run", only=["finetune", "quantize"])
    assert not (tmp_path / "run" / "notebooks").exists() and not (tmp_path / "run" / "instruct").exists()


def test_a_failing_cell_is_said_in_two_lines_and_its_notebook_kept(medlab, tmp_path):
    profile = tmp_path / "broken.yaml"
    profile.write_text("seed: 1\nmodel: tiny-random\nsteps: {collect: {sources: [medquad], options: {medquad: {archive: /no/such/archive.zip}}}}\n")
    failed = medlab("run", "--profile", profile, "--run", tmp_path / "run", "--only", "collect")
    assert failed.returncode == 1
    assert "02_collect.ipynb, cell" in failed.stderr and "/no/such/archive.zip" in failed.stderr
    assert "Traceback" not in failed.stderr
    copy = re.search(r"executed notebook: (.*)", failed.stderr).group(1)
    assert "archive.zip" in Path(copy).read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--profile", "smok"], "did you mean 'smoke'?"),
        (["run", "--profile", "/no/such.yaml"], "there is no such file"),
        (["run", "-p", "evaluate.itms_per_task=1"], "did you mean 'items_per_task'?"),
        (["run", "-p", "evaluat.items_per_task=1"], "did you mean 'evaluate'?"),
        (["run", "-p", "evaluate.items_per_task=many"], "items_per_task"),
        (["run", "--only", "evalute"], "did you mean 'evaluate'?"),
        (["run", "--from", "judge", "--to", "collect"], "swap the two"),
        (["run", "judge"], "without --only"),
        (["run", "-p", "evaluate.longer.triage=5"], "'evaluate.longer={triage: 5}'"),
        (["run", "-p", "model=smolm2-135m-instruct"], "did you mean 'smollm2-135m-instruct'?"),
    ],
)
def test_wrong_options_are_refused_before_anything_runs(words, said, medlab, tmp_path):
    refused = medlab(*words[:1], "--run", tmp_path / "run", *words[1:])
    assert refused.returncode == 1
    assert said in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["status"], ["down"], ["logs"], ["audit"], ["publish", "--to", "folder"]])
def test_looking_at_a_run_that_is_not_there_makes_none(words, tmp_path):
    from typer.testing import CliRunner

    from medlab.cli.commands import app

    done = CliRunner().invoke(app, [*words, "--run", str(tmp_path / "typo")])
    assert "is not a run folder" in str(done.exception) and not (tmp_path / "typo").exists()


@pytest.mark.parametrize("text", ["seed: [", "- a\n- b\n", "seed: many\n", "steps: 3\n", "sed: 1\n"])
def test_a_broken_profile_is_one_clear_error(text, medlab, tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_text(text)
    refused = medlab("run", "--profile", profile, "--run", tmp_path / "run")
    assert refused.returncode == 1
    assert "mine.yaml" in refused.stderr and "Traceback" not in refused.stderr


def test_a_full_disk_is_one_clear_error_and_the_next_try_succeeds(tmp_path):
    "In a mount namespace of its own, with a disk of 64 kB."
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here: a small disk cannot be made without them")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"{shlex.quote(sys.executable)} -m medlab.course collect --profile smoke --run {disk}/run"
    script = f"mount -t tmpfs -o size=64k tmpfs {disk} && {{ {command}; echo code $?; mount -o remount,size=64m {disk} && {command} && ls {disk}/run/collect; }}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True)
    assert "the disk is full" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "code 1" in done.stdout and "manifest.json" in done.stdout


def test_step_commands_explain_themselves(medlab):
    for step in STEPS:
        page = medlab(step, "--help")
        assert page.returncode == 0, page.stderr
        assert "--profile" in page.stdout and "--run" in page.stdout, step
        assert step == "serve" or "Parameters" in page.stdout, step


def test_step_command_uses_the_runs_own_profile(copied, medlab):
    run, profile = copied
    done = medlab("preprocess", "--run", run.path)
    assert done.returncode == 0, done.stderr
    assert "preprocess: unchanged" in done.stdout


def test_installed_elsewhere_it_finds_what_it_ships(tmp_path):
    "A wheel, unpacked away from the clone: profiles, lessons and starter data are in it."
    root = Path(__file__).parent.parent
    build = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(root)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    wheel = next(tmp_path.glob("medlab-*.whl"))
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    script = (
        "import medlab.course as c, medlab.core as k; print(k.__file__); print([lesson.name for lesson in c.lessons()]); "
        "print(k.load_profile('cpu').model, k.shipped('data', 'starter', 'triage.jsonl'))"
    )
    elsewhere = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=elsewhere)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(str(tmp_path / "site")) == 2 and "06_finetune" in found.stdout
    assert json.loads((tmp_path / "site" / "medlab" / "nbs" / "06_finetune.ipynb").read_text())["nbformat"] == 4
