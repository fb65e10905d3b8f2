"Tables of the Hugging Face hub and of one's own files: a real `load_dataset` against a loopback hub, mappings, and rows that are none."

import csv
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import servers.hub
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.collecting import spoiled
from own_data import FOLDER, own_json, own_lines
from servers.hub import COMMIT, HubServer

from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import sha256_text
from medlab.cleaning.records import PreprocessParams
from medlab.contracts.records import Record, Unread, record_id
from medlab.contracts.tasks import FORMATS, render_answer
from medlab.instruct import make_examples
from medlab.preprocess import divide
from medlab.sources import hub
from medlab.sources.hub import DATASETS, Columns, DataSet, Hub, hub_record

NAME = "openlifescienceai/medmcqa"


def rows_like_medmcqa(count):
    return [
        {"id": f"id-{n}", "question": f"Question number {n}?", "opa": f"a{n}", "opb": f"b{n}", "opc": f"c{n}", "opd": f"d{n}", "cop": n % 4,
         "choice_type": "single", "exp": f"Because {n}." if n % 2 else None, "subject_name": "Anatomy", "topic_name": None}
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def repository(tmp_path):
    "A data set repository with a train and a validation file, and a script that must never run."
    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows_like_medmcqa(40)), folder / "data" / "train-00000-of-00001.parquet")
    pq.write_table(pa.Table.from_pylist(rows_like_medmcqa(5)), folder / "data" / "validation-00000-of-00001.parquet")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return folder


FETCH = """
import json, sys, time
nap = time.sleep
def sleep(seconds):  # the hub's client waits up to eight seconds between its tries: it says so here, and does not
    if seconds >= 1:
        print("slept", seconds, file=sys.stderr)
    nap(min(seconds, 0.01))
time.sleep = sleep
from medlab.basics.errors import MedlabError
from medlab.fetch import Fetcher
from medlab.sources.hub import Hub
name, options, offline = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "offline"
try:
    with Fetcher("raw", offline=offline) as fetcher:
        found = list(Hub(name, fetcher, **options).fetch(limit=json.loads(sys.argv[4])))
    print(json.dumps([item.model_dump() for item in found]))
    print("datasets" in sys.modules, file=sys.stderr)
except MedlabError as error:
    print(type(error).__name__, error)
"""


def fetched(tmp_path, url, name="medmcqa", options=None, offline=False, limit=None, **env):
    "What the source gives in a process of its own: the hub's client reads its address when it is imported."
    words = [name, json.dumps(options or {}), "offline" if offline else "online", json.dumps(limit)]
    env = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", **env}
    return subprocess.run([sys.executable, "-c", FETCH, *words], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **env}, timeout=120)


def test_a_data_set_comes_from_the_hub_at_its_commit_once(tmp_path, repository):
    with HubServer(repository, NAME) as hub:
        first = fetched(tmp_path, hub.url, HUGGINGFACE_TOKEN="hf_not_a_real_token")
        assert first.stdout.startswith("["), (first.stdout, first.stderr[-2000:], hub.asked)
        records = json.loads(first.stdout)
        assert len(records) == 40 and first.stderr.strip().endswith("True")
        assert all(COMMIT in path for _, path, _ in hub.asked if NAME in path and "/api/" not in path)
        assert {token for _, path, token in hub.asked if NAME in path} == {"Bearer hf_not_a_real_token"}
        asked = len(hub.asked)
        again = fetched(tmp_path, hub.url)
        assert sha256_text(again.stdout) == sha256_text(first.stdout) and len(hub.asked) == asked  # kept; nobody was asked
    assert again.stderr.strip() == "False"  # nor was `datasets` imported
    offline = fetched(tmp_path, "http://127.0.0.1:9", offline=True)
    assert sha256_text(offline.stdout) == sha256_text(first.stdout)
    one = records[3]
    assert one["options"][one["gold"]["letter"]] == "d3" and one["license"] == "Apache-2.0" and one["may_train"]
    assert one["answer"] == "Because 3." and records[2]["answer"] is None and one["subject"] == "Anatomy"


@pytest.mark.parametrize(("fault", "said"), [("gated", "accept its terms"), ("gone", "is not available"), ("broken", "is not available")])
def test_a_hub_that_does_not_give_is_missing_not_a_crash(tmp_path, repository, fault, said):
    with HubServer(repository, NAME, fault) as hub:
        done = fetched(tmp_path, hub.url, HF_TOKEN="hf_secret_token")
    assert done.stdout.startswith("MissingError") and said in done.stdout and "HF_TOKEN" in done.stdout, done.stdout + done.stderr[-500:]
    assert "hf_secret_token" not in done.stdout + done.stderr and "\n" not in done.stdout.strip()
    assert naps(done) == ([1, 2, 4, 8, 8] if fault == "broken" else [])  # what will not pass is not asked for again


def naps(done):
    return [float(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("slept")]


class Faulty(servers.hub.Handler):
    "A hub where the first requests for a file go wrong."

    left, fault = 1, "busy"  # how many, and how

    def answer(self, wanted=None):
        if "resolve" in self.path and self.command == ("HEAD" if self.fault == "busy" else "GET") and Faulty.left:
            Faulty.left -= 1
            if self.fault == "busy":
                return self.reply(429, b"{}", {"RateLimit": '"resolvers";r=0;t=37', "RateLimit-Policy": '"fixed window";"resolvers";q=3000;w=300'})
            self.wfile.write({"cut": b"HTTP/1.0 200 OK\r\nContent-Length: 90000\r\n\r\nPAR1", "hang up": b""}[self.fault])
            self.close_connection = True
            return None
        return super().answer(wanted)


@pytest.mark.parametrize("fault", ["busy", "cut", "hang up"])
def test_a_fault_that_passes_is_waited_for_as_the_hub_says(tmp_path, repository, monkeypatch, fault):
    monkeypatch.setattr(servers.hub, "Handler", Faulty)
    monkeypatch.setattr(Faulty, "left", 2 if fault == "busy" else 1)  # the first try of a HEAD is never waited for
    monkeypatch.setattr(Faulty, "fault", fault)
    with HubServer(repository, NAME) as hub:
        done = fetched(tmp_path, hub.url)
    assert Faulty.left == 0
    if fault == "busy":
        assert len(json.loads(done.stdout)) == 40 and naps(done) == [38.0]  # the `t` of RateLimit, and one second more
    else:  # whole, or said to be missing
        assert done.stdout.startswith("MissingError") or len(json.loads(done.stdout)) == 40, done.stdout + done.stderr[-900:]


def test_a_script_in_a_repository_is_never_run(tmp_path, repository):
    for file in (repository / "data").iterdir():
        file.unlink()
    (repository / "medmcqa.py").write_text(f"open({str(tmp_path / 'it-ran')!r}, 'w')\n")
    with HubServer(repository, NAME) as hub:
        done = fetched(tmp_path, hub.url)
    assert done.stdout.startswith("MissingError") and not (tmp_path / "it-ran").exists(), done.stdout + done.stderr[-900:]


def test_a_folder_of_the_same_name_does_not_stand_in_for_the_commit(tmp_path, repository, monkeypatch):
    (tmp_path / NAME).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows_like_medmcqa(3)), tmp_path / NAME / "train.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="in place of the hub's commit"):
        Hub("medmcqa").fingerprint()
    with pytest.raises(InputError, match="in place of the hub's commit"):
        list(Hub("medmcqa").fetch())


