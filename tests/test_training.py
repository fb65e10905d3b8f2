"""Training's own room: both backends, every method, what is kept, what is refused, and the libraries' symbols that it calls."""

import inspect
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import read_json
from medlab.core import load_profile
from medlab.models import load_spec, obtain
from medlab.training.adapters import add_lora, block_layers, save_adapter
from medlab.training.advice import less_memory
from medlab.training.batches import collate
from medlab.training.estimate import dry_run, empty_model
from medlab.training.loop import answer_tokens, how_to_pack, step_loss, tensors_of
from medlab.training.runs import call_others, check_rows, follow, train, train_apart, write_job
from medlab.training.settings import RECIPE, FinetuneParams

from small_models import write_seeing_model

SHORT = {"backend": "peft", "method": "lora", "compute": "float32", "steps": 2, "checkpoint_every": 1, "warmup": 0, "dropout": 0.0, "forgetting": 0, "scored": 0}


@pytest.fixture(scope="module")
def base():
    return obtain(load_spec("tiny-random"))


@pytest.fixture(scope="module")
def rows():
    "Rows of different lengths, with answers of different lengths."
    made = []
    for number in range(8):
        ids = [100 + (7 * number + place) % 90 for place in range(10 + 3 * number)]
        made.append((ids, [-100] * (len(ids) - 2 - number) + ids[-2 - number :]))
    return made


def losses(log):
    return [entry["loss"] for entry in log["steps"]]


def test_batches_added_up_are_one_large_batch(base, rows, tmp_path):
    "Four rows at once, and the same four in two batches of two: the same losses, although the batches hold different numbers of answer tokens."
    one = train(base, rows[:4], [], FinetuneParams(**SHORT, batch=4), 7, tmp_path / "one", show=False)[1]
    two = train(base, rows[:4], [], FinetuneParams(**SHORT, batch=2, accumulation=2), 7, tmp_path / "two", show=False)[1]
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)
    assert losses(one)[1] != pytest.approx(losses(one)[0], abs=1e-4), "nothing was learnt, so the comparison says nothing"


@pytest.mark.parametrize("settings", [{}, {"rslora": False}, {"dora": True}], ids=["rslora", "plain", "dora"])
def test_the_adapter_loads_with_plain_peft_and_gives_the_same_logits(base, rows, tmp_path, settings):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model, _ = train(base, rows, [], FinetuneParams(**SHORT, **settings), 7, tmp_path, "tiny-random", show=False)
    save_adapter(model, tmp_path / "adapter", "tiny-random")
    ids = torch.tensor([rows[0][0]])
    with torch.no_grad():
        expected, before = model.eval()(ids).logits, AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids).logits
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(tmp_path / "adapter")).merge_and_unload()
        assert torch.allclose(plain(ids).logits, expected, atol=1e-3)
    assert not torch.allclose(before, expected, atol=1e-2), "the adapter changes nothing"


@pytest.mark.parametrize("schedule, last", [("cosine", 0.2), ("linear", 0.3), ("constant", 1.0)])
def test_schedules(base, rows, tmp_path, schedule, last):
    "After a warm-up the rate is at its highest; at the end it has fallen as the schedule says."
    params = FinetuneParams(**{**SHORT, "steps": 5, "warmup": 0.4, "checkpoint_every": 5}, schedule=schedule, learning_rate=1e-3)
    rates = [entry["learning_rate"] for entry in train(base, rows, [], params, 7, tmp_path, show=False)[1]["steps"]]
    assert rates[0] < 1e-3 and rates[2] == pytest.approx(1e-3) and rates[-1] <= (last + 0.2) * 1e-3 and (schedule != "constant" or rates[-1] == pytest.approx(1e-3))


def test_gradient_checkpointing_changes_nothing_but_memory(base, rows, tmp_path):
    logs = [train(base, rows, [], FinetuneParams(**SHORT, gradient_checkpointing=on), 7, tmp_path / str(on), show=False)[1] for on in (False, True)]
    assert losses(logs[0]) == pytest.approx(losses(logs[1]), abs=1e-5)


