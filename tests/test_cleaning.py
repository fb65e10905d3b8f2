"Cleaning: what is mended stays right, what is masked is personal, what is near is found, and nothing crashes on real text."

import io
import json
import random
import re
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from own_data import own_lines

from medlab.cleaning.benchmarks import read_benchmark
from medlab.cleaning.choices import contradicts, named_letters
from medlab.cleaning.duplicates import BANDS, MAX_NEIGHBOURS, ROWS, candidates, hashed, near_pairs, openness, overlap, shingle_hashes, shingles, jaccard, signatures, text_key, words_of
from medlab.cleaning.language import language_of, needs_classifier
from medlab.cleaning.leaks import Item, find_leaks
from medlab.cleaning.passages import HeldPassages, SharedPassages, sorted_passages, uncommon_pairs, uncommon_passages, word_windows
from medlab.cleaning.personal import find_personal, is_nhs_number, mask, may_hold_personal
from medlab.cleaning.disk_store import DiskStore, UnionFind, key64
from medlab.cleaning.text import (
    fixed_characters, repair_question, repair_text, tidy_text, trim_answer, without_boilerplate, without_outline,
)
from medlab.sources.medquad_tables import signs_by_share, with_tables_read
from medlab.basics.errors import InputError
from medlab.contracts.records import Record

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ASCII = "".join(map(chr, range(32, 127)))  # ftfy reads other bytes as broken text, and the result of that again
MESS = ["doesnt ", "[9184]", ". ", "?", " ?", " - ", "-\n", "    ", "\n", "\t", "&lt;", "Click here. ", "Key Points\n", "A", "b", "é", "\u00a0", "\u200b", "(", ")",
        "1", "90%", "see the figure below", "Talk with your doctor about clinical trials. ", "Espaol\n", "\nNIH: National Eye Institute", "are - x\n- ", " .", " :", "a persons ",
        "men.1 The", "NF2.The ", "\x00", "\ud83d\ude00", "ﬁ", "e\u0301", "<5%", "www.x.org"]
WILD = st.lists(st.sampled_from(MESS) | st.text(alphabet=ASCII + "éü–’…", max_size=6), max_size=25).map("".join)


@pytest.fixture(scope="module")
def answers(shared_data):
    rows = [json.loads(line) for line in (shared_data / "medmcqa" / "dev.json").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["exp"]]


# text


@QUICK
@given(WILD)
def test_mending_twice_changes_nothing_and_nothing_raises(text):
    once = repair_text(text)
    assert repair_text(once) == once
    assert trim_answer("What is it?", trim_answer("What is it?", once)) == trim_answer("What is it?", once)
    assert not re.search(r"[^\S\n]{2}|\n\n|^\s|\s$", tidy_text(fixed_characters(text)))


@QUICK
@given(st.text(alphabet="abc DE.?!,-\n ", max_size=60))
def test_tidying_loses_no_letter(text):
    assert re.sub(r"\s|-", "", tidy_text(text)) == re.sub(r"\s|-", "", text)


def test_a_long_run_of_blanks_takes_no_long_time():
    began = time.process_time()
    repair_text("a" + " " * 300_000 + "b" + "\n" * 100_000 + "?" * 50_000 + "(" * 50_000)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("text,mended", [
    ("Sheâ€™s dont know.", "She's don't know."),
    ("It doesnt work; thats all. Youre right, arent you?", "It doesn't work; that's all. You're right, aren't you?"),
    ("its colour, lets blood flow, we were well, as is his wont", "its colour, lets blood flow, we were well, as is his wont"),
    ("Alzheimers disease and Crohns", "Alzheimer's disease and Crohn's"),
    ("CANT and DONT are acronyms", "CANT and DONT are acronyms"),
    ("nontoxic acetate.[9184] The way", "nontoxic acetate. The way"),
    ("recessive manner.[1][2] People", "recessive manner. People"),
    ("median 12 [10-15], CI [3, 5], [18F]FDG, Table [2]", "median 12 [10-15], CI [3, 5], [18F]FDG, Table [2]"),
    ("in <5% of patients p<0.05", "in <5% of patients p<0.05"),
    ("the early stages.Signs and symptoms", "the early stages. Signs and symptoms"),
    ("Cancer.Net from the society, www.nih.gov. Read", "Cancer.Net from the society, www.nih.gov. Read"),
    ("10 µg/mL, 10² cells, ½ tablet", "10 µg/mL, 10² cells, ½ tablet"),
    ("Rest it. (Watch the video to learn more. To enlarge the video, click the brackets.) Ice helps.", "Rest it. Ice helps."),
    ("The liver can enlarge, the jaw may click.", "The liver can enlarge, the jaw may click."),
    ("Foods:     - milk    - eggs", "Foods:\n- milk\n- eggs"),
])  # fmt: skip
def test_residue_goes_and_medicine_stays(text, mended):
    assert repair_text(text) == mended


@pytest.mark.parametrize("text,mended", [
    ("Espaol\nGout hurts.\nNIH: National Institute on Aging", "Gout hurts."),
    ("Drugs help.\nMore on: Resources for Health Professionals: Treatment\nMore on: Taeniasis", "Drugs help."),
    ("Gout hurts.\nCenters for Disease Control and Prevention", "Gout hurts."),
    ("Ask for help:\n- Food and Drug Administration", "Ask for help:\n- Food and Drug Administration"),
    ("one in 4,000 babies.1 This may be low.. Most are well.2,3", "one in 4,000 babies. This may be low. Most are well."),
    ("vitamin B12. Version.10 of fig.2 The 0.5 Most. Wait... for e.g. 1 Dose.", "vitamin B12. Version.10 of fig.2 The 0.5 Most. Wait... for e.g. 1 Dose."),
    ("Physical exam and history : An exam , then rest .", "Physical exam and history: An exam, then rest."),
    ("a ratio of 1 : 500, p < .05, in .5 mg", "a ratio of 1 : 500, p < .05, in .5 mg"),
    ("in NF2.Because tumours grow. At 5 mg/kg.Then rest. (BMI).You can.", "in NF2. Because tumours grow. At 5 mg/kg. Then rest. (BMI). You can."),
    ("pH 7.4, mRNA, e.g. CD4+T cells, U.S.A., p.Arg117His, c.665C>T, www.x.org, MayoClinic.Com links", None),
    ("a persons risk, the bodys cells, each patients age, at a doctors office", "a person's risk, the body's cells, each patient's age, at a doctor's office"),
    ("displaced persons, two patients died, fathers cannot, a few persons with it, a patients' group", None),
    ("Signs are - a cough\n- a fever", "Signs are\n- a cough\n- a fever"),
    ("- Lymph - a fluid\n- nodes", None),
])  # fmt: skip
def test_what_a_page_leaves_at_its_edges_goes(text, mended):
    assert repair_text(text) == (text if mended is None else mended)


