"The report of a finished run: everything backed, nothing loaded from elsewhere, the same result twice."

import base64
import html.parser
import json
import re

import pytest

from medlab.core import TASKS, MissingError, Run, load_profile, read_json, sha256_file, write_json
from medlab.evaluate import VARIANTS, wanted_rows
from medlab.report import (
    MAIN,
    SHORT,
    STEPS,
    THEMES,
    WORDS,
    build_results,
    command_of,
    draw_loss,
    draw_tasks,
    draw_variants,
    headline,
    make_figures,
    render_card,
    render_html,
    report,
    reproducible,
    shown,
)

WHY = 'no engine here <script>alert(1)</script> & "quotes"'


class Page(html.parser.HTMLParser):
    "What a page is made of: tags with attributes, and its text."

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += " ".join(data.split()) + " "


@pytest.fixture(scope="module")
def results(smoke_run):
    return read_json(smoke_run[0].file("report", "results.json"))


@pytest.fixture(scope="module")
def page(smoke_run):
    return Page(smoke_run[0].file("report", "report.html").read_text(encoding="utf-8"))


def test_every_number_has_n_interval_and_status(results):
    for row in results["rows"]:
        assert set(row) == {"metric", "task", "variant", "value", "n", "low", "high", "status", "why"}
        if row["value"] is None:
            assert row["status"] in ("not run", "uncalibrated") and row["why"], row
        else:
            assert row["n"] > 0 and row["low"] <= row["value"] <= row["high"]
        assert row["metric"] in WORDS
    keys = [(row["metric"], row["task"], row["variant"]) for row in results["rows"]]
    assert len(keys) == len(set(keys))
    assert {(m, t, v) for m, t, _ in wanted_rows() for v in VARIANTS} <= set(keys)


def test_it_says_where_the_numbers_come_from(results, smoke_run):
    assert results["command"] == "medlab run --profile smoke" and results["seed"] == 42 and results["hardware"]["cores"] >= 1
    assert {"torch", "transformers", "groq", "medlab"} <= set(results["packages"])
    for each in STEPS:
        manifest = smoke_run[0].manifest(each.name)
        for name, output in manifest.outputs.items():
            assert results["hashes"][f"{each.name}/{name}"] == output.content
        assert results["timings"]["steps"][each.name]["seconds"] == manifest.seconds
    assert any(name.startswith("collect reads") for name in results["hashes"])
    assert "seconds" not in json.dumps(results["rows"])


def test_the_page_needs_nothing_but_itself(page, smoke_run):
    assert page.open == []  # every tag is closed
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object"} & set(names)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "data:").startswith("data:")
    text = smoke_run[0].file("report", "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import", text)
    assert str(smoke_run[0].path.parent) not in text  # no path of this machine


def test_the_page_can_be_read_by_everybody(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 and all(len(image["alt"]) > 20 for image in images)
    assert [tag for tag, _ in page.tags].count("source") == 3  # each in a dark edition too
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in page.tags)
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_page_and_card_show_the_numbers_of_the_results_file(page, results, smoke_run):
    card = smoke_run[0].file("report", "MODEL_CARD.md").read_text(encoding="utf-8")
    assert headline(results["rows"]) in page.text and headline(results["rows"]) in card
    for row in results["rows"]:
        if (row["metric"], row["task"]) in MAIN:
            assert shown(row) in page.text
            line = next(line for line in card.splitlines() if line.startswith(f"| {WORDS[row['metric']][0]} |"))
            assert shown(row) in line and f"| {row['n']} |" in line
    assert card.startswith("---\nlanguage: en\n") and "Not a medical device" in card and "Not a medical device" in page.text


def test_no_mean_of_an_uncalibrated_judge(page, results, smoke_run):
    judged = read_json(smoke_run[0].file("judge", "judge.json"))
    assert next(row for row in results["rows"] if row["metric"] == "judge_score")["value"] is None
    assert f"Asked about {judged['asked']} answers" in page.text and "No mean score is shown" in page.text


def test_rendering_again_gives_the_same_result_in_another_folder(copied, results):
    run, profile = copied
    again = build_results(run, profile)
    assert reproducible(again) == reproducible(results)
    before = {name: sha256_file(path) for path in (run.path / "report" / "figures").glob("*.png") for name in [path.name]}
    make_figures(run, again["rows"])
    assert before == {path.name: sha256_file(path) for path in (run.path / "report" / "figures").glob("*.png")}
    assert len(before) == 3 * len(THEMES)


def test_what_was_not_run_is_shown_as_not_run_and_escaped(copied):
    run, profile = copied
    path = run.file("evaluate", "metrics.json")
    measured = read_json(path)
    for row in measured["rows"]:
        if row["variant"] == "served":
            row.update(value=None, low=None, high=None, n=0, status="not run", why=WHY)
    write_json(path, measured)
    changed = build_results(run, profile)
    text = render_html(run, changed, make_figures(run, changed["rows"]))
    assert "<script" not in text and "&lt;script&gt;" in text
    made = Page(text)
    assert made.open == [] and WHY in made.text and "not run" in made.text
    card = render_card(run, changed)
    assert "| not run |" in card and "q4_k_m model" in headline(changed["rows"])
    assert "<script" not in card


def test_a_run_of_its_own_making_says_so(smoke_run, tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("seed: 3\nmodel: tiny-random\nsteps: {judge: {items: 1}}\n")
    assert command_of(load_profile(own)) == "medlab run --profile profile.yaml"
    assert command_of(load_profile("smoke", ["evaluate.variants=[base,merged]"])) == "medlab run --profile smoke -p evaluate.variants=['base','merged']"


def test_an_unfinished_run_has_no_report(tmp_path, smoke_run):
    with pytest.raises(MissingError):
        build_results(Run(tmp_path / "empty"), smoke_run[1])


def test_figures_cope_with_anything():
    row = {"value": None, "n": 0, "low": None, "high": None, "status": "not run", "why": "x"}
    empty = [{"metric": m, "task": t, "variant": v, **row} for m, t, _ in wanted_rows() for v in VARIANTS]
    for rows in ([], empty):
        for theme in THEMES:
            draw_variants(rows, theme)
            draw_tasks(rows, theme)
    for curve in ([{"step": 1, "loss": 2.0}], [{"step": n, "loss": 2.0} for n in range(300)]):
        draw_loss(curve, "dark")
    assert set(SHORT) == {metric for metric, _ in MAIN} and len(TASKS) == 8


def test_the_pictures_are_pictures(smoke_run, page):
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    files = {path.read_bytes() for path in (smoke_run[0].path / "report" / "figures").glob("*.png")}
    assert all(base64.b64decode(source.partition(",")[2]) in files for source in sources)
    assert report.finished(*smoke_run)  # and the step knows that it is done