def test_without_network_or_with_another_commit_it_is_missing(tmp_path, repository):
    done = fetched(tmp_path, "http://127.0.0.1:9")
    assert done.stdout.startswith("MissingError openlifescienceai/medmcqa is not available") and naps(done) == [1, 2, 4, 8, 8]
    assert "offline is set" in fetched(tmp_path, "http://127.0.0.1:9", offline=True).stdout
    with HubServer(repository, NAME) as hub:
        assert fetched(tmp_path, hub.url, options={"revision": "0" * 40}).stdout.startswith("MissingError")


def test_limits_are_spread_and_grow(tmp_path, repository):
    path = str(repository / "data" / "train-00000-of-00001.parquet")
    assert list(Hub("medmcqa", path=path).fetch(limit=0)) == []
    ids = [[record.id for record in Hub("medmcqa", path=path).fetch(limit=limit)] for limit in (5, 10, 40, 99)]
    assert [len(found) for found in ids] == [5, 10, 40, 40] and set(ids[0]) < set(ids[1]) < set(ids[2])
    assert ids[1] != ids[2][:10]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_files_of_ones_own_by_the_same_road(tmp_path, suffix):
    rows, path = rows_like_medmcqa(6), tmp_path / f"mine{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".csv":
        pa.Table.from_pylist(rows).to_pandas().to_csv(path, index=False)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = list(Hub("hub/mine", path=str(path), columns=DATASETS["medmcqa"].columns.model_dump(), license="CC0-1.0", may_train=True).fetch())
    assert [record.options[record.gold["letter"]] for record in found] == ["a0", "b1", "c2", "d3", "a4", "b5"]
    assert {(record.source, record.license, record.may_train) for record in found} == {("hub/mine", "CC0-1.0", True)}
    path.write_bytes(path.read_bytes()[:-25] if suffix != ".csv" else b"\xff\xfe\x00broken")
    torn = Hub("hub/mine", path=str(path), columns={"question": "question", "answer": "exp"})
    if suffix == ".jsonl":  # the last line is lost, and no other
        *whole, last = torn.fetch()
        assert len(whole) == 5 and isinstance(last, Unread) and last.key == "line 6"
    else:
        with pytest.raises(InputError, match=f"mine{suffix}"):
            list(torn.fetch())


def mine(path, content, **columns):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(Hub("hub/mine", path=str(path), columns={"id": "id", "question": "q", "answer": "a"} | columns).fetch())


def test_a_cell_of_a_csv_is_text_and_nothing_else(tmp_path):
    found = mine(tmp_path / "a.csv", b"\xef\xbb\xbfid,q,a\n007,What?,None\n8,\"Two \"\"lines\"\",\nhere\",NA\n9,Short\n10,Nul\0,1e5\n")
    assert [item.answer for item in found] == ["None", "NA", None, "1e5"] and found[1].question == 'Two "lines",\nhere'
    assert found[0].id == record_id("hub/mine", "train:007") and found[3].question == "Nul\0"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "id,q,a\n1,What,x,\n2,Who,y,\n", "one cell more than the header"),  # pandas would move each cell to the left
        ("a.csv", "id,q,a\n1,Größe,x\n".encode("latin-1"), "set encoding to cp1252"),
        ("a.csv", "id-q-a\n1-What-x\n", "no column 'id'; the table has id-q-a; for a file without a header"),
        ("a.csv", "1,What,x\n2,Who,y\n", "the table has 1, What, x; for a file without a header, name its columns in `header`"),
        ("a.csv", "", "it is empty"), ("a.csv", "id,q,a\n", "has no rows"), ("a.jsonl", "", "it is empty"), ("a.json", "[]", "has no rows"),
        ("a.jsonl", '{"id": 1, "q": ' + "[" * 3000 + "]" * 3000 + ', "a": "x"}\n', "nested too deep"),
        ("a.jsonl", '{"id": 1, "question": "What", "a": "x"}\n', "no column 'q'"),
        ("a.json", '[{"id": 1, "q": "What", "a": "x"}, {"id": 2, "q"', "line 1 column"),
        ("a.jsonl", '7\n"x"\n', "a row without columns"),
        ("a.parquet", b"PAR1 and so on", "could not be read"), ("a.xlsx", b"PK and so on", "could not be read"),
        ("a.jsonl", '{"id": 1, "q": {"text": "What"}, "a": {"text": "x"}}\n', "expected a path to one, such as q.text"),
    ],
)
def test_a_file_without_a_sound_row_is_refused_and_says_why(tmp_path, name, content, said):
    with pytest.raises(InputError, match=said):
        mine(tmp_path / name, content)


