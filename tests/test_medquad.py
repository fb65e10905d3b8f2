"MedQuAD's archives and documents that are odd without being hostile, or hostile without looking it: nothing is lost without a word."

import io
import os
import struct
import tarfile
import zipfile

import pytest

from medlab.basics.errors import InputError
from medlab.contracts.records import Record, Unread
from medlab.sources import medquad
from medlab.sources.medquad import MedQuad, read_medquad_document


def page(number, answer="An answer."):
    return (
        f'<Document id="{number}" source="Test" url="https://example.org/{number}"><Focus>topic {number}</Focus><QAPairs><QAPair pid="1">'
        f'<Question qid="{number}-1" qtype="information">What is {number} ?</Question><Answer>{answer}</Answer></QAPair></QAPairs></Document>'
    )


def zipped(path, *files, **options):
    with zipfile.ZipFile(path, "w", **options) as made:
        for name, text in files:
            made.writestr(name, text)
    return path


def asked(found):
    return [item.question for item in found if isinstance(item, Record)]


def unread(found):
    return {item.key: item.reason for item in found if isinstance(item, Unread)}


# --- documents -----------------------------------------------------------------------------------------------------------


def test_a_qid_that_comes_twice_gives_one_record_and_one_reason():
    "Two records with one id would end the whole collection."
    both = page(1).replace("</QAPairs>", '<QAPair><Question qid="1-1">Who is 1 ?</Question><Answer>x</Answer></QAPair></QAPairs>')
    found = read_medquad_document(both.encode(), "1_QA/1.xml")
    assert asked(found) == ["What is 1 ?"] and "comes a second time" in found[1].reason


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("<QAPair><Question qid='2'>a</Question><Question qid='3'>b</Question><Answer>x</Answer></QAPair>", "2 questions and 1 answers"),
        ("<QAPair><Question qid='2'>a</Question><Answer>x</Answer><Answer>y</Answer></QAPair>", "1 questions and 2 answers"),
        ("<QAPair><Question>a</Question><Answer>x</Answer></QAPair>", "without <Question"), ("<QAPair/>", "without <Question"),
    ],
)  # fmt: skip
def test_a_pair_that_is_none_is_unread_and_the_others_stay(pair, said):
    found = read_medquad_document(page(1).replace("</QAPairs>", f"{pair}</QAPairs>").encode(), "1_QA/1.xml")
    assert asked(found) == ["What is 1 ?"] and said in found[1].reason


def test_comments_and_instructions_are_no_part_of_an_answer_and_encodings_are_read():
    assert read_medquad_document(page(1, "a<!-- (c) --> b<?x y?> c").encode(), "1_QA/1.xml")[0].answer == "a b c"
    for data in (b"\xef\xbb\xbf" + page(1, "café").encode(), ('<?xml version="1.0" encoding="UTF-16"?>' + page(1, "café")).encode("utf-16")):
        assert read_medquad_document(data, "1_QA/1.xml")[0].answer == "café"
    assert "broken XML" in read_medquad_document(page(1, "café").encode("latin-1"), "1_QA/1.xml")[0].reason


