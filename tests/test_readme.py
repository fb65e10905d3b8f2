"""README.md's commands, as they stand there, in a fresh clone in a path with a space, with an empty HOME and an empty cache.

A test's name says what is done with its command. *executed*: the command runs as it stands. *checked*: it would take minutes, install something or
need a network, so what can be known of it without that is asserted: `make` says what it would do, the real command line reads the words and values,
pip prepares the package without installing it. A command that no rule below knows fails. The suite's own environment stands in for the clone's
`.venv`, with the clone's files before everything else; making an environment from nothing is continuous integration's work (.ci/run).
"""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from own_data import medquad_zip
from servers.openfda import OpenFdaServer, labels
from servers.pubmed import PubMedServer, Paper
from typer.main import get_command
from typer.testing import CliRunner

from medlab.basics.files import read_json, sha256_file
from medlab.cli.commands import app
from medlab.core import LESSONS, load_profile
from medlab.course import import_lessons

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

# --- what stands in README.md --------------------------------------------------------------------------------------------


def blocks(text):
    "(language, lines) of each block of code; 'indented' for one that is set in by four spaces."
    found, language, lines, before = [], None, [], ""
    for line in [*text.splitlines(), ""]:
        if language is None and (fence := re.match(r"```(\w*)", line)):
            language, lines = fence[1], []
        elif language not in (None, "indented"):
            if line.startswith("```"):
                found.append((language, lines))
                language = None
            else:
                lines.append(line)
        elif line.startswith("    ") and (language == "indented" or not before.strip()):
            lines = [*lines, line[4:]] if language == "indented" else [line[4:]]
            language = "indented"
        elif language == "indented":
            found.append((language, lines))
            language = None
        before = line
    return found


def commands(text):
    "Each command with what its comment says: the lines of indented and shell blocks, then what is quoted in sentences and comments. Each once."
    lines = [line for language, lines in blocks(text) if language in ("indented", "sh", "bash", "shell", "console") for line in lines if line.strip()]
    found = {}
    for line in lines:
        command, _, comment = re.sub(r"^\$ ", "", line).partition(" #")
        found.setdefault(command.strip(), comment.strip())
    sentences = re.sub(r"(?ms)^```.*?^```|^    [^\n]*$", "", text)
    for quoted in re.findall(r"`((?:medlab|make|pip|python3?|\.venv/bin/\w+)\s[^`]+|[A-Z_]+=[^`]+)`", "\n".join([sentences, *found.values()])):  # a program alone is a name
        found.setdefault(" ".join(quoted.split()), "")
    return found


COMMANDS = commands(README)


def test_commands_are_found_in_blocks_and_in_sentences():
    text = "Do\n\n    make a    # `make h i` too\n    b --c\n\nand `medlab d e` or `medlab`, never `x`.\n\n```python\nf()\n```\n```\n1\n```\n```sh\n$ g\n```\n- item\n    more of the item\n"
    assert commands(text) == {"make a": "`make h i` too", "b --c": "", "g": "", "medlab d e": "", "make h i": ""}
    assert blocks(text)[1:3] == [("python", ["f()"]), ("", ["1"])]
    assert len(COMMANDS) > 15 and "make course" in COMMANDS and "make test" in COMMANDS


