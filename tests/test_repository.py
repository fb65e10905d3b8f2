"""The repository keeps its own rules: notebooks clean and valid, modules as exported, imports only to lower rooms."""

import ast
import re
import shutil
import subprocess
import symtable
import sys
from collections import Counter, defaultdict
from pathlib import Path

import nbformat
import pytest

from medlab.basics.files import sha256_file
from medlab.core import LESSONS, direct_imports, find_step, imported_modules

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
LESSON_NOTEBOOKS = [path for path in NOTEBOOKS if path.parent.name == "nbs" and path.stem != "index"]
ROOM_NOTEBOOKS = [path for path in NOTEBOOKS if path.parent.name != "nbs"]
#: The house from the ground up: a module imports only what stands before it. Names with a folder are rooms, the others lessons.
FLOORS = (
    "basics", "contracts", "metrics", "figures", "core", "fetching", "fetch", "sources", "collect", "cleaning", "splitting", "preprocess", "builders",
    "instruct", "loaders", "models", "engines", "quantizing", "training", "finetune", "quantize", "deploy", "api", "serve", "evaluate", "judging", "judge", "report", "bench",
    "course", "cli",
)
#: Rooms of alternatives: one never imports another.
ALTERNATIVES = ("sources", "builders", "loaders", "engines", "training", "api")
#: What the alternatives of a room may share, and the one module that opens them.
SHARED = {"medlab.loaders.llama", "medlab.sources.medquad_tables",
          *(f"medlab.api.{name}" for name in ("bodies", "errors", "events", "guard", "models", "queueing", "rules", "safety", "security", "vectors", "wording"))}
#: In the training room, everything but the backends: `peft` and `unsloth` share it, and never import one another.
SHARED |= {f"medlab.training.{name}" for name in ("settings", "batches", "packing", "lowrank", "adapters", "precision", "tracking", "loop", "task_scores", "forgetting", "advice",
                                                  "estimate")}
OPENS_ITS_NEIGHBOURS = {"medlab.engines.deployment", "medlab.engines.published", "medlab.api.site"}
#: Functions that every alternative of a room must define under the same name.
PROTOCOL = {"build", "router", "answering"}


def label(path):
    return path.relative_to(ROOT / "nbs").as_posix()


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_fourteen_lessons_are_there():
    assert [path.stem[3:] for path in LESSON_NOTEBOOKS] == list(LESSONS)


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


def test_a_directive_stands_at_the_top_of_its_cell():
    "nbdev reads no other one: what follows it is exported as the top says."
    late = [f"{label(path)}: {cell.source[:60]!r}" for path in NOTEBOOKS for cell in code_of(nbformat.read(path, as_version=4))
            if any(line.startswith("#|") for line in cell.source.strip().splitlines()[1:]) and not cell.source.strip().splitlines()[1].startswith("#|")]
    assert not late, late


@pytest.mark.parametrize("path", LESSON_NOTEBOOKS, ids=label)
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
        assert sha256_file(tmp_path / path.relative_to(ROOT)) == sha256_file(path), f"{label(path)} is not clean: run nbdev_clean"
        assert not any(cell.outputs or cell.execution_count for cell in code_of(nbformat.read(path, as_version=4)))


@pytest.mark.parametrize("path", LESSON_NOTEBOOKS + ROOM_NOTEBOOKS, ids=label)
def test_notebook_has_a_title_and_short_cells(path):
    notebook = nbformat.read(path, as_version=4)
    first = notebook.cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and "\n> " in first.source and "TITLE-TO-WRITE" not in first.source
    for cell in code_of(notebook):
        lines = cell.source.splitlines()
        only_a_class = [type(node) for node in ast.parse(cell.source).body] == [ast.ClassDef]
        assert len(lines) <= (60 if only_a_class else 40), f"a cell of {len(lines)} lines: {lines[:2]}"
        assert "import *" not in cell.source


@pytest.mark.parametrize("path", LESSON_NOTEBOOKS, ids=label)
def test_what_a_lesson_recommends_is_linked(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    _, found, reading = text.partition("**Further reading:**")
    assert found, "a lesson ends with further reading"
    for item in re.split(r";\s", reading.strip().rstrip(".")):
        assert re.search(r"\]\(https?://[^\s)]+\)", item), f"no link in: {item}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_links_are_well_formed(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)\s]*)", cell.source):
                if target.startswith("http"):
                    assert re.fullmatch(r"https?://[\w.-]+\.[a-z]{2,}(:\d+)?(/[^\s]*)?", target) and "example." not in target, target
                else:
                    assert target.startswith("#") or (path.parent / target.partition("#")[0]).exists() or (ROOT / target.partition("#")[0]).exists(), target


