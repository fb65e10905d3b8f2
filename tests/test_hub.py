"Tables of the Hugging Face hub and of one's own files: a real `load_dataset` against a loopback hub, mappings, and rows that are none."

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers.hub import COMMIT, HubServer

from medlab.core import InputError, Record, Unread
from medlab.sources.hub import DATASETS, Columns, DataSet, Hub, to_record

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
import json, sys
from medlab.core import MedlabError
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
        assert again.stdout == first.stdout and len(hub.asked) == asked  # kept; nobody was asked
    assert again.stderr.strip() == "False"  # nor was `datasets` imported
    offline = fetched(tmp_path, "http://127.0.0.1:9", offline=True)
    assert offline.stdout == first.stdout
    one = records[3]
    assert one["options"][one["gold"]["letter"]] == "d3" and one["license"] == "Apache-2.0" and one["may_train"]
    assert one["answer"] == "Because 3." and records[2]["answer"] is None and one["subject"] == "Anatomy"


@pytest.mark.parametrize(("fault", "said"), [("gated", "accept its terms"), ("gone", "cannot be had here"), ("broken", "cannot be had here")])
def test_a_hub_that_does_not_give_is_missing_not_a_crash(tmp_path, repository, fault, said):
    with HubServer(repository, NAME, fault) as hub:
        done = fetched(tmp_path, hub.url, HF_TOKEN="hf_secret_token")
    assert done.stdout.startswith("MissingError") and said in done.stdout and "HF_TOKEN" in done.stdout, done.stdout + done.stderr[-500:]
    assert "hf_secret_token" not in done.stdout + done.stderr and "\n" not in done.stdout.strip()


def test_without_network_or_with_another_commit_it_is_missing(tmp_path, repository):
    assert fetched(tmp_path, "http://127.0.0.1:9").stdout.startswith("MissingError openlifescienceai/medmcqa cannot be had here")
    assert "offline is set" in fetched(tmp_path, "http://127.0.0.1:9", offline=True).stdout
    with HubServer(repository, NAME) as hub:
        assert fetched(tmp_path, hub.url, options={"revision": "0" * 40}).stdout.startswith("MissingError")


def test_limits_are_spread_and_grow(tmp_path, repository):
    path = str(repository / "data" / "train-00000-of-00001.parquet")
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
    with pytest.raises(InputError, match=f"mine{suffix}"):
        list(Hub("hub/mine", path=str(path), columns={"question": "question", "answer": "exp"}).fetch())


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
        ("hub", {"path": "/no/such.csv"}, "is no file"),
        ("medmcqa", {"columns": {"question": "q", "options": ["a", "b"]}}, "without `correct`"),
        ("medmcqa", {"licence": "MIT"}, "did you mean 'license'"),
        ("medmcqa", {"trust_remote_code": True}, "unknown key 'trust_remote_code'"),
    ],
)
def test_wrong_settings_are_named(name, options, said):
    with pytest.raises(InputError, match=said):
        Hub(name, **options)


CELLS = st.none() | st.booleans() | st.integers(-3, 7) | st.floats() | st.text(max_size=30) | st.lists(st.text(max_size=5), max_size=7)
CELLS |= st.dictionaries(st.sampled_from("ABCDEFxyz"), st.text(max_size=5), max_size=6) | st.sampled_from(["{'A': 'x', 'B': 'y'}", "{" * 300, "B", "yes"])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(DATASETS)), st.data())
def test_any_row_is_a_record_or_says_why_not(name, data):
    mapping = DATASETS[name].columns
    columns = ["input", "output", *(column for field in mapping.model_dump().values() if field for column in ([field] if isinstance(field, str) else field))]
    row = {column: data.draw(CELLS) for column in columns if data.draw(st.booleans())}
    item = to_record(name, DATASETS[name], row, 7, "0" * 64, "2026-01-01")
    assert isinstance(item, (Record, Unread))
    if isinstance(item, Unread):
        assert item.reason and "\n" not in item.reason and item.key
    else:
        assert item.question and item.gold["letter"] in item.options


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
        to_record("pubmedqa", data, {"pubid": pmid, "question": row["QUESTION"], "context": {"contexts": row["CONTEXTS"]},
                                     "long_answer": row["LONG_ANSWER"], "final_decision": row["final_decision"]}, 0, "", "")
        for pmid, row in rows.items()
    ]  # fmt: skip
    assert len(found) == 500 and all(isinstance(item, Record) and item.text and item.answer and not item.may_train for item in found)
    assert {item.options[item.gold["letter"]] for item in found} == {"yes", "no", "maybe"}
    assert found[0].url == f"https://pubmed.ncbi.nlm.nih.gov/{next(iter(rows))}/"  # so that it is grouped with its abstract
