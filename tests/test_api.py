"""The API under attack and under load, over a real socket, with engines that a test controls."""

import itertools
import json
import math
import os
import pwd
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from medlab.api import guard
from medlab.api.guard import guard_verdict
from medlab.api.models import Models, ServedModel
from medlab.api.openai_compatible import ResponseFormat, held_to_schema
from medlab.api.store import Store, log_lines
from medlab.basics.errors import InputError, MissingError
from medlab.contracts.chat import ChatFormat
from medlab.contracts.engine import Completion, OptionScores, Piece, Sampling
from medlab.contracts.tasks import build_messages
from medlab.models import load_spec, obtain
from medlab.serve import ServeParams, create_app, stated

KEY, OTHER = "a-key-of-the-tests", "another-key-of-the-tests"
HELLO = {"model": "medlab", "messages": [{"role": "user", "content": "Hello"}]}
CASE = {"case": "A headache after a fall. What is most likely?", "options": {"A": "Concussion", "B": "Gout"}}
TALK = {"user_message": [{"type": "text", "text": "What is aspirin?"}]}


@pytest.fixture(scope="session")
def chat():
    return ChatFormat.from_folder(obtain(load_spec("tiny-random")))


class Scripted:
    "Answers with the last words of the question, one by one; can be slow, and can die."

    name = "scripted"

    def __init__(self, pause=0.0):
        self.pause, self.words, self.dead = pause, 0, False

    def stream(self, messages, sampling):
        words = ((messages[-1]["content"].split() or ["nothing"]) * sampling.length)[: sampling.length]
        for number, word in enumerate(words):
            time.sleep(self.pause)
            if self.dead:
                raise ConnectionResetError(f"lost while answering {messages}")
            self.words += 1
            whole = Completion(" ".join(words), 7, len(words), 0.0, "length")
            yield Piece(word + " " * (number < len(words) - 1), whole if number == len(words) - 1 else None)

    def generate(self, conversations, sampling):
        return [list(self.stream(messages, sampling))[-1].done for messages in conversations]


@contextmanager
def live(app, head_seconds=2.0):
    "An app behind uvicorn on a free port, as `medlab serve` runs it; gives the base URL."
    import uvicorn

    from medlab.api.connections import impatient_protocol

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, http=impatient_protocol(head_seconds), log_level="error", access_log=False, proxy_headers=False))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def serve_it(chat, tmp_path):
    "Serve an engine, or a function that opens one; returns the base URL, the log's lines and the store's file."
    with ExitStack() as stack:
        def start(engine, keys=(), log_text=False, facts=None, **limits):
            params, lines = ServeParams(**limits), []
            opener = engine if callable(engine) else lambda: nullcontext(engine)
            model = ServedModel("scripted", opener, chat, Sampling(length=4), "scripted", longest=params.queue_length, seconds=params.queue_seconds, facts=facts)
            store = Store(tmp_path / "medlab.sqlite", log_text=log_text)
            app = create_app(Models([model], absent={"medgemma-4b": "medgemma-4b is not here: run `medlab get medgemma-4b`"}), params, lines.append, list(keys), store)
            return stack.enter_context(live(app, params.head_seconds)), lines, tmp_path / "medlab.sqlite"

        yield start


def call(url, path, body=None, method=None, client=None, **more):
    "One request; `client` for many, since each client of its own takes half a megabyte for certificates that nobody asks for."
    request = client.request if client else lambda *given, **named: httpx.request(*given, trust_env=False, **named)
    return request(method or ("GET" if body is None else "POST"), url + path, json=body, timeout=60, **more)


# ---------------------------------------------------------------- the guard


def test_the_log_holds_no_word_of_the_question_that_a_rule_fired_on(serve_it):
    url, _, database = serve_it(Scripted())
    assert call(url, "/ask", {"case": "My father is not breathing. What now?", "options": CASE["options"]}).json()["guard"]["because"]
    verdict = json.loads(lines_soon(database)[0]["verdict"])
    assert verdict["kind"] == "emergency" and "because" not in verdict


def test_the_guard_of_ask_reads_the_case_and_not_the_prompt(serve_it):
    "Options name dangers; an alarm needs the case, or an option in which somebody speaks of themselves."
    url, _, _ = serve_it(Scripted())
    benign = "Which of these does a first-aid course for cyclists teach on its last day?"
    named = {"A": "He is not breathing and has no pulse", "B": "She has a sudden severe headache and a stiff neck"}
    assert guard_verdict(build_messages("clinical_reasoning", benign, named)[-1]["content"])  # the prompt as a whole raises an alarm
    assert call(url, "/ask", {"case": benign, "options": named}).json()["guard"] is None
    assert call(url, "/ask", {"case": "My father is not breathing. What now?", "options": CASE["options"]}).json()["guard"]["kind"] == "emergency"
    meant = {"A": "An antacid", "B": "How do I poison my wife without anyone noticing?"}
    assert call(url, "/ask", {"case": benign, "options": meant}).json()["guard"]["kind"] == "harm"
    with httpx.stream("POST", url + "/ask", json={"case": benign, "options": meant, "stream": True}, trust_env=False) as reply:
        assert '"kind":"harm"' in "".join(reply.iter_text()).replace(": ", ":")


def test_a_plan_over_http_asks_the_guard_once(serve_it, monkeypatch):
    read, asked = guard.rule_verdict, []
    monkeypatch.setattr(guard, "rule_verdict", lambda kind, question: asked.append(kind) or read(kind, question))
    url, _, _ = serve_it(Scripted())
    body = {"patient": {"age": 62, "sex": "female", "complaint": "a sore knee after gardening, for two days"}}
    reply = call(url, "/api/treatment-recommendations", body)
    assert reply.status_code == 200 and reply.json()["guard"] is None
    asked.clear()
    body["patient"]["complaint"] = "crushing chest pain for half an hour, sweating"
    assert call(url, "/api/treatment-recommendations", body).json()["guard"]["kind"] == "emergency" and asked == ["emergency"]


# ---------------------------------------------------------------- who may come in


def test_a_server_that_others_reach_does_not_start_without_a_key(tmp_path):
    code = "from medlab.serve import serve_forever; from medlab.core import Run, load_profile; serve_forever(Run('x'), load_profile('smoke'), host='0.0.0.0')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MEDLAB_API_KEY": ""})
    assert done.returncode and "MEDLAB_API_KEY" in done.stderr and "MissingError" in done.stderr


