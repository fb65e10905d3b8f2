"""Deploying on a real Ollama and on the embedded llama.cpp: the same prompts, the right choice between them, nothing left running."""

import os
import re
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import read_json, read_jsonl, write_json
from medlab.basics.processes import free_port
from medlab.core import NOT_HERE, Run, find_step, load_profile
from medlab.cli.deploy import deployed_lines
from medlab.deploy import CONVERSATIONS, check_parity, deploy, record_server
from medlab.engines.deployment import DeployParams, check_vocabulary, deployed, license_of, model_file, model_name, model_parameters, open_deployment, planned
from medlab.engines.ollama_server import OllamaEngine, OllamaServer, find_ollama

HELLO = [{"role": "user", "content": "What is aspirin?"}]


@pytest.fixture(scope="module")
def this(smoke_run):
    "What deploying the smoke run's model means."
    return planned(smoke_run[0], DeployParams(), "ollama 0")


@pytest.fixture(scope="module")
def ollama(tmp_path_factory):
    "A real Ollama server with a store of its own."
    place = find_ollama()
    if place is None:
        pytest.skip("no Ollama here: `make ollama` builds one")
    from medlab.engines.ollama_server import OllamaPlace

    binary = place.binary or shutil.which("ollama")
    folder = tmp_path_factory.mktemp("ollama")
    with OllamaServer(OllamaPlace(binary=binary) if binary else place, folder / "models", folder / "ollama.log") as server:
        yield server


@pytest.fixture
def no_ollama(monkeypatch, tmp_path):
    "An environment in which no Ollama can be found."
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))


def parity(server, this, template):
    server.create("medlab-test-parity", this.gguf, template, model_parameters(this.chat, this.sampling), license_of(this.gguf))
    with OllamaEngine(server.host, "medlab-test-parity", this.chat) as engine:
        return check_parity(engine, this.chat)


def test_ollama_renders_what_chatformat_renders(ollama, this):
    rows = parity(ollama, this, this.chat.go_template())
    assert [row["tokens"] for row in rows] == [len(this.chat.prompt_ids(messages)) for messages in CONVERSATIONS.values()]


@pytest.mark.parametrize(
    "pattern, instead",
    [
        (r"assistant\n(\{\{ end \}\}\{\{ end \}\})$", r"assistant\1"),  # a line break lost at the end
        (r"You are a helpful", "You are an unhelpful"),  # another default system message
        (r"\{\{ if eq \$index 0 \}\}.*?\{\{ end \}\}", ""),  # none at all
        (r"<\|im_end\|>", "<|im_end|> "),  # a space
        (r"\{\{ else if eq \$message\.Role \"assistant\" \}\}\{\{ \$message\.Content \}\}", '{{ else if eq $message.Role "assistant" }}'),
        (r"^", "<|im_start|>"),  # two beginnings
        (r".*", "{{ .Prompt }}"),  # the one that Ollama takes when it knows none
    ],
)
def test_a_broken_template_fails_parity(ollama, this, pattern, instead):
    broken = re.sub(pattern, instead, this.chat.go_template(), count=1, flags=re.S)
    assert broken != this.chat.go_template()
    with pytest.raises(MedlabError, match="writes a different prompt"):
        parity(ollama, this, broken)


