"MedQuAD's archives and documents that are odd without being hostile, or hostile without looking it: nothing is lost without a word."

import io
import os
import re
import struct
import tarfile
import zipfile

import pytest
from own_data import medquad_zip

from medlab.basics.errors import InputError
from medlab.contracts.records import Record, Unread
from medlab.sources import medquad
from medlab.sources.medquad import MedQuad, read_medquad_document
from medlab.sources.medquad_tables import readable_answer, signs_by_share
from medlab.sources.medquad_text import mended_answer, page_words


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


# --- tables of signs -----------------------------------------------------------------------------------------------------

HEAD = "What are the signs and symptoms of it? The Human Phenotype Ontology provides the following list of signs and symptoms. "
COLUMNS = "Signs and Symptoms Approximate number of patients (when available) "
TAIL = " The Human Phenotype Ontology (HPO) has collected information on it. The sign or symptom may be rare or common."


@pytest.mark.parametrize("share,word", [
    ("100%", "Always"), ("99%", "Very often"), ("90%", "Very often"), ("80%", "Very often"), ("79%", "Often"), ("75%", "Often"), ("50%", "Often"), ("33%", "Often"),
    ("30%", "Often"), ("29%", "Sometimes"), ("7.5%", "Sometimes"), ("5%", "Sometimes"), ("4%", "Very rarely"), ("1.5%", "Very rarely"), ("1%", "Very rarely"),
    ("2/3", "2 of 3 reported patients"), ("-", "Signs and symptoms"),
])  # fmt: skip
def test_a_share_is_a_class_of_frequency_and_no_measured_rate(share, word):
    answer, flags = readable_answer(f"{HEAD}{COLUMNS}Stiff sleeve sign {share}{TAIL}")
    assert answer.endswith(f"{word}: Stiff sleeve sign") and flags == ["list of terms"]
    assert "%" not in answer and "About" not in answer


def test_an_excluded_sign_is_no_sign():
    assert readable_answer(f"{HEAD}{COLUMNS}Cough 0% Rash 50% Gout 0/7{TAIL}")[0].endswith("\nOften: Rash")


@pytest.mark.parametrize("term", [
    "Autosomal recessive inheritance", "Autosomal dominant inheritance with maternal imprinting", "X-linked inheritance", "Mitochondrial inheritance", "Multifactorial inheritance",
    "Onset", "Adult onset", "Infantile onset", "Middle age onset", "Young adult onset", "Late onset", "Insidious onset", "Onset in childhood", "Death in infancy",
    "Neonatal death", "Sudden death", "Sudden cardiac death", "Early death", "Death in early adulthood", "Stillbirth", "Lethal", "Perinatal lethality", "Juvenile mortality", "Sporadic",
    "Heterogeneous", "Progressive", "Slow progression", "Rapidly progressive", "Nonprogressive", "Phenotypic variability", "Variable expressivity", "Incomplete penetrance",
    "Somatic mutation", "Somatic mosaicism", "Genetic anticipation", "Genetic anticipation with paternal anticipation bias", "Contiguous gene syndrome", "Familial predisposition",
])  # fmt: skip
def test_inheritance_onset_death_and_course_are_no_signs(term):
    assert signs_by_share(f"{term} - Cough - {term} 90% Rash 90%") == {"-": ["Cough"], "90%": ["Rash"]}


@pytest.mark.parametrize("term", [
    "Maturity-onset diabetes of the young", "Childhood-onset truncal obesity", "Early onset of sexual maturation", "Joint swelling onset late infancy", "Progressive microcephaly",
    "Intellectual disability, progressive", "Increased variability in muscle fiber diameter", "Lethal skeletal dysplasia", "Neonatal hypotonia", "Congenital cataract",
    "Progressive external ophthalmoplegia", "Expressive language delay", "Acute leukemia", "Penetrating foot ulcers",
])  # fmt: skip
def test_signs_that_only_sound_like_it_stay(term):
    assert signs_by_share(f"{term} 90%") == {"90%": [term]}


