"Sources and the collect step: slips in the starter data, archives that are not what they say, and the real MedQuAD where it is at hand."

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_data import FOLDER, made_up_documents, medquad_zip
from servers.base import Server, gzip_bomb, redirect, wrong_type
from servers.openfda import OpenFdaServer, labels

from medlab.collect import SOURCES, collect, progress, source_fingerprints
from medlab.contracts.records import read_records, read_sources, read_unread
from medlab.basics.errors import InputError, MissingError
from medlab.basics.files import sha256_file, shipped
from medlab.contracts.records import TASKS, Record, Unread, record_id
from medlab.core import NOT_HERE, Run, load_profile, open_run
from medlab.fetch import Counts, Fetcher, host_of
from medlab.fetching.pace import Bucket
from medlab.sources import medquad
from medlab.sources.medquad import MedQuad, downloaded_archive
from medlab.sources.starter import FIELD_CHOICES, TASK_FIELDS, Starter, read_lines

MEDQUAD = Path(__file__).parents[2] / "shared" / "data" / "MedQuAD-master.zip"


@pytest.fixture(autouse=True)
def no_archive_in_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDLAB_MEDQUAD_ARCHIVE", raising=False)
    monkeypatch.setenv("MEDLAB_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def starter(tmp_path):
    "A copy of the starter data that may be broken."
    return Path(shutil.copytree(shipped("data", "starter"), tmp_path / "starter"))


def break_line(path, number, change):
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines), encoding="utf-8")


def changed(**values):
    return lambda text: json.dumps({**json.loads(text), **values})


def field(name, value):
    return lambda text: json.dumps({**json.loads(text), "fields": {**json.loads(text)["fields"], name: value}})


# --- starter -------------------------------------------------------------------------------------------------------------


def test_the_shipped_data_are_enough_and_sound():
    records = list(Starter().fetch())
    counts = Counter(record.task for record in records)
    held_out = Counter(record.task for record in records if record.split == "test")
    assert set(counts) == set(TASKS) == set(TASK_FIELDS) and len(records) >= 800
    assert all(counts[task] >= 100 and held_out[task] >= 20 for task in TASKS)
    assert len({record.id for record in records}) == len(records)
    assert all(record.may_train and record.gold and record.license and record.attribution for record in records)
    assert len({" ".join(record.question.lower().split()) for record in records if record.task != "clinical_reasoning"}) == sum(
        record.task != "clinical_reasoning" for record in records
    )


@pytest.mark.parametrize("part", ["train", "test"])
def test_no_choice_can_be_won_by_always_saying_the_same(part):
    records = [record for record in Starter().fetch() if record.split == part]
    for name in FIELD_CHOICES:
        words = Counter(record.gold[name] for record in records if name in record.gold)
        assert max(words.values()) / words.total() <= 0.75, f"{name} in {part}: {dict(words)}"


@pytest.mark.parametrize(
    ("task", "change", "complaint"),
    [
        ("triage", lambda text: text[:-9], "expected one JSON object"),
        ("triage", lambda text: "[1]", "expected one JSON object, got list"),
        ("triage", lambda text: text.replace('"question"', '"qestion"'), "question"),
        ("triage", changed(split="tests"), "split"),
        ("triage", changed(key=""), "key"),
        ("triage", changed(options={"A": "x"}), "options belong to clinical_reasoning"),
        ("triage", field("triage", "ugrent"), "expected one of emergency, urgent, soon, routine, self-care"),
        ("triage", field("reason", " "), "expected one line of text"),
        ("triage", field("reason", "a\nb"), "expected one line of text"),
        ("triage", field("reason", 3), "reason"),
        ("triage", field("extra", "x"), "expected triage, reason, in this order"),
        ("medical_qa", field("answer", "word " * 50 + "end"), "51 words"),
        ("emergency_escalation", field("emergency", "Yes"), "expected one of yes, no"),
        ("safety_refusal", field("decision", "refused"), "expected one of refuse, answer"),
        ("clinical_reasoning", field("letter", "F"), "expected one of A, B, C, D, E"),
        ("clinical_reasoning", field("letter", "E"), "none of the options A, B, C, D"),
        ("clinical_reasoning", changed(options=None), "options belong to clinical_reasoning"),
        ("clinical_reasoning", changed(options={"F": "x"}), "options"),
        ("treatment_recommendation", changed(patient=None), "patient belong to treatment_recommendation"),
        ("treatment_recommendation", changed(patient={"age": 200, "sex": "male", "complaint": "x"}), "patient.age"),
        ("treatment_recommendation", field("education", "word " * 90 + "end"), "expected at most 90"),
        ("triage", changed(basis=""), "basis"),
        ("triage", changed(verdict="looks fine"), "verdict"),
        ("triage", changed(difficulty="nasty"), "difficulty"),
    ],
)
def test_a_broken_line_is_named_by_file_number_and_reason(starter, task, change, complaint):
    break_line(starter / f"{task}.jsonl", 7, change)
    with pytest.raises(InputError) as caught:
        list(Starter(starter).fetch())
    assert f"{task}.jsonl, line 7:" in str(caught.value) and complaint in str(caught.value)
    assert "correct or delete the line" in str(caught.value)