@pytest.mark.parametrize("text,mended", [
    ("Children <a year old or weighing >10 kg get half.", None),
    ("Symptoms lasting <a week with a fever >38 °C need no antibiotic.", None),
    ("Patients with p<i and q>j were left out.", None),
    ("Infants <b and >c, or a<b>c, or <s or >u stay.", None),
    ("Give <time> and <label> as asked, <summary> too.", None),
    ("p<0.05, <5 mg, HbA1c >7, 3<x<5, <a year old, x>y", None),
    ("White cells <normal and CRP >10 mean infection.<br>See a doctor.", "White cells <normal and CRP >10 mean infection.\nSee a doctor."),
    ("Vitamin <a href='x'>B12</a> is low.", "Vitamin B12 is low."),
    ("<p>Children <a year old or weighing >10 kg get half.</p><p>Others get all.</p>", "Children <a year old or weighing >10 kg get half.\nOthers get all."),
    ("HbA1c >7 and <b>not</b> <5: <i>rest</i>.", "HbA1c >7 and not <5: rest."),
    ("<ul><li>fever >38</li><li>weight <5 kg</li></ul>", "- fever >38\n- weight <5 kg"),
    ("Signs:\n- fever\n- pain <b>at night</b>\nRest.", "Signs:\n- fever\n- pain at night\nRest."),
    ("Counts of 10<sup>9</sup>/L and H<sub>2</sub>O, p &lt; 0.05 <5", "Counts of 10⁹/L and H2O, p < 0.05 <5"),
    ("Before<!-- a note with > in it -->after<BR/>end <img src=x.png alt='a'>here", "Beforeafter\nend here"),
    ("<script>alert('x')</script><p>Rest.</p>", "Rest."),
    ("<table><tr><td>a <5</td><td>b</td></tr></table>", "a <5 | b"),
    ("<5<br><10<br/>>20</p>", "<5\n<10\n>20"),
    ("<a\nhref='x'>Rest</a> helps.", "Rest helps."),
])  # fmt: skip
def test_only_elements_of_html_are_tags_and_signs_of_medicine_stay(text, mended):
    assert repair_text(text) == (text if mended is None else mended)


@QUICK
@given(st.lists(st.sampled_from(["<5 mg", ">10 kg", "p<0.05", "<a week", "a<b>c", "x > y", "fever", "<br>", "<b>bold</b>", "<i>", "and", "<p>", "</p>", "&gt;", "\n"]), max_size=12).map(" ".join))
def test_no_sign_of_medicine_is_lost_beside_tags(text):
    "Each number after a sign keeps its sign, whatever tags stand around it."
    mended = repair_text(text)
    assert [mended.count(sign) for sign in ("<5 mg", ">10 kg", "p<0.05", "<a week")] == [text.count(sign) for sign in ("<5 mg", ">10 kg", "p<0.05", "<a week")]


@pytest.mark.parametrize("text,mended", [
    ("fractures of the vertebrae.MethodsWe asked 40 people.", "fractures of the vertebrae.\nMethods: We asked 40 people."),
    ("BackgroundGout hurts. MethodsIn 40 people we measured it.RESULTSHalf of them fell.CONCLUSIONS:Rest helps.",
     "Background: Gout hurts.\nMethods: In 40 people we measured it.\nRESULTS: Half of them fell.\nCONCLUSIONS: Rest helps."),
    ("Methods were chosen. Results may vary. Conclusions follow. The Methods section and MethodsX are names.", None),
])  # fmt: skip
def test_labels_glued_to_an_abstract_get_their_line(text, mended):
    assert repair_text(text) == (text if mended is None else mended)


def test_nested_lists_of_html_stay_lists():
    text = repair_text("<ul><li>Rest<ul><li>at night</li><li>by day</li></ul></li><li>Ice</li></ul>")
    assert [line.strip() for line in text.split("\n")] == ["- Rest", "- at night", "- by day", "- Ice"]


def test_a_table_without_a_known_share_does_not_begin_with_also():
    table = "The Human Phenotype Ontology provides the following. Signs and Symptoms Approximate number of patients (when available) Ataxia - Gout - Cataract -"
    assert with_tables_read(table) == "Signs and symptoms: Ataxia; Gout; Cataract"


@pytest.mark.parametrize("question,mended", [
    ("What is (are) Asthma ?", "What is Asthma?"), ("What causes gout ? ?", "What causes gout?"),
    ("What causes What I need to know about Gallstones ?", "What causes Gallstones?"), ("Is 5.5 high or 6.1 ?", "Is 5.5 high or 6.1?"),
])  # fmt: skip
def test_questions_lose_the_marks_of_their_template(question, mended):
    assert repair_question(question) == mended


def test_html_becomes_text_with_its_list():
    text = repair_text("<p>Causes of <b>gout</b>:</p><ul><li>uric acid</li><li>beer</li></ul>")
    assert "- uric acid\n- beer" in text and "<" not in text


def test_key_points_say_everything_once():
    text = without_outline("Key Points\n- Gout hurts.\n- Only here.\nGout hurts.\nIt begins at night.")
    assert text == "- Only here.\nGout hurts.\nIt begins at night."


def test_a_flattened_table_keeps_every_sign():
    signs = {f"Sign {n} of the {part}": share for n, (part, share) in enumerate([("hand", "90%"), ("X-linked eye", "-"), ("foot", "7.5%"), ("ear", "2/3")])}
    table = " ".join(f"{sign} {share}" for sign, share in signs.items())
    assert {sign: share for share, names in signs_by_share(table).items() for sign in names} == signs


def test_a_sentence_with_more_than_the_cue_stays():
    long = "Click here to see that " + "the kidney filters blood and keeps salts in balance " * 10
    assert without_boilerplate(long) == long


# personal data


@pytest.mark.parametrize("text,masked", [
    ("Call 212-555-0187 now", "Call [PHONE] now"),
    ("Tel: 07700 900123", "Tel: [PHONE]"),
    ("phone 2125550187", "phone [PHONE]"),
    ("+44 20 7946 0958 or (301) 555-0142", "[PHONE] or [PHONE]"),
    ("write to jane.roe+x@mail.example.co.uk.", "write to [EMAIL]."),
    ("NHS number: 943 476 5919", "NHS number: [NHS NUMBER]"),
    ("his number is 943 476 5919", "his number is [NHS NUMBER]"),
    ("MRN: 0045981 and Patient ID AB-100234", "MRN: [MRN] and Patient ID [MRN]"),
    ("DOB 12/03/1961; born on 3 March 1950; date of birth: March 3, 1950", "DOB [DATE OF BIRTH]; born on [DATE OF BIRTH]; date of birth: [DATE OF BIRTH]"),
    ("Patient: Jane Roe, MRN 0045981", "Patient: [NAME], MRN [MRN]"),
    ("Dr. James Cheek, 212-555-0187", "Dr. [NAME], [PHONE]"),
])  # fmt: skip
def test_personal_data_are_masked(text, masked):
    assert mask(text)[0] == masked
    assert mask(masked)[0] == masked


