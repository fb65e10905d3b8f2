"Loaders: the hub in every layout and with every error, GGUF files of other families, memory estimates against measured peaks, folders that need finishing."

import errno
import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from servers.model_hub import ModelHub

from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import read_json, sha256_file
from medlab.loaders import hub as hub_loader
from medlab.loaders.gguf import check_gguf, gguf_field, read_gguf
from medlab.loaders.hub import (
    ExpiredTokenError, HubSource, LicenceNotAcceptedError, NoNetworkError, NoSpaceError, NoSuchModelError, NoTokenError, TokenScopeError, write_from_hub,
)
from medlab.loaders.memory import Shape, count_parameters, memory_needed, settings_that_fit, shape_of
from medlab.models import ModelSpec, get_registry, load_spec, obtain, spec_names

COMMIT = "a" * 40
CLINICAL = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "HIV", "Pt", "h", "##iv", "p", "##t", "is", "febrile", ".", "denies", "pain", "##s"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "A hub on this machine, an empty cache, and no token."
    import huggingface_hub.constants as constants

    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HUGGINGFACE_TOKEN"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ModelHub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.url + "/{repo_id}/resolve/{revision}/{filename}")
        yield running


def spec_of(repo="medlab/tiny", revision=COMMIT, **more):
    return ModelSpec(name="mine", sources=[{"kind": "hub", "repo": repo, "revision": revision}], **more)


@pytest.fixture(scope="session")
def tiny():
    return obtain(load_spec("tiny-random"))


@pytest.fixture
def bert(tmp_path):
    "A BERT in the layout of 2019: a cased vocab.txt, no tokenizer.json; and its main branch, with pickles only."
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(CLINICAL), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)
    good, main = tmp_path / "bert", tmp_path / "bert-main"
    BertForMaskedLM(config).save_pretrained(good)
    (good / "vocab.txt").write_text("\n".join(CLINICAL) + "\n")
    main.mkdir()
    for path in good.iterdir():
        if path.suffix != ".safetensors":
            shutil.copyfile(path, main / path.name)
    (main / "pytorch_model.bin").write_bytes(b"pickle")
    return good, main


