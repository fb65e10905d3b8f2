"""Make or mend the project's environment: python3 tools/setup_env.py (what `make` does first; standard library only).

A venv in .venv, uv inside it, then medlab in editable mode with all extras at the versions of data/constraints.txt, then the
packages that must go in without their dependencies. Done once: a stamp remembers what was installed, and is written last,
so an interrupted set-up is finished by the same command.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

root = Path(__file__).resolve().parent.parent
folder = root / ".venv"
python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
stamp = folder / "medlab-setup.sha256"
pins = root / "data" / "constraints.txt"
described_by = [root / "settings.ini", root / "setup.py", pins, root / "data" / "no-deps.txt"]

# What has compiled code and may have no wheel for a system, and what medlab does without it.
stand_ins = {
    "bitsandbytes": "fine-tuning uses plain LoRA instead of 4-bit QLoRA",
    "ik-llama-cpp-python": "quantizing needs `llama-quantize` on PATH (it comes with llama.cpp)",
    "xllamacpp": "serving and the q4_k_m variant need Ollama",
}


def main():
    if sys.version_info < (3, 11):
        sys.exit(f"medlab needs Python 3.11 or later, this is {sys.version.split()[0]}: run tools/setup_env.py with a newer one")
    wanted = hashlib.sha256(b"\0".join(path.read_bytes() for path in described_by)).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted and python.exists():
        return
    started = time.monotonic()
    print(f"Setting up {folder} (once; about a minute, more on a slow line) ...", flush=True)
    stamp.unlink(missing_ok=True)
    if not works([str(python), "-c", "import sys"]):
        venv.create(folder, with_pip=True, clear=folder.exists())
    if not works([str(python), "-c", "import uv"]):
        run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"])
    missing = install()
    run([str(python), "-m", "medlab.course", "setup", "--quiet"])
    for name in missing:
        print(f"Skipped {name}: no wheel of it for this system; {stand_ins[name]}.")
    stamp.write_text(wanted)
    print(f"Set up in {time.monotonic() - started:.0f} s.", flush=True)


def install():
    "Install everything but the packages without a wheel here; returns their names."
    common = ["-c", str(pins), "-e", f"{root}[all]"]
    if cpu_only() and works(uv("install", "--torch-backend", "cpu", *common), UV_HTTP_RETRIES="0"):
        return []  # PyTorch's own CPU build: 0.2 GB instead of 4
    if works(uv("install", *common)):
        return []
    missing = [name for name in stand_ins if not works(uv("install", "--dry-run", "--no-deps", "--only-binary", ":all:", pinned(name)))]
    overrides = folder / "overrides.txt"
    overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in missing))
    run(uv("install", "--overrides", str(overrides), *common))
    return missing


def cpu_only():
    return sys.platform != "darwin" and shutil.which("nvidia-smi") is None and shutil.which("rocm-smi") is None


def pinned(name):
    return next(line.split(";")[0].strip() for line in pins.read_text().splitlines() if line.startswith(f"{name}=="))


def uv(*words):
    # uv compiles nothing unless told to; bytecode is written on first import, which costs the same and only where needed
    return [str(python), "-m", "uv", "pip", words[0], "--quiet", "--python", str(python), *words[1:]]


def environment(**more):
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | more


def works(command, **more):
    try:
        return subprocess.run(command, capture_output=True, env=environment(**more), cwd=root).returncode == 0
    except OSError:
        return False


def run(command):
    code = subprocess.run(command, env=environment(), cwd=root).returncode
    if code:
        sys.exit(f"setting up failed (exit code {code}) at: {' '.join(command)}\nGive the same command again when the reason above is mended.")


if __name__ == "__main__":
    main()
