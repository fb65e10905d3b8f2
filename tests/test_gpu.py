"""What only a GPU can show: pytest -m gpu, in under 8 minutes on one card, without a network.

Skipped without CUDA. MEDLAB_GPU_TESTS=cpu rehearses on a CPU what can be rehearsed there, with a tiny random model."""

import importlib.util
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REHEARSAL = os.environ.get("MEDLAB_GPU_TESTS") == "cpu"


def no_gpu():
    "Why the tests are skipped here; empty where they run."
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    return "" if REHEARSAL or torch.cuda.is_available() else "no CUDA device: PyTorch sees no NVIDIA GPU (MEDLAB_GPU_TESTS=cpu rehearses on a CPU)"


WHY_NOT = no_gpu()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
needs_card = pytest.mark.skipif(REHEARSAL, reason="needs a real card")
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: no 4-bit weights")

DEVICE = "cpu" if REHEARSAL else "cuda"
MODEL = "tiny-random" if REHEARSAL else "smollm2-135m-instruct"
STEPS = 4 if REHEARSAL else 30
LEVELS = {
    "emergency": ["Crushing chest pain for an hour", "My father cannot move his left arm since breakfast", "Blood is pulsing out of a cut on my thigh"],
    "urgent": ["Blood in my urine since this morning", "A fever of 39 degrees for four days", "My ankle is swollen and I cannot stand on it"],
    "routine": ["My knee clicks when I climb stairs", "I would like to have my moles looked at", "My ears ring a little in quiet rooms"],
    "self-care": ["A cold and a mild cough since yesterday", "I bit my tongue at dinner", "My hands are dry in winter"],
}


def distance(found, expected):
    "The error relative to the expected tensor's size; NaN counts as infinitely far."
    error = (found.float().cpu() - expected.float().cpu()).norm() / expected.float().norm().cpu()
    return float(error) if math.isfinite(error) else math.inf


@pytest.fixture(scope="module")
def base():
    from medlab.models import load_spec, obtain

    return obtain(load_spec(MODEL))


@pytest.fixture(scope="module")
def chat(base):
    from medlab.contracts.chat import ChatFormat

    return ChatFormat.from_folder(base)


@pytest.fixture(scope="module")
def rows(chat):
    "48 training rows: token ids, and labels that are -100 where nothing is learnt."
    from medlab.contracts.tasks import build_messages

    found = []
    for days in range(4):
        for level, complaints in LEVELS.items():
            for complaint in complaints:
                fields = {"triage": level, "reason": f"{complaint} is what {level} means."}
                found.append(chat.training_ids(build_messages("triage", f"{complaint}. It began {days + 1} days ago.", fields=fields)))
    return found


def settings(**more):
    from medlab.training.settings import FinetuneParams

    quiet = {"validation": 0, "scored": 0, "forgetting": 0, "dropout": 0.0, "checkpoint_every": 100, "warmup": 2, "learning_rate": 1e-3, "batch": 8, "steps": STEPS}
    return FinetuneParams(**{**quiet, **more})


@pytest.fixture(scope="module")
def train_with(base, rows, tmp_path_factory):
    "Train with a backend in a process of its own; returns what it wrote and its folder."
    runs = pytest.importorskip("medlab.training.runs")

    def train(backend, **more):
        folder = tmp_path_factory.mktemp(backend)
        return runs.train_apart(base, rows, [], settings(backend=backend, **more), 7, folder, MODEL), folder

    return train


@pytest.fixture(scope="module")
def trained(train_with):
    "LoRA on the 16-bit base, trained with peft."
    return train_with("peft", method="lora")


# 4 bits


