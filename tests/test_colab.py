"Colab: a lesson's first cell installs what the lesson needs, and the lessons run with nothing but the installed wheel."

import json
import os
import runpy
import shutil
import subprocess
import sys
import types
import venv
from importlib import metadata
from pathlib import Path

import nbformat
import pytest

from medlab.basics.colab import COLAB_EXTRAS, install_commands
from medlab.core import LESSONS

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "colab_cells.py"
NOTEBOOKS = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))


def first_cell(path):
    return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")


def test_every_lesson_begins_with_the_cell_that_settings_ini_asks_for():
    subprocess.run([sys.executable, str(TOOL), "--check"], check=True)
    assert list(COLAB_EXTRAS) == list(LESSONS)
    for path, lesson in zip(NOTEBOOKS, LESSONS):
        assert f'install_lesson("{lesson}")' in first_cell(path), path.name


@pytest.mark.parametrize(("git_url", "badge", "source"), [
    ("", None, 'glob("medlab-*.whl")'), ("https://git.host.test/some/where", None, "medlab @ git+https://git.host.test/some/where@main"),
    ("https://github.com/some/where.git", "https://colab.research.google.com/github/some/where/blob/main/nbs/06_finetune.ipynb", "git+https://github.com/some/where.git@main"),
])
def test_badge_and_source_follow_the_address(tmp_path, git_url, badge, source):
    "Another address replaces both; given twice nothing changes."
    bring_up = runpy.run_path(str(TOOL))["bring_up"]
    path = tmp_path / "06_finetune.ipynb"
    shutil.copyfile(ROOT / "nbs" / path.name, path)
    for address in ("https://github.com/an/other", git_url):
        assert bring_up(path, address, "main")
    assert not bring_up(path, git_url, "main")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    title, cell = notebook.cells[0].source, notebook.cells[1].source
    assert source in cell and "an/other" not in title + cell and title.startswith("# Fine-tune") and "\n> " in title
    assert (badge in title) if badge else ("colab" not in title)
    assert len(notebook.cells) == len(nbformat.read(ROOT / "nbs" / path.name, as_version=4).cells)


def in_colab(monkeypatch, cell):
    "Run a cell as Colab would; gives the commands that it ran."
    ran = []
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(subprocess, "run", lambda command, **more: ran.append(command) or subprocess.CompletedProcess(command, 0))
    exec(cell, {})
    return ran


@pytest.mark.parametrize("gpu", [False, True])
def test_the_cell_installs_the_wheel_and_the_pinned_set(tmp_path, monkeypatch, gpu):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if gpu and name == "nvidia-smi" else None)
    with pytest.raises(FileNotFoundError, match="put medlab's wheel"):
        in_colab(monkeypatch, first_cell(NOTEBOOKS[6]))
    (tmp_path / "medlab-0.1.0-py3-none-any.whl").touch()
    wheel, pinned, *others = in_colab(monkeypatch, first_cell(NOTEBOOKS[6]))
    assert wheel[-2:] == ["--no-deps", "medlab-0.1.0-py3-none-any.whl"]
    assert pinned[-1] == f"medlab[data,train]=={metadata.version('medlab')}" and Path(pinned[pinned.index("-c") + 1]).name == "constraints.txt"
    assert any(word.startswith("unsloth==") for command in others for word in command) is gpu
    assert all("==" in word for word in others[0][others[0].index("--no-deps") + 1 :])


def test_elsewhere_the_cell_does_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: pytest.fail("it ran something"))
    for path in NOTEBOOKS:
        exec(first_cell(path), {})


def test_nothing_of_that_name_comes_from_pypi():
    "The name belongs to another project there: medlab is taken as it is installed, at its own version, with its extras."
    for lesson in LESSONS:
        commands = install_commands(lesson, gpu=True)
        named = [word for command in commands for word in command if word.startswith("medlab") and word != "medlab.course"]
        assert len(named) == 1 and named[0].endswith(f"=={metadata.version('medlab')}")


@pytest.mark.long
def test_the_lessons_run_in_an_empty_folder_with_nothing_but_the_wheel(tmp_path):
    "An environment that has the libraries and no clone: the wheel is installed by pip, and every lesson runs at smoke size in a fresh kernel."
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True)
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True, check=True).stdout.strip())
    libraries = next(Path(place) for place in sys.path if place.endswith("site-packages"))
    (site / "libraries.pth").write_text(f"{libraries}\n")  # Colab's own packages; what makes medlab importable from the clone is not followed from here
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MEDLAB_RUN", "PYTHONDONTWRITEBYTECODE")}
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", next(tmp_path.glob("medlab-*.whl"))], check=True, env=environment)
    (tmp_path / "empty").mkdir()
    done = subprocess.run([python, "-m", "medlab.course", "run", "--profile", "smoke", "--run", "kept/here"], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    copies = sorted((tmp_path / "empty" / "kept" / "here" / "notebooks").glob("*.ipynb"))
    assert [path.stem[3:] for path in copies] == list(LESSONS)
    manifest = json.loads((tmp_path / "empty" / "kept" / "here" / "finetune" / "manifest.json").read_text())
    assert manifest["step"] == "finetune" and str(ROOT) not in "".join(path.read_text() for path in copies)