@pytest.mark.parametrize("text", [
    "Crohn's disease, Parkinson disease, Bell's palsy, Hodgkin lymphoma and the Glasgow Coma Scale",
    "Call 911, 999, 112 or NHS 111. Crisis line 988.",
    "Poison control: 1-800-222-1222; Samaritans 116 123; Childline 0800 1111",
    "Dr. Alois Alzheimer was born on June 14, 1864 in Marktbreit.",
    "doi:10.1001/jama.2020.1234, NCT01234567, PMID 31318145, OMIM 123456, ISBN 978-3-16-148410-0",
    "Sodium 135-145 mmol/L, 1,000-2,000 mg, 2019-2020, 120/80, 100 000 people, mRNA 1234",
    "What is your age or date of birth? The baby was born with it.",
])  # fmt: skip
def test_what_is_not_personal_stays(text):
    assert mask(text)[0] == text


#: A sentence, and what must not be left of it. All invented.
PERSONAL = [
    ('Call 212-555-0187 after six.', '212-555-0187'),
    ('Ring (020) 7946 0958 for the ward.', '7946'),
    ('Her mobile is 07700 900123.', '07700'),
    ('His mobile is 07700900123.', '07700900123'),
    ('Ring 020 7946 0958 and ask for Ward 3.', '7946'),
    ('Ring 02079460958 and ask for Ward 3.', '02079460958'),
    ('Her telephone: 0161 496 0123.', '0161'),
    ('Her number is +44 7700 900 456.', '7700'),
    ('Call +447700900456 at once.', '447700900456'),
    ('Call 0044 7700 900456 from abroad.', '900456'),
    ('Call +1 (415) 555-0132 for results.', '555-0132'),
    ('Call 415.555.0132 for results.', '555.0132'),
    ('Call 1-415-555-0132 ext. 12.', '555-0132'),
    ('Call (415)555-0132.', '555-0132'),
    ('Contact number 4155550132.', '4155550132'),
    ('Fax: 415 555 0132', '555 0132'),
    ('Phone no. 01632 960 001', '960 001'),
    ('telephone 01632-960001', '960001'),
    ('Reach the son on +33 1 70 18 99 00.', '70 18'),
    ('Cell: 415-555-0199; work: 415-555-0198.', '555-0198'),
    ('Write to jane.roe@example.org.', 'jane.roe'),
    ('E-mail: J_Roe99@mail.example.co.uk, please.', 'J_Roe99'),
    ('Mail <jroe@example.com> for the letter.', 'jroe'),
    ('Write to jane.roe (at) example.org today.', 'jane.roe'),
    ('NHS number 943 476 5919.', '943 476'),
    ('NHS No: 9434765919', '9434765919'),
    ('NHS no. 943-476-5919 on the card', '943-476'),
    ('NHS Number (943 476 5919)', '943 476'),
    ('The wristband says 943 476 5919.', '943 476'),
    ('The wristband says 943-476-5919.', '943-476'),
    ('NHS#: 9434765919', '9434765919'),
    ('MRN 0045981 came back today.', '0045981'),
    ('MRN: 0045981', '0045981'),
    ('MRN#0045981', '0045981'),
    ('MRN - 0045981', '0045981'),
    ('Medical record number 78-45-12', '78-45-12'),
    ('Medical Record No. A1234567', 'A1234567'),
    ('medical record # 4459812', '4459812'),
    ('Hospital number: H123456', 'H123456'),
    ('Hospital no 123456 on file', '123456'),
    ('Patient ID: 00123987', '00123987'),
    ('Patient identifier 00123987', '00123987'),
    ('patient number is 5512034', '5512034'),
    ('Unit number: 88 12 34 is hers; MRN = 881234', '881234'),
    ('Chart number 99812', '99812'),
    ('DOB: 12/03/1961', '12/03/1961'),
    ('D.O.B. 3.4.58', '3.4.58'),
    ('DOB 03-Apr-1958', '03-Apr-1958'),
    ('Date of birth: 3rd April 1958', 'April 1958'),
    ('date of birth was April 3, 1958', 'April 3'),
    ('Date of Birth 1958-04-03', '1958-04-03'),
    ('born on 3 April 1958 in Leeds', '3 April 1958'),
    ('born 04/03/58', '04/03/58'),
    ('Born on the 3rd of April 1958, she lives alone.', 'April 1958'),
    ('Birthdate: 1958/04/03', '1958/04/03'),
    ('b. 12/03/1961, MRN 0045981', '12/03/1961'),
    ('Jane Roe, MRN 0045981, has asthma.', 'Jane Roe'),
    ('Mr Roe (DOB 12/03/1961) came alone.', 'Roe'),
    ('Patient: John Q. Public, MRN 0045981', 'Public'),
    ('Patient name: ROE, Jane; DOB 12/03/1961', 'ROE'),
    ('JANE ROE, MRN 0045981', 'JANE ROE'),
    ("Name: Siobhán O'Neill, NHS number 943 476 5919", 'Siobhán'),
    ("Mrs. O'Neill, phone 07700 900123", "O'Neill"),
    ('Name: José García, DOB 12/03/1961', 'García'),
    ('Mr Parkinson, MRN 0045981, has a tremor.', 'Mr Parkinson'),
    ('Patient Anna-Maria van den Berg, date of birth 3 May 1970', 'Berg'),
    ('Jane Roe was born on 12/03/1961.', 'Jane Roe'),
    ("Jane Roe's NHS number is 943 476 5919.", 'Jane Roe'),
    ('Dr Ahmed Khan can be reached on 0161 496 0123.', 'Khan'),
    ("Ms Graves, DOB 1 May 1980, has Graves' disease.", 'Ms Graves'),
    ('MRN 0045981: Jane Roe, 54, diabetic.', 'Jane Roe'),
    ('The MRN of Jane Roe is 0045981.', '0045981'),
    ('Contact Jane Roe at jane@example.org.', 'Jane Roe'),
    ('Baby Roe, born on 12/03/2021, MRN 0045981', 'Roe'),
    ('She can be reached on 01865 496 033 in the evening.', '496 033'),
    ('Mobile number 07911 123456, ask for her son.', '123456'),
    ("His daughter's phone is (312) 555-0164.", '0164'),
    ('Text 07984123456 if the wound reddens.', '07984123456'),
    ('Call me at 6175550143 tomorrow.', '6175550143'),
    ("The surgery's line is 0131 496 0771.", '0771'),
    ('Office: +1-202-555-0121, fax +1-202-555-0122.', '0122'),
    ('Her German number is +49 30 901820.', '901820'),
    ('Reach Tom Ferris on 07700 900 832.', '900 832'),
    ('Send the scan to k.lund@clinic.example.', 'k.lund'),
    ('mail: ana_maria-7@post.example.net', 'ana_maria'),
    ('cc: peter@gp-surgery.example.uk and nurse@ward9.example', 'nurse@'),
    ('NHS number is 450 557 7104.', '450 557'),
    ('NHS no 4505577104', '4505577104'),
    ('(NHS: 450-557-7104)', '7104'),
    ('MRN 77-10-332 was scanned.', '77-10-332'),
    ('Patient ID# 449021', '449021'),
    ('Hospital No. RX449021 admitted last night', '449021'),
    ('Medical record no: 003-88-120', '003-88-120'),
    ('mrn: 5540219', '5540219'),
    ('Chart no. 55-4021', '55-4021'),
    ('patient identifier: QX-55120', '55120'),
    ('DOB 7/9/1948', '7/9/1948'),
    ('D.O.B: 07.09.48', '07.09.48'),
    ('dob 07-09-1948', '07-09-1948'),
    ('Date of birth - 7 September 1948', '7 September'),
    ('She was born on September 7th, 1948.', 'September 7th'),
    ('born: 7 Sept 1948', '7 Sept'),
    ('Birth date 1948-09-07', '1948-09-07'),
    ('He was born 7 Sep 1948 in York.', '7 Sep'),
    ('Tom Ferris, MRN 5540219, was seen today.', 'Ferris'),
    ('Mrs Okafor, date of birth 7/9/1948, fell.', 'Okafor'),
    ('Patient name: Li Wei Chen, MRN 5540219', 'Wei'),
    ('Dr. Priya Raman (phone 0117 496 0123) rang.', 'Raman'),
    ('Name: Zoë Müller. DOB: 07/09/1948', 'Müller'),
    ('Pt: Owen McBride, NHS number 450 557 7104', 'McBride'),
    ("Miss Addison, MRN 5540219, does not have Addison's disease.", 'Miss Addison'),
    ("Mr. Down's DOB is 7/9/1948.", 'Mr. Down'),
    ('FERRIS, Tom (DOB 07/09/1948) attended.', 'FERRIS'),
    ('Tom Ferris (NHS 450 557 7104) attended.', 'Ferris'),
]
#: Sentences of which nothing may go.
IMPERSONAL = [
    "Crohn's disease and ulcerative colitis differ in depth.", "Parkinson's disease begins with a tremor at rest.", 'Down syndrome is trisomy 21.',
    "Graves' disease makes TSH fall below 0.01 mIU/L.", 'Hodgkin lymphoma, stage 2A, since 12/03/2019.',
    "Addison's disease: sodium 128 mmol/L, potassium 5.9 mmol/L.", "Cushing's syndrome: cortisol 900 nmol/L at midnight.",
    'Marfan syndrome affects 1 in 5,000 people.', 'Tests for Marfan syndrome: phone 1-800-862-7326.',
    "Crohn's disease: call 1-800-932-2423 for a leaflet.", 'Parkinson disease, OMIM 168600, gene SNCA.',
    'Hashimoto thyroiditis, TSH 12.5 mIU/L, born with it.', 'Call 999 at once.', 'Call 111 or see your GP.', 'Call 988, day or night.',
    'Dial 112 anywhere in Europe.', 'Poison control: 1-800-222-1222.', 'Poison control: (800) 222-1222.', 'Poison Help 18002221222',
    'Childline 0800 1111.', 'Samaritans: 116 123.', 'NHS 111 is free.', 'National Poisons Line +1 800 222 1222',
    'NHS Pregnancy 0300 123 1021 answers', 'Quit line: 0300 123 1044.', 'Take 500 mg every 6 hours, at most 4,000 mg a day.',
    'Amoxicillin 250 mg/5 mL, 100 mL bottle.', '5 mg/kg/day in 2 doses of 1.25 mL.', 'Sodium 135-145 mmol/L, potassium 3.5-5.0 mmol/L.',
    'Platelets 150 000-400 000 per microlitre.', 'WBC 4,500-11,000; Hb 12.0-15.5 g/dL.', 'Blood pressure 120/80, pulse 72, SpO2 98%.',
    'INR 2.0-3.0 on warfarin 5 mg.', 'A count of 1 200 000 copies/mL in 2019-2020.', 'HbA1c 48 mmol/mol (6.5%).',
    'The trial NCT01234567 ran from 12/03/2015 to 01/06/2018.', 'PMID 31318145; doi:10.1001/jama.2020.1234.', 'ISBN 978-3-16-148410-0.',
    'OMIM 123456 and 603903.', 'Lot 123-456-7890-12 was recalled.', 'NDC 0002-8215-01 is insulin.', 'NDC 50580-449-05',
    'ICD-10 E11.9; SNOMED 44054006.', 'rs1801133 and chr1:11796321.', 'GenBank NM_005957.4:c.665C>T', 'The vaccine was licensed on 12 March 1961.',
    'He was born with a heart defect in 1961.', 'Children born between 1957 and 1970 need one dose.', 'Babies born before 37 weeks need care.',
    'Born in 1864, Alois Alzheimer worked in Munich.', 'What is your date of birth?', 'Dr. Harvey Cushing described it in 1912.',
    'Patient: a 54-year-old woman with gout.', 'The patient number fell from 1,200 to 300.', 'Patient numbers rose by 12000 in 2020.',
    'Your medical record number is on the letter.', 'Ask the NHS for your number.', 'mRNA vaccines, IgG, CD4+ T cells, pH 7.35-7.45.',
    'Mr and Mrs are titles.', 'The e-mail may be a trick.', 'Follow @CDCgov for news.', 'Guillain-Barre syndrome: www.ninds.nih.gov.',
    'Ages 0-4: 12.3; 5-14: 45.6; 15-24: 78.9.', 'A range of 200 300 4000 units is printed on the strips.', 'The Glasgow Coma Scale, 3 to 15.',
    'Wilson disease: ceruloplasmin 0.1 g/L.', "Call the Crohn's and Colitis Foundation at 1-800-932-2423.",
    'The Hodgkin Foundation, phone 1-800-222-1222.', 'In Lynch syndrome (MRN complex: MRE11, RAD50, NBS1) repair fails.',
    'MRN complex 3 subunits: MRE11.', 'From 100.000.0000 to 200.000.0000', 'Dose 10 000 IU, then 400-800-1200 IU weekly.',
    'Prevalence: 0.2-0.5 per 100 000, 1990-2010.', "Graves' ophthalmopathy, phone 1-888-463-6332 for a leaflet.",
    'Down syndrome screening at 11-14 weeks.', 'The Hodgkin cell is large.', 'Addison disease: hydrocortisone 10 mg, 5 mg and 5 mg.',
    'Cushing disease, ACTH 45.2 ng/L.', "Marfan's: aortic root 4.5-5.0 cm.", 'Bell palsy often clears within 3-6 weeks.',
    'Tourette Syndrome begins at 5-7 years.', 'Ehlers-Danlos syndrome, OMIM 130000.', 'Huntington disease: 36-39 CAG repeats.',
    "Raynaud's: nifedipine 30-60 mg daily.", 'Wilson Disease, MIM 277900, gene ATP7B on 13q14.3.', 'Dial 999, 112 or 911 without delay.',
    'Call 1-800-273-8255 or 988.', 'Poison Control 1-800-222-1222 is open 24/7.', '1.800.222.1222', 'NHS 111 option 2.',
    'The SHOUT line: text 85258.', 'Mind: 0300 123 3393.', "Alzheimer's Association: 800-272-3900.", 'Give adrenaline 0.5 mL of 1:1000.',
    'Between 200-300 5000-unit doses were given.', 'Ferritin 15-150 µg/L; B12 200-900 ng/L.', 'CRP 5 mg/L, WBC 11.2 x 10^9/L.',
    'Creatinine 1.2 mg/dL (106 µmol/L).', 'Glucose 126-200 mg/dL at 2 hours.', 'In 2015-2016, 39.8% of 93 300 000 adults.',
    'Studies of 100 000, 250 000 and 1 000 000 people.', 'Trial ISRCTN12345678 and EudraCT 2011-001234-56.', 'Chromosome 7:117559590-117559600.',
    'PMC1234567, PMID: 20301295.', 'Born in 1950 or later? One dose.', 'A baby born on day 280 is at term.', 'Date of birth is asked first.',
    'Record numbers of patients in 2019.', 'The patient ID bracelet stays on.', 'Dr. Heimlich, Dr. Apgar and Dr. Alzheimer.',
    'Hospital number 1 cause of delay.', 'Version 3.10.2023 of the guideline.', 'Serial 0-19-852663-6, page 1234-1240.',
]  # fmt: skip


