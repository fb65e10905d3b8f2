"The benchmark: it measures what it says, compares like with like, keeps what it has, and says where its numbers come from."

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from medlab.bench.data import STAGES, Perturbed, answered, bench_data, bench_tables, measured_tables
from medlab.bench.measure import roads
from medlab.bench.measure import run_measured, runs_of
from medlab.basics.errors import InputError, MedlabError, MissingError
from medlab.basics.files import read_json, shipped, write_json
from medlab.contracts.records import Record
from medlab.sources.medquad import MedQuad


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "An archive of 60 pairs in MedQuAD's form, every third without an answer."
    path, chance = tmp_path_factory.mktemp("archive") / "small.zip", random.Random(3)
    words = [f"wordy{letter}{other}" for letter in "abcdefghijklmnop" for other in "qrstuvwxyz"]
    with zipfile.ZipFile(path, "w") as made:
        for number in range(60):
            signs = f"The signs of topic {number} are fever and a {chance.choice(words)} rash. "
            text = signs + " ".join(" ".join(chance.choices(words, k=9)).capitalize() + "." for _ in range(6)) if number % 3 else ""
            pair = f'<QAPair><Question qid="{number}-1" qtype="symptoms">What is (are) topic {number} ?</Question><Answer>{text}</Answer></QAPair>'
            whole = f'<Document id="{number}" source="Lesson"><Focus>topic {number}</Focus>{pair}</Document>'
            made.writestr(f"M/{number % 3 + 1}_Lesson_QA/{number:07d}.xml", whole)
    return path


@pytest.fixture(scope="module")
def measured(small, tmp_path_factory):
    "Everything measured once, at two sizes: what was returned, what was said, the file."
    out, said = tmp_path_factory.mktemp("bench") / "deep" / "results.json", []
    return bench_data(small, [2, 1], answers=20, repeats=1, report=said.append, out=out), said, out


def test_both_sides_do_the_same_records(measured):
    parts = measured[0]["parts"]
    counts = {stage: {run["records"] for run in runs_of(parts[stage])} for stage in STAGES}
    assert counts == {"parse": {60}, "clean": {40}, "deduplicate": {20}, "convert": {40}}
    assert [(one["times"], one["records"]) for one in roads(parts)] == [(1, 60), (2, 120)]
    for stage in STAGES:
        ours = parts[stage]["medlab"]
        assert ours["slowest"] <= ours["records_per_second"] <= ours["fastest"] and parts[stage]["compared_with"]
        assert all(run["work_seconds"] <= run["seconds"] and run["peak_mb"] > 10 for run in runs_of(parts[stage]))


def test_what_is_printed_is_in_the_file_and_the_file_says_where_it_comes_from(measured, small):
    found, said, out = measured
    assert read_json(out) == found and found["finished"] >= found["began"]
    assert found["command"] == "medlab bench data --size 1 --size 2 --answers 20 --repeats 1"
    conditions = found["conditions"]
    assert conditions["archive"] == {"name": "small.zip", "fingerprint": MedQuad(small).fingerprint()} and str(small.parent) not in json.dumps(conditions)
    assert conditions["machine"]["cores"] >= 1 and {"medlab", "python", "rensa", "lxml"} <= set(conditions["packages"])
    assert len(found["commit"] or "x" * 40) in (40, 41) and all("at" in part for part in found["parts"].values())
    lines = [line for line in said if not line.startswith("WARNING")]
    assert lines.pop() == f"Results and their conditions: {out}"
    assert [line.split()[0] for line in lines] == [*STAGES, "road", "road"]
    for stage, line in zip(STAGES, lines):
        assert f"{found['parts'][stage]['medlab']['records_per_second']:,.0f} (" in line
    tables = bench_tables(found)
    assert "| 60 (1x) |" in tables and "| 120 (2x) |" in tables and found["command"] in tables and "Unfinished" not in tables


def test_without_datatrove_that_stage_says_so_and_the_others_go_on(small, tmp_path, monkeypatch):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "datatrove.py").write_text("raise ImportError('No module named datatrove')")
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    found = bench_data(small, [], answers=5, repeats=1, report=lambda line: None, out=tmp_path / "out.json")
    stage = found["parts"]["deduplicate"]
    assert "medlab[bench]" in stage["not_run"] and "ratio" not in stage and stage["medlab"]["records_per_second"] > 0
    assert "| not measured | not measured |" in bench_tables(found)


