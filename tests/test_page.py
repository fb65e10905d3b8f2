"The chat page in a real browser: typing, streaming, stopping, changing the model, reloading, errors, and no request that leaves the machine."

import shutil
import threading
import time
from pathlib import Path

import pytest

from medlab.basics.errors import MedlabError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("gradio", reason="gradio is not installed: pip install medlab[serve]")


class Backend:
    "Streams words slowly; says what it was asked; one model is dead."

    def __init__(self):
        self.asked, self.closed = [], 0

    def models(self):
        return ["tuned", "base", "dead"]

    def stream(self, model, messages, temperature, verbosity):
        self.asked.append((model, messages, temperature, verbosity))
        if model == "dead":
            raise MedlabError("the engine died: start it again with `medlab deploy`")
        try:
            long = "long" in messages[-1]["content"]
            for number in range(200 if long else 4):
                time.sleep(0.05)
                yield f"{model}-word-{number} "
        finally:
            self.closed += 1

    def ask(self, model, case, options):
        return {"answer": "B", "analysis": "It fits.", "confidence": {"A": 0.2, "B": 0.8}, "text": "", "guard": None}

    def recommend(self, model, patient):
        return {"sections": {"Immediate actions": f"A {patient['age']}-year-old with {', '.join(patient['allergies'])}."}, "warnings": ["penicillin: allergy"]}

    def verdict(self, question):
        return {"text": "Call your emergency number now.", "kind": "emergency"} if "elephant" in question else None

    def pair(self):
        return "tuned", "dead"


@pytest.fixture(scope="module")
def served():
    import uvicorn
    from fastapi import FastAPI

    from medlab.api.page import mount_page

    backend = Backend()
    server = uvicorn.Server(uvicorn.Config(mount_page(FastAPI(), backend), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield backend, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/chat/"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    if not CHROMIUM:
        pytest.skip("no Chromium on PATH: apt install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, served):
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    opened = context.new_page()
    opened.requests = []
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto(served[1])
    opened.locator("#question textarea").wait_for(timeout=20_000)
    yield opened
    context.close()


def say(page, text):
    box = page.locator("#question textarea")
    box.fill(text)
    box.press("Enter")


def test_a_question_is_answered_piece_by_piece_and_is_there_after_reload(page, served):
    say(page, "What helps?")
    page.get_by_text("tuned-word-0").wait_for()
    page.get_by_text("tuned-word-3").wait_for()
    assert served[0].asked[-1][1] == [{"role": "user", "content": "What helps?"}]
    say(page, "And then?")
    page.wait_for_function("document.querySelectorAll('#chat [data-testid=bot]').length >= 2")
    page.wait_for_timeout(600)
    assert [turn["role"] for turn in served[0].asked[-1][1]] == ["user", "assistant", "user"]  # the history goes along
    page.reload()
    page.get_by_text("What helps?").first.wait_for(timeout=20_000)


def test_the_guard_comes_first_and_is_not_the_models_words(page, served):
    say(page, "An elephant sits on my chest")
    page.get_by_text("Call your emergency number now.").wait_for()
    page.get_by_text("tuned-word-3").wait_for()
    text = page.locator("#chat").inner_text()
    assert text.index("This may be an emergency") < text.index("Call your emergency number now.") < text.index("tuned-word-0")
    say(page, "And now?")
    page.wait_for_timeout(800)
    assert "Call your emergency number" not in str(served[0].asked[-1][1])  # the model is not told the guard's words as its own


def test_stop_ends_the_stream(page, served):
    closed = served[0].closed
    say(page, "A long one")
    page.get_by_text("tuned-word-2 ").first.wait_for()
    page.locator("button.stop-button, button[aria-label=Stop]").first.click()
    page.wait_for_timeout(1500)
    assert served[0].closed > closed
    assert "tuned-word-199" not in page.locator("#chat").inner_text()


def test_another_model_is_chosen_and_a_dead_one_is_an_error(page, served):
    for name in ("base", "dead"):
        page.get_by_label("Model").first.click()
        page.get_by_role("option", name=name).click()
        say(page, f"To {name}")
        page.get_by_text("base-word-3" if name == "base" else "the engine died").first.wait_for()


def test_side_by_side_case_and_plan(page):
    page.get_by_role("tab", name="Compare").click()
    page.locator("#both-question textarea, #both-question input").first.fill("What helps?")
    page.locator("#both-button").click()
    page.locator("#left").get_by_text("tuned-word-3").wait_for()
    page.locator("#right").get_by_text("the engine died").wait_for()  # one failure does not end the other answer
    page.get_by_role("tab", name="Case").click()
    page.locator("#case textarea").fill("A cough for a week.")
    page.locator("#options textarea").fill("A) Flu\nB) Cold")
    page.locator("#case-button").click()
    page.get_by_text("Answer: B: Cold").wait_for()
    assert "80%" in page.locator("#bars").inner_text()
    page.get_by_role("tab", name="Plan").click()
    page.locator("#complaint textarea").fill("Sore throat")
    page.get_by_label("Allergies").fill("penicillin")
    page.locator("#plan-button").click()
    page.get_by_text("A 50-year-old with penicillin.").wait_for()
    assert "penicillin: allergy" in page.locator("#plan").inner_text()


def test_no_request_leaves_the_machine(page):
    page.wait_for_timeout(1000)
    away = [url for url in page.requests if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    assert len(page.requests) > 5 and not away


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1100, "dark")])
def test_it_fits_a_phone_and_both_schemes(browser, served, tmp_path, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(served[1])
    opened.locator("#question textarea").wait_for(timeout=20_000)
    say(opened, "What helps?")
    opened.get_by_text("tuned-word-3").wait_for()
    opened.screenshot(path=str(tmp_path / f"page-{width}-{scheme}.png"), full_page=True)
    for tab, part in (("Chat", "#chat"), ("Compare", "#right"), ("Case", "#bars"), ("Plan", "#plan")):
        opened.get_by_role("tab", name=tab).click()
        opened.locator(part).wait_for()
        assert opened.evaluate("document.documentElement.scrollWidth") <= width  # nothing to scroll sideways
        assert opened.locator(part).bounding_box()["width"] > min(250, width / 2), tab  # a part that has words is no thin strip
    assert "Not a medical device" in opened.locator("#disclaimer").inner_text()
    context.close()


def test_it_needs_no_semaphores(monkeypatch):
    "They need /dev/shm, which some containers lack."
    from multiprocessing import synchronize

    from medlab.api.page import chat_page

    def lacking(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(synchronize.SemLock, "__init__", lacking)
    with pytest.raises(FileNotFoundError):
        synchronize.Lock(ctx=None)
    chat_page(Backend())


def test_an_example_is_put_into_the_box(page):
    page.get_by_text("How does metformin work?").click()
    page.wait_for_function("document.querySelector('#question textarea').value === 'How does metformin work?'")


def test_it_works_by_keyboard(page):
    page.locator("#question textarea").focus()
    page.keyboard.type("By keyboard")
    page.keyboard.press("Enter")
    page.get_by_text("tuned-word-3").wait_for()


def test_a_key_is_asked_for(tmp_path: Path):
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from medlab.api.page import mount_page

    with TestClient(mount_page(FastAPI(), Backend(), key="k3y")) as client:
        assert client.post("/chat/login", data={"username": "me", "password": "wrong"}).status_code == 400
        assert client.post("/chat/login", data={"username": "me", "password": "k3y"}).status_code == 200