def test_personal_data_go_and_nothing_else_does():
    "Forty of each were written before the patterns saw them: then 37 of 40 were masked, and none of the others touched."
    missed = [text for text, secret in PERSONAL if secret in mask(text)[0]]
    harmed = [text for text in IMPERSONAL if mask(text)[0] != text]
    assert len(PERSONAL) > 60 and len(IMPERSONAL) > 60
    recall, precision = 1 - len(missed) / len(PERSONAL), 1 - len(harmed) / (len(harmed) + len(PERSONAL) - len(missed))
    assert (recall, precision) == (1.0, 1.0), [*missed, *harmed]


@pytest.mark.parametrize("text,masked", [
    ("Mr Parkinson, MRN 0045981, has Parkinson's disease.", "Mr [NAME], MRN [MRN], has Parkinson's disease."),
    ("Ms Graves, DOB 1 May 1980, has Graves' disease.", "Ms [NAME], DOB [DATE OF BIRTH], has Graves' disease."),
    ("the response (+138%, p<0.001) and (+1 2 3)", "the response (+138%, p<0.001) and (+1 2 3)"),
    ("please call 404-639-1075 to report", "please call [PHONE] to report"),
])  # fmt: skip
def test_a_patient_may_be_called_like_a_disease(text, masked):
    assert mask(text)[0] == masked