def test_the_best_checkpoint_is_kept_and_patience_ends_the_training(base, rows, tmp_path):
    "A rate at which the validation loss must get worse: what is kept is the step that the log names, and the training ends early."
    from medlab.training.loop import answer_loss

    params = FinetuneParams(**{**SHORT, "steps": 30}, learning_rate=0.05, patience=2)
    model, log = train(base, rows[:2], rows[6:], params, 7, tmp_path, show=False)
    best = min((entry for entry in log["validation"] if entry["step"]), key=lambda entry: entry["loss"])
    assert log["kept"] == best["step"] and len(log["steps"]) == best["step"] + 2 < 30
    assert answer_loss(model, [rows[6:]], 0) == pytest.approx(best["loss"], abs=1e-4)


def test_an_earlier_adapter_is_continued(base, rows, tmp_path):
    params = FinetuneParams(**SHORT)
    model, first = train(base, rows, [], params, 7, tmp_path / "first", "tiny-random", show=False)
    save_adapter(model, tmp_path / "first" / "adapter", "tiny-random")
    again = train(base, rows, [], params.model_copy(update={"from_adapter": str(tmp_path / "first")}), 7, tmp_path / "second", "tiny-random", show=False)[1]
    assert losses(again)[0] < losses(first)[0]
    with pytest.raises(InputError, match="was trained on 'tiny-random', expected 'another-model'"):
        train(base, rows, [], params.model_copy(update={"from_adapter": str(tmp_path / "first")}), 7, tmp_path / "third", "another-model", show=False)
    with pytest.raises(InputError, match="use_rslora True, the profile asks for False"):
        wrong = params.model_copy(update={"from_adapter": str(tmp_path / "first"), "rslora": False})
        train(base, rows, [], wrong, 7, tmp_path / "fourth", "tiny-random", show=False)
    with pytest.raises(MissingError, match="no adapter_config.json"):
        train(base, rows, [], params.model_copy(update={"from_adapter": str(tmp_path / "nowhere")}), 7, tmp_path / "fifth", show=False)


def test_all_weights_learn(base, rows, tmp_path):
    "Method full: a whole model folder that transformers loads, other weights than the base's, and no adapter."
    import torch
    from transformers import AutoModelForCausalLM

    done = train_apart(base, rows, rows[:2], FinetuneParams(**{**SHORT, "method": "full", "learning_rate": 1e-4}), 7, tmp_path, "tiny-random")
    assert done["trainable_parameters"] == done["total_parameters"] > 13_000_000
    assert not (tmp_path / "adapter").exists()
    tuned, before = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (tmp_path / "model", base))
    assert not torch.equal(tuned.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight)


# what makes a CPU quick


@pytest.fixture(scope="module")
def alike():
    "Rows whose prompts begin alike, two of them with the same prompt, of different lengths."
    system = list(range(200, 220))
    prompts = [system + [300 + number] * (3 + number % 3) for number in (0, 1, 1, 2, 3, 4)]
    answers = [[400 + number, 401, 402][: 2 + number % 2] for number in range(6)]
    return [(prompt + answer, [-100] * len(prompt) + answer) for prompt, answer in zip(prompts, answers)]


@pytest.mark.parametrize("settings", [{}, {"method": "qlora"}, {"gradient_checkpointing": True}, {"dora": True}, {"method": "full"}],
                         ids=lambda settings: " ".join(map(str, settings.values())) or "lora")
