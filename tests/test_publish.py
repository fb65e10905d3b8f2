"Publishing: the layout is one that tools load, nothing goes without a yes, and a hub gets exactly what was shown."

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import read_json, write_json
from medlab.basics.processes import free_port
from medlab.cli.publish import publication, send_publication, write_publication
from medlab.contracts.chat import ChatFormat
from medlab.contracts.engine import Sampling
from medlab.engines.hf import HfEngine
from medlab.engines.llama_cpp import LlamaCppEngine

HELLO = [{"role": "user", "content": "What is aspirin?"}]
TWO = Sampling(length=2)


def test_what_is_published_loads_and_answers_as_the_run(smoke_run, tmp_path):
    run, _ = smoke_run
    write_publication(publication(run), tmp_path / "out")
    with HfEngine(tmp_path / "out") as ours, HfEngine(run.file("quantize", "merged")) as theirs:
        assert ours.generate([HELLO], TWO)[0].text == theirs.generate([HELLO], TWO)[0].text
    with HfEngine(tmp_path / "out", adapter=tmp_path / "out" / "adapter") as engine:
        assert engine.generate([HELLO], TWO)[0].completion_tokens
    chat = ChatFormat.from_folder(tmp_path / "out")
    gguf, = (tmp_path / "out").glob("*-Q4_K_M.gguf")
    with LlamaCppEngine(gguf, chat) as engine:
        assert engine.generate([HELLO], TWO)[0].prompt_tokens == len(chat.prompt_ids(HELLO))
    assert (tmp_path / "out" / "template").read_text() == chat.go_template()
    assert json.loads((tmp_path / "out" / "params").read_text())["stop"] == chat.stops
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: ") and run.file("report", "MODEL_CARD.md").read_text().split("---\n", 2)[2].strip() in card
    assert not (tmp_path / "out" / "generation_config.json").exists()
    with pytest.raises(InputError, match="nothing of yours is overwritten"):
        write_publication(publication(run), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        write_publication(publication(run), tmp_path / "file")


def front(text):
    "The data at the top of a card."
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("license, named", [("Apache-2.0", {"license": "apache-2.0"}), ("Gemma Terms of Use", {"license": "gemma"}),
                                            ("Terms of My Clinic", {"license": "other", "license_name": "terms-of-my-clinic"})])
def test_the_hub_knows_the_licence_and_the_base(copied, tmp_path, license, named):
    "The hub refuses a card with a licence that is not on its list, and links a base by its address there."
    run, _ = copied
    spec = tmp_path / "mine.yaml"
    spec.write_text(f"name: mine\nlicense: {license}\nattribution: me\nsources:\n  - {{kind: hub, repo: me/mine, revision: {'a' * 40}}}\n")
    noted = read_json(run.file("quantize", "manifest.json"))
    card = publication(run)["README.md"]
    assert "base_model" not in front(card), "a model that is made on the spot has no address"
    assert {"medlab", "gguf", "medical"} <= set(front(card)["tags"]) and front(card)["model-index"][0]["results"], "what the run's own card says is kept"
    assert not card.split("---\n", 2)[2].lstrip().startswith("---"), "a second block of data would be shown as text"
    write_json(run.file("quantize", "manifest.json"), {**noted, "model": str(spec)})
    told = front(publication(run)["README.md"])
    assert named.items() <= told.items() and told["base_model"] == "me/mine"


def test_what_a_run_has_is_published_and_no_more(copied):
    "A training of all weights leaves no adapter; the 16-bit file goes along where it was asked for."
    run, _ = copied
    assert not any("F16" in name for name in publication(run))
    shutil.rmtree(run.path / "finetune" / "adapter")
    noted = read_json(run.file("quantize", "manifest.json"))
    write_json(run.file("quantize", "manifest.json"), {**noted, "params": {**noted["params"], "types": ["q4_k_m", "f16"]}})
    found = publication(run)
    assert not any(name.startswith("adapter") for name in found) and sum(name.endswith(("-F16.gguf", "-Q4_K_M.gguf")) for name in found) == 2


def test_nothing_without_a_yes(smoke_run, tmp_path):
    command = [sys.executable, "-m", "medlab.cli.commands", "publish", "--run", smoke_run[0].path, "--to", tmp_path / "out"]
    said = subprocess.run([*command], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0 and "nothing was done" in said.stdout and "model.safetensors" in said.stdout
    assert not (tmp_path / "out").exists()
    said = subprocess.run([*command, "--yes"], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0 and (tmp_path / "out" / "README.md").is_file()
    said = subprocess.run([*command[:-1], "hub"], capture_output=True, text=True, timeout=120)
    assert said.returncode == 1 and "expected hub:OWNER/NAME" in said.stderr and "Traceback" not in said.stderr


class Hub(BaseHTTPRequestHandler):
    "As much of the hub's protocol as a commit of small files needs."

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub = self.server
        hub.asked.append((self.path, self.headers.get("authorization")))
        if hub.refuses:
            return self.reply({"error": "You don't have the rights"}, 403)
        if self.path.endswith("/repos/create"):
            hub.private = json.loads(body).get("private", json.loads(body).get("visibility") == "private")
            return self.reply({"url": f"{hub.url}/me/model", "name": "me/model"})
        if "/preupload/" in self.path:
            return self.reply({"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]})
        if self.path.endswith("/validate-yaml"):
            return self.reply({"errors": [], "warnings": []})
        for line in body.splitlines():
            event = json.loads(line)
            if event["key"] == "file":
                hub.files[event["value"]["path"]] = base64.b64decode(event["value"]["content"])
        return self.reply({"success": True, "commitOid": "0" * 40, "commitUrl": f"{hub.url}/me/model/commit/{'0' * 40}", "hookOutput": "", "pullRequestUrl": None})

    def do_GET(self):
        self.reply({"error": "not found"}, 404) if self.server.refuses else self.reply({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def reply(self, content, status=200):
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url, server.files, server.asked, server.refuses = f"http://127.0.0.1:{server.server_port}", {}, [], False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    yield server
    server.shutdown()
    server.server_close()


def content_of(one):
    return one.read_bytes() if isinstance(one, Path) else one.encode()


def test_a_hub_gets_what_was_shown(smoke_run, hub):
    found = publication(smoke_run[0])
    assert send_publication(found, "me/model") == f"{hub.url}/me/model"
    assert hub.files == {name: content_of(one) for name, one in found.items()} and hub.private
    assert all(key == "Bearer hf_" + "x" * 30 for _, key in hub.asked)


def test_a_hub_that_refuses(smoke_run, hub, monkeypatch):
    found = {"README.md": "# A model"}
    hub.refuses = True
    with pytest.raises(MedlabError, match="refused me/model.*may write") as caught:
        send_publication(found, "me/model")
    assert "hf_x" not in str(caught.value)
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        send_publication(found, "not a name")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MedlabError, match="no hub answers"):
        send_publication(found, "me/model")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.delenv("HUGGINGFACE_TOKEN", raising=False)
    with pytest.raises(MissingError, match="HF_TOKEN"):
        send_publication(found, "me/model")
    assert "HF_TOKEN" not in os.environ or not os.environ["HF_TOKEN"]