def test_helplines_are_counted_and_kept():
    assert mask("Call 1-800-222-1222 or 212-555-0187")[1] == Counter({"HELPLINE": 1, "PHONE": 1})


@QUICK
@given(st.integers(0, 10**9 - 1))
def test_a_nhs_number_has_one_right_check_digit_at_most(nine):
    assert sum(is_nhs_number(f"{nine:09}{digit}") for digit in range(10)) <= 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["MRN ", "0045981", "born ", "12/03/1961", "555-201-3344", " a@b.co ", "Jane Roe, ", "DOB: ", "943 476 5919", " mg ", "call ",
                                 "5552013344", "+44 20 7946 0958", "+7 49 51 23 45 67", "BORN ", "Born - ", "\n", "NHS number ", "Hospital number "]), max_size=7).map("".join))
def test_the_cheap_test_misses_nothing(text):
    assert may_hold_personal(text) or not find_personal(text)


# language


@pytest.mark.parametrize("text,language", [
    ("El asma es una enfermedad crónica que afecta a las vías respiratorias de los pulmones.", "es"),
    ("Asthma ist eine chronische Erkrankung, bei der sich die Atemwege verengen.", "de"),
    ("L'asthme est une maladie chronique qui rétrécit les voies respiratoires.", "fr"),
    ("哮喘是一种慢性疾病，会使气道变窄，令人呼吸困难。", "zh"),
    ("الربو مرض مزمن يصيب الشعب الهوائية في الرئتين ويسبب ضيق التنفس", "ar"),
    ("Asthma is a long-term disease of the airways.", "en"),
    ("Micrognathia; hypertelorism; strabismus; nystagmus; hypotonia; macrocephaly.", "en"),
    ("Gout", "en"), ("", "en"), ("123 456", "en"),
])  # fmt: skip
def test_languages(text, language):
    assert language_of(text) == language


