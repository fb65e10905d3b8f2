"""Training: what is learnt, the same bytes twice, `kill -9`, and errors that say what to do."""

import signal
import subprocess
import sys
import time

import pytest

from medlab.basics.errors import InputError, MedlabError
from medlab.basics.files import cache_folder, read_json, remove, sha256_file, write_jsonl
from medlab.contracts.chat import ChatFormat
from medlab.contracts.tasks import read_examples
from medlab.core import load_profile
from medlab.finetune import finetune, read_rows
from medlab.models import load_spec, obtain
from medlab.training.adapters import add_lora, lora_targets, save_adapter
from medlab.training.batches import encode_examples, left_out_notes
from medlab.training.loop import COMPLETE, last_checkpoint
from medlab.training.precision import choose_method, fast_compute, measure_compute
from medlab.training.runs import train
from medlab.training.settings import FinetuneParams

PROMPT_WORDS = ("careful medical assistant", "<|im_start|>", "Reply with exactly")


@pytest.fixture(scope="module")
def base():
    return obtain(load_spec("tiny-random"))


@pytest.fixture(scope="module")
def chat(base):
    return ChatFormat.from_folder(base)


@pytest.fixture(scope="module")
def rows(smoke_run, chat):
    return encode_examples(read_examples(smoke_run[0].file("instruct", "train.jsonl"))[:12], chat, 320)[0]


def test_only_the_answer_and_its_end_are_learnt(smoke_run, chat):
    "Decode the labels of every training example: the assistant's words, the end of its turn, and nothing of the prompt."
    for example in read_examples(smoke_run[0].file("instruct", "train.jsonl")):
        ids, labels = chat.training_ids(example.messages)
        learnt = [label for label in labels if label != -100]
        assert chat.decode(learnt, keep_control=True) == example.messages[-1]["content"] + chat.end_of_turn
        assert labels[: len(ids) - len(learnt)] == [-100] * (len(ids) - len(learnt)), "learnt tokens are not one piece at the end"
        assert ids[: len(ids) - len(learnt)] == chat.prompt_ids(example.messages[:-1]), "trained on a different prompt from the one used later"
        assert not any(words in chat.decode(learnt, keep_control=True) for words in PROMPT_WORDS)


def test_finished_step(smoke_run):
    run, _ = smoke_run
    manifest, info, log = run.manifest("finetune"), *(read_json(run.file("finetune", name)) for name in ("model_info.json", "training_log.json"))
    params = FinetuneParams(**manifest.params)
    assert [entry["step"] for entry in log["steps"]] == list(range(1, params.steps + 1))
    assert all(entry["tokens_per_second"] > 0 and entry["tokens"] > 0 for entry in log["steps"])
    assert log["validation"][0]["step"] == 0 and log["validation"][-1]["step"] == params.steps
    assert info["scaling"] == params.alpha / params.rank**0.5 and info["base_model"] == "tiny-random"
    assert not (run.path / "finetune" / "checkpoints").exists()