def test_a_table_without_any_sign_and_one_below_prose():
    only = f"{HEAD}{COLUMNS}Autosomal recessive inheritance - Adult onset -{TAIL}"
    assert readable_answer(only) == (only, ["only_a_table"])
    answer, flags = readable_answer(f"It makes the elbow stiff and yellow. {HEAD}{COLUMNS}Cough 90% Rash 7.5%{TAIL}")
    assert flags == [] and answer.split("\n")[1:] == ["Very often: Cough", "Sometimes: Rash"] and answer.startswith("It makes the elbow stiff")


# --- answers to other questions ------------------------------------------------------------------------------------------


def aspects(*pairs, focus="Glass Wrist"):
    "For each (aspect, answer) of one page, whether it is flagged."
    body = "".join(
        f'<QAPair><Question qid="1-{n}" qtype="{aspect}">What about {focus} ?</Question><Answer>{answer}</Answer></QAPair>' for n, (aspect, answer) in enumerate(pairs)
    )
    data = f'<Document id="1" source="Test" url="https://example.org"><Focus>{focus}</Focus><QAPairs>{body}</QAPairs></Document>'
    found = read_medquad_document(data.encode(), "7_SeniorHealth_QA/1.xml")
    assert all((pair.subject, pair.labels) == (focus, {"part": "7_SeniorHealth_QA"}) for pair in found) and [pair.aspect for pair in found] == [aspect for aspect, _ in pairs]
    return [pair.flags == ["other_aspect"] for pair in found]


DEFINITION = ("information", "Glass wrist is a disease that makes the wrist break.")


@pytest.mark.parametrize("answer", [
    "A Wrist That Breaks Glass wrist occurs when the bone is thin.", "Glass wrist, also called brittle wrist, is a disease.", "Glass wrist (GW) means that bone is lost.",
    "GW is a disease of bone.", "In glass wrist, the bone is thin.", "What Is It? Glass wrist is a disease.", "Bone loss of the wrist is called glass wrist.",
    "The glass wrist is a rare disease.", "Glass wrist usually affects both hands.",
])  # fmt: skip
def test_several_answers_may_say_what_it_is(answer):
    assert aspects(DEFINITION, ("information", answer)) == [False, False]


@pytest.mark.parametrize("answer", [
    "Hearing aids are paid for by some insurers.", "The wrist is a joint of eight bones.", "Dry GW occurs when no fluid is left.", "Glass wrist is often treated with chalk.",
    "The main drug for glass wrist is chalk.", "National Wrist Institute 12 Hand Road Palmville 301-555-0100", "People should do exercises, such as waving.", "Yes. It can be found early.",
    "More information on glass wrist is available at: www.example.org", "The test measures how much the wrist bends. Glass wrist is a disease.", "Glass wrist has three stages.",
])  # fmt: skip
def test_an_information_answer_that_says_something_else_is_flagged(answer):
    assert aspects(DEFINITION, ("information", answer)) == [False, True]
    assert aspects(("information", answer)) == [answer.startswith("Yes.")]  # alone, nothing shows that a heading was lost


@pytest.mark.parametrize("focus,answer", [
    ("What I need to know about Kidney Stones", "A kidney stone is a hard piece of material."), ("Kidney Stones in Children", "Kidney stones are hard pieces of material."),
    ("Peripheral Arterial Disease (P.A.D.)", "Peripheral arterial disease (P.A.D.) is a disease of the arteries."), ("Gum (Periodontal) Disease", "Gum disease is an infection of the gums."),
    ("Alzheimer's Disease", "Alzheimers disease is a disease of the brain."), ("Prostate Enlargement: Benign Prostatic Hyperplasia", "Benign prostatic hyperplasia is a condition in men."),
    ("COPD", "COPD is a disease of the lungs."), ("Age-related Macular Degeneration", "Age-related macular degeneration, also known as AMD, is an eye disease."),
])  # fmt: skip
def test_a_subject_is_known_by_its_other_names(focus, answer):
    assert aspects(("information", answer), ("information", "Insurance pays for it."), focus=focus) == [False, True]


