"Tables that other people made: every row that is in order comes, and every other one with its place and a reason."

import csv
import json
import random
import string

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medlab.basics.rows import BadRow, members_of, paths_in, scan_rows, turns_of, value_at
from medlab.cleaning.benchmarks import read_benchmark
from medlab.sources.hub import Hub

TWO = [{"q": "What is gout?", "a": "Crystals."}, {"q": "What is croup?", "a": "A cough."}]


def scanned(tmp_path, name, content, **options):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(scan_rows(tmp_path / name, **options))


@pytest.mark.parametrize("document", [
    TWO, {"data": TWO}, {"version": "1", "note": "by hand", "questions": TWO}, {"17": TWO[0], "18": TWO[1]}, {"data": {"17": TWO[0], "18": TWO[1]}},
    {"meta": {"by": "us"}, "rows": TWO}, {"train": TWO[:1], "test": TWO[1:]}, {"train": {"17": TWO[0]}, "test": {"18": TWO[1]}}, {"version": 2, "data": {"items": TWO}},
    {"q": ["What is gout?", "What is croup?"], "a": ["Crystals.", "A cough."]}, {"q": {"0": "What is gout?", "1": "What is croup?"}, "a": {"0": "Crystals.", "1": "A cough."}},
    [["q", "a"], *(list(row.values()) for row in TWO)], {"columns": ["q", "a"], "index": [0, 1], "data": [list(row.values()) for row in TWO]},
])  # fmt: skip
@pytest.mark.parametrize("indent", [None, 2])
def test_the_rows_of_a_json_document_wherever_they_stand(tmp_path, document, indent):
    assert scanned(tmp_path, "a.json", json.dumps(document, indent=indent)) == TWO
    found = scanned(tmp_path, "a.json", json.dumps(document, indent=indent), keys=True)
    assert [{"q": row["q"], "a": row["a"]} for row in found] == TWO


def test_keys_and_splits_are_kept_for_those_who_want_them(tmp_path):
    assert [row["id"] for row in scanned(tmp_path, "a.json", json.dumps({"17": TWO[0], "18": TWO[1]}), keys=True)] == ["17", "18"]
    assert [row["split"] for row in scanned(tmp_path, "a.json", json.dumps({"train": TWO[:1], "dev": TWO[1:]}), keys=True)] == ["train", "dev"]
    assert scanned(tmp_path, "a.json", json.dumps({"17": {"id": "own", "q": "Why?"}}), keys=True) == [{"id": "own", "q": "Why?"}]


@pytest.mark.parametrize("row", [
    {"question": "Why?", "options": [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}]}, {"question": {"stem": "Why?", "choices": [{"text": "x"}]}},
    {"messages": [{"role": "user", "content": "Why?"}]}, {"q": "Why?", "tags": ["a", "b"]},
])  # fmt: skip
def test_one_row_with_lists_inside_is_one_row(tmp_path, row):
    for name in ("a.json", "a.jsonl"):
        assert scanned(tmp_path, name, json.dumps(row)) == [row]


@pytest.mark.parametrize("content", [
    "\n".join(map(json.dumps, TWO)), "\n\n".join(map(json.dumps, TWO)) + "\n", "\ufeff" + "\n".join(map(json.dumps, TWO)), "\r\n".join(map(json.dumps, TWO)), json.dumps(TWO),
    json.dumps(TWO, indent=1), "[\n" + ",\n".join(map(json.dumps, TWO)) + "\n]\n",
])  # fmt: skip
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.NDJSON"])
def test_lines_and_documents_are_told_apart_by_what_they_are(tmp_path, name, content):
    assert scanned(tmp_path, name, content) == TWO


def test_a_line_separator_inside_a_text_ends_no_line(tmp_path):
    row = {"q": "What\u2028is\u0085gout?", "a": "x"}
    assert scanned(tmp_path, "a.jsonl", json.dumps(row, ensure_ascii=False) + "\n" + json.dumps(TWO[0])) == [row, TWO[0]]


@pytest.mark.parametrize("delimiter", ",;\t|")
def test_the_delimiter_is_found(tmp_path, delimiter):
    rows = [["q", "a"], ["What, or; who?", 'A "thing", or\nso'], ["Why?", ""]]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)
    assert list(scan_rows(tmp_path / "a.csv")) == [dict(zip(rows[0], row)) for row in rows[1:]]


