"`medlab serve` as a user starts it: the page in a real browser, a plan over HTTP, over the deployed model of the smoke run."

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from test_page import browser, say  # noqa: F401  (browser is a fixture)


@pytest.fixture(scope="module")
def site(smoke_run):
    run = smoke_run[0]
    command = [sys.executable, "-m", "medlab.cli.commands", "serve", "--run", str(run.path), "--port", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "MEDLAB_API_KEY"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"at (http://127\.0\.0\.1:\d+)", line):
            break
    else:
        pytest.fail("".join(lines))
    yield found[1]
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


@pytest.mark.slow
def test_the_page_answers_through_the_server(site, browser):  # noqa: F811
    context = browser.new_context(viewport={"width": 1000, "height": 900})
    page = context.new_page()
    said, away = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: away.append(request.url) if not request.url.startswith((site, "data:", "blob:")) else None)
    page.goto(site)
    page.locator("#question textarea").wait_for(timeout=30_000)
    assert "/page" in page.url
    say(page, "I have crushing chest pain and my left arm aches.")
    page.get_by_text("This may be an emergency").wait_for(timeout=30_000)
    page.wait_for_function("document.querySelectorAll('#chat [data-testid=bot]').length >= 1 && document.querySelector('#chat').innerText.length > 150")
    assert not away and not [line for line in said if "Content Security Policy" in line]
    context.close()


@pytest.mark.slow
def test_what_is_wrong_with_a_patient_is_said(site):
    patient = {"age": 62, "sex": "female", "allergies": ["penicillin"], "vitals": {"pulse": "7.2/min"}, "complaint": "A sore throat."}
    wrong = httpx.post(f"{site}/api/treatment-recommendations", json={"patient": patient}, timeout=60)
    assert wrong.status_code in (400, 422) and "expected 15 to 320" in wrong.text
    assert httpx.post(f"{site}/api/treatment-recommendations", json={"patient": {"age": 200}}, timeout=60).status_code == 422


@pytest.mark.slow
def test_a_plan_that_nobody_waits_for_does_not_keep_the_engine(site):
    patient = {"age": 62, "sex": "female", "complaint": "A sore throat."}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{site}/api/treatment-recommendations", json={"patient": patient, "samples": 10}, timeout=2)
    again = httpx.post(f"{site}/v1/chat/completions", json={"model": "medlab", "max_tokens": 3, "messages": [{"role": "user", "content": "Hi"}]}, timeout=60)
    assert again.status_code == 200
