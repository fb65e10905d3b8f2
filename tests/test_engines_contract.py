"One suite over all engines, on the same 16-bit weights: same prompt, same distribution, same stops, and no answer that is cut."

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.contracts.chat import ChatFormat, check_same_prompt
from medlab.contracts.engine import ContextOverflow, ModelNotFound, Sampling, as_decoded, option_tokens
from medlab.deploy import modelfile
from medlab.engines.hf import HfEngine
from medlab.engines.llama_cpp import LlamaCppEngine
from medlab.engines.ollama_server import OllamaEngine, OllamaServer, find_ollama
from medlab.engines.openai_compatible import OpenAiEngine
from medlab.engines.deployment import model_parameters
from medlab.models import load_spec, obtain

from small_models import configurations, write_small_model

FAMILIES = ("llama", "llama2", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3", "gpt2")
WORDS = ["Red", "Blue", "Green", "Black", "White", "Yes", "No", "Maybe"]
QUESTIONS = ["Is it warm?", "Is it late?", "Who coughs?", "What hurts?", "Any fever?", "Any rash?", "Is it cold?", "May I sleep?"]
SYSTEMS = ["Be brief.", "Be kind.\nAnswer in a word."]
TALKS = [[{"role": "system", "content": SYSTEMS[0]}, {"role": "user", "content": question}] for question in QUESTIONS]
ENGINES = ["transformers", "llama_cpp", "ollama", "openai"]
SHORT = Sampling(length=6)


def taught(place):
    "The two words that the model learns as answers to a question: the first of them twice as often."
    return WORDS[place % len(WORDS)], WORDS[(place + 3) % len(WORDS)]


def answer_ids(chat, text):
    "The tokens that the model writes for an answer, without the one that ends the turn: some families open it with a space that is a token of its own."
    ids, labels = chat.training_ids([*TALKS[0], {"role": "assistant", "content": text}])
    return [token for token, label in zip(ids, labels) if label != -100][:-1]


def opening(chat, talk):
    "What stands before the first word of an answer: the prompt, and such a space."
    return option_tokens(chat, talk, "", WORDS[0]).before


def overfit(model, chat, steps=400):
    "Teach a tiny model the words by heart, so that it matters which prompt it gets; its embeddings stay random."
    import torch

    model.get_input_embeddings().weight.requires_grad_(False)
    rows = [chat.training_ids([*talk, {"role": "assistant", "content": word + "."}])
            for place, talk in enumerate(TALKS) for word in (taught(place)[0], *taught(place))]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([one + [chat.eos_id] * (longest - len(one)) for one, _ in rows])
    labels = torch.tensor([one + [-100] * (longest - len(one)) for _, one in rows])
    where, cap = labels[:, 1:] != -100, getattr(model.config, "final_logit_softcapping", None)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2 if model.config.vocab_size > 2000 else 3e-3)
    for _ in range(steps):
        logits = model.lm_head(model.base_model(input_ids=ids).last_hidden_state[:, :-1][where])
        loss = torch.nn.functional.cross_entropy(torch.tanh(logits / cap) * cap if cap else logits, labels[:, 1:][where])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.6435 * len(rows) / int((labels != -100).sum()):  # 0.6365 nats an answer are the least: the word itself is drawn
            break
    return model


def llama_with_a_real_tokenizer(folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    donor = obtain(load_spec("tiny-random"))
    for path in donor.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json" and path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    chat = ChatFormat.from_folder(donor)
    return LlamaForCausalLM(LlamaConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=256, tie_word_embeddings=True,
        vocab_size=chat.tokenizer.get_vocab_size(), max_position_embeddings=2048, eos_token_id=chat.eos_id, bos_token_id=None, initializer_range=0.15))


REAL = "llama with a real tokenizer"


