"""Change a module in one small place at a time and see whether its tests notice.

What the tests do not notice is a survivor: a place where the code could be wrong and the suite would still be green. A survivor
calls for a better test, or is equivalent (no test could tell it from the original). Run by hand; it is too slow for every commit.

    python tools/mutate.py medlab.evaluate tests/test_statistics.py tests/test_evaluate.py --pytest="-m 'not slow'" --limit 100

Mutants are made in copies of the project in a temporary folder, so the working tree stays as it is. Put fast test files first:
a mutant is done with at its first failing test. The same seed chooses the same mutants.
"""

import argparse
import ast
import difflib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

KINDS = {
    "compare": "a boundary moved (< to <=) or a comparison turned round (< to >=, == to !=, in to not in)",
    "logic": "and for or, an operand of and/or left out, a condition negated, a not left out, isinstance(...) always true",
    "arithmetic": "+ for -, * for /, ** for *, // for /, a minus sign left out",
    "constant": "a number one higher, True for False",
    "statement": "a call, an assignment to a part or with an operator, raise, yield, break or continue left out; return gives None",
}
COMPARED = {
    ast.Lt: ("<=", ">="), ast.LtE: ("<", ">"), ast.Gt: (">=", "<="), ast.GtE: (">", "<"), ast.Eq: ("!=",), ast.NotEq: ("==",),
    ast.Is: ("is not",), ast.IsNot: ("is",), ast.In: ("not in",), ast.NotIn: ("in",),
}  # fmt: skip
COMPUTED = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "/", ast.Mod: "*", ast.Pow: "*", ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
LEFT_OUT = (ast.Raise, ast.Break, ast.Continue, ast.AugAssign, ast.Delete)
IGNORED = shutil.ignore_patterns(".git", ".venv", "runs", "build", "dist", "*.egg-info", "__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints")


class Mutant(NamedTuple):
    "One change: bytes `start` to `end` of the source become `text`."

    start: int
    end: int
    text: str
    kind: str
    line: int


class Source:
    "A module's text, and where its parts lie in it. Offsets of `ast` count bytes."

    def __init__(self, text: str):
        self.text, self.data, self.tree = text, text.encode(), ast.parse(text)
        self.lines = [0]
        for line in self.data.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))

    def span(self, node: ast.AST) -> tuple[int, int]:
        "Where a node begins and ends."
        return self.lines[node.lineno - 1] + node.col_offset, self.lines[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.AST) -> str:
        "A node's text."
        start, end = self.span(node)
        return self.data[start:end].decode()

    def replaced(self, node: ast.AST, text: str, kind: str) -> Mutant:
        "The mutant that has `text` in place of a node."
        return Mutant(*self.span(node), text, kind, node.lineno)

    def between(self, before: ast.AST, after: ast.AST, old: str, new: str, kind: str) -> Mutant | None:
        "The mutant with another operator between two nodes; None when a comment between them hides it."
        start, end = self.span(before)[1], self.span(after)[0]
        found = re.fullmatch(rb"([\s)]*)" + rb"\s+".join(re.escape(word.encode()) for word in old.split()) + rb"([\s(]*)", self.data[start:end])
        if not found:
            return None
        return Mutant(start + len(found[1]), end - len(found[2]), new, kind, self.data[: start + len(found[1])].count(b"\n") + 1)

    def changed(self, mutant: Mutant) -> str:
        "The module's text with a mutant in it."
        return (self.data[: mutant.start] + mutant.text.encode() + self.data[mutant.end :]).decode()


SIGNS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is", ast.IsNot: "is not", ast.In: "in",
    ast.NotIn: "not in", ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**", ast.BitAnd: "&",
    ast.BitOr: "|", ast.And: "and", ast.Or: "or",
}  # fmt: skip


def looked_at(tree: ast.AST) -> Iterator[ast.AST]:
    "The nodes that may be changed: no annotations, no decorators, no f-strings, no imports and nothing under `if TYPE_CHECKING`."
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            waiting += [one for one in (value if isinstance(value, list) else [value])
                        if isinstance(one, ast.AST) and not isinstance(one, (ast.JoinedStr, ast.Import, ast.ImportFrom))]  # fmt: skip


def comparisons(source: Source, node: ast.AST) -> Iterator[Mutant | None]:
    "Boundaries moved, comparisons turned round."
    if isinstance(node, ast.Compare):
        for (before, after), operator in zip(pairwise([node.left, *node.comparators]), node.ops):
            for new in COMPARED[type(operator)]:
                yield source.between(before, after, SIGNS[type(operator)], new, "compare")


