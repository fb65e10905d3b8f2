# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Engine: OpenAI-compatible servers
#
# > One small client for every server with /v1/chat/completions, which never takes an incomplete answer for a complete one.
#
# vLLM, llama.cpp, Ollama, Groq and medlab's own server all accept the same request. They differ when something breaks. Some report it. One ends
# its answer without an error in the middle of a sentence.
#
# **You will** receive an incomplete answer that looks complete, learn the one field that shows the difference, and distinguish a dead server from a
# slow one and from one that refuses.
# **Needs** CPU, no network, no key. **Takes** half a minute to run, 10 to read.

# %%
#| default_exp engines.openai_compatible

# %%
#| export
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.secrets import masked
from medlab.contracts.chat import ChatFormat, checked_conversation
from medlab.contracts.engine import (
    Completion, ContextOverflow, EngineBase, EngineBusy, EngineDied, EngineTimeout, ModelNotFound, OptionScores, OptionTokens,
    OutOfMemory, Piece, Sampling, TokenLogprob, as_decoded, check_room, likeliest_by_text, listed_tokens, option_tokens, scores_from_list, speaks_of_memory,
)

# %%
#| hide
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fastcore.test import test_eq, test_fail

# %% tags=["parameters"]
seconds_to_wait = 60  # for one answer in this lesson, at most

# %% [markdown]
# ## 1. What goes wrong without it
#
# A real server sent this when the process behind it was killed in the middle of an answer. The status was 200, the JSON is valid, and there is
# text:

# %%
reply = {"choices": [{"message": {"role": "assistant", "content": "Take two tablets every"}, "finish_reason": None}],
         "usage": {"prompt_tokens": 30, "completion_tokens": 4}}
reply["choices"][0]["message"]["content"]


# %% [markdown]
# Most examples take `choices[0].message.content` and look no further. An evaluation that does so reads half a sentence and blames the model. Only
# `finish_reason` shows what happened: "stop" when the model ended its turn, "length" when it reached the limit that we set. Anything else is no
# answer.
#
# ## 2. The engine

# %%
#| export
class OpenAiEngine(EngineBase):
    """Answers from a server with /v1/chat/completions, over HTTP; raises `InputError` for an address that is no HTTP URL.

    Source: OpenAI, API reference, "Create chat completion".
    """

    name = "openai"

    def __init__(
        self,
        base_url: str,  # such as http://127.0.0.1:8000 or http://127.0.0.1:8000/v1
        model: str,  # the server's name for it
        api_key: str | None = None,
        timeout: float = 600,  # seconds for one answer, at most
        chat: ChatFormat | None = None,  # the model's, if known: prompts are then counted, and an answer can be begun (`lead`)
        extra: dict | None = None,  # further fields of each request, such as {"guard": False} for medlab's own server
    ):
        import httpx

        if not base_url.startswith(("http://", "https://")):
            raise InputError(f"base URL {base_url!r}: expected http://… or https://…, such as http://127.0.0.1:8000/v1")
        self.base_url = base_url.rstrip("/") if base_url.rstrip("/").endswith("/v1") else base_url.rstrip("/") + "/v1"
        self.model, self.chat, self.extra = model, chat, extra or {}
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.client = httpx.Client(headers=headers, timeout=httpx.Timeout(timeout, connect=10), limits=httpx.Limits(keepalive_expiry=1))  # servers close after 5

    def generate(
        self,
        conversations: list[list[dict]],  # each ends with the user's turn
        sampling: Sampling,
    ) -> list[Completion]:  # in the same order
        "Answer one conversation after the other; raises `MedlabError` instead of returning an incomplete answer."
        return [self.answer(messages, sampling) for messages in conversations]

    def answer(self, messages: list[dict], sampling: Sampling) -> Completion:
        "Answer one conversation."
        check_fits(self, messages, sampling)
        body, started = {"model": self.model, "messages": checked_conversation(messages), "stream": False, **sampling.for_openai()}, time.perf_counter()
        reply = post_to_openai(self, "/chat/completions", body)
        done = complete_answer(reply, round(time.perf_counter() - started, 4), self.base_url)
        return as_many_read(self, messages, replace(done, text=as_decoded(self.chat, done.text)))

    def stream(self, messages: list[dict], sampling: Sampling) -> Iterator[Piece]:
        "Answer one conversation piece by piece; closing the iterator closes the connection, and servers stop then."
        check_fits(self, messages, sampling)
        return openai_stream(self, checked_conversation(messages), sampling)

    def scores(self, questions: list[tuple[list[dict], list[str], str]]) -> list[OptionScores]:
        "How likely each option of one token is, from the likeliest that the server lists: see `openai_scores`."
        return [openai_scores(self, *question) for question in questions]

    def info(self) -> dict:
        "The engine, its address, the model, and its context where the server tells it (vLLM does)."
        offered = next((one for one in listed_models(self) if one.get("id") == self.model), {})
        return {"engine": self.name, "address": self.base_url, "model": self.model, "context": offered.get("max_model_len"), "device": None, "quantization": None}

    def close(self) -> None:
        "Close the connections."
        self.client.close()