@pytest.mark.parametrize("path", ["/ask", "/v1/models", "/openai/v1/models", "/models", "/metrics", "/docs", "/openapi.json", "/nowhere", "/conversations/1"])
def test_every_address_but_health_asks_for_the_key(serve_it, path):
    url, _, _ = serve_it(Scripted(), keys=[KEY, OTHER])
    wrong = [{}, {"authorization": "Bearer"}, {"authorization": f"Bearer {KEY}x"}, {"authorization": f"Bearer {KEY[:-1]}"}, {"authorization": KEY}]
    for headers in wrong:
        reply = call(url, path, headers=headers)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] and reply.json()["error"]["type"] == "authentication_error"
    for key in (KEY, OTHER):
        assert call(url, path, headers={"authorization": f"Bearer {key}"}).status_code in (200, 404, 405)
    assert call(url, "/health").status_code == call(url, "/health/live").status_code == 200


def asgi_status(app, client, server=("10.0.0.7", 8000), path="/v1/models", headers=()):
    import asyncio

    async def ask():
        sent = []

        events = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive():
            return events.pop() if events else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http",
                 "http_version": "1.1", "client": client, "server": server, "headers": [(b"host", b"10.0.0.7:8000"), *headers], "asgi": {"version": "3.0"}}
        await app(scope, receive, send)
        return sent[0]["status"]

    return asyncio.run(ask())


def test_without_a_key_the_app_itself_turns_others_away(chat):
    app = create_app(Models([ServedModel("scripted", lambda: nullcontext(Scripted()), chat, Sampling())]), log=lambda line: None, keys=[])
    assert asgi_status(app, ("10.0.0.9", 5)) == asgi_status(app, ("127.0.0.1", 5)) == asgi_status(app, ("::ffff:10.0.0.9", 5)) == 403
    assert asgi_status(app, ("10.0.0.9", 5), path="/health") == 403
    keyed = create_app(Models([ServedModel("scripted", lambda: nullcontext(Scripted()), chat, Sampling())]), log=lambda line: None, keys=[KEY])
    assert asgi_status(keyed, ("10.0.0.9", 5), headers=[(b"authorization", f"Bearer {KEY}".encode())]) == 200


def test_names_of_others_are_refused(serve_it):
    url, _, _ = serve_it(Scripted(), hosts=["Medlab.Example"])
    port = url.rpartition(":")[2]
    for host in (f"evil.example:{port}", "evil.example", f"127.0.0.1.evil.example:{port}", f"10.0.0.7:{port}", ""):
        assert call(url, "/v1/models", headers={"host": host}).status_code == 403, host
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", f"medlab.example:{port}"):
        assert call(url, "/v1/models", headers={"host": host}).status_code == 200, host


def test_pages_of_others_are_refused_and_nothing_is_shared_with_them(serve_it):
    url, _, _ = serve_it(Scripted())
    for origin in ("http://evil.example", "null", "http://localhost.evil.example"):
        assert call(url, "/v1/chat/completions", HELLO, headers={"origin": origin}).status_code == 403
    own = call(url, "/v1/models", headers={"origin": url})
    assert own.status_code == 200 and not [name for name in own.headers if name.startswith("access-control")]
    assert own.headers["x-content-type-options"] == "nosniff" and "frame-ancestors 'none'" in own.headers["content-security-policy"]
    assert call(url, "/ask", method="OPTIONS", headers={"origin": url, "access-control-request-method": "POST"}).status_code == 405


def test_docs_load_nothing_from_elsewhere(serve_it):
    url, _, _ = serve_it(Scripted())
    page = call(url, "/docs")
    assert page.status_code == 200 and "/ask" in page.text and "<script" not in page.text and "<link" not in page.text
    assert not [part for part in page.text.split("http")[1:] if part.startswith(("://", "s://")) and not part.startswith("://127.0.0.1")]


def test_a_key_has_a_rate_and_wrong_keys_too(serve_it):
    url, _, _ = serve_it(Scripted(), keys=[KEY, OTHER], requests_per_minute=5)
    mine = [call(url, "/v1/models", headers={"authorization": f"Bearer {KEY}"}) for _ in range(7)]
    assert [reply.status_code for reply in mine] == [200] * 5 + [429] * 2 and 1 <= int(mine[-1].headers["retry-after"]) <= 60
    assert call(url, "/v1/models", headers={"authorization": f"Bearer {OTHER}"}).status_code == 200
    guesses = [call(url, "/v1/models", headers={"authorization": f"Bearer guess-{number}"}).status_code for number in range(35)]
    assert guesses[0] == 401 and guesses[-1] == 429


@pytest.mark.parametrize("given", [{"port": 99999}, {"port": -1}, {"port": "http"}])
def test_a_port_that_cannot_be_is_refused(given):
    with pytest.raises(InputError, match="port"):
        stated(ServeParams(), **given)


def test_what_is_stated_counts_more_than_the_profile():
    profile = ServeParams(port=8123, host="::1")
    assert (stated(profile).port, stated(profile, port=9000).port, stated(profile, host="127.0.0.1").host) == (8123, 9000, "127.0.0.1")


# ---------------------------------------------------------------- the queue


def test_what_needs_no_engine_never_waits(serve_it):
    engine, go_on = Scripted(), threading.Event()
    answer, engine.stream = engine.stream, lambda *asked: go_on.wait(60) and answer(*asked)  # no answer before the event
    url, _, _ = serve_it(engine, queue_length=100)
    with ThreadPoolExecutor(64) as pool:
        waiting = [pool.submit(call, url, "/v1/chat/completions", {**HELLO, "max_tokens": 3}) for _ in range(64)]
        try:
            time.sleep(0.5)
            assert {call(url, path).status_code for path in ("/v1/models", "/health", "/models", "/metrics")} == {200}
            assert not any(one.done() for one in waiting)
        finally:
            go_on.set()
        assert {one.result().status_code for one in waiting} == {200}


def test_a_full_queue_is_503_with_a_time(serve_it):
    engine, go_on = Scripted(), threading.Event()
    answer, engine.stream = engine.stream, lambda *asked: go_on.wait(60) and answer(*asked)  # no answer before the event
    url, _, _ = serve_it(engine, queue_length=2)
    with ThreadPoolExecutor(8) as pool:
        sent = [pool.submit(call, url, "/v1/chat/completions", {**HELLO, "max_tokens": 20}) for _ in range(8)]
        try:
            assert {one.result().status_code for one in itertools.islice(as_completed(sent, timeout=60), 5)} == {503}
        finally:
            go_on.set()
        replies = [one.result() for one in sent]
    assert sorted(reply.status_code for reply in replies) == [200] * 3 + [503] * 5
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in replies if reply.status_code == 503)


@pytest.mark.parametrize("body", [HELLO, {**HELLO, "stream": True}])
def test_a_request_that_takes_too_long_is_504_and_stops_the_engine(serve_it, body):
    engine = Scripted(pause=0.05)
    url, _, _ = serve_it(engine, answer_seconds=2)  # long enough for a first piece on a busy machine
    reply = call(url, "/v1/chat/completions", {**body, "max_tokens": 1000})
    if body.get("stream"):
        last = json.loads(reply.text.strip().splitlines()[-1][6:])
        assert reply.status_code == 200 and last["error"]["code"] == 504 and "[DONE]" not in reply.text
    else:
        assert reply.status_code == 504
    assert call(url, "/v1/chat/completions", {**HELLO, "max_tokens": 1}).status_code == 200
    assert engine.words < 60  # of 1000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", {**HELLO, "max_tokens": 1000}), ("/chat/scripted", {**TALK, "verbosity": 3})])