@pytest.fixture(scope="module", params=[REAL, *(pytest.param(name, marks=pytest.mark.long) for name in FAMILIES)])
def folder(request, tmp_path_factory):
    "A tiny model of a family, taught by heart; its weights are rounded to 16 bit."
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("contract") / "model"
    folder.mkdir()
    torch.manual_seed(7)
    if request.param == REAL:
        model = llama_with_a_real_tokenizer(folder)
    else:
        write_small_model(folder, request.param, words=WORDS, positions=2048)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    overfit(model, ChatFormat.from_folder(folder)).to(torch.float16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def chat(folder):
    return ChatFormat.from_folder(folder)


@pytest.fixture(scope="module")
def gguf(folder):
    from medlab import quantize

    quantize.to_gguf(folder, folder.parent / "model-f16.gguf", "contract")
    return folder.parent / "model-f16.gguf"


@pytest.fixture(scope="module")
def server(gguf, chat, tmp_path_factory):
    place = find_ollama()
    if place is None:
        pytest.skip("no Ollama here: `make ollama` builds one")
    with OllamaServer(place, tmp_path_factory.mktemp("ollama") / "models") as running:
        running.create("medlab-contract", gguf, chat.go_template(), {**model_parameters(chat, SHORT), "num_thread": 1}, license="Apache-2.0")
        yield running
        running.delete("medlab-contract")


@pytest.fixture(scope="module")
def opened(folder, gguf, chat):
    "Every engine, opened once."
    engines = {}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(params=ENGINES)
def engine(request, opened, folder, gguf, chat):
    if request.param not in opened:
        server = request.getfixturevalue("server") if request.param in ("ollama", "openai") else None
        opened[request.param] = {
            "transformers": lambda: HfEngine(folder), "llama_cpp": lambda: LlamaCppEngine(gguf, chat),
            "ollama": lambda: OllamaEngine(server.host, "medlab-contract", chat),
            "openai": lambda: OpenAiEngine(server.host, "medlab-contract", chat=chat),
        }[request.param]()
    return opened[request.param]


def likeliest(chat, talk, chances):
    "The five likeliest next tokens that can be written as an option, with their probabilities."
    import torch

    found, before = {}, opening(chat, talk)
    for token in torch.argsort(chances, descending=True).tolist():
        decoded = chat.decode([token])
        for text in dict.fromkeys((decoded, decoded.strip())):  # the space before an answer may be the template's
            if text.strip() and "\ufffd" not in text and (one := option_tokens(chat, talk, "", text)).own == [token] and one.before == before:
                found[text] = float(chances[token])
                break
        if len(found) == 5:
            break
    return found


@pytest.fixture(scope="module")
def exact(folder):
    "What plain transformers gives for the first word of every answer: the likeliest tokens with their probabilities."
    import torch

    with HfEngine(folder) as engine, torch.inference_mode():
        rows = [engine.model(torch.tensor([opening(engine.chat, talk)])).logits[0, -1].float() for talk in items()]
        return [likeliest(engine.chat, talk, torch.softmax(row, -1)) for talk, row in zip(items(), rows)]


def items():
    "A hundred conversations: the ones that were learnt, and others beside them."
    more = [[{"role": "system", "content": system}, {"role": "user", "content": question + tail}]
            for tail in ("", " Please say.", "\n\nAnswer now", " 🩺", " ½", "  ", " Really?") for system in SYSTEMS[::-1] for question in QUESTIONS]
    return [*TALKS, *more][:100]


def variation(ours, theirs):
    "The total variation distance of two distributions over some tokens and the rest."
    tokens = [*ours, *(token for token in theirs if token not in ours)]
    apart = sum(abs(ours.get(token, 0.0) - theirs.get(token, 0.0)) for token in tokens)
    return (apart + abs(sum(ours.values()) - sum(theirs.values()))) / 2


def chances(engine, talks, tokens):
    "The probabilities of tokens. Where an engine lists the 20 likeliest only, another one has less than the last of them."
    scores = engine.option_logprobs(talks, [list(some) for some in tokens])
    return [{token: 0.0 if token in one.bounded else math.exp(value) for token, value in one.logprobs.items()} for one in scores]


def test_every_family_is_named():
    assert set(FAMILIES) == set(configurations())


def test_it_matters_which_prompt_the_model_gets(exact):
    "Else the comparisons below would pass with a wrong prompt: random weights give nearly the same distribution for every prompt."
    for a, b in itertools.combinations(range(len(QUESTIONS)), 2):
        assert variation(exact[a], exact[b]) > 0.3
    for place in range(len(TALKS)):
        often, seldom = taught(place)
        assert exact[place][often] > exact[place][seldom] > 0.1


def test_every_engine_has_the_same_prompt_ids(engine, chat):
    for talk in [*items()[::5], [*TALKS[0], {"role": "assistant", "content": "Red."}, {"role": "user", "content": "  And\n now? "}]]:
        if hasattr(engine, "render"):
            check_same_prompt(chat, talk, engine.render(talk), engine.name)
        if hasattr(engine, "tokenize"):
            check_same_prompt(chat, talk, engine.tokenize(chat.prompt_text(talk)), engine.name)
        assert engine.generate([talk], Sampling(length=1))[0].prompt_tokens == len(chat.prompt_ids(talk))


def refuses_to_go_on(engine, chat):
    "Where an answer opens with a token of its own, an engine that takes texts cannot stand behind it: it says so, and gives no other distribution."
    if engine.name not in ("ollama", "openai") or opening(chat, TALKS[0]) == chat.prompt_ids(TALKS[0]):
        return False
    with pytest.raises(MissingError, match="use transformers"):
        engine.option_logprobs(TALKS[:1], [WORDS[:2]])
    return True


def test_every_engine_has_the_same_distribution(engine, exact, chat):
    if refuses_to_go_on(engine, chat):
        return
    found = chances(engine, items(), exact)
    far = [variation(a, b) for a, b in zip(exact, found)]
    assert max(far) <= 0.1 and sum(one <= 0.06 for one in far) >= 95, sorted(far)[-6:]
    for a, b in zip(exact, found):
        first, second = sorted(a.values())[-2:][::-1]
        if math.log(first / second) >= 0.1:
            assert max(a, key=a.get) == max(b, key=b.get)


def test_a_wrong_prompt_is_far_outside(engine, exact, chat):
    "The same comparison, with each question exchanged for the next."
    if refuses_to_go_on(engine, chat):
        return
    shifted = chances(engine, [*TALKS[1:], TALKS[0]], exact[:len(TALKS)])
    assert all(variation(a, b) > 0.2 for a, b in zip(exact, shifted))


def with_another_newline(text, words):
    "A text with one newline less behind its last words, or one more where there is none."
    before, found, after = text.rpartition(words)
    return before + found + (after.replace("\n", "", 1) if "\n" in after else "\n" + after)


def test_a_changed_newline_in_the_template_fails(server, gguf, chat):
    "Behind the user's words: what stands before them may be for system messages, which some families do not have."
    prompt = chat.prompt_text(TALKS[0])
    server.create("medlab-contract-broken", gguf, with_another_newline(chat.go_template(), "{{ $message.Content }}"), {})
    engines = [OllamaEngine(server.host, "medlab-contract-broken", chat)]
    if len(chat.encode(with_another_newline(prompt, QUESTIONS[0]))) != len(chat.encode(prompt)):  # Phi-3's control tokens take the newline behind them
        engines.append(OpenAiEngine(server.host, "medlab-contract-broken", chat=chat))
    for engine in engines:
        with engine, pytest.raises(MedlabError, match="a different prompt|has another template"):
            test_every_engine_has_the_same_prompt_ids(engine, chat)
    server.delete("medlab-contract-broken")


def test_an_answer_ends_at_its_stop(engine, chat):
    for place, talk in enumerate(TALKS[:3]):
        ids = answer_ids(chat, taught(place)[0])
        word = chat.decode(ids)
        whole, = engine.generate([talk], SHORT)
        assert (whole.text, whole.finish_reason) == (word + ".", "stop"), "the model was taught to end here"
        cut, = engine.generate([talk], Sampling(length=6, stop=["."]))
        assert (cut.text, cut.finish_reason) == (word, "stop")
        assert [piece.done.text for piece in engine.stream(talk, Sampling(length=6, stop=["."])) if piece.done] == [word]
        short, = engine.generate([talk], Sampling(length=len(ids)))
        assert (short.text, short.finish_reason, short.completion_tokens) == (word, "length", len(ids))


def test_eight_streams_at_a_time(engine):
    alone = [answer.text for answer in engine.generate(TALKS[:8], SHORT)]
    with ThreadPoolExecutor(8) as pool:
        streams = list(pool.map(lambda talk: list(engine.stream(talk, SHORT)), TALKS[:8]))
    assert ["".join(piece.text for piece in pieces) for pieces in streams] == alone
    assert all(pieces[-1].done.text == text for pieces, text in zip(streams, alone))


def test_eight_slots_at_a_time(gguf, chat):
    with LlamaCppEngine(gguf, chat, context=256, slots=8, cache=True) as engine:
        assert [answer.text for answer in engine.generate(TALKS[:8], Sampling(length=6, context=256))] == [chat.decode(answer_ids(chat, taught(n)[0] + ".")) for n in range(8)]


def test_a_prompt_of_200000_characters_is_refused(engine):
    talk = [{"role": "user", "content": "What? " * 33_334}]
    for ask in (lambda: engine.generate([talk], SHORT), lambda: list(engine.stream(talk, SHORT)), lambda: engine.option_logprobs([talk], [WORDS[:2]])):
        with pytest.raises(ContextOverflow, match="shorten"):
            ask()


def test_a_prompt_that_no_tokenizer_makes_fit_is_refused_without_one(server):
    "Ollama's /v1 would cut it silently."
    with OpenAiEngine(server.host, "medlab-contract") as engine, pytest.raises(ContextOverflow, match="shorten"):
        engine.generate([[{"role": "user", "content": "What? " * 33_334}]], SHORT)


def test_every_engine_says_what_it_is(engine):
    said = engine.info()
    assert {"engine", "model", "context", "device", "quantization"} <= set(said) and said["engine"] == engine.name and said["model"]
    assert said["quantization"] in {"transformers": ["float32"], "llama_cpp": ["F16"], "ollama": ["F16"], "openai": [None]}[engine.name]


def test_a_lead_is_gone_on_from(engine, exact):
    "The distribution after a begun answer is another one, and the same on every engine."
    if engine.name == "openai":
        with pytest.raises(MedlabError, match="does not go on from a begun answer"):  # Ollama's /v1 closes the turn
            engine.option_logprobs(TALKS[:1], [["Red", "Blue"]], "Well: ")
        return
    with_lead = engine.option_logprobs(TALKS[:2], [[".", "!"]] * 2, [taught(place)[0] for place in range(2)])
    assert all(one.best() == "." and one.logprobs["."] > -0.2 for one in with_lead)


# what people get who ask Ollama themselves


def test_ollama_answers_its_own_users_as_medlab(server, opened, chat):
    "`ollama run`, /api/chat and /v1 with temperature 0: the model's parameters are in the Modelfile. /v1 alone sets a temperature of its own."
    with OllamaEngine(server.host, "medlab-contract", chat) as engine:
        for talk in TALKS[:6]:
            ours = engine.generate([talk], SHORT)[0].text
            plain = httpx.post(f"{server.host}/api/chat", json={"model": "medlab-contract", "messages": talk, "stream": False}, timeout=60).json()
            assert as_decoded(chat, plain["message"]["content"]) == ours
            body = {"model": "medlab-contract", "messages": talk, "temperature": 0}
            openai = httpx.post(f"{server.host}/v1/chat/completions", json=body, timeout=60).json()
            assert as_decoded(chat, openai["choices"][0]["message"]["content"]) == ours
        bare = [{"role": "user", "content": QUESTIONS[0]}]
        assert as_decoded(chat, server.run("medlab-contract", QUESTIONS[0])) == engine.generate([bare], SHORT)[0].text
    assert ("may begin with a space" in modelfile(chat, SHORT, "model.gguf")) == chat.cuts_first_space, "the only difference, and it is named"


def test_ollamas_v1_samples_unless_told(server):
    "The difference that the Modelfile's comment names."
    talk, texts = TALKS[0], set()
    for seed in range(12):
        body = {"model": "medlab-contract", "messages": talk, "seed": seed}
        texts.add(httpx.post(f"{server.host}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]["content"])
    assert len(texts) > 1


def test_models_are_listed_shown_and_removed(server, gguf, chat):
    server.create("medlab-contract-other", gguf, chat.go_template(), {}, license="Apache-2.0", system="Be kind.")
    assert {"medlab-contract", "medlab-contract-other"} <= set(server.models())
    shown = server.show("medlab-contract-other")
    assert "Apache-2.0" in str(shown.license) and 'SYSTEM "Be kind."' in shown.modelfile.replace('"""', '"') or "SYSTEM Be kind." in shown.modelfile
    server.delete("medlab-contract-other")
    server.delete("medlab-contract-other")  # not there: nothing to do
    assert "medlab-contract-other" not in server.models()
    with pytest.raises(ModelNotFound, match="medlab deploy"):
        server.show("medlab-contract-other")


def test_weights_are_sent_once(server, gguf, chat, monkeypatch):
    import ollama

    def refuse(*_):
        raise AssertionError("the weights were sent again")

    monkeypatch.setattr(ollama.Client, "create_blob", refuse)
    server.create("medlab-contract-again", gguf, chat.go_template(), {})
    server.delete("medlab-contract-again")
    with pytest.raises(InputError, match="is not a GGUF"):  # looked at before anything is sent
        path = gguf.parent / "zeros.gguf"
        path.write_bytes(bytes(1000))
        server.create("medlab-contract-zeros", path, chat.go_template(), {})


# real weights


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "SmolLM2's weights in 16 bit: the folder, its GGUF, its chat format, and what transformers gives for four dozen short conversations."
    import torch

    from medlab import quantize

    folder, place = obtain(load_spec("smollm2-135m-instruct")), tmp_path_factory.mktemp("real")
    quantize.to_gguf(folder, place / "model-f16.gguf", "real")
    talks = [[{"role": "system", "content": system}, {"role": "user", "content": question + tail}]
             for tail in ("", " Say yes or no.", "\n\nA) yes\nB) no\nAnswer with a letter.") for system in SYSTEMS for question in QUESTIONS]
    with HfEngine(folder) as engine, torch.inference_mode():
        chat, model = engine.chat, engine.model
        rows = [torch.softmax(model(torch.tensor([chat.prompt_ids(talk)])).logits[0, -1].float(), -1) for talk in talks]
        exact = [likeliest(chat, talk, row) for talk, row in zip(talks, rows)]
        greedy = []  # ids so far, the likeliest next token, and its margin over the second in nats
        for talk in talks[::8]:
            ids = chat.prompt_ids(talk)
            for _ in range(8):
                best, tokens = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1).topk(2)
                greedy.append((list(ids), int(tokens[0]), float(best[0] - best[1])))
                ids.append(int(tokens[0]))
    return place / "model-f16.gguf", chat, talks, exact, greedy


def check_real(engine, talks, exact):
    far = [variation(a, b) for a, b in zip(exact, chances(engine, talks, exact))]
    assert max(far) <= 0.1 and sum(one <= 0.06 for one in far) >= 0.95 * len(far), sorted(far)[-6:]


@pytest.mark.long
def test_real_weights_in_llama_cpp(real):
    from medlab.engines.llama_cpp import next_logprobs

    gguf, chat, talks, exact, greedy = real
    with LlamaCppEngine(gguf, chat) as engine:
        check_real(engine, talks, exact)
        other = []
        for before, token, margin in greedy:  # teacher-forced: each place is compared after the same text
            listed = next_logprobs(engine, before, set(), cached=False)
            if max(listed, key=listed.get) != token:
                other.append((chat.decode([token]), margin))
    print(f"{len(other)} of {len(greedy)} greedy tokens differ:", other)
    assert all(margin < 0.1 for _, margin in other), other


@pytest.mark.long
def test_real_weights_on_ollama(real, tmp_path):
    gguf, chat, talks, exact, _ = real
    place = find_ollama()
    if place is None:
        pytest.skip("no Ollama here: `make ollama` builds one")
    with OllamaServer(place, tmp_path / "models") as running:
        running.create("medlab-contract-real", gguf, chat.go_template(), {**model_parameters(chat, SHORT), "num_thread": 1})
        with OllamaEngine(running.host, "medlab-contract-real", chat) as engine:
            check_real(engine, talks, exact)
        with OpenAiEngine(running.host, "medlab-contract-real", chat=chat) as engine:
            check_real(engine, talks[:8], exact[:8])
        running.delete("medlab-contract-real")
