"""Give every lesson its first cell for Google Colab, and its badge: .venv/bin/python tools/colab_cells.py [--check]

The cell installs medlab from settings.ini's git_url, or without one from a wheel (medlab-*.whl) that lies beside the notebook: on PyPI the name
belongs to another project. The badge needs a git_url on github.com, and is left out without one.
"""

import hashlib
import sys
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import urlsplit

import nbformat

root = Path(__file__).resolve().parent.parent
mark = "from medlab.basics.colab import install_lesson"
colab = "https://colab.research.google.com"


def main():
    settings = ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    git_url, branch = (settings["DEFAULT"].get(name, "").strip() for name in ("git_url", "branch"))
    stale = [path for path in sorted((root / "nbs").glob("[0-9][0-9]_*.ipynb")) if bring_up(path, git_url, branch, write="--check" not in sys.argv)]
    if stale and "--check" in sys.argv:
        sys.exit(f"{', '.join(path.name for path in stale)}: the cell for Colab is not what settings.ini asks for; run tools/colab_cells.py")


def bring_up(path, git_url, branch, write=True):
    "Give a lesson its cell and its badge; returns whether anything changed."
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    title = notebook.cells[0]
    heading, _, rest = title.source.partition("\n")
    rest = "\n".join(line for line in rest.splitlines() if colab not in line).strip("\n")
    title.source = "\n\n".join([heading, *badge(git_url, branch, path.name), rest])
    notebook.cells = [cell for cell in notebook.cells if mark not in cell.source]
    notebook.cells.insert(1, nbformat.v4.new_code_cell(install_cell(git_url, branch, path.stem[3:]), id=hashlib.sha256(path.stem.encode()).hexdigest()[:8]))
    new = nbformat.writes(notebook) + "\n"
    if write and new != text:
        path.write_text(new, encoding="utf-8")
    return new != text


def badge(git_url, branch, name):
    address = urlsplit(git_url)
    if address.hostname != "github.com":
        return []
    place = address.path.strip("/").removesuffix(".git")
    return [f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{place}/blob/{branch or 'main'}/nbs/{name})"]


def install_cell(git_url, branch, lesson):
    "The cell's source. It runs before anything is installed."
    if git_url:
        source, check = f'["medlab @ git+{git_url}@{branch or "main"}"]', ""
    else:
        source = 'sorted(glob.glob("medlab-*.whl"))[-1:]'
        check = '\n    if not source:\n        raise FileNotFoundError("put medlab\'s wheel (medlab-*.whl) beside this notebook, and run this cell again")'
    modules = "import subprocess" if git_url else "import glob\n    import subprocess"
    return f"""#| hide
# In Google Colab this installs medlab and, pinned, what this lesson needs. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    {modules}

    source = {source}{check}
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *source], check=True)
    {mark}

    install_lesson("{lesson}")"""


if __name__ == "__main__":
    main()