ENGLISH = [
    'Staphylococcus aureus, Escherichia coli, Klebsiella pneumoniae and Pseudomonas aeruginosa.',
    'Tinea pedis, tinea cruris, tinea corporis, tinea capitis.', 'Musculus biceps brachii, caput longum: tuberculum supraglenoidale scapulae.',
    'Lichen planus; pityriasis rosea; psoriasis vulgaris; verruca vulgaris; molluscum contagiosum.',
    'Hypericum perforatum, Ginkgo biloba, Panax ginseng, Echinacea purpurea, Valeriana officinalis.',
    'Cor pulmonale secondary to chronic bronchitis.', 'Abruptio placentae, placenta praevia, vasa praevia.',
    'Paracetamol 500 mg, ibuprofen 400 mg, codeine 30 mg, omeprazole 20 mg.', 'Nausea, vomiting, diarrhoea, constipation, dizziness, headache.',
    'Abdominal pain, jaundice, pruritus, steatorrhoea, hepatomegaly, ascites',
    'Osteogenesis imperfecta type II; dentinogenesis imperfecta; chondrodysplasia punctata',
    'Giardia lamblia, Entamoeba histolytica, Cryptosporidium parvum.', 'Mutations: BRCA1, BRCA2, TP53, PTEN, STK11, CDH1, PALB2.',
    'Pes cavus, genu valgum, genu recurvatum, hallux rigidus.', 'Amoxicilline-clavulanate, doxycycline, azithromycine.',
    'Diabetes insipidus, lupus erythematosus, myasthenia gravis, alopecia areata.', 'Candida albicans infectio vaginalis',
    'Vitamin B12, folic acid, ferritin, transferrin, haemoglobin', 'Febris, tussis, dyspnoea, haemoptysis; pneumonia lobaris sinistra.',
    'Gravida 3 para 2 abortus 0 at 32 weeks.', 'Café-au-lait spots, tic douloureux, grand mal, petit mal, torsade de pointes.',
    'Situs inversus totalis, dextrocardia, bronchiectasis, sinusitis.', 'Erythema nodosum leprosum: thalidomide, clofazimine, prednisolone.',
    'Autosomal dominant inheritance; Hearing impairment; Cataract; Ataxia.', 'Rest, ice, compression, elevation.',
    'Hodgkin lymphoma, nodular sclerosis, mixed cellularity, lymphocyte rich, lymphocyte depleted.',
]  # fmt: skip
FOREIGN = [
    'Tome una tableta cada ocho horas con comida.', 'Nehmen Sie zweimal täglich eine Tablette nach dem Essen.',
    'Prenez un comprimé matin et soir pendant sept jours.', 'Prenda una compressa due volte al giorno dopo i pasti.',
    'Tome um comprimido duas vezes ao dia após as refeições.', 'Neem tweemaal per dag een tablet na het eten.',
    'Przyjmować jedną tabletkę dwa razy dziennie po jedzeniu.', 'Принимайте по одной таблетке два раза в день.', '每日两次，每次一片，饭后服用。',
    '1日2回、食後に1錠服用してください。', '하루 두 번 식사 후 한 알을 복용하십시오.', 'خذ قرصا واحدا مرتين يوميا بعد الطعام.', 'दिन में दो बार भोजन के बाद एक गोली लें।',
    'Ta en tablett två gånger om dagen efter maten.', 'Tag en tablet to gange dagligt efter måltid.',
    'Ota yksi tabletti kahdesti päivässä ruoan jälkeen.', 'Günde iki kez yemekten sonra bir tablet alın.',
    'Uống một viên hai lần mỗi ngày sau khi ăn.', 'Minum satu tablet dua kali sehari setelah makan.',
    'Luați un comprimat de două ori pe zi după masă.', 'Užívejte jednu tabletu dvakrát denně po jídle.',
    'Vegyen be egy tablettát naponta kétszer étkezés után.', 'Πάρτε ένα δισκίο δύο φορές την ημέρα.', 'קח טבליה אחת פעמיים ביום.',
]  # fmt: skip


def test_short_lists_of_latin_names_are_english_and_short_foreign_sentences_are_not():
    assert sum(language_of(text) != "en" for text in ENGLISH) <= 1  # "Café-au-lait spots, tic douloureux …"
    assert sum(language_of(text) == "en" for text in FOREIGN) <= 2  # Danish and Hungarian, in seven words


OWN_ANSWERS = [row for row in own_lines("medmcqa.jsonl") if row["exp"]]


def test_explanations_full_of_latin_are_english_and_few_need_a_look():
    "The twin of `test_no_english_explanation_is_called_foreign`."
    assert Counter(language_of(row["exp"]) for row in OWN_ANSWERS) == {"en": 22}
    assert sum(needs_classifier(row["exp"]) for row in OWN_ANSWERS) == 2  # names of drugs, and names of germs


def test_no_english_explanation_is_called_foreign(answers):
    assert Counter(language_of(row["exp"]) for row in answers) == {"en": len(answers)}
    assert sum(needs_classifier(row["exp"]) for row in answers) < 0.5 * len(answers)


# duplicates


TOKENS = st.lists(st.sampled_from("abcdefgh"), max_size=30).map(" ".join)


@QUICK
@given(TOKENS, TOKENS, st.integers(1, 4))
def test_numbers_give_the_similarity_of_the_words(one, other, width):
    assume(one and other)
    numbers = [shingle_hashes(hashed(words_of(text)), width) for text in (one, other)]
    assert overlap(*numbers) == jaccard(shingles(one, width), shingles(other, width))


def test_near_pairs_joins_a_large_bucket_through_its_neighbours_and_its_first_ones():
    text = " ".join(f"word{n}" for n in range(120))
    pairs = set(near_pairs([f"{text} end{n}" for n in range(300)], 0.9))
    assert {(n, n + 1) for n in range(299)} <= pairs  # each with the one before it
    assert {(0, n) for n in range(1, 300)} <= pairs  # and with the first


def bucket_of(size, *pairs):
    "Signatures that share their first band, so that all are in one bucket; of each pair the rest is nearly the same, though no other band."
    signed = np.random.default_rng(0).integers(1, 2**32, (size, BANDS * ROWS), dtype=np.uint32)
    signed[:, :ROWS] = 0
    for first, second in pairs:
        signed[second] = signed[first]
        signed[second, ROWS::ROWS] += 1  # one hash in every other band
    return signed


@pytest.mark.parametrize("pair, found", [
    ((50, 51), True), ((50, 50 + MAX_NEIGHBOURS), True), ((50, 51 + MAX_NEIGHBOURS), False),  # a neighbour; the last that still is one; too far away
    ((0, 99), True), ((MAX_NEIGHBOURS - 1, 99), True), ((MAX_NEIGHBOURS, 99), False),  # one of the bucket's first; the last of these; none of them
])  # fmt: skip
def test_in_a_large_bucket_neighbours_and_first_ones_are_looked_at(pair, found):
    assert candidates(bucket_of(100, pair), 0.8).tolist() == ([list(pair)] if found else [])


def test_time_grows_with_the_texts_and_not_with_their_square():
    seconds = []
    for count in (2000, 8000):
        signed = signatures([shingle_hashes(hashed([*(f"w{n}" for n in range(40)), f"x{number}"])) for number in range(count)])
        tries = []
        for _ in range(3):
            began = time.process_time()
            candidates(signed, 0.95)
            tries.append(time.process_time() - began)
        seconds.append(min(tries))  # what else the computer does can only add to it
    assert seconds[1] < 9 * seconds[0]


def test_equal_keys_whatever_the_spelling():
    assert text_key("  Ménière’s DISEASE? ") == text_key("Me\u0301nie\u0300re s disease")


@pytest.mark.parametrize("better,worse", [("CC0-1.0", "CC-BY-4.0"), ("Public Domain", "MIT"), ("MIT", "CC BY-SA 4.0"), ("CC-BY-4.0", "CC-BY-NC-4.0"),
                                          ("CC-BY-NC-4.0", "CC-BY-NC-ND-4.0"), ("CC-BY-NC-ND-4.0", "their own"), ("their own", "unknown")])