@pytest.mark.parametrize(("content", "rows"), [
    ('q,a\n"What is gout?,x\nWho?,y\n', ["line 2", {"q": "Who?", "a": "y"}]), ('q,a\nWho?,y\n"What is gout?,x', [{"q": "Who?", "a": "y"}, "line 3"]),
    ('q,a\n"What "now" is it?",x\nWho?,y\n', ["line 2", {"q": "Who?", "a": "y"}]), ("q,a\nWho?,y,z\nWho?,y\n", ["line 2", {"q": "Who?", "a": "y"}]),
    ('q,a\n"What,x\nWho?,"y"\nWhy?,z\n', ["line 2", {"q": "Who?", "a": "y"}, {"q": "Why?", "a": "z"}]), ("q,a\nWho?\n", [{"q": "Who?"}]), ("q,a\n\n\nWho?,y\n", [{"q": "Who?", "a": "y"}]),
    ('sep=;\nq;a\nWho?;y\n', [{"q": "Who?", "a": "y"}]), (",q,\n0,Who?,y\n", [{"column 1": "0", "q": "Who?", "column 3": "y"}]),
    ("q,q\nWho?,y\n", [{"q": "Who?", "q.1": "y"}]), ('q,a\n"two\nlines",y\n"What,x\nWho?,y\n', [{"q": "two\nlines", "a": "y"}, "line 4", {"q": "Who?", "a": "y"}]),
])  # fmt: skip
def test_a_bad_line_of_a_table_costs_one_row(tmp_path, content, rows):
    found = scanned(tmp_path, "a.csv", content)
    assert [row.place if isinstance(row, BadRow) else row for row in found] == rows
    assert all("\n" not in row.reason for row in found if isinstance(row, BadRow))


def test_a_title_above_a_table_is_no_header(tmp_path):
    assert scanned(tmp_path, "a.csv", "# exported by us\nq,a\nWhat is gout?,Crystals.\n") == scanned(tmp_path, "b.csv", "q,a\nWhat is gout?,Crystals.\n") == [TWO[0]]
    assert scanned(tmp_path, "one.csv", "q\nWhat is gout?\n") == [{"q": "What is gout?"}] and len(scanned(tmp_path, "h.csv", "x\n1,2\n", header=["q", "a"])) == 2
    book = openpyxl.Workbook()
    for cells in (["Exam of 2024"], ["q", "a"], ["What is gout?", "Crystals."]):
        book.active.append(cells)
    book.save(tmp_path / "a.xlsx")
    assert list(scan_rows(tmp_path / "a.xlsx")) == [TWO[0]]


def test_a_table_with_tabs_takes_quotation_marks_as_they_are(tmp_path):
    assert scanned(tmp_path, "a.tsv", 'q\ta\n"Flu" is what?\tx\nWho is "it"\ty\n') == [{"q": '"Flu" is what?', "a": "x"}, {"q": 'Who is "it"', "a": "y"}]


def test_every_row_comes_but_the_ones_that_were_spoilt(tmp_path):
    "A thousand rows, of which thirty have a quotation mark too many."
    chance = random.Random(5)
    spoilt = set(chance.sample(range(1000), 30))
    lines = [f'{number},"Question ""{number}"", {"".join(chance.choices(string.ascii_letters + " ,;", k=20))}?"' for number in range(1000)]
    text = "n,q\n" + "".join(line.replace('"Question', '"Ques"tion' if number % 2 else '"Question "', 1) + "\n" if number in spoilt else line + "\n" for number, line in enumerate(lines))
    found = scanned(tmp_path, "a.csv", text)
    assert {row["n"] for row in found if isinstance(row, dict)} == {str(number) for number in range(1000) if number not in spoilt}
    assert {int(row.place.split()[1]) - 2 for row in found if isinstance(row, BadRow)} == spoilt


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_an_encoding_that_shows_is_read(tmp_path, encoding, name):
    rows = [{"q": "Größe?", "a": "naïve"}]
    text = "q,a\nGröße?,naïve\n" if name == "a.csv" else json.dumps(rows[0] if name == "a.jsonl" else rows, ensure_ascii=False)
    assert scanned(tmp_path, name, text.encode(encoding)) == rows


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_an_encoding_that_does_not_show_is_named_and_costs_the_rows_that_need_it(tmp_path, name):
    lines = ["q,a", "Größe?,x", "Who?,y"] if name == "a.csv" else ['{"q": "Größe?", "a": "x"}', '{"q": "Who?", "a": "y"}']
    content = "\n".join(lines).encode("latin-1")
    bad, good = scanned(tmp_path, name, content)
    assert good == {"q": "Who?", "a": "y"} and "set encoding to cp1252" in bad.reason and "Größe" in bad.reason
    assert scanned(tmp_path, name, content, encoding="cp1252")[0]["q"] == "Größe?"