# %%
#| exporti
@contextmanager
def openai_error(engine: OpenAiEngine) -> Iterator[None]:
    "Raise what goes wrong on the way to a server and back as one of our own errors."
    import httpx

    url = engine.base_url
    try:
        yield
    except httpx.ConnectError:
        raise MissingError(f"nothing answers at {url}; start the server (`medlab serve`) or correct the address") from None
    except httpx.TimeoutException:
        seconds = engine.client.timeout.read
        raise EngineTimeout(f"{url} did not answer within {seconds:.0f} s; ask for fewer tokens or set a longer timeout") from None
    except httpx.TransportError as error:
        raise EngineDied(f"{url} broke off in the middle of its answer ({type(error).__name__}); look at the server's log") from None


# %%
#| exporti
def check_fits(engine: OpenAiEngine, messages: list[dict], sampling: Sampling) -> None:
    """Raise `ContextOverflow` for a prompt that does not fit.

    Without the model's tokenizer only what no tokenizer makes fit is found, 32 letters a token; the rest is the server's to refuse, and Ollama does not.
    """
    tokens = len(engine.chat.prompt_ids(messages)) if engine.chat else sum(len(message["content"]) for message in checked_conversation(messages)) // 32
    check_room(tokens, sampling)


# %%
#| exporti
def as_many_read(engine: OpenAiEngine, messages: list[dict], done: Completion) -> Completion:
    "Return an answer whose prompt had as many tokens as the model's `ChatFormat` counts, where that is known; else raise `MedlabError`."
    expected = len(engine.chat.prompt_ids(messages)) if engine.chat else done.prompt_tokens
    if done.prompt_tokens != expected:
        raise MedlabError(f"{engine.base_url} read {done.prompt_tokens} tokens of a prompt that has {expected}: model {engine.model!r} has another template or "
                          "tokenizer than ours, or the server cut the prompt; deploy the model again, or open the engine without chat=…")
    return done


# %%
#| exporti
def post_to_openai(engine: OpenAiEngine, path: str, body: dict) -> dict:
    "POST to the engine's server; every way of failing has its own message."
    url = engine.base_url
    with openai_error(engine):
        reply = engine.client.post(url + path, json=body | engine.extra)
    if reply.status_code != 200:
        raise server_refusal(reply.status_code, reply.text, url)
    try:
        return json.loads(reply.text)
    except json.JSONDecodeError:
        raise MedlabError(f"{url} answered {masked(reply.text[:200])!r}, which is not JSON; is it an OpenAI-compatible server?") from None


# %%
#| exporti
def server_refusal(status: int, text: str, base_url: str) -> MedlabError:
    "The error for a reply with a status other than 200, of the class that says what to do."
    try:
        error = json.loads(text)["error"]
        message = error["message"] if isinstance(error, dict) else str(error)
    except (json.JSONDecodeError, KeyError, TypeError):
        message = text
    what = {400: "the request is wrong", 401: "the key is missing or wrong", 404: "no such model or address", 413: "the request is too large",
            429: "too many requests", 503: "the model behind it is not there"}.get(status, "it failed")
    said = f"{base_url} answered {status}, {what}: {masked(str(message)[:300])}"
    if re.search(r"context.{0,20}length|maximum context|exceed_context|too many tokens", text) or status == 413:
        return ContextOverflow(f"{said}; shorten the text")
    if speaks_of_memory(text):
        return OutOfMemory(said)
    kinds = {400: InputError, 401: InputError, 422: InputError, 404: ModelNotFound, 429: EngineBusy, 503: EngineBusy}
    return kinds.get(status, MedlabError)(said)


# %%
test_eq(type(server_refusal(404, '{"error": {"message": "no model m"}}', "http://x/v1")), ModelNotFound)
test_eq(type(server_refusal(400, '{"error": {"code": "context_length_exceeded"}}', "http://x/v1")), ContextOverflow)
assert "the model behind it is not there: busy" in str(server_refusal(503, "busy", "http://x/v1"))


