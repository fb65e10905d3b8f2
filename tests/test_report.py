"The report of a finished run: everything backed, nothing loaded from elsewhere, the same result twice."

import base64
import html.parser
import json
import os
import re
import shutil
import zipfile

import pytest

from medlab.basics.errors import MissingError
from medlab.basics.files import read_json, read_parquet, sha256_file, shipped, write_json, write_parquet
from medlab.contracts.predictions import read_predictions
from medlab.contracts.records import TASKS, Record, Rejected, read_records
from medlab.contracts.tasks import read_examples
from medlab.core import Run, load_profile
from medlab.evaluate import EvaluateParams
from medlab.figures.data import MISSING, describe_balance, draw_balance, draw_lengths, draw_records
from medlab.figures.drawing import THEMES
from medlab.figures.claims import choice_claims, compare_results
from medlab.figures.evidence import draw_training
from medlab.figures.results import MAIN_METRICS, SHORT_TITLES, draw_tasks, draw_variants, formatted_value
from medlab.instruct import instruct
from medlab.metrics.scores import wanted_rows
from medlab.report import (
    EARLIER_STEPS, METRIC_WORDS, QUALITY, RESULTS_SCHEMA, build_data, build_results, command_of, compare_runs, data_headline, describe_variants, headline, headline_of, make_data_figures,
    make_figures, page_parts, rejected_groups, render_card, render_data, render_html, report, results_hash,
)
from medlab.report import data_page as write_data_page

WHY = 'no engine here <script>alert(1)</script> & "quotes"'