def test_the_adapter_names_no_machine(smoke_run):
    run, _ = smoke_run
    folder = run.file("finetune", "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = read_json(folder / "adapter_config.json")
    assert config["base_model_name_or_path"] == "tiny-random" and config["use_rslora"] is True
    assert config["target_modules"] == sorted(config["target_modules"]) and len(config["target_modules"]) == 7
    for path in (folder / "adapter_config.json", run.file("finetune", "model_info.json")):
        assert "/" not in path.read_text().replace("</", "").replace('"/"', ""), f"{path.name} holds a path"


def test_tensorboard_has_the_curves(smoke_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = smoke_run
    events = EventAccumulator(str(run.path / "finetune" / "tensorboard")).Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [entry["step"] for entry in read_json(run.file("finetune", "training_log.json"))["steps"]]
    assert {"train/learning_rate", "train/tokens_per_second", "eval/loss"} <= set(events.Tags()["scalars"])


def test_same_seed_same_bytes(base, rows, tmp_path):
    "Twice with one seed, once with another; dropout is on, so random numbers are drawn in every step."
    params, digests = FinetuneParams(steps=3, checkpoint_every=3, warmup=1), []
    for name, seed in (("first", 7), ("second", 7), ("other", 8)):
        model, _ = train(base, rows, [], params, seed, tmp_path / name)
        save_adapter(model, tmp_path / name / "adapter", "tiny-random")
        digests.append([sha256_file(path) for path in sorted((tmp_path / name / "adapter").iterdir())])
    assert digests[0] == digests[1]
    assert digests[0][1] != digests[2][1]


def test_kill_minus_nine(copied, smoke_run):
    "Killed between two checkpoints, with half a checkpoint left behind, and called again: byte for byte what an undisturbed run gives."
    run, profile = copied
    remove(run.path / "finetune")
    code = f"from medlab.core import open_run; from medlab.finetune import finetune; finetune(*open_run('smoke', {str(run.path)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = run.path / "finetune" / "checkpoints"
    while not (checkpoints / "checkpoint-4" / COMPLETE).exists():
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run.manifest("finetune") is None and not (run.path / "finetune" / "adapter").exists()
    half = checkpoints / "checkpoint-6"
    half.mkdir(exist_ok=True)
    (half / "trainer_state.json").write_text('{"global_st')
    (half / COMPLETE).unlink(missing_ok=True)
    assert last_checkpoint(checkpoints).name == "checkpoint-4"

    finetune(run, profile)
    undisturbed, _ = smoke_run
    assert read_json(run.file("finetune", "training_log.json"))["resumed_at"] == 4
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "model_info.json"):
        assert sha256_file(run.file("finetune", name)) == sha256_file(undisturbed.file("finetune", name)), name


def test_a_loss_that_is_no_number_stops_the_training(base, rows, tmp_path):
    with pytest.raises(MedlabError, match="lower finetune.learning_rate"):
        train(base, rows, [], FinetuneParams(steps=6, checkpoint_every=1, warmup=0, learning_rate=1e30), 7, tmp_path)
    checkpoint = last_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is None or int(checkpoint.name.rpartition("-")[2]) < 3, "a checkpoint was written after the loss broke"


def test_long_examples_are_left_out_not_cut(smoke_run, chat):
    run, _ = smoke_run
    examples = read_examples(run.file("instruct", "train.jsonl"))
    lengths = sorted(len(chat.training_ids(example.messages)[0]) for example in examples)
    limit = lengths[len(lengths) // 2]
    rows, validation, items, notes = read_rows(run, chat, FinetuneParams(max_length=limit))
    assert all(len(chat.training_ids(example.messages)[0]) <= limit for example in items)
    assert len(rows) == sum(length <= limit for length in lengths)
    assert notes == [f"{len(examples) - len(rows)} of {len(examples)} training examples are longer than {limit} tokens and were left out"]
    assert all(ids[-1] == chat.eos_id and len(ids) <= limit for ids, _ in rows + validation), "an answer was cut"


def test_nothing_to_train_on(copied, chat):
    run, _ = copied
    with pytest.raises(InputError, match="raise finetune.max_length"):
        read_rows(run, chat, FinetuneParams(max_length=16))
    write_jsonl(run.file("instruct", "train.jsonl"), [])
    with pytest.raises(InputError, match="no training examples"):
        read_rows(run, chat, FinetuneParams())


def test_without_bitsandbytes_plain_lora_and_one_note(monkeypatch, base, rows, tmp_path):
    import medlab.training.precision

    find_spec = medlab.training.precision.find_spec
    monkeypatch.setattr(medlab.training.precision, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    chosen, notes, _ = choose_method(FinetuneParams(), base)
    assert chosen["quantization"] == "none" and len(notes) == 1 and "pip install bitsandbytes" in notes[0]
    _, log = train(base, rows, [], FinetuneParams(steps=1, dropout=0.0), 7, tmp_path)
    assert log["method"]["quantization"] == "none" and log["notes"] == notes


# which floats to compute in

FLOAT32, BFLOAT16 = {"float32": 1.0, "bfloat16": 3.0}, {"float32": 1.0, "bfloat16": 0.4}


def measured_as(monkeypatch, product, step):
    "Replace the two measurements by given seconds and note which of them were made."
    import medlab.training.precision

    made = []
    monkeypatch.setattr(medlab.training.precision, "product_seconds", lambda *_: made.append("product") or product)
    monkeypatch.setattr(medlab.training.precision, "step_seconds", lambda *_: made.append("step") or step)
    return made


@pytest.mark.parametrize("product, step, compute, made", [
    (FLOAT32, BFLOAT16, "float32", ["product"]),  # slow in the product: nothing else is measured
    ({"float32": 1.0, "bfloat16": 0.95}, BFLOAT16, "float32", ["product"]),
    (BFLOAT16, BFLOAT16, "bfloat16", ["product", "step"]),
    (BFLOAT16, FLOAT32, "float32", ["product", "step"]),  # fast in the product, slow in training
    (BFLOAT16, {"float32": 1.0, "bfloat16": 0.9}, "float32", ["product", "step"]),
    (BFLOAT16, {"float32": 1.0, "bfloat16": 0.8}, "bfloat16", ["product", "step"]),
])
def test_the_measurement_decides(monkeypatch, base, product, step, compute, made):
    calls = measured_as(monkeypatch, product, step)
    found = measure_compute(base, "nf4", FinetuneParams())
    assert (found["compute"], calls) == (compute, made)
    assert (found["product"], found["step"]) == (product, step if "step" in made else None)


def test_one_computer_decides_once(monkeypatch, base, rows, tmp_path):
    "Two trainings on one computer compute alike, also when a second measurement would come out the other way; a resumed one keeps its own."
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))
    calls = measured_as(monkeypatch, BFLOAT16, BFLOAT16)
    _, first = train(base, rows, [], FinetuneParams(steps=1), 7, tmp_path / "first")
    assert calls == ["product", "step"] and first["method"]["compute"] == "bfloat16"
    calls = measured_as(monkeypatch, FLOAT32, FLOAT32)
    _, second = train(base, rows, [], FinetuneParams(steps=1), 7, tmp_path / "second")
    assert calls == [] and second["method"] == first["method"]
    kept = read_json(tmp_path / "second" / "method.json")
    assert kept["measured"]["step"] == BFLOAT16, "the figures that decided are written down"
    remove(cache_folder("compute"))
    _, resumed = train(base, rows, [], FinetuneParams(steps=2), 7, tmp_path / "first")
    assert resumed["method"]["compute"] == "bfloat16" and calls == []
    assert fast_compute(base, "nf4", FinetuneParams())["compute"] == "float32" and calls == ["product"]


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_resumed_to_the_bit_in_both_floats(base, rows, tmp_path, compute):
    params = FinetuneParams(steps=4, checkpoint_every=2, warmup=1, compute=compute)
    for name, cap in (("straight", None), ("stopped", 1e-9)):
        model, log = train(base, rows, rows[:2], params.model_copy(update={"checkpoint_every": 1, "max_seconds": cap} if cap else {}), 7, tmp_path / name)
        if cap:
            assert len(log["steps"]) == 1
            model, log = train(base, rows, rows[:2], params, 7, tmp_path / name)
            assert log["resumed_at"] == 1
        save_adapter(model, tmp_path / name / "adapter", "tiny-random")
    digests = {sha256_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("straight", "stopped")}
    assert len(digests) == 1 and log["method"]["compute"] == compute


def test_the_time_cap_marks_the_run_as_truncated(base, rows, tmp_path):
    _, log = train(base, rows, [], FinetuneParams(steps=50, max_seconds=0.01, method="lora"), 7, tmp_path)
    assert log["truncated"] and len(log["steps"]) == 1


def test_a_misspelt_parameter_is_an_error():
    with pytest.raises(InputError, match="did you mean 'learning_rate'"):
        load_profile("smoke", ["finetune.learning_rte=0.1"])


# other architectures, other people's texts


def tiny(name):
    "A random model of another architecture, a few thousand weights large."
    import transformers

    small = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    configs = {
        "Qwen3": lambda: transformers.Qwen3Config(**small), "Gemma2": lambda: transformers.Gemma2Config(**small),
        "Phi3": lambda: transformers.Phi3Config(**{key: value for key, value in small.items() if key != "head_dim"}, pad_token_id=0),
        "GPT2": lambda: transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    }
    return transformers.AutoModelForCausalLM.from_config(configs[name]())


@pytest.mark.parametrize(("name", "expected"), [
    ("Qwen3", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ("Gemma2", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
    ("Phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}), ("GPT2", {"c_attn", "c_proj", "c_fc"}),
])
def test_lora_stands_beside_every_linear_layer_of_a_block_and_not_beside_the_vocabulary(name, expected):
    assert set(lora_targets(add_lora(tiny(name), FinetuneParams()))) == expected


def test_a_profile_may_name_the_layers():
    assert lora_targets(add_lora(tiny("Qwen3"), FinetuneParams(targets=["q_proj", "v_proj"]))) == ["q_proj", "v_proj"]
    with pytest.raises(InputError, match="finetune.targets names c_attn, which no layer"):
        add_lora(tiny("Qwen3"), FinetuneParams(targets=["q_proj", "c_attn"]))


@pytest.mark.parametrize("text", ["Write the dose into <filename>.", "a <file_sep> b", "bad \ud83d"])
def test_an_example_that_cannot_be_encoded_is_left_out_by_name(smoke_run, chat, text):
    examples = read_examples(smoke_run[0].file("instruct", "train.jsonl"))[:4]
    messages = [*examples[1].messages[:1], {"role": "user", "content": text}, examples[1].messages[-1]]
    spoiled = examples[1].model_copy(update={"id": "the-bad-one", "messages": messages})
    rows, left_out = encode_examples([examples[0], spoiled, *examples[2:]], chat, 400)
    assert len(rows) == 3 and list(left_out) == ["the-bad-one"]
    note, = left_out_notes(left_out, 4, 400)
    assert "the-bad-one" in note and ("control token" in note or "half of a character" in note)
    with pytest.raises(InputError, match="expected at least one: message 2 holds"):
        encode_examples([spoiled], chat, 400)