@needs_bitsandbytes
def test_nf4_products_agree_with_the_cpu_forward_and_backward():
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    from bitsandbytes.nn import Linear4bit

    chance = torch.Generator().manual_seed(7)
    weight, inputs, towards = (torch.randn(*shape, generator=chance) for shape in ((1536, 576), (64, 576), (64, 1536)))
    exact = dequantize_4bit(*quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)).double()
    results = {}
    for device in ("cpu", DEVICE):
        layer = Linear4bit(576, 1536, bias=False, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True)
        layer.load_state_dict({"weight": weight})
        layer = layer.to(device).train()
        given = inputs.clone().to(device).requires_grad_()
        out = layer(given)
        out.backward(towards.to(device))
        assert layer.weight.dtype == torch.uint8 and layer.weight.numel() == weight.numel() // 2
        results[device] = (out.detach(), given.grad)
    for place in results:
        assert distance(results[place][0], inputs.double() @ exact.T) < 5e-3, f"forward on {place}"
        assert distance(results[place][1], towards.double() @ exact) < 5e-3, f"backward on {place}"
    assert distance(results[DEVICE][0], results["cpu"][0]) < 5e-3 and distance(results[DEVICE][1], results["cpu"][1]) < 5e-3


@needs_bitsandbytes
def test_a_4_bit_model_has_the_same_loss_and_gradients_as_on_the_cpu(base, rows):
    import torch
    from medlab.engines.hf import nf4
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    found = {}
    for device in ("cpu", DEVICE):
        model = AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4(), dtype=torch.float32, device_map={"": device})
        set_seed(7)
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")).train()
        ids, labels = (torch.tensor([part], device=device) for part in rows[0])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        gradients = torch.cat([weight.grad.flatten().float().cpu() for weight in model.parameters() if weight.grad is not None])
        found[device] = (loss.item(), gradients)
    assert found[DEVICE][0] == pytest.approx(found["cpu"][0], rel=5e-3)
    assert torch.nn.functional.cosine_similarity(found[DEVICE][1], found["cpu"][1], dim=0) > 0.99


# What to compute in


@needs_card
def test_the_dtype_is_what_the_card_is_made_for_and_is_the_faster_one(base):
    import torch

    precision = pytest.importorskip("medlab.training.precision")
    chosen, _, _ = precision.choose_method(settings(method="lora"), base)
    assert chosen["compute"] == ("bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16")

    def seconds(dtype):
        left, right = (torch.randn(4096, 4096, device="cuda", dtype=dtype) for _ in range(2))
        times = []
        for _ in range(8):
            torch.cuda.synchronize()
            started = time.perf_counter()
            left @ right
            torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return sorted(times[2:])[3]

    assert seconds(torch.float32) > 1.5 * seconds(getattr(torch, chosen["compute"]))


# Training


def test_the_loss_falls(trained):
    log = trained[0]["log"]
    assert log["method"]["backend"] == "peft" and log["method"]["quantization"] == "none"
    losses = [entry["loss"] for entry in log["steps"]]
    assert len(losses) == STEPS and losses[-1] < (0.999 if REHEARSAL else 0.5) * losses[0]


@pytest.mark.parametrize("method", ["lora", pytest.param("qlora", marks=needs_bitsandbytes)])
def test_unsloth_trains_like_peft(train_with, method):
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("unsloth is not installed: its backend is not compared with peft's")
    logs = {name: train_with(name, method=method)[0]["log"] for name in ("peft", "unsloth")}
    assert {name: log["method"]["backend"] for name, log in logs.items()} == {"peft": "peft", "unsloth": "unsloth"}
    mine, theirs = ([entry["loss"] for entry in logs[name]["steps"]] for name in ("peft", "unsloth"))
    assert theirs[0] == pytest.approx(mine[0], rel=0.02)  # the same rows, labels and base; bfloat16 has three digits
    assert sum(theirs) / len(theirs) == pytest.approx(sum(mine) / len(mine), rel=0.05)
    print({name: (log["tokens_per_second"], log["method"]) for name, log in logs.items()})


