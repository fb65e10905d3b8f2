"""Scan notebooks for keys and tokens: python3 tools/scan_secrets.py [notebook or folder ...] (standard library only).

Without an argument, every notebook in nbs/ is scanned. Sources, outputs, tracebacks, attachments and metadata are all read.
What is found is reported by file, cell, place and kind. The secret itself is never printed. Exit code 1 when something was found or a
notebook could not be read.
"""

import ast
import json
import os
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent

# Tokens that are recognized by their form. Nothing of their own alphabet may stand in front, or `task-...` would be an `sk-` key.
FORMS = {
    "Hugging Face token (hf_)": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}",
    "Groq key (gsk_)": r"(?<![A-Za-z0-9])gsk_[A-Za-z0-9]{20,}",
    "Google key (AIza)": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30,}",
    "secret key (sk-)": r"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20,}",
    "bearer token": r"(?i)\bbearer[\s:]+(?=[a-z._~+/=-]*[0-9])[a-z0-9._~+/=-]{16,}",
}
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # a traceback colours the parts of a line, and would cut a token in pieces


def main(words):
    names = key_names(root / "medlab")
    if not names:
        sys.exit("scan_secrets: no SECRET_NAMES in medlab/: without the names of medlab's keys their values cannot be looked for")
    forms, values = forms_of(names), values_of(names, root / ".env")
    found = 0
    for path in notebooks(words or [root / "nbs"]):
        for line in findings(path, forms, values):
            print(f"{shown(path)}, {line}", file=sys.stderr)
            found += 1
    if found:
        sys.exit(f"scan_secrets: {found} found. Take it out of the notebook; a key that was ever pushed must be revoked, too.")


def key_names(package):
    "The names of the keys that medlab reads, taken from its source: every literal that is assigned to SECRET_NAMES."
    names = []
    for path in sorted(Path(package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body if "SECRET_NAMES" in text else []:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            if node_value(node) and any(isinstance(target, ast.Name) and target.id == "SECRET_NAMES" for target in targets):
                names += ast.literal_eval(node.value)
    return names


def node_value(node):
    return isinstance(getattr(node, "value", None), (ast.Tuple, ast.List))


def forms_of(names):
    "Every pattern with its kind; after a key's name, a value is what has 12 characters and more, letters and digits both."
    either = "|".join(map(re.escape, names))
    value = r"(?=[^\s\"']*[0-9])(?=[^\s\"']*[A-Za-z])[A-Za-z0-9_.~+/=-]{12,}"
    between = r"[\"']?\s*\]?\s*(?:[:=,]\s*|\s)[\"']?"  # NAME=..., "NAME": "...", environ["NAME"] = "...", setenv("NAME", "...")
    assigned = rf"(?<![A-Za-z0-9_])(?:{either}){between}(?!(?:{either})\b){value}"
    return {kind: re.compile(pattern) for kind, pattern in {**FORMS, "value of a key": assigned}.items()}


def values_of(names, dotenv):
    "The values that those keys have on this machine, in the environment or in .env; short ones would be found everywhere."
    pairs = dict(os.environ)
    if dotenv.is_file():
        lines = (line.strip().removeprefix("export ").partition("=") for line in dotenv.read_text(encoding="utf-8", errors="replace").splitlines())
        pairs |= {name.strip(): value.strip().strip("\"'") for name, sign, value in lines if sign and value.strip() not in ("", '""')}
    return {name: pairs[name] for name in names if len(pairs.get(name, "")) >= 8}


def notebooks(words):
    for word in words:
        path = Path(word)
        if path.is_dir():
            yield from sorted(found for found in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in found.parts)
        else:
            yield path


def shown(path):
    path = Path(path).resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def findings(path, forms, values):
    "Lines that say in which cell, in which part of it, and what kind; never the secret."
    try:
        notebook = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = list(notebook["cells"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"cannot be read as a notebook: {type(error).__name__}"]
    parts = [("notebook's metadata", notebook.get("metadata"))]
    for number, cell in enumerate(cells):
        parts += [(f"cell {number} ({part})", content) for part, content in cell.items()]
    lines = []
    for place, content in parts:
        texts = [COLOURS.sub("", text) for text in strings(content)]
        kinds = [kind for kind, form in forms.items() if any(form.search(text) for text in texts)]
        kinds += [f"the value that {name} has here" for name, value in values.items() if any(value in text for text in texts)]
        lines += [f"{place}: {kind}" for kind in kinds]
    return lines


def strings(content):
    "Every text in a piece of a notebook. Lists of lines are read as one text; pictures in base64 are left out."
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        if all(isinstance(item, str) for item in content):
            yield "".join(content)
            yield "\n".join(content)  # a traceback's lines carry no line ends
        else:
            for item in content:
                yield from strings(item)
    elif isinstance(content, dict):
        for key, item in content.items():
            yield key
            if not (key.startswith("image/") and key != "image/svg+xml"):
                yield from strings(item)


if __name__ == "__main__":
    main(sys.argv[1:])