# %% [markdown]
# The content of an answer is a text. Some servers send it in parts. It may also be null: the model called a tool, refused, or spent all its tokens on reasoning, and
# the message should say which.

# %%
#| exporti
def content_text(
    message: dict,  # a reply's message, or the delta of a stream
) -> str | None:
    "The text of a message, whole or in parts; None when it has none."
    content = message.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text") for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else None


# %%
#| exporti
def check_ended(
    text: str | None,
    reason: str | None,  # the reply's finish_reason
    message: dict,
    base_url: str,
) -> None:
    "Raise `MedlabError` for an answer without text, and `EngineDied` for one that does not say why it ended."
    if reason not in ("stop", "length") or (text is None and not message):
        raise EngineDied(
            f"{base_url} gave an incomplete answer: finish_reason {reason!r}, expected 'stop' or 'length'; the model behind it may have died, try again"
        )
    if text is None:
        others = {"tool_calls": "it calls a tool", "refusal": "it refuses", "reasoning_content": "all of it is reasoning", "reasoning": "all of it is reasoning"}
        why = next((words for name, words in others.items() if message.get(name)), "nothing stands in its place")
        raise MedlabError(f"{base_url} gave an incomplete answer: its content is null, {why}; expected a text, allow more tokens or use another model")


# %%
test_eq(content_text({"content": [{"type": "text", "text": "Rest"}, {"type": "text", "text": "."}]}), "Rest.")
test_fail(lambda: check_ended(None, "length", {"reasoning": "Let me think"}, "http://x/v1"), contains="all of it is reasoning")


# %%
#| exporti
def complete_answer(reply: Any, seconds: float, base_url: str) -> Completion:
    "Read a reply; raises `MedlabError` unless the reply states why the answer ended and counts its tokens."
    try:
        choice = reply["choices"][0]
        text, reason, usage = content_text(choice["message"]), choice.get("finish_reason"), reply.get("usage") or {}
    except (KeyError, IndexError, TypeError, AttributeError):
        raise MedlabError(f"{base_url} answered without choices: {masked(json.dumps(reply)[:200])}; is it an OpenAI-compatible server?") from None
    check_ended(text, reason, choice["message"], base_url)
    if "prompt_tokens" not in usage or "completion_tokens" not in usage:
        raise MedlabError(f"{base_url} did not count its tokens (usage): got {sorted(usage)}, expected prompt_tokens and completion_tokens")
    tokens = listed_tokens((choice.get("logprobs") or {}).get("content"), 20)
    return Completion(text, usage["prompt_tokens"], usage["completion_tokens"], seconds, reason, tokens=tokens)


# %% [markdown]
# The incomplete answer from above, and a complete one:

# %%
test_fail(lambda: complete_answer(reply, 0.5, "http://x/v1"), contains="incomplete answer")
reply["choices"][0]["finish_reason"] = "length"
test_eq(complete_answer(reply, 0.5, "http://x/v1").completion_tokens, 4)
test_fail(lambda: complete_answer({"choices": []}, 0.5, "http://x/v1"), contains="without choices")


# %% [markdown]
# ## 3. In pieces
#
# A stream is a list of events. Each brings a few letters, one of the last says why the answer ended, and one counts the tokens, if asked. A connection that closes
# before, or an event with an error, means that there is no answer.

# %%
#| exporti
def openai_events(engine: OpenAiEngine, body: dict) -> Iterator[dict]:
    "The events of a streamed reply; raises what an error event says."
    with openai_error(engine), engine.client.stream("POST", engine.base_url + "/chat/completions", json=body | engine.extra) as reply:
        if reply.status_code != 200:
            raise server_refusal(reply.status_code, reply.read().decode(errors="replace"), engine.base_url)
        for line in reply.iter_lines():
            if not line.startswith("data:") or (content := line[5:].strip()) == "[DONE]":
                continue
            try:
                event = json.loads(content)
            except json.JSONDecodeError:
                raise EngineDied(f"{engine.base_url} sent {masked(content[:100])!r} in a stream, expected JSON; the answer is lost") from None
            if "error" in event:
                raise EngineDied(str(server_refusal(200, content, engine.base_url)))
            yield event