def test_the_engine_stops_when_the_client_goes(serve_it, path, body, stream):
    engine = Scripted(pause=0.05)
    url, lines, _ = serve_it(engine)
    for _ in range(3):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url + path, json={**body, "stream": stream}, timeout=0.3) if not stream else read_for(url + path, {**body, "stream": True}, 0.3)
    stopped = words_at_rest(engine)
    assert stopped < 300  # of 3000
    assert call(url, "/v1/chat/completions", {**HELLO, "max_tokens": 1}).status_code == 200 and engine.words == stopped + 1
    assert stream or " 499 " in "".join(lines)


def words_at_rest(engine, seconds=10):
    "How many words an engine has written when it writes no more."
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = engine.words
        time.sleep(0.5)
        if engine.words == before:
            return before
    raise AssertionError("the engine still writes")


def read_for(url, body, seconds):
    "Read a stream for a while, then hang up."
    with httpx.stream("POST", url, json=body, timeout=5) as reply:
        until = time.monotonic() + seconds
        for _ in reply.iter_bytes():
            if time.monotonic() > until:
                raise httpx.TimeoutException("enough")


def test_an_error_in_the_middle_of_a_stream_is_an_event_and_no_end(serve_it):
    for path, body, mark in (("/v1/chat/completions", {**HELLO, "max_tokens": 50, "stream": True}, "[DONE]"), ("/chat/scripted", {**TALK, "verbosity": 1, "stream": True}, "event: done"),
                             ("/ask", {**CASE, "stream": True}, "event: done")):
        engines = [Scripted(pause=0.05), Scripted()]
        url, _, store = serve_it(lambda engines=engines: nullcontext(engines.pop(0)))
        engine = engines[0]
        with httpx.stream("POST", url + path, json=body, timeout=30) as reply:
            text = ""
            for piece in reply.iter_text():
                text, engine.dead = text + piece, True
        assert reply.status_code == 200 and '"code":502' in text and mark not in text and "lost while" not in text
        assert call(url, "/v1/chat/completions", HELLO).status_code == 200
        with sqlite3.connect(store) as database:
            assert database.execute("SELECT count(*) FROM turn").fetchone() == (0,)


# ---------------------------------------------------------------- clients


def test_the_openai_client(serve_it):
    openai = pytest.importorskip("openai")
    url, _, _ = serve_it(Scripted())
    client = openai.OpenAI(api_key="none-needed", base_url=f"{url}/v1", max_retries=0)
    create = client.chat.completions.create
    user = [{"role": "user", "content": [{"type": "text", "text": "one two"}], "name": "anna"}]
    whole = create(model="medlab", messages=user, n=2, max_completion_tokens=2, tools=[], tool_choice="none", logit_bias={}, stop="", user="anna")
    assert [choice.message.content for choice in whole.choices] == ["one two"] * 2 and whole.usage.completion_tokens == 4
    sent_back = [*user, whole.choices[0].message, {"role": "user", "content": "three"}]
    assert create(model="medlab", messages=sent_back, max_tokens=1).choices[0].message.content == "three"
    parts = list(create(model="medlab", messages=user, max_tokens=2, stream=True, stream_options={"include_usage": True}))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == "one two"
    assert parts[-1].usage.completion_tokens == 2 and parts[-2].choices[0].finish_reason == "length"
    assert [model.id for model in client.models.list()] == ["scripted"]
    for more in ({"frequency_penalty": 1}, {"tools": [{"type": "function", "function": {"name": "x"}}]}, {"logit_bias": {"5": 1}}, {"response_format": {"type": "json_object"}}):
        with pytest.raises(openai.BadRequestError, match=next(iter(more))):
            create(model="medlab", messages=user, **more)
    with pytest.raises(openai.NotFoundError):
        create(model="gpt-99", messages=user)


def test_a_model_that_is_not_here_names_its_command(serve_it):
    url, _, _ = serve_it(Scripted())
    reply = call(url, "/medgemma", TALK)
    assert reply.status_code == 503 and "medlab get medgemma-4b" in reply.json()["error"]["message"] and reply.headers["retry-after"]


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_lists_no_probabilities_is_a_400_that_names_the_field(serve_it, stream):
    url, _, _ = serve_it(Scripted())
    for more, field in (
            ({"logprobs": True}, "logprobs"), ({"logprobs": True, "top_logprobs": 3}, "logprobs"), ({"top_logprobs": 3}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs")):
        reply = call(url, "/v1/chat/completions", {**HELLO, **more, "stream": stream})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, field), reply.text


# ---------------------------------------------------------------- encoders


def write_encoder(folder, classes=None):
    "A tiny BERT with random weights as a model folder; with class names a classifier."
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    from medlab.loaders.wordpiece import complete_tokenizer

    words = "what is aspirin how much can i take may it hurt my stomach a headache after fall with wine".split()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(words), "?", *(f"##{letter}" for letter in "abcdefgs"), *"abcdefg"]
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64, initializer_range=0.5)
    torch.manual_seed(3)
    if classes:
        config.id2label, config.label2id = dict(enumerate(classes)), {name: place for place, name in enumerate(classes)}
    (BertForSequenceClassification if classes else BertModel)(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")
    complete_tokenizer(folder)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    "A folder of specs: an encoder, a classifier, and one whose weights are far away."
    folder = tmp_path_factory.mktemp("specs")
    write_encoder(folder / "weights")
    write_encoder(folder / "classes", ["dose", "meaning", "side effects"])
    for name, place in (("tiny-encoder", "{kind: folder, path: weights}"), ("tiny-classifier", "{kind: folder, path: classes}"),
                        ("far-encoder", "{kind: hub, repo: owner/far-encoder, revision: main}")):
        (folder / f"{name}.yaml").write_text(f"name: {name}\ntags: [encoder]\ncontext: 512\nsources: [{place}]\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDLAB_MODELS_DIR", str(folder))
        yield folder


TEXTS = [f"how much aspirin can i take {'a b c ' * (number % 5)}?" for number in range(150)]


def test_embeddings_through_the_openai_client(serve_it, encoders):
    import numpy as np

    from medlab.models import embed_texts

    openai = pytest.importorskip("openai")
    url, _, path = serve_it(Scripted())
    expected = embed_texts(TEXTS, "tiny-encoder")
    for base in (f"{url}/v1", f"{url}/openai/v1"):
        client = openai.OpenAI(api_key="none-needed", base_url=base, max_retries=0)
        found = client.embeddings.create(model="tiny-encoder", input=TEXTS)  # the client asks for base64 and unpacks it
        assert [one.index for one in found.data] == list(range(len(TEXTS))) and found.usage.total_tokens == found.usage.prompt_tokens > 8 * len(TEXTS)
        np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=1e-5)
    plain = client.embeddings.create(model="tiny-encoder", input=TEXTS[7], encoding_format="float", dimensions=32)
    np.testing.assert_allclose(plain.data[0].embedding, expected[7], atol=1e-5)
    wrong = [({"input": [TEXTS[0], "aspirin " * 70]}, "input.1: has 72 tokens, expected at most 64"), ({"input": [[1, 2]]}, "check_embedding_ctx_length"),
             ({"input": ["a", " "]}, "input.1: is empty"), ({"input": []}, "input"), ({"input": "a", "dimensions": 8}, "expected 32"), ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
             ({"input": "a", "model": "tiny-random"}, "model: tiny-random writes text")]
    for body, says in wrong:
        with pytest.raises(openai.BadRequestError, match=says):
            client.embeddings.create(**{"model": "tiny-encoder", **body})
    cut = client.embeddings.create(model="tiny-encoder", input="aspirin " * 70, extra_body={"truncate": True})
    assert cut.usage.prompt_tokens == 64
    with pytest.raises(openai.NotFoundError, match="tiny-encoder"):
        client.embeddings.create(model="text-embedding-3-small", input="a")
    assert {line["route"] for line in lines_soon(path)} == {"/v1/embeddings"}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/classify"])