@pytest.fixture
def sharded(tmp_path, tiny):
    "A model in two files with an index, and the same weights once more in the author's own layout."
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(folder, max_shard_size="20MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, folder / name)
    (folder / "consolidated.safetensors").write_bytes(b"the same again, in another layout")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return folder


# layouts


def test_a_cased_bert_without_tokenizer_json(hub, bert):
    hub.state.add("emily/bert", bert[0])
    folder = obtain(spec_of("emily/bert"))
    from medlab.loaders.pretrained import open_pretrained, open_tokenizer

    tokenizer = open_tokenizer(folder)
    assert tokenizer.tokenize("Pt is HIV.") == ["Pt", "is", "HIV", "."], "the case of a cased model is lost"
    assert tokenizer("Pt").input_ids == [CLINICAL.index(word) for word in ("[CLS]", "Pt", "[SEP]")]
    assert read_json(folder / "tokenizer_config.json")["model_max_length"] == 64
    model = open_pretrained(folder, device="cpu", num_labels=2)
    assert model(**tokenizer("Pt is febrile.", return_tensors="pt")).logits.shape == (1, 2)


def test_pickles_only_is_refused_and_says_what_to_take(hub, bert):
    hub.state.add("emily/bert", bert[1])
    with pytest.raises(InputError, match="can run code.*commit"):
        obtain(spec_of("emily/bert"))
    assert not any(".bin" in path for _, path, *_ in hub.state.asked)


def test_the_pinned_commit_is_taken_and_not_the_branch(hub, bert):
    hub.state.add("emily/bert", bert[1], "b" * 40)  # main
    hub.state.add("emily/bert", bert[0], COMMIT)
    assert (obtain(spec_of("emily/bert")) / "model.safetensors").is_file()


def test_shards_and_nothing_twice(hub, sharded):
    from transformers import AutoModelForCausalLM

    hub.state.add("medlab/tiny", sharded)
    folder = obtain(spec_of())
    assert not list(folder.glob("consolidated*")) and not list(folder.glob("*.py"))
    assert len(list(folder.glob("model-*.safetensors"))) == len(list(sharded.glob("model-*.safetensors")))
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_branch_is_resolved_once_and_noted(hub, tiny):
    hub.state.add("medlab/tiny", tiny)
    folder = obtain(spec_of(revision="main"))
    assert read_json(folder / "medlab.json")["source"]["commit"] == COMMIT
    asked = len(hub.state.asked)
    assert obtain(spec_of(revision="main")) == folder and len(hub.state.asked) == asked


def test_a_base_model_gets_the_template_of_its_family(hub, tiny, tmp_path):
    from medlab.contracts.chat import ChatFormat

    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    config = read_json(base / "tokenizer_config.json")
    del config["chat_template"]
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    hub.state.add("medlab/base", base)
    with pytest.raises(InputError, match="no chat template"):
        ChatFormat.from_folder(obtain(spec_of("medlab/base")))
    assert ChatFormat.from_folder(obtain(spec_of("medlab/base", family="chatml"))).end_of_turn == "<|im_end|>"
    with pytest.raises(InputError, match="has no <end_of_turn>"):
        obtain(spec_of("medlab/base", family="gemma"))


# broken off, changed on the way, kept


def test_a_broken_download_goes_on_where_it_was(hub, tiny):
    hub.state.add("medlab/tiny", tiny)
    hub.state.cut["model.safetensors"] = 22_000_000  # the library writes pieces of 10 MB
    try:
        folder = obtain(spec_of())
    except MissingError:
        folder = obtain(spec_of())
    assert sha256_file(folder / "model.safetensors") == sha256_file(tiny / "model.safetensors")
    ranges = [asked_range for method, path, _, asked_range in hub.state.asked if method == "GET" and path.endswith("/model.safetensors")]
    assert any(one and int(one.removeprefix("bytes=").split("-")[0]) >= 1_000_000 for one in ranges), f"it began again: {ranges}"


def test_other_bytes_are_fetched_again_and_then_refused(hub, tiny):
    hub.state.add("medlab/tiny", tiny)
    hub.state.wrong["model.safetensors"] = 1
    assert sha256_file(obtain(spec_of()) / "model.safetensors") == sha256_file(tiny / "model.safetensors")
    hub.state.add("medlab/other", tiny)
    hub.state.wrong["model.safetensors"] = 99
    with pytest.raises(InputError, match="model.safetensors does not have the hash"):
        obtain(spec_of("medlab/other"))


def test_the_finished_files_take_their_space_once(hub, tiny):
    hub.state.add("medlab/tiny", tiny)
    assert (obtain(spec_of()) / "model.safetensors").stat().st_nlink >= 2


def test_without_the_hub_a_copy_of_another_program_is_used(hub, tiny, tmp_path, monkeypatch):
    import huggingface_hub.constants as constants
    from huggingface_hub import snapshot_download

    hub.state.add("medlab/tiny", tiny)
    snapshot_download("medlab/tiny", revision=COMMIT, endpoint=hub.url, cache_dir=tmp_path / "hf", token=False)
    hub.state.status = 503
    assert (obtain(spec_of()) / "model.safetensors").is_file()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(NoNetworkError, match="503"):
        obtain(ModelSpec(name="again", sources=spec_of().sources))


# one error for each cause


@pytest.mark.parametrize(("token", "kind", "says"), [
    (None, NoTokenError, "medlab models login"), ("hf_expired_long_ago", ExpiredTokenError, "revoked or expired"),
    ("hf_without_scope", TokenScopeError, "public gated repos"), ("hf_not_accepted", LicenceNotAcceptedError, "accept its licence"), ("hf_reads_all", None, ""),
])
def test_a_gated_model(hub, tiny, monkeypatch, token, kind, says):
    hub.state.add("google/gated", tiny, gated=True)
    monkeypatch.setenv("HF_TOKEN", token or "")
    if kind is None:
        assert (obtain(spec_of("google/gated")) / "model.safetensors").is_file()
        return
    with pytest.raises(kind, match=says) as raised:
        obtain(spec_of("google/gated"))
    assert token is None or token not in str(raised.value), "the token is printed"
    assert "model 'mine'" in str(raised.value)


@pytest.mark.parametrize(("repo", "revision", "token", "kind"), [
    ("medlab/tinny", COMMIT, "hf_reads_all", NoSuchModelError), ("medlab/tinny", COMMIT, None, NoTokenError), ("medlab/tiny", "c" * 40, None, NoSuchModelError),
    ("not a name", COMMIT, None, NoSuchModelError),
])
def test_a_name_that_is_not_there(hub, tiny, monkeypatch, repo, revision, token, kind):
    hub.state.add("medlab/tiny", tiny)
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(kind):
        obtain(spec_of(repo, revision))


def test_no_network(hub, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(NoNetworkError, match="be online once"):
        obtain(spec_of())


def test_no_space_is_said_before_the_first_byte(hub, tiny, monkeypatch):
    hub.state.add("medlab/tiny", tiny)
    monkeypatch.setattr(hub_loader.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**7, 10**7))
    with pytest.raises(NoSpaceError, match="MEDLAB_CACHE_DIR"):
        obtain(spec_of())
    assert not any("/resolve/" in path for _, path, *_ in hub.state.asked)


def test_no_space_in_the_middle(hub, tiny, tmp_path, monkeypatch):
    import huggingface_hub

    hub.state.add("medlab/tiny", tiny)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(NoSpaceError, match="no space left"):
        write_from_hub(HubSource(kind="hub", repo="medlab/tiny", revision=COMMIT), tmp_path)


# logging in

LOGIN = """
import sys, webbrowser
from typer.testing import CliRunner
from medlab.basics.errors import MedlabError
from medlab.cli.models import models_app
browser = sys.argv[1] == "browser"
def get():
    if not browser:
        raise webbrowser.Error
webbrowser.get, webbrowser.open = get, lambda address: print("OPENED", address)
try:
    done = CliRunner().invoke(models_app, ["login", *sys.argv[3:]], input=sys.argv[2] + "\\n", catch_exceptions=False)
    print(done.output)
except MedlabError as error:
    print("ERROR", type(error).__name__, error)
"""


def login(hub, tmp_path, browser, token, *names):
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    for name in ("HF_TOKEN", "HUGGINGFACE_TOKEN"):
        env.pop(name, None)
    done = subprocess.run([sys.executable, "-c", LOGIN, browser, token, *names], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_login_checks_and_keeps_the_token_and_never_prints_it(hub, tmp_path):
    said = login(hub, tmp_path, "browser", "hf_fine_grained", "gemma-2-2b-it")
    assert "logged in as di" in said and "hf_fine_grained" not in said
    assert f"OPENED {hub.url}/settings/tokens" in said and f"OPENED {hub.url}/google/gemma-2-2b-it" in said
    assert (tmp_path / "home" / "token").read_text() == "hf_fine_grained"


@pytest.mark.parametrize(("token", "kind"), [("hf_long_gone", "ExpiredTokenError"), ("hf_without_scope", "TokenScopeError")])
def test_a_bad_token_is_not_kept(hub, tmp_path, token, kind):
    said = login(hub, tmp_path, "no browser", token)
    assert f"ERROR {kind}" in said and token not in said and "OPENED" not in said
    assert not (tmp_path / "home" / "token").exists()


# folders


def test_a_folder_of_ones_own_is_finished_in_the_cache_and_not_in_place(tmp_path, bert, monkeypatch):
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))
    spec = ModelSpec(name="mine", sources=[{"kind": "folder", "path": str(bert[0])}])
    before = sorted(path.name for path in bert[0].iterdir())
    folder = obtain(spec)
    assert folder != bert[0] and (folder / "tokenizer.json").is_file()
    assert sorted(path.name for path in bert[0].iterdir()) == before
    (bert[0] / "vocab.txt").write_text("\n".join(reversed(CLINICAL)) + "\n")
    assert obtain(spec) != folder, "another vocabulary is another model"