def test_packed_batches_train_alike(base, alike, tmp_path, settings):
    "One sequence for a batch, and equal beginnings computed once: the same losses, gradients and weights as padded batches."
    made = []
    for packing in (True, False):
        params = FinetuneParams(**{**SHORT, "steps": 3, "batch": 3, "packing": packing, **settings})
        log = train(base, alike, [], params, 7, tmp_path / str(packing), show=False)[1]
        assert log["method"]["packed"] is packing
        made.append([[entry["loss"], entry["grad_norm"]] for entry in log["steps"]])
    assert made[0][0] == pytest.approx(made[1][0], rel=1e-5)
    assert sum(made[0], []) == pytest.approx(sum(made[1], []), rel=2e-3)  # AdamW makes steps of one size of the smallest gradients too
    assert made[0][2][0] != pytest.approx(made[0][0][0], rel=1e-3), "nothing was learnt, so the comparison says nothing"


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Gemma2", "Gemma3Text", "Phi3", "GPT2", "Mistral"])
def test_every_family_is_packed_rightly_or_not_at_all(name, alike):
    "The gradient of a packed batch is that of the padded one, whatever a family does about positions, windows and heads."
    import torch
    import transformers

    small = dict(vocab_size=500, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
    if name not in ("Phi3", "Llama", "Mistral"):
        small["head_dim"] = 8
    if name in ("Gemma2", "Gemma3Text", "Mistral"):
        small["sliding_window"] = 40
    if name == "GPT2":
        small = dict(vocab_size=500, n_embd=32, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**small)).train()
    packing = how_to_pack(model, alike, FinetuneParams(method="full"), {"compute": "float32"}, "left")
    assert packing or name == "Gemma2", "Gemma 2 caps its scores, which PyTorch's attention does not"
    assert packing is None or "labels" in tensors_of(alike, 0, "left", packing._replace(longest=20)), "longer than the window, and packed"
    found = []
    for batch in (tensors_of(alike, 0, "left", packing), collate(alike, 0)):
        model.zero_grad()
        loss = step_loss(model, batch, answer_tokens([batch]))
        loss.backward()
        found.append((loss.item(), {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert all(torch.allclose(gradient, found[1][1][key], atol=1e-5, rtol=1e-3) for key, gradient in found[0][1].items())


def test_a_prompt_is_not_shared_where_dropout_draws(base, alike):
    "Rows of their own get a draw each; a shared beginning would get one for all."
    from medlab.training.adapters import load_base

    model = add_lora(load_base(base), FinetuneParams(dropout=0.1))
    packing = how_to_pack(model, alike, FinetuneParams(dropout=0.1), {"compute": "float32"}, "left")
    assert packing and not packing.share
    assert tensors_of(alike, 0, "left", packing)["input_ids"].shape[1] == sum(len(ids) for ids, _ in alike)
    assert tensors_of(alike, 0, "left", packing._replace(share=True))["input_ids"].shape[1] < 60


# what is refused


def test_what_cannot_work_stops_before_a_model_is_loaded(base, rows, tmp_path):
    with pytest.raises(InputError, match="no training examples"):
        train_apart(base, [], [], FinetuneParams(**SHORT), 7, tmp_path)
    context = read_json(base / "config.json")["max_position_embeddings"]
    long = [1] * (context + 1)
    with pytest.raises(InputError, match=f"set finetune.max_length={context}"):
        check_rows([*rows, (long, long)], base)
    with pytest.raises(MissingError, match="needs a GPU"):
        train(base, rows, [], FinetuneParams(**SHORT, optimizer="paged_adamw_8bit"), 7, tmp_path, show=False)


def test_an_error_of_the_training_process_is_its_parents_error(base, rows, tmp_path):
    with pytest.raises(MedlabError, match="lower finetune.learning_rate"):
        train_apart(base, rows, [], FinetuneParams(**{**SHORT, "steps": 6}, learning_rate=1e30), 7, tmp_path)


def test_a_training_process_that_the_system_kills(base, rows, tmp_path):
    "Killed for want of memory, the process says nothing; its parent says which parameter to change."
    ended = threading.Event()

    def kill():
        while not ended.is_set():
            for child in psutil.Process().children(recursive=True):
                if any("work_apart" in word for word in child.cmdline()) and not any("start_new_session" in word for word in child.cmdline()):
                    os.kill(child.pid, signal.SIGKILL)
                    return
            time.sleep(0.05)

    threading.Thread(target=kill, daemon=True).start()
    try:
        with pytest.raises(MedlabError, match=re.escape(less_memory(FinetuneParams(**SHORT)))):
            train_apart(base, rows, [], FinetuneParams(**{**SHORT, "steps": 500}), 7, tmp_path)
    finally:
        ended.set()


# other models


@pytest.mark.parametrize("name, targets, trained, total", [
    ("tinyllama-medquad", 4, 4_505_600, 1_100_048_384), ("mistral-7b", 4, 13_631_488, 7_248_023_552), ("llama3-8b", 4, 13_631_488, 8_030_261_248),
    ("qwen-7b", 4, 10_092_544, 7_615_616_512), ("gemma2-2b-medgpt", 7, 83_066_880, 2_614_341_888), ("colab", 7, 20_766_720, 2_614_341_888),
    ("medgemma-4b", 4, 8_912_896, 4_315_317_824),
])
def test_a_dry_run_of_each_profile(name, targets, trained, total):
    "Without weights: the layers that learn, the published numbers of parameters, and memory that a card of the profile's size has."
    found = dry_run(load_profile(name))
    assert len(found["targets"]) == targets and found["trainable_parameters"] == trained
    assert found["total_parameters"] == pytest.approx(total, rel=0.01)
    assert 2e9 < found["memory"]["total"] < 50e9
    shorter = dry_run(load_profile(name, ["finetune.batch=1"]))
    assert shorter["memory"]["total"] < found["memory"]["total"]


def test_a_dry_run_of_what_two_cards_share():
    "QLoRA of 70 billion weights with FSDP2: each card holds half of the base, and all of it once, while loading."
    found, alone = dry_run(load_profile("llama3-70b")), dry_run(load_profile("llama3-70b", ["finetune.sharding=none"]))
    assert (found["trainable_parameters"], len(found["targets"])) == (65_536_000, 4) and found["total_parameters"] == pytest.approx(70_553_706_496, rel=0.01)
    assert found["memory"]["weights"] == alone["memory"]["weights"] // 2 and found["memory"]["total"] < 44e9 < alone["memory"]["total"]


def test_a_dry_run_of_a_model_on_this_disk_needs_no_numbers_in_a_spec(base):
    found = dry_run(load_profile("smoke", [f"model={base}", "finetune.targets=[q_proj]"]))
    assert found["targets"] == ["q_proj"] and found["total_parameters"] == pytest.approx(14e6, rel=0.1) and found["memory"]["total"] > 14e6 / 2


def test_a_vision_tower_gets_no_lora():
    model = add_lora(empty_model(load_spec("medgemma-4b-it")), FinetuneParams())
    assert len(model.targeted_module_names) == 34 * 7 and not any("vision" in name for name in model.targeted_module_names)


def test_a_multimodal_model_learns_from_text():
    "A tiny random Gemma 3 with a vision tower: a loss and gradients from text alone, none in the tower."
    import transformers

    text = dict(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    eyes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, patch_size=14, image_size=28)
    config = transformers.Gemma3Config(text_config={"model_type": "gemma3_text", **text}, vision_config={"model_type": "siglip_vision_model", **eyes})
    model = add_lora(transformers.Gemma3ForConditionalGeneration(config), FinetuneParams(dropout=0.0)).train()
    assert not any("vision" in name for name in block_layers(model))
    step_loss(model, collate([([5, 6, 7, 8], [-100, -100, 7, 8])], 0), 2).backward()
    learnt = [name for name, weight in model.named_parameters() if weight.grad is not None]
    assert learnt and all("lora_" in name and "vision" not in name for name in learnt)


def test_a_seeing_model_is_trained_and_merged_and_its_tower_stays(rows, tmp_path):
    "As MedGemma: names in its files are not those in memory. The merged weights give the logits of base and adapter, and nothing of the tower changes."
    import torch
    from safetensors.torch import load_file

    from medlab.engines.hf import load_model
    from medlab.quantizing.merging import merge

    seeing = tmp_path / "seeing"
    seeing.mkdir()
    write_seeing_model(seeing)
    model, _ = train(seeing, rows, [], FinetuneParams(**{**SHORT, "learning_rate": 3e-2}), 7, tmp_path / "trained", show=False)
    save_adapter(model, tmp_path / "adapter", "seeing")
    merge(seeing, tmp_path / "adapter", tmp_path / "merged")
    before, after = load_file(seeing / "model.safetensors"), load_file(tmp_path / "merged" / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == 14 and not [name for name in changed if "vision" in name or "projector" in name]
    ids = torch.tensor([rows[0][0]])
    with torch.inference_mode():
        base, tuned, merged = (load_model(*given)(ids).logits for given in ((seeing,), (seeing, tmp_path / "adapter"), (tmp_path / "merged",)))
    assert (merged - tuned).norm() < 0.1 * (tuned - base).norm(), "bfloat16 rounds the merged weights"


@pytest.mark.parametrize("words, says", [
    (("--model", "meta-llama/Llama-3-8b"), "did you mean 'meta-llama/Meta-Llama-3-8B'"), (("--model", "google/medgemma-4b"), "google/medgemma-4b-it"),
    (("--model", "Qwen/Qwen-7B"), "Qwen/Qwen2.5-7B"),
])
def test_a_wrong_model_is_named_before_anything_is_made(words, says, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from medlab.cli.commands import app

    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(app, ["finetune", *words])
    assert isinstance(found.exception, InputError) and says in str(found.exception) and not list(tmp_path.iterdir())


def test_one_line_is_a_real_training(tmp_path):
    from typer.testing import CliRunner

    from medlab.cli.commands import app

    found = CliRunner().invoke(app, ["finetune", "--model", "meta-llama/Meta-Llama-3-8B-Instruct", "--use-qlora", "--epochs", "2", "--batch-size", "2", "--run", str(tmp_path), "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "llama3-8b-instruct, qlora: 13,631,488 of 8,030,261,248 weights" in found.output and not list(tmp_path.iterdir())


def test_the_recipe_is_that_of_most_tutorials():
    params = FinetuneParams(**RECIPE)
    assert (params.epochs, params.batch, params.accumulation, params.learning_rate, params.max_length) == (3, 4, 4, 2e-4, 2048)
    assert (params.rank, params.alpha, params.dropout, params.targets) == (16, 32, 0.05, ["q_proj", "k_proj", "v_proj", "o_proj"])


# the libraries


#: Every symbol of a training library that is called with names, and the names.
CALLED = {
    "transformers:Trainer.__init__": "model args train_dataset eval_dataset data_collator callbacks",
    "transformers:Trainer.compute_loss": "model inputs return_outputs num_items_in_batch",
    "transformers:Trainer.get_batch_samples": "epoch_iterator num_batches device",
    "transformers:Trainer._get_num_items_in_batch": "batch_samples device",
    "transformers:Trainer.log": "logs start_time",
    "transformers:TrainingArguments.__init__": "output_dir max_steps seed use_cpu per_device_train_batch_size train_sampling_strategy gradient_accumulation_steps "
    "gradient_checkpointing gradient_checkpointing_kwargs learning_rate warmup_steps lr_scheduler_type optim weight_decay max_grad_norm bf16 fp16 logging_steps "
    "logging_nan_inf_filter disable_tqdm report_to save_strategy save_steps save_total_limit eval_strategy eval_steps eval_on_start remove_unused_columns "
    "dataloader_pin_memory ddp_find_unused_parameters average_tokens_across_devices",
    "transformers:BitsAndBytesConfig.__init__": "load_in_4bit load_in_8bit bnb_4bit_quant_type bnb_4bit_use_double_quant bnb_4bit_compute_dtype",
    "peft:LoraConfig.__init__": "r lora_alpha lora_dropout use_rslora use_dora bias target_modules exclude_modules task_type",
    "peft:PeftModel.from_pretrained": "model model_id is_trainable", "peft:get_peft_model": "model peft_config",
    "peft:set_peft_model_state_dict": "model peft_model_state_dict",
    "bitsandbytes.functional:dequantize_4bit": "A quant_state", "bitsandbytes.nn:Linear4bit.__init__": "input_features output_features bias",
    "trl:SFTConfig.__init__": "max_length bf16 packing assistant_only_loss", "trl:SFTTrainer.__init__": "model args train_dataset processing_class peft_config",
}


@pytest.mark.parametrize("symbol", CALLED)
def test_the_libraries_still_have_what_is_called(symbol):
    module, _, name = symbol.partition(":")
    if find_spec(module.partition(".")[0]) is None:
        pytest.skip(f"{module} is not installed: its symbols cannot be looked at")
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    there = inspect.signature(found).parameters
    assert not [word for word in CALLED[symbol].split() if word not in there and not any(one.kind is one.VAR_KEYWORD for one in there.values())]


@pytest.mark.skipif(not find_spec("unsloth"), reason="unsloth is not installed: run `medlab setup`")
def test_unsloth_still_takes_what_is_given():
    "Read from its source: importing it would patch this process."
    root = find_spec("unsloth").submodule_search_locations[0]
    loader = open(f"{root}/models/loader.py", encoding="utf-8").read()
    llama = open(f"{root}/models/llama.py", encoding="utf-8").read()
    given = loader[loader.index("def from_pretrained") :][:3000]
    for word in ("model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "full_finetuning", "trust_remote_code", "random_state", "use_gradient_checkpointing"):
        assert re.search(rf"\b{word} ?=", given), word
    adapters = llama[llama.index("def get_peft_model") :][:1500]
    for word in ("r", "target_modules", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_gradient_checkpointing", "random_state", "max_seq_length"):
        assert re.search(rf"\b{word} ?=", adapters), word
    assert "def for_inference" in llama and "def for_training" in llama


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("unsloth"), reason="unsloth is not installed: run `medlab setup`")
def test_both_backends_train_alike(base, rows, tmp_path):
    "The same data, batches, labels and rates: nearly the same losses, and the same two files."
    found = {}
    for backend in ("peft", "unsloth"):
        params = FinetuneParams(**{**SHORT, "backend": backend, "batch": 2, "accumulation": 2, "steps": 3})
        found[backend] = train_apart(base, rows, rows[:2], params, 7, tmp_path / backend, "tiny-random")["log"]
    assert losses(found["unsloth"]) == pytest.approx(losses(found["peft"]), abs=0.02)
    configs = [read_json(tmp_path / backend / "adapter" / "adapter_config.json") for backend in found]
    assert configs[0] == configs[1]


# more than one process


@pytest.mark.parametrize("engine", ["accelerate", pytest.param("ray", marks=pytest.mark.long)])
def test_two_workers_learn_what_one_learns_from_twice_the_batch(base, rows, tmp_path, engine):
    "Two processes that add up their gradients on a CPU: the losses and the adapter of one process, also where an epoch's last batch has one row for two."
    from safetensors.torch import load_file

    if engine == "ray" and not find_spec("ray"):
        pytest.skip("Ray is not installed: pip install 'ray[train]'")
    made = {}
    for name, settings in (("one", {"batch": 4}), ("two", {"batch": 2, "engine": engine, "workers": 2})):
        done = train_apart(base, rows[:5], rows[5:], FinetuneParams(**{**SHORT, "steps": 4, **settings}), 7, tmp_path / name, "tiny-random")
        made[name] = done["log"], load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
    (one, weights), (two, others) = made["one"], made["two"]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5) and [entry["tokens"] for entry in two["steps"]] == [entry["tokens"] for entry in one["steps"]]
    assert [entry["loss"] for entry in two["validation"]] == pytest.approx([entry["loss"] for entry in one["validation"]], rel=1e-5)
    assert max(float((weights[key] - others[key]).norm() / weights[key].norm()) for key in weights) < 1e-2
    assert losses(one)[3] != pytest.approx(losses(one)[0], rel=1e-3)


@pytest.mark.long
def test_accelerate_launch_trains_as_the_command_does(copied, tmp_path):
    "Two processes, each a whole `medlab finetune`, on a CPU: the losses of one process with the same batches. Given again, nothing is done and both end."
    run, _ = copied
    again = shutil.copytree(run.path, tmp_path / "launched")
    words, environment = ["-m", "medlab.course", "finetune", "-p", "finetune.dropout=0", "-p", "finetune.forgetting=0"], {**os.environ, "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    subprocess.run([sys.executable, *words, "--run", run.path], check=True, capture_output=True)
    for said in ("done in", "unchanged"):
        done = subprocess.run([*launch, *words, "-p", "finetune.batch=2", "--run", again], env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        assert done.stdout.count("finetune: ") == 1 and said in done.stdout
    one, two = (read_json(place / "finetune" / "training_log.json") for place in (run.path, again))
    assert losses(two) == pytest.approx(losses(one), rel=1e-4) and [entry["tokens"] for entry in two["steps"]] == [entry["tokens"] for entry in one["steps"]]


def test_the_other_processes_of_a_launch_take_part_in_what_the_first_says(tmp_path, monkeypatch):
    "Nothing to do, and a launcher that offers no place to meet."
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for variable, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
        monkeypatch.setenv(variable, value)
    for word, code in (("nothing", 0), ("training", 1)):
        store.delete_key("medlab")
        call_others(word)
        call_others("nothing")  # the first word holds
        (tmp_path / "job.json").write_text("{}")
        monkeypatch.setattr("medlab.training.runs.work_apart", lambda folder: 1)
        assert follow(tmp_path) == code
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    with pytest.raises(InputError, match="accelerate launch"):
        follow(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_sharded_model_learns_what_a_whole_one_learns(base, rows, tmp_path, method):
    "FSDP2 with two gloo processes on a CPU, each holding half of every weight: the losses, the kept checkpoint and the adapter of one process."
    from safetensors.torch import load_file

    settings = {**SHORT, "steps": 4, "checkpoint_every": 2, "method": method, "unpack": "never"}
    one = train_apart(base, rows[:5], rows[5:], FinetuneParams(**settings, batch=4), 7, tmp_path / "one", "tiny-random")
    params, folder = FinetuneParams(**settings, batch=2, engine="accelerate", workers=2, sharding="fsdp2"), tmp_path / "two"
    folder.mkdir()
    write_job(folder, base=base, rows=rows[:5], validation=rows[5:], params=params, seed=7, name="tiny-random", examples=[])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(Path(__file__).parent / "sharded_worker.py")]
    done = subprocess.run([*launch, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((folder / "checkpoints").glob("checkpoint-4/pytorch_model_fsdp_0/*.distcp"))) == 2, "each process wrote its part"
    two = read_json(folder / "done.json")
    assert losses(two["log"]) == pytest.approx(losses(one["log"]), rel=1e-5) and two["log"]["kept"] == one["log"]["kept"]
    assert [entry["loss"] for entry in two["log"]["validation"]] == pytest.approx([entry["loss"] for entry in one["log"]["validation"]], rel=1e-5)
    assert two["total_parameters"] == one["total_parameters"] and two["trainable_parameters"] == one["trainable_parameters"]
    whole, gathered = (load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
    assert whole.keys() == gathered.keys() and max(float((whole[key] - gathered[key]).norm() / whole[key].norm()) for key in whole) < 1e-3


@pytest.mark.long
def test_sharding_without_gpus_is_refused(base, rows, tmp_path):
    params = FinetuneParams(**SHORT, engine="accelerate", workers=2, sharding="fsdp2")
    with pytest.raises(MissingError, match="needs a GPU for each worker"):
        train_apart(base, rows, [], params, 7, tmp_path, "tiny-random")


@pytest.mark.parametrize("settings", [{"workers": 2}, {"engine": "ray"}, {"engine": "accelerate", "workers": 2, "backend": "unsloth"},
    {"sharding": "fsdp2"}, {"sharding": "fsdp2", "engine": "accelerate", "workers": 2, "method": "full"}])
def test_settings_of_several_workers_must_fit_together(settings):
    with pytest.raises(ValueError, match="expected|set backend to peft"):
        FinetuneParams(**settings)


def test_more_processes_than_the_profile_says_are_refused(base, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="got 2 processes, expected finetune.workers=1"):
        train(base, rows, [], FinetuneParams(**SHORT), 7, tmp_path, show=False)


def test_the_recipe_on_data_without_a_licence_stops_before_it_collects(tmp_path):
    "It says which line to set; with that line, the licence is no longer what stops it."
    from typer.testing import CliRunner

    from medlab.cli.commands import app

    words = ["collect", "--profile", "gemma2-2b-medgpt", "--run", str(tmp_path)]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, InputError) and "set preprocess.licences_held=[medical-reasoning]" in str(found.exception)
    assert not (tmp_path / "collect" / "records.parquet").exists()
    held = CliRunner().invoke(app, [*words, "-p", "preprocess.licences_held=[medical-reasoning]"])
    assert "licences_held" not in str(held.exception)


# trackers


@pytest.mark.parametrize("name", ["trackio", "wandb"])
@pytest.mark.long
def test_one_line_sends_the_curves_to_a_tracker(base, rows, tmp_path, monkeypatch, name):
    "Offline, into a folder of this test: every step's loss and the validation losses arrive."
    if not find_spec(name):
        pytest.skip(f"{name} is not installed: pip install {name}")
    for variable, value in {"TRACKIO_DIR": str(tmp_path / "trackio"), "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(variable, value)
    log = train_apart(base, rows[:6], rows[6:], FinetuneParams(**SHORT, track=[name]), 7, tmp_path / "run" / "finetune")["log"]
    if name == "wandb":
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
        return
    database, = (tmp_path / "trackio").glob("medlab*.db")
    with sqlite3.connect(database) as connection:
        metrics = [json.loads(row[0]) for row in connection.execute("SELECT metrics FROM metrics WHERE run_name = 'run' ORDER BY step")]
    assert [entry["loss"] for entry in metrics if "loss" in entry] == pytest.approx(losses(log))
    assert [entry["eval_loss"] for entry in metrics if "eval_loss" in entry] == pytest.approx([entry["loss"] for entry in log["validation"]])

#: A stand-in for W&B, which is not installed here: it writes down how it is called, and fails at the call that a variable names.
SCRIPTED_WANDB = """
import json, os

def note(call, **given):
    if os.environ.get("SCRIPTED_FAILS") == call:
        raise ConnectionError(f"no route to the server for {os.environ['WANDB_API_KEY']}")
    with open(os.environ["SCRIPTED_NOTES"], "a") as stream:
        stream.write(json.dumps({"call": call, **given}) + "\\n")

def init(**given): note("init", mode=os.environ.get("WANDB_MODE"), key=os.environ.get("WANDB_API_KEY"), **given)
def log(numbers, step): note("log", step=step, **numbers)
def finish(): note("finish")
"""


@pytest.fixture
def scripted_wandb(tmp_path, monkeypatch):
    "The stand-in in place of wandb, and no key or login of W&B; gives the calls so far."
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(SCRIPTED_WANDB)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.chdir(tmp_path)
    for variable in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.setenv(variable, "")  # so that what the training sets is taken away afterwards
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRIPTED_NOTES", str(tmp_path / "notes.jsonl"))
    return lambda: [json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines()]


def test_wandb_without_a_key_writes_to_the_disk(base, rows, tmp_path, scripted_wandb):
    "Against the stand-in. Nobody is asked for a key, and every loss arrives."
    _, log = train(base, rows[:6], rows[6:], FinetuneParams(**SHORT, track=["wandb"]), 7, tmp_path / "run" / "finetune", show=False)
    first, *rest, last = scripted_wandb()
    assert (first["call"], first["mode"], first["key"], first["name"], last["call"]) == ("init", "offline", None, "run", "finish")
    assert [entry["loss"] for entry in rest if "loss" in entry] == pytest.approx(losses(log))


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_tracker_that_fails_costs_a_note_and_no_training(base, rows, tmp_path, monkeypatch, scripted_wandb, call):
    "Against the stand-in. The key is found in .env, handed to W&B, and masked in the note."
    key = "not-a-key-" + "0" * 30
    (tmp_path / ".env").write_text(f"WANDB_API_KEY={key}\n")
    monkeypatch.setenv("SCRIPTED_FAILS", call)
    model, log = train(base, rows[:6], [], FinetuneParams(**{**SHORT, "steps": 2}, track=["wandb"]), 7, tmp_path / "run" / "finetune", show=False)
    assert len(log["steps"]) == 2 and os.environ["WANDB_API_KEY"] == key
    note, = [note for note in log["notes"] if "wandb gave up" in note]
    assert "ConnectionError" in note and "***" in note and key not in note


def test_a_tracker_that_is_not_installed_is_said_before_the_model_is_loaded(base, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("medlab.training.runs.kept_method", lambda *given: pytest.fail("the method was chosen before"))
    monkeypatch.setattr("medlab.training.tracking.find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install wandb"):
        train(base, rows, [], FinetuneParams(**SHORT, track=["wandb"]), 7, tmp_path, show=False)