def test_the_modelfile_makes_the_same_model_by_hand(ollama, smoke_run, this):
    binary = shutil.which("ollama") or find_ollama().binary
    if binary is None:
        pytest.skip("an Ollama server answers, but its program is not here")
    command = [binary, "create", "medlab-test-by-hand", "-f", smoke_run[0].file("deploy", "Modelfile")]
    made = subprocess.run(command, env={**os.environ, "OLLAMA_HOST": ollama.host}, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    by_hand = ollama.client().show("medlab-test-by-hand")
    parity(ollama, this, this.chat.go_template())
    by_us = ollama.client().show("medlab-test-parity")
    assert by_hand.template == by_us.template == this.chat.go_template()
    assert sorted(by_hand.parameters.split("\n")) == sorted(by_us.parameters.split("\n"))
    assert this.weights in by_hand.modelfile
    assert by_hand.license == by_us.license == license_of(this.gguf) != ""


def test_what_is_sent_is_looked_at_first(this, tmp_path):
    whole, four = this.gguf.read_bytes(), b"\x04" + bytes(7)  # a text's length stands before it
    broken = {
        "no GGUF": bytes(1000), "version 0": b"GGUF" + bytes(200), "no tensors": b"GGUF\x03" + bytes(203), "cut short": whole[:-1000], "cut|damaged": whole[:5000],
        "vocabulary": whole.replace(b"user", b"usre", 1), "kind": whole.replace(four + b"gpt2", four + b"bert", 1),
    }
    for what, content in broken.items():
        path = tmp_path / "broken.gguf"
        path.write_bytes(content)
        with pytest.raises(InputError, match="GGUF" if what == "no GGUF" else what) as caught:
            check_vocabulary(path, this.chat)
        assert "again" in str(caught.value)


def test_weights_of_zeros_are_refused(this, tmp_path):
    from medlab.loaders.gguf import read_gguf

    path = tmp_path / "zeros.gguf"
    shutil.copyfile(this.gguf, path)
    tensor = next(tensor for tensor in read_gguf(path).tensors if tensor.name == "token_embd.weight")
    with open(path, "r+b") as stream:
        stream.seek(int(tensor.data_offset))
        stream.write(bytes(int(tensor.n_bytes)))
    with pytest.raises(InputError, match="only zeros"):
        check_vocabulary(path, this.chat)


def test_without_ollama_llama_cpp_stands_in_and_says_so(copied, no_ollama, monkeypatch):
    run, profile = copied
    before = run.manifest("deploy")
    monkeypatch.setenv("MEDLAB_REPLACE", "1")
    manifest = deploy(run, profile)
    assert len(manifest.notes) == 1 and "make ollama" in manifest.notes[0] and "\n" not in manifest.notes[0]
    assert deployed(run).engine == read_json(run.file("deploy", "deployment.json"))["engine"] == "llama_cpp"
    with open_deployment(run, profile) as engine:
        answer = engine.generate([HELLO], deployed(run).sampling.model_copy(update={"length": 4}))[0]
    assert answer.prompt_tokens == len(deployed(run).chat.prompt_ids(HELLO))
    assert deploy(run, profile) == manifest  # still current
    monkeypatch.undo()  # Ollama is back, where there was one
    if any("make ollama" in note for note in before.notes):
        pytest.skip("no Ollama here: `make ollama` builds one")
    assert deploy.finished(run, profile) is None
    again = deploy(run, profile)
    assert again.notes == [] and deployed(run).engine == "ollama"
    assert {name: output.content for name, output in again.outputs.items()} == {name: output.content for name, output in before.outputs.items()}


def test_ollama_that_went_away(copied, no_ollama):
    run, profile = copied
    if deployed(run).engine != "ollama":
        pytest.skip("no Ollama here: `make ollama` builds one")
    assert deploy.finished(run, profile) is None
    with pytest.raises(MissingError, match="medlab deploy"), open_deployment(run, profile):
        pass
    before = run.manifest("deploy")
    with pytest.raises(MissingError, match="ollama was used for the finished result"):
        deploy(run, profile)
    assert run.manifest("deploy") == before


def test_a_result_of_a_vanished_ollama_is_not_replaced_silently(copied, no_ollama, monkeypatch):
    "Also where there is no Ollama to begin with: what the manifest says of the server decides."
    run, profile = copied
    noted = read_json(run.file("deploy", "manifest.json"))
    noted["inputs"] = {**{name: value for name, value in noted["inputs"].items() if name != "llama_cpp"}, "ollama": "a" * 64}
    write_json(run.file("deploy", "manifest.json"), noted)
    before = {path: path.read_bytes() for path in (run.path / "deploy").rglob("*.json")}
    with pytest.raises(MissingError, match="deploy: ollama was used .*make ollama.*--replace"):
        deploy(run, profile)
    assert {path: path.read_bytes() for path in (run.path / "deploy").rglob("*.json")} == before
    monkeypatch.setenv("MEDLAB_REPLACE", "1")
    deploy(run, profile)
    assert deployed(run).engine == "llama_cpp"
    monkeypatch.delenv("MEDLAB_REPLACE")
    assert deploy.finished(run, profile)  # no Ollama then, none now: nothing is lost


def test_the_server_is_recorded(no_ollama, monkeypatch, tmp_path):
    auto, embedded = load_profile("smoke"), load_profile("smoke", ["deploy.engine=llama_cpp"])
    without = record_server(auto)
    assert without["ollama"].startswith(f"{NOT_HERE}: ") and "make ollama" in without["ollama"]
    assert record_server(embedded) == {"llama_cpp": without["llama_cpp"]}  # a choice, nothing is missing
    with pytest.raises(MissingError, match="make ollama"):
        record_server(load_profile("smoke", ["deploy.engine=ollama"]))
    hashes = set()
    for version in ("0.24.0", "0.25.0"):
        program = tmp_path / version / "ollama"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho ollama version is {version}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}/bin{os.pathsep}/usr/bin")
        recorded = record_server(auto)
        assert list(recorded) == ["ollama"]
        hashes.add(recorded["ollama"])
    assert len(hashes) == 2  # another version is another server