# %%
#| exporti
def openai_stream(engine: OpenAiEngine, messages: list[dict], sampling: Sampling) -> Iterator[Piece]:
    "The pieces of one answer; raises `EngineDied` for a stream that ends without a reason, `MedlabError` for one that does not count its tokens."
    body = {"model": engine.model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **sampling.for_openai()}
    started, raw, text, reason, usage, last, sent = time.perf_counter(), "", "", None, None, {}, 0
    tokens: tuple[TokenLogprob, ...] = ()
    for event in openai_events(engine, body):
        usage = event.get("usage") or usage
        for choice in event.get("choices") or []:
            last = {**last, **{name: value for name, value in (choice.get("delta") or {}).items() if value}}
            reason = choice.get("finish_reason") or reason
            tokens += listed_tokens((choice.get("logprobs") or {}).get("content"), sampling.logprobs or 0)
            raw += content_text(choice.get("delta") or {}) or ""
            if new := as_decoded(engine.chat, raw)[len(text):]:
                text += new
                yield Piece(new, None, tokens[sent:])
                sent = len(tokens)
    seconds, message = round(time.perf_counter() - started, 4), {**last, "content": text if raw or not last.keys() - {"role"} else None}
    done = complete_answer({"choices": [{"message": message, "finish_reason": reason}], "usage": usage}, seconds, engine.base_url)
    yield Piece("", replace(as_many_read(engine, messages, done), tokens=tokens), tokens[sent:])


# %% [markdown]
# ## 4. How likely is an option?
#
# The protocol lists up to 20 likely tokens for each place of an answer. The first place is what an option needs. To begin the answer with a lead, the assistant's turn has to be
# left open. Servers have names of their own for that, and one that does not know them closes the turn without a word. The number of tokens that it read
# shows it, so a lead needs the model's `ChatFormat`.

# %%
#| exporti
def openai_scores(engine: OpenAiEngine, messages: list[dict], options: list[str], lead: str) -> OptionScores:
    "The scores of one question's options from the likeliest first tokens that the server lists. Raises `MissingError` where it lists none."
    body = {"model": engine.model, "messages": checked_conversation(messages), "stream": False, **Sampling(length=1).for_openai(), "logprobs": True,
            "top_logprobs": 20}
    if engine.chat is None:
        if lead:
            raise MissingError("this API does not tell how likely an option is after a begun answer, unless the model's ChatFormat is given, too: open the engine with chat=…")
        found = {option: OptionTokens([], [0], "", [option]) for option in options}
    else:
        found = {option: option_tokens(engine.chat, messages, lead, option) for option in options}
        if any(len(one.own) > 1 for one in found.values()):
            return scores_from_list(found, {}, engine.base_url)  # raises: no need to ask
        check_room(len(next(iter(found.values())).before), Sampling(length=1))
    if lead:
        begun = {"role": "assistant", "content": next(iter(found.values())).before_text.removeprefix(engine.chat.prompt_text(messages) + engine.chat.pieces.answer_lead)}
        body |= {"messages": [*messages, begun], "add_generation_prompt": False, "continue_final_message": True}
    reply = post_to_openai(engine, "/chat/completions", body)
    read = (reply.get("usage") or {}).get("prompt_tokens")
    if engine.chat is not None and read != len(next(iter(found.values())).before):
        raise MissingError(f"{engine.base_url} read {read} tokens, expected {len(next(iter(found.values())).before)}: it does not go on from a begun answer, "
                           "or has another template; use transformers, llama.cpp or Ollama")
    return scores_from_list(found, first_listed(reply), engine.base_url)