class Page(html.parser.HTMLParser):
    "What a page is made of: tags with attributes, and its text."

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.open, self.tables = [], "", [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)
        if tag == "h3":
            self.title = ""
        if tag == "tr":
            self.tables.setdefault(self.title.strip(), []).append([])
        if tag in ("th", "td") and self.tables:
            list(self.tables.values())[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += " ".join(data.split()) + " "
        if "h3" in self.open:
            self.title += data
        if "td" in self.open or "th" in self.open:
            list(self.tables.values())[-1][-1][-1] += data

    title = ""  # of the table that comes


@pytest.fixture(scope="module")
def results(smoke_run):
    return read_json(smoke_run[0].file("report", "results.json"))


@pytest.fixture(scope="module")
def page(smoke_run):
    return Page(smoke_run[0].file("report", "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data_page(smoke_run):
    return Page(smoke_run[0].file("report", "data.html").read_text(encoding="utf-8"))


def test_every_number_has_n_interval_and_status(results, smoke_run):
    for row in results["rows"]:
        assert set(row) == {"metric", "task", "variant", "value", "n", "low", "high", "status", "why", "arm"}
        if row["value"] is None:
            assert row["status"] in ("not run", "uncalibrated", "below floor") and row["why"], row
        else:
            assert row["n"] > 0 and row["low"] <= row["value"] <= row["high"]
        assert row["metric"] in METRIC_WORDS
    asked = [(row["metric"], row["task"], row["variant"], row["arm"]) for row in results["rows"]]
    assert len(asked) == len(set(asked))
    keys = [key[:3] for key in asked if key[3] == "zero_shot"]
    assert {(m, t, v) for m, t, _ in wanted_rows() for v in smoke_run[1].params(EvaluateParams).variants} <= set(keys)


def test_it_says_where_the_numbers_come_from(results, smoke_run):
    assert results["command"] == "medlab run --profile smoke" and results["seed"] == 42 and results["hardware"]["cores"] >= 1
    assert {"torch", "transformers", "groq", "medlab"} <= set(results["packages"])
    for step in EARLIER_STEPS:
        manifest = smoke_run[0].manifest(step)
        for name, output in manifest.outputs.items():
            assert results["hashes"][f"{step}/{name}"] == output.content
        assert results["timings"]["steps"][step]["seconds"] == manifest.seconds
        assert results["made_by"][step] == {"commit": manifest.commit, "platform": manifest.platform}
    assert results["commit"] == smoke_run[0].manifest("evaluate").commit
    assert any(name.startswith("collect reads") for name in results["hashes"])
    assert "seconds" not in json.dumps(results["rows"])


def test_the_file_names_its_schema_and_the_shipped_one_has_the_same_keys(results):
    shipped_results = read_json(shipped("data", "results", "cpu.json"))
    assert results["schema"] == shipped_results["schema"] == RESULTS_SCHEMA == 2
    assert set(shipped_results) <= set(results) and set(results) - set(shipped_results) <= {"incomplete", "evidence", "benchmarks", "made_by"}
    assert [one["metric"] for one in results["majority_baselines"]] == [one["metric"] for one in shipped_results["majority_baselines"]]


def originals(run):
    "The addresses of all records of a run."
    return {record.url for record in read_records(run.file("collect", "records.parquet"))}


@pytest.mark.parametrize("name", ["report.html", "data.html"])
def test_a_page_needs_nothing_but_itself_and_its_neighbour(name, smoke_run):
    path = smoke_run[0].file("report", name)
    page = Page(text := path.read_text(encoding="utf-8"))
    assert page.open == []  # every tag is closed
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for _, attributes in page.tags:
        assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "srcset"))
        address = attributes.get("href", "#")
        if address.startswith(("https://", "http://")):
            assert name == "data.html" and address in originals(smoke_run[0]) and attributes["rel"] == "noreferrer"  # a link to a record's page loads nothing
        else:
            assert address == "#" or address[1:] in ids if address.startswith("#") else (path.parent / address).exists()
    style = "".join(re.findall(r"<style>.*?</style>", text, re.S))
    assert style and not re.search(r"https?://|url\(|@import", style)
    assert str(smoke_run[0].path.parent) not in text  # no path of this machine
    assert len(text) < 2_000_000  # a dozen figures for light and for dark pages


@pytest.mark.parametrize(("name", "pictures"), [("report.html", 11), ("data.html", 3)])
def test_a_page_can_be_read_by_everybody(name, pictures, smoke_run):
    page = Page(smoke_run[0].file("report", name).read_text(encoding="utf-8"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == pictures and all(len(image["alt"]) > 20 for image in images)
    assert [tag for tag, _ in page.tags].count("source") == pictures  # each in a dark edition too
    assert ("html", {"lang": "en"}) in page.tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in page.tags)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    links = [attributes for tag, attributes in page.tags if tag == "a" and re.fullmatch(r"\w+\.html", attributes["href"])]
    assert {link["href"] for link in links} == {"report.html", "data.html"}
    assert [link["href"] for link in links if link.get("aria-current") == "page"] == [name]


def test_page_and_card_show_the_numbers_of_the_results_file(page, results, smoke_run):
    card = smoke_run[0].file("report", "MODEL_CARD.md").read_text(encoding="utf-8")
    assert headline_of(results) in page.text and headline_of(results) in card
    assert headline_of(results).startswith(headline(results["rows"]).rstrip("."))
    for row in results["rows"]:
        if (row["metric"], row["task"]) in MAIN_METRICS and row["arm"] == "zero_shot":
            assert formatted_value(row) in page.text
            line = next(line for line in card.splitlines() if line.startswith(f"| {METRIC_WORDS[row['metric']][0]} |"))
            assert formatted_value(row) in line and f"| {row['n']} |" in line
    assert card.startswith("---\nlanguage: en\n") and "Not a medical device" in card and "Not a medical device" in page.text


def test_no_mean_of_an_uncalibrated_judge(page, results, smoke_run):
    judged = read_json(smoke_run[0].file("judge", "judge.json"))
    assert next(row for row in results["rows"] if row["metric"] == "judge_score")["value"] is None
    assert f"The judge was given {judged['asked']} answers" in page.text and "No mean score is shown" in page.text
    assert not judged["calibrated"] and judged["controls"]["why"][0] in page.text  # and why


def test_rendering_again_gives_the_same_result_in_another_folder(copied, results):
    run, profile = copied
    again = build_results(run, profile)
    assert results_hash(again) == results_hash(results)
    assert again["data"] == results["data"]
    before = {name: sha256_file(path) for path in (run.path / "report" / "figures").glob("*.png") for name in [path.name]}
    make_figures(run, again)
    make_data_figures(run.folder("report"), again["data"])
    assert before == {path.name: sha256_file(path) for path in (run.path / "report" / "figures").glob("*.png")}
    assert len(before) == (11 + 3) * len(THEMES)


def test_what_was_not_run_is_shown_as_not_run_and_escaped(copied):
    run, profile = copied
    path = run.file("evaluate", "metrics.json")
    measured = read_json(path)
    for row in measured["rows"]:
        if row["variant"] == "served":
            row.update(value=None, low=None, high=None, n=0, status="not run", why=WHY)
    write_json(path, measured)
    changed = build_results(run, profile)
    text = render_html(run, changed, make_figures(run, changed))
    assert "<script" not in text and "&lt;script&gt;" in text
    made = Page(text)
    assert made.open == [] and WHY in made.text and "not run" in made.text
    card = render_card(run, changed)
    assert "| not run |" in card and "q4_k_m model" in headline(changed["rows"])
    assert "<script" not in card


def test_an_incomplete_step_is_named_on_the_page(smoke_run, results):
    run, _ = smoke_run
    text = render_html(run, results | {"incomplete": {"judge": [WHY], "evaluate": []}}, [])
    words = " ".join(Page(text).text.split())
    assert f"Incomplete: judge, without {WHY}. The same command" in words and "Incomplete: evaluate. The same command" in words
    assert "<script" not in text and "Incomplete" not in Page(render_html(run, results | {"incomplete": {}}, [])).text


def test_a_variant_of_any_name_is_described_and_drawn(copied):
    run, profile = copied
    path = run.file("evaluate", "metrics.json")
    measured = read_json(path)
    measured["rows"] += [row | {"variant": WHY} for row in measured["rows"] if row["variant"] == "merged"]
    write_json(path, measured)
    changed = build_results(run, profile)
    assert describe_variants(changed["rows"])[-1][0] == WHY and f"the {WHY} model" in headline(changed["rows"])
    text = render_html(run, changed, make_figures(run, changed))
    assert "<script" not in text and WHY in Page(text).text and "<script" not in render_card(run, changed)


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
    empty = [{"metric": m, "task": t, "variant": v, **row} for m, t, _ in wanted_rows() for v in ("base", "merged", "q8_0")]
    for rows in ([], empty):
        for theme in THEMES:
            draw_variants(rows, theme)
            draw_tasks(rows, theme)
    for curve in ([{"step": 1, "loss": 2.0}], [{"step": n, "loss": 2.0} for n in range(300)]):
        draw_training({"steps": curve}, "dark")
    assert set(SHORT_TITLES) == {metric for metric, _ in MAIN_METRICS} and len(TASKS) == 8


def test_the_pictures_are_pictures(smoke_run, page):
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    files = {path.read_bytes() for path in (smoke_run[0].path / "report" / "figures").glob("*.png")}
    assert all(base64.b64decode(source.partition(",")[2]) in files for source in sources)
    assert report.finished(*smoke_run)  # and the step knows that it is done


# ---------------------------------------------------------------------- what lies behind the means


def test_answers_stand_side_by_side_and_what_is_missing_is_named(page, results, smoke_run):
    items = results["evidence"]["side_by_side"]
    test = {one.id: one for one in read_examples(smoke_run[0].file("instruct", "test.jsonl"))}
    assert len(items) == min(10, len(items)) and {one["task"] for one in items} == set(TASKS)
    for item in items:
        assert item["reference"] == test[item["id"]].gold["reference"] and item["id"] in test
        assert [one["variant"] for one in item["answers"]] == ["base", "adapter", "merged", "q4_k_m", "served"]
        assert " ".join(item["question"].split())[:60] in " ".join(page.text.split())
    place = page.text.index("The judge beside people")
    assert MISSING in page.text[place : place + 120]  # no step of this profile measured it
    for title in ("Ten items, side by side", "Limits", "What training may have taken away", "Which errors were made", "What failed", "Right choices, by variant and way of asking"):
        assert title in page.text


def everything(results):
    "Results with all that a larger profile measures."
    rivals = [{"metric": "triage_accuracy", "task": "triage", "rival": "naive_bayes", "value": 0.5, "low": 0.3, "high": 0.7, "n": 16}]
    bins = [{"confidence": 0.1 * n, "accuracy": 0.09 * n, "n": 4} for n in range(1, 10)]
    calibration = [{"variant": name, "arm": "forced_choice_letter", "task": "triage", "n": 36, "ece": 0.1, "low": 0.0, "high": 0.2, "reliability": bins,
                    "conformal": [{"wanted": 0.9, "coverage": 0.94, "size": 3.2}],
                    "risk_coverage": [{"coverage": 0.1 * n, "risk": 0.05 * n} for n in range(1, 11)]} for name in ("base", "merged")]
    lost = {"before": {"general_right": 0.75, "harmful_refused": 1.0, "harmless_helped": 0.5, "items": 16},
            "after": {"general_right": 0.5, "harmful_refused": 0.25, "harmless_helped": 0.75, "items": 16}}
    value = {"value": 0.4, "low": 0.2, "high": 0.6, "n": 120, "clusters": 30}
    people = {"points": [{"grade": 1 + n % 4, "score": 1 + n % 5} for n in range(60)], "spearman": value, "kappa": value, "auc": value | {"value": 0.66},
              "corrected_mean_grade": {"value": 1.9, "low": 1.7, "high": 2.1, "weight": 0.5, "n": 40, "n_judged": 80}}
    claim = {"task": "triage", "metric": "triage_accuracy", "variant": "served", "n": 16, "low": -0.1, "high": 0.3, "p_holm": 0.4, "smallest_difference": 0.31,
             "beats_base": False, "beats_rival": False, "says": "Best arm against best arm: not shown."}
    below = {"value": None, "low": None, "high": None, "n": 0, "status": "below floor", "why": "1 of 16 answers is in the format"}
    rows = [row | {"arm": "zero_shot"} | (below if row["metric"].endswith("_accuracy") and row["variant"] == "base" else {}) for row in results["rows"]]
    rows += [row | {"arm": arm, "value": 0.5, "low": 0.3, "high": 0.7, "n": 16, "status": "measured", "why": None}
             for row in results["rows"] if row["metric"].endswith("_accuracy") for arm in ("few_shot", "forced_choice_letter")]
    more = {"rivals": rivals, "calibration": calibration, "lost": lost, "people": people, "claims": [claim],
            "neighbours": [{"variant": "q4_k_m", "against": "merged", "arm": "forced_choice_letter", "n": 16, "same": 15, "value": 0.94, "low": 0.7, "high": 1.0,
                            "accuracy_drop": 0.06, "drop_low": -0.12, "drop_high": 0.28, "differs": ["t7"]}],
            "wording": [{"variant": "served", "n": 8, "bleu": 0.46, "chrf": 12.3}]}
    return results | {"rows": rows, "evidence": results["evidence"] | more}


def test_what_a_larger_profile_measures_is_shown(copied, results):
    run, _ = copied
    whole = everything(results)
    page = Page(render_html(run, whole, make_figures(run, whole)))
    assert sum(tag == "img" for tag, _ in page.tags) == 13 and page.open == []
    triage = page.tables["Right triage level"]
    heads = ["no examples", "with examples (n = 16)", "likeliest letter (n = 16)"]
    assert [head.partition(" (n" if head.startswith("no") else "\0")[0] for head in triage[0][1:]] == heads and triage[0][0] == ""
    assert triage[1][:3] == ["base", "below floor", "50 % (30–70)"] and any(row[0] == "rival: naive Bayes" and row.count("50 % (28–72)") == 1 for row in triage)
    assert "base, triage accuracy, no examples: 1 of 16 answers is in the format" in page.text  # the empty cell's reason, and no accuracy
    assert ["base, likeliest letter, triage", "36", "0.10 (0.00–0.20)", "90 % wanted: 94 % held, 3.2 options"] in page.tables["How sure, and how rightly"]
    assert page.tables["From one link of the chain to the next"][1] == ["q4_k_m after merged", "likeliest letter", "16", "94 % (70–100)", "-6 (-28 to +12) points", "t7"]
    assert page.tables["Wording beside the references"][1] == ["served", "8", "0.5", "12.3"]
    assert page.text.count("The smallest difference that could have been shown: none (n = 1), 38 points (n = 16).") == 4  # under each table of accuracies
    assert ["harmful requests refused", "100 % (81–100)", "25 % (10–49)", "16"] in page.tables["Forgetting and safety"]
    assert "With 16 questions of each kind a change under 38 points could not have been shown." in page.text
    assert page.tables["Best way of asking against best way of asking"][1][:3] == ["Right triage level", "16", MISSING]  # an older claim without the sides' values
    assert ["agreement with people: auc", "0.66 (0.20 to 0.60), n = 120"] in page.tables["The judge, judged"]
    assert "could have been shown: 31 points for right triage level (n = 16)" in page.text and "Best arm against best arm: not shown." in page.text
    card = render_card(run, whole)
    assert "| below floor |" in card and "31 points for right triage level" in card


def test_claims_of_the_best_ways_of_asking_decide(results):
    claim = everything(results)["evidence"]["claims"][0]
    for beats_base, beats_rival in ((True, True), (True, False), (False, True)):
        made = [claim | {"low": 0.1, "beats_base": beats_base, "beats_rival": beats_rival}]
        assert ("is shown for right triage level" in headline(results["rows"], [], [], made)) is (beats_base and beats_rival)


def test_errors_that_could_harm_somebody_stand_at_the_top_with_their_denominators(copied, results):
    "A model that says no to every emergency is right on most questions; page and card say what it missed, and that it says the same to everything."
    run, _ = copied
    error = {"error": "emergencies missed", "task": "emergency_escalation", "variant": "served", "arm": "zero_shot", "count": 9, "unread": 0, "n": 9, "low": 0.7, "high": 1.0}
    other = error | {"error": "false alarms", "arm": "few_shot", "count": 1, "unread": 2, "n": 15, "low": 0.01, "high": 0.3}
    said = {"variant": "served", "arm": "zero_shot", "task": "emergency_escalation", "choice": "no", "count": 24, "n": 24}
    readable = [row | {"status": "measured", "value": 0.6, "low": 0.4, "high": 0.8, "n": 24} if row["metric"] == "escalation_accuracy" else row for row in results["rows"]]
    whole = results | {"rows": readable, "evidence": results["evidence"] | {"errors": [error, other], "commonest": [said]}}
    page = Page(render_html(run, whole, []))
    assert page.tables["Way of asking: no examples"] == [["", "served"], ["emergencies missed", "9 of 9 (70–100)"]]
    assert page.tables["Way of asking: with examples"][1] == ["false alarms", "1 of 15 (1–30), 2 unread"]
    for text in (page.text, render_card(run, whole)):
        assert "9 of 9 emergencies missed" in text
    assert "One answer to everything, emergency escalation: served “no” in 24 of 24." in page.text
    floored = [row | {"status": "below floor", "value": None} if row["metric"] == "escalation_accuracy" else row for row in readable]
    assert "9 of 9" not in render_html(run, whole | {"rows": floored}, [])  # what could not be read is no error count either


def test_errors_are_counted_among_those_who_could_suffer_them(results, smoke_run):
    test = read_examples(smoke_run[0].file("instruct", "test.jsonl"))
    held = {row["error"]: row for row in results["evidence"]["errors"] if (row["variant"], row["arm"]) == ("base", "zero_shot")}
    asked = {one.item_id for one in read_predictions(smoke_run[0].file("evaluate", "predictions.parquet")) if one.variant == "base"}
    golds = [one.gold.get("emergency") for one in test if one.id in asked]
    for error, gold in (("emergencies missed", "yes"), ("false alarms", "no")):
        assert held.get(error, {"n": 0})["n"] == golds.count(gold)
    assert all(row["count"] + row["unread"] <= row["n"] and row["low"] <= row["count"] / row["n"] <= row["high"] for row in results["evidence"]["errors"])


def test_what_was_run_and_from_which_data_stands_at_the_top_and_claims_are_said_once(copied, results):
    run, _ = copied
    whole = everything(results)
    claim = whole["evidence"]["claims"][0]
    made_by = {"evaluate": {"commit": "0" * 40 + "+", "platform": "Another-OS-1.0"}, "report": {"commit": "1" * 40, "platform": whole["hardware"]["system"]}}
    whole |= {"notes": {"evaluate": [claim["says"], "another note"]}, "made_by": made_by}
    text = Page(render_html(run, whole, [])).text
    top = text[: text.index("Not a medical device")]
    assert headline_of(whole) in top and data_headline(whole["data"]) in top and whole["hardware"]["processor"] in top and whole["command"] in top
    assert text.count(claim["says"]) == 1 and "another note" in text and f"{'0' * 40}, with uncommitted changes (evaluate); {'1' * 40} (report)" in text
    assert "Measured on Another-OS-1.0; this page was made on" in top  # never on the machine that only made the page


def benchmark_result(protocol, **changes):
    row = {"metric": "option_accuracy", "task": "clinical_reasoning", "variant": "base", "value": 0.6, "low": 0.44, "high": 0.74, "n": 40, "status": "measured", "why": None}
    prompt = {"messages": [{"role": "user", "content": f"{protocol} asks: {WHY}"}], "lead": "<answer>", "options": ["A", "B"]}
    return {
        "schema": 1, "file": "exam.csv", "sha256": "0" * 64, "as": "mcq", "protocol": protocol, "n": 40, "items": "1", "left_out": {"it has no question": 2}, "leaks": {"a": "exact"},
        "rivals": [row | {"rival": "longest_option", "value": 0.25, "low": 0.14, "high": 0.4}],
        "leaks_checked_against": 90, "suspects": [], "suspects_why": "", "not_possible": {}, "smallest_difference": 0.3, "prompts": {"forced_choice_letter": prompt},
        "results": [{"variant": "base", "arm": "forced_choice_letter", "trained": None, "kinds": {"clinical_reasoning": {"macro_f1": 0.58}},
                     "rows": [row | {"metric": "format_valid", "value": 1.0, "low": 0.91, "high": 1.0}, row]}],
    } | changes


def test_two_protocols_of_somebodys_file_stand_side_by_side(copied):
    "In a table of their own, each prompt to the letter; what is damaged, old or below the floor is said."
    run, profile = copied
    assert report.finished(run, profile) and build_results(run, profile)["benchmarks"] == []
    folder = run.folder("benchmarks")
    low = benchmark_result("lm-eval", items="2")
    low["results"][0] |= {"kinds": {}, "variant": "merged", "trained": "another", "rows": [low["results"][0]["rows"][1] | {"value": None, "status": "below floor", "why": "3 of 40 can be read"}]}
    write_json(folder / "a.json", benchmark_result("chat"))
    assert not report.finished(run, profile)  # one was added
    hashed = results_hash(build_results(run, profile))
    for name, found in (("b", low), ("c", {"n": 3}), ("d", benchmark_result("chat", schema=99)), ("e", benchmark_result("chat", results=[{"variant": WHY}])), ("f", []),
                        ("h", benchmark_result("chat", rivals=[{"rival": WHY}])), ("i", benchmark_result("chat", comparisons=[{"variant": WHY}]))):
        write_json(folder / f"{name}.json", found)
    (folder / "g.json").write_text('{"sch')
    results = build_results(run, profile)
    text = render_html(run, results, [])
    page, rows = Page(text), build_results(run, profile)["rows"]
    assert page.open == [] and "<script" not in text and results_hash(results) != hashed
    head, *rows_shown = page.tables["exam.csv, read as mcq"]
    assert head == ["", "protocol", "right", "n", "macro-F1"]  # no format, which a forced choice has not
    base, merged, rival = "base, likeliest letter", "merged, likeliest letter", "rival: longest option"
    assert rows_shown == [[base, "chat", "60 % (44–74)", "40", "0.58"], [base, "lm-eval", "not run", "", ""], [merged, "chat", "not run", "", ""],
                          [merged, "lm-eval", "below floor", "40", ""], [rival, "chat", "25 % (14–40)", "40", ""], [rival, "lm-eval", "25 % (14–40)", "40", ""]]
    said = " ".join(page.text.split())
    for words in (f"chat asks: {WHY}", "1 left out because they stand in the training data (90 training examples compared)", "2 rows left out: it has no question", "3 of 40 can be read",
                  "not asked on the same items", "merged: measured before this run's model was trained again"):
        assert words in said
    assert [row[0] for row in page.tables["Results that cannot be shown"][1:]] == [f"benchmarks/{name}.json" for name in "cdefghi"]
    assert all("exam" not in str(row) for row in rows)  # never among the course's own questions
    shutil.rmtree(folder)
    assert report.finished(run, profile)  # and what was removed is no longer a difference


def pair_of(metric, task, **values):
    return {"metric": metric, "task": task, "variant": "served", "against": "base", "n": 60, "better": 9, "worse": 1, "difference": 0.2, "low": 0.1, "high": 0.3,
            "p_value": 0.001, "status": "measured", "why": None} | values


def test_the_sentence_at_the_top_claims_only_what_was_shown():
    def row(metric, task, variant, value):
        return {"metric": metric, "task": task, "variant": variant, "value": value, "n": 60, "low": value - 0.1, "high": value + 0.1, "status": "measured", "why": None}

    rows = [row("format_valid", "all", name, 0.8) for name in ("base", "served")]
    rows += [row(metric, task, "served", 0.6) for metric, task in MAIN_METRICS if metric.endswith("_accuracy")]
    triage, option = ("triage_accuracy", "triage"), ("option_accuracy", "clinical_reasoning")
    assert choice_claims(rows, [pair_of(*triage)])["shown"] == ["triage_accuracy"]
    assert "is shown for right triage level" in headline(rows, [pair_of(*triage), pair_of(*option, low=-0.1, p_value=0.4)])
    for rival in (0.5, 0.7):  # a rival inside the interval, and one above it
        known = [{"metric": "triage_accuracy", "task": "triage", "rival": "naive_bayes", "value": rival, "n": 60}]
        assert "no improvement in right choices is shown" in headline(rows, [pair_of(*triage)], known)
    for weak in ({"low": -0.01}, {"p_value": 0.2}, {"difference": 0.2, "low": 0.0}):
        assert "no improvement in right choices is shown" in headline(rows, [pair_of(*triage, **weak)])
    several = [pair_of(metric, task, p_value=0.03) for metric, task in MAIN_METRICS if metric.endswith("_accuracy")]
    assert choice_claims(rows, several)["shown"] == []  # four tests at 0.03 each: Holm
    assert "it got worse on right triage level" in headline(rows, [pair_of(*triage, difference=-0.2, low=-0.3, high=-0.1)])
    assert "cannot be compared" in headline(rows, [pair_of(*triage, status="not comparable", difference=None)])


def test_hugging_faces_own_library_reads_the_model_card(smoke_run, copied, results):
    from huggingface_hub import ModelCard

    for text in (smoke_run[0].file("report", "MODEL_CARD.md").read_text(encoding="utf-8"), render_card(copied[0], everything(results))):
        card = ModelCard(text, ignore_metadata_errors=False)
        assert card.data.language == "en" and card.data.license and card.data.base_model and card.data.pipeline_tag == "text-generation"
        values = {one.metric_type: one.metric_value for one in card.data.eval_results}
        shown = {row["metric"]: row["value"] for row in results["rows"] if row["variant"] == "served" and row["metric"] in ("format_valid", "rouge_l") and row["task"] == "all"}
        assert shown.items() <= values.items() and card.text.lstrip().startswith("# ")


def test_runs_beside_each_other(smoke_run, results, tmp_path, medlab):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(results | {"hashes": results["hashes"] | {"instruct/test.jsonl": "another"}}))
    done = medlab("report", "compare", smoke_run[0].path, other, "--out", tmp_path / "page.html")
    assert done.returncode == 0 and "NOT measured on the same items" in done.stdout, done.stderr
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.open == [] and page.tables["Runs side by side"][0] == ["", smoke_run[0].name, "other"] and headline_of(results) in page.text
    assert compare_runs([smoke_run[0].path, smoke_run[0].path], tmp_path / "same.html")["same_items"]
    assert not compare_results({"a": results, "b": results | {"hashes": {}}})["same_items"]
    fewer = results | {"rows": [row | {"n": row["n"] + 1} if row["metric"] == "format_valid" else row for row in results["rows"]]}
    assert not compare_results({"a": results, "b": fewer})["same_items"]  # the same test split, of which one run asked more
    for words, said in ((["compare", smoke_run[0].path], "two at least"), (["compair", "a", "b"], "compare RUN RUN"), (["compare", smoke_run[0].path, tmp_path / "none"], "is not there")):
        failed = medlab("report", *words)
        assert failed.returncode != 0 and said in failed.stderr + failed.stdout


CHROMIUM = "/usr/bin/chromium"

#: What a browser tells about a page: its width, boxes that leave it, pictures that did not load, text that is cut, and the contrast of nothing at all.
LOOK = """() => {
  const wide = document.documentElement.clientWidth, found = {width: document.documentElement.scrollWidth, outside: [], broken: [], small: []};
  for (const one of document.querySelectorAll('main *, header *')) {
    const box = one.getBoundingClientRect();
    if (box.width && box.right > wide + 1 && !one.closest('.wide')) found.outside.push(one.tagName + ' ' + one.textContent.slice(0, 40));
    if (box.width && one.children.length === 0 && one.textContent.trim() && parseFloat(getComputedStyle(one).fontSize) < 11) found.small.push(one.textContent.slice(0, 40));
  }
  for (const one of document.images) {
    const box = one.getBoundingClientRect();
    if (!one.complete || !one.naturalWidth) found.broken.push(one.alt);
    if (box.width < 200 || Math.abs(box.width / box.height - one.naturalWidth / one.naturalHeight) > 0.02) found.broken.push('squeezed: ' + one.alt);
  }
  return found;
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(copied, results, width):
    "Nothing sticks out of a phone's screen or a desk's, every picture is there and undistorted, every item can be opened, and it prints."
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page was not looked at in a browser")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"no browser at {CHROMIUM}: the page was not looked at in one")
    run, _ = copied
    whole = everything(results)
    path = run.path / "report" / "whole.html"
    path.write_text(render_html(run, whole, make_figures(run, whole)), encoding="utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        said = []
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        for place in range(page.locator("summary").count()):
            page.locator("summary").nth(place).click()
        found = page.evaluate(LOOK)
        printed = page.pdf() if width == 1280 else b"%PDF"
        browser.close()
    assert found == {"width": width, "outside": [], "broken": [], "small": []} and said == []
    assert printed.startswith(b"%PDF")


def test_every_figure_has_axes_with_names_and_labels_that_fit(results):
    from medlab.report import evidence_plans, measured_plans

    whole = everything(results)
    plans = [*measured_plans(whole["rows"]), *evidence_plans(whole["evidence"])]
    assert all(plan[2] for plan in plans)
    for name, _, words, draw in plans:
        figure = draw("light")
        figure.draw_without_rendering()
        wide, high = figure.bbox.width, figure.bbox.height
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_title() or len(axes.get_yticklabels()) > 1, name
            for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label, axes.title):
                if label.get_text().strip() and label.get_visible():
                    box = label.get_window_extent()
                    assert -2 <= box.x0 and box.x1 <= wide + 2 and -2 <= box.y0 and box.y1 <= high + 2, f"{name}: {label.get_text()!r} is cut off"
        assert len(words) > 20


# ---------------------------------------------------------------------- the page on data


def number(text):
    return int(text.replace(",", ""))


def test_the_data_section_is_the_files_and_has_no_times(results, smoke_run):
    run, data = smoke_run[0], results["data"]
    quality, sources = read_json(run.file("preprocess", "quality.json")), read_json(run.file("collect", "sources.json"))
    assert data["quality"] == {name: quality[name] for name in QUALITY}
    assert [one["count"] for one in data["sources"]] == [one["count"] for one in sources]
    assert sum(one["records"] for one in data["licences"]) == sum(one["count"] for one in sources) == quality["records"]
    for split in ("train", "validation", "test"):
        lines = run.file("instruct", f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert data["examples"]["splits"][split]["examples"] == len(lines) == sum(of[split] for of in data["examples"]["tasks"].values())
    for counts in (data["examples"]["lengths"]["questions"], data["examples"]["lengths"]["answers"]):
        assert sum(counts) == sum(of["examples"] for of in data["examples"]["splits"].values())
    assert not re.search("waited|seconds|requests", json.dumps(data))


def test_every_cell_of_the_page_on_data_is_a_count_from_the_results(data_page, results):
    quality, found = results["data"]["quality"], data_page.tables
    for name, counts in quality["sources"].items():
        row = next(row for row in found["In and out, by source"] if row[0] == name)
        places = ("train", "validation", "test", "retrieval", "rejected")
        assert [number(cell) for cell in row[1:]] == [sum(counts.values()), *(counts.get(place, 0) for place in places)]
    assert {row[0].replace(" ", "_"): [number(cell) for cell in row[1:]] for row in found["Examples by task"][1:]} == {
        task: [of[split] for split in ("train", "validation", "test")] for task, of in results["data"]["examples"]["tasks"].items()
    }
    assert [number(row[1]) for row in found["Leakage gate"][1:]] == [0] * len(quality["leakage"])
    rows = found["Records: words of answer or text"][1:]
    assert [number(row[1]) for row in rows] == quality["lengths"]["collected"]
    assert data_headline(results["data"]) in data_page.text and "licences_held is empty" in data_page.text


@pytest.fixture
def rich(copied):
    "A run of which the data part was rewritten: three sources, one with a hostile name, and everything that quality.json can hold."
    run, _ = copied
    path = run.file("preprocess", "quality.json")
    quality = read_json(path) | {
        "records": 1000, "splits": {"train": 500, "test": 90, "validation": 10, "retrieval": 100},
        "rejected": {"no_answer": 250, "exact_duplicate": 30, "near_duplicate": 20},
        "sources": {"nhs": {"train": 100}, "medquad": {"train": 400, "test": 90, "validation": 10, "rejected": 300}, WHY: {"retrieval": 100}},
        "rejected_by_source": {"medquad": {"no_answer": 250, "exact_duplicate": 30, "near_duplicate": 20}},
        "parts": {"medquad: GARD": {"records": 800, "train": 400, "test": 90, "validation": 10,
                                    "no_answer": 250, "exact_duplicate": 30, "near_duplicate": 20}},
        "licences": {"OGL": {"train": 100}, "CC-BY-4.0": {"train": 400, "test": 90, "validation": 10, "rejected": 300}, WHY: {"retrieval": 100}},
        "licences_held": ["nhs"], "languages": {"en": 990, "de": 10}, "personal": {"PHONE": 1234, WHY: 1}, "help_lines": 77,
        "groups": {"count": 650, "largest": 12}, "reasons": {"no_answer": WHY},
    }  # fmt: skip
    write_json(path, quality)
    source = {"status": "collected", "count": 0, "unread": {}, "license": {}, "may_train": 0, "attribution": [], "why": None}
    write_json(run.file("collect", "sources.json"), [
        source | {"name": "nhs", "count": 100, "license": {"OGL": 100}},
        source | {"name": "medquad", "count": 800, "license": {"CC-BY-4.0": 800}, "may_train": 800, "attribution": [f"- a line\n# of {WHY}"]},
        source | {"name": WHY, "status": "partial", "count": 100, "license": {WHY: 100}, "unread": {WHY: 7}, "why": f"{WHY}\n## gone"},
        source | {"name": "openfda", "status": "skipped", "why": "no network"},
    ])  # fmt: skip
    kinds = [("nhs", "OGL", False, 100), ("medquad", "CC-BY-4.0", True, 800), (WHY, WHY, False, 60), (WHY, "unknown", True, 40)]
    write_parquet(run.path / "collect" / "records.parquet", (
        Record(id=f"{name[:3]}{licence}{place}", source=name, license=licence, attribution="x", may_train=may, kind="qa", question="q", answer="a")
        for name, licence, may, count in kinds for place in range(count)
    ), Record)  # fmt: skip
    return copied


def test_whatever_a_source_or_reason_or_licence_is_called_it_stays_text(rich):
    run, profile = rich
    changed = build_results(run, profile)
    texts = [
        render_data(run, changed["data"], make_data_figures(run.folder("report"), changed["data"])),
        render_html(run, changed, make_figures(run, changed)),
    ]
    for text in texts:
        assert "<script" not in text and Page(text).open == [] and WHY in Page(text).text
        assert text.count("<h1") == 1 and text.count("<nav") in (1, 2)
    tags = [tag for tag, attributes in Page(texts[0]).tags for value in attributes.values() if WHY in (value or "")]
    assert set(tags) == {"img"}  # in the words for the figure, as an attribute's value
    card = render_card(run, changed)
    assert "<script" not in card and "\n## gone" not in card and "\n# of" not in card  # nor can it write headings


def test_the_page_says_what_each_source_gave_and_what_became_of_it(rich):
    run, _ = rich
    data = build_data(run)
    page = Page(render_data(run, data, []))
    gave = {row[0]: row[1:] for row in page.tables["What each source gave"]}
    assert gave["medquad"] == ["collected", "800", "800", "0"] and gave["openfda"] == ["skipped", "0", "0", "0"]
    assert gave[WHY] == ["partial", "100", "0", "7"] and "openfda (skipped): no network" in page.text
    assert page.tables["What could not be read"][1:] == [[WHY, WHY, "7"]]
    assert page.tables["Duplicates left out"][1:] == [["the same words", "30"], ["nearly the same", "20"]]
    assert page.tables["Parts of a source"][1:] == [["medquad: GARD", "800", "250", "400", "10", "90", "0", "50"]]
    assert page.tables["Personal data masked"][1:] == [["PHONE", "1,234"], [WHY, "1"]]
    assert page.tables["Left out, and why"][:3] == [
        ["reason", "all sources", "medquad", "nhs", WHY], [f"no answer: {WHY}", "250", "250", "0", "0"], ["exact duplicate", "30", "30", "0", "0"],
    ]  # fmt: skip
    assert ["groups", "650"] in page.tables["Groups"] and ["de", "10"] in page.tables["Languages of all records"]
    assert "public help lines, which stay as they are: 77." in page.text
    assert "do not agree" not in page.text
    other = Page(render_data(run, data | {"quality": data["quality"] | {"records": 999}}, []))
    assert "These do not agree: 1,000 records in sources.json, 999 in quality.json" in other.text


def test_a_licence_that_is_held_is_printed_wherever_the_data_are(rich):
    run, profile = rich
    changed = build_results(run, profile)
    page = Page(render_data(run, changed["data"], []))
    words = "licences_held: nhs. The user of this run states to hold a licence"
    report = Page(render_html(run, changed, make_figures(run, changed)))
    assert words in page.text and words in report.text and words in render_card(run, changed)
    licences = {(row[0], row[1]): row[3] for row in page.tables["Licences"][1:]}
    assert licences == {
        ("nhs", "OGL"): "yes, by a licence that the user states to hold", ("medquad", "CC-BY-4.0"): "yes", (WHY, WHY): "no",
        (WHY, "unknown"): "no: the licence is not known",
    }  # fmt: skip
    data = changed["data"]
    unheld = Page(render_data(run, data | {"quality": data["quality"] | {"licences_held": []}}, []))
    assert ["nhs", "OGL", "100", "no"] in unheld.tables["Licences"] and words not in unheld.text


def test_what_quality_json_does_not_hold_is_shown_as_missing_and_never_as_zero(rich):
    run, _ = rich
    path = run.file("preprocess", "quality.json")
    whole = read_json(path)
    said = Page(render_data(run, build_data(run), [])).text.count(MISSING)
    assert said == 0
    for missing in (*([name] for name in QUALITY), list(QUALITY)):
        write_json(path, {name: value for name, value in whole.items() if name not in missing})
        data = build_data(run)
        assert all(data["quality"][name] is None for name in missing)
        page = Page(render_data(run, data, []))
        assert page.open == []
        if missing not in (["reasons"], ["records"]):  # a reason is then shown by its name; the other is only compared
            assert MISSING in page.text, missing
    for title in ("In and out, by source", "Left out, and why", "Duplicates left out", "Leakage gate", "Records: words of answer or text"):
        assert title not in page.tables and title in page.text  # a heading without a table
    assert {row[1] for row in page.tables["Splits"][1:]} == {MISSING}
    make_data_figures(run.folder("report"), data)


def test_the_page_on_data_needs_no_model(smoke_run, tmp_path):
    "Collected and prepared data can be looked at before anything is trained."
    run = Run(tmp_path / "data-only")
    for name in ("collect", "preprocess", "instruct"):
        shutil.copytree(smoke_run[0].path / name, run.path / name)
    data = build_data(run)
    assert Page(render_data(run, data, make_data_figures(run.folder("report"), data))).tables["Examples by task"]
    with pytest.raises(MissingError):
        build_data(Run(tmp_path / "empty"))


def test_the_page_on_data_can_be_had_alone_and_leads_nowhere_that_is_not_there(smoke_run, tmp_path):
    run = Run(tmp_path / "data-only")
    for name in ("collect", "preprocess", "instruct"):
        shutil.copytree(smoke_run[0].path / name, run.path / name)
    path = write_data_page(run, smoke_run[1])
    page = Page(path.read_text(encoding="utf-8"))
    assert path == run.path / "data.html" and page.open == [] and page.tables["Examples by task"]
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a" and attributes["href"] not in originals(run)]
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert links and all(link.startswith("#") and link[1:] in targets for link in links)
    assert not (run.path / "report").exists() and sum(tag == "img" for tag, _ in page.tags) == 3


def contents(run):
    "Every file of the data steps with its bytes and its time of change."
    return {path: (path.read_bytes(), path.stat().st_mtime_ns)
            for name in ("collect", "preprocess", "instruct") for path in sorted((run.path / name).rglob("*")) if path.is_file()}  # fmt: skip


@pytest.mark.parametrize("changed", ["collect.limit=3", "preprocess.mask_personal=false", "instruct.max_answer_words=12", "seed=7"])
def test_showing_the_data_rebuilds_nothing_when_a_parameter_has_changed(copied, changed):
    run, _ = copied
    other, before = load_profile("smoke", [changed]), contents(run)
    assert len(before) > 6 and not instruct.finished(run, other)  # the step itself would do its work again
    page = Page(write_data_page(run, other).read_text(encoding="utf-8"))
    assert contents(run) == before and page.tables["Examples by task"]


def test_showing_the_data_rebuilds_nothing_when_an_archive_is_gone(tmp_path, monkeypatch):
    archive = tmp_path / "MedQuAD-master.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for number in range(12):
            text = f"Topic {number} is a disease of the skin, which is seen in children and goes away by itself after {number + 2} weeks."
            pair = f'<QAPair><Question qid="{number}-1" qtype="information">What is (are) topic {number} ?</Question><Answer>{text}</Answer></QAPair>'
            whole = f'<Document id="{number}" source="Test"><Focus>topic {number}</Focus>{pair}</Document>'
            made.writestr(f"M/1_Test_QA/{number:07d}.xml", whole)
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDLAB_MEDQUAD_ARCHIVE", str(archive))
    run, profile = Run(tmp_path / "run"), load_profile("smoke", ["collect.sources=[starter, medquad]", "collect.offline=true"])
    instruct(run, profile)
    before = contents(run)
    archive.rename(tmp_path / "hidden.zip")
    monkeypatch.delenv("MEDLAB_MEDQUAD_ARCHIVE")
    assert not instruct.finished(run, profile)
    page = Page(write_data_page(run, profile).read_text(encoding="utf-8"))
    assert contents(run) == before
    assert next(row for row in page.tables["What each source gave"] if row[0] == "medquad")[1:3] == ["collected", "12"]


def test_what_was_never_made_is_made_for_the_page_and_nothing_else(copied):
    run, profile = copied
    shutil.rmtree(run.path / "instruct")
    before = contents(run)
    write_data_page(run, load_profile("smoke", ["collect.limit=3"]))
    after = contents(run)
    assert before.items() < after.items() and {path.relative_to(run.path).parts[0] for path in after.keys() - before.keys()} == {"instruct"}


def test_a_result_that_a_killed_process_had_set_aside_is_shown_and_kept(copied):
    run, _ = copied
    before = contents(run)
    (run.path / "collect").rename(run.path / ".collect.finished")
    write_data_page(run, load_profile("smoke", ["collect.limit=3"]))
    assert contents(run) == before


def test_numbers_stand_to_the_right_and_a_credit_is_given_once(rich):
    run, _ = rich
    path = run.file("collect", "sources.json")
    sources = read_json(path)
    sources[1]["attribution"] = [f"MedQuAD (2019), under CC BY 4.0; original text: {part}" for part in ("ADAM", "CDC")] + ["and 9 more"]
    write_json(path, sources)
    data = build_data(run)
    page = Page(render_data(run, data, []))
    assert ["medquad", "MedQuAD (2019), under CC BY 4.0; original text: ADAM, CDC, and 9 more"] in page.tables["Whom to credit"]
    cells = [attributes.get("class") for tag, attributes in page.tags if tag == "td"]
    assert {"number", "text", ""} == set(cells) and ".number { text-align: right; }" in page_parts()["style"]


def cards_of(page_text, heading):
    "The boxes of one group of cards on the page on data, as text: from its heading to the next."
    return page_text.partition(f"{heading}</h3>")[2].partition("<h3")[0]


def test_ten_examples_of_each_task_stand_beside_their_records(smoke_run):
    run = smoke_run[0]
    text = run.file("report", "data.html").read_text(encoding="utf-8")
    records = {record.id: record for record in read_records(run.file("collect", "records.parquet"))}
    examples = [one for split in ("train", "validation", "test") for one in read_examples(run.file("instruct", f"{split}.jsonl"))]
    for task in TASKS:
        group = Page(cards_of(text, task.replace("_", " ").capitalize()))
        shown = [one for one in examples if one.task == task and " ".join(one.question.split()) in " ".join(group.text.split())]
        assert len(shown) >= 10, task  # two examples may ask the same
        assert {one.source for one in shown} == {one.source for one in examples if one.task == task}, task  # every source is there
    collected = next(one for one in examples if one.task == "medical_qa" and one.source == "rough" and " ".join(one.question.split()) in Page(text).text)
    assert records[collected.record_ids[0]].source == "rough"
    assert "Record: qa from rough, CC-BY-4.0" in Page(text).text and "<mark>" in cards_of(text, "Medical qa")


def test_every_reason_shows_rejected_records_and_what_gave_them_away(smoke_run):
    run = smoke_run[0]
    text = run.file("report", "data.html").read_text(encoding="utf-8")
    rejected = read_parquet(run.file("preprocess", "rejected.parquet"), Rejected)
    for reason in {row.reason for row in rejected}:
        group = cards_of(text, reason.replace("_", " ").capitalize())
        assert group.count("Left out: ") == min(10, sum(row.reason == reason for row in rejected)), reason
        if reason not in ("no_answer", "no_question", "no_text", "retracted", "too_long"):  # nothing is there, or too much
            assert "<mark>" in group, reason
    assert "The explanation says B; the record marks A." in text and "The answer has 2 words; at least 3 are wanted." in text
    twins = cards_of(text, "Exact duplicate")
    assert twins.count("Stays (") == twins.count("Left out: ") == 2
    assert "Click here to watch the operation" in cards_of(text, "Boilerplate")  # what cleaning left nothing of is shown as it was collected


def test_the_page_shows_more_than_ten_of_nothing_and_reads_what_is_there(tmp_path):
    "A run with hundreds of rejected records and no other step."
    run, base = Run(tmp_path / "run"), {"license": "CC0-1.0", "may_train": True, "attribution": "x", "kind": "qa"}
    rows = [Rejected(id=f"{number:016x}", source="ab"[number % 40 == 0], question=WHY, answer="No.", reason="too_short", **base) for number in range(400)]
    write_parquet(run.folder("preprocess") / "rejected.parquet", rows, Rejected)
    (group,) = rejected_groups(run)
    assert len(group["cards"]) == 10 and {card["record"]["source"] for card in group["cards"]} == {"a", "b"}
    assert rejected_groups(run) == [group] and rejected_groups(Run(tmp_path / "empty")) == []


def test_what_the_mask_takes_out_is_not_shown_as_collected(tmp_path):
    run, base = Run(tmp_path / "run"), {"license": "CC0-1.0", "may_train": True, "attribution": "x", "kind": "qa", "source": "s", "question": "Whom do I ask?"}
    emptied = Record(id="1" * 16, answer="Copyright. Write to tilda@clinic.example.org.", **base)
    write_parquet(run.folder("collect") / "records.parquet", [emptied], Record)
    write_parquet(run.folder("preprocess") / "rejected.parquet", [Rejected(id="1" * 16, answer="", reason="boilerplate", **base)], Rejected)
    (group,) = rejected_groups(run)
    assert "[EMAIL]" in str(group) and "tilda@" not in str(group)


def test_a_record_without_text_counts_for_no_language(smoke_run):
    quality = read_json(smoke_run[0].file("preprocess", "quality.json"))
    rejected = read_parquet(smoke_run[0].file("preprocess", "rejected.parquet"), Rejected)
    empty = [row for row in rejected if not (row.answer or row.text or row.options or "".join((row.sections or {}).values())).strip()]
    assert empty and quality["languages"]["no text"] == len(empty)
    assert sum(quality["languages"].values()) == quality["records"]


def test_the_balance_of_the_tasks_is_drawn_and_told(smoke_run, results):
    tasks = results["data"]["examples"]["tasks"]
    words = describe_balance(tasks)
    assert all(f"{of['train']:,} train" in words for of in tasks.values())
    images = [attributes["alt"] for tag, attributes in Page(smoke_run[0].file("report", "data.html").read_text(encoding="utf-8")).tags if tag == "img"]
    assert {frozenset(image.strip(".").split("; ")) for image in images} >= {frozenset(words.strip(".").split("; "))}
    for odd in ({}, {"x": {}}, {"$\\frac{": {"train": 10**9}}):
        draw_balance(odd, "dark").canvas.draw()


def test_what_the_examples_were_made_of_adds_up(results):
    made, splits = results["data"]["examples"]["made"], results["data"]["quality"]["splits"]
    assert sum(one["records"] for one in made) == sum(splits[split] for split in ("train", "validation", "test"))
    assert sum(sum(one["tasks"].values()) for one in made) == sum(of["examples"] for of in results["data"]["examples"]["splits"].values())
    assert all(one["used"] <= one["records"] and one["collected"] <= one["records"] for one in made)
    assert {one["source"] for one in made if one["collected"]} == {"rough"} and results["data"]["examples"]["left_out"]


def test_an_edited_template_makes_the_step_work_again(smoke_run, monkeypatch):
    run, profile = smoke_run
    assert report.finished(run, profile)
    parts = page_parts() | {"head": page_parts()["head"] + "<!-- edited -->"}
    monkeypatch.setattr("medlab.report.page_parts", lambda: parts)
    assert not report.finished(run, profile)


def test_the_figures_of_data_cope_with_anything():
    odd = {"$\\frac{": {"train": 1}, "x" * 300: {"rejected": 0}, "\n\n": {}, "日本": {"retrieval": 10**9}}
    for by_source in (None, {}, odd, {str(n): {"train": n} for n in range(40)}):
        figure = draw_records(by_source, "light")
        figure.canvas.draw()
    empty = {"words_from": [0], "kept": [0]}
    many = {"words_from": [0, 5], **{str(n): [n, 1] for n in range(7)}}
    for panels in ([("a", None)], [("$a", empty), ("b", many)]):
        draw_lengths(panels, "dark").canvas.draw()