def test_an_encoder_that_is_not_here_names_its_command(serve_it, encoders, path):
    url, _, _ = serve_it(Scripted())
    reply = call(url, path, {"model": "far-encoder", "input": "a"})
    assert reply.status_code == 503 and "`medlab models download far-encoder`" in reply.json()["error"]["message"] and reply.headers["retry-after"]


def test_texts_are_sorted_into_classes(serve_it, encoders):
    url, _, _ = serve_it(Scripted())
    trained = call(url, "/classify", {"model": "tiny-classifier", "input": TEXTS}).json()
    assert trained["labels"] == ["dose", "meaning", "side effects"] and len(trained["data"]) == len(TEXTS)
    for row in trained["data"]:
        assert abs(sum(row["probs"]) - 1) < 1e-5 and row["label"] == trained["labels"][row["probs"].index(max(row["probs"]))] and row["num_classes"] == 3
    alone = call(url, "/classify", {"model": "tiny-classifier", "input": TEXTS[9]}).json()["data"][0]
    assert alone["probs"] == pytest.approx(trained["data"][9]["probs"], abs=1e-5)
    for model in ("tiny-encoder", "tiny-classifier"):
        named = call(url, "/classify", {"model": model, "input": ["what is aspirin", "how much can i take"], "labels": {"dose": ["how much can i take"], "meaning": ["what is aspirin"]}}).json()
        assert [row["label"] for row in named["data"]] == ["meaning", "dose"] and named["data"][0]["similarity"][1] == pytest.approx(1, abs=1e-5)
    for body, field in (({"model": "tiny-encoder", "input": "a"}, "labels"), ({"model": "tiny-encoder", "input": "a", "labels": ["x"]}, "labels"),
                        ({"model": "tiny-encoder", "input": "a", "labels": ["x", " "]}, "labels. "), ({"model": "tiny-classifier", "input": ""}, "input")):
        reply = call(url, "/classify", body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (422, field), reply.text


# ---------------------------------------------------------------- models from files


NEW = """
description: ein Modell für Tests 🩺
sources: [{kind: random, tokenizer_of: smollm2-135m-instruct, layers: 1}]
serving: {admin: true, capabilities: {stream: false}, controls: {verbosity: false}, length: 3}
"""


def test_a_new_model_is_a_new_file_and_medgemma_answers_where_it_is(tmp_path, monkeypatch, chat):
    "A small model stands behind the name."
    from medlab.api.models import medgemma_model

    monkeypatch.setenv("MEDLAB_MODELS_DIR", str(tmp_path))
    (tmp_path / "broken.yaml").write_text("contxt: 3")
    assert medgemma_model()[0] is None and "`medlab models download medgemma-4b-it`" in medgemma_model()[1]
    (tmp_path / "medgemma-4b.yaml").write_text(NEW)
    models = Models([ServedModel("scripted", lambda: nullcontext(Scripted()), chat, Sampling(length=4)), medgemma_model()[0]])
    with live(create_app(models, log=lambda line: None, keys=[])) as url:
        listed = next(model for model in call(url, "/models").json() if model["model_name"] == "medgemma-4b")
        assert listed["description"] == "ein Modell für Tests 🩺" and listed["admin"] is True and listed["endpoint"] == "/chat/medgemma-4b"
        assert listed["capabilities"]["stream"] is False and listed["controls"] == {"temperature": True, "reason": False, "verbosity": False, "system_message": True}
        assert models.named("medgemma-4b").queue.engine is None
        reply = call(url, "/medgemma", TALK)
        assert reply.status_code == 200, reply.text
        assert reply.json()["model"] == "medgemma-4b" and reply.json()["usage"]["completion_tokens"] <= 3 and "medical advice" in reply.json()["disclaimer"]
        again = call(url, "/medgemma", {**TALK, "conversation_id": reply.json()["conversation_id"], "model": "medgemma-4b"})
        assert again.status_code == 200 and len(call(url, f"/conversations/{reply.json()['conversation_id']}").json()) == 4
        assert call(url, "/medgemma", {**TALK, "verbosity": 1}).json()["error"]["param"] == "verbosity"
        assert call(url, "/medgemma", {**TALK, "stream": True}).json()["error"]["param"] == "stream"
        assert models.named("medgemma-4b").queue.engine is not None


# ---------------------------------------------------------------- conversations


def test_a_conversation_is_remembered_and_belongs_to_its_key(serve_it):
    url, _, _ = serve_it(Scripted(), keys=[KEY, OTHER])
    mine, theirs = ({"authorization": f"Bearer {key}"} for key in (KEY, OTHER))
    first = call(url, "/chat/scripted", TALK, headers=mine).json()
    again = {**TALK, "conversation_id": first["conversation_id"]}
    assert call(url, "/chat/scripted", again, headers=mine).status_code == 200
    assert len(call(url, f"/conversations/{first['conversation_id']}", headers=mine).json()) == 4
    (listed,) = call(url, "/conversations", headers=mine).json()
    assert (listed["conversation_id"], listed["begins"], listed["model"]) == (first["conversation_id"], "What is aspirin?", "scripted")
    assert call(url, "/conversations", headers=theirs).json() == [] and call(url, "/conversations?limit=0", headers=mine).json()["error"]["param"] == "query.limit"
    for reply in (call(url, "/chat/scripted", again, headers=theirs), call(url, f"/conversations/{first['conversation_id']}", headers=theirs),
                  call(url, f"/conversations/{first['conversation_id']}", method="DELETE", headers=theirs)):
        assert reply.status_code == 404
    assert call(url, f"/conversations/{first['conversation_id']}", method="DELETE", headers=mine).status_code == 204
    assert call(url, "/chat/scripted", again, headers=mine).status_code == 404


def test_two_questions_at_once_in_one_conversation_are_409(serve_it):
    url, _, _ = serve_it(Scripted(pause=0.05))
    first = call(url, "/chat/scripted", TALK).json()
    again = {**TALK, "conversation_id": first["conversation_id"], "verbosity": 1}
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda _: call(url, "/chat/scripted", again).status_code, range(2)))
    assert sorted(replies) == [200, 409]
    assert len(call(url, f"/conversations/{first['conversation_id']}").json()) == 4