def test_freer_licences_come_first(better, worse):
    assert openness(better) < openness(worse)


# passages and leaks


@QUICK
@given(st.lists(st.sampled_from("abcdef"), min_size=13, max_size=40), st.lists(st.sampled_from("abcdef"), min_size=13, max_size=40))
def test_a_shared_passage_is_found_exactly_when_there_is_one(one, other):
    def plain(words):
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    nothing = hashed([])
    table = HeldPassages([(word_windows(hashed(one)), nothing)])
    assert len(table.shared(word_windows(hashed(other)), nothing)) == len(plain(one) & plain(other))


@QUICK
@given(st.lists(st.tuples(st.lists(st.sampled_from("ab"), max_size=30), st.booleans()), max_size=7), st.integers(1, 3), st.randoms(use_true_random=False))
def test_what_records_share_is_what_brute_force_finds(texts, size, shuffle):
    "Records are (words, whether an author wrote them as an answer); they come in batches of `size`."
    def plain(words):
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    def found(order):
        together, none = SharedPassages(DiskStore(io.BytesIO())), hashed([])
        for start in range(0, len(order), size):
            windows = [(word_windows(hashed(texts[one][0])), texts[one][1]) for one in order[start : start + size]]
            together.put(sorted_passages([(none, found) if written else (found, none) for found, written in windows]), start)
        shared = together.shared(np.ones(len(order), dtype=bool), np.array([key64(f"{one}") for one in order], dtype=np.uint64))
        return [(sorted(order[number] for number in shared.records(place)), int(count)) for place, count in enumerate(shared.passages)]

    owners = {}
    for number, (words, _) in enumerate(texts):
        for passage in plain(words):
            owners.setdefault(passage, set()).add(number)
    wanted = Counter(tuple(sorted(one)) for one in owners.values() if len(one) > 1 and not all(texts[number][1] for number in one))
    order = list(range(len(texts)))
    assert sorted(found(order)) == sorted(([*one], count) for one, count in wanted.items())
    assert [count for _, count in found(order)] == sorted(wanted.values(), reverse=True)
    shuffle.shuffle(order)
    assert found(order) == found(list(range(len(texts))))


def test_records_that_are_not_wanted_share_nothing():
    words = word_windows(hashed([*"abcdefghijklmnop"]))
    together = SharedPassages(DiskStore(io.BytesIO()))
    together.put(sorted_passages([(words, words[:0]), (), (words[1:], words[:0]), (words, words[:0])]), 0)
    names = np.arange(1, 5, dtype=np.uint64)
    shared = together.shared(np.array([True, True, False, True]), names)
    assert [shared.records(place).tolist() for place in range(len(shared.passages))] == [[0, 3]] and shared.passages.tolist() == [4]
    both = together.shared(np.ones(4, dtype=bool), names)
    assert [(both.records(place).tolist(), int(count)) for place, count in enumerate(both.passages)] == [([0, 2, 3], 3), ([0, 3], 1)]