@pytest.mark.parametrize(
    ("name", "content", "key", "said"),
    [
        ("a.csv", "id,q,a\n1,What,x\n2,Who,y,z\n3,Why,w\n", "line 3", "one cell more than the header"),
        ("a.csv", 'id,q,a\n1,What,x\n2,"Who,y\n3,Why,w\n', "line 3", "quotation mark is not closed"),
        ("a.csv", 'id,q,a\n1,What,x\n2,"Who "is" it",y\n3,Why,w\n', "line 3", "quotation mark stands inside"),
        ("a.csv", "id,q,a\n1,What,x\n2,Größe,y\n3,Why,w\n".encode("latin-1"), "line 3", "as cp1252 it has"),
        ("a.jsonl", '{"id": 1, "q": "What", "a": "x"}\n{"id": 2, "q": "Wh\n{"id": 3, "q": "Why", "a": "w"}\n', "line 2", "not JSON"),
        ("a.jsonl", '{"id": 1, "q": "What", "a": "x"}\n7\n{"id": 3, "q": "Why", "a": "w"}\n', "row 1", "without columns"),
        ("a.jsonl", '{"id": 1, "q": "What", "a": "x"}\n{"id": 2, "q": "Größe", "a": "y"}\n{"id": 3, "q": "Why", "a": "w"}\n'.encode("latin-1"), "line 2", "set encoding to"),
        ("a.json", '[\n{"id": 1, "q": "What", "a": "x"},\n{"id": 2, "q" "Who"},\n{"id": 3, "q": "Why", "a": "w"}\n]', "line 3", "not JSON"),
        ("a.jsonl", '{"id": 1, "q": "What", "a": "x"}\n{"id": 2, "q": {"x": 1}, "a": "y"}\n{"id": 3, "q": "Why", "a": "w"}\n', "2", "several things"),
    ],
)
def test_one_bad_row_costs_one_row(tmp_path, name, content, key, said):
    first, bad, last = mine(tmp_path / name, content)
    assert (first.question, last.question) == ("What", "Why") and isinstance(bad, Unread)
    assert bad.key == key and said in bad.reason and "\n" not in bad.reason


def test_an_encoding_is_seen_or_named(tmp_path):
    text = "id;q;a\n1;Größe;x\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"):
        found, = mine(tmp_path / "a.csv", text.encode(encoding))
        assert found.question == "Größe", encoding
    (tmp_path / "b.csv").write_bytes(text.encode("cp1252"))
    found, = Hub("hub/mine", path=str(tmp_path / "b.csv"), encoding="cp1252", columns={"question": "q", "answer": "a"}).fetch()
    assert found.question == "Größe"
    with pytest.raises(InputError, match="expected one that Python knows"):
        list(Hub("hub/mine", path=str(tmp_path / "b.csv"), encoding="cp125", columns={"question": "q", "answer": "a"}).fetch())


def test_a_type_may_grow_over_the_rows(tmp_path):
    rows = [{"id": 1, "q": "What", "a": "x"}, {"id": "two", "q": ["Who", "else"], "a": 5}, {"id": None, "q": "Why", "a": None, "new": {"deep": [1]}}]
    found = mine(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert [(item.question, item.answer) for item in found] == [("What", "x"), ("Who\nelse", "5"), ("Why", None)]


def test_names_of_files_are_no_patterns_and_may_be_in_capitals(tmp_path):
    assert len(mine(tmp_path / "exam [2024]*.CSV", "id,q,a\n1,What,x\n")) == 1


def test_a_key_that_comes_twice_is_said_and_ends_nothing(tmp_path):
    found = mine(tmp_path / "a.jsonl", '{"id": 1, "q": "What", "a": "x"}\n' * 2)
    assert isinstance(found[0], Record) and isinstance(found[1], Unread) and "second time" in found[1].reason
    assert found[0].attribution == "a.jsonl"


def test_bytes_are_text_where_they_are_text(tmp_path):
    rows = [{"id": b"1", "q": "Größe".encode(), "a": b"x"}, {"id": b"2", "q": b"\xff\xfe", "a": b"x"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = mine(tmp_path / "a.parquet", (tmp_path / "a.parquet").read_bytes())
    assert found[0].question == "Größe" and isinstance(found[1], Unread) and "utf-8" in found[1].reason


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"A": "x", "B": None, "C": "y", "D": "z"}, "without a gap"),  # dealing out new letters would make C another option
        ({"label": ["A", "C", "D"], "text": ["x", "y", "z"]}, "without a gap"), ("'abc'", "expected a list"), ("{'y', 'x'}", "expected a list"),
        ("A) x B) y B) z", "expected a list"), ("-" * 100_000 + "1", ""), ("[" * 100_000, ""), ({"A": "x"}, "two to 26"), ("{'A': '\\ud800', 'B': 'x'}", "surrogates"),
        ([{"key": "A", "value": "x"}, {"key": "C", "value": "y"}, {"key": "D", "value": "z"}], "without a gap"), ([{"a": "x", "b": "y"}] * 2, "got members a, b"),
        (["x", "", "y"], "not empty"), ([str(number) for number in range(27)], "got 27"), ({"first": "x", "second": "y"}, "without a gap"), ([], "expected a list"),
    ],
)  # fmt: skip
def test_options_that_leave_the_right_one_in_doubt_are_unread(options, said):
    found = hub_record("medqa", DATASETS["medqa"], {"question": "Q?", "options": options, "answer_idx": "C"}, 0, "", "")
    assert isinstance(found, Unread) and said in found.reason and " at 0x" not in found.reason


def test_options_may_be_written_as_json_and_a_right_one_that_is_two_is_none():
    row = {"question": "Q?", "options": '{"A": "x", "B": "y", "C": null}', "answer_idx": "b"}
    assert hub_record("medqa", DATASETS["medqa"], row, 0, "", "").gold == {"letter": "B"}
    data = DataSet(path="x", columns=Columns(question="q", options="o", correct="c", correct_is="text"))
    assert "none of them" in hub_record("n", data, {"q": "Q?", "o": ["yes", "Yes"], "c": "yes"}, 0, "", "").reason
    assert "none of them" in hub_record("medmcqa", DATASETS["medmcqa"], rows_like_medmcqa(1)[0] | {"cop": "9" * 400}, 0, "", "").reason


def test_a_row_that_repeats_one_thing_is_read_in_no_time():
    "Patterns that look back would need hours for these."
    for row in ({"input": " " * 50_000 + "x"}, {"input": "Q:x {'A': 'a', 'B': 'b'}", "output": "<analysis></analysis>" * 20_000}):
        assert isinstance(hub_record("medical-reasoning", DATASETS["medical-reasoning"], row, 0, "", ""), Unread)


def test_a_licence_that_says_nothing_keeps_a_table_out_of_training(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"q": "What is iron?", "a": "A metal."}\n{"q": "", "a": "x"}\n')
    found = list(Hub("hub/mine", path=str(path), columns={"question": "q", "answer": "a"}).fetch())
    assert (found[0].license, found[0].may_train, found[0].kind) == ("unknown", False, "qa")
    assert isinstance(found[1], Unread) and "empty" in found[1].reason


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("hub", {}, "expected one of them"),
        ("medmcqa", {"revision": "main"}, "40 hexadecimal digits"),
        ("medical-reasoning", {}, "40 hexadecimal digits"),
        ("hub", {"path": "/no/such.csv", "columns": {"text": "t"}}, "is not there"),
        ("hub", {"path": "/no/such.doc"}, "is not a file"),
        ("medmcqa", {"columns": {"question": "q", "options": ["a", "b"]}}, "without `correct`"),
        ("medmcqa", {"licence": "MIT"}, "did you mean 'license'"),
        ("medmcqa", {"trust_remote_code": True}, "unknown key 'trust_remote_code'"),
        ("medmcqa", {"dataset": "../elsewhere"}, "expected owner/name"),
    ],
)
def test_wrong_settings_are_named(name, options, said):
    with pytest.raises(InputError, match=said):
        Hub(name, **options).fingerprint()


