"""Resolve data/constraints.txt anew from settings.ini and data/lock.in (needs uv: .venv/bin/python tools/lock.py)."""

import subprocess
import sys
import tempfile
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).parent.parent
config = ConfigParser(delimiters=["="])
config.read(root / "settings.ini", encoding="utf-8")
wanted = " ".join(value for name, value in config["DEFAULT"].items() if name.endswith("requirements")).split()

with tempfile.NamedTemporaryFile("w", suffix=".in") as stream:
    stream.write("\n".join(wanted))
    stream.flush()
    resolved = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--no-header",
         "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", stream.name, str(root / "data" / "lock.in")],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip

head = "# Every version, for pip and uv alike: install with `-c data/constraints.txt`. Made by tools/lock.py; do not edit.\n"
(root / "data" / "constraints.txt").write_text(head + resolved, encoding="utf-8")
print(f"{len(resolved.splitlines())} versions pinned in data/constraints.txt")