def test_an_unfinished_file_goes_on_and_a_changed_one_does_not(measured, small, tmp_path):
    found, _, _ = measured
    parts = {name: part for name, part in found["parts"].items() if name != "road 1x"}
    parts["parse"] = parts["parse"] | {"kept": "from before"}
    out = tmp_path / "results.json"
    write_json(out, found | {"finished": None, "parts": parts})
    assert "Unfinished" in bench_tables(read_json(out))
    said = []
    again = bench_data(small, [1, 2], answers=20, repeats=1, report=said.append, out=out)
    assert said[0] == f"Continuing with {out}, which was interrupted."
    assert again["parts"]["parse"]["kept"] == "from before" and again["parts"]["road 2x"] == found["parts"]["road 2x"]
    assert again["parts"]["road 1x"]["at"] > found["parts"]["road 1x"]["at"] and again["finished"]
    write_json(out, found | {"finished": None, "parts": parts})
    changed = bench_data(small, [], answers=19, repeats=1, report=lambda line: None, out=out)
    assert "kept" not in changed["parts"]["parse"] and {run["records"] for run in runs_of(changed["parts"]["deduplicate"])} == {19}


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs signals as Unix has them")
def test_ctrl_c_ends_the_process_under_way_and_keeps_what_was_measured(small, tmp_path):
    out = tmp_path / "results.json"
    script = f"from medlab.bench.data import bench_data; bench_data({str(small)!r}, [20], answers=20, repeats=1, out={str(out)!r})"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                               env={**os.environ, "TMPDIR": str(tmp_path)})  # fmt: skip
    for line in process.stdout:
        if line.startswith("parse"):
            break
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        assert process.poll() is None, "it ended before its helpers were seen"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # to this one process alone, as `kill -INT` does
    process.wait(30)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive and not list(tmp_path.glob("medlab-bench-*"))
    kept = read_json(out)
    assert kept["finished"] is None and "parse" in kept["parts"] and "road 20x" not in kept["parts"]


@pytest.mark.parametrize("given", [{"sizes": [0]}, {"sizes": [27]}, {"repeats": 0}, {"answers": -1}, {"archive": "/no/such.zip"}])
def test_what_makes_no_sense_is_refused_before_anything_is_measured(small, tmp_path, given):
    with pytest.raises(InputError, match="got|does not exist"):
        bench_data(**{"archive": small, "out": tmp_path / "out.json", **given})
    assert not (tmp_path / "out.json").exists()


def test_copies_are_about_something_else_and_no_lighter(small):
    copies = list(Perturbed(archive=str(small), times=26).fetch())
    originals = copies[:60]
    assert len({one.id for one in copies}) == len(copies) == 26 * 60
    assert len({one.answer for one in copies if one.answer}) == 26 * 40
    for place, one in enumerate(copies):
        assert len(one.answer) == len(originals[place % 60].answer) and len(one.question.split()) == len(originals[place % 60].question.split())
        assert one.subject.split()[0] in one.question
    words = [set(re.findall(r"\b[a-z]{7}\b", " ".join(one.answer for one in copies[start : start + 60]).lower())) for start in range(0, len(copies), 60)]
    assert len(words[0]) > 100 and all(found == words[0] for found in words)  # real words: an encoder would cut others into many pieces


def test_memory_counts_children_and_the_failure_of_a_process_is_reported():
    held = run_measured("medlab.bench.measure:hold", megabytes=200, seconds=0.7)
    assert held["peak_mb"] > 200 and held["seconds"] > 0.7 and held["others_cores"] >= 0
    with pytest.raises(MedlabError, match="ModuleNotFoundError: No module named 'medlab.nowhere'"):
        run_measured("medlab.nowhere:f")


def test_answers_are_those_that_are_not_empty(small):
    every = answered(str(small))
    assert len(every) == 40 and all(every) and set(answered(str(small), 7)) < set(every)
    assert answered(str(small), 7) == answered(str(small), 9)[:7] and len(answered(str(small), 500)) == 40
    assert all(isinstance(one, Record) for one in MedQuad(small).fetch())


def test_without_a_results_file_nothing_is_said_to_be_measured():
    assert measured_tables("no_such_file.json").startswith("Not measured: there is no `data/results/no_such_file.json`")
    try:
        path: Path = shipped("data", "results", "bench_data.json")
    except MissingError:
        assert measured_tables().startswith("Not measured")
    else:
        assert bench_tables(read_json(path)) == measured_tables() and read_json(path)["finished"]