def logic(source: Source, node: ast.AST) -> Iterator[Mutant | None]:
    "and for or, operands left out, conditions negated."
    if isinstance(node, ast.BoolOp):
        old = SIGNS[type(node.op)]
        for before, after in pairwise(node.values):
            yield source.between(before, after, old, "or" if old == "and" else "and", "logic")
        for left_out in node.values:
            rest = f" {old} ".join(f"({source.of(one)})" for one in node.values if one is not left_out)
            yield source.replaced(node, f"({rest})", "logic")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield source.replaced(node, f"bool({source.of(node.operand)})", "logic")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
        yield source.replaced(node, "True", "logic")
    tests = [node.test] if isinstance(node, (ast.If, ast.While, ast.IfExp)) else node.ifs if isinstance(node, ast.comprehension) else []
    for test in tests:
        if not isinstance(test, ast.Compare) and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):  # these are negated above
            yield source.replaced(test, f"(not ({source.of(test)}))", "logic")


def arithmetic(source: Source, node: ast.AST) -> Iterator[Mutant | None]:
    "Other operators between numbers, minus signs left out."
    if isinstance(node, ast.BinOp) and type(node.op) in COMPUTED:
        yield source.between(node.left, node.right, SIGNS[type(node.op)], COMPUTED[type(node.op)], "arithmetic")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield source.replaced(node, source.of(node.operand), "arithmetic")
    if isinstance(node, ast.AugAssign) and type(node.op) in COMPUTED:
        yield source.between(node.target, node.value, f"{SIGNS[type(node.op)]}=", f"{COMPUTED[type(node.op)]}=", "arithmetic")


def constants(source: Source, node: ast.AST) -> Iterator[Mutant | None]:
    "Numbers one higher, True for False."
    if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        yield source.replaced(node, str(not node.value if isinstance(node.value, bool) else node.value + 1), "constant")


def statements(source: Source, node: ast.AST) -> Iterator[Mutant | None]:
    "Statements left out; `return` without its value."
    part = isinstance(node, ast.Assign) and any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in node.targets)
    if isinstance(node, LEFT_OUT) or part or (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)):
        yield source.replaced(node, "pass", "statement")
    if isinstance(node, ast.Return) and node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield source.replaced(node.value, "None", "statement")


MAKERS = {"compare": comparisons, "logic": logic, "arithmetic": arithmetic, "constant": constants, "statement": statements}


def mutants(
    text: str,  # a module's source
    kinds: tuple[str, ...] = tuple(KINDS),
    only: tuple[str, ...] = (),  # functions and classes; empty: the whole module
) -> list[Mutant]:  # in the source's order, each one valid Python
    "Every mutant of a module."
    source = Source(text)
    roots = [node for node in source.tree.body if getattr(node, "name", None) in only] if only else [source.tree]
    if missing := set(only) - {getattr(root, "name", None) for root in roots}:
        raise SystemExit(f"got --only {', '.join(sorted(missing))}; expected functions or classes of the module")
    found = [one for root in roots for node in looked_at(root) for kind in kinds for one in MAKERS[kind](source, node) if one]
    return sorted(one for one in dict.fromkeys(found) if is_python(source.changed(one)))


def is_python(text: str) -> bool:
    "Whether a text compiles."
    try:
        compile(text, "mutant", "exec", dont_inherit=True)
        return True
    except SyntaxError:
        return False


def difference(text: str, changed: str) -> list[str]:
    "The lines that differ, marked - and +."
    return [line for line in difflib.unified_diff(text.splitlines(), changed.splitlines(), lineterm="", n=0) if line[:1] in "-+" and line[:3] not in ("---", "+++")]


def cell(text: str, line: int) -> str:
    "The notebook cell from which nbdev exported a line; empty for a module that is written by hand."
    heads = [one for one in text.splitlines()[:line] if one.startswith("# %%")]
    found = re.fullmatch(r"# %% (?:\.\./)*(\S+) #(\w+)", heads[-1]) if heads else None
    return f"cell {found[2]} of {found[1]}" if found else ""


class Tree:
    "A copy of the project in which mutants are tried, one after the other."

    def __init__(self, root: Path, folder: Path, module: str):
        self.root = Path(shutil.copytree(root, folder / "project", ignore=IGNORED, symlinks=True))
        if (root.parent / "shared").exists():  # recorded data beside the project, which some tests read
            (folder / "shared").symlink_to(root.parent / "shared")
        self.file, self.text = self.root / module, (root / module).read_text(encoding="utf-8")
        self.env = {**os.environ, "PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "", "MUTANT": "1"}

    def tried(self, text: str, command: list[str], limit: float) -> tuple[int | None, str]:  # exit status, None for too long; the end of the output
        "Run the tests with `text` as the module."
        self.file.write_text(text, encoding="utf-8")
        for stale in self.file.parent.glob(f"__pycache__/{self.file.stem}.*"):  # a mutant may have the size and the second of the one before it
            stale.unlink()
        process = subprocess.Popen(command, cwd=self.root, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=limit)
            return process.returncode, output[-3000:]
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)  # also what the tests started and left behind
            except ProcessLookupError:
                pass
            process.wait()
            self.file.write_text(self.text, encoding="utf-8")


#: What pytest's exit status says about a mutant: tests failed, or could not even be collected.
KILLED = {1: "killed", 2: "killed", 3: "killed"}


