"Checking a model of any family before it is trained: the cheap stages, and tiny twins of many architectures."

import json
import shutil

import pytest

from medlab.basics.errors import InputError
from medlab.basics.files import read_json, write_json
from medlab.loaders.family import CHEAP_STAGES, require_trainable, run_stages, write_twin
from medlab.models import load_spec, obtain


@pytest.fixture(scope="module")
def tiny():
    return obtain(load_spec("tiny-random"))


@pytest.fixture
def copied_model(tiny, tmp_path):
    "A copy of the tiny model that a test may break."
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (folder / "medlab.json").unlink()
    return folder


def small_configs():
    "A small configuration of each architecture, with more layers and other ratios than a twin has."
    import transformers as hf

    common = {"vocab_size": 49152, "hidden_size": 96, "num_hidden_layers": 7, "num_attention_heads": 6, "num_key_value_heads": 2, "intermediate_size": 160}
    gemma = {**common, "head_dim": 32}
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 112, "patch_size": 14}
    return {
        "llama": hf.LlamaConfig(**common), "mistral": hf.MistralConfig(**common, sliding_window=64), "qwen2": hf.Qwen2Config(**common), "qwen3": hf.Qwen3Config(**gemma),
        "gemma2": hf.Gemma2Config(**gemma), "gemma3_text": hf.Gemma3TextConfig(**gemma), "phi3": hf.Phi3Config(**common, pad_token_id=2),
        "gpt2": hf.GPT2Config(vocab_size=49152, n_embd=96, n_layer=5, n_head=6), "llama3 with scaled rotary": hf.LlamaConfig(**common, rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}),
        "gemma3 with a vision tower": hf.Gemma3Config(text_config=gemma, vision_config=vision, mm_tokens_per_image=16),
    }


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "llama3 with scaled rotary", "gemma3 with a vision tower"])
def test_every_architecture_is_checked_and_has_a_tiny_twin_that_computes(name, copied_model, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    config = small_configs()[name]
    config.architectures = ["Gemma3ForConditionalGeneration" if "vision" in name else AutoModelForCausalLM._model_mapping[type(config)].__name__]
    write_json(copied_model / "config.json", json.loads(config.to_json_string(use_diff=False)))
    assert {stage.state for stage in require_trainable(copied_model)} == {"ok"}
    twin = tmp_path / "twin"
    twin.mkdir()
    assert write_twin(copied_model, twin) < 60e6
    assert {stage.state for stage in require_trainable(twin)} == {"ok"}
    model = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32)
    assert model.config.model_type == config.model_type
    logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape[-1] == 49152 and torch.isfinite(logits).all()
    if kinds := getattr(config, "layer_types", None):
        assert set(model.config.layer_types) == set(kinds), "the twin lost a kind of layer"


def settings(folder, **changes):
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), **changes})


def config(folder, **changes):
    path = folder / "config.json"
    write_json(path, {**read_json(path), **changes})


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-4])


def lose_a_shard(folder):
    write_json(folder / "model.safetensors.index.json", {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(("breaks", "stage", "says"), [
    (lambda folder: config(folder, auto_map={"AutoModel": "evil.Model"}), "configuration", "Python code"),
    (lambda folder: config(folder, model_type="mystery"), "configuration", "cannot read this model's configuration .ValueError"),
    (lambda folder: config(folder, model_type="bert", architectures=["BertForMaskedLM"]), "model", "writes no text"),
    (lambda folder: config(folder, vocab_size=1000), "tokenizer", "only 1000 rows"),
    (cut, "weights", "cut short"), (lose_a_shard, "weights", "lacks model-00001-of-00002"),
    (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 100), "weights", "damaged"),
    (lambda folder: settings(folder, chat_template=CHATML.replace("<|im_end|>", "")), "tokenizer", "control token"),
    (lambda folder: settings(folder, chat_template=None), "tokenizer", "no chat template"),
    (lambda folder: settings(folder, chat_template="{{ messages[0].content | upper }}"), "tokenizer", ""),
])
def test_what_cannot_work_is_refused_before_training(copied_model, breaks, stage, says):
    breaks(copied_model)
    with pytest.raises(InputError, match=f"(?s){stage}.*{says}"):
        require_trainable(copied_model)


def test_more_rows_than_tokens_do_no_harm(copied_model):
    config(copied_model, vocab_size=49280)
    assert {stage.state for stage in require_trainable(copied_model)} == {"ok"}


def test_a_fault_does_not_hide_the_others(copied_model):
    cut(copied_model)
    config(copied_model, auto_map={"AutoModel": "evil.Model"})
    stages = {stage.name: stage.state for stage in run_stages(CHEAP_STAGES, {"folder": copied_model})}
    assert stages == {"configuration": "failed", "weights": "failed", "model": "not reached", "tokenizer": "ok", "template": "ok", "prompt": "ok", "labels": "ok"}


def test_a_library_that_raises_something_else_is_a_fault_of_the_model():
    def explode(known):
        raise ZeroDivisionError("deep inside")

    assert run_stages([("one", (), explode)], {})[0].detail == "ZeroDivisionError: deep inside"


@pytest.mark.slow
def test_the_whole_road_from_the_command_line(medlab):
    done = medlab("models", "check", "tiny-random")
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("labels", "ids in transformers", "convert to GGUF", "llama.cpp", "Ollama"):
        assert stage in done.stdout
    assert "failed" not in done.stdout