# GGUF


def notebook_function(path, *names):
    "Functions that a notebook defines for its own examples."
    import nbformat

    root, space = Path(__file__).parent.parent / "nbs", {}
    cells = [cell.source for cell in nbformat.read(root / path, as_version=4).cells if cell.cell_type == "code"]
    exec("import numpy as np\nwidth = 64\nscratch = small = None\n", space)
    for name in names:
        source = next(source for source in cells if f"def {name}(" in source)
        exec(source.partition("\n\n\nscratch = ")[0], space)
    return [space[name] for name in names]


def test_a_gguf_of_another_family_in_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))
    _, write = notebook_function("loaders/gguf_transformers.ipynb", "qwen_tensors", "write_small_qwen")
    write(tmp_path / "whole.gguf")
    content = (tmp_path / "whole.gguf").read_bytes()
    for number in range(3):
        (tmp_path / f"q.part{number}").write_bytes(content[number * 40_000 : (number + 1) * 40_000 if number < 2 else None])
    (tmp_path / "q.yaml").write_text("name: q\nsources: [{kind: gguf, files: [q.part0, q.part1, q.part2]}]\n")
    spec = load_spec(tmp_path / "q.yaml")
    folder = obtain(spec)
    assert read_json(folder / "config.json")["model_type"] == "qwen2" and "quantization_config" not in read_json(folder / "config.json")
    from medlab.loaders.pretrained import open_tokenizer

    tokenizer = open_tokenizer(folder)
    assert tokenizer.decode(tokenizer("<|im_start|>he said").input_ids, skip_special_tokens=True) == "he said"
    with open(tmp_path / "q.part1", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x77")
    assert obtain(load_spec(tmp_path / "q.yaml")) != folder, "a changed part is another model"
    (tmp_path / "q.part2").unlink()
    with pytest.raises(MissingError, match="q.part2"):
        obtain(load_spec(tmp_path / "q.yaml"))


@pytest.mark.long
def test_gemma_from_four_packages(tmp_path, monkeypatch):
    spec = load_spec("gemma-3-270m")
    if spec.sources[0].paths() == []:
        pytest.skip(f"the packages are not installed: {spec.sources[0].how()}")
    from medlab.contracts.chat import ChatFormat

    chat = ChatFormat.from_folder(obtain(spec))
    assert chat.end_of_turn == "<end_of_turn>" and len(chat.encode("<end_of_turn>")) == 1


# memory


@pytest.mark.parametrize(("name", "parameters"), [
    ("gemma-2-2b-it", 2_614_341_888), ("tinyllama-1.1b-chat", 1_100_048_384), ("mistral-7b-instruct", 7_248_023_552), ("llama3-8b-instruct", 8_030_261_248),
    ("qwen-7b", 7_615_616_512), ("smollm2-135m-instruct", 134_515_008), ("gemma-3-270m", 268_098_176), ("llama3-70b-instruct", 70_553_706_496),
])
def test_parameters_are_those_that_are_published(name, parameters):
    assert count_parameters(load_spec(name).shape)["total"] == pytest.approx(parameters, rel=1e-3)


def test_a_shape_is_what_transformers_builds():
    "Every shape that we describe by hand gives, through shape_of, the number of parameters that transformers allocates on the meta device."
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

    for config in (LlamaConfig(hidden_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=700, vocab_size=5000),
                   Qwen2Config(hidden_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=700, vocab_size=5000,
                               tie_word_embeddings=True),
                   Gemma3TextConfig(hidden_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=64, intermediate_size=700,
                                    vocab_size=5000), GPT2Config(n_embd=256, n_layer=3, n_head=4, vocab_size=5000)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        built = sum(weight.numel() for weight in model.parameters())
        assert count_parameters(shape_of(config.to_dict()))["total"] == pytest.approx(built, rel=0.01), type(config).__name__


MEASURE = """
import sys, threading, time
import psutil, torch
from transformers import LlamaConfig, LlamaForCausalLM
from peft import LoraConfig, get_peft_model
method, batch, length, checkpointing = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
process, peak, done = psutil.Process(), [0], []
def now():
    info = process.memory_info()
    return info.rss - info.shared
def watch():
    while not done:
        peak[0] = max(peak[0], now())
        time.sleep(0.002)
layer = torch.nn.Linear(64, 64)
layer(torch.randn(4, 64)).sum().backward()
torch.optim.AdamW(layer.parameters()).step()
before = now()
model = LlamaForCausalLM(LlamaConfig(vocab_size=8000, hidden_size=512, intermediate_size=1408, num_hidden_layers=6, num_attention_heads=8,
                                     num_key_value_heads=4, tie_word_embeddings=False))
threading.Thread(target=watch, daemon=True).start()
if method == "inference":
    with torch.inference_mode():
        model.generate(torch.randint(3, 8000, (batch, length)), max_new_tokens=2, do_sample=False)
else:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if method == "lora":
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets))
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    model.train()
    for _ in range(2):
        ids = torch.randint(3, 8000, (batch, length))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
done.append(True)
print(peak[0] - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("method", "batch", "length", "checkpointing"), [("inference", 4, 256, False), ("lora", 4, 256, False), ("lora", 4, 256, True)])
def test_the_estimate_is_what_a_process_takes(method, batch, length, checkpointing):
    if not sys.platform.startswith("linux") or importlib.util.find_spec("peft") is None:
        pytest.skip("measures a Linux process that trains with peft")
    done = subprocess.run([sys.executable, "-c", MEASURE, method, str(batch), str(length), str(checkpointing)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shape = Shape(hidden=512, layers=6, heads=8, key_value_heads=4, head_size=64, feed_forward=1408, vocabulary=8000, tied=False)
    estimate = memory_needed(shape, method, batch, length, width=4, checkpointing=checkpointing, plain_attention=True)["total"]
    assert 0.65 < int(done.stdout) / estimate < 1.4, f"measured {int(done.stdout) / 1e6:.0f} MB, estimated {estimate / 1e6:.0f} MB"


def test_settings_that_fit_keep_what_an_optimiser_step_sees():
    shape = load_spec("llama3-8b-instruct").shape
    for memory in (12e9, 16e9, 24e9, 48e9, 80e9):
        found = settings_that_fit(shape, memory, batch=8, length=1024)
        assert found is None or found["batch"] * found["accumulation"] == 8
        if found:
            needed = memory_needed(shape, found["method"], found["batch"], found["length"], checkpointing=found["checkpointing"])["total"]
            assert needed <= 0.9 * memory
    assert settings_that_fit(shape, 80e9)["method"] == "lora" and settings_that_fit(shape, 12e9)["method"] == "qlora"


def test_every_built_in_model_says_what_it_is():
    for name in spec_names():
        spec = load_spec(name)
        assert spec.name == name and spec.license != "unknown" and spec.attribution and spec.shape and spec.description and spec.tags, name
        assert spec.model_type in ("general", "biomedical", "clinical") or spec.family, f"{name}: a model that writes needs the family of its template"
        for source in spec.sources:
            assert source.kind != "hub" or source.pinned or "decides" in spec.note or name == "gemma-3-270m", f"{name} is not pinned and does not say so"
    assert {one.name for one in get_registry().list_models()} >= set(spec_names())


# headers of GGUFs


def header_text(text):
    return struct.pack("<Q", len(text)) + text


def gguf_header(fields=(), tensors=((b"a", (32, 4), 0, 0),), version=3, counts=None):
    "A GGUF of 32-bit tensors: fields as (name, kind, bytes), tensors as (name, shape, kind, offset)."
    made = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(fields) + 1)))
    for name, kind, value in ((b"general.architecture", 8, header_text(b"llama")), *fields):
        made += header_text(name) + struct.pack("<I", kind) + value
    for name, shape, kind, offset in tensors:
        made += header_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return made + bytes(-len(made) % 32) + b"\1" * 2048


TENSOR = (b"a", (32, 4), 0, 0)


@pytest.mark.parametrize("content, says", [
    (gguf_header(version=1), "version 1, expected 2 or 3"), (gguf_header(version=99), "version 99"), (gguf_header(counts=(2**63, 2)), "header cannot be read"),
    (gguf_header(counts=(1, 2**63)), "header cannot be read"), (gguf_header([(b"general.alignment", 4, struct.pack("<I", 0))]), "power of two"),
    (gguf_header([(b"general.alignment", 4, struct.pack("<I", 48))]), "power of two"), (gguf_header([(b"x", 8, struct.pack("<Q", 2**62))]), "header cannot be read"),
    (gguf_header([(b"x", 9, struct.pack("<IQ", 9, 1) * 5000)]), "array of arrays"), (gguf_header([(b"x", 9, struct.pack("<IQ", 4, 2**62))]), "header cannot be read"),
    (gguf_header([(b"x", 99, b"")]), "header cannot be read"), (gguf_header([(b"x", 7, b"\1")] * 2), "'x' comes twice"), (gguf_header([(b"\xff", 7, b"\1")]), "utf-8"),
    (gguf_header(tensors=[TENSOR, TENSOR]), "'a' comes twice"), (gguf_header(tensors=[TENSOR, (b"b", (32, 4), 0, 0)]), "begins at byte 0 of the data, expected 512"),
    (gguf_header(tensors=[TENSOR, (b"b", (32, 4), 0, 1024)]), "begins at byte 1024"), (gguf_header(tensors=[(b"a", (32, 4), 0, 5)]), "begins at byte 5"),
    (gguf_header(tensors=[(b"a", (33, 4), 2, 0)]), "whole blocks of 32"), (gguf_header(tensors=[(b"a", (32, 4), 77, 0)]), "77 is not"),
    (gguf_header(tensors=[(b"a", (2,) * 5, 0, 0)]), "4 dimensions"), (gguf_header(tensors=[(b"a", (2**63, 2**63), 0, 0)]), "cut short"),
    (gguf_header([(b"general.alignment", 8, header_text(b"32"))]), "header cannot be read"),
])
def test_a_header_that_no_reader_takes(tmp_path, content, says):
    (tmp_path / "a.gguf").write_bytes(gguf_header())
    read_gguf(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(InputError, match=f"a.gguf.*{says}"):
        read_gguf(tmp_path / "a.gguf")


def test_a_gguf_cut_anywhere_and_what_is_no_file(tmp_path):
    whole = gguf_header([(b"x", 9, struct.pack("<IQ", 8, 2) + header_text(b"one") + header_text(b"two"))])[:-1536]  # the tensor has 512 bytes
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    for size in range(len(whole)):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(InputError, match="cut.gguf"):
            check_gguf(tmp_path / "cut.gguf")
    for path in (tmp_path, tmp_path / "loop.gguf", tmp_path / ("x" * 300), "a\0b"):
        with pytest.raises(InputError, match="expected a GGUF"):
            check_gguf(path)


def test_a_field_that_is_no_text(tmp_path):
    (tmp_path / "a.gguf").write_bytes(gguf_header([(b"general.license", 8, header_text(b"\xff"))]))
    with pytest.raises(InputError, match="general.license.*UTF-8"):
        gguf_field(read_gguf(tmp_path / "a.gguf"), "general.license")