CELLS = st.none() | st.booleans() | st.integers(-3, 7) | st.floats() | st.text(max_size=30) | st.lists(st.text(max_size=5), max_size=7)
CELLS |= st.dictionaries(st.sampled_from("ABCDEFxyz"), st.text(max_size=5), max_size=6) | st.sampled_from(["{'A': 'x', 'B': 'y'}", "{" * 300, "B", "yes"])


#: A row of each data set that is in order, as the hub has them.
SOUND = {
    "medmcqa": rows_like_medmcqa(2)[1],
    "medqa": {"question": "Which?", "options": {"A": "x", "B": "y", "C": None}, "answer_idx": "B"},
    "pubmedqa": {"pubid": 7, "question": "Does it?", "context": {"contexts": ["One.", "Two."], "labels": ["AIM"]}, "long_answer": "So.", "final_decision": "no"},
    "medical-reasoning": {"input": "Q:Which? {'A': 'x', 'B': 'y'}", "output": "<analysis>So.</analysis><answer>B: y</answer>"},
}


def check_item(item):
    assert isinstance(item, (Record, Unread))
    if isinstance(item, Unread):
        assert item.reason and "\n" not in item.reason and item.key
    else:
        assert item.question and item.gold["letter"] in item.options
        item.model_dump_json().encode()


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_whatever_stands_in_one_cell_a_row_is_a_record_or_says_why_not(name):
    assert isinstance(hub_record(name, DATASETS[name], SOUND[name], 7, "0" * 64, "2026-01-01"), Record)
    for row in filter(lambda one: isinstance(one, dict), spoiled(SOUND[name])):
        check_item(hub_record(name, DATASETS[name], row, 7, "0" * 64, "2026-01-01"))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(DATASETS)), st.data())
def test_any_row_is_a_record_or_says_why_not(name, data):
    mapping = DATASETS[name].columns
    columns = ["input", "output", *(column for field in mapping.model_dump().values() if field for column in ([field] if isinstance(field, str) else field))]
    row = data.draw(st.sampled_from([{}, SOUND[name]])) | {column: data.draw(CELLS) for column in columns if data.draw(st.booleans())}
    check_item(hub_record(name, DATASETS[name], row, 7, "0" * 64, "2026-01-01"))


@pytest.mark.parametrize("correct_is, agreeing", [("number", 15), ("index", 0)])
def test_a_file_that_counts_its_options_from_one(correct_is, agreeing):
    "The twin of `test_the_real_medmcqa_counts_from_one`: counted from the wrong end, no verdict agrees with its letter."
    columns = DATASETS["medmcqa"].columns.model_dump() | {"correct_is": correct_is}
    found = list(Hub("medmcqa", path=str(FOLDER / "medmcqa.jsonl"), columns=columns, license="MIT").fetch())
    assert len(found) == 24 and all(isinstance(item, Record) for item in found if correct_is == "number")
    rows = {row["question"]: row["exp"] for row in own_lines("medmcqa.jsonl")}
    items = [item for item in found if isinstance(item, Record) and item.answer and contradicting(item) is not None]
    assert all(item.answer == rows[item.question] for item in items)
    if correct_is == "number":
        assert [item.question for item in items if contradicting(item)] == ["Which artery is felt behind the medial malleolus?"]
    assert sum(not contradicting(item) for item in items) == agreeing


def contradicting(item):
    "Whether the letter at the beginning of an explanation is another than the right one; None for an explanation without."
    said = re.match(r"(?i)ans(?:wer)?[-.: ]+(?:is )?[('\"]?([a-d])\b", item.answer)
    return said and said[1].upper() != item.gold["letter"]


def test_rows_in_pubmedqas_own_form_are_read():
    "The twin of `test_the_real_pubmedqa_rows_are_read`."
    rows = own_json("pubmedqa.json")
    contexts = {pmid: {"labels": row["LABELS"], "meshes": row["MESHES"], "contexts": row["CONTEXTS"]} for pmid, row in rows.items()}
    found = [
        hub_record("pubmedqa", DATASETS["pubmedqa"], {"pubid": pmid, "question": row["QUESTION"], "context": contexts[pmid],
                                                     "long_answer": row["LONG_ANSWER"], "final_decision": row["final_decision"]}, 0, "", "")
        for pmid, row in rows.items()
    ]  # fmt: skip
    assert [item.options[item.gold["letter"]] for item in found] == [row["final_decision"] for row in rows.values()] == ["yes", "no", "maybe", "yes", "no", "maybe"]
    assert all(isinstance(item, Record) and item.text.startswith(row["CONTEXTS"][0]) and row["CONTEXTS"][2].strip() in item.text and not item.may_train
               for item, row in zip(found, rows.values()))
    assert [item.answer for item in found] == [row["LONG_ANSWER"] for row in rows.values()]
    assert found[0].url == "https://pubmed.ncbi.nlm.nih.gov/70000001/"


def test_the_real_medmcqa_counts_from_one(shared_data):
    "The authors' own file: its right options are numbered from 1, the hub's from 0."
    columns = DATASETS["medmcqa"].columns.model_dump() | {"correct_is": "number"}
    mine = Hub("medmcqa", path=str(shared_data / "medmcqa" / "dev.json"), columns=columns, license="MIT")
    found = list(mine.fetch())
    assert len(found) == 4183 and all(isinstance(item, Record) for item in found)
    letters = [item.gold["letter"] for item in found]
    assert 900 < min(map(letters.count, "ABCD")) or set(letters) == set("ABCD")
    says = [item for item in found if item.answer and item.answer.lower().startswith(("ans. a", "ans. b", "ans. c", "ans. d"))]
    agree = sum(item.answer[5].upper() == item.gold["letter"] for item in says)
    assert len(says) > 50 and agree / len(says) > 0.9  # with the wrong base it is near nought