@needs_card
def test_out_of_memory_names_the_parameter_to_change(base, rows, tmp_path):
    "In a process of its own that may use only little of the card."
    pytest.importorskip("medlab.training.runs")
    code = f"""
import json, sys
from pathlib import Path
import torch
from medlab.basics.errors import MedlabError
from medlab.training.runs import train
from medlab.training.settings import FinetuneParams
torch.cuda.set_per_process_memory_fraction(1e9 / torch.cuda.get_device_properties(0).total_memory)
rows = json.loads(Path(sys.argv[1]).read_text())
params = FinetuneParams(backend="peft", method="lora", steps=2, batch=48, validation=0, scored=0, forgetting=0)
try:
    train(Path({str(base)!r}), rows, [], params, 7, Path(sys.argv[2]), {MODEL!r}, show=False)
except MedlabError as error:
    print("MESSAGE", error)
"""
    import json

    (tmp_path / "rows.json").write_text(json.dumps(rows * 2))
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "rows.json", tmp_path / "out"], capture_output=True, text=True)
    message = done.stdout.partition("MESSAGE")[2]
    assert "out of memory" in message and "finetune.batch=24" in message, done.stdout[-500:] + done.stderr[-1500:]


# What comes out


def test_a_merged_adapter_gives_the_same_logits(base, rows, trained):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(DEVICE).eval()
    ids = torch.tensor([rows[0][0]], device=DEVICE)
    with torch.no_grad():
        untrained = plain(ids).logits
        tuned = PeftModel.from_pretrained(plain, trained[1] / "adapter").eval()
        beside = tuned(ids).logits
        merged = tuned.merge_and_unload()(ids).logits
    assert distance(merged, beside) < 1e-3 < distance(beside, untrained)


def test_the_engine_answers_on_the_card_as_on_the_cpu(base, chat, trained):
    from medlab.contracts.engine import Sampling
    from medlab.contracts.tasks import build_messages
    from medlab.engines.hf import HfEngine

    asked = [build_messages("triage", f"{complaints[0]}.") for complaints in LEVELS.values()]
    answers = {}
    for device in ("cpu", DEVICE):
        with HfEngine(base, trained[1] / "adapter", device=device) as engine:
            assert engine.model.device.type == device
            answers[device] = [answer.text for answer in engine.generate(asked, Sampling(length=12))]
    assert sum(one == other for one, other in zip(answers["cpu"], answers[DEVICE])) >= 3  # a near tie may fall either way
    if not REHEARSAL:
        assert all(text.startswith("Triage:") for text in answers[DEVICE])


def test_the_gguf_of_the_trained_model_answers_the_same(base, chat, trained, tmp_path):
    from medlab.basics.errors import MissingError
    from medlab.quantizing.converter import converter_folder

    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed: no GGUF is asked")
    try:
        converter_folder()
    except MissingError as error:
        pytest.skip(str(error))
    from medlab.contracts.engine import Sampling
    from medlab.contracts.tasks import build_messages
    from medlab.engines.hf import HfEngine
    from medlab.engines.llama_cpp import LlamaCppEngine
    from medlab.quantizing.conversion import to_gguf
    from medlab.quantizing.merging import merge

    merge(base, trained[1] / "adapter", tmp_path / "merged")
    to_gguf(tmp_path / "merged", tmp_path / "model-f16.gguf", "tuned")
    asked = [build_messages("triage", f"{complaint}.") for complaints in LEVELS.values() for complaint in complaints]
    sampling = Sampling(length=4, context=1024)
    with HfEngine(tmp_path / "merged", device=DEVICE) as engine:
        mine = [answer.text for answer in engine.generate(asked, sampling)]
    with LlamaCppEngine(tmp_path / "model-f16.gguf", chat, context=1024) as engine:
        theirs = [answer.text for answer in engine.generate(asked, sampling)]
    assert sum(one == other for one, other in zip(mine, theirs)) >= (8 if REHEARSAL else 11), list(zip(mine, theirs))


def test_the_bundle_is_what_is_installed():
    "On a machine that was set up from a bundle, everything comes from there, in the versions that were packed."
    if "MEDLAB_BUNDLE" not in os.environ:
        pytest.skip("MEDLAB_BUNDLE does not name the folder of an installed bundle")
    import medlab

    assert Path(medlab.__file__).is_relative_to(os.environ["MEDLAB_BUNDLE"])