def global_names(node, inside=False):
    "Names that a piece of code reads and does not bind itself; of a function, those that its body reads."
    table = symtable.symtable(ast.unparse(node), "cell", "exec")
    names = set() if inside else {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()}
    waiting = table.get_children()
    while waiting:
        inner = waiting.pop()
        waiting += inner.get_children()
        names |= {symbol.get_name() for symbol in inner.get_symbols() if symbol.is_global() and symbol.is_referenced()}
    return names


class Bodies:
    "The functions and methods that a notebook has defined so far, each with the global names and the attributes that its body uses."

    def __init__(self):
        self.functions, self.methods = {}, {}

    def define(self, node):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self.functions[node.name] = self.uses(node)
        elif isinstance(node, ast.ClassDef):
            self.functions[node.name] = (set(), {"__init__", "__post_init__", "__enter__", "__exit__", "__init_subclass__"})
            for method in ast.walk(node):
                if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    names, attributes = self.methods.get(method.name, (set(), set()))
                    more = self.uses(method)
                    self.methods[method.name] = (names | more[0], attributes | more[1])

    def uses(self, node):
        "Names that are global in a function, and the attributes that it reads."
        return global_names(node, inside=True), {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}

    def needed_by(self, names, attributes):
        "All global names that running code with these names and attributes may need."
        found, waiting, seen = set(), [(set(names), set(attributes))], set()
        while waiting:
            names, attributes = waiting.pop()
            found |= names
            for key, table in [("function", self.functions), ("method", self.methods)]:
                for name in names if key == "function" else attributes:
                    if name in table and (key, name) not in seen:
                        seen.add((key, name))
                        waiting.append(table[name])
        return found


def run_at_once(tree):
    "The parts of a cell that are executed when it is run: everything but the bodies of functions."
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from node.decorator_list
            yield from node.args.defaults
            yield from (default for default in node.args.kw_defaults if default)
        elif isinstance(node, ast.ClassDef):
            yield from node.decorator_list + node.bases + [part for part in node.body if not isinstance(part, (ast.FunctionDef, ast.ClassDef))]
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


def needed_too_early(cells):
    "For each cell of code what it may need and only a later cell defines."
    trees = [ast.parse(source) for source in cells]
    bound = [{symbol.get_name() for symbol in symtable.symtable(source, "cell", "exec").get_symbols()
              if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()} for source in cells]
    bodies, so_far, early = Bodies(), set(), []
    for place, tree in enumerate(trees):
        so_far |= bound[place]
        for node in tree.body:
            bodies.define(node)
        later = set().union(*bound[place + 1 :]) - so_far
        for part in run_at_once(tree):
            attributes = {node.attr for node in ast.walk(part) if isinstance(node, ast.Attribute)}
            if found := bodies.needed_by(global_names(part), attributes) & later:
                early.append((place, sorted(found)))
    return early


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_no_cell_needs_what_only_a_later_cell_defines(path):
    "On a machine where nothing was made before, such a cell dies of a NameError; with a full cache it may pass for ever."
    cells = [cell.source for cell in code_of(nbformat.read(path, as_version=4))]
    for place, names in needed_too_early(cells):
        pytest.fail(f"{label(path)}: {cells[place].splitlines()[:3]} needs {', '.join(names)}, which a later cell defines")


def test_the_order_test_can_fail():
    define, table = "def obtain():\n    return WRITERS[0]()", "WRITERS = [list]"
    assert needed_too_early([define, "obtain()", table]) == [(1, ["WRITERS"])]
    assert needed_too_early([define, table, "obtain()"]) == []
    hidden = "class Model:\n    def load(self):\n        return helper()"
    assert needed_too_early([hidden, "Model().load()", "def helper(): pass"]) == [(1, ["helper"])]
    assert needed_too_early([hidden, "Model()", "def helper(): pass", "Model().load()"]) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=label)
def test_classes_stand_whole(path):
    "No method is attached to a class from outside of it."
    cells = code_of(nbformat.read(path, as_version=4))
    trees = [ast.parse(cell.source) for cell in cells]
    classes = {node.name for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}
    for tree in trees:
        for node in tree.body:
            targets = [part for target in getattr(node, "targets", []) for part in ast.walk(target)] if isinstance(node, ast.Assign) else []
            attached = [part.attr for part in targets if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id in classes]
            assert not attached, f"{label(path)}: {', '.join(attached)} is attached to its class from outside"


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


