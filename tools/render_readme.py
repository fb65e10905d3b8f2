"""Render README.md from nbs/index.ipynb, Quarto not needed: .venv/bin/python tools/render_readme.py [--check]

Markdown cells go over as they are. Code cells are executed; each is shown unless it begins with `#| hide` or `#| echo: false`
or is the parameters cell. Where a cell's last line gives a Markdown object, that is shown too: so every number in README.md
comes from a results file.
"""

import ast
import contextlib
import io
import sys
from pathlib import Path

import nbformat

root = Path(__file__).resolve().parent.parent
readme = root / "README.md"
head = "<!-- Rendered from nbs/index.ipynb by tools/render_readme.py: edit that, not this. -->\n"


def main():
    text = render(nbformat.read(root / "nbs" / "index.ipynb", as_version=4))
    if "--check" not in sys.argv:
        readme.write_text(text, encoding="utf-8")
    elif not readme.exists() or readme.read_text(encoding="utf-8") != text:
        sys.exit("README.md is not what nbs/index.ipynb renders to: run tools/render_readme.py")


def render(notebook):
    namespace, parts = {"__name__": "index"}, []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            result = execute(cell.source, namespace)
            hidden = cell.source.startswith(("#| hide", "#| echo: false")) or "parameters" in cell.metadata.get("tags", [])
            if not hidden:
                parts.append(f"```python\n{cell.source}\n```")
            if hasattr(result, "_repr_markdown_"):
                parts.append(result.data)
            elif result is not None and not hidden:
                parts.append(f"```\n{result!r}\n```")
    return head + "\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def execute(source, namespace):
    "Execute a cell; returns the value of its last line where that is an expression."
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(tree, "index.ipynb", "exec"), namespace)
        return eval(compile(last, "index.ipynb", "eval"), namespace) if last else None


if __name__ == "__main__":
    main()