def test_lengths_and_a_history_that_outgrows_the_context(serve_it):
    url, _, _ = serve_it(Scripted())
    lengths = [call(url, "/chat/scripted", {**TALK, "verbosity": level}).json()["usage"]["completion_tokens"] for level in (1, 2, 3)]
    assert lengths == [64, 256, 768]
    conversation, dropped = "", []
    for _ in range(4):
        reply = call(url, "/chat/scripted", {**TALK, "verbosity": 3, "conversation_id": conversation}).json()
        conversation = reply["conversation_id"]
        dropped.append(reply["history_dropped"])
    assert dropped[0] == 0 and dropped[-1] > 0
    assert len(call(url, f"/conversations/{conversation}").json()) == 8


KILLED = """
import sys
from medlab.api.store import Store
store = Store(sys.argv[1])
for number in range(0, 10_000, 2):
    store.add("c", "anna", "m", number, "question " * 50, "answer " * 200)
    print(number, flush=True)
"""


def test_kill_9_in_the_middle_of_a_write_loses_no_finished_turn(tmp_path):
    path = tmp_path / "medlab.sqlite"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    finished = [int(process.stdout.readline()) for _ in range(50)][-1]
    process.kill()
    finished = max([finished, *(int(line) for line in process.stdout.read().split())])
    store = Store(path)
    found = store.turns_of("c", "anna")
    assert len(found) % 2 == 0 and len(found) >= finished + 2 and found[-1]["content"] == "answer " * 200
    store.close()


def test_the_log_holds_sizes_and_text_only_when_asked_to(serve_it):
    url, _, path = serve_it(Scripted())
    call(url, "/v1/chat/completions", {**HELLO, "messages": [{"role": "user", "content": "Zebrawitz asks"}]})
    (line,) = lines_soon(path)
    assert line["route"] == "/v1/chat/completions" and line["completion_tokens"] == 4 and line["owner"] == "local" and "question" not in line


def test_old_conversations_are_forgotten(tmp_path):
    store = Store(tmp_path / "a.sqlite")
    store.add("old", "anna", "m", 0, "q", "a")
    store.close()
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("UPDATE conversation SET used = '2001-01-01 00:00:00.000000'")
    again = Store(tmp_path / "a.sqlite", keep_days=30)
    with pytest.raises(InputError, match="no such conversation"):
        again.turns_of("old", "anna")
    again.close()
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        assert database.execute("SELECT count(*) FROM turn").fetchone() == (0,)


def test_an_older_database_is_brought_up_to_date_and_keeps_what_it_holds(tmp_path, monkeypatch):
    from medlab.api import store as module

    with monkeypatch.context() as patch:
        patch.setattr(module, "MIGRATIONS", module.MIGRATIONS[:1])
        old = Store(tmp_path / "a.sqlite")
        old.add("c", "anna", "m", 0, "q", "a")
        old.close()
    new = Store(tmp_path / "a.sqlite")
    assert new.turns_of("c", "anna")[1]["content"] == "a" and new.listed("anna")[0]["begins"] == "q"
    new.close()
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(module.MIGRATIONS[-1][0],)]