def floor_of(module):
    return FLOORS.index(module.split(".")[1])


def modules():
    found = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "medlab").rglob("*.py") if not path.name.startswith("_")]
    return sorted(".".join(path.parts) for path in found)


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_what_stands_below_it(module):
    for name in direct_imports(module):
        parts = name.split(".")
        if len(parts) < 2 or not ROOT.joinpath(*parts).with_suffix(".py").exists() or name == module:
            continue
        if parts[1] != module.split(".")[1]:
            assert floor_of(name) < floor_of(module), f"{module} imports {name}, which stands above it"
            continue
        assert module not in imported_modules(name), f"{module} and {name} import one another"
        if parts[1] in ALTERNATIVES and module not in OPENS_ITS_NEIGHBOURS:
            own_part = name.startswith(f"{module}_")  # such as medquad_tables of medquad
            assert name in SHARED or own_part, f"{module} imports its neighbour {name}"


def test_the_import_test_can_fail():
    assert floor_of("medlab.judge") > floor_of("medlab.evaluate") > floor_of("medlab.api.ask") > floor_of("medlab.deploy")
    assert "medlab.core" in imported_modules("medlab.collect")


@pytest.mark.parametrize("name", LESSONS)
def test_a_step_does_not_import_the_steps_that_made_its_input(name):
    try:
        step = find_step(name)
    except ValueError:
        return  # a lesson without a step
    assert all(isinstance(need, str) for need in step.needs)
    assert not {f"medlab.{need}" for need in step.needs} & imported_modules(f"medlab.{name}")


@pytest.mark.parametrize("name", ["finetune", "quantize", "deploy", "evaluate", "judge", "serve"])
def test_no_step_after_the_data_knows_a_source(name):
    "A comment in a source must not change the key of a model."
    below = imported_modules(f"medlab.{name}")
    assert not [module for module in below if module.split(".")[1] in ("sources", "cleaning", "builders", "splitting", "collect", "preprocess", "instruct")]


@pytest.mark.parametrize("module", ["medlab.api.ask", "medlab.finetune", "medlab.evaluate", "medlab.serve"])
def test_importing_it_loads_no_source(module):
    script = f"import {module}, sys\nprint([name for name in sys.modules if name.startswith('medlab.sources') or name == 'medlab.collect'])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert found.stdout.strip() == "[]"


def defined_names(path):
    return defined_in(ast.parse(path.read_text(encoding="utf-8")))


def defined_in(tree):
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))


def test_each_name_is_defined_once():
    "Except what every alternative of a room must define, and an alternative's own constants."
    places = defaultdict(list)
    for module in modules():
        room = module.split(".")[1]
        for name in set(defined_names(ROOT.joinpath(*module.split(".")).with_suffix(".py"))):
            private = room in ALTERNATIVES and (name.isupper() or name in PROTOCOL)
            if not name.startswith("__") and not private:
                places[name].append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_importing_is_light():
    "No room loads a heavy library before it is used."
    heavy = ["torch", "transformers", "peft", "bitsandbytes", "datasets", "matplotlib", "scipy", "fastapi", "groq", "xllamacpp", "fastcore", "IPython",
             "spacy", "presidio_analyzer", "py3langid", "ray", "selectolax", "pyarrow", "numpy"]
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


def exported(cell):
    "The names that a cell puts into `__all__`."
    return [name for name in defined_in(ast.parse(cell.source)) if not name.startswith("_")] if re.match(r"#\|\s*export\s*\n", cell.source) else []


def test_what_only_its_own_notebook_uses_is_not_in_all():
    "Export such a cell with `#| exporti`. A cell is public when another notebook uses one of its names, or prose names one in backticks."
    books = {path: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    used = Counter(word for book in books.values() for word in {word for cell in code_of(book) for word in re.findall(r"\w+", cell.source)})
    prose = "\n".join([*(cell.source for book in books.values() for cell in book.cells if cell.cell_type == "markdown"), (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")])
    named = {word for quoted in re.findall(r"`([^`\n]+)`", prose) for word in re.findall(r"\w+", quoted)}
    kept = {"unpack"}  # it is carried to another machine, where install.py uses it
    alone = [f"{label(path)}: {', '.join(names)}" for path, book in books.items() if path.stem not in kept for cell in code_of(book)
             if (names := exported(cell)) and "@step(" not in cell.source and not any(used[name] > 1 or name in named for name in names)]
    assert not alone, "\n".join(alone)