def test_a_file_of_another_type_is_deployed(copied, no_ollama, monkeypatch):
    "The deployment takes the file that quantize made, whatever its type."
    run, _ = copied
    monkeypatch.setenv("MEDLAB_REPLACE", "1")
    profile = load_profile("smoke", ["quantize.types=[q8_0]"])
    find_step("deploy")(run, profile)
    assert model_file(run).name == "model-q8_0.gguf" and deployed(run).gguf == model_file(run)
    assert "FROM ../quantize/model-q8_0.gguf" in run.file("deploy", "Modelfile").read_text().splitlines()
    with open_deployment(run, profile) as engine:
        assert engine.generate([HELLO], deployed(run).sampling.model_copy(update={"length": 2}))[0].completion_tokens


def test_a_profile_that_requires_ollama_is_refused_without_one(copied, no_ollama):
    run, _ = copied
    with pytest.raises(MissingError, match="make ollama"):
        deploy(run, load_profile("smoke", ["deploy.engine=ollama"]))


def test_an_answering_server_is_used_and_its_model_checked(copied, ollama, monkeypatch):
    run, profile = copied
    shutil.rmtree(run.path / "deploy")
    monkeypatch.setenv("OLLAMA_HOST", ollama.host.removeprefix("http://"))
    assert deploy(run, profile).notes == []
    name = model_name(run.name)
    assert ollama.has(name) and not (run.path / "deploy" / "ollama").exists() and ollama.show(name).license == license_of(deployed(run).gguf)
    ollama.delete(name)
    sampling = deployed(run).sampling.model_copy(update={"length": 2})
    with open_deployment(run, profile) as engine:  # puts it back
        first = engine.generate([HELLO], sampling)[0]
    ollama.delete(name)
    ollama.create(name, model_file(run, "f16"), "{{ .Prompt }}", {})  # somebody else's model under our name
    with open_deployment(run, profile) as engine:
        assert engine.generate([HELLO], sampling)[0].text == first.text and engine.model != name
    assert ollama.show(name).template == "{{ .Prompt }}"  # which stays as it was
    ollama.delete(engine.model)
    ollama.delete(name)


@pytest.fixture
def on_ollama(copied, ollama, monkeypatch):
    "The copied run, deployed on the server; it is asked anew."
    run, profile = copied
    monkeypatch.setenv("OLLAMA_HOST", ollama.host.removeprefix("http://"))
    for folder in ("deploy", "ledgers"):
        shutil.rmtree(run.path / folder, ignore_errors=True)
    deploy(run, profile)
    yield run
    ollama.delete(deployed(run).model)


def taken_away(server, name, rename):
    "Remove a model from a server, or give it another name."
    if rename:
        server.client().copy(name, f"{name}-renamed")
    server.delete(name)


def after_the_first(server, name, rename, work):
    "The same function, behind whose first call the model is taken away."
    calls = []

    def watched(*given, **named):
        found = work(*given, **named)
        if not calls:
            taken_away(server, name, rename)
        calls.append(given)
        return found

    return watched


@pytest.mark.long
@pytest.mark.parametrize("rename", [False, True], ids=["removed", "renamed"])
@pytest.mark.parametrize("arm", ["zero_shot", "forced_choice_letter"])
def test_an_evaluation_whose_model_is_taken_away_stops_and_goes_on(on_ollama, ollama, monkeypatch, rename, arm):
    "What was answered is kept, the finished result of before stays, and the same command puts the model back."
    import medlab.evaluate as room

    profile, before = load_profile("smoke", ["evaluate.variants=[served]", f"evaluate.arms=[{arm}]", "evaluate.batch=2"]), on_ollama.manifest("evaluate")
    name = "ask_batch" if arm == "zero_shot" else "choose_batch"
    with monkeypatch.context() as patch:
        patch.setattr(room, name, after_the_first(ollama, deployed(on_ollama).model, rename, getattr(room, name)))
        with pytest.raises(MedlabError, match="answered 502.*engine failed"):
            room.evaluate(on_ollama, profile)
    assert on_ollama.manifest("evaluate") == before
    assert any((on_ollama.path / "ledgers").glob("*.jsonl"))
    done = room.evaluate(on_ollama, profile)
    assert not done.incomplete and done.missing == [] and not any("went away" in note for note in done.notes)
    ollama.delete(f"{deployed(on_ollama).model}-renamed")