# %%
#| exporti
def first_listed(reply: dict) -> dict[str, float]:
    "The tokens that a reply lists for the first place of its answer, with their log-probabilities; empty when it lists none."
    try:
        return likeliest_by_text(reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
    except (KeyError, IndexError, TypeError):
        return {}


# %%
test_eq(first_listed({"choices": [{"logprobs": {"content": [{"top_logprobs": [{"token": "A", "logprob": -0.5}]}]}}]}), {"A": -0.5})
test_eq(first_listed({"choices": [{"logprobs": None}]}), {})


# %% [markdown]
# ## 5. Against a server
#
# For this we write a small server of our own. It keeps the requests that it gets, so both sides can be seen.

# %%
class Echo(BaseHTTPRequestHandler):
    "Answers with the last message, or with the status that stands in the model's name."

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        requests.append(body)
        status = int(body["model"]) if body["model"].isdigit() else 200
        good = {"choices": [{"message": {"content": body["messages"][-1]["content"]}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
        text = json.dumps(good if status == 200 else {"error": {"message": f"the request named status {status}"}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


# %%
requests = []
server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
hello = [{"role": "user", "content": "Hello"}]

# %%
with OpenAiEngine(url, "echo", timeout=seconds_to_wait) as engine:
    test_eq(engine.base_url, url + "/v1")
    test_eq(engine.generate([hello], Sampling())[0].text, "Hello")
    reply = post_to_openai(engine, "/chat/completions", {"model": "echo", "messages": hello})
    test_eq(reply["choices"][0]["finish_reason"], "stop")
requests[0]

# %% [markdown]
# **You should see** temperature, top_p, seed and max_tokens in the request. The server's defaults for them have no effect. (The protocol has no
# top_k, min_p or repeat penalty. A server that has them must be configured not to use them. medlab's own server is.)

# %%
test_eq({name: requests[0][name] for name in ("temperature", "top_p", "seed", "max_tokens", "stream")},
        {"temperature": 0.0, "top_p": 1.0, "seed": 42, "max_tokens": 64, "stream": False})

# %% [markdown]
# Each failure has its own message:

# %%
for status in (400, 401, 404, 429, 500, 503):
    with OpenAiEngine(url, str(status)) as engine:
        try:
            engine.generate([hello], Sampling())
        except MedlabError as error:
            print(f"{type(error).__name__:12} {error}".replace(url, "URL"))

# %%
server.shutdown()
server.server_close()
test_fail(lambda: OpenAiEngine(url, "echo").generate([hello], Sampling()), contains="nothing answers at")
test_fail(lambda: OpenAiEngine("localhost:8000", "echo"), contains="expected http://")


# %% [markdown]
# ## 6. Which model a server offers
#
# A request names a model, and each server has names of its own. The protocol has a list of them:

# %%
#| exporti
def listed_models(engine: OpenAiEngine) -> list[dict]:
    "What the engine's server lists under /models; empty when it lists nothing that can be read."
    with openai_error(engine):
        reply = engine.client.get(engine.base_url + "/models")
    try:
        return [one for one in reply.json()["data"] if isinstance(one, dict)]
    except (ValueError, KeyError, TypeError):
        return []


# %%
#| export
def served_model(
    base_url: str,  # the server's address, without /v1
) -> str:
    "The id of the first model that a server offers. Raises `MissingError` when nothing answers or no model is offered, `MedlabError` for another reply."
    import httpx

    try:
        reply = httpx.get(f"{base_url.rstrip('/')}/v1/models", timeout=30)
        offered = reply.raise_for_status().json()["data"]
        return offered[0]["id"]
    except httpx.TransportError:
        raise MissingError(f"nothing answers at {base_url}; start the server (`medlab serve`) or correct the address") from None
    except IndexError:
        raise MissingError(f"{base_url} offers no model; load one, for example with `medlab deploy`") from None
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
        raise MedlabError(f"{base_url}/v1/models gave no list of models ({type(error).__name__}); expected an OpenAI-compatible server") from None


# %%
class Offering(Echo):
    "Lists the models of its server."

    def do_GET(self):
        text = json.dumps(self.server.listed).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


# %%
offering = ThreadingHTTPServer(("127.0.0.1", 0), Offering)
threading.Thread(target=offering.serve_forever, daemon=True).start()
place = f"http://127.0.0.1:{offering.server_port}"
for listed, said in [({"data": [{"id": "medlab-smoke"}]}, ""), ({"data": []}, "offers no model"), ({"hello": 1}, "no list of models")]:
    offering.listed = listed
    test_fail(lambda: served_model(place), contains=said) if said else test_eq(served_model(place), "medlab-smoke")
offering.listed = {"data": [{"id": "medlab-smoke", "max_model_len": 4096}]}
test_eq(OpenAiEngine(place, "medlab-smoke").info()["context"], 4096)
offering.shutdown()
offering.server_close()
test_fail(lambda: served_model(place), contains="nothing answers at")

# %% [markdown]
# ## Exercises
#
# 1. *Easy.* Let `Echo` wait two seconds and give the engine a timeout of one. Which error do you get?
# 2. *Medium.* Which of the six failures above is worth trying again, and after how long? Look at what `medlab.fetching.retry` does.
# 3. *Hard.* Servers differ in the order of a stream's last events. Which orders does `openai_stream` accept, and which answers does it refuse?
#
# ## What to remember
#
# - An answer without `finish_reason` is not an answer, however good it looks.
# - Set timeouts. Many clients wait without a limit by default.
# - A missing server, a slow server and a server that refuses need different remedies.
#
# **Further reading:** OpenAI, [Create chat completion](https://platform.openai.com/docs/api-reference/chat/create);
# [RFC 9110, status codes](https://www.rfc-editor.org/rfc/rfc9110#section-15).