def test_a_workbook_with_several_sheets_is_asked_about(tmp_path):
    book = openpyxl.Workbook()
    book.active.title = "exam"
    for cells in (["q", "a", None], ["Why?", 7, None], [None, None, None], ["Who?", None, None]):
        book.active.append(cells)
    book.create_sheet("empty")
    book.save(tmp_path / "a.xlsx")
    assert list(scan_rows(tmp_path / "a.xlsx")) == [{"q": "Why?", "a": 7}, {"q": "Who?", "a": None}]
    book.create_sheet("notes").append(["Where?", "Here."])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(ValueError, match="the sheets exam, notes"):
        list(scan_rows(tmp_path / "a.xlsx"))
    with pytest.raises(ValueError, match="got sheet 'exm'; did you mean 'exam'"):
        list(scan_rows(tmp_path / "a.xlsx", sheet="exm"))
    assert len(list(scan_rows(tmp_path / "a.xlsx", sheet="exam"))) == 2
    assert {item.question for item in read_benchmark(tmp_path / "a.xlsx")} == {"Why?", "Who?", "Where?"}
    assert list(scan_rows(tmp_path / "a.xlsx", sheet="notes", header=["q", "a"])) == [{"q": "Where?", "a": "Here."}]


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.csv", "", "it is empty"), ("a.json", "{", "not JSON"), ("a.json", '{"a": [1,\n 2', "line 2"), ("a.xlsx", b"no workbook", "not an Excel workbook"), ("a.parquet", b"PAR1", "not a Parquet file"),
    ("a.xls", b"x", "expected one of .jsonl"), ("a", b"x", "'nothing'"), ("a.json", "[" * 100_000, "nested too deep"),
])  # fmt: skip
def test_a_file_that_is_none_is_one_error_with_one_line(tmp_path, name, content, said):
    with pytest.raises(ValueError, match=said) as caught:
        scanned(tmp_path, name, content)
    assert "\n" not in str(caught.value)


def test_what_a_benchmark_cannot_read_stops_it_and_what_one_trains_on_loses_a_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "What is gout?", "a": "x"}\n{"q": "Wh\n')
    with pytest.raises(ValueError, match="a.jsonl, line 2: not JSON"):
        read_benchmark(tmp_path / "a.jsonl")
    assert len(list(Hub("hub/mine", path=str(tmp_path / "a.jsonl"), columns={"question": "q", "answer": "a"}).fetch())) == 2


@pytest.mark.parametrize("document", [{"17": {"QUESTION": "What is gout?"}, "18": {"QUESTION": "What is croup?"}}, {"questions": [{"QUESTION": "What is gout?"}, {"QUESTION": "What is croup?"}]}])
def test_both_readers_see_the_same_rows(tmp_path, document):
    (tmp_path / "a.json").write_text(json.dumps(document))
    asked = [item.question for item in read_benchmark(tmp_path / "a.json")]
    assert asked == [item.text for item in Hub("hub/mine", path=str(tmp_path / "a.json"), columns={"text": "QUESTION"}).fetch()] == ["What is gout?", "What is croup?"]


def test_paths_go_into_dicts_lists_and_texts():
    row = {"a": {"b": [{"c": 1}, {"c": 2}]}, "a.b": "whole", "t": '{"x": {"y": "z"}}', "n": None, "l": ["x", "y"]}
    assert [value_at(row, path) for path in ("a.b", "a.b.c", "a.b.1.c", "t.x.y", "n.x", "l.1", "l.7", "none")] == ["whole", None, None, "z", None, "y", None, None]
    assert value_at({"a": row["a"]}, "a.b.c") == [1, 2] and value_at({"a": row["a"]}, "a.b.1.c") == 2
    assert {"a", "a.b", "a.b.c", "t.x", "t.x.y"} <= set(paths_in(row))


@pytest.mark.parametrize("cell", [None, "", 7, [], {}, ["x"], [{}], [{"role": "user"}], [{"role": 1, "content": "x"}], {"role": ["user"], "content": []}, "[]", "[{", [{"value": "x"}]])
def test_what_is_no_conversation_is_none(cell):
    assert turns_of(cell) is None
    members_of(cell)


CELL = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(["[", "{}", "['a' 'b']", '{"role": "user"}', "\udc80", "\ufeff"])
NESTED = st.recursive(CELL, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["q", "role", "content", "0", "data", "train"]), inner, max_size=4), max_leaves=12)


@settings(max_examples=150, deadline=None)
@given(NESTED, st.sampled_from(["q", "q.0", "data.q.role", "", ".", "0.0"]))
def test_nothing_in_a_cell_stops_a_reader(row, path):
    value_at(row, path)
    turns_of(row)
    assert all(isinstance(name, str) for name in paths_in(row))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=200, alphabet='q,a;"\n\t[]{}: 1\ufeff').map(str.encode), st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl"]))
def test_nothing_in_a_file_stops_a_reader_but_one_error(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        for row in scan_rows(path, keys=True):
            if isinstance(row, BadRow):
                assert row.reason and "\n" not in row.place
    except ValueError as error:
        assert str(error)
