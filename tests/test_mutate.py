"tools/mutate.py on a project of its own: what it changes, what it finds out, and that it leaves the project as it was."

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "mutate.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("mutate", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(tool, text, **asked):
    return {tool.Source(text).changed(one) for one in tool.mutants(text, **asked)}


@pytest.mark.parametrize("text, mutants", [
    ("x = a < b", {"x = a <= b", "x = a >= b"}), ("x = a is b", {"x = a is not b"}),
    ("x = a  ==  b", {"x = a  !=  b"}),
    ("x = é not in b", {"x = é in b"}),  # offsets count bytes
    ("x = a and b", {"x = a or b", "x = ((a))", "x = ((b))"}),
    ("x = not a", {"x = bool(a)"}),
    ("x = isinstance(a, int)", {"x = True"}),
    ("x = b if a else c", {"x = b if (not (a)) else c"}),
    ("x = (a + b) ** -c", {"x = (a - b) ** -c", "x = (a + b) * -c", "x = (a + b) ** c"}),
    ("x = 0.5, True, 'word'", {"x = 1.5, True, 'word'", "x = 0.5, False, 'word'"}),
    ("x += y", {"x -= y", "pass"}),
    ("a.b = c", {"pass"}),
    ("def f(a: int | None) -> int | None:\n    '''One 1.'''\n    raise E", {"def f(a: int | None) -> int | None:\n    '''One 1.'''\n    pass"}),
    ("@cache(1)\ndef f():\n    return a", {"@cache(1)\ndef f():\n    return None"}),
    ("x = f'{a + 1}'", set()),
])  # fmt: skip
def test_each_construct_has_its_mutants(tool, text, mutants):
    assert changed(tool, text) == mutants


def test_an_operator_behind_a_comment_is_left_alone_and_in_brackets_it_is_found(tool):
    assert changed(tool, "x = (a  # sum\n     + b)") == set()
    assert changed(tool, "x = ((a)\n     + (b))") == {"x = ((a)\n     - (b))"}


def test_kinds_and_functions_are_chosen(tool):
    text = "def f(a):\n    return a + 1\n\n\ndef g(a):\n    return a - 1\n"
    assert changed(tool, text, kinds=("arithmetic",), only=("g",)) == {text.replace("a - 1", "a + 1")}
    with pytest.raises(SystemExit, match="got --only h"):
        tool.mutants(text, only=("h",))


def test_a_line_is_traced_to_its_cell(tool):
    assert tool.cell("# %% ../../nbs/sources/nhs.ipynb #c951184f\na\nb\n# %% ../nbs/x.ipynb #12\nc", 3) == "cell c951184f of nbs/sources/nhs.ipynb"
    assert tool.cell("a\nb", 2) == ""


CALC = '''"Sums."


def grown(a, b):
    while a < 0:
        a += 1
    return a + b


def capped(a):
    return a if a <= 9 else 9
'''


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "a project"
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "__init__.py").write_text("")
    (root / "tiny" / "calc.py").write_text(CALC)
    (root / "test_calc.py").write_text("from tiny.calc import capped, grown\n\n\ndef test_sums():\n    assert grown(2, 2) == 4 and grown(-2, 1) == 1\n    assert capped(20) == 9\n")
    return root


def run(project, *words):
    return subprocess.run([sys.executable, str(TOOL), "tiny.calc", "test_calc.py", "--root", str(project), *words], capture_output=True, text=True, timeout=300)


def test_survivors_are_listed_and_the_project_stays_as_it_was(project):
    done = run(project, "--only", "capped", "--jobs", "2")
    survived = [line.strip() for line in done.stdout.splitlines() if line.startswith("    +")]
    # a <= 9 and a < 9 differ in 9 alone, which gives 9 either way: equivalent. Nothing asks for 10.
    assert survived == ["+    return a if a < 9 else 9", "+    return a if a <= 10 else 9"]
    assert "tiny/calc.py:11  compare" in done.stdout and "3 killed, 0 too slow, 2 survived of 5, 60.0% found out" in done.stdout and done.returncode == 1
    assert (project / "tiny" / "calc.py").read_text() == CALC and not list(project.glob("**/.pytest_cache"))


def test_a_mutant_that_never_ends_is_stopped_and_counts_as_found(project):
    done = run(project, "--only", "grown", "--match", "a [+]= 1", "--kinds", "arithmetic", "--timeout", "10")
    assert "0 killed, 1 too slow, 0 survived of 1, 100.0% found out" in done.stdout and done.returncode == 0


def test_a_sample_is_the_same_for_a_seed(project):
    assert run(project, "--list", "--limit", "4", "--seed", "1").stdout == run(project, "--list", "--limit", "4", "--seed", "1").stdout
    assert run(project, "--list", "--limit", "4", "--seed", "1").stdout != run(project, "--list", "--limit", "4", "--seed", "2").stdout


def test_tests_that_fail_without_a_mutant_are_said(project):
    (project / "test_calc.py").write_text("def test_wrong():\n    assert 0\n")
    done = run(project)
    assert done.returncode == 2 and "do not pass without any mutant" in done.stderr


@pytest.mark.parametrize("words, said", [(["--kinds", "magic"], "got --kinds magic"), (["--only", "nobody"], "got --only nobody")])
def test_what_is_not_there_is_said(project, words, said):
    assert said in run(project, *words).stderr
