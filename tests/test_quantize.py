"""The model file: made of the right weights, the same bytes everywhere, and refused when it is broken."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import read_json, remove
from medlab.engines.deployment import model_file
from medlab.engines.hf import HfEngine, load_model
from medlab.training.adapters import add_lora, load_base, save_adapter
from medlab.training.settings import FinetuneParams
from medlab.contracts.chat import ChatFormat
from medlab.contracts.engine import Sampling
from medlab.models import load_spec, obtain
from medlab.quantize import (
    CHECK, check_header, check_quantize_space, find_quantizer, merge, open_gguf, quantize, quantize_gguf, sample_answer, staged, stored_type, to_gguf,
)


@pytest.fixture(scope="module")
def base():
    return obtain(load_spec("tiny-random"))


def test_finished_step(smoke_run, base):
    run, _ = smoke_run
    check, chat = read_json(run.file("quantize", "check.json")), ChatFormat.from_folder(base)
    assert model_file(run).name == "model-q4_k_m.gguf"
    assert check["header"]["pre_tokenizer"] == "smollm" and check["header"]["eos_token_id"] == chat.eos_id
    assert {"q4_k", "q6_k"} <= set(check["header"]["tensors"])
    assert check["bytes"]["model-q4_k_m.gguf"] < 0.6 * check["bytes"]["model-f16.gguf"]
    assert check["answer"]["prompt_tokens"] == len(chat.prompt_ids(CHECK)) and check["answer"]["completion_tokens"] >= 1
    assert 0 < check["weight_error"]["mean"] <= check["weight_error"]["worst"] < 0.15
    remains = [path.name for path in (run.path / "quantize").iterdir() if path.name.startswith(".") and path.name != ".begun"]
    assert remains == []


def test_no_trace_of_this_machine_in_the_files(smoke_run):
    run, _ = smoke_run
    for name in ("model-f16.gguf", "model-q4_k_m.gguf", "merged/config.json", "check.json"):
        content = run.file("quantize", name).read_bytes()
        for trace in (str(run.path), str(Path.home()), str(run.path.parent)):
            assert trace.encode() not in content, f"{name} holds {trace!r}"


def test_merged_computes_what_the_adapter_on_the_16_bit_base_computes(smoke_run, base):
    import torch

    run, _ = smoke_run
    ids, logits = torch.tensor([ChatFormat.from_folder(base).prompt_ids(CHECK)]), []
    for folder, adapter in ((run.file("quantize", "merged"), None), (base, run.file("finetune", "adapter")), (base, None)):
        with torch.no_grad():
            logits.append(load_model(folder, adapter)(ids).logits)
    assert (logits[0] - logits[1]).abs().max() < 0.02 < (logits[0] - logits[2]).abs().max()


def test_an_adapter_that_does_nothing_leaves_the_16_bit_base(base, tmp_path):
    "LoRA begins with B = 0. Merged into a 4-bit base the weights would differ; merged into the 16-bit one they are the base's own."
    import torch
    from safetensors.torch import load_file

    save_adapter(add_lora(load_base(base), FinetuneParams()), tmp_path / "adapter", "tiny-random")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "merged"))
    assert before.keys() == after.keys()
    assert all(after[name].dtype == torch.float16 and torch.equal(weight, after[name]) for name, weight in before.items())


def test_an_adapter_for_another_model_is_refused(smoke_run, base, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(smoke_run[0].file("finetune", "adapter"), tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    narrower = {name: weight[:, :128].contiguous() if "lora_A" in name else weight for name, weight in weights.items()}
    save_file(narrower, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="does not fit the model"):
        merge(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_kill_minus_nine(copied, smoke_run):
    "Killed as soon as the 16-bit GGUF is there; called again it keeps that file and ends with the same bytes, in a folder of another name."
    run, profile = copied
    remove(run.path / "quantize")
    code = f"from medlab.core import open_run; from medlab.quantize import quantize; quantize(*open_run('smoke', {str(run.path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    full = run.path / "quantize" / "model-f16.gguf"
    while not full.exists():
        assert process.poll() is None, "the step ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.manifest("quantize") is None
    written = full.stat().st_mtime_ns
    (run.path / "quantize" / ".model-q4_k_m.gguf.1.tmp").write_bytes(b"remains")

    manifest = quantize(run, profile)
    assert full.stat().st_mtime_ns == written
    assert {name: output.sha256 for name, output in manifest.outputs.items()} == {
        name: output.sha256 for name, output in smoke_run[0].manifest("quantize").outputs.items()
    }
    assert not list((run.path / "quantize").glob(".*.tmp"))


def test_unreadable_ggufs(smoke_run, base, tmp_path):
    chat, whole = ChatFormat.from_folder(base), model_file(smoke_run[0]).read_bytes()
    for name, content, says in (
        ("short", whole[: len(whole) // 2], "cut short"), ("header", whole[:1000], "damaged"),
        ("zeros", bytes(4096), "not a GGUF"), ("empty", b"", "not a GGUF"),
    ):  # fmt: skip
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        for use in (open_gguf, lambda p: quantize_gguf(p, tmp_path / "out.gguf", "q4_k_m"), lambda p: sample_answer(p, chat, 4, tmp_path / "log")):
            with pytest.raises(InputError, match=says):
                use(path)
    assert not (tmp_path / "out.gguf").exists()


def test_a_damaged_file_of_an_earlier_attempt_is_named(copied):
    run, profile = copied
    (run.path / "quantize" / "manifest.json").unlink()
    run.file("quantize", "model-q4_k_m.gguf").unlink()
    full = run.file("quantize", "model-f16.gguf")
    full.write_bytes(full.read_bytes()[:100_000])
    with pytest.raises(InputError, match=r"model-f16\.gguf .*remove it"):
        quantize(run, profile)


def test_a_full_disk_is_said_before_the_work(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000_000))
    with pytest.raises(MedlabError, match="10 MB free, expected 779 MB"):
        check_quantize_space(tmp_path, 270_000_000)


def test_no_quantizer(monkeypatch):
    from importlib import metadata

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("PATH", "")
    assert find_quantizer().name.startswith("llama-quantize")  # the one inside the package
    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(MissingError, match="pip install ik-llama-cpp-python"):
        find_quantizer()


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in program is a shell script")
def test_a_quantizer_that_fails_leaves_nothing(monkeypatch, smoke_run, tmp_path):
    program = tmp_path / "bin" / "llama-quantize"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho half > $2; echo 'out of cheese' >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    assert find_quantizer() == program
    with pytest.raises(MedlabError, match="code 3.*out of cheese"):
        quantize_gguf(smoke_run[0].file("quantize", "model-f16.gguf"), tmp_path / "out.gguf", "q4_k_m")
    assert [path.name for path in tmp_path.iterdir() if "gguf" in path.name] == []


def test_a_folder_without_hard_links_is_copied(monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(1, "not here")

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    monkeypatch.setattr(os, "link", refuse)
    with staged(tmp_path / "model", "name") as folder:
        assert (folder.name, (folder / "config.json").read_text()) == ("name", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# folders as other people's models have them


def changed_copy(base, folder, config=(), tokenizer=(), padded=0):
    "The base model's folder with other entries in its configuration files, and so many more rows in its embedding."
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    (folder / "medlab.json").unlink()
    for name, entries in (("config.json", dict(config)), ("tokenizer_config.json", dict(tokenizer))):
        kept = {key: value for key, value in {**read_json(folder / name), **entries}.items() if value is not None}
        (folder / name).write_text(json.dumps(kept))
    if padded:
        weights = load_file(folder / "model.safetensors")
        rows = weights["model.embed_tokens.weight"]
        weights["model.embed_tokens.weight"] = torch.cat([rows, torch.zeros(padded, rows.shape[1], dtype=rows.dtype)])
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps({**read_json(folder / "config.json"), "vocab_size": len(rows) + padded}))
    return folder


def checked(folder, tmp_path):
    to_gguf(folder, tmp_path / "model.gguf", "changed")
    return check_header(open_gguf(tmp_path / "model.gguf"), ChatFormat.from_folder(folder))


def test_more_rows_in_the_embedding_than_tokens(base, tmp_path):
    "Qwen and Phi pad their vocabulary to a round number."
    header = checked(changed_copy(base, tmp_path / "padded", padded=128), tmp_path)
    assert header["vocabulary"] == ChatFormat.from_folder(base).tokenizer.get_vocab_size() + 128


def test_fewer_rows_than_tokens_are_refused(base, tmp_path):
    from tokenizers import AddedToken, Tokenizer

    folder = changed_copy(base, tmp_path / "extended")
    to_gguf(folder, tmp_path / "model.gguf", "extended")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|new|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(MedlabError, match="number of tokens"):
        check_header(open_gguf(tmp_path / "model.gguf"), ChatFormat.from_folder(folder))


def test_an_end_of_text_that_does_not_end_a_turn(base, tmp_path):
    "Gemma's <eos> beside <end_of_turn>, Llama 3's <|end_of_text|> beside <|eot_id|>: both end an answer."
    folder = changed_copy(base, tmp_path / "eos", tokenizer={"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})
    chat = ChatFormat.from_folder(folder)
    assert checked(folder, tmp_path)["eos_token_id"] == chat.tokenizer.token_to_id("<|endoftext|>") != chat.eos_id


@pytest.mark.parametrize("entries", [{"dtype": None, "torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}, {"dtype": "torch.bfloat16"},
                                     {"dtype": None, "text_config": {"torch_dtype": "bfloat16"}}])
def test_the_type_of_the_weights_under_its_old_and_its_new_name(base, tmp_path, entries):
    assert stored_type(changed_copy(base, tmp_path / "typed", config=entries)) == "bfloat16"


def test_an_old_bfloat16_folder_is_merged_in_bfloat16(base, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = changed_copy(base, tmp_path / "old", config={"dtype": None, "torch_dtype": "bfloat16"})
    weights = {name: weight.to(torch.bfloat16) for name, weight in load_file(folder / "model.safetensors").items()}
    weights["model.norm.weight"][0] = 70_000.0  # fits bfloat16, not float16
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    save_adapter(add_lora(load_base(folder), FinetuneParams()), tmp_path / "adapter", "old")
    (tmp_path / "old" / "generation_config.json").write_text('{"num_beams": 3}')
    merge(folder, tmp_path / "adapter", tmp_path / "merged")
    assert {weight.dtype for weight in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.bfloat16}
    assert not (tmp_path / "merged" / "generation_config.json").exists(), "settings that nobody chose would decide answers"


def test_generation_settings_beside_the_weights_decide_nothing(base, tmp_path):
    folder, answers = changed_copy(base, tmp_path / "with"), []
    for settings in (None, {"no_repeat_ngram_size": 2, "num_beams": 3, "repetition_penalty": 1.9, "do_sample": True, "temperature": 1.5}):
        if settings:
            (folder / "generation_config.json").write_text(json.dumps(settings))
        with HfEngine(folder) as engine:
            answers.append([one.text for one in engine.generate([CHECK], Sampling(length=30))])
    assert answers[0] == answers[1]
