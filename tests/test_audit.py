"An audit of built examples: the sample is fair and the same everywhere, the page works in a browser, and the verdicts are counted honestly."

import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import read_jsonl, write_jsonl
from medlab.cli.audit import write_audit
from medlab.contracts.tasks import Example, build_messages
from medlab.core import Run
from medlab.figures.audit import AUDIT_VERDICTS, audit_lines, audit_sample, summarise_audit
from medlab.figures.cards import stratified_sample
from test_report import Page

HOSTILE = '"></article><script>alert(1)</script> & \'x\' {{ 7 * 7 }}'


def pair(number, source="site", task="medical_qa", text="Rest."):
    fields = {"answer": text} if task == "medical_qa" else {"triage": "soon", "reason": text}
    messages = build_messages(task, f"What helps, number {number}?", fields=fields)
    return Example(id=f"{task}-{source}-{number}", task=task, messages=messages, gold=fields | {"reference": messages[-1]["content"]}, record_ids=[f"r{number}"],
                   group=f"{number}", split="train", source=source)


MANY = [pair(n) for n in range(960)] + [pair(n, "book") for n in range(30)] + [pair(n, task="triage") for n in range(10)]


def test_each_stratum_gives_equally_many_as_far_as_it_has_them():
    drawn, sizes = audit_sample(MANY, 60)
    assert Counter((one.task, one.source) for one in drawn) == {("medical_qa", "site"): 25, ("medical_qa", "book"): 25, ("triage", "site"): 10}
    assert sizes == {("medical_qa", "site"): 960, ("medical_qa", "book"): 30, ("triage", "site"): 10}
    assert len({one.id for one in drawn}) == 60
    assert {(one.task, one.source) for one in drawn[:3]} == set(sizes)  # who stops early has seen some of each
    assert len(audit_sample(MANY, 5000)[0]) == 1000


def test_the_sample_depends_on_the_seed_and_on_nothing_else():
    drawn = [one.id for one in audit_sample(MANY, 40, 7)[0]]
    assert drawn == [one.id for one in audit_sample(MANY[::-1], 40, 7)[0]] != [one.id for one in audit_sample(MANY, 40, 8)[0]]
    more = {one.id for one in audit_sample([*MANY, pair(5000)], 40, 7)[0]}
    assert len(more & set(drawn)) >= 39  # one example more changes one at most


def test_a_draw_is_uniform_within_a_stratum():
    ids = [f"x{number}" for number in range(200)]
    counts = Counter(one for seed in range(400) for one in stratified_sample({"all": ids}, 50, seed))
    assert len(counts) == 200 and all(60 < count < 150 for count in counts.values())  # 100 expected, deviation 9


def test_the_run_gives_the_sample_with_its_records(smoke_run, tmp_path):
    run = smoke_run[0]
    rows = read_jsonl(write_audit(run, 48, path=tmp_path / "sample.jsonl", as_text=True))
    assert len(rows) == 48 and {row["verdict"] for row in rows} == {""} and list(rows[0])[:2] == ["verdict", "note"]
    assert all(row["record"] and row["question"] and row["answer"] for row in rows)
    assert len({row["task"] for row in rows}) == 8 and {"starter", "rough"} == {row["source"] for row in rows}
    only = read_jsonl(write_audit(run, 9, path=tmp_path / "only.jsonl", as_text=True, tasks=["medical_qa"], sources=["rough"], splits=["train"]))
    assert {(row["task"], row["source"], row["split"]) for row in only} == {("medical_qa", "rough", "train")}


def test_verdicts_are_never_overwritten_and_the_run_is_not_touched(copied, tmp_path):
    run, _ = copied
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    path = write_audit(run, 5, as_text=True)
    path.write_text("somebody's verdicts")
    with pytest.raises(InputError, match="may hold verdicts"):
        write_audit(run, 5, as_text=True)
    assert path.read_text() == "somebody's verdicts"
    write_audit(run, 5)
    after = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    assert before.items() <= after.items() and {one.name for one in after.keys() - before.keys()} == {"audit.jsonl", "audit.html"}