def test_the_real_pubmedqa_rows_are_read(shared_data):
    rows = json.loads((shared_data / "pubmedqa" / "pqal_dev500.json").read_text())
    data = DATASETS["pubmedqa"]
    found = [
        hub_record("pubmedqa", data, {"pubid": pmid, "question": row["QUESTION"], "context": {"contexts": row["CONTEXTS"]},
                                     "long_answer": row["LONG_ANSWER"], "final_decision": row["final_decision"]}, 0, "", "")
        for pmid, row in rows.items()
    ]  # fmt: skip
    assert len(found) == 500 and all(isinstance(item, Record) and item.text and item.answer and not item.may_train for item in found)
    assert {item.options[item.gold["letter"]] for item in found} == {"yes", "no", "maybe"}
    assert found[0].url == f"https://pubmed.ncbi.nlm.nih.gov/{next(iter(rows))}/"  # so that it is grouped with its abstract


# --- what a mapping can say ----------------------------------------------------------------------------------------------


def one_of(tmp_path, row, **columns):
    "What becomes of one row in a JSON lines file: a record, or what its Unread or the error says."
    (tmp_path / "one.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    try:
        found, = Hub("hub/mine", path=str(tmp_path / "one.jsonl"), columns=columns, license="MIT", may_train=True).fetch()
    except InputError as error:
        return str(error)
    return found


EXAM = {"question": "q", "options": "o", "correct": "c"}
DRUGS = ["Paracetamol", "Insulin", "Warfarin", "Digoxin"]


@pytest.mark.parametrize("options", [
    DRUGS, dict(zip("ABCD", DRUGS)), dict(zip("abcd", DRUGS)), {"op" + letter: text for letter, text in zip("abcd", DRUGS)},
    {f"Option {letter}": text for letter, text in zip("ABCD", DRUGS)}, [{"key": letter, "value": text} for letter, text in zip("ABCD", DRUGS)],
    [{"aid": number, "atext": text} for number, text in enumerate(DRUGS, 1)], [{"id": number, "text": text, "score": 0.5} for number, text in enumerate(DRUGS)],
    [{"value": text, "key": letter} for letter, text in reversed(list(zip("ABCD", DRUGS)))], [{letter: text} for letter, text in zip("ABCD", DRUGS)],
    [{"label": letter, "content": text, "is_correct": letter == "C"} for letter, text in zip("ABCD", DRUGS)], {"label": list("ABCD"), "text": DRUGS},
    [f"{letter}. {text}" for letter, text in zip("ABCD", DRUGS)], "\n".join(f"({letter}) {text}" for letter, text in zip("ABCD", DRUGS)),
    json.dumps(dict(zip("ABCD", DRUGS))), str(DRUGS), "['Paracetamol' 'Insulin'\n 'Warfarin' 'Digoxin']", {**dict(zip("ABCD", DRUGS)), "E": None}, [*DRUGS, ""],
    [{"text": text} for text in DRUGS], [{"option": letter, "option_text": text} for letter, text in zip("ABCD", DRUGS)], {str(n): text for n, text in enumerate(DRUGS)},
    [[letter, text] for letter, text in zip("ABCD", DRUGS)], "A) Paracetamol; B) Insulin; C) Warfarin; D) Digoxin", "A. Paracetamol B. Insulin C. Warfarin D. Digoxin",
    "(a) Paracetamol, (b) Insulin, (c) Warfarin, (d) Digoxin", "Paracetamol|Insulin|Warfarin|Digoxin", "Paracetamol | Insulin | Warfarin | Digoxin",
])  # fmt: skip
def test_options_in_the_forms_that_sets_have(tmp_path, options):
    found = one_of(tmp_path, {"q": "Which thins the blood?", "o": options, "c": "Warfarin"}, **EXAM, correct_is="text")
    assert found.options == dict(zip("ABCD", DRUGS)) and found.gold == {"letter": "C"}


@pytest.mark.parametrize(("correct", "how"), [
    ("C", "letter"), ("(C)", "letter"), ("c.", "letter"), (" C ", "letter"), ("C)", "letter"), ("[C]", "letter"), ("Option C", "letter"), ("C. Warfarin", "letter"),
    ("C: warfarin", "letter"), ("c - Warfarin", "letter"), (["C"], "letter"), ("Warfarin", "letter"), ("The answer is C", "letter"), ("**C**", "letter"),
    (2, "index"), ("2", "index"), (2.0, "index"), ("C", "index"), ("Warfarin.", "index"), ([0, 0, 1, 0], "index"), ([False, False, True, False], "letter"), ("[0, 0, 1, 0]", "index"),
    (3, "number"), ("3", "number"), ("(C)", "number"), ("warfarin", "text"), ("Warfarin", "number"), (["Warfarin"], "text"),
])  # fmt: skip
def test_the_correct_one_in_the_forms_that_sets_have(tmp_path, correct, how):
    assert one_of(tmp_path, {"q": "Which thins the blood?", "o": DRUGS, "c": correct}, **EXAM, correct_is=how).gold == {"letter": "C"}


@pytest.mark.parametrize(("correct", "how"), [
    ("E", "letter"), (4, "index"), (0, "number"), (-1, "index"), ("A. Warfarin", "letter"), (["A", "C"], "letter"), ([1, 0, 1, 0], "index"), ("Aspirin", "text"), (None, "letter"),
    ("", "index"), ("A or C", "letter"), (True, "letter"),
])  # fmt: skip
def test_a_correct_one_in_doubt_is_not_guessed(tmp_path, correct, how):
    assert "none of the" in one_of(tmp_path, {"q": "Which thins the blood?", "o": DRUGS, "c": correct}, **EXAM, correct_is=how)


def test_numbers_that_the_options_carry_count_before_any_place(tmp_path):
    shuffled = [{"aid": 3, "atext": "Warfarin"}, {"aid": 1, "atext": "Paracetamol"}, {"aid": 2, "atext": "Insulin"}]
    for how in ("index", "number"):
        found = one_of(tmp_path, {"q": "Which?", "o": shuffled, "c": 3}, **EXAM, correct_is=how)
        assert found.options[found.gold["letter"]] == "Warfarin" and list(found.options.values()) == ["Paracetamol", "Insulin", "Warfarin"]
    keyed = [{"code": "k7", "text": "Insulin"}, {"code": "k9", "text": "Warfarin"}]
    found = one_of(tmp_path, {"q": "Which?", "o": keyed, "c": "k9"}, **EXAM)
    assert found.options[found.gold["letter"]] == "Warfarin"
    flags = [{"text": "Insulin", "right": False}, {"text": "Warfarin", "right": True}]
    assert one_of(tmp_path, {"q": "Which?", "o": flags}, **EXAM | {"correct": "o.right"}).gold == {"letter": "B"}


@pytest.mark.parametrize("options", ["Paracetamol, Insulin", "A. Vitamin B. B. Insulin", "B. Insulin A. Paracetamol", [["Paracetamol", "Insulin"], ["Warfarin", "Digoxin"]]])
def test_a_text_that_may_be_cut_in_two_ways_is_not_cut(tmp_path, options):
    assert "options" in one_of(tmp_path, {"q": "Which?", "o": options, "c": "A"}, **EXAM) and "none of the 1 rows" in one_of(tmp_path, {"q": "Which?", "o": options, "c": "A"}, **EXAM)


@pytest.mark.parametrize(("names", "correct", "how"), [
    (["opa", "opb", "opc"], "opb", "letter"), (["option_a", "option_b", "option_c"], "option_b", "letter"), (["first", "second", "third"], "second", "index"),
    (["A", "B", "C"], "b", "letter"), (["1", "2", "3"], 1, "index"), (["1", "2", "3"], 2, "number"),
])  # fmt: skip
def test_the_correct_one_may_be_the_name_of_its_column(tmp_path, names, correct, how):
    row = {"q": "Which thins the blood?", **dict(zip(names, ["Insulin", "Warfarin", "Digoxin"])), "c": correct}
    assert one_of(tmp_path, row, question="q", options=names, correct="c", correct_is=how).gold == {"letter": "B"}


def test_a_map_in_a_parquet_file_is_a_dict(tmp_path):
    kind = pa.map_(pa.string(), pa.string())
    pq.write_table(pa.table({"q": ["Which?"], "o": pa.array([[("A", "Insulin"), ("B", "Warfarin")]], kind), "c": ["B"]}), tmp_path / "a.parquet")
    found, = Hub("hub/mine", path=str(tmp_path / "a.parquet"), columns=EXAM | {"correct_is": "letter"}, license="MIT", may_train=True).fetch()
    assert (found.options, found.gold) == ({"A": "Insulin", "B": "Warfarin"}, {"letter": "B"})


def test_twenty_six_options(tmp_path):
    texts = [f"drug {number}" for number in range(26)]
    assert one_of(tmp_path, {"q": "Which?", "o": texts, "c": "Z"}, **EXAM).gold == {"letter": "Z"}
    assert "got 27" in one_of(tmp_path, {"q": "Which?", "o": [*texts, "one more"], "c": "A"}, **EXAM)


@pytest.mark.parametrize(("row", "columns", "question", "answer"), [
    ({"i": "Explain.", "n": "A migraine.", "o": "So."}, {"question": ["i", "n"], "answer": "o"}, "Explain.\nA migraine.", "So."),
    ({"i": "Explain.", "n": "A migraine.", "o": "So."}, {"question": "i", "text": "n", "answer": "o"}, "Explain.\nA migraine.", "So."),
    ({"i": "Explain gout.", "n": "<noinput>", "o": "So."}, {"question": ["i", "n"], "answer": "o"}, "Explain gout.", "So."),
    ({"i": "Explain gout.", "n": " ", "o": "So."}, {"question": "i", "text": "n", "answer": "o"}, "Explain gout.", "So."),
    ({"i": "Explain gout.", "o": "So."}, {"question": "i", "answer": ["o", "o"]}, "Explain gout.", "So.\nSo."),
    ({"d": {"Q": "Why?", "A": {"long": "So."}}}, {"question": "d.Q", "answer": "d.A.long"}, "Why?", "So."),
    ({"d": '{"Q": "Why?", "A": "So."}'}, {"question": "d.Q", "answer": "d.A"}, "Why?", "So."),
    ({"d.Q": "Why?", "a": [{"text": "So."}, {"text": "And so."}]}, {"question": "d.Q", "answer": "a.text"}, "Why?", "So.\nAnd so."),
    ({"q": "Why?", "a": [{"text": "So."}, {"text": "And so."}]}, {"question": "q", "answer": "a.0.text"}, "Why?", "So."),
    ({"q": "Signs?", "a": ["Fever", "Cough"]}, {"question": "q", "answer": "a"}, "Signs?", "Fever; Cough."),
    ({"m": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}, {"chat": "m"}, "Why?", "So."),
    ({"m": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}, {"question": "m", "answer": "m"}, "Why?", "So."),
    ({"m": {"role": ["user", "assistant"], "content": ["Why?", "So."]}}, {"chat": "m"}, "Why?", "So."),
    ({"m": '[{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]'}, {"chat": "m"}, "Why?", "So."),
    ({"m": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
            {"role": "assistant", "content": "<think>Hm.</think>So."}, {"role": "user", "content": "Sure?"}]}, {"chat": "m"}, "Why?", "So."),
    ({"m": [{"speaker": "Patient", "utterance": "Why?"}, {"speaker": "Doctor", "utterance": "So."}]}, {"chat": "m"}, "Why?", "So."),
    ({"m": [{"role": "user", "parts": [{"text": "Why?"}]}, {"role": "model", "parts": [{"text": "So."}]}]}, {"chat": "m"}, "Why?", "So."),
    ({"m": ["Patient: Why?", "Doctor: So."]}, {"chat": "m"}, "Why?", "So."),
    ({"m": "<HUMAN>: Why?\n<ASSISTANT>: So."}, {"chat": "m"}, "Why?", "So."),
    ({"m": "### Instruction:\nExplain.\n\n### Input:\nA migraine.\n\n### Response:\nSo.\nPatient: no turn."}, {"chat": "m"}, "Explain.\nA migraine.", "So.\nPatient: no turn."),
    ({"m": "<s>[INST] Why? [/INST] So. </s>"}, {"chat": "m"}, "Why?", "So."),
    ({"m": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>"}, {"chat": "m"}, "Why?", "So."),
    ({"p": [{"role": "user", "content": "Why?"}], "c": [{"role": "assistant", "content": "So."}]}, {"question": "p", "answer": "c"}, "Why?", "So."),
    ({"p": "Why?", "c": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}, {"question": "p", "answer": "c"}, "Why?", "So."),
    ({"p": [{"role": "user", "content": "Why?"}], "c": "So."}, {"question": "p", "answer": "c"}, "Why?", "So."),
])  # fmt: skip
def test_question_and_answer_wherever_they_stand(tmp_path, row, columns, question, answer):
    found = one_of(tmp_path, row, **columns)
    assert (found.kind, found.question, found.answer, found.text) == ("qa", question, answer, None)


def test_of_a_long_conversation_the_first_exchange_is_taken_and_that_is_said(tmp_path):
    turns = [{"role": role, "content": text} for role, text in zip(("assistant", *("user", "assistant") * 3), ("Hello.", "Why?", "So.", "Sure?", "Yes.", "Thanks.", "Bye."))]
    found = one_of(tmp_path, {"m": turns}, chat="m")
    assert (found.question, found.answer, found.labels) == ("Why?", "So.", {"exchanges": "first of 3"})
    for turns in ([{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "So."}], [{"role": "user", "content": "Why?"}, {"role": "tool", "content": "x"}]):
        assert "no question with its answer in the conversation" in one_of(tmp_path, {"m": turns}, chat="m")
    for cell in ("Why?", ["Why?", "So."], "Take it with water. Patient: no one.", 7, None):
        assert "no conversation" in one_of(tmp_path, {"m": cell}, chat="m")


@pytest.mark.parametrize("question", ["p.qas.question", "p.0.qas.question"])
def test_several_questions_of_one_row_are_not_joined(tmp_path, question):
    row = {"p": [{"qas": [{"question": "What is croup?", "answer": "A cough."}, {"question": "Who has it?", "answer": "Children."}]}]}
    assert "several questions: " in one_of(tmp_path, row, question=question, answer="p.qas.answer")
    assert one_of(tmp_path, row, question="p.0.qas.1.question", answer="p.0.qas.1.answer").question == "Who has it?"


@pytest.mark.parametrize(("columns", "said"), [
    ({"question": "qestion", "answer": "a"}, "no column 'qestion'; did you mean 'question'.; the table has question, a, d, d.Inner"),
    ({"question": "question", "answer": "Inner"}, "did you mean 'd.Inner'"), ({"question": "question", "answer": "a", "text": "txt"}, "no column 'txt'"),
    ({"question": ["question", "inptu"], "answer": "a"}, "no column 'inptu'"), ({"question": "question", "answer": "a", "id": "nr"}, "no column 'nr'"),
    ({"question": "question", "answer": "a", "task": "triag"}, "no column 'triag'"), ({"question": "question", "answer": "a", "split": "tset"}, "no column 'tset'"),
    ({"question": "question", "task": "triage", "gold": {"triage": "lvl", "reason": "a"}}, "no column 'lvl'"),
    ({"question": "question", "answer": "a", "safety": {"column": "harm", "refuse": ["yes"]}}, "no column 'harm'"),
    ({"question": "question", "options": ["a", "b"], "correct": "a"}, "no column 'b'"), ({"question": "d", "answer": "d"}, "expected a path to one, such as d.Inner"),
])  # fmt: skip
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, columns, said):
    assert re.search(said, one_of(tmp_path, {"question": "Why?", "a": "So.", "d": {"Inner": "x"}}, **columns))


@pytest.mark.parametrize(("columns", "said"), [
    ({"question": "q", "text": "t"}, "without an answer"), ({"answer": "a"}, "without `question`"), ({"text": "t", "answer": "a"}, "without `question`"),
    ({"question": "q", "answer": "a", "correct": "c"}, "without `options`"), ({"question": "q", "options": "o"}, "without `correct`"),
    ({"question": "q", "options": "o", "fixed_options": ["yes", "no"], "correct": "c"}, "give one of them"), ({"options": "o", "correct": "c"}, "without `question`"),
    ({"question": "q", "answer": "a", "gold": {"answer": "a"}}, "`gold` without `task`"), ({"chat": "m", "answer": "a"}, "a conversation holds both"),
    ({"question": "q", "task": "triage", "answer": "a"}, "needs triage, reason"), ({"question": "q", "task": "triage", "gold": {"level": "l"}}, "no field 'level'"),
    ({"question": "q", "safety": "refuse", "options": "o", "correct": "c"}, "without `answer`"), ({"question": "q", "answer": "a", "patient": "p"}, "`patient` without"),
    ({"question": "q", "answer": "a", "safety": {"column": "s"}}, "refuse"), ({"title": "t"}, "neither question"), ({"text": "t", "task": "triage"}, "`task` or `safety` without"),
])  # fmt: skip
def test_a_mapping_that_is_half_said_is_refused(tmp_path, columns, said):
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=said):
        Hub("hub/mine", path=str(tmp_path / "a.jsonl"), columns=columns)