@pytest.fixture
def postgresql(tmp_path_factory):
    "The URL of a PostgreSQL of our own, reached through a socket file; skipped where Debian's package is not installed."
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    if os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
    who = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as folder:  # a socket's path may have 107 letters only
        if who:
            shutil.chown(folder, "postgres", "postgres")
        programs, data = found[-1].parent, f"{folder}/data"
        subprocess.run([programs / "initdb", "-D", data, "-U", "medlab", "-A", "trust", "--no-sync", "-E", "UTF8"], check=True, capture_output=True, cwd=folder, **who)
        server = subprocess.Popen([programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses="], stderr=subprocess.DEVNULL, cwd=folder, **who)
        try:
            until = time.monotonic() + 60
            while subprocess.run([programs / "pg_isready", "-h", folder], capture_output=True).returncode:
                assert server.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            yield f"postgresql+psycopg://medlab@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)


def test_everything_is_kept_in_postgresql_by_url(chat, postgresql):
    model = ServedModel("scripted", lambda: nullcontext(Scripted()), chat, Sampling(length=4))
    with live(create_app(Models([model]), log=lambda line: None, keys=[KEY, OTHER], store=Store(postgresql))) as url:
        mine, theirs = ({"authorization": f"Bearer {key}"} for key in (KEY, OTHER))
        first = call(url, "/chat/scripted", {"user_message": [{"type": "text", "text": NASTY[0] + " 🩺"}]}, headers=mine).json()
        again = {**TALK, "conversation_id": first["conversation_id"]}
        with ThreadPoolExecutor(4) as pool:
            statuses = list(pool.map(lambda _: call(url, "/chat/scripted", again, headers=mine).status_code, range(4)))
        assert set(statuses) <= {200, 409} and 200 in statuses
        turns = call(url, f"/conversations/{first['conversation_id']}", headers=mine).json()
        assert turns[0]["content"] == NASTY[0] + " 🩺" and len(turns) == 2 + 2 * statuses.count(200)
        assert call(url, "/conversations", headers=mine).json()[0]["begins"].startswith("'; DROP") and call(url, "/conversations", headers=theirs).json() == []
        assert call(url, f"/conversations/{first['conversation_id']}", headers=theirs).status_code == 404
        assert call(url, f"/conversations/{first['conversation_id']}", method="DELETE", headers=mine).status_code == 204
        gone = call(url, "/chat/scripted", TALK, headers=mine).json()["conversation_id"]
    lines = log_lines(postgresql)
    assert len(lines) == 11 and lines[0]["route"] == "/chat/{model}" and lines[0]["completion_tokens"] == 4
    again = Store(postgresql, keep_days=1e-9)  # everything is older than that
    with pytest.raises(InputError, match="no such conversation"):
        again.turns_of(gone, "anybody")
    again.close()
    assert log_lines(postgresql) == []


@pytest.mark.long
def test_ten_thousand_conversations_are_listed_and_read_as_quickly_as_a_hundred(tmp_path):
    def seconds(work):
        took = []
        for _ in range(30):
            started = time.process_time()
            work()
            took.append(time.process_time() - started)
        return sorted(took)[15]

    store, measured = Store(tmp_path / "a.sqlite"), []
    for before, count in ((0, 100), (100, 10_000)):
        for number in range(before, count):
            for turn in (0, 2):
                store.add(f"c{number}", f"owner-{number % 2}", "m", turn, f"question {number} " * 20, f"answer {number} " * 60)
        some, last = random.Random(count), count - 1
        measured.append((seconds(lambda: store.listed("owner-0", 50)), seconds(lambda some=some: store.turns_of(f"c{2 * some.randrange(50)}", "owner-0"))))
        assert {row["begins"][:9] for row in store.listed("owner-1", 1000)} == {"question "}
        assert store.turns_of(f"c{last}", f"owner-{last % 2}")[0]["content"].startswith(f"question {last} ")
    assert len(store.listed("owner-0", 1000, 4900)) == 100
    store.close()
    (few_listed, few_read), (many_listed, many_read) = measured
    assert many_listed < 3 * few_listed + 0.003 and many_read < 3 * few_read + 0.003, measured


def test_a_long_conversation_is_cut_without_being_read_again_for_every_turn(chat):
    import asyncio

    from medlab.api.chat import fitting

    counted = []

    class Counting:
        def prompt_text(self, messages):
            counted.append(len(messages))
            return chat.prompt_text(messages)

        def encode(self, text):
            return chat.encode(text)

    history = [{"role": role, "content": f"number {number} of many"} for number in range(3000) for role in ("user", "assistant")]
    model = ServedModel("counting", lambda: nullcontext(Scripted()), Counting(), Sampling())
    sampling = Sampling(context=512, length=64)
    messages, dropped = asyncio.run(fitting(model, "Be brief.", history, "And now?", sampling))
    model.queue.close()
    tokens = len(chat.prompt_ids(messages))
    assert messages == [{"role": "system", "content": "Be brief."}, *history[dropped:], {"role": "user", "content": "And now?"}] and dropped % 2 == 0
    assert tokens + 64 <= 512 < tokens + 64 + len(chat.prompt_ids(history[dropped - 2 : dropped - 1])) * 2 and len(counted) < 15


def test_a_database_of_a_newer_version_is_refused(tmp_path):
    Store(tmp_path / "a.sqlite").close()
    with sqlite3.connect(tmp_path / "a.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(InputError, match="9999"):
        Store(tmp_path / "a.sqlite")
    with pytest.raises(MissingError, match=r"serve\.database"):
        Store("postgresql+psycopg://nobody@127.0.0.1:9/none")


# ---------------------------------------------------------------- what goes out


REACHED: list = []  # addresses and names, while a test watches


def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") and REACHED and REACHED[0] == "watching":
        REACHED.append(arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0])


@pytest.fixture(scope="session")
def audited():
    "An audit hook stays for good; it writes only while `REACHED` says so."
    sys.addaudithook(watch)


def outside(reached):
    "What was reached that is neither this machine nor a socket file."
    names = [one[0] if isinstance(one, tuple) else one for one in reached]
    return [name for name in names if name is not None and not str(name).startswith("/") and str(name) not in ("127.0.0.1", "::1", "localhost", "b'127.0.0.1'")]


def test_serving_opens_no_connection_but_to_its_engine(chat, encoders, audited):
    "The test's own client connects to 127.0.0.1; so would an engine's."
    from fastapi.testclient import TestClient

    REACHED[:] = ["watching"]
    try:
        models = Models([ServedModel("scripted", lambda: nullcontext(Scripted()), chat, Sampling(length=4), "scripted")])
        with TestClient(create_app(models, log=lambda line: None, keys=[]), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
            bodies = [("/ask", CASE), ("/v1/chat/completions", HELLO), ("/v1/chat/completions", {**HELLO, "stream": True}), ("/chat/scripted", TALK), ("/medgemma", TALK),
                      ("/v1/embeddings", {"model": "tiny-encoder", "input": "aspirin"}), ("/v1/embeddings", {"model": "far-encoder", "input": "a"}),
                      ("/classify", {"model": "tiny-classifier", "input": "aspirin"}), ("/api/treatment-recommendations", {"patient": {"age": 50, "sex": "female", "complaint": "Cough"}})]
            statuses = [client.post(path, json=body).status_code for path, body in bodies]
            statuses += [client.get(path).status_code for path in ("/health", "/metrics", "/docs", "/openapi.json", "/models", "/v1/models", "/conversations")]
        seen = list(REACHED[1:])
        with socket.socket() as probe, pytest.raises(OSError):  # the hook sees what leaves
            probe.settimeout(0.01)
            probe.connect(("192.0.2.1", 9))
        assert outside(REACHED[1:]) == ["192.0.2.1"]
    finally:
        REACHED.clear()
    assert outside(seen) == [] and sorted(statuses) == [200] * 14 + [404, 503]  # /medgemma is not among these models, and one encoder is far away


# ---------------------------------------------------------------- hostile text and hostile clients

NASTY = ["'; DROP TABLE conversation; --", "{{ 7 * 7 }} ${7*7} <%= 7*7 %>", "<script>alert(1)</script>", "../../etc/passwd", "%00%s%n", "\u202e\ufeff\u2028", "🩺" * 50, "a\r\nSet-Cookie: x=1"]


@pytest.mark.parametrize("text", NASTY)
def test_text_is_text_in_every_field(serve_it, text):
    url, lines, _ = serve_it(Scripted())
    calls = [("/ask", {**CASE, "case": text}), ("/ask", {**CASE, "options": {text: text, "B": "x"}}), ("/ask", {**CASE, "model": text}), ("/ask", {**CASE, "prompt": text}),
             ("/v1/chat/completions", {**HELLO, "messages": [{"role": "user", "content": text}], "stop": [text], "user": text}), ("/v1/chat/completions", {**HELLO, "model": text}),
             ("/chat/scripted", {**TALK, "system_message": text, "user_message": [{"type": "text", "text": text}]}), ("/chat/scripted", {**TALK, "conversation_id": text})]
    for path, body in calls:
        reply = call(url, path, body)
        assert reply.status_code < 500 and "set-cookie" not in reply.headers and reply.headers["content-type"] == "application/json", (path, reply.text)
    assert "49" not in call(url, "/chat/scripted", {**TALK, "user_message": [{"type": "text", "text": "{{ 7 * 7 }}"}]}).json()["text"]
    assert call(url, "/conversations/" + "x" * 20).status_code == 404
    assert not [line for line in lines if text in line]


@pytest.mark.parametrize(("raw", "status"), [
    (json.dumps({**CASE, "case": "x" * 1_000_000}).encode(), 413), (b'{"case": "\xff\xfe", "options": {}}', 400), (b'{"case": "a\\u0000b", "options": {"A": "x", "B": "y"}}', 400),
    (b'{"case": "\\ud83d", "options": {"A": "x", "B": "y"}}', 400), (b"\x00" * 100, 400), (b"[" * 100_000, 400), (b"", 400), (b'"text"', 400),
    (b'{"case": "x", "options": {"\\ud83d": "x", "B": "y"}}', 400), (b'{"case": "x", "options": {"A": "x", "B": "y"}, "model": "\\udc00"}', 400),
    (json.dumps({**CASE, "case": "\U0001fa7a"}).encode(), 200),
    (json.dumps({**CASE, "case": "a\0b"}).encode("utf-16-le"), 400), (json.dumps(CASE).encode("utf-32-le"), 400),  # Python's reader would take both
    (b'{"case": "x", "options": {"A": "Gout", "B": "Sprain", "A": "Stroke"}}', 400),  # and would lose an option
])
def test_bodies_that_are_broken(serve_it, raw, status):
    url, _, _ = serve_it(Scripted())
    reply = httpx.post(url + "/ask", content=raw, headers={"content-type": "application/json"}, timeout=30)
    assert reply.status_code == status and ("error" in reply.json()) == (status != 200), reply.text


@pytest.mark.parametrize(("path", "body", "status", "field"), [
    ("/v1/chat/completions", {**HELLO, "max_tokens": 100_000}, 400, "max_tokens"),
    ("/v1/chat/completions", {**HELLO, "max_completion_tokens": 2048, "max_tokens": 5}, 400, "max_completion_tokens"),
    ("/ask", {**CASE, "options": {"A": "Gout", "\uff41": "Sprain"}}, 422, "options"),
    ("/ask", {**CASE, "options": {"A": "Gout", "\u200b": "Sprain"}}, 422, "options"),
    ("/chat/scripted", {**TALK, "reason": "", "inference": "", "search": "", "deep_research": "", "dan": "", "mcp": "", "in_billing": "", "out_billing": "0"}, 200, None),
    ("/chat/scripted", {**TALK, "search": "yes"}, 422, "search"),
])
def test_the_field_that_is_wrong_is_named_and_an_empty_flag_is_none(serve_it, path, body, status, field):
    url, _, _ = serve_it(Scripted())
    reply = call(url, path, body)
    assert (reply.status_code, reply.json().get("error", {}).get("param")) == (status, field), reply.text


@pytest.mark.parametrize("schema", [{"type": "string", "maxLength": 10**9}, {"type": "array", "items": {"type": "integer", "maximum": 10**30}}, {"type": "string", "minLength": -1},
                                    {"type": "object", "properties": {str(number): {"type": "string"} for number in range(3000)}},
                                    {"enum": [f"value {number}" for number in range(5000)]}, {"const": "x" * 100_000}, {"$ref": "#"}, {"$ref": "https://example.org/x.json"},
                                    {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}, {"type": "string", "pattern": "^(((a{1,100}){1,100}){1,100})$"},
                                    {"type": "string", "pattern": "^(a*)*$"}, {"type": "string", "pattern": "^[0-9]{0,100000}$"}, {"type": "string", "pattern": "^a{-1}$"},
                                    {"type": "string", "pattern": r"^\d+$"}, {"type": "string", "pattern": "^(" * 40},
                                    {"type": "string", "minLength": 10, "maxLength": 5}, {"type": []},
                                    {"type": "object", "properties": {f"a rather long name {number}": {"type": "string"} for number in range(150)}}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_would_break_ollama_does_not_reach_it(chat, schema, stream):
    engine = Scripted()
    model = ServedModel("scripted", lambda: nullcontext(engine), chat, Sampling(length=4), "ollama")
    with live(create_app(Models([model]), ServeParams(), [].append, [])) as url:
        reply = call(url, "/v1/chat/completions", {**HELLO, "stream": stream, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}})
    assert (reply.status_code, reply.json()["error"]["param"], engine.words) == (400, "response_format", 0), reply.text


@pytest.mark.parametrize("schema", [{}, {"type": "object", "properties": {"a": {"type": "string", "maxLength": 2000}}, "required": ["a"]}, {"enum": ["fever", "pain"]},
                                    {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}, {"type": "string", "pattern": "^[0-9]{3}-[0-9]{2}$"}])
def test_an_ordinary_schema_reaches_ollama_and_an_empty_one_too(schema):
    wanted = ResponseFormat(type="json_schema", json_schema={"name": "x", "schema": schema})
    assert held_to_schema(Sampling(), wanted, "ollama").json_schema == (schema or {"type": "object"})


@pytest.mark.parametrize(("facts", "field"), [
    ({"vitals": {"BP": "900/20 mmHg"}}, "patient.vitals.BP"), ({"labs": {"INR": "2.5 mg/dL"}}, "patient.labs.INR"), ({"sex": "male", "pregnancy": "12 weeks"}, "patient.pregnancy"),
    ({"age": 0, "weight": 300}, "patient.weight"), ({"complaint": " "}, "patient.complaint"), ({"conditions": ["gout"] * 5000}, "patient"),
    ({"weight": None, "allergies": None, "vitals": None}, None),
])
def test_what_is_wrong_with_a_patient_is_422_and_named(serve_it, facts, field):
    url, _, _ = serve_it(Scripted())
    reply = call(url, "/api/treatment-recommendations", {"patient": {"age": 62, "sex": "female", "complaint": "A sore knee.", **facts}, "model": None})
    assert reply.status_code == (422 if field else 200) and reply.json().get("error", {}).get("param") == field, reply.text


def test_a_database_that_fails_is_503_and_no_bug(serve_it):
    "Such as one on a disk that is full. The answer is there, but it would be forgotten, and that is said."
    url, lines, file = serve_it(Scripted())
    known = call(url, "/chat/scripted", TALK).json()["conversation_id"]
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE turn")
    calls = [("/chat/scripted", TALK), ("/chat/scripted", {**TALK, "conversation_id": known}), ("/conversations", None), (f"/conversations/{known}", None)]
    for path, body in calls:
        reply = call(url, path, body)
        assert reply.status_code == 503 and "database" in reply.json()["error"]["message"], reply.text
    streamed = call(url, "/chat/scripted", {**TALK, "stream": True})
    assert "event: error" in streamed.text and "database" in streamed.text and "event: done" not in streamed.text
    assert call(url, "/ask", CASE).status_code == 200 and not [line for line in lines if " 500 " in line]


class Opinionated(Scripted):
    "Doubts while it has written nothing, and is sure of B once it has."

    def option_logprobs(self, conversations, options, lead=""):
        chances = {"A": 0.5, "B": 0.3, "C": 0.2} if lead == ["<answer>"] or lead == "<answer>" else {"A": 0.001, "B": 0.998, "C": 0.001}
        return [OptionScores({letter: math.log(chances[letter]) for letter in some}, dict.fromkeys(some, 1)) for some in options]


@pytest.mark.parametrize("stream", [False, True])
def test_a_set_is_measured_like_what_it_is_promised_from(chat, tmp_path, stream):
    "Evaluation asks for the letter at once, of cases with options; a confidence after an analysis of one's own says something else, and so do triage levels."
    shares = {"clinical_reasoning": [0.3] * 20, "triage": [0.99] * 200}
    (tmp_path / "evaluate").mkdir()
    found = {"base": {}, "q4_k_m": {"forced_choice_letter": {"shares_of_right": {"clinical_reasoning": [0.9] * 20}}}, "served": {"forced_choice_letter": {"shares_of_right": shares}}}
    (tmp_path / "evaluate" / "calibration.json").write_text(json.dumps(found))
    model = ServedModel("opinionated", lambda: nullcontext(Opinionated()), chat, Sampling(length=4), run=SimpleNamespace(path=tmp_path))
    body = {"case": "A headache. What is most likely?", "options": {"x": "Gout", "y": "Concussion", "z": "Flu"}, "sets": 0.9, "stream": stream}
    with live(create_app(Models([model]), ServeParams(), [].append, [])) as url:
        text = call(url, "/ask", body).text
        reply = json.loads(text.rpartition("data: ")[2] if stream else text)
        assert reply["set"] == ["x", "y"] and reply["confidence"]["options"]["y"] == 0.998
        assert call(url, "/ask", {**body, "prompt": "Be brief."}).json()["error"]["param"] == "sets"
        (tmp_path / "evaluate" / "calibration.json").write_text(json.dumps({"served": {"forced_choice_letter": {"shares_of_right": {"triage": [0.9]}}}}))
        assert call(url, "/ask", {**body, "stream": False}).json()["error"]["param"] == "sets"


def test_slow_and_half_open_clients_are_closed(serve_it):
    url, _, _ = serve_it(Scripted(), head_seconds=2, body_seconds=1)
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    starts = [b"", b"GET /v1/mod", b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ", b"POST /ask HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n\r\n{"]
    clients = [socket.create_connection(address) for _ in range(150)]
    for number, client in enumerate(clients):
        client.sendall(starts[number % 4])
    assert call(url, "/v1/models").status_code == 200
    time.sleep(2.5)
    for number, client in enumerate(clients):
        client.settimeout(20)
        said = client.recv(1000)
        assert said.startswith(b"HTTP/1.1 408") if number % 4 == 3 else said == b"", (number, said)
        client.close()
    assert call(url, "/v1/models").status_code == 200


def lines_soon(path, seconds=30):
    "The lines of the inference log, which is written after the answer."
    until = time.monotonic() + seconds
    while not (lines := log_lines(path)) and time.monotonic() < until:
        time.sleep(0.05)
    return lines


def said_by(number):
    "A question that names its request, so that a mixed-up answer shows."
    return {"user_message": [{"type": "text", "text": f"n{number} n{number} n{number} n{number}"}]}


@pytest.mark.parametrize("count", [240, pytest.param(1000, marks=pytest.mark.long)])
def test_mixed_requests_while_the_engine_is_killed_twice(serve_it, count):
    "Each ends in an answer or an honest error, every conversation holds its own turns and no other, and memory stays flat."
    import psutil

    engines, process, memory = [], psutil.Process(), []

    def opener():
        engines.append(Scripted(pause=0.001))
        return nullcontext(engines[-1])

    url, _, path = serve_it(opener, queue_length=64)
    client = httpx.Client(trust_env=False, limits=httpx.Limits(max_connections=32))
    kinds = [("/v1/chat/completions", HELLO), ("/v1/chat/completions", {**HELLO, "stream": True}), ("/ask", CASE), ("/chat/scripted", None), ("/chat/scripted", {"stream": True}),
             ("/v1/models", None), ("/health", None), ("/ask", {"case": "x"}), ("/v1/chat/completions", {**HELLO, "model": "gpt-99"}), ("/conversations", None)]
    order = [random.Random(7 + number).choice(kinds) for number in range(count)]
    conversations = {}  # conversation -> the numbers of its questions

    def talk(number, more):
        "Ask, then go on with the conversation; gives the last reply."
        conversation = ""
        for part in (number, number + 0.5):
            reply = call(url, "/chat/scripted", {**said_by(part), **(more or {}), "conversation_id": conversation}, client=client)
            done = json.loads(reply.text.split("event: done\ndata: ")[-1].partition("\n")[0]) if "event: done" in reply.text else reply.json() if not more else {}
            if "text" not in done:
                return reply
            assert done["text"].split() == [f"n{part}"] * 4, done
            conversation = done["conversation_id"]
            conversations.setdefault(conversation, []).append(part)
        return reply

    def one(number):
        if number in (count // 4, 5 * count // 8):
            engines[-1].dead = True
        if number % (count // 8) == 0:
            memory.append(process.memory_info().rss)
        where, body = order[number]
        return order[number], talk(number, body) if where == "/chat/scripted" else call(url, where, body, client=client)

    with client, ThreadPoolExecutor(32) as pool:
        replies = list(pool.map(one, range(count)))
    for (_, body), reply in replies:
        assert reply.status_code in (200, 404, 422, 502, 503), (reply.status_code, reply.text)
        if body and body.get("stream") and reply.status_code == 200:
            assert ("[DONE]" in reply.text or "event: done" in reply.text) != ('"error"' in reply.text), reply.text
    assert sum(reply.status_code == 200 for _, reply in replies) > 0.6 * count and len(engines) >= 3
    assert memory[-1] - memory[len(memory) // 2] < 40_000_000, memory
    with sqlite3.connect(path) as database:
        stored = {}
        for conversation, number, text in database.execute("SELECT conversation, number, text FROM turn ORDER BY conversation, number"):
            stored.setdefault(conversation, []).append((number, set(text.split())))
    assert stored == {name: [(2 * place + half, {f"n{part}"}) for place, part in enumerate(parts) for half in (0, 1)] for name, parts in conversations.items()}


@pytest.mark.fuzz
def test_the_openapi_description_is_kept(chat):
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    app = create_app(Models([ServedModel("scripted", lambda: nullcontext(Scripted()), chat, Sampling(length=2))]), log=lambda line: None, keys=[])
    with live(app) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for found in schema.get_all_operations():
            @given(case=found.ok().as_strategy())
            @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], derandomize=True, database=None)
            def check(case):
                case.call_and_validate(checks=[not_a_server_error, status_code_conformance, response_schema_conformance])

            check()
