"""A disk that another program fills in the middle of a step: one error that names it, nothing half-written under a final name, and the same command goes on.

All of it is `long`: `pytest -m long tests/test_full_disk.py`. It needs the right to mount a disk in memory.
"""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from medlab.core import Run
from medlab.engines.ollama_server import find_ollama
from medlab.loaders.gguf import check_gguf, read_gguf

pytestmark = pytest.mark.long


@pytest.fixture
def disk(tmp_path):
    "A disk of its own, in memory."
    place = tmp_path / "disk"
    place.mkdir()
    if not shutil.which("mount") or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=500m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no right to mount here: a small disk cannot be made without it")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def there(disk, smoke_run):
    "A copy of the finished smoke run on that disk."
    shutil.copytree(smoke_run[0].path, disk / "run")
    return Run(disk / "run")


def fill(disk):
    "Write until nothing is left; returns the file to remove."
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as stream:
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while True:
                    stream.write(bytes(size))
    return ballast


def filled_in_the_middle(disk, command, begun):
    "Start a command and fill the disk as soon as `begun` says so; returns what the command wrote to stderr, and the file that fills the disk."
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "150"})
    while not begun():
        assert process.poll() is None, f"it ended before the disk could be filled: {process.communicate()}"
        time.sleep(0.005)
    ballast = fill(disk)
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 1 and "Traceback" not in said, said
    return said, ballast


def words(step, run, *parameters):
    return [sys.executable, "-m", "medlab.course", step, "--run", str(run.path), *(part for one in parameters for part in ("-p", one))]


@pytest.mark.parametrize("sign", [".merging-*/published", "model-f16.gguf"])
def test_quantize(disk, there, sign):
    "In the merge and in the quantizing; where it stands is seen by a file of the stage before."
    folder, before = there.path / "quantize", there.manifest("quantize")
    command = words("quantize", there, "quantize.types=[q8_0]", "quantize.adapter=true")
    said, ballast = filled_in_the_middle(disk, command, lambda: not (folder / "manifest.json").exists() and any(folder.glob(sign)))
    assert str(there.path) in said and ("the disk is full" in said or "the disk is nearly full" in said or "not enough disk space" in said), said
    assert there.manifest("quantize") == before, "the finished result is as it was"
    for path in (there.path / ".quantize.partial").glob("[!.]*.gguf"):
        check_gguf(path)
    ballast.unlink()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    made = there.manifest("quantize").outputs
    assert {"model-q8_0.gguf", "adapter.gguf", "base-q8_0.gguf"} <= set(made) and "base-f16.gguf" not in made
    assert made["model-f16.gguf"].sha256 == before.outputs["model-f16.gguf"].sha256
    read_gguf(folder / "model-q8_0.gguf")
    assert not list(folder.glob(".*.tmp")) and not (there.path / ".quantize.partial").exists()


def test_deploy_on_an_ollama(disk, there, monkeypatch):
    "The server keeps its models on that disk; it is full when the weights are sent."
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")  # nothing answers there, so a server of our own is started
    place = find_ollama()
    if place is None or place.host:
        pytest.skip("no Ollama program here: `make ollama` builds one")
    before, blobs = there.manifest("deploy"), there.path / "deploy" / "ollama" / "blobs"
    command = words("deploy", there, "deploy.engine=ollama", "deploy.length=32")
    said, ballast = filled_in_the_middle(disk, command, lambda: not (there.path / "deploy" / "manifest.json").exists() and blobs.exists())
    assert "no space left" in said and "disk" in said, said
    assert there.manifest("deploy") == before
    ballast.unlink()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert there.manifest("deploy").params["length"] == 32