@pytest.mark.parametrize("how", ["deep", "utf-16", "many attributes"])
def test_bombs_of_other_kinds_are_refused_or_read_but_never_felt(how):
    laughs = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE d [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>' + page(1, "&b;")
    data = {
        "deep": ("<Document>" * 100_000).encode(), "utf-16": laughs.encode("utf-16"),
        "many attributes": ("<Document " + " ".join(f"a{n}=''" for n in range(50_000)) + "/>").encode(),
    }[how]  # fmt: skip
    found = read_medquad_document(data, "1_QA/1.xml")
    assert all(isinstance(item, Unread) for item in found) and (found or how == "many attributes")


# --- zips ----------------------------------------------------------------------------------------------------------------


def test_two_files_of_one_name_are_said(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path / "a.zip", ("M/1_QA/1.xml", page(1)), ("M/1_QA/1.xml", page(2)), ("copy/1_QA/1.xml", page(3)), ("M/1_QA/4.xml", page(4)))
    found = list(MedQuad(path).fetch())
    assert asked(found) == ["What is 1 ?", "What is 4 ?"]
    assert unread(found) == dict.fromkeys(["M/1_QA/1.xml", "copy/1_QA/1.xml"], "a second file of that name: the first one is read")


def test_a_nested_zip_and_a_link_in_a_zip_are_no_pages(tmp_path):
    inner = zipped(tmp_path / "inner.zip", ("1_QA/1.xml", page(1))).read_bytes()
    with pytest.raises(InputError, match="no MedQuAD files"):
        MedQuad(zipped(tmp_path / "outer.zip", ("1_QA/inner.zip", inner))).fingerprint()
    link = zipfile.ZipInfo("1_QA/2.xml")
    link.external_attr = 0o120777 << 16
    found = list(MedQuad(zipped(tmp_path / "a.zip", ("1_QA/1.xml", page(1)), (link, "/etc/passwd"))).fetch())
    assert asked(found) == ["What is 1 ?"] and "broken XML" in unread(found)["1_QA/2.xml"]  # its text is a path, and nobody goes there


@pytest.mark.parametrize(("how", "said"), [("encrypted", "is encrypted"), ("checksum", "not a complete archive"), ("method", "not a complete archive"), ("size", "not a complete archive")])
def test_members_that_cannot_be_read_are_reported(tmp_path, how, said):
    path = zipped(tmp_path / "a.zip", ("1_QA/1.xml", page(1) * 3), compression=zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    for start, flags, method, crc, size in ((0, 6, 8, 14, 22), (central, 8, 10, 16, 24)):
        place, value = {
            "encrypted": (flags, b"\x01\x00"), "method": (method, b"\x63\x00"), "checksum": (crc, b"\x00\x00\x00\x00"), "size": (size, struct.pack("<I", 50)),
        }[how]  # fmt: skip
        content[start + place : start + place + len(value)] = value
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        list(MedQuad(path).fetch())


# --- tars ----------------------------------------------------------------------------------------------------------------


def tarred(path, *members, mode="w"):
    with tarfile.open(path, mode) as made:
        for name, kind, given in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            content = given.encode() if kind == tarfile.REGTYPE else b""
            member.size, member.linkname = len(content), "" if content else given
            made.addfile(member, io.BytesIO(content))
    return path


def test_a_hard_link_is_a_file_and_a_device_is_none(tmp_path):
    path = tarred(
        tmp_path / "a.tar", ("M/1_QA/1.xml", tarfile.REGTYPE, page(1)), ("M/2_QA/1.xml", tarfile.LNKTYPE, "M/1_QA/1.xml"),
        ("M/2_QA/2.xml", tarfile.LNKTYPE, "/etc/passwd"), ("M/2_QA/3.xml", tarfile.CHRTYPE, ""), ("M/2_QA/4.xml", tarfile.FIFOTYPE, ""),
        ("M/2_QA/5.xml", tarfile.SYMTYPE, "../1_QA/1.xml"), ("M/1_QA/1.xml", tarfile.REGTYPE, page(9)),
    )  # fmt: skip
    found = list(MedQuad(path).fetch())
    assert asked(found) == ["What is 1 ?"] * 2 and len({item.id for item in found if isinstance(item, Record)}) == 2
    assert {key: reason[:13] for key, reason in unread(found).items()} == {"M/2_QA/2.xml": "a link to a f", "M/1_QA/1.xml": "a second file"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar"]


def test_a_tar_is_read_as_a_stream_and_a_bomb_is_left_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(medquad, "MOST_BYTES", 3_000_000)
    path = tarred(tmp_path / "a.tar.gz", *((f"other/{n}.txt", tarfile.REGTYPE, "0" * 1_000_000) for n in range(40)), mode="w:gz")
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match="would unpack to more than 3 MB"):
        MedQuad(path).fingerprint()


def test_a_tar_whose_checksum_is_wrong_is_said(tmp_path):
    path = tarred(tmp_path / "a.tar.gz", ("1_QA/1.xml", tarfile.REGTYPE, page(1)), mode="w:gz")
    path.write_bytes(path.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(InputError, match="a.tar.gz is not a complete archive"):
        list(MedQuad(path).fetch())


# --- folders and options -------------------------------------------------------------------------------------------------


def test_a_folder_with_a_pipe_and_a_link_to_nowhere(tmp_path):
    folder = tmp_path / "MedQuAD" / "1_QA"
    folder.mkdir(parents=True)
    (folder / "1.xml").write_text(page(1))
    os.mkfifo(folder / "2.xml")  # reading it would wait for ever
    (folder / "3.xml").symlink_to("gone.xml")
    found = list(MedQuad(tmp_path / "MedQuAD").fetch())
    assert asked(found) == ["What is 1 ?"] and len(unread(found)) == 2 and set(unread(found).values()) == {"not a file, or a broken link"}


@pytest.mark.parametrize("archive", [5, ["a.zip"], True])
def test_an_archive_that_is_no_path(archive):
    with pytest.raises(InputError, match="expected the path"):
        MedQuad(archive)
