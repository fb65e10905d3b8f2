"""The repository keeps its own rules: notebooks clean and valid, modules as exported, imports only to lower rooms."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from medlab.core import LESSONS, direct_imports, imported_modules

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
LESSONS = [path for path in NOTEBOOKS if path.parent.name == "nbs" and path.stem != "index"]
ROOM_NOTEBOOKS = [path for path in NOTEBOOKS if path.parent.name != "nbs"]
#: Where a sub-package stands among the rooms: above the first, below the second.
BETWEEN = {"sources": ("fetch", "collect"), "cleaning": ("collect", "preprocess"), "builders": ("preprocess", "instruct"), "engines": ("models", "finetune"), "api": ("deploy", "serve"),
           "bench": ("report", "course")}


def label(path):
    return path.relative_to(ROOT / "nbs").as_posix()


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_fourteen_lessons_are_there():
    assert [path.stem[3:] for path in LESSONS] == list(LESSONS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_notebook_is_valid(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {"display_name": "python3", "language": "python", "name": "python3"}
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1, "papermill needs exactly one cell tagged `parameters`"
    for cell in notebook.cells:
        assert set(cell.metadata.get("tags", [])) <= {"parameters"}
    for node in ast.walk(ast.parse(tagged[0].source)):
        if isinstance(node, ast.Assign):
            ast.literal_eval(node.value)  # plain literals only


@pytest.mark.parametrize("path", LESSONS, ids=label)
def test_lesson_takes_the_runners_parameters(path):
    tagged = next(cell for cell in code_of(nbformat.read(path, as_version=4)) if "parameters" in cell.metadata.get("tags", []))
    names = {target.id: ast.literal_eval(node.value) for node in ast.parse(tagged.source).body if isinstance(node, ast.Assign) for target in node.targets}
    assert names.get("profile") == "smoke" and names.get("run_dir") == ""


def test_notebooks_are_clean(tmp_path):
    "nbdev_clean leaves every notebook as it is: no outputs, no stray metadata."
    shutil.copy(ROOT / "settings.ini", tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    subprocess.run([sys.executable, "-c", "from nbdev.clean import nbdev_clean; nbdev_clean()"], cwd=tmp_path, check=True)
    for path in NOTEBOOKS:
        cleaned = (tmp_path / path.relative_to(ROOT)).read_bytes()
        assert cleaned == path.read_bytes(), f"{label(path)} is not clean: run nbdev_clean"
        assert not any(cell.outputs or cell.execution_count for cell in code_of(nbformat.read(path, as_version=4)))


@pytest.mark.parametrize("path", LESSONS + ROOM_NOTEBOOKS, ids=label)
def test_notebook_has_a_lessons_shape(path):
    notebook = nbformat.read(path, as_version=4)
    low, high = (30, 110) if path in LESSONS else (15, 50)
    assert low <= len(notebook.cells) <= high, f"{len(notebook.cells)} cells"
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and "\n> " in first.source
    for cell in code_of(notebook):
        lines = cell.source.splitlines()
        assert len(lines) <= 40, f"a cell of {len(lines)} lines: {lines[0]}"
        assert "import *" not in cell.source


def test_modules_are_what_the_notebooks_export(tmp_path):
    "Exported into an empty folder, the notebooks give medlab/ to the byte, and nothing is there that they do not give."
    shutil.copy(ROOT / "settings.ini", tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (tmp_path / "medlab").mkdir()
    subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export()"], cwd=tmp_path, check=True)
    exported = {path.relative_to(tmp_path): path.read_text() for path in (tmp_path / "medlab").rglob("*.py")}
    committed = {path.relative_to(ROOT): path.read_text() for path in (ROOT / "medlab").rglob("*.py")}
    assert sorted(exported) == sorted(committed)
    for name, text in exported.items():
        assert text == committed[name], f"{name} differs from its notebook: run nbdev_export"


def room_of(module):
    "A module's place in the house, lowest first; sub-packages stand between two lessons."
    _, name, *rest = module.split(".")
    return (LESSONS.index(BETWEEN[name][0]) + 0.5) if name in BETWEEN else LESSONS.index(name)


def modules():
    found = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "medlab").rglob("*.py") if not path.name.startswith("_")]
    return sorted(".".join(path.parts) for path in found)


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_lower_rooms(module):
    for name in direct_imports(module):
        parts = name.split(".")
        if len(parts) < 2 or not (ROOT.joinpath(*parts).with_suffix(".py").exists()):
            continue
        if parts[1] in BETWEEN and parts[1] == module.split(".")[1]:
            # sources, engines, endpoints and builders are alternatives; the tools of cleaning and of measuring stand on one another, never in a circle
            assert parts[2] == "guard" or parts[1] in ("cleaning", "bench"), f"{module} imports its neighbour {name}"
            assert name != module and module not in imported_modules(name), f"{module} and {name} import one another"
        elif name != module:
            assert room_of(name) < room_of(module), f"{module} imports {name}, which stands above it"


def test_the_import_test_can_fail():
    assert room_of("medlab.judge") > room_of("medlab.evaluate") > room_of("medlab.api.ask") > room_of("medlab.deploy")
    assert "medlab.core" in imported_modules("medlab.collect")


def test_importing_is_light():
    "No room loads a heavy library before it is used."
    heavy = ["torch", "transformers", "peft", "bitsandbytes", "datasets", "matplotlib", "scipy", "fastapi", "groq", "xllamacpp", "fastcore", "IPython",
             "spacy", "presidio_analyzer", "py3langid", "ray", "selectolax", "pyarrow"]
    for statement in ("import medlab", "; ".join(f"import {module}" for module in modules())):
        script = f"{statement}\nimport sys\nprint([name for name in {heavy} if name in sys.modules])"
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
        assert found.stdout.strip() == "[]", f"`{statement[:60]}` loads {found.stdout}"


def test_the_ten_packages_are_declared():
    declared = (ROOT / "settings.ini").read_text() + (ROOT / "data" / "no-deps.txt").read_text()
    for name in "jupyterlab papermill nbdev transformers unsloth peft bitsandbytes datasets groq matplotlib".split():
        assert re.search(rf"(^|\s){name}(\s|==|$)", declared, re.M), name


def test_readme_is_rendered_from_index():
    subprocess.run([sys.executable, str(ROOT / "tools" / "render_readme.py"), "--check"], check=True)


def tracked_files():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git clone: what is committed cannot be listed")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_nothing_secret_and_no_machine_path_is_committed():
    forbidden = re.compile(r"hf_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{20,}|AIza[0-9A-Za-z_-]{30,}|/home/[a-z]+/|" + re.escape(str(ROOT.parent)) + "/")
    for path in tracked_files():
        text = path.read_text(encoding="utf-8", errors="ignore")
        assert not (found := forbidden.search(text)), f"{path.relative_to(ROOT)}: {found.group()}"
