"""The model file: made of the right weights, the same bytes everywhere, and refused when it is broken."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from medlab.api.models import Models, beside_models
from medlab.api.site import base_and_tuned
from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import read_json, remove
from medlab.deploy import deploy
from medlab.engines.deployment import model_file, open_base_and_tuned
from medlab.engines.hf import HfEngine, load_model
from medlab.engines.llama_cpp import LlamaCppEngine, at_strength
from medlab.evaluate import find_variant
from medlab.training.adapters import add_lora, load_base, save_adapter
from medlab.training.settings import FinetuneParams
from medlab.contracts.chat import ChatFormat
from medlab.contracts.engine import Sampling
from medlab.loaders.gguf import read_gguf
from medlab.models import load_spec, obtain
from medlab.core import load_profile
from medlab.quantize import CHECK, QuantizeParams, check_header, check_quantize_space, quantize, sample_answer
from medlab.serve import create_app
from medlab.quantizing import converter
from medlab.quantizing.conversion import check_convertible, staged, to_gguf
from medlab.quantizing.divergence import check_bounds, measure, measured_texts
from medlab.quantizing.merging import merge, stored_type
from medlab.quantizing.types import FILE_TYPES, find_quantizer, quantize_gguf, takes_importance


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
    one = check["types"]["q4_k_m"]
    assert one["file"] == check["file"] and one["measured"]["positions"] == QuantizeParams().check_positions and one["fell_back"]["tensors"] == 0
    kl = one["measured"]["kl"]
    choices = one["measured"]["choices"]
    assert choices["n"] >= 3 and choices["changed"] == len(choices["items"]) and choices["low"] <= choices["share"] <= choices["high"]
    assert 0 < kl["median"] <= kl["p99"] <= kl["max"] and kl["low"] <= kl["mean"] <= kl["high"] < 0.5 and check["f16"]["kl"]["max"] == 0
    assert set(read_json(run.file("quantize", "speed.json"))["q4_k_m"]) == {"load_seconds", "tokens_per_second", "library_load_seconds"}
    assert 0 < check["weight_error"]["mean"] <= check["weight_error"]["worst"] < 0.15 and check["importance_matrix"]
    remains = [path.name for path in (run.path / "quantize").iterdir() if path.name.startswith(".") and path.name != ".begun"]
    assert remains == []


def test_no_trace_of_this_machine_in_the_files(smoke_run):
    run, _ = smoke_run
    for name in ("model-f16.gguf", "model-q4_k_m.gguf", "merged/config.json", "check.json"):
        content = run.file("quantize", name).read_bytes()
        for trace in (str(run.path), str(Path.home()), str(run.path.parent)):
            assert trace.encode() not in content, f"{name} holds {trace!r}"


def test_merged_computes_what_was_trained(smoke_run, base):
    "The smoke run trains beside NF4, so the merged weights are the NF4 ones written out: equal to base and adapter up to rounding in 16 bits, which is at most 0.05 here."
    import torch

    run, _ = smoke_run
    merged_into = read_json(run.file("quantize", "check.json"))["merge"]
    assert merged_into["base"] == "dequantized" and merged_into["trained_in"] == "nf4"
    assert merged_into["figures"]["dequantized"]["kl"]["mean"] < merged_into["figures"]["published"]["kl"]["mean"]
    ids, logits = torch.tensor([ChatFormat.from_folder(base).prompt_ids(CHECK)]), []
    adapter = run.file("finetune", "adapter")
    for folder, lora, four_bit in ((run.file("quantize", "merged"), None, False), (base, adapter, True), (base, adapter, False), (base, None, False)):
        with torch.no_grad():
            logits.append(load_model(folder, lora, four_bit)(ids).logits)
    assert (logits[0] - logits[1]).abs().max() < 0.05 < 0.5 < min((logits[0] - other).abs().max() for other in logits[2:])


def test_a_merge_file_by_file_needs_no_more_than_one_file(base, tmp_path):
    "Weights in several files come out in the same files, with the index beside them, and load as a whole."
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    save_adapter(add_lora(load_base(base), FinetuneParams()), tmp_path / "adapter", "tiny-random")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float16).save_pretrained(tmp_path / "sharded", max_shard_size="5MB")
    for path in base.iterdir():
        if path.suffix != ".safetensors" and path.name != "medlab.json":
            shutil.copyfile(path, tmp_path / "sharded" / path.name)
    merge(tmp_path / "sharded", tmp_path / "adapter", tmp_path / "merged")
    names = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors*"))
    assert len(names) > 2 and sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors*")) == names
    merged = {name: weight for path in (tmp_path / "merged").glob("*.safetensors") for name, weight in load_file(path).items()}
    whole = load_file(base / "model.safetensors")
    assert merged.keys() == whole.keys() and all(torch.equal(weight, merged[name]) for name, weight in whole.items())
    to_gguf(tmp_path / "merged", tmp_path / "model.gguf", "sharded")


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


def adapter_variants(matrices):
    "Adapters that are not what they should be: name, the matrices, changes to the configuration, and what is said."
    a, b = (next(name for name in sorted(matrices) if letter in name) for letter in ("lora_A", "lora_B"))
    without = {letter: {name: matrix for name, matrix in matrices.items() if name != gone} for letter, gone in (("A", a), ("B", b))}
    return [
        ("no A", without["A"], {}, "expected A"), ("no B", without["B"], {}, "expected A"), ("other rank", {**matrices, b: matrices[b][:, :3].contiguous()}, {}, "expected A"),
        ("one dimension", {**matrices, a: matrices[a][0].clone()}, {}, "expected A"), ("NaN", {**matrices, a: matrices[a] * float("nan")}, {}, "not finite"),
        ("too few rows", {**matrices, b: matrices[b][:7].clone()}, {}, "does not fit the model"), ("columns", {**matrices, a: matrices[a][:, :7].clone()}, {}, "does not fit the model"),
        ("layer", {name.replace("layers.0", "layers.9"): matrix for name, matrix in matrices.items()}, {}, "does not fit the model"),
        ("alpha", matrices, {"lora_alpha": None}, "lora_alpha is None"), ("alpha as text", matrices, {"lora_alpha": "16"}, "lora_alpha is '16'"),
        ("kind", matrices, {"peft_type": "LOHA"}, "another kind than LoRA"), ("base changed", matrices, {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights pissa"),
    ]


def test_an_adapter_that_is_incomplete_or_does_not_fit_is_refused(smoke_run, base, tmp_path):
    "By the merge and by the adapter's own GGUF; with half of a layer left out, both would be another model."
    from safetensors.torch import load_file, save_file

    from medlab.quantizing.adapter_gguf import adapter_to_gguf

    source = smoke_run[0].file("finetune", "adapter")
    config = json.loads((source / "adapter_config.json").read_text())
    for name, matrices, changes, says in adapter_variants(load_file(source / "adapter_model.safetensors")):
        folder = tmp_path / name
        folder.mkdir()
        save_file(matrices, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(config | changes))
        for write, words in ((merge, (base, folder)), (adapter_to_gguf, (folder, base))):
            with pytest.raises(InputError, match=says):
                write(*words, tmp_path / "made")
            assert not (tmp_path / "made").exists(), name


def test_a_file_that_computes_no_numbers_is_an_error():
    figures = {"positions": 3, "kl": {"mean": float("nan")}, "changed_top": {"share": 0.0}, "perplexity": 2.0, "perplexity_ratio": {"value": 1.0}}
    with pytest.raises(MedlabError, match="q8_0 computes values that are not finite"):
        check_bounds("q8_0", figures, {"max_kl": None})


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
    assert {name: output.content for name, output in manifest.outputs.items()} == {
        name: output.content for name, output in smoke_run[0].manifest("quantize").outputs.items()
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
        for use in (read_gguf, lambda p: quantize_gguf(p, tmp_path / "out.gguf", "q4_k_m"), lambda p: sample_answer(p, chat, 4, tmp_path / "log")):
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
    assert Path(find_quantizer()[-1]).name.startswith("llama-quantize")  # the one inside the package
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
    assert find_quantizer() == [str(program)]
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
    return check_header(read_gguf(tmp_path / "model.gguf"), ChatFormat.from_folder(folder))


def test_more_rows_in_the_embedding_than_tokens(base, tmp_path):
    "Qwen and Phi pad their vocabulary to a round number."
    header = checked(changed_copy(base, tmp_path / "padded", padded=128), tmp_path)
    assert header["vocabulary"] == ChatFormat.from_folder(base).tokenizer.get_vocab_size() + 128


def test_fewer_rows_than_tokens_are_refused(base, tmp_path):
    from tokenizers import AddedToken, Tokenizer

    folder = changed_copy(base, tmp_path / "extended")
    to_gguf(folder, tmp_path / "model.gguf", "extended")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("a new word", special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(MedlabError, match="number of tokens"):
        check_header(read_gguf(tmp_path / "model.gguf"), ChatFormat.from_folder(folder))


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


# types


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    "The tiny model's 16-bit GGUF."
    path = tmp_path_factory.mktemp("whole") / "f16.gguf"
    to_gguf(base, path, "whole")
    return path


def test_every_type_that_is_offered_is_made_and_computes(whole, base, tmp_path):
    "Each is loaded by llama.cpp; more bits, nearer to the 16-bit file."
    chat, made = ChatFormat.from_folder(base), {name: tmp_path / f"{name}.gguf" for name in FILE_TYPES if name != "f16"}
    for name, path in made.items():
        quantize_gguf(whole, path, name)
        assert check_header(read_gguf(path), chat)["bits_per_weight"] < 16.1
    texts = measured_texts([[*CHECK, {"role": "assistant", "content": "Rest, drink enough, and see a doctor if it lasts."}]], chat, 16)
    found = {name: figures["kl"]["mean"] for name, figures in measure(whole, made, texts).items()}
    assert found["f16"] == 0 and all(found[name] < 0.5 for name in made)
    order = [found[name] for name in ("bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k")]
    assert order == sorted(order), found


def test_several_types_in_one_run_and_the_adapter_alone(copied):
    run, profile = copied
    values = ["quantize.types=[f16, q8_0, Q3_K_M]", "quantize.importance_tokens=0", "quantize.merge_base=dequantized", "quantize.adapter=true"]
    profile = load_profile("smoke", [*values, "deploy.engine=llama_cpp"])
    quantize(run, profile)
    check = read_json(run.file("quantize", "check.json"))
    assert set(check["types"]) == {"q8_0", "q3_k_m", "f16"} and check["file"] == "model-f16.gguf" == model_file(run).name
    assert check["merge"]["base"] == "dequantized" and check["types"]["f16"]["measured"]["kl"]["max"] == 0
    assert check["types"]["q8_0"]["measured"]["kl"]["mean"] < check["types"]["q3_k_m"]["measured"]["kl"]["mean"]
    made = {path.name for path in (run.path / "quantize").glob("*.gguf")}
    assert made == {"model-f16.gguf", "model-q8_0.gguf", "model-q3_k_m.gguf", "adapter.gguf", "base-f16.gguf"} and made < set(check["bytes"])
    fields = read_gguf(run.file("quantize", "model-q8_0.gguf")).fields
    about = {name: fields[name].contents() for name in ("general.license", "general.author", "medlab.finetune", "medlab.merged_into")}
    spec = load_spec("tiny-random")
    assert about == {"general.license": spec.license, "general.author": spec.attribution, "medlab.finetune": run.manifest("finetune").key,
                     "medlab.merged_into": "dequantized"}
    beside = check["adapter"]["measured"]
    assert check["adapter"]["base"] == "base-f16.gguf" and beside["kl"]["max"] < 1e-3 and beside["choices"]["changed"] == 0, "the merged model in two files"
    check_base_and_tuned(run, profile)
    check_pair_over_http(run, profile)


def check_pair_over_http(run, profile):
    "A server offers the two as models of its own, one engine behind both; each answers as it does without a server, and the page finds them as a pair."
    from fastapi.testclient import TestClient

    deploy(run, profile)
    pair, question = beside_models(run, profile), {"messages": [CHECK[0], CHECK[1]], "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 5}
    (base, tuned), served = [model.name for model in pair], Models(pair)
    assert base_and_tuned(served.models) == (base, tuned) and tuned == base.removesuffix("-base") + "-tuned"
    with TestClient(create_app(served, log=[].append, keys=[]), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client, ThreadPoolExecutor(4) as pool:
        assert [one["model_name"] for one in client.get("/models").json()] == [base, tuned]
        got = list(pool.map(lambda name: client.post("/v1/chat/completions", json={**question, "model": name}).json(), [base, tuned] * 3))
        found = [[(token["token"], round(token["logprob"], 1)) for token in one["choices"][0]["logprobs"]["content"]] for one in got]
        assert [one["model"] for one in got] == [base, tuned] * 3
        assert found[0] == found[2] == found[4] and found[1] == found[3] == found[5] and found[0] != found[1]


def check_base_and_tuned(run, profile):
    "One loaded base is two models: the tuned one has the distributions of the merged 16-bit file, the base those of a server that never saw the adapter."
    import math

    talks, options = [CHECK, [CHECK[0], {"role": "user", "content": "Chest pain since an hour."}]], [["emergency", "urgent", "soon", "routine", "self-care"]] * 2

    def chances(engine):
        return [[math.exp(value) for value in one.logprobs.values()] for one in engine.option_logprobs(talks, options, "Triage: ")]

    def far(ours, theirs):
        return max(abs(a - b) / max(a, b) for mine, other in zip(ours, theirs) for a, b in zip(mine, other))

    chat, sampling = ChatFormat.from_folder(run.file("quantize", "merged")), Sampling(length=8)
    with LlamaCppEngine(run.file("quantize", "model-f16.gguf"), chat) as merged, LlamaCppEngine(run.file("quantize", "base-f16.gguf"), chat) as alone:
        expected = {"base": chances(alone), "tuned": chances(merged)}
        said = [answer.text for answer in alone.generate(talks, sampling)]
    with open_base_and_tuned(run, profile, slots=2, cache=True) as (base, tuned), ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            assert far(chances(tuned), expected["tuned"]) < 0.06 and far(chances(base), expected["base"]) < 0.06
        assert far(expected["base"], expected["tuned"]) > 0.3
        assert tuned.info()["strength"] == 1 and base.info()["strength"] == 0 and base.info()["adapter"] == "adapter.gguf"
        mixed = list(pool.map(lambda engine: [piece for piece in engine.stream(CHECK, sampling)][-1].done.text, [base, tuned] * 4))
        assert set(mixed[::2]) == {said[0]} and len(set(mixed[1::2])) == 1, "asked at the same time, nobody gets the other model"
        base.close()  # one of two views: the server stays
        psutil.Process(tuned.server.process.pid).children()[0].kill()
        tuned.server.process.wait()
        assert far(chances(base), expected["base"]) < 0.06 and far(chances(tuned), expected["tuned"]) < 0.06, "started again, with its adapter"
        with pytest.raises(InputError, match="strength"):
            at_strength(tuned, -1)
    with pytest.raises(MedlabError, match="closed"):
        base.generate([CHECK], sampling)
    variant = find_variant("adapter_gguf", run, profile)
    with variant.opener() as engine:
        assert far(chances(engine), expected["tuned"]) < 0.06
    assert variant.fingerprint == find_variant("adapter_gguf", run, profile).fingerprint != find_variant("f16", run, profile).fingerprint
    with pytest.raises(InputError, match="does not fit"):
        LlamaCppEngine(load_spec("smollm2-135m-instruct").sources[0].path(), ChatFormat.from_folder(obtain(load_spec("smollm2-135m-instruct"))),
                       adapter=run.file("quantize", "adapter.gguf"))


def test_without_an_adapter_the_variant_is_missing(smoke_run):
    with pytest.raises(MissingError, match="quantize.adapter=true"):
        find_variant("adapter_gguf", *smoke_run)
    with pytest.raises(MissingError, match="quantize.adapter=true"):
        with open_base_and_tuned(*smoke_run):
            pass


def test_a_bound_of_the_profile_makes_a_bad_file_an_error(copied):
    run, _ = copied
    with pytest.raises(MedlabError, match=r"model-q2_k\.gguf .*mean divergence is .*quantize\.max_kl allows 1e-05"):
        quantize(run, load_profile("smoke", ["quantize.types=q2_k", "quantize.max_kl=0.00001", "quantize.importance_tokens=0"]))
    assert run.manifest("quantize") is None or run.manifest("quantize").params["types"] != ["q2_k"]


@pytest.mark.parametrize("values, says", [
    (["quantize.types=[q4_k]"], "q4_k_m"), (["quantize.types=[]"], "types"), (["quantize.types=[q8_0, Q8_0]"], "each type once"),
    (["quantize.type=q4"], "unknown"), (["quantize.type=q8_0", "quantize.types=[q8_0]"], "give types only"), (["quantize.merge.base=nf4"], "auto"),
    (["quantize.max_kl=-1"], "max_kl"),
])
def test_parameters_that_are_refused(values, says):
    with pytest.raises(InputError, match=says):
        load_profile("smoke", values)


def test_older_names_of_parameters():
    loaded = load_profile("smoke", ["quantize.type=q8_0", "quantize.merge.base=published"]).params(QuantizeParams)
    assert loaded.types == ["q8_0"] and loaded.merge_base == "published"


def test_an_installed_binding_quantizes_where_no_program_is_on_path(monkeypatch, whole, tmp_path):
    "With a stand-in for llama-cpp-python that writes down what it was asked for and calls the program."
    program = find_quantizer()[-1]
    (tmp_path / "llama_cpp.py").write_text(
        "import ctypes, subprocess\n"
        "class Params(ctypes.Structure):\n    _fields_ = [('nthread', ctypes.c_int32), ('ftype', ctypes.c_int32)]\n"
        "def llama_model_quantize_default_params():\n    return Params()\n"
        "def llama_model_quantize(source, target, params):\n"
        f"    return subprocess.run([{program!r}, source, target, str(params._obj.ftype)]).returncode\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", "")
    assert find_quantizer()[0] == sys.executable and not takes_importance()
    quantize_gguf(whole, tmp_path / "model.gguf", "q6_k")
    assert read_gguf(tmp_path / "model.gguf").fields["general.file_type"].contents() == FILE_TYPES["q6_k"]


# before training


def test_the_converter_is_missed_before_the_work(monkeypatch, base, tmp_path):
    monkeypatch.setattr(converter, "converter_places", lambda: [tmp_path])
    converter.known_architectures.cache_clear()
    with pytest.raises(MissingError, match="run `medlab setup`"):
        check_convertible(base)
    converter.known_architectures.cache_clear()


@pytest.mark.parametrize("change, says", [
    ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"), ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "BertPreTokenizer"}]}}, "no name for how its tokenizer cuts text"),
])
def test_tokenizers_that_cannot_go_into_a_gguf(base, tmp_path, change, says):
    folder = changed_copy(base, tmp_path / "odd")
    (folder / "tokenizer.json").write_text(json.dumps(read_json(folder / "tokenizer.json") | change))
    with pytest.raises(InputError, match=says):
        check_convertible(folder)


def test_a_special_token_without_a_row_does_no_harm(base, tmp_path):
    "Gemma 3's <image_soft_token> is in the tokenizer and not in the text model's embedding."
    from tokenizers import AddedToken, Tokenizer

    folder = changed_copy(base, tmp_path / "spare")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<image_soft_token>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    header = checked(folder, tmp_path)
    assert header["vocabulary"] == tokenizer.get_vocab_size() - 1


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
@pytest.mark.parametrize("work", ["medlab.quantizing.conversion import to_gguf; to_gguf(base, target, 'x')", "medlab.quantizing.merging import merge; merge(base, None, target)"])
def test_a_disk_that_fills_up_in_the_middle_leaves_no_file(base, tmp_path, work):
    code = (
        "import resource, sys; from pathlib import Path; base, target = map(Path, sys.argv[1:])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        f"from {work}"
    )
    done = subprocess.run([sys.executable, "-c", code, str(base), str(tmp_path / "model")], capture_output=True, text=True)
    assert done.returncode and done.stderr.splitlines()[-1].startswith("medlab.basics.errors.MedlabError: ")
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name or path.name.startswith(".")] == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
@pytest.mark.parametrize("importance", [False, True])
def test_a_quantizer_that_may_write_no_more_is_named_with_the_folder(whole, base, tmp_path, importance):
    "It is another program: the system ends it in the middle of its file."
    code = (
        "import resource, sys; from pathlib import Path; base, whole, target = map(Path, sys.argv[1:])\n"
        "from medlab.quantizing.types import quantize_gguf, write_importance; from medlab.engines.hf import load_model; from medlab.loaders.gguf import read_gguf\n"
        f"matrix = target.parent / 'importance.dat' if {importance} else None\n"
        "matrix and write_importance(load_model(base), [list(range(40))], read_gguf(whole), matrix)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000_000, 5_000_000))\n"
        "quantize_gguf(whole, target, 'q8_0', matrix)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(base), str(whole), str(tmp_path / "model.gguf")], capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert done.returncode and said.startswith("medlab.basics.errors.MedlabError: ") and f"{tmp_path} grew larger" in said and "ulimit -f" in said
    assert [path.name for path in tmp_path.iterdir() if "model" in path.name] == []