@pytest.mark.parametrize("others, common", [(9, False), (10, False), (11, True)])
def test_a_text_of_more_than_ten_other_groups_is_boilerplate(others, common):
    chain = np.array([(number, number + 1) for number in range(others)])  # each is like the next
    groups = np.arange(others + 3)
    assert uncommon_pairs(chain, groups).tolist() == [not common] * others
    assert uncommon_pairs(np.concatenate((chain, [[others + 1, others + 2]])), groups).tolist() == [not common] * others + [True]  # each text counts alone
    assert uncommon_pairs(chain, groups // 2).all()  # groups count, not texts
    assert uncommon_pairs(chain[:0], groups).tolist() == []


def test_commonness_is_counted_in_groups():
    found = {n: np.array([0]) for n in range(12)}
    assert not uncommon_passages(found, lambda n: n, 1)[0] and uncommon_passages(found, lambda n: n // 2, 1)[0]
    both = {n: np.array([0]) for n in range(6)}
    assert [bool(uncommon_passages(both, lambda n: n, 1, np.array([held]))[0]) for held in (5, 6)] == [True, False]  # with those on the other side
    nothing, same = hashed([]), word_windows(hashed([*"abcdefghijklm"]))
    assert [HeldPassages([(same, nothing)] * 3, groups).groups.tolist() for groups in ((), ["a", "b", "a"])] == [[3], [2]]


def test_advice_is_not_held_against_advice_but_against_a_page():
    advice = "Call an ambulance now, keep the person still and warm, and give nothing to eat or to drink at all."
    stories = {"exam": "A boy of nine swallowed a marble in the garden of his aunt this morning and coughs.",
               "train": "Since supper her left arm has been heavy, and she cannot find the words that she looks for."}
    exam, case = (Item(name, "", story, f"{story} {advice}", advice) for name, story in stories.items())
    page = Item("page", "", "What do I do after a fall?", f"First look at the scene, then do this. {advice} Stay until help comes, and tell them what you saw.")
    assert find_leaks([case], [exam]) == []
    assert [leak.train for leak in find_leaks([case, page], [exam])] == ["page"]
    assert [leak.train for leak in find_leaks([case], [page])] == ["train"]


GOUT = "What causes gout in older men?"
CRYSTALS = "Crystals of uric acid settle in a joint, most often in the big toe, and wake the sleeper with pain that makes even a bed sheet too heavy to bear."
STORY = "It is a story about something else that nobody has told before, about tulips and rain."
OTHER = "What do you know about tulips?"
DRUGS = {"A": "Colchicine", "B": "Allopurinol", "C": "Aspirin at a low dose", "D": "Warfarin"}
WHICH = "Which drug lowers the uric acid of the blood over the long term?"


def exam_question(question, answer, **more):
    fields = {"source": "made", "kind": "qa", "license": "CC0-1.0", "may_train": True, "attribution": "test"}
    return Record(**{**fields, "id": f"{question}{answer}", "question": question, "answer": answer, **more})


@pytest.mark.parametrize("question,answer,kind", [
    (GOUT, STORY, "exact"), (OTHER, CRYSTALS, "exact"), (GOUT.upper(), STORY, "normalised"), ("What causes: gout -- in 'older' men!", STORY, "normalised"),
    ("Wh\u0430t c\u0430uses g\u043eut in \u043elder men?", STORY, "normalised"), ("What causes go\u200but in ol\u00adder men?", STORY, "normalised"),
    ("What causes \uff47\uff4f\uff55\uff54 in older men?", STORY, "normalised"), ("What causes _gout_ in **older** men?", STORY, "normalised"),
    ("Wh\u00e1t causes g\u00f6ut in older men?", STORY, "normalised"), ("In older men, what causes gout?", STORY, "near_duplicate"),
    (OTHER, CRYSTALS.replace("bear", "carry"), "near_duplicate"), (OTHER, f"{STORY} {CRYSTALS[40:130]} so they say, and on it goes.", "passage"),
    (OTHER, f"{STORY} {CRYSTALS[40:130]} so they say, and on it goes.".replace("o", "\u043e"), "passage"),
], ids=["question", "answer only", "case", "marks", "Cyrillic", "invisible", "wide", "markdown", "accents", "turned round", "a word", "passage", "Cyrillic passage"])
def test_no_disguise_gets_a_leak_past_the_gate(question, answer, kind):
    exam = exam_question(GOUT, CRYSTALS)
    leaks = find_leaks([exam_question(question, answer, id="smuggled")], [exam])
    assert [(leak.kind, leak.train, leak.held_out) for leak in leaks] == [(kind, "smuggled", exam.id)]


def test_an_item_whose_options_moved_is_the_same_item():
    exam = exam_question(WHICH, "Allopurinol blocks xanthine oxidase.", kind="mcq", options=DRUGS)
    moved = dict(zip("ABCD", reversed(DRUGS.values())))
    copy = exam_question(WHICH.replace("drug", "one"), "Allopurinol blocks xanthine oxidase.", kind="mcq", options=moved)
    assert [leak.kind for leak in find_leaks([copy], [exam])] == ["near_duplicate"]


def test_other_words_for_other_things_are_no_leak():
    exam = exam_question(GOUT, CRYSTALS)
    assert find_leaks([exam_question("What causes gout in older women?", STORY), exam_question("Is gout painful?", "Yes, very much so.")], [exam]) == []


# choices


def test_explanations_agree_with_their_key_and_not_with_another():
    "The twin of `test_real_explanations_agree_with_their_key`: one of the rows argues for another option on purpose."
    items = [(row["id"], row["exp"], "ABCD"[row["cop"] - 1], {letter.upper(): row[f"op{letter}"] for letter in "abcd"}) for row in OWN_ANSWERS]
    silent = {"own-06", "own-13", "own-14", "own-15"}
    assert {key for key, text, _, _ in items if not named_letters(text)} == silent
    assert [key for key, *item in items if contradicts(*item)] == ["own-09"]
    turned = {key for key, text, right, options in items if contradicts(text, "BCDA"["ABCD".index(right)], options)}
    assert {key for key, *_ in items} - turned == silent


def test_real_explanations_agree_with_their_key(answers):
    items = [(row["exp"], "ABCD"[row["cop"] - 1], {letter.upper(): row[f"op{letter}"] for letter in "abcd"}) for row in answers]
    verdicts = sum(bool(named_letters(text)) for text, _, _ in items)
    assert verdicts > 1050 and sum(contradicts(*item) for item in items) == 0
    shifted = sum(contradicts(text, "BCDA"["ABCD".index(right)], options) for text, right, options in items)
    assert shifted > 0.95 * verdicts


@pytest.mark.parametrize("explanation,letters", [
    ("<analysis>B lowers it, C does not. Therefore, the correct answer is D.</analysis>", ["D"]),
    ("Option B is incorrect. C is not correct.", []), ("A 45-year-old man. Vitamin C is correct for scurvy if low.", []),
    ("Ans. 'd' Cori's disease", ["D"]), ("Ans. is 'c' i.e., rest", ["C"]), ("Answer- CSide effects of iodine", ["C"]), ("So the answer is D.", ["D"]),
    ("Ans. All of them. Ans. BCG", []), ("Ans. (b) Insulin", ["B"]), ("The best answer is option C because it is fast", ["C"]),
])  # fmt: skip
def test_a_verdict_is_told_from_a_mention(explanation, letters):
    assert named_letters(explanation) == letters


# benchmarks


@pytest.mark.parametrize("name,content", [("a.json", "{"), ("a.parquet", "no"), ("a.jsonl", "[1]"), ("a.csv", ""), ("a.json", "[]"), ("a.txt", "\n\n")])
def test_a_benchmark_that_cannot_be_read_is_an_error(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=name):
        read_benchmark(tmp_path / name)


@pytest.mark.parametrize("name,content", [
    ("a.jsonl", {"Question": GOUT, "Answer": "x"}), ("a.jsonl", {"id": "1", "question": {"stem": GOUT, "choices": [{"label": "A", "text": "x"}]}}),
    ("a.jsonl", {"conversations": [{"from": "human", "value": GOUT}, {"from": "gpt", "value": "x"}]}), ("a.jsonl", {"Q": GOUT, "A": "x", "B": "y"}),
    ("a.json", {"version": "1", "questions": [{"body": GOUT, "ideal_answer": ["x"]}]}), ("a.jsonl", {"c1": GOUT[:-1], "c2": "7"}),
    ("a.json", {"data": [{"paragraphs": [{"qas": [{"question": "Who are you?"}, {"question": GOUT, "answers": []}]}]}]}),
    ("a.jsonl", {"instruction": "Answer the medical question below.", "input": GOUT, "output": "x"}), ("a.jsonl", {"frage": GOUT, "antwort": "x"}),
    ("a.csv", f"id;question;answer\n1;{GOUT};x\n"), ("a.csv", f"{GOUT},x\nWho?,y\n"), ("a.tsv", f"n\tquery\n1\t{GOUT}\n"),
    ("a.csv", f"\ufeffquestion,answer\n{GOUT},x\n"), ("a.jsonl", "\ufeff" + json.dumps({"question": GOUT})),
    ("a.parquet", {"QUESTION TEXT": GOUT, "cop": 1}), ("a.parquet", {"id": 1, "question": {"stem": GOUT}}),
])  # fmt: skip
def test_a_benchmark_is_read_whatever_its_columns_are_called(tmp_path, name, content):
    if name == "a.parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist([content]), tmp_path / name)
    else:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    leaks = find_leaks([exam_question(GOUT, STORY)], read_benchmark(tmp_path / name))
    assert leaks and leaks[0].held_out.startswith(name)


@QUICK
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_groups_are_the_connected_components(pairs):
    groups = UnionFind(31)
    for pair in pairs:
        groups.join(*pair)
    roots = groups.roots()
    assert all(roots[a] == roots[b] for a, b in pairs) and all(roots[root] == root <= member for member, root in enumerate(roots))
    assert len(set(roots)) >= 31 - len({tuple(sorted(pair)) for pair in pairs})


def test_shuffled_texts_give_the_same_pairs():
    rng = random.Random(4)
    texts = [" ".join(rng.choice("abcdefghij") for _ in range(20)) for _ in range(40)]
    order = rng.sample(range(40), 40)
    pairs = {tuple(sorted((order[one], order[other]))) for one, other in near_pairs([texts[n] for n in order], 0.3)}
    assert pairs == set(near_pairs(texts, 0.3))