def test_a_row_for_any_task(tmp_path):
    rows = {
        "medical_qa": ({"answer": "a"}, {"a": "It passes."}), "triage": ({"gold": {"triage": "l", "reason": "w"}}, {"l": "Self-Care", "w": "It\npasses."}),
        "drug_information": ({"gold": {"use": "u", "side_effects": "s", "caution": "c"}}, {"u": "Pain.", "s": "Rash.", "c": "Ulcers."}),
        "symptom_analysis": ({"gold": {"causes": "c", "red_flags": "r", "next_step": "n"}}, {"c": "A cold.", "r": "Blood.", "n": "Rest."}),
        "safety_refusal": ({"gold": {"decision": "d", "response": "r"}}, {"d": "Answer", "r": "Drink water."}),
        "emergency_escalation": ({"gold": {"emergency": "e", "suspected": "s", "action": "a"}}, {"e": "YES", "s": "A stroke.", "a": "Call now."}),
        "clinical_reasoning": ({"options": "o", "correct": "c", "correct_is": "letter", "answer": "w"}, {"o": ["x", "y"], "c": "B", "w": "It is y."}),
    }  # fmt: skip
    for task, (columns, row) in rows.items():
        found = one_of(tmp_path, {"q": "What now?", **row}, question="q", task=task, **columns)
        assert (found.task, found.question) == (task, "What now?"), found
        render_answer(task, found.gold, found.options)
        said = one_of(tmp_path, {"q": "What now?", "task": task, **row}, question="q", **{"task": "task", **columns})
        assert said.task == task and said.gold == found.gold
    assert "expected one of" in one_of(tmp_path, {"q": "What now?", "l": "later", "w": "So."}, question="q", task="triage", gold={"triage": "l", "reason": "w"})
    assert "the task is unknown" in one_of(tmp_path, {"q": "What now?", "t": "poetry", "a": "So."}, question="q", answer="a", task="t")