def outcome(status: int | None, output: str) -> str:
    "killed, too slow or survived; a status that says nothing about the mutant ends the program."
    if status is None:
        return "too slow"
    if status == 0:
        return "survived"
    if status < 0 or status in KILLED:
        return "killed"
    raise SystemExit(f"pytest ended with status {status}:\n{output}")


def module_path(root: Path, name: str) -> str:
    "A module's file, given as `medlab.evaluate` or as a path."
    for path in (name, f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__init__.py"):
        if path.endswith(".py") and (root / path).is_file():
            return path
    raise SystemExit(f"got module {name!r}; expected one in {root}, such as medlab.evaluate or medlab/evaluate.py")


def arguments() -> argparse.Namespace:
    "What was asked for."
    kinds = "\n".join(f"  {name:<11} {what}" for name, what in KINDS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"kinds of mutants:\n{kinds}\n\nexit status: 0 when all were found out, 1 when some survived, 2 when the tests fail without any mutant",
    )  # fmt: skip
    parser.add_argument("module", help="the module to change, such as medlab.evaluate or medlab/evaluate.py")
    parser.add_argument("tests", nargs="+", help="test files (or node ids), the fastest first")
    parser.add_argument("--only", default="", metavar="NAME,...", help="change only these functions and classes")
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="KIND,...", help="make only these kinds (default: all)")
    parser.add_argument("--match", default="", metavar="PATTERN", help="change only lines in which this regular expression is found, such as isinstance")
    parser.add_argument("--limit", type=int, metavar="N", help="try a random sample of N mutants (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="mutants tried at the same time, each in a copy of its own (default: 1)")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="for one mutant (default: three times the unchanged run, and 20 s)")
    parser.add_argument("--pytest", default="", metavar="WORDS", help="""more words for pytest, such as --pytest="-m 'not slow'" """)
    parser.add_argument("--list", action="store_true", help="show the mutants and try none")
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent, help=argparse.SUPPRESS)
    return parser.parse_args()


def shown(path: str, text: str, mutant: Mutant) -> str:
    "A mutant for the reader: file, line, cell and the changed lines."
    place = f"{path}:{mutant.line}  {mutant.kind}  {cell(text, mutant.line)}".rstrip()
    return "\n".join([place, *(f"    {line}" for line in difference(text, Source(text).changed(mutant)))])


def main() -> int:
    "Try the mutants and print those that survived."
    asked = arguments()
    root, command = asked.root.resolve(), [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(asked.pytest), *asked.tests]
    path = module_path(root, asked.module)
    if unknown := set(asked.kinds.split(",")) - set(KINDS):
        raise SystemExit(f"got --kinds {', '.join(sorted(unknown))}; expected some of {', '.join(KINDS)}")
    text = (root / path).read_text(encoding="utf-8")
    source, lines = Source(text), text.splitlines()
    every = mutants(text, tuple(asked.kinds.split(",")), tuple(filter(None, asked.only.split(","))))
    every = [one for one in every if re.search(asked.match, lines[one.line - 1])]
    chosen = every if asked.limit is None or asked.limit >= len(every) else sorted(random.Random(asked.seed).sample(every, asked.limit))
    if asked.list:
        print("\n".join(shown(path, text, one) for one in chosen))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: SimpleQueue[Tree] = SimpleQueue()
        for number in range(asked.jobs):
            trees.put(Tree(root, Path(folder) / str(number), path))
        began, tree = time.monotonic(), trees.get()
        status, output = tree.tried(text, command, 3600)
        trees.put(tree)
        whole = time.monotonic() - began
        if status != 0:
            print(f"the tests do not pass without any mutant (status {status}); mend them first:\n{output}", file=sys.stderr)
            return 2
        limit = asked.timeout or 3 * whole * asked.jobs + 20
        print(f"{path}: {len(every)} mutants, trying {len(chosen)}; the tests take {whole:.0f} s unchanged, a mutant is given {limit:.0f} s", flush=True)

        def tried(mutant: Mutant) -> str:
            tree = trees.get()
            try:
                return outcome(*tree.tried(source.changed(mutant), command, limit))
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(asked.jobs) as pool:
            results = []
            for mutant, result in zip(chosen, pool.map(tried, chosen)):
                results.append(result)
                if result == "survived":
                    print(shown(path, text, mutant), flush=True)
                elif sys.stderr.isatty():
                    print(f"{len(results)} of {len(chosen)}", end="\r", file=sys.stderr)
    counts = Counter(results)
    share = f", {1 - counts['survived'] / len(chosen):.1%} found out" if chosen else ""
    print(f"{path}: {counts['killed']} killed, {counts['too slow']} too slow, {counts['survived']} survived of {len(chosen)}{share} "
          f"({time.monotonic() - began:.0f} s, seed {asked.seed})")
    return int(counts["survived"] > 0)


if __name__ == "__main__":
    sys.exit(main())