# --- the new machine -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory, request):
    "A clone of HEAD in a path with a space, an empty HOME, an empty cache; `do(command)` runs a line of shell there. `smoke_run()`: the suite's own run."
    place = tmp_path_factory.mktemp("new") / "a new place"
    place.mkdir()
    home, cache, clone = place / "home", place / "cache", place / "medlab"
    home.mkdir()
    cloned = subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], capture_output=True, text=True)
    if cloned.returncode:
        pytest.skip(f"this copy of medlab cannot be cloned, so README.md's commands are not run: {cloned.stderr.strip()[:200]}")
    (clone / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    ours = ("MEDLAB_", "OLLAMA_", "HF_", "PYTHON", "GROQ_", "OPENFDA_", "NCBI_", "NHS_", "UV_", "PIP_", "MAKE", "MFLAGS")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    plain |= {"HOME": str(home), "MEDLAB_CACHE_DIR": str(cache), "PYTHONPATH": str(clone), "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}", "COLUMNS": "200"}

    def do(command, cwd=clone, timeout=300, **env):
        done = subprocess.run(["bash", "-c", command], cwd=cwd, env=plain | env, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"`{command}` ended with {done.returncode}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        return done.stdout

    assert do("python -c 'import medlab; print(medlab.__file__)'", place).strip() == str(clone / "medlab" / "__init__.py"), "another medlab would be tested"
    smoke_run = lambda: request.getfixturevalue("smoke_run")[0].path  # noqa: E731
    return SimpleNamespace(place=place, home=home, cache=cache, clone=clone, do=do, smoke_run=smoke_run)


# --- checked -------------------------------------------------------------------------------------------------------------

#: Target of the Makefile to its last command; the ones in SET_UP make or mend the environment first.
EXPANSIONS = {
    "course": ".venv/bin/medlab run --profile cpu", "test": "tools/test.sh", "lab": ".venv/bin/jupyter lab nbs", "ollama": "tools/build_ollama.sh",
    "setup": "python3 tools/setup_env.py",
}
SET_UP = ("course", "test", "lab")


def make_expands(command, new):
    "The target is there and would do what is expected."
    target, *variables = command.split()[1:]
    if shutil.which("make") is None:
        pytest.skip("make is not installed here, so its targets are not checked")
    assert target in EXPANSIONS, f"`{command}`: expected one of {', '.join(EXPANSIONS)}; add what it expands to"
    assert [name for name in variables if not re.fullmatch(r"PROFILE=\w+", name)] == [], f"`{command}`: this test knows PROFILE alone"
    expected = EXPANSIONS[target]
    for variable in variables:
        expected = expected.replace("--profile cpu", f"--profile {variable.partition('=')[2]}")
    lines = new.do(command.replace("make", "make --dry-run", 1)).strip().splitlines()
    assert lines[-1].endswith(expected) and lines[0].endswith(EXPANSIONS["setup"] if target in SET_UP else expected), lines
    script = next((word for word in expected.split() if word.startswith("tools/")), None)
    assert script is None or os.access(new.clone / script, os.R_OK if script.endswith(".py") else os.X_OK), f"{script} cannot be run"


def is_read(command, new=None):
    "The real command line takes the words, the profile is one, and its overrides fit; returns the command's own values."
    words = shlex.split(command)[1:]
    one, context, name = get_command(app), None, "medlab"
    while True:
        context = one.make_context(name, list(words), parent=context)
        if not hasattr(one, "commands"):
            break
        name, one, words = one.resolve_command(context, [*context._protected_args, *context.args])
    import_lessons()
    profile = context.params.get("profile") or "smoke"
    if profile == "mine.yaml":  # "copy one, change it, and give its path"
        shutil.copy(ROOT / "data" / "profiles" / "smoke.yaml", new.clone / profile)
        profile = new.clone / profile
    load_profile(profile, context.params.get("override") or [])
    return context.params


def test_the_command_line_check_can_fail(newcomer):
    for wrong in ("medlab rum", "medlab run --profil cpu", "medlab run --profile cpuu", "medlab collect --limit many", "medlab run -p evaluate.items_per_tsk=4", "medlab bench dat"):
        with pytest.raises(Exception, match="(?i)no such|unknown|valid|did you mean"):
            is_read(wrong, newcomer)


def environment_is_named(command, new):
    "The script is there, is Python that this interpreter reads, and is what `make setup` runs."
    script = new.clone / shlex.split(command)[1]
    compile(script.read_text(encoding="utf-8"), str(script), "exec")
    assert new.do("make --dry-run setup").strip().endswith(command)


def program_is_there(command, new):
    "The program is in the environment and says its version; what it is to open is there."
    program, *words = shlex.split(command)
    assert new.do(f"{program} --version").strip()
    assert all((new.clone / word).exists() for word in words if word not in ("lab",)), command


def pip_prepares_it(command, new):
    "pip reads the constraints and makes the package's metadata with all extras; it is told to install nothing and to ask nobody."
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("pip or setuptools is not installed here, so `pip install` is not checked")
    here = command.replace("path/to/medlab", str(new.clone)).replace(f"-c {new.clone}", f"-c '{new.clone}").replace("constraints.txt", "constraints.txt'")
    assert str(new.clone) in here and "[all]" in here
    said = new.do(f"python -m {here} --dry-run --no-deps --no-build-isolation --disable-pip-version-check", new.place, PIP_NO_INDEX="1")
    assert "Would install medlab-" in said or "already satisfied: medlab[all]" in said, said


def variable_is_read(command, new):
    "Some module of medlab asks for the variable, by the name that README.md gives."
    name = command.partition("=")[0]
    assert any(f'"{name}"' in path.read_text(encoding="utf-8") for path in (new.clone / "medlab").rglob("*.py")), f"no module reads {name}"


# --- executed ------------------------------------------------------------------------------------------------------------


def cleans(command, new):
    kept = new.clone / ".venv" / "bin" / "python"
    for name in ("runs/old", "build", "dist"):
        (new.clone / name).mkdir(parents=True, exist_ok=True)
    new.do(command)
    assert not any((new.clone / name).exists() for name in ("runs", "build", "dist")) and kept.exists()


def copies_lessons(command, new):
    said = new.do(command)
    assert "13_course" in said and sha256_file(new.clone / "FOLDER" / "00_core.ipynb") == sha256_file(new.clone / "nbs" / "00_core.ipynb")
    shutil.rmtree(new.clone / "FOLDER")


def replays(command, new):
    "Nothing was collected before: each source but the one that is in the clone says so, and no connection is opened."
    said = new.do(command, MEDLAB_CACHE_DIR=str(new.place / "another cache"), https_proxy="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    assert re.search(r"starter: collected, [\d,]+ records", said) and len(re.findall(r"^  \w+: skipped", said, re.M)) >= 5, said
    assert "openfda skipped" in said and "is not in the store" in said


def collects(command, new):
    "From two servers of ours, which the run's own profile names: so the command stands as it is."
    given = is_read(command, new)
    with OpenFdaServer(labels(30)) as openfda, PubMedServer([Paper(1000 + number) for number in range(5)]) as pubmed:
        options = {"openfda": {"base_url": openfda.url, "page_size": 10}, "pubmed": {"base_url": pubmed.base, "query": "fever", "per_second": 100}}
        run = new.clone / "runs" / "smoke"
        run.mkdir(parents=True, exist_ok=True)
        profile = yaml.safe_load((new.clone / "data" / "profiles" / "smoke.yaml").read_text(encoding="utf-8"))
        profile.setdefault("steps", {}).setdefault("collect", {})["options"] = options
        (run / "profile.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
        said = new.do(command)
    assert given["source"] == ["openfda", "pubmed"] and re.search(r"openfda: collected, \d+ records", said) and "pubmed: collected, 0 records" in said, said
    first = given["since"].replace("-", "")
    assert f"[{first} TO" in openfda.asked[0].query["search"] and pubmed.asked[0].query["mindate"] == given["since"].replace("-", "/")


def asks_the_installer(command, new):
    "With a stand-in for uv that writes down what it was asked for."
    stand_in = new.place / "stand-in" / "uv"
    stand_in.mkdir(parents=True)
    (stand_in / "__init__.py").touch()
    (stand_in / "__main__.py").write_text("import sys\nprint('asked:', *sys.argv[1:])\n")
    asked = [line for line in new.do(command, PYTHONPATH=f"{new.clone}:{stand_in.parent}").splitlines() if line.startswith("asked: pip install")]
    assert len(asked) == 2 and all("--no-deps" in line for line in asked) and "no-deps.txt" in asked[0] and "gguf==" in asked[1], asked


def reads_an_archive(command, new):
    "With the path replaced, the archive that the variable names is read."
    name, _, path = command.partition("=")
    archive = medquad_zip(new.place / Path(path).name)
    said = new.do(f"medlab collect --source medquad --run '{new.place / 'read'}'", **{name: str(archive)})
    assert "medquad: collected, 32 records" in said, said


def shows_the_data(command, new):
    "With nothing made before: what the page shows is collected, preprocessed and built first."
    assert "data.html" in new.do(command)
    page = (new.clone / "runs" / "smoke" / "data.html").read_text(encoding="utf-8")
    assert "starter" in page and "CC-BY-4.0" in page


def runs_the_course(command, new):
    "The whole road with nothing made before, whatever kernels there are; then again. It ends the same as the other run with its seed."
    kernel = new.place / "jupyter" / "kernels" / "python3" / "kernel.json"  # no lesson may use another Python of that name
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/bin/false"], "display_name": "python3", "language": "python"}))
    said = new.do(command, timeout=1500, JUPYTER_PATH=str(kernel.parents[2]))
    run, other = new.clone / "runs" / "smoke", new.smoke_run()
    assert (run / "report" / "report.html").is_file() and len(list((run / "notebooks").glob("*.ipynb"))) == 14, said[-2000:]
    lessons = re.findall(r"^\s+(\d\d_\w+)\s+(.*?)\s*$", said, re.M)
    assert [name[3:] for name, _ in lessons] == list(LESSONS) and all(took.endswith(" s") for _, took in lessons), lessons
    again = new.do(command)
    assert again.count("unchanged") >= 10, again
    assert any(new.cache.rglob("*")) and not any(path.suffix == ".gguf" for path in new.home.rglob("*")), "the model was kept in HOME, not in the cache"
    # Digests, since pytest looks for the differences of large bytes for hours.
    for place in ("instruct/train.jsonl", "finetune/adapter/adapter_model.safetensors", "quantize/model-q4_k_m.gguf"):
        assert sha256_file(run / place) == sha256_file(other / place), place
    first, second = (read_json(path / "report" / "results.json") for path in (run, other))
    assert first["hashes"] == second["hashes"]
    assert [row for row, same in zip(first["rows"], second["rows"], strict=True) if row != same] == []


def the_bundle_has_it(command, new):
    "On the other machine: tests/test_bundle.py runs the installer there; here, that the bundle's script exists and its shell reads it."
    script = next(word for word in re.findall(r"[\w./-]+", command) if word.endswith((".py", ".sh")))
    if script.endswith("install.py"):
        compile((new.clone / "medlab" / "cli" / "unpack.py").read_text(encoding="utf-8"), script, "exec")
        assert "install.py" in (new.clone / "medlab" / "cli" / "bundle.py").read_text(encoding="utf-8")
    elif script.endswith("gpu_run.sh"):
        subprocess.run(["bash", "-n", str(new.clone / "tools" / "gpu_run.sh")], check=True)
    else:
        assert script.endswith("env.sh")
        is_read(command.partition("&& ")[2], new)


def what_it_prints_is_read(command, new):
    "What `pip freeze` prints is what `--have` reads."
    from medlab.cli.bundle import read_have

    listed = new.place / "freeze.txt"
    listed.write_text("torch==2.11.0+cu130\n-e git+ssh://somewhere\npeft==0.21.0\n")
    assert {"torch", "peft"} <= set(read_have(str(listed)))


def is_answered(command, new):
    "The request as it stands, sent to the app with an engine that answers at once in the place of a run's model."
    from contextlib import nullcontext

    from fastapi.testclient import TestClient

    from medlab.api.models import Models, ServedModel
    from medlab.bench.serve import Instant
    from medlab.contracts.chat import ChatFormat
    from medlab.contracts.engine import Sampling
    from medlab.models import load_spec, obtain
    from medlab.serve import create_app

    _, url, *words = shlex.split(command)
    given = dict(zip(words[::2], words[1::2]))
    assert set(given) == {"-H", "-d"}, f"`{command}`: this test knows -H and -d"
    model = ServedModel("instant", lambda: nullcontext(Instant()), ChatFormat.from_folder(obtain(load_spec("tiny-random"))), Sampling(length=8))
    with TestClient(create_app(Models([model]), log=lambda line: None, keys=[]), client=("127.0.0.1", 1)) as client:
        reply = client.post(url, content=given["-d"], headers=dict([given["-H"].split(": ")]))
    assert reply.status_code == 200 and reply.json()["confidence"], reply.text


#: How a command is dealt with: the first pattern that fits. "executed" runs it as it stands, "checked" asserts what can be known without running it.
RULES = [
    (r"make clean", "executed", cleans),
    (r"make \w+( \w+=\S+)*", "checked", make_expands),
    (r"python3 tools/setup_env\.py", "checked", environment_is_named),
    (r"\.venv/bin/(jupyter lab nbs|pytest)", "checked", program_is_there),
    (r"pip install .*", "checked", pip_prepares_it),
    (r"medlab lessons FOLDER", "executed", copies_lessons),
    (r"medlab collect .*--offline", "executed", replays),
    (r"medlab collect --source .*", "executed", collects),
    (r"medlab setup", "executed", asks_the_installer),
    (r"medlab report --data", "executed, slow", shows_the_data),
    (r"medlab run --profile smoke", "executed, slow", runs_the_course),
    (r"pip freeze", "checked", what_it_prints_is_read),
    (r"curl .*", "executed", is_answered),
    (r"python3 stick/install\.py .*", "checked", the_bundle_has_it),
    (r"\. medlab-here/env\.sh && medlab .*", "checked", the_bundle_has_it),
    (r"bash medlab-here/gpu_run\.sh .*", "checked", the_bundle_has_it),
    (r"(\.venv/bin/)?medlab( .*)?", "checked", is_read),
    (r"MEDLAB_MEDQUAD_ARCHIVE=\S+", "executed", reads_an_archive),
    (r"[A-Z_]+=\S+", "checked", variable_is_read),
]


def rule(command):
    return next(((how, deal) for pattern, how, deal in RULES if re.fullmatch(pattern, command)), ("unknown", None))


def cases():
    for command in COMMANDS:
        how, deal = rule(command)
        yield pytest.param(command, deal, id=f"{how}: {command}", marks=[pytest.mark.slow, pytest.mark.timeout(2400)] if "slow" in how else [])


@pytest.mark.parametrize("command, deal", list(cases()))
def test_command(newcomer, command, deal):
    assert deal, f"README.md has `{command}`, which this test neither executes nor checks: add a rule for it"
    shutil.rmtree(newcomer.clone / "runs", ignore_errors=True)
    deal(command, newcomer)


def test_each_command_is_known_and_most_kinds_are_executed(capsys):
    dealt = {}
    for command in COMMANDS:
        dealt.setdefault(rule(command)[0], []).append(command)
    with capsys.disabled():
        for how, listed in sorted(dealt.items()):
            print(f"\n  {how}: {'; '.join(listed)}", end="")
    assert "unknown" not in dealt, f"no rule for {dealt['unknown']}"
    unused = [pattern for pattern, _, _ in RULES[:-1] if not any(re.fullmatch(pattern, command) for command in COMMANDS)]
    assert unused == [], f"no command of README.md fits {unused}: is the rule still needed?"


# --- what else it shows --------------------------------------------------------------------------------------------------


def test_snippets_of_python_give_what_is_shown(newcomer):
    "Run where a newcomer may be: in the folder above the clone."
    found = blocks(README)
    shown = [(lines, following) for (language, lines), following in zip(found, [*found[1:], ("", [])]) if language == "python"]
    assert shown
    for lines, (language, result) in shown:
        tree = ast.parse("\n".join(lines))
        assert isinstance(tree.body[-1], ast.Expr) and language == "", f"a snippet without a result: {lines[-1]}"
        code = "\n".join([*(ast.unparse(one) for one in tree.body[:-1]), f"print(repr({ast.unparse(tree.body[-1])}))"])
        assert newcomer.do(f"python -c {shlex.quote(code)}", newcomer.place).strip() == "\n".join(result)


def test_each_step_that_is_named_has_its_help():
    "Also those that are named without `medlab` before them."
    listed = re.search(r"Every step is a command too \((.*?)\)", README, re.S)
    names = re.findall(r"`(?:medlab )?(\w+)`", listed[1])
    known = get_command(app).commands
    assert len(names) >= 10 and set(names) <= set(known)
    for name in known:
        shown = CliRunner().invoke(app, [name, "--help"])
        assert shown.exit_code == 0 and "Usage: medlab " + name in " ".join(shown.output.split()), name


def test_what_stands_beside_a_make_target_is_what_it_does(newcomer):
    "'Without make' lists the same commands; continuous integration runs them too."
    named = {comment: command for command, comment in COMMANDS.items() if re.fullmatch(r"make \w+", comment)}
    assert len(named) >= 2
    for target, command in named.items():
        assert newcomer.do(target.replace("make", "make --dry-run")).strip().splitlines()[-1] == command
    ci, suite = ((ROOT / name).read_text(encoding="utf-8") for name in (".ci/run", "tools/test.sh"))
    assert re.search(r"(?m)^\s*make test\b", ci) and re.search(r"(?m)^[^#\n]*\bpytest\b", suite)
    assert re.search(r"(?m)^[^#\n]*(?:make course|medlab run --profile smoke)", ci + suite)