def test_a_treatment_plan_has_its_patient(tmp_path):
    fields = [field.name for field in FORMATS["treatment_recommendation"]]
    row = {"q": "What would you suggest?", "p": {"age": 61, "sex": "female", "complaint": "Headache"}, **{name: f"{name} one" for name in fields}}
    columns = {"question": "q", "task": "treatment_recommendation", "gold": {name: name for name in fields}, "patient": "p"}
    assert one_of(tmp_path, row, **columns).patient.age == 61
    assert "sex" in one_of(tmp_path, row | {"p": {"age": 61, "complaint": "Headache"}}, **columns)


@pytest.mark.parametrize(("said", "split"), [("test", "test"), ("Dev", "validation"), ("val", "validation"), ("training", "train"), (None, None), ("", None)])
def test_a_split_column_is_kept(tmp_path, said, split):
    assert one_of(tmp_path, {"q": "Why?", "a": "So.", "s": said}, question="q", answer="a", split="s").split == split


def test_a_split_that_is_named_stays_and_one_that_is_not_binds_nothing(tmp_path):
    (tmp_path / "a.json").write_text('{"train": [{"q": "Why?", "a": "So."}], "test": [{"q": "Who?", "a": "He."}]}')
    columns = {"question": "q", "answer": "a"}

    def splits(**options):
        return [item.split for item in Hub("hub/mine", path=str(tmp_path / "a.json"), **{"columns": columns} | options).fetch()]

    assert splits() == [None, None] and splits(split="test") == ["test", "test"] and splits(columns=columns | {"split": "split"}) == ["train", "test"]
    assert "the split is unknown" in one_of(tmp_path, {"q": "Why?", "a": "So.", "s": "half"}, question="q", answer="a", split="s")