@pytest.mark.parametrize("aspect,answer,wrong", [
    ("prevention", "Causes of Glass Wrist Glass wrist happens when bone is lost.", True), ("causes", "Who Is at Risk? All people above sixty are.", True),
    ("treatment", "Diagnosing GW Diagnosing GW in a child is difficult.", True), ("prevention", "What Causes It? The most common cause is a fall.", True),
    ("causes", "Yes. Many drugs can cause it.", True), ("considerations", "- Glass wrist is a disease. - It is rare.", True), ("treatment", "Progress ends in death within a year.", True),
    ("causes", "Causes of Glass Wrist Glass wrist happens when bone is lost.", False), ("treatment", "Treatment for glass wrist can differ from person to person.", False),
    ("symptoms", "Symptoms of Glass Wrist Glass wrist can hurt.", False), ("considerations", "You should ask your doctor about chalk.", False), ("treatment", "Rest helps.", False),
    ("inheritance", "Anything at all.", False), ("treatment", "", False), ("prevention", "Topic 1 is made up.", False),
])  # fmt: skip
def test_an_answer_to_another_aspect_is_flagged(aspect, answer, wrong):
    assert aspects((aspect, answer)) == [wrong]


def test_an_aspect_that_a_page_has_twice_must_be_spoken_of():
    assert aspects(("treatment", "Drugs and surgery are the treatments."), ("treatment", "Choose a nurse whom you like."), ("symptoms", "You need help.")) == [False, True, False]


def test_a_yes_answers_a_question_that_asks_for_yes():
    asked = '<Document><Focus>X</Focus><QAPair><Question qid="1" qtype="inheritance">Is X inherited ?</Question><Answer>Yes. It runs in families.</Answer></QAPair></Document>'
    assert read_medquad_document(asked.encode(), "2_GARD_QA/1.xml")[0].flags == []


def test_an_archive_of_ours_has_no_measured_rates_and_its_collapsed_headings_are_found(tmp_path):
    "The twin of `test_the_real_archive_has_no_measured_rates_and_its_collapsed_headings_are_found`."
    collapsed = "".join(f'<QAPair><Question qid="77-{number}" qtype="information">What is (are) Glass Wrist ?</Question><Answer>{answer}</Answer></QAPair>'
                        for number, answer in enumerate((DEFINITION[1], "The wrist is a joint of eight bones.", "Hearing aids are paid for by some insurers.")))
    body = f'<Document id="77" source="NIHSeniorHealth" url="https://example.org/77"><Focus>Glass Wrist</Focus><QAPairs>{collapsed}</QAPairs></Document>'
    pairs = [pair for pair in MedQuad(medquad_zip(tmp_path / "MedQuAD-master.zip", [("7_SeniorHealth_QA/0000077.xml", body)])).fetch() if isinstance(pair, Record) and pair.answer]
    assert not [pair.answer for pair in pairs if "About 90%" in pair.answer or re.search(r"\d%", pair.answer)]
    assert [pair.subject for pair in pairs if pair.flags == ["list of terms"]] == ["Yellow elbow syndrome"]
    senior = {pair.answer: pair.flags for pair in pairs if pair.labels["part"] == "7_SeniorHealth_QA" and pair.aspect == "information"}
    assert len(senior) == 4 and [answer.partition(" is ")[0] for answer, flags in senior.items() if not flags] == ["Quiet ear", "Glass wrist"]


def test_the_real_archive_has_no_measured_rates_and_its_collapsed_headings_are_found(shared_data):
    pairs = [pair for pair in MedQuad(shared_data / "MedQuAD-master.zip").fetch() if isinstance(pair, Record) and pair.answer]
    assert not [pair.answer for pair in pairs if "About 90%" in pair.answer] and sum(pair.flags == ["list of terms"] for pair in pairs) == 1896
    senior = [pair for pair in pairs if pair.labels["part"] == "7_SeniorHealth_QA" and pair.aspect == "information"]
    kept = [pair for pair in senior if not pair.flags]
    assert len(senior) == 267 and 40 < len(kept) < 80