def test_an_answer_that_is_none_of_the_options(starter):
    path = starter / "clinical_reasoning.jsonl"
    break_line(path, 3, lambda text: changed(options={"A": "x", "B": "y"})(field("letter", "C")(text)))
    with pytest.raises(InputError, match="line 3: the answer is 'C', which is none of the options A, B"):
        read_lines(path)


def test_a_key_used_twice_even_in_two_files(starter):
    taken = json.loads((starter / "medical_qa.jsonl").read_text(encoding="utf-8").split("\n")[0])["key"]
    break_line(starter / "triage.jsonl", 2, changed(key=taken))
    with pytest.raises(InputError, match=f"triage.jsonl: the key '{taken}' is already taken in medical_qa.jsonl"):
        list(Starter(starter).fetch())


def test_a_missing_file_and_bytes_that_are_no_text(starter):
    (starter / "triage.jsonl").write_bytes(b'\n{"key": "\xff"}\n')
    with pytest.raises(InputError, match="triage.jsonl, line 2: expected one JSON object, .*0xff"):
        list(Starter(starter).fetch())
    (starter / "triage.jsonl").unlink()
    with pytest.raises(MissingError, match="has no triage.jsonl"):
        Starter(starter)


def test_windows_line_ends_and_empty_lines_do_no_harm(starter):
    path = starter / "triage.jsonl"
    before = read_lines(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_lines(path) == before


# --- MedQuAD -------------------------------------------------------------------------------------------------------------


def page(number, answer="An answer."):
    return (
        f'<Document id="{number}" source="Test" url="https://example.org/{number}"><Focus>topic {number}</Focus><QAPairs><QAPair pid="1">'
        f'<Question qid="{number}-1" qtype="information">What is {number} ?</Question><Answer>{answer}</Answer></QAPair></QAPairs></Document>'
    )


def make_archive(path, pages=None, root="MedQuAD-master"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (pages or {f"{n % 4 + 1}_Test_QA/{n:07d}.xml": page(n) for n in range(40)}).items():
            archive.writestr(f"{root}/{name}", text)
    return path


def collected(path, **options):
    return list(MedQuad(path).fetch(**options))


def test_an_entity_bomb_and_a_file_stealer_are_refused(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("PRIVATE")
    bomb = '<!DOCTYPE Document [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>' + page(1, "&b;")
    thief = f'<!DOCTYPE Document [<!ENTITY x SYSTEM "{secret.as_uri()}">]>' + page(1, "&x;")
    for text in (bomb, thief):
        found = collected(make_archive(tmp_path / "a.zip", {"1_QA/1.xml": text, "1_QA/2.xml": page(2)}))
        assert isinstance(found[0], Unread) and found[0].key == "1_QA/1.xml" and "declares entities" in found[0].reason
        assert "PRIVATE" not in found[0].reason and found[1].question == "What is 2 ?"


def test_a_broken_file_names_itself_and_loses_no_other(tmp_path):
    archive = make_archive(tmp_path / "a.zip", {"1_QA/1.xml": page(1), "1_QA/2.xml": page(2)[:-30], "1_QA/3.xml": "<html/>", "1_QA/4.xml": page(4)})
    found = collected(archive)
    assert [item.key for item in found if isinstance(item, Unread)] == ["1_QA/2.xml", "1_QA/3.xml"]
    assert [item.question for item in found if isinstance(item, Record)] == ["What is 1 ?", "What is 4 ?"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_document_is_read_or_unread_never_lost(data):
    "Cut, doubled, overwritten or inserted bytes: each pair that is there comes out, or the file says why not."
    content = bytearray((page(1, "Wash your hands. &amp; rest.") + "<!-- end -->").encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content)))
        kind = data.draw(st.sampled_from(["cut", "double", "insert", "overwrite"]))
        junk = data.draw(st.binary(max_size=8) | st.sampled_from([b"<", b"&x;", b"]]>", b"<QAPair/>", b"\x00", b"<!DOCTYPE a [<!ENTITY b 'c'>]>"]))
        content[place:] = {"cut": b"", "double": content[place:] * 2, "insert": junk + content[place:], "overwrite": junk + content[place + len(junk) :]}[kind]
    found = medquad.read_medquad_document(bytes(content), "1_QA/1.xml")
    assert all(isinstance(item, (Record, Unread)) for item in found)
    if not found:  # no pair in a whole document
        assert b"<QAPair" not in bytes(content) or b"<!--" in bytes(content)
    assert all(item.reason and item.key for item in found if isinstance(item, Unread))


def packed_as(kind, archive, folder):
    "The same files as a tar, compressed or not, or unpacked."
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "unpacked")
    if kind == "folder":
        return folder / "unpacked"
    path = folder / f"a.{kind}"
    with tarfile.open(path, {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[kind]) as made:
        made.add(folder / "unpacked", ".")
    return path


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tar.xz", "folder"])
def test_a_tar_and_a_folder_give_what_the_zip_gives(tmp_path, kind):
    archive = make_archive(tmp_path / "a.zip")
    other = packed_as(kind, archive, tmp_path)
    assert collected(other) == collected(archive)
    assert MedQuad(other).fingerprint() == MedQuad(archive).fingerprint()


def test_a_tar_that_climbs_links_or_breaks_off_does_no_harm(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as made:
        for name, link in (("../../1_QA/1.xml", ""), ("/1_QA/2.xml", ""), ("1_QA/3.xml", "/etc/passwd")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            content = b"" if link else page(1).encode()
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    assert [item.question for item in collected(path)] == ["What is 1 ?"] * 2  # the link is not followed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar"]
    whole = path.read_bytes()
    for length in (700, 1024, 2048, len(whole) - 9000):  # also between two files, where tarfile says nothing
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="a.tar is not a complete archive"):
            collected(path)


def test_archives_that_are_none(tmp_path):
    good = make_archive(tmp_path / "good.zip").read_bytes()
    for content in (b"", b"<html>Please log in</html>", good[: len(good) // 2]):
        (tmp_path / "bad.zip").write_bytes(content)
        for use in (lambda: MedQuad(tmp_path / "bad.zip").fingerprint(), lambda: collected(tmp_path / "bad.zip")):
            with pytest.raises(InputError, match="bad.zip is not a complete archive"):
                use()


def test_bytes_that_rotted_inside_are_noticed(tmp_path):
    good = make_archive(tmp_path / "a.zip").read_bytes()
    for place in range(0, 240, 12):  # headers and compressed bytes
        content = bytearray(good)
        content[place : place + 12] = bytes(byte ^ 0xFF for byte in content[place : place + 12])
        (tmp_path / "b.zip").write_bytes(content)
        try:
            assert collected(tmp_path / "b.zip") == collected(tmp_path / "a.zip")  # a time stamp was hit
        except InputError as error:
            assert "not a complete archive" in str(error)


def test_bombs_are_refused_by_their_table_of_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(medquad, "MOST_BYTES", 2_000_000)
    with pytest.raises(InputError, match="would unpack to more than 2 MB"):
        collected(make_archive(tmp_path / "a.zip", {"1_QA/1.xml": "x" * 3_000_000}))
    monkeypatch.setattr(medquad, "MOST_FILES", 10)
    with pytest.raises(InputError, match="would unpack to more"):
        collected(make_archive(tmp_path / "b.zip"))
    monkeypatch.undo()
    with pytest.raises(InputError, match="1_QA/1.xml has 6 MB"):
        collected(make_archive(tmp_path / "c.zip", {"1_QA/1.xml": "x" * 6_000_000}))


def test_a_path_that_points_out_of_the_archive_writes_nothing(tmp_path):
    archive = make_archive(tmp_path / "a.zip", {"../../1_QA/1.xml": page(1)})
    assert len(collected(archive)) == 1  # read in memory, under its own name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_empty_answers_come_along_and_white_space_stays(tmp_path):
    archive = make_archive(tmp_path / "a.zip", {"1_QA/1.xml": page(1, ""), "1_QA/2.xml": page(2, "a\n\n    b <b>c</b>")})
    assert [record.answer for record in collected(archive)] == ["", "a\n\n    b c"]


def test_a_limit_is_spread_grows_and_does_not_depend_on_how_it_was_zipped(tmp_path):
    one = make_archive(tmp_path / "one.zip")
    other = make_archive(tmp_path / "two.zip", {f"{n % 4 + 1}_Test_QA/{n:07d}.xml": page(n) for n in reversed(range(40))}, root="MedQuAD-577bd37")
    ids = [[record.id for record in collected(one, limit=limit)] for limit in (4, 12, 40, 100)]
    assert [len(found) for found in ids] == [4, 12, 40, 40]
    assert ids[0] == ids[1][:4] and ids[1] == ids[2][:12]
    assert len({record.url for record in collected(one, limit=12)}) == 12
    assert MedQuad(one).fingerprint() == MedQuad(other).fingerprint()
    assert collected(one, limit=12) == collected(other, limit=12)
    assert {record.id for record in collected(one)} == set(ids[2])


def test_a_download_is_made_once_and_a_failure_remembered(tmp_path):
    archive, asked = make_archive(tmp_path / "a.zip").read_bytes(), []

    class GitHub(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/archive"):  # GitHub sends you on to another address, and no length
                self.send_response(302)
                self.send_header("Location", "/codeload.zip")
                self.end_headers()
            else:
                self.send_response(404 if "gone" in self.path else 200)
                self.end_headers()
                self.wfile.write(b"<html>Please log in</html>" if "hotel" in self.path else archive)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), GitHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    for _ in range(2):
        with pytest.raises(MissingError, match="set MEDLAB_MEDQUAD_ARCHIVE"):
            downloaded_archive(address=f"{base}/gone.zip", folder=tmp_path / "x")
    with pytest.raises(MissingError, match="set MEDLAB_MEDQUAD_ARCHIVE"):
        downloaded_archive(address=f"{base}/hotel.zip", folder=tmp_path / "z")
    assert not list((tmp_path / "z").glob("*.zip"))
    assert asked == ["/gone.zip", "/hotel.zip"]
    for _ in range(2):
        path = downloaded_archive(address=f"{base}/archive.zip", folder=tmp_path / "y")
    assert asked[2:] == ["/archive.zip", "/codeload.zip"]
    assert len(collected(path)) == 40
    server.shutdown()
    server.server_close()


#: Folder to (pairs, with an answer) of data/medquad, as counted by hand.
OWN_PARTS = {
    "1_CancerGov_QA": (3, 3), "2_GARD_QA": (4, 2), "3_GHR_QA": (3, 3), "4_MPlus_Health_Topics_QA": (2, 2), "5_NIDDK_QA": (3, 3), "6_NINDS_QA": (3, 3), "7_SeniorHealth_QA": (2, 2),
    "8_NHLBI_QA_XML": (2, 2), "9_CDC_QA": (4, 4), "10_MPlus_ADAM_QA": (3, 0), "11_MPlusDrugs_QA": (2, 0), "12_MPlusHerbsSupplements_QA": (1, 0),
}  # fmt: skip


def test_an_archive_with_every_part_is_read_whole(tmp_path):
    "The twin of `test_the_real_archive_is_read_whole`: twelve parts, empty answers, a document without a pair and one in another form, a readme."
    archive = medquad_zip(tmp_path / "MedQuAD-master.zip", made_up_documents(60))
    items = collected(archive)
    records = [item for item in items if isinstance(item, Record)]
    ours = [record for record in records if not record.url.startswith("https://example.org/9")]
    counts = {part: [record for record in ours if record.labels["part"] == part] for part in OWN_PARTS}
    assert {part: (len(found), sum(bool(record.answer.strip()) for record in found)) for part, found in counts.items()} == OWN_PARTS
    assert len(items) == len(records) == len({record.id for record in records}) == 92 and len(ours) == 32
    files = [path for path in (FOLDER / "medquad").rglob("*.xml") if path.stem not in ("0000007", "0000008")]  # without a pair, in another form
    assert len({record.raw_sha256 for record in ours}) == len(files) == 14
    assert all(record.question.strip() and record.url and record.kind == "qa" and record.license == "CC-BY-4.0" for record in records)
    assert {record.subject for record in counts["9_CDC_QA"]} == {"Parasites - Towel Worm (also known as Threaded Zana)", "Towel Worm on Ships"}
    assert "\n                    - Zana gland cancer" in counts["1_CancerGov_QA"][0].answer  # white space as it was
    few = collected(archive, limit=40)
    assert len(few) == 40 and few == collected(archive, limit=60)[:40] != records[:40] and len({record.attribution for record in few}) >= 6


@pytest.mark.skipif(not MEDQUAD.exists(), reason="the MedQuAD archive is not at hand")
def test_the_real_archive_is_read_whole():
    records = collected(MEDQUAD)
    assert len(records) == len({record.id for record in records}) == 47_441
    assert sum(bool(record.answer.strip()) for record in records) == 16_407
    assert len({record.raw_sha256 for record in records}) > 11_000
    assert all(record.question.strip() and record.url and record.kind == "qa" for record in records)
    few = collected(MEDQUAD, limit=1000)
    assert len(few) == 1000 and len({record.attribution for record in few}) >= 10


# --- the step ------------------------------------------------------------------------------------------------------------


def test_both_sources_with_an_archive(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLAB_MEDQUAD_ARCHIVE", str(make_archive(tmp_path / "a.zip")))
    run, profile = open_run("smoke", tmp_path / "run", ["collect.sources=[starter, medquad]"])
    manifest = collect(run, profile)
    sources = {source.name: source for source in read_sources(run.file("collect", "sources.json"))}
    assert manifest.notes == [] and sources["medquad"].count == 40 and sources["medquad"].license == {"CC-BY-4.0": 40}
    assert Counter(record.source for record in read_records(run.file("collect", "records.parquet"))) == {"starter": sources["starter"].count, "medquad": 40}
    assert (sources["medquad"].may_train, sources["medquad"].unread) == (40, {})
    assert collect(run, profile) == manifest
    make_archive(tmp_path / "a.zip", {"1_QA/1.xml": page(1)})  # the archive was replaced
    assert collect.finished(run, profile) is None
    collect(run, profile)
    assert read_sources(run.file("collect", "sources.json"))[1].count == 1


def test_without_network_it_is_skipped_with_one_line_and_stays_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(medquad, "downloaded_archive", lambda offline: downloaded_archive(offline, "http://127.0.0.1:9/MedQuAD.zip"))
    run, profile = open_run("smoke", tmp_path / "run", ["collect.sources=[starter, medquad]"])
    manifest = collect(run, profile)
    assert len(manifest.notes) == 1 and "\n" not in manifest.notes[0]
    assert "medquad skipped" in manifest.notes[0] and "set MEDLAB_MEDQUAD_ARCHIVE" in manifest.notes[0]
    assert [source.status for source in read_sources(run.file("collect", "sources.json"))] == ["collected", "skipped"]
    assert manifest.incomplete and collect.finished(run, profile) is None  # whoever asks for it again means it
    assert collect.finished(run, profile, requested=False) == manifest  # a later step goes on with what there is
    monkeypatch.setenv("MEDLAB_MEDQUAD_ARCHIVE", str(make_archive(tmp_path / "a.zip")))
    assert collect(run, profile).notes == []  # it appeared
    assert collect.finished(run, profile) is not None


def test_an_archive_that_is_no_longer_named_does_not_shrink_a_finished_collection(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDLAB_MEDQUAD_ARCHIVE", str(make_archive(tmp_path / "a.zip")))
    run, profile = open_run("smoke", tmp_path / "run", ["collect.sources=[starter, medquad]", "collect.offline=true"])
    finished = collect(run, profile)
    monkeypatch.delenv("MEDLAB_MEDQUAD_ARCHIVE")
    with pytest.raises(MissingError, match="medquad was used for the finished result .*set MEDLAB_MEDQUAD_ARCHIVE.*add --replace"):
        collect(run, profile)
    assert run.manifest("collect") == finished and finished.missing == []
    assert Counter(record.source for record in read_records(run.file("collect", "records.parquet")))["medquad"] == 40
    monkeypatch.setenv("MEDLAB_REPLACE", "1")
    assert collect(run, profile).missing == ["medquad"]
    assert {record.source for record in read_records(run.file("collect", "records.parquet"))} == {"starter"}
    monkeypatch.delenv("MEDLAB_REPLACE")
    assert collect(run, profile).missing == ["medquad"]  # nothing is lost that was not lost before


def test_an_archive_named_on_the_command_line_and_then_forgotten_does_not_shrink_it_either(tmp_path):
    archive, words = make_archive(tmp_path / "a.zip"), ["collect.sources=[starter, medquad]", "collect.offline=true"]
    run, named = open_run("smoke", tmp_path / "run", [*words, f"collect.options={{medquad: {{archive: {archive}}}}}"])
    finished = collect(run, named)
    with pytest.raises(MissingError, match="medquad was used for the finished result .*add --replace"):
        collect(run, load_profile("smoke", words))
    assert run.manifest("collect") == finished
    without = load_profile("smoke", ["collect.sources=[starter]", "collect.offline=true"])
    assert collect(run, without).missing == []  # a source that nobody asks for is not missing
    assert collect(run, load_profile("smoke", words)).missing == ["medquad"]  # nor was it there before


def test_a_source_that_cannot_be_opened_any_more_is_named_with_the_reason(tmp_path, starter):
    values = ["collect.sources=[rough, starter]", f"collect.options={{starter: {{folder: {starter}}}}}"]
    run, profile = open_run("smoke", tmp_path / "run", values)
    finished = collect(run, profile)
    (starter / "triage.jsonl").unlink()
    prints = source_fingerprints(profile)
    assert prints["source starter"].startswith(f"{NOT_HERE}: {starter} has no triage.jsonl; ") and not prints["source rough"].startswith(NOT_HERE)
    with pytest.raises(MissingError, match="source starter was used .* has no triage.jsonl.*add --replace"):
        collect(run, profile)
    assert run.manifest("collect") == finished


def test_a_limit_of_its_own_makes_a_source_partial_and_is_said(tmp_path, pond, medlab):
    pond.default_limit = 3
    try:
        run, profile = open_run("smoke", tmp_path / "run", ["collect.sources=[pond]"])
        manifest, report = collect(run, profile), read_sources(run.file("collect", "sources.json"))[0]
        assert (report.status, report.count) == ("partial", 3) and "limit of 3 records was reached" in report.why and "collect.options.pond.limit" in report.why
        assert manifest.notes == [f"pond partial: {report.why}"] and not manifest.incomplete and manifest.missing == []  # the same command would give the same
        assert collect(run, profile) == manifest
        with pytest.raises(MissingError, match="pond is required and was partial: the limit of 3"):
            collect(*open_run("smoke", tmp_path / "required", ["collect.sources=[pond]", "collect.require=[pond]"]))
        for asked in ("collect.limit=3", "collect.options={pond: {limit: 3}}"):  # who asks for three has all that was asked for
            run, profile = open_run("smoke", tmp_path / asked, ["collect.sources=[pond]", "collect.require=[pond]", asked])
            collect(run, profile)
            report = read_sources(run.file("collect", "sources.json"))[0]
            assert (report.status, report.why) == ("collected", "the limit of 3 records was reached")
    finally:
        del pond.default_limit


def test_a_file_of_ones_own_is_collected_whole_and_a_limit_is_said(tmp_path, medlab):
    mine, words = tmp_path / "mine.csv", {"columns": {"question": "q", "answer": "a"}, "license": "MIT", "may_train": True}
    mine.write_text("q,a\n" + "".join(f"What is number {number}?,A thing.\n" for number in range(10_500)) + "too,many,cells\n")
    for limit, count, why in ((None, 10_500, None), (40, 40, "40 of its 10,501 rows were read; the rest with collect.options.hub/mine.limit")):
        options = json.dumps({"hub/mine": words | {"path": str(mine)} | ({"limit": limit} if limit else {})})
        done = medlab("collect", "--source", "hub/mine", "--require", "hub/mine", "--run", tmp_path / f"{limit}", "-p", f"collect.options={options}")
        assert done.returncode == 0, done.stderr
        report = read_sources(Run(tmp_path / f"{limit}").file("collect", "sources.json"))[0]
        assert (report.status, report.why) == ("collected", why) and abs(report.count - count) <= 1
        assert f"{report.count:,} records" in done.stdout and (why or "1 unread") in done.stdout
    mine.write_text("q,a\n1,2,3\n")
    refused = medlab("collect", "--source", "hub/mine", "--run", tmp_path / "r", "-p", f"collect.options={options}")
    assert refused.returncode != 0 and "became a record: one cell more than the header" in refused.stderr


@pytest.mark.parametrize("by", ["profile", "environment"])
def test_an_archive_that_is_named_but_absent_stops_the_run(tmp_path, monkeypatch, by):
    absent, values = tmp_path / "MedQuAD.zip", ["collect.sources=[starter, medquad]"]
    if by == "profile":
        values.append(f"collect.options={{medquad: {{archive: {absent}}}}}")
    else:
        monkeypatch.setenv("MEDLAB_MEDQUAD_ARCHIVE", str(absent))
    run, profile = open_run("smoke", tmp_path / "run", values)
    with pytest.raises(InputError, match="MedQuAD.zip, named by .*, does not exist"):
        collect(run, profile)
    assert run.manifest("collect") is None


def test_nothing_to_collect_is_an_error_not_an_empty_table(tmp_path):
    run, profile = open_run("smoke", tmp_path / "run", ["collect.sources=[medquad]", "collect.offline=true"])
    with pytest.raises(MissingError, match="no source gave a record .*offline is set"):
        collect(run, profile)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("collect.sources=[medqad]", "did you mean 'medquad'"),
        ("collect.sources=[]", r"expected at least one source, each of them once, such as \[starter, medquad\], got \[\]"),
        ("collect.source=[starter]", "did you mean 'sources'"),
        ("collect.limit=many", "limit"),
        ("collect.since=yesterday", "since"),
        ("collect.sources=[no_such_module:Source]", "No module named"),
        ("collect.limit=0", "greater than or equal to 1"),
        ("collect.since=9999-12-31", "has not come yet.*expected today or an earlier day, got .*9999"),
        ("collect.since=2020-13-45", "month must be in 1..12; expected a value in YAML"),
        ("collect.sources=[starter", "expected a value in YAML"),
        ("collect.require=[medquad]", "'medquad' is required and not among the sources starter"),
        ("collect.options={starter: {limit: 0}}", "starter: limit"),
        ("collect.options={starter: {limit: ten}}", "starter: limit"),
        ("collect.options={starter: {since: yesterday}}", "starter: since"),
        ("collect.options={starter: {since: 9999-12-31}}", "starter: since.*has not come yet"),
    ],
)
def test_a_slip_in_the_profile_is_named(setting, complaint):
    with pytest.raises(InputError, match=complaint):
        load_profile("smoke", [setting])


def test_equal_data_give_equal_bytes_in_two_processes(tmp_path):
    archive = make_archive(tmp_path / "a.zip")
    code = (
        "import sys; from medlab.core import open_run; from medlab.collect import collect\n"
        "run, profile = open_run('smoke', sys.argv[1], ['collect.sources=[starter, medquad]'])\n"
        "print(sorted((name, output.sha256) for name, output in collect(run, profile).outputs.items()))"
    )
    both = [
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, check=True,
            env={**os.environ, "MEDLAB_MEDQUAD_ARCHIVE": str(archive), "PYTHONHASHSEED": name},
        ).stdout
        for name in ("1", "2")
    ]
    assert both[0] == both[1] and "records.parquet" in both[0]


def test_what_a_missing_network_is_called_does_not_change_what_later_steps_see(tmp_path, monkeypatch):
    seen = []
    for number, words in enumerate(("connection refused", "name not known")):

        def unreachable(offline, words=words):
            raise MissingError(words)

        monkeypatch.setattr(medquad, "downloaded_archive", unreachable)
        run, profile = open_run("smoke", tmp_path / str(number), ["collect.sources=[starter, medquad]"])
        seen.append({name: output.content for name, output in collect(run, profile).outputs.items()})
    assert seen[0] == seen[1]


def test_a_fingerprint_asks_nobody_and_covers_the_settings(monkeypatch):
    monkeypatch.setattr(medquad, "downloaded_archive", lambda *_: pytest.fail("a fingerprint must not download"))

    def prints(*values):
        return source_fingerprints(load_profile("smoke", ["collect.sources=[starter, medquad]", *values]))

    assert prints() == prints("collect.offline=true", "seed=3")
    different = [prints()["source medquad"]]
    for value in ("collect.limit=5", "collect.since=2026-01-01", "collect.options={medquad: {limit: 6}}"):
        different.append(prints(value)["source medquad"])
    assert len(set(different)) == 4


class Pond:
    "A source for the tests; what it does is set from outside."

    name, license, may_train, behaviour = "pond", "CC0-1.0", True, "gives"

    def __init__(self, fetcher=None, depth=1):
        self.depth = depth

    def fingerprint(self):
        return str(self.depth)

    def fetch(self, since=None, limit=None):
        if self.behaviour == "dead":
            raise MissingError("the pond is dry")
        for number in range(limit or 3):
            if number == 1:
                yield Unread(source="pond", key="1", reason="mud: no text")
            yield Record(id=record_id("pond", str(number)), source="pond", kind="page", text=f"Frog {number} of {since}.", license="CC0-1.0",
                         may_train=number != 0, attribution="frogs")
            if self.behaviour == "dying":
                raise MissingError("the pond dried up")


@pytest.fixture
def pond(monkeypatch):
    monkeypatch.setitem(SOURCES, "pond", Pond)
    monkeypatch.setattr(Pond, "behaviour", "gives")
    return Pond


def test_one_dead_source_does_not_stop_the_others_unless_required(tmp_path, pond):
    for behaviour, status, count in (("dead", "skipped", 0), ("dying", "partial", 1), ("gives", "collected", 3)):
        pond.behaviour = behaviour
        run, profile = open_run("smoke", tmp_path / behaviour, ["collect.sources=[pond, starter]"])
        manifest, reports = collect(run, profile), {report.name: report for report in read_sources(run.file("collect", "sources.json"))}
        assert (reports["pond"].status, reports["pond"].count, reports["starter"].status) == (status, count, "collected")
        assert (len(manifest.notes), manifest.incomplete) == ((0, False) if behaviour == "gives" else (1, True))
        required = load_profile("smoke", ["collect.sources=[pond, starter]", "collect.require=[pond]"])
        if behaviour == "gives":
            collect(run, required)
        else:
            with pytest.raises(MissingError, match=f"pond is required and was {status}"):
                collect(open_run("smoke", tmp_path / f"required-{behaviour}")[0], required)


def test_a_source_that_quotes_its_key_is_reported_without_it(tmp_path, pond, monkeypatch):
    monkeypatch.setenv("NCBI_API_KEY", "ncbi-key-789")
    run, profile = open_run("smoke", tmp_path / "run", ["collect.sources=[pond, starter]"])

    def quotes(self, since=None, limit=None):
        raise MissingError("https://pond.example.org/?api_key=another-key&q=ncbi-key-789 cannot be reached")
        yield

    monkeypatch.setattr(Pond, "fetch", quotes)
    manifest = collect(run, profile)
    assert "pond skipped: https://pond.example.org/?api_key=***&q=*** cannot be reached" in manifest.notes
    assert files_with("ncbi-key-789", tmp_path) == [] == files_with("another-key", tmp_path)


def test_what_is_no_record_is_counted_and_listed(tmp_path, pond):
    run, profile = open_run("smoke", tmp_path / "run", ["collect.sources=[pond]", "collect.options={pond: {limit: 2, since: 2026-02-03}}"])
    collect(run, profile)
    report = read_sources(run.file("collect", "sources.json"))[0]
    assert (report.count, report.unread, report.may_train, report.license) == (2, {"mud": 1}, 1, {"CC0-1.0": 2})
    assert [(item.key, item.reason) for item in read_unread(run.file("collect", "unread.jsonl"))] == [("1", "mud: no text")]
    assert [record.text for record in read_records(run.file("collect", "records.parquet"))] == ["Frog 0 of 2026-02-03.", "Frog 1 of 2026-02-03."]


@pytest.mark.parametrize(
    ("options", "complaint"), [("{pond: {dept: 3}}", "did you mean 'depth'"), ("{pond: {fetcher: 3}}", "has no option 'fetcher'"), ("{pnd: {}}", "pnd")]
)
def test_an_option_that_no_source_has_is_named(tmp_path, pond, options, complaint):
    with pytest.raises(InputError, match=complaint):
        open_run("smoke", tmp_path / "run", ["collect.sources=[pond]", f"collect.options={options}"])
    assert not (tmp_path / "run").exists()


def test_the_command_takes_what_a_person_would_type(tmp_path, medlab):
    archive = make_archive(tmp_path / "a.zip")
    words = ["collect", "--source", "starter", "--source", "medquad", "--limit", "7", "--since", "2020-01-01", "--offline", "--require", "medquad", "--run", tmp_path / "r"]
    done = medlab(*words, MEDLAB_MEDQUAD_ARCHIVE=str(archive))
    assert done.returncode == 0, done.stderr
    assert "starter" in done.stdout and "7 records" in done.stdout
    refused = medlab("collect", "--source", "medquad", "--require", "medquad", "--offline", "--run", tmp_path / "s", MEDLAB_CACHE_DIR=str(tmp_path / "none"))
    assert refused.returncode != 0 and "medquad is required and was skipped" in refused.stderr and "Traceback" not in refused.stderr
    unknown = medlab("collect", "--source", "medqad", "--run", tmp_path / "t")
    assert unknown.returncode != 0 and "did you mean 'medquad'" in unknown.stderr


# --- a collection under attack -------------------------------------------------------------------------------------------


def command(run, url, *more, **options):
    options = json.dumps({"openfda": {"base_url": url, "page_size": 5, "limit": 40} | options})
    words = ["collect", "--source", "openfda", "--source", "starter", "--run", str(run), "-p", f"collect.options={options}", *more]
    return [sys.executable, "-m", "medlab.course", *words]


def files_with(text, *folders):
    return [path for folder in folders for path in folder.rglob("*") if text in path.name or (path.is_file() and text.encode() in path.read_bytes())]


def test_a_collection_killed_again_and_again_asks_for_nothing_twice_and_leaves_nothing_behind(tmp_path):
    env = {**os.environ, "MEDLAB_CACHE_DIR": str(tmp_path / "cache")}
    with OpenFdaServer(labels(60)) as server:
        for kill in range(6):
            child = subprocess.Popen(command(tmp_path / "killed", server.url), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            before, deadline = len(server.asked), time.monotonic() + 30
            while len(server.asked) <= before + kill % 3 and child.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            child.kill()
            child.wait()
        assert subprocess.run(command(tmp_path / "killed", server.url), env=env, capture_output=True).returncode == 0
        asked = Counter(one.target for one in server.asked)
        assert len(asked) == 8 and asked.total() <= 8 + 6  # at most the one that was on its way, each time
        alone = subprocess.run(command(tmp_path / "undisturbed", server.url, "--offline"), env=env, capture_output=True)
        assert alone.returncode == 0 and asked.total() == len(server.asked)
    names = {"records.parquet", "unread.jsonl", "sources.json", "manifest.json", ".begun"}
    assert {path.name for path in (tmp_path / "killed" / "collect").iterdir()} == names
    for name in ("records.parquet", "unread.jsonl"):
        assert sha256_file(tmp_path / "killed" / "collect" / name) == sha256_file(tmp_path / "undisturbed" / "collect" / name), name


def test_what_a_source_is_sent_instead_of_data_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(Fetcher, "limit", lambda self, host, *_, **__: self.buckets.__setitem__(host_of(host), Bucket(1000)))
    answers = {"away": redirect("https://elsewhere.example.org/"), "file": redirect("file:///etc/passwd"), "bomb": gzip_bomb(60_000_000), "page": wrong_type()}
    for name, answer in answers.items():
        with Server(lambda asked, answer=answer: answer) as server:
            run, profile = open_run("smoke", tmp_path / name, ["collect.sources=[openfda, starter]", f"collect.options={{openfda: {{base_url: '{server.url}'}}}}"])
            collect(run, profile)
        assert [report.status for report in read_sources(run.file("collect", "sources.json"))] == ["skipped", "collected"]


@pytest.mark.parametrize("key", ["good-key-123", "bad+key/456"])
def test_a_key_is_in_no_file_and_in_no_line(tmp_path, key):
    env = {**os.environ, "MEDLAB_CACHE_DIR": str(tmp_path / "cache"), "OPENFDA_API_KEY": key}
    with OpenFdaServer(labels(60), keys=("good-key-123",)) as server:
        done = subprocess.run(command(tmp_path / "run", server.url, limit=10), env=env, capture_output=True, text=True)
        assert done.returncode == 0 and key == server.asked[0].query["api_key"]
    assert ("openfda: collected" in done.stdout) == key.startswith("good")
    assert key not in done.stdout + done.stderr and files_with(key, tmp_path) == []
    assert all(key not in str(record.model_dump()) for record in read_records(Run(tmp_path / "run").file("collect", "records.parquet")))


def test_offline_opens_no_socket_whatever_the_source(tmp_path):
    names = ["starter", "openfda", "pubmed", "medlineplus", "cdc", "nhs", "medquad", "medmcqa", "pubmedqa", "medqa"]
    code = """
import socket, sys
def refuse(*given, **_):
    print("A SOCKET:", given)
    raise SystemExit(9)
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from medlab.cli.commands import main
main()
"""
    words = [word for name in names for word in ("--source", name)]
    done = subprocess.run(
        [sys.executable, "-c", code, "collect", "--offline", *words, "--run", str(tmp_path / "run")],
        env={**os.environ, "MEDLAB_CACHE_DIR": str(tmp_path / "cache")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "A SOCKET" not in done.stdout, done.stderr
    reports = {report.name: report for report in read_sources(Run(tmp_path / "run").file("collect", "sources.json"))}
    assert list(reports) == names and {name for name, report in reports.items() if report.status == "collected"} == {"starter"}
    assert all(report.why for name, report in reports.items() if name != "starter")


def test_the_cache_may_stand_anywhere_and_says_where_it_cannot(tmp_path, medlab):
    (tmp_path / "file").write_text("not a folder")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        done = medlab("collect", "--source", "starter", "--run", tmp_path / "a", MEDLAB_CACHE_DIR=str(place))
        assert done.returncode == 1 and "cannot write to" in done.stderr and "MEDLAB_CACHE_DIR" in done.stderr and "Traceback" not in done.stderr
    assert "cannot write to" in medlab("collect", "--run", tmp_path / "file" / "run", MEDLAB_CACHE_DIR=str(tmp_path / "c")).stderr
    env = {**os.environ, "MEDLAB_CACHE_DIR": "a cache/\u00fcber uns", "HOME": str(tmp_path / "home")}
    with OpenFdaServer(labels(5)) as server:
        done = subprocess.run(command(tmp_path / "b", server.url, limit=2), env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and list((tmp_path / "a cache" / "\u00fcber uns" / "raw").glob("notes/*/*.json")), done.stderr
    code = "import os; from medlab.basics.files import cache_folder; print(cache_folder()); os.chdir('/'); print(cache_folder())"
    for place, expected in (("rel", tmp_path / "rel"), ("~/mine", tmp_path / "home" / "mine")):
        done = subprocess.run([sys.executable, "-c", code], env=env | {"MEDLAB_CACHE_DIR": place}, cwd=tmp_path, capture_output=True, text=True)
        assert done.stdout.split() == [str(expected)] * 2


def test_the_bar_shows_records_requests_waits_and_what_is_left(capsys):
    fetcher = types.SimpleNamespace(counts=Counts(requests=3, from_store=4, waited=2.0))
    slow = (time.sleep(0.4) or number for number in range(5))
    assert list(progress("openfda", slow, 9, fetcher)) == list(range(5))
    assert "collect openfda" in (said := capsys.readouterr().err) and "/9" in said and "3 requested, 4 from the store, 2 s waited" in said


def test_the_help_page_teaches(medlab):
    said = " ".join(medlab("collect", "--help").stdout.split())
    for word in ("skipped with the reason", "MEDLAB_CACHE_DIR", "medlab collect --source openfda --source pubmed --limit 200", "--require pubmed", "unread.jsonl"):
        assert word in said