@pytest.mark.parametrize("safety", ["refuse", {"column": "s", "refuse": ["harmful", "1"], "answer": ["safe", "0"]}])
def test_a_request_for_harm_becomes_a_refusal_or_nothing(tmp_path, safety):
    columns = {"question": "q", "answer": "a", "safety": safety}
    found = one_of(tmp_path, {"q": "How do I poison a well?", "a": "I cannot help with that.\nIt would hurt people.", "s": "Harmful"}, **columns)
    assert found.task == "safety_refusal" and found.gold == {"decision": "refuse", "response": "I cannot help with that. It would hurt people."}
    assert "does not refuse it" in one_of(tmp_path, {"q": "How do I poison a well?", "a": "Take two pounds of it.", "s": "1"}, **columns)
    assert isinstance(one_of(tmp_path, {"q": "How do I poison a well?", "a": "", "s": "1"}, **columns), str)
    if safety != "refuse":
        assert one_of(tmp_path, {"q": "How do I clean a well?", "a": "With chlorine.", "s": 0}, **columns).task is None
        assert "not say whether" in one_of(tmp_path, {"q": "How do I clean a well?", "a": "With chlorine.", "s": None}, **columns)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".ndjson", ".parquet"])
def test_a_table_without_surprises_in_every_kind_of_file(tmp_path, suffix):
    import openpyxl

    rows, path = [{"q": f"What is number {number}?", "a": "A thing, so \"to\" say."} for number in range(3)], tmp_path / f"a{suffix}"
    if suffix == ".xlsx":
        book = openpyxl.Workbook()
        for cells in (["q", "a"], *(list(row.values()) for row in rows)):
            book.active.append(cells)
        book.save(path)
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix in (".csv", ".tsv"):
        with path.open("w", newline="") as stream:
            csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",").writerows([["q", "a"], *(row.values() for row in rows)])
    else:
        path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    found = list(Hub("hub/mine", path=str(path), columns={"question": "q", "answer": "a"}).fetch())
    assert [{"q": item.question, "a": item.answer} for item in found] == rows


def test_a_file_without_a_header_has_its_columns_named(tmp_path):
    (tmp_path / "a.csv").write_text("Why?,So.\nWho?,He.\n")
    found = list(Hub("hub/mine", path=str(tmp_path / "a.csv"), header=["q", "a"], columns={"question": "q", "answer": "a"}).fetch())
    assert [item.question for item in found] == ["Why?", "Who?"]
    with pytest.raises(InputError, match="only with a `path`"):
        Hub("medmcqa", header=["q"])


def test_a_file_is_read_whole_and_a_data_set_says_what_was_left(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("q,a\n" + "".join(f"What is number {number}?,A thing.\n" for number in range(10_050)))
    mine = Hub("hub/mine", path=str(tmp_path / "a.csv"), columns={"question": "q", "answer": "a"})
    assert len(list(mine.fetch())) == 10_050 and mine.cut == ""
    assert len(list(mine.fetch(limit=7))) == 7 and mine.cut.startswith("7 of its 10,050 rows were read")
    monkeypatch.setattr(hub, "table_of", lambda source: tmp_path / "kept.parquet")
    monkeypatch.setattr(hub, "SENSIBLE_LIMIT", 30)
    pq.write_table(pa.Table.from_pylist(rows_like_medmcqa(40)), tmp_path / "kept.parquet")
    published = Hub("medmcqa")
    assert len(list(published.fetch())) == 30 and published.cut == "30 of its 40 rows were read; the rest with collect.options.medmcqa.limit"
    assert len(list(published.fetch(limit=40))) == 40 and published.cut == ""


def test_an_instruction_that_comes_again_with_another_input_gives_two_examples(tmp_path):
    rows = [{"instruction": "Name the most likely cause.", "input": text, "output": f"{cause} is the most likely cause, because it fits the signs."}
            for text, cause in (("A child with a barking cough.", "Croup"), ("A man with a red, hot big toe.", "Gout"))]  # fmt: skip
    rows.insert(1, {"instruction": "Explain in plain words what a migraine is.", "input": "<noinput>", "output": "A migraine is a strong headache that lasts for hours."})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Hub("hub/mine", path=str(tmp_path / "a.jsonl"), columns={"question": "instruction", "text": "input", "answer": "output"}, license="MIT", may_train=True)
    kept = divide(source.fetch(), PreprocessParams(validation_share=0, test_share=0)).kept
    made = make_examples({"train": kept, "validation": [], "test": []}).splits["train"]
    assert len(made) == 3 and all(any(row["input"] in one.question for one in made) for row in rows if row["input"] != "<noinput>")
    assert not any("noinput" in one.question for one in made)


def test_an_error_of_the_hub_says_nothing_of_who_asked(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise ConnectionError("429 for 203.0.113.9, reader@example.org: token=abc123xyz")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=refused))
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path))
    with pytest.raises(MissingError) as said:
        list(Hub("medmcqa").fetch())
    assert "429 for" in str(said.value) and not re.search(r"203\.0|reader@|abc123", str(said.value))