@pytest.mark.parametrize("lost,mended", [
    ("A swelling calledmushroomitis hurts.", "A swelling called mushroomitis hurts."), ("Treat acornitis, forrobinitis rest.", "Treat acornitis, for robinitis rest."),
    ("It harms the pelvisthe ring of bones.", "It harms the pelvis—the ring of bones."), ("It is acornitisswelling of a nut.", "It is acornitis—swelling of a nut."),
    ("A change in habitsswelling or mushroomitis.", "A change in habits—swelling or mushroomitis."), ("The medicinessuch as salt are mild.", "The medicines such as salt are mild."),
    ("The acornitis (ACN)is mild.", "The acornitis (ACN) is mild."),
    ("It is in the DNAwithin the cells.", "It is in the DNA within the cells."), ("A rehearsal(second try) helps.", "A rehearsal (second try) helps."),
    ("The patients age counts; the patients rest.", "The patient's age counts; the patients rest."), ("It harms the hearts structure.", "It harms the heart's structure."),
    ("Made of gamma ()-acornin. The -acornin protein binds.", "Made of gamma-acornin. The gamma-acornin protein binds."), ("It rains..When it rains, wait.", "It rains. When it rains, wait."),
])
def test_characters_that_were_lost_are_put_back_where_the_page_shows_them(lost, mended):
    known = page_words(f"{lost} mushroomitis robinitis pelvis acornitis swelling medicines habits")
    assert mended_answer(lost, known) == mended and mended_answer(mended, known) == mended


@pytest.mark.parametrize("whole", [
    "Forgetting and withholding, whereas the tibialis and the suppressor stay.", "The inhibitor, the herpesvirus and the heartbeat of a byproduct.", "The sarco(endo)plasmic gene(s) and (MU)scle.",
    "The patients took it, and the doctors said so.", "American and Korean children.", "A 2 (two) - no more."])
def test_words_that_only_look_like_two_stay(whole):
    known = page_words("getting holding where tibial suppress inhibit heart beat product america korea heartb herpes virus")
    assert mended_answer(whole, known) == whole


def test_a_page_is_read_with_its_lost_characters():
    found = read_medquad_document(page(1, "The liver. A disease calledhepatosis harms the livers. Hepatosis is rare: hepatosis").encode(), "9_X_QA/1.xml")
    assert "called hepatosis" in found[0].answer


WORDS = dict.fromkeys(
    "stroke acorn acorns tract robin robins gallstones small swelling foods into sugars carbohydrates may which motor cycle heart valves week ends risk high growth pain often "
    "friends hips".split(), 80)


@pytest.mark.parametrize("glued,spaced,dashed", [
    ("gallstonessmall", "gallstones small", "gallstones—small"), ("tractmay", "tract may", "tract—may"), ("painoften", "pain often", "pain—often"),
    ("carbohydratessugars", "carbohydrates sugars", "carbohydrates—sugars"), ("foodsinto", "foods into", "foods into"), ("highrisk", "high-risk", "high-risk"),
    ("gallstonesa", "gallstones a", "gallstones—a"), ("heartvalves", "heart valves", "heart—valves"),
    ("motorcycle", None, None), ("weekends", None, None), ("friendships", None, None), ("heartworm", None, None),
])
def test_words_that_the_whole_archive_shows_to_be_two_are_separated(glued, spaced, dashed):
    text = f"The heart valves hurt. It is {glued} here, at https://{glued}.org and in {glued.upper()}."
    for between, right in ((" ", spaced), ("—", dashed)):
        mended = mended_answer(text, set(), WORDS | {glued: 1}, between)
        assert mended == text.replace(f" {glued} ", f" {right or glued} ")
        assert mended_answer(mended, set(), WORDS | {glued: 1}, between) == mended
    for common in (20, 80):  # a word that stands in many files is a word
        assert mended_answer(text, set(), WORDS | {glued: common}) == text


def test_an_archive_is_the_dictionary_of_its_pages(tmp_path):
    files = [(f"5_NIDDK_QA/{number}.xml", page(number, "Gallstones are hard. They are small stones.")) for number in range(12)]
    path = zipped(tmp_path / "a.zip", *files, ("5_NIDDK_QA/99.xml", page(99, "Gallstonessmall stones of the gall hurt.")), ("9_CDC_QA/99.xml", page(98, "They have gallstonessmall ones.")))
    for limit in (None, 14, 40):
        found = {item.url: item.answer for item in MedQuad(path).fetch(limit=limit)}
        assert found["https://example.org/99"] == "Gallstones—small stones of the gall hurt." and found["https://example.org/98"] == "They have gallstones small ones."