@pytest.mark.long
@pytest.mark.parametrize("rename", [False, True], ids=["removed", "renamed"])
def test_a_judge_whose_model_is_taken_away_stops_and_goes_on(on_ollama, ollama, monkeypatch, rename):
    from medlab.judge import EngineJudge, judge

    monkeypatch.delenv("GROQ_API_KEY", raising=False)
    monkeypatch.delenv("GROQ_BASE_URL", raising=False)
    profile = load_profile("smoke")
    evaluated = find_step("evaluate")(on_ollama, profile)
    assert not evaluated.incomplete
    shutil.rmtree(on_ollama.path / "judge", ignore_errors=True)
    (on_ollama.path / "ledgers" / "judge.jsonl").unlink(missing_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(EngineJudge, "reply", after_the_first(ollama, deployed(on_ollama).model, rename, EngineJudge.reply))
        first = judge(on_ollama, profile)
    said = [one for one in read_jsonl(on_ollama.file("judge", "judgements.jsonl")) if one["status"] != "scored"]
    assert first.incomplete and said and "medlab deploy" in said[0]["why"] and {one["status"] for one in said[1:]} <= {"skipped"}
    again = judge(on_ollama, profile)
    assert not again.incomplete
    assert all(one["status"] == "scored" for one in read_jsonl(on_ollama.file("judge", "judgements.jsonl")))
    ollama.delete(f"{deployed(on_ollama).model}-renamed")


def test_runs_of_one_name_do_not_take_each_others_model(copied, ollama, monkeypatch, tmp_path):
    first, profile = copied
    monkeypatch.setenv("OLLAMA_HOST", ollama.host.removeprefix("http://"))
    shutil.rmtree(first.path / "deploy")
    deploy(first, profile)
    second = Run(tmp_path / "elsewhere" / first.name)
    shutil.copytree(first.path, second.path)
    name, before = model_name(first.name), ollama.show(model_name(first.name)).parameters
    for length in (48, 32):  # again, too: then under the same name, which is this run's own
        made = deploy(second, load_profile("smoke", [f"deploy.length={length}"]))
        own = deployed(second).model
        assert own != name and own.startswith(name) and own in made.notes[0] and f"ollama rm {name}" in made.notes[0]
        assert f"num_predict                    {length}" in ollama.show(own).parameters and ollama.show(name).parameters == before
        assert deployed_lines(second)[0] == f"talk to it: ollama run {own}"
    with open_deployment(second, profile) as engine:
        assert engine.model == own
    assert len([one for one in ollama.models() if one.startswith(name)]) == 2
    deploy(first, load_profile("smoke", ["deploy.length=40"]))  # the first keeps its name, with new settings
    assert deployed(first).model == name and ollama.show(name).parameters != before
    for one in (own, name):
        ollama.delete(one)


def test_a_deployment_of_older_weights_is_refused(copied):
    run, profile = copied
    manifest = read_json(run.file("quantize", "manifest.json"))
    manifest["outputs"]["model-q4_k_m.gguf"]["sha256"] = "0" * 64
    write_json(run.file("quantize", "manifest.json"), manifest)
    with pytest.raises(MissingError, match="another model"), open_deployment(run, profile):
        pass


def test_equal_weights_give_equal_records_whatever_the_run_is_called(copied, smoke_run):
    run, profile = copied
    other = Run(run.path.with_name("other name"))
    run.path.rename(other.path)
    shutil.rmtree(other.path / "deploy")
    before, after = smoke_run[0].manifest("deploy"), deploy(other, profile)
    assert {name: output.content for name, output in after.outputs.items()} == {name: output.content for name, output in before.outputs.items()}
    assert deployed(other).model != deployed(smoke_run[0]).model
    assert str(other.path) not in "".join((other.path / "deploy" / name).read_text() for name in after.outputs)


def test_names_are_ones_that_ollama_takes():
    names = [model_name(name) for name in ("smoke", "My Run", "my-run", "my run", "über", "…", "a" * 200, "-x", "x.")]
    assert len(set(names)) == len(names) and names[0] == "medlab-smoke"
    assert all(re.fullmatch(r"medlab-[a-z0-9][a-z0-9._-]{0,72}", name) for name in names)


def test_an_answer_must_leave_room_for_a_question(smoke_run):
    with pytest.raises(InputError, match="deploy.length=256"):
        planned(smoke_run[0], DeployParams(context=256, length=256), "ollama 0")
    with pytest.raises(InputError, match="did you mean 'context'"):
        load_profile("smoke", ["deploy.contxt=512"])


PARENT = """
import sys
from medlab.core import NOT_HERE, Run, find_step, load_profile
from medlab.engines.deployment import open_deployment
with open_deployment(Run(sys.argv[1]), load_profile("smoke")) as engine:
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_killed_user_leaves_no_server(copied):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, copied[0].path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline().strip() == "open"
    family = psutil.Process(parent.pid).children(recursive=True)
    assert family or os.environ.get("OLLAMA_HOST")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert not [process for process in psutil.wait_procs(family, timeout=20)[1] if process.status() != psutil.STATUS_ZOMBIE]