@pytest.mark.parametrize("wrong", [{"tasks": ["medical-qa"]}, {"sources": ["rogh"]}, {"splits": ["dev"]}, {"n": 0}])
def test_a_wrong_filter_is_named(wrong, smoke_run, tmp_path):
    with pytest.raises(InputError, match="no example has|expected at least 1"):
        write_audit(smoke_run[0], **{"n": 5, **wrong}, path=tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_a_run_without_examples_says_what_to_do(tmp_path):
    with pytest.raises(MissingError, match="medlab instruct"):
        write_audit(Run(tmp_path / "none"), 5)


def test_the_page_is_one_file_and_escapes_everything(copied):
    run, _ = copied
    rows = read_jsonl(run.file("instruct", "train.jsonl"))
    for row in rows:
        row["source"] = HOSTILE
        row["messages"][1]["content"] = HOSTILE
    write_jsonl(run.path / "instruct" / "train.jsonl", rows)
    text = write_audit(run, 6, sources=[HOSTILE]).read_text(encoding="utf-8")
    assert text.count("<script") == 1 and text.count("<article") == 6 and "49" not in re.sub(r"[0-9a-f]{16}", "", text)
    assert not re.search(r"(src|href)\s*=\s*\W?https?:|url\(|@import", text) and str(run.path.parent) not in text
    page = Page(re.sub(r"<input[^>]*>|<script>.*?</script>", "", text, flags=re.S))
    assert page.open == [] and HOSTILE in page.text
    found = [json.loads(attributes["data-row"]) for tag, attributes in page.tags if tag == "article"]
    assert all(row["source"] == HOSTILE and row["stratum_size"] for row in found)


def browser():
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(not browser(), reason="no Chromium here: the page's script is not run")
def test_the_script_counts_and_writes_the_verdicts(smoke_run, tmp_path):
    "The page, with a few clicks appended to its script, in a real browser; the rows that it would save are then summarised."
    text = write_audit(smoke_run[0], 12, path=tmp_path / "audit.html").read_text(encoding="utf-8")
    clicks = ('const boxes = card => card.querySelectorAll("input[type=radio]"); boxes(cards[0])[0].click(); boxes(cards[1])[2].click(); boxes(cards[2])[1].click();'
              'boxes(cards[2])[0].click(); note(cards[1]).value = "a <b>\\"dose\\"</b>"; document.title = "did"; const out = document.createElement("pre");'
              'out.id = "out"; out.textContent = document.getElementById("count").textContent + "\\n" + text(); document.body.append(out);')
    (tmp_path / "clicked.html").write_text(text.replace("</script>", clicks + "</script>"), encoding="utf-8")
    done = subprocess.run([browser(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom",
                           (tmp_path / "clicked.html").as_uri()], capture_output=True, text=True, timeout=120)  # fmt: skip
    dom = Page(re.sub(r"<input[^>]*>|<script>.*?</script>", "", done.stdout, flags=re.S)) if "id=\"out\"" in done.stdout else pytest.fail(done.stderr[-500:])
    counted, *lines = dom.text[dom.text.index("3 of 12", dom.text.index("article") if "article" in dom.text else 0):].replace("} {", "}\n{").replace("3 of 12 ", "3 of 12\n", 1).splitlines()
    del counted
    rows = [json.loads(line) for line in re.findall(r"\{\"verdict\".*?\}(?= |$)", " ".join(lines))]
    assert [row["verdict"] for row in rows] == ["right", "serious", "right", *[""] * 9] and rows[1]["note"] == 'a <b>"dose"</b>'
    assert summarise_audit(rows)[-1]["judged"] == 3


def filled(verdicts, source="site", size=100):
    return [{"verdict": verdict, "note": "", "id": f"{source}{number}", "task": "triage", "source": source, "split": "train", "stratum_size": size}
            for number, verdict in enumerate(verdicts)]  # fmt: skip


def wilson_by_hand(k, n, z=1.959963984540054):
    "Wilson (1927), from the formula."
    p = k / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def test_counts_shares_and_intervals_of_each_stratum():
    rows = filled(["right"] * 16 + ["fault"] * 3 + ["serious"] + [""] * 5, "a", 900) + filled(["right"] * 10, "b", 100)
    a, b, every = summarise_audit(rows)
    assert (a["drawn"], a["judged"], a["right"], a["fault"], a["serious"]) == (25, 20, 16, 3, 1)
    assert a["fault_share"] == 4 / 20 and a["serious_share"] == 1 / 20  # a serious fault is a fault
    assert a["fault_interval"] == pytest.approx(wilson_by_hand(4, 20)) and a["serious_interval"] == pytest.approx(wilson_by_hand(1, 20))
    assert b["fault_share"] == 0 and b["fault_interval"] == pytest.approx((0, wilson_by_hand(0, 10)[1]))
    assert every["fault_share"] == pytest.approx(0.9 * 0.2) and every["fault_interval"] is None  # weighted by size, not by what was drawn
    table = audit_lines([a, b, every])
    assert "20 of 25" in table[1] and "20.0% (8.1% to 41.6%)" in table[1] and "18.0% (weighted)" in table[3]


def test_a_stratum_that_nobody_judged_is_not_right():
    *_, none, every = summarise_audit(filled(["right"] * 4, "a") + filled(["", ""], "b"))
    assert none["fault_share"] is None and every["fault_share"] is None
    assert audit_lines([none])[1].count("not judged") == 2


@pytest.mark.parametrize(("change", "words"), [
    ({"verdict": "wrong"}, "got verdict 'wrong'"), ({"verdict": "seriuos"}, "did you mean 'serious'"), ({"id": "site0"}, "twice"), ({"task": None}, "task missing"),
])  # fmt: skip
def test_a_row_that_cannot_be_counted_is_named(change, words):
    rows = filled(["right", "fault"])
    with pytest.raises(InputError, match=re.escape(words)):
        summarise_audit([rows[0], rows[1] | change])


def test_the_same_row_twice_counts_once():
    rows = filled(["right", "fault"])
    assert summarise_audit(rows + rows)[0]["judged"] == 2 and summarise_audit([rows[0] | {"verdict": " Right "}])[0]["right"] == 1


def test_the_command_draws_and_summarises(smoke_run, medlab, tmp_path):
    run = smoke_run[0].path
    done = medlab("audit", "--run", run, "-n", 10, "--text", "--out", tmp_path / "s.jsonl")
    assert done.returncode == 0 and "--summarise" in done.stdout, done.stderr
    rows = [row | {"verdict": "fault" if number == 0 else "right"} for number, row in enumerate(read_jsonl(tmp_path / "s.jsonl"))]
    write_jsonl(tmp_path / "s.jsonl", rows)
    told = medlab("audit", "--summarise", tmp_path / "s.jsonl").stdout
    assert all(row["source"] in told for row in rows) and re.search(r"100\.0% \(20\.7% to 100\.0%\)", told) and set(AUDIT_VERDICTS) <= set(told.split())
    wrong = medlab("audit", "--summarise", tmp_path / "s.txt")
    assert wrong.returncode == 1 and "Traceback" not in wrong.stderr
    assert subprocess.run([sys.executable, "-m", "medlab.course", "audit", "--help"], capture_output=True, text=True).stdout.count("--summarise")
