"Builders: what is cut from a text stands in the text, what cannot be cut is left out with a reason, and questions come in many forms."

import json
import random
import re
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from own_data import own_json, own_lines

from medlab.builders import choices, labels, pages, qa
from medlab.cleaning.excerpts import excerpt, excerpt_fault, leans
from medlab.cleaning.records import examined
from medlab.cleaning.sentences import each_sentence, opening, sentences
from medlab.contracts.records import SplitRecord

OPTIONS = {"A": "Bronchoscopy", "B": "Lung function", "C": "Sputum smear", "D": "Skin prick test"}


def record(kind, **more):
    fields = {"id": "1", "source": "s", "license": "CC0-1.0", "may_train": True, "attribution": "t", "group": "g", "split": "train"}
    return SplitRecord(**{**fields, "kind": kind, **more})


def built(build, one, *rest):
    return [made for made in build(one, *rest) if not isinstance(made, str)]


def reasons(build, one, *rest):
    return [made for made in build(one, *rest) if isinstance(made, str)]


# sentences


@pytest.mark.parametrize("text,found", [
    ("Overview\nDr. Lee treats e.g. asthma. Doses of 2.5 mg are common (see U.S. labels). More",
     ["Dr. Lee treats e.g. asthma.", "Doses of 2.5 mg are common (see U.S. labels)."]),
    ("- tiredness\n- pale skin", []),
    ("- Rest helps.\n- Sleep helps. - Water too.", ["Rest helps.", "Sleep helps.", "Water too."]),
    ("What is it?\nIt is rare.", ["It is rare."]),
    ("See the table below. It is rare. Click here.", ["It is rare."]),
    ('It is "mild." Most recover.', ['It is "mild."', "Most recover."]),
    ("Take one of the following.", []),
    ("", []),
])
def test_only_whole_sentences_are_taken(text, found):
    assert sentences(text) == found


def test_a_limit_is_kept_and_reading_stops_there():
    text = "One two three. Four five. " + "Six seven eight nine. " * 100_000
    assert [opening(text[:100], words) for words in (2, 3, 4, 5)] == [None, "One two three.", "One two three.", "One two three. Four five."]
    assert next(each_sentence("One two. X" + "x" * 1_000_000)) == "One two."


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=300), st.integers(1, 50))
def test_no_text_stops_the_cutter(text, words):
    cut = opening(text, words)
    assert cut is None or (1 <= len(cut.split()) <= words and len(cut.splitlines()) == 1)


# excerpts: what is cut says what its source said


@pytest.mark.parametrize("text,found", [
    ("No. Stopping at once is dangerous.", ["No.", "Stopping at once is dangerous."]),
    ("Take No. 5 first. No. 6 comes later.", ["Take No. 5 first.", "No. 6 comes later."]),
    ("About pp. 2 to 5 of it. It is mild.", ["About pp. 2 to 5 of it.", "It is mild."]),
    ("Drugs, i.e. pills, help. Take max. 4 tablets a day.", ["Drugs, i.e. pills, help.", "Take max. 4 tablets a day."]),
    ("1. Rest.\n2) Drink.\n(3) Sleep.", ["Rest.", "Drink.", "Sleep."]),
    ("The answer is no. You should not.", ["The answer is no.", "You should not."]),
    ("More detailed information is available at www.example.org. Gout hurts.", ["Gout hurts."]),
    ("Please visit our page on gout. You can read more about it on the website of the clinic. Gout hurts.", ["Gout hurts."]),
    ("Thank you for your question. Hello! I hope this helps. Gout hurts.", ["Gout hurts."]),
    ("Thanks to antibiotics, most people recover. Hi, it is angina. Take care of the wound. If you have other signs, call.",
     ["Thanks to antibiotics, most people recover.", "Hi, it is angina.", "Take care of the wound.", "If you have other signs, call."]),
    ("No information on safety is available in children.", ["No information on safety is available in children."]),
])
def test_what_a_sentence_is(text, found):
    assert sentences(text) == found


@pytest.mark.parametrize("sentence", [
    "It is a painkiller.", "They pass.", "This helps.", "These are mild.", "Such drugs help.", "Both are safe.", "However, rest helps.", "Therefore, we rest.",
    "In addition, ice helps.", "For example, walk.", "Another cause is gout.", "Others rest.", "When it hurts, rest.", "If they itch, call.", "Because of this, rest.",
    "Its cause is unknown.", "People with these signs need help.", "The other type is rare.", "Not everyone gets it.", "Most of them recover.", "In this case, wait.",
    "The second step is rest.", "As a result, it hurts.", "He or she will ask questions.", "Here it is mild.", "Usually it passes.", "Also, ice helps."])
def test_sentences_that_need_the_one_before_them(sentence):
    assert leans(sentence)


@pytest.mark.parametrize("sentence", [
    "Gout is a disease.", "It is important to rest.", "It is estimated that 1 in 500 people have gout.", "Both parents and children get it.", "Doctors such as surgeons help.",
    "There is no cure.", "Those who smoke have a higher risk.", "If you faint, call 911.", "Also called hay fever, it makes the nose run.", "One in five people has it.",
    "No vaccine exists.", "Other than rest, nothing helps."])
def test_sentences_that_need_nothing(sentence):
    assert not leans(sentence)


@pytest.mark.parametrize("text,cut", [
    ("No, ibuprofen should not be taken with warfarin. It is a painkiller.", "No, ibuprofen should not be taken with warfarin. It is a painkiller."),
    ("No. Stopping at once can be dangerous. Your doctor lowers the dose.", "No. Stopping at once can be dangerous. Your doctor lowers the dose."),
    ("Definitely not! It is dangerous.", "Definitely not! It is dangerous."),
    ("Never take both. They interact.", "Never take both. They interact."),
    ("I would not recommend that. It is an antibiotic.", "I would not recommend that. It is an antibiotic."),
    ("Thank you for your question. No, it is not safe. It is strong.", "No, it is not safe. It is strong."),
    ("No, " + "very " * 50 + "bad. It is a painkiller.", None),
    ("Call 911 if you have:\n- chest pain\n- trouble breathing\nStay calm.", "Call 911 if you have: chest pain; trouble breathing. Stay calm."),
    ("Call 911 if you have:\n1. chest pain\n2. trouble breathing", "Call 911 if you have: chest pain; trouble breathing."),
    ("Call 911 if you have:\nchest pain\ntrouble breathing", "Call 911 if you have: chest pain; trouble breathing."),
    ("Call 911 if:\nThe bleeding does not stop. The bleeding began after a blow.", "Call 911 if: The bleeding does not stop; The bleeding began after a blow."),
    ("Call 911 if:\nYou faint.\nYou cannot breathe.", "Call 911 if: You faint; You cannot breathe."),
    ("Take it with:\n• milk\n• food, such as:\n• bread\n• rice\nDrink water.", "Take it with: milk; food, such as: bread; rice. Drink water."),
    ("Gout has four signs. They are as follows.\n- pain\n- heat", "Gout has four signs. They are as follows: pain; heat."),
    ("Call 911 if:\n- you faint\nIt is urgent then.\n- you bleed", None),
    ("Call 911 if:", None),
    ("Red flags are:\nFever\nPhysical Exam\nThe doctor listens to your chest.", None),
    ("- You have an ulcer.\n- You are ill.", None),
    ("Rest: it helps most. The ratio is 1:2. Walk (i.e. slowly).", "Rest: it helps most. The ratio is 1:2. Walk (i.e. slowly)."),
    ("Gout hurts. Avoid aspirin if:\n- " + "\n- ".join(f"you have sign {n} of many" for n in range(20)) + "\nIt is strong.", "Gout hurts."),
    ("Herbs are sold as a remedy. However, " + "very " * 45 + "few help.", None),
    ("Gas has many signs that pass. Burping. " + "Burping " + "very " * 45 + "often is normal.", "Gas has many signs that pass."),
    ("More information is available on the page about gout. See the page on aspirin.", None),
    ("Gout hurts. In the past, doctors knew ten kinds. Today they know six, of which " + "very " * 45 + "few are rare.", "Gout hurts."),
    ("Gout hurts. A doctor may do the following tests: Blood work. Blood is drawn. " + "Very " * 45 + "few hurt.", "Gout hurts."),
    ("Gout hurts. The signs may present as: Cold gout - when the toe is cold. Hot gout " + "very " * 45 + "often hurts.", "Gout hurts."),
    ("Gout hurts. There are two types of gout: The cold type is rare. The " + "very " * 45 + "warm type is not.", "Gout hurts."),
    ("Gout hurts. The tube is 1 inches long.", "Gout hurts."),
    ("Gout hurts. It harms the toes and toes and toes of men.", "Gout hurts."),
    ("Gout hurts. It grows worse with time If the toe is cold it swells.", "Gout hurts."),
    ("Gout hurts. A foundation offers an information page with recipes. A journal has a review of gout. You may have to register first.", "Gout hurts."),
    ("See the Trials section that follows for links. Gout hurts.", "Gout hurts."),
    ("Healthy adults\nGout needs no treatment.\nPregnant women\nGout needs a doctor.", None),
    ("Causes\nGout needs no treatment.", "Gout needs no treatment."),
    ("Gout hurts. It is the site of many problems. They include " + "very " * 45 + "many.", "Gout hurts."),
    ("Gout hurts. The animation below shows a toe. Spoken explanations are provided. Rest helps.", "Gout hurts. Rest helps."),
    ("Gout hurts. GeneTests lists the names of laboratories. In the Services tab, we provide a list of links.", "Gout hurts."),
    ("Gout hurts. Signs include: Red toes Cold and/or wet feet Loss of sleep Other kinds are rare.", "Gout hurts."),
    ("Take it with:\n- milk, or\n- food; and\n- water", "Take it with: milk; food; water."),
    ("Gout hurts. Titin has several functions within cells.", "Gout hurts."),
    ("Gout hurts. If you have cold toes, rest. If you have red toes, drink. Rest helps. If you have no toes, " + "very " * 45 + "well.", "Gout hurts."),
    ("Gout hurts. In men it is common. It is old. In women " + "very " * 45 + "few have it.", "Gout hurts."),
    ("Gout hurts. The doctor uses one of two formulasURR or others.", "Gout hurts."),
])
def test_what_is_cut_says_what_its_source_said(text, cut):
    assert excerpt(text, 45) == cut
    assert cut is None or excerpt_fault(cut, text) is None


@pytest.mark.parametrize("wrong,source", [
    ("It is a painkiller.", "No, do not take it. It is a painkiller."), ("Do not take it if: You faint.", "Do not take it if:\n- You faint.\n- You bleed."),
    ("You bleed.", "Do not take it if:\n- You faint.\n- You bleed."), ("You bleed.", "Do not take it if:\nYou faint.\nYou bleed."), ("Take two.", "Take two. Never take three.\n- x"),
    ("Rest helps most", "Rest helps most people."), ("Take it.", "Do not take it."), ("Ice helps. They are cheap.", "Ice helps. Plasters are good. They are cheap."),
    ("Rest cures it.", "Rest helps."), ("Ice helps. Rest helps.", "Rest helps. Ice helps."), ("It is safe.", "It is safe unless you bleed."), ("Safe for adults.", "It is not safe for adults."),
])
def test_the_check_finds_what_a_cutter_did_wrong(wrong, source):
    assert excerpt_fault(wrong, source) or wrong == "Take two."


def document(chance):
    "A text of blocks, and for each block what it is, the sentence that it would be in an answer, and its tokens."
    blocks, lines, number = [], [], 0
    for _ in range(chance.randint(1, 9)):
        number += 1
        kind = chance.choice(["plain"] * 4 + ["leaning"] * 3 + ["marked", "numbered", "bare", "heading", "pointer", "polite"])
        name = f"token{number}x"
        items = [f"thing {name}{letter} of yours" for letter in "abc"[: chance.randint(2, 3)]]
        if kind == "plain":
            said, tokens = f"Aspirin helps with {name}.", [name]
        elif kind == "leaning":
            said, tokens = chance.choice(["It", "They", "However, this", "Therefore, it", "Such drugs", "In addition, it"]) + f" may cause {name}.", [name]
        elif kind in ("marked", "numbered", "bare"):
            said, tokens = f"Do not take {name} if you have:", [name, *(item.split()[1] for item in items)]
        else:
            said, tokens = {"heading": f"Facts {name}", "pointer": f"See the page on {name}.", "polite": "Thank you for your question."}[kind], [name]
        if kind in ("marked", "numbered", "bare"):
            lines.append("\n".join([said, *(f"- {item}" if kind == "marked" else f"{place}. {item}" if kind == "numbered" else item for place, item in enumerate(items, 1))]))
        else:
            lines.append(said)
        blocks.append((kind, tokens))
    joins = [" " if before[0] in ("plain", "leaning", "pointer", "polite") and chance.random() < 0.6 and after[0] != "heading" else "\n" for before, after in zip(blocks, blocks[1:])]
    return "".join(line + join for line, join in zip(lines, [*joins, ""])), blocks


@pytest.mark.parametrize("piece", ["1", "A-", "A ", "- ", "- a\n", "a:\n- b\n", "No. ", "It is. ", "a; ", "Signs:\n", "x.5 ", "<a ", "(", "[see ", "Thank you ", "A Heading The "])
def test_no_repetition_takes_a_long_time(piece):
    text, began = piece * 4000, time.process_time()
    excerpt(text, 45)
    excerpt_fault("Rest helps. It is good.", f"Rest helps. {text} It is good.")
    excerpt_fault(" ".join(text.split())[:400] + ".", text)
    assert time.process_time() - began < 6


LISTS = ("marked", "numbered", "bare")


@pytest.mark.parametrize("seed", range(400))
def test_nothing_is_left_out_that_the_rest_needs(seed):
    "Texts whose structure is known: an answer holds a list whole, a leaning sentence with the one before it, and begins where something stands alone."
    chance = random.Random(seed)
    text, blocks = document(chance)
    cut = excerpt(text, chance.choice([8, 15, 25, 45, 90]))
    if cut is None:
        return
    inside = [all(token in cut for token in tokens) for _, tokens in blocks]
    for place, (kind, tokens) in enumerate(blocks):
        assert kind not in LISTS or inside[place] or not any(token in cut for token in tokens), (text, cut)
        if kind == "leaning" and inside[place]:
            before = [one for one in range(place) if blocks[one][0] not in ("heading", "polite")]
            assert not before or inside[before[-1]], (text, cut)
    content = [place for place, (kind, _) in enumerate(blocks) if kind in ("plain", "leaning", *LISTS)]
    first = next(place for place in content if inside[place])
    assert first == content[0] or blocks[first][0] != "leaning", (text, cut)
    assert cut[-1] == "." and excerpt_fault(cut, text) is None, (text, cut, excerpt_fault(cut, text))


LEAN_WORDS = re.compile(r"(?:It|They|This|These|Those|Such|Both|However|Therefore|Thus|In addition|Its|Their)\b(?! (?:is|was|has been|may be) (?:\w+ )?\w+ (?:to|that)\b)")


def plain(text):
    return " ".join(re.findall(r"\w+", text.casefold()))


def wrong_with(answer, source):
    "A check that shares no code with the package: what is left out before a sentence with a pronoun, and items without their introduction."
    whole, last = f" {plain(source)} ", 0
    for number, sentence in enumerate(re.split(r"(?<=[.!?])\s+(?=[A-Z])", answer)):
        at = whole.find(f" {plain(sentence.split(': ')[0])} ", max(last - 1, 0))
        if at < 0:
            return f"not in its source: {sentence}"
        between = whole[last:at].split()
        if LEAN_WORDS.match(sentence) and len(between) > 12 and (number or last) and "; " not in answer:
            return f"left out before: {sentence}"
        last = at + len(plain(sentence.split(": ")[0]))
    rows = source.split("\n")
    for place, row in enumerate(rows):
        items = [one for one in rows[place + 1 : place + 9] if one.startswith("- ")]
        said = re.split(r"(?<=[.!?])\s", row)[-1]
        if row.endswith(":") and items and rows[place + 1].startswith("- "):
            names = [re.split(r"[.;!?]| - |: (?:An?|The) ", item[2:])[0] for item in items]
            inside = [plain(name) in plain(answer) or plain(re.sub(r" \([^()]*\)", "", name)) in plain(answer) for name in names]
            if plain(said) in plain(answer) and not all(inside[: next((n for n, one in enumerate(rows[place + 1 :]) if not one.startswith("- ")), len(items))]):
                return f"items left out of: {said}"
    return None if answer[-1] in ".!)\"'" else "it ends in the middle"


def drafts_of(found, words):
    from medlab.instruct import make_drafts

    for one in found:
        cleaned = examined(one)
        if cleaned.reason is None and one.task is None:
            split = SplitRecord(**{**cleaned.record.model_dump(), "group": "g", "split": "train"})
            for draft in make_drafts(split, words):
                yield split, draft


def test_a_whole_build_says_what_its_sources_say():
    """The twin of `test_medquad_as_it_is_built_says_what_its_pages_say`.

    Starter, rough and our own pages of MedQuAD's form: every built answer, checked by other code than the package's.
    """
    from own_data import FOLDER

    from medlab.sources.medquad import MedQuad
    from medlab.sources.rough import Rough
    from medlab.sources.starter import Starter

    found = [one for source in (Starter(), Rough(), MedQuad(FOLDER / "medquad")) for one in source.fetch() if hasattr(one, "kind")]
    checked = 0
    for one, draft in drafts_of(found, 60):
        if not isinstance(draft, str) and one.kind == "qa":
            checked += 1
            assert wrong_with(" ".join(draft.gold.values()), one.answer) is None, (draft.gold, one.answer)
    assert checked >= 30


def test_medquad_as_it_is_built_says_what_its_pages_say(shared_data):
    from medlab.sources.medquad import MedQuad

    found = [one for one in MedQuad(shared_data / "MedQuAD-master.zip").fetch() if hasattr(one, "kind") and (one.answer or "").strip()][::9]
    checked, wrong = 0, []
    for one, draft in drafts_of(found, 60):
        if not isinstance(draft, str) and "Signs and symptoms:" not in str(draft.gold) and not re.search(r"\d+ of \d+ patients|% of patients|Also: ", one.answer):
            checked += 1
            if fault := wrong_with(" ".join(draft.gold.values()), one.answer):
                wrong.append((fault, draft.gold, one.answer[:400]))
    assert checked > 1000 and len(wrong) <= checked / 500, wrong[:5]


# question and answer


@pytest.mark.parametrize("aspect", qa.PHRASINGS)
def test_ways_to_ask_differ_from_the_first_word_on(aspect):
    one = record("qa", question=f"Template about {aspect} of shingles?", answer="In shingles rest helps.", subject="Shingles", aspect=aspect)
    phrasings = qa.qa_questions(one)
    assert len(phrasings) >= 5 and phrasings[0] == one.question
    assert all("shingles" in phrasing.casefold() and phrasing[0].isupper() and "{" not in phrasing for phrasing in phrasings)
    assert len({" ".join(phrasing.casefold().split()[:4]) for phrasing in phrasings}) == len(phrasings)


@pytest.mark.parametrize("subject,inside", [("Gout", "gout"), ("Down Syndrome", "Down Syndrome"), ("HIV/AIDS", "HIV/AIDS"), ("Menkes disease", "Menkes disease")])
def test_a_name_keeps_its_capital(subject, inside):
    one = record("qa", question=f"What are the treatments for {subject}?", answer=f"People with {inside} live long.", subject=subject, aspect="treatment")
    assert f"How do doctors treat {inside}?" in qa.qa_questions(one)


def test_a_pair_without_subject_or_aspect_keeps_its_question():
    for more in ({}, {"subject": "Gout"}, {"aspect": "treatment"}, {"subject": "What is gout?", "aspect": "treatment"}):
        one = record("qa", question="Why does my toe hurt?", answer="It may be gout.", **more)
        assert qa.qa_questions(one) == ["Why does my toe hurt?"]


SUBJECTS = ["Gout", "Kidney Stones", "Down Syndrome", "HIV/AIDS", "Parkinson's Disease", "Diabetes", "von Willebrand disease", "E. Coli Infections",
            "Amyloidosis and Kidney Disease", "9q22.3 microdeletion", "Pinworm Infection (also known as Threadworm)", "A very long name of a rare inherited disease"]
CLUMSY = re.compile(
    r"\b(?:is|does|was) (?:kidney stones|e\. coli infections|amyloidosis and)|(?:stones|infections) (?:is|does|has)\b|[?.!]{2}|  |\(also|"
    r"\?: |\b(?:it|they)\b(?! take)", re.I)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("aspect", qa.PHRASINGS)
def test_every_way_is_grammatical_for_every_subject(subject, aspect):
    "Singular, plural, acronym, small letter, two subjects, long: no phrasing may need to know which."
    one = record("qa", question=f"What about {subject}?", answer=f"{subject} can be mild.", subject=subject, aspect=aspect)
    for phrasing in qa.qa_questions(one):
        assert not CLUMSY.search(phrasing) and phrasing[0] == phrasing[0].upper() and phrasing[-1] in "?." and "{" not in phrasing, phrasing
        assert subject.partition(" (")[0].casefold() in phrasing.casefold()


@pytest.mark.parametrize("subject", ["hiccups", "Kidney stones", "HIV/AIDS", "Down syndrome"])
@pytest.mark.parametrize("kind", [*pages.PHRASINGS, "Hiccups and sleep"])
def test_every_way_to_ask_for_a_section_is_grammatical(subject, kind):
    heading = {"overview": "Overview", "symptoms": "Symptoms", "causes": "Causes", "prevention": "Prevention", "treatment": "Treatment", "tests": "Tests",
               "risk": "Who is at risk", "outlook": "Outlook", "help": "When to see a doctor", "danger": "Emergency", "question": "Can I swim?",
               "other": "Work"}.get(kind, kind)
    assert pages.section_kind(heading, subject) == ("other" if kind == "Hiccups and sleep" else kind)
    for phrasing in pages.page_questions(subject, heading):
        assert not re.search(r"\b(?:is|does|has) (?:hiccups|kidney stones)|[?.]{2}|\b(?:I mean|said of)\b", phrasing, re.I) and phrasing[0] == phrasing[0].upper(), phrasing


@pytest.mark.parametrize("question,subject,aspect", [
    ("How to prevent?", None, "prevention"), ("What is?", None, None), ("What are the symptoms?", "", "symptoms"),
    ("What is Keep your mouth healthy?", "Keep your mouth healthy", "information"),
    ("What are the treatments for Surviving Cancer?", "Surviving Cancer", "treatment"),
    ("What is I Can Lower My Risk for Type 2 Diabetes: A Guide for American Indians?", "I Can Lower My Risk for Type 2 Diabetes: A Guide for American Indians", "information"),
    ("Who is at risk for Oxygen Therapy?", "Oxygen Therapy", "susceptibility"),
])
def test_a_question_that_nobody_would_ask_is_left_out(question, subject, aspect):
    one = record("qa", question=question, answer="Rest helps with most things.", subject=subject, aspect=aspect)
    assert reasons(qa.build, one) == ["the question does not fit its subject, or there is no subject"]


@pytest.mark.parametrize("text,answer", [
    ("However, it is rare. Gout is a disease of joints.", "Gout is a disease of joints."),
    ("Yes. Although there is no cure, it can be treated.", "Yes. Although there is no cure, it can be treated."),
    ("Gout is painful. Gout is painful. It passes.", "Gout is painful. It passes."),
    ("Below are some examples. Rest helps.", "Rest helps."),
    ("Preventing Gout Attacks There is one way to do so.", "There is one way to do so."),
    ("Preventing Gout Attacks There are several ways to do so.", None),
    ("This content is provided as a service of an institute. Rest helps.", "Rest helps."),
    ("References National Library of Medicine, 2009. Aniridia is rare.", "Aniridia is rare."),
])
def test_an_answer_stands_without_its_neighbours(text, answer):
    assert qa.qa_answer(text, 45) == answer


@pytest.mark.parametrize("subject,asked", [
    ("Parasites - Babesiosis", "Who is at risk for Babesiosis?"), ("Pinworm (also known as Threadworm)", "Who is at risk for Pinworm?"),
    ("What I need to know about Living with Gout", "Who is at risk for Gout?"),
])
def test_the_frame_of_a_title_stands_in_no_question(subject, asked):
    one = record("qa", question=f"Who is at risk for {subject}?", answer="Everybody can get it.", subject=subject, aspect="susceptibility")
    phrasings = qa.qa_questions(one)
    assert phrasings[0] == asked and not any("Parasites" in phrasing or "known" in phrasing or "Living" in phrasing for phrasing in phrasings)


def test_an_answer_about_something_else_is_no_answer():
    one = record("qa", question="What is psoriasis?", answer="Light therapy uses rays to treat lesions of the skin.", subject="Psoriasis", aspect="information")
    assert reasons(qa.build, one) == ["the answer does not mention the subject of the question"]
    assert built(qa.build, one.model_copy(update={"answer": "Psoriasis is a disease of the skin."}))
    lyme = record("qa", question="What are the treatments for Machado-Joseph Disease?", subject="Machado-Joseph Disease", aspect="treatment",
                  answer="Lyme disease is treated with antibiotics.")
    assert reasons(qa.build, lyme) == ["the answer does not mention the subject of the question"]


def test_symptoms_are_three_fields_only_where_all_three_are_said():
    said = ["Most headaches are due to a virus.", "Call 911 if you have it with a stiff neck.", "If a headache lasts a week, see your doctor."]
    one = record("qa", question="What are the symptoms of headache?", subject="Headache", aspect="symptoms", answer="Pain in the head. " + " ".join(said))
    assert [made.gold for made, _ in built(qa.build, one)] == [dict(zip(("causes", "red_flags", "next_step"), said))]
    for missing in said:
        less = one.model_copy(update={"answer": one.answer.replace(missing, "")})
        assert [made.task for made, _ in built(qa.build, less)] == ["medical_qa"]


def asked_of(aspect, answer, subject="Glass Wrist", question=""):
    "The answers that are built of a pair, else the reason."
    one = record("qa", question=question or f"What of {subject}?", subject=subject, aspect=aspect, answer=answer)
    return [made if isinstance(made, str) else made[0].gold["answer"] for made in qa.build(one, 90)]


@pytest.mark.parametrize("aspect,answer,reason", [
    ("causes", "Not a Normal Part of Life Nearly one in three cases of glass wrist is caused by thin bones.", "heading is glued"),
    ("causes", "Glass wrist is caused by falls. Why Milk Is Important Milk holds calcium for the bones of the wrist.", "heading is glued"),
    ("stages", "After glass wrist has been diagnosed, tests are done to find out its stage. It is important to know the stage of the disease in order to plan.", "does not speak"),
    ("symptoms", "The signs of glass wrist vary from person to person. Their severity depends on age. See a doctor soon.", "does not speak"),
    ("information", "The Eastwood Wrist Foundation Laboratory offers services for people with glass wrist and their doctors.", "does not speak"),
    ("treatment", "There are different types of treatment for glass wrist. Because cancer in children is rare, taking part in a trial should be considered. "
     "Surgery " + "very " * 95 + "often helps.", "tells nothing"),
    ("causes", "Glass wrist is caused by falls. In people with BQRD it is caused by thin bones.", "abbreviation"),
    ("causes", "Glass wrist runs in families by a gene. A fall and BQRD may cause it too.", "abbreviation"),
    ("treatment", "There is no cure for BQRD. Rest and plaster help the wrist.", "abbreviation"),
    ("prevention", "Glass wrist is preventable. You can take steps to prevent glass wrist and other diseases of the bones and of the joints.", "does not speak"),
    ("prevention", "To prevent glass wrist, you need to know what causes it.", "does not speak"),
    ("causes", "To find the cause of glass wrist, your doctor may test your blood.", "does not speak"),
    ("causes", "Two million people have glass wrist, a leading cause of bad handwriting.", "does not speak"),
    ("research", "A cast is a bandage with plaster that keeps the glass wrist still.", "does not speak"),
    ("research", "The Institute supports studies on the brain and on the nerves of all people.", "does not speak"),
    ("susceptibility", "The wrist worm lives in snails and is passed on by rats. Glass wrist is what it makes.", "does not speak"),
    ("stages", "Tests are done before treatment begins. It is important to know the stage in order to plan for glass wrist.", "does not speak"),
    ("symptoms", "All chest pain should be checked by a doctor. The signs of glass wrist are similar to those of gout.", "does not speak"),
    ("inheritance", "Glass wrist is inherited in an autosomal dominant pattern. " + "Rarely, " + "very " * 95 + "rarely, it is X-linked.", "leaves out a pattern"),
])
def test_an_answer_that_lacks_what_was_asked_is_not_built(aspect, answer, reason):
    (said,) = asked_of(aspect, answer)
    assert reason in said, said


@pytest.mark.parametrize("aspect,answer", [
    ("stages", "Glass wrist has three stages. In stage I the bone is thin, and in stage II it breaks."),
    ("symptoms", "The signs of glass wrist vary, but most people have pain and a swollen hand."),
    ("symptoms", "Glass wrist often has no symptoms."),
    ("information", "Glass wrist is a disease of the bones. The National Institute of Bones studies it."),
    ("causes", "Glass wrist is caused by falls. In the United States of America, ice is a common cause."),
    ("genetic changes", "Glass wrist is caused by mutations in a gene. The protein binds to BQRD."),
    ("treatment", "There is no cure for GW. Rest and plaster help the wrist."),
    ("causes", "Ice on the road is a common cause of glass wrist."), ("research", "Scientists study glass wrist in mice."), ("susceptibility", "Women get glass wrist more often than men."),
    ("inheritance", "Glass wrist is inherited in an autosomal dominant or an X-linked pattern."),
    ("prevention", "You can take steps to prevent glass wrist: wear gloves."), ("prevention", "There is no known way to prevent glass wrist."),
])
def test_an_answer_that_has_it_is_built(aspect, answer):
    assert asked_of(aspect, answer) == [answer]


def test_a_part_of_a_page_about_something_else_is_no_answer():
    answer = "There is no cure for glass wrist. Rest and plaster help the bone. How might a tumour of the hand be treated? Surgery removes it, and then drugs are given."
    assert asked_of("treatment", answer)[0].startswith("There is no cure for glass wrist.")


def test_a_doctor_does_not_mention_storms():
    one = record("qa", question="Do you have information about Hailstones", subject="Hailstones", aspect="information", answer="Hailstones are balls of ice that fall in a storm.")
    (_, phrasings), = built(qa.build, one, 90)
    assert phrasings and not any("doctor" in phrasing for phrasing in phrasings)


@pytest.mark.parametrize("subject,answer,asked", [
    ("Pure Glass Wrist", "PGW is rare.", "(PGW)"), ("Pure Glass Wrist", "It is a pain. PGW generally passes.", "(PGW)"),
    ("pure glass wrist type 1", "PGW1 is caused by mutations in a gene.", "(PGW1)"),
    ("Pain of Glass and Wrist", "Pain of glass and wrist is rare. PG/W is not.", ""),
    ("Pain of Glass and Cold Wrist", "It is a pain. PG/CW is caused by ice.", "(PG/CW)"), ("Pure Glass Wrist", "Pure glass wrist (PGW) is rare. PGW is cold.", ""),
])
def test_an_abbreviation_of_the_subject_stands_in_the_question(subject, answer, asked):
    one = record("qa", question=f"What causes {subject}?", subject=subject, aspect="causes", answer=f"{answer} It is caused by falls.")
    (made, phrasings), = built(qa.build, one, 90)
    assert all((asked in phrasing) if asked else ("(" not in phrasing) for phrasing in phrasings), phrasings


def test_a_question_of_a_source_without_its_mark_gets_it_and_a_title_is_short():
    one = record("qa", question="Do you have information about Glass Wrist", subject="Glass Wrist", aspect="information", answer="Glass wrist is a disease.")
    assert qa.qa_questions(one)[0] == "Do you have information about Glass Wrist?"
    lice = one.model_copy(update={"question": "What is Parasites - Lice - Sand Lice?", "subject": "Parasites - Lice - Sand Lice"})
    assert not any(" - " in phrasing for phrasing in qa.qa_questions(lice))
    twice = one.model_copy(update={"question": "What causes Glassitis: Wrist Infection?", "subject": "Glassitis: The Wrist Infection", "aspect": "causes"})
    assert "Why do people get Glassitis?" in qa.qa_questions(twice)

# labels

SECTIONS = {
    "boxed_warning": "WARNING: LIVER INJURY Calmodol can cause fatal liver injury.",
    "indications_and_usage": "1 INDICATIONS AND USAGE Calmodol is indicated for cramps in adults ( 1.1 ).",
    "adverse_reactions": "6 ADVERSE REACTIONS Because clinical trials are conducted under varying conditions, rates are not comparable. "
    "The most common adverse reactions (≥ 5%) are nausea and rash [see Warnings (5.1)].",
    "warnings_and_cautions": "5 WARNINGS AND PRECAUTIONS Avoid alcohol.",
}


def test_a_label_gives_three_sentences_of_its_sections():
    (made, phrasings), = built(labels.build, record("label", subject="CALMODOL", sections=SECTIONS), 60)
    assert made.task == "drug_information" and made.gold == {
        "use": "Calmodol is indicated for cramps in adults.", "side_effects": "The most common adverse reactions (≥ 5%) are nausea and rash.",
        "caution": "Calmodol can cause fatal liver injury."}
    assert len(phrasings) >= 12 and all("calmodol" in phrasing.casefold() for phrasing in phrasings)


@pytest.mark.parametrize("gone,word", [(["indications_and_usage"], "use"), (["adverse_reactions"], "side effects"), (["boxed_warning", "warnings_and_cautions"], "caution")])
def test_a_label_without_one_of_the_three_gives_nothing(gone, word):
    sections = {name: text for name, text in SECTIONS.items() if name not in gone}
    assert reasons(labels.build, record("label", subject="Calmodol", sections=sections), 60) == [f"the label has no sentence on {word} that fits into 60 words"]


def test_what_the_source_calls_its_sections_is_what_the_builder_reads():
    "A label through our own source: an example, not 'no sentence on use'."
    from medlab.sources.openfda import read_label

    raw = {
        "set_id": "00000000-0000-4000-8000-000000000001", "indications_and_usage": ["1 INDICATIONS AND USAGE Calmodol is indicated for cramps in adults."],
        "adverse_reactions": ["6 ADVERSE REACTIONS The most common adverse reactions were nausea and rash."],
        "warnings_and_cautions": ["5 WARNINGS AND PRECAUTIONS 5.1 Fainting Calmodol can cause fainting when standing up."],
        "openfda": {"brand_name": ["CALMODOL"], "generic_name": ["CALMODINE"]}}
    read = read_label(raw, "label 1", "0" * 64, "2026-01-31T12:00:00+00:00")
    (made, phrasings), = built(labels.build, SplitRecord(**{**read.model_dump(), "group": "g", "split": "train"}), 60)
    assert made.gold == {"use": "Calmodol is indicated for cramps in adults.", "side_effects": "The most common adverse reactions were nausea and rash.",
                         "caution": "Calmodol can cause fainting when standing up."}
    assert all("calmodine" in phrasing.casefold() for phrasing in phrasings)


def test_recorded_labels_give_sentences_or_reasons(shared_data):
    seen = 0
    for path in sorted((shared_data / "recorded" / "openfda").glob("label_*.json")):
        found = json.loads(path.read_text())
        for row in found.get("results", [found]):
            sections = {name: " ".join(texts) for name, texts in row.items() if isinstance(texts, list) and all(isinstance(text, str) for text in texts)}
            one = record("label", subject=path.stem, sections=sections)
            outcomes = list(labels.build(one, 120))
            assert outcomes and len(reasons(labels.build, one, 120)) <= 1
            seen += 1
            plain = " ".join(" ".join(sections.values()).split())
            for made, _ in built(labels.build, one, 120):
                assert all(re.sub(r"\W", "", value)[:30] in re.sub(r"\W", "", plain) for value in made.gold.values())
    assert seen >= 3


def test_recorded_labels_give_examples_in_a_default_build(shared_data):
    "Trimmed labels and labels without a section on side effects still answer questions about the sections that they have."
    from medlab.cleaning.records import examined
    from medlab.instruct import make_drafts
    from medlab.sources.openfda import read_label

    made = {}
    for path in sorted((shared_data / "recorded" / "openfda").glob("label_*.json")):
        found = json.loads(path.read_text())
        for row in found.get("results", [found]):
            read = read_label(row, "p", "0" * 64, "2026-01-31T12:00:00+00:00")
            if hasattr(read, "sections"):
                drafts = make_drafts(SplitRecord(**{**examined(read).record.model_dump(), "group": "g", "split": "train"}), 45)
                made[read.subject] = [draft.topic.partition(": ")[0] for draft in drafts if not isinstance(draft, str)]
    assert len(made) >= 3 and all(made.values()), made


def test_labels_with_the_habits_of_real_ones_give_examples_in_a_default_build():
    "The twin of `test_recorded_labels_give_examples_in_a_default_build`: the syrup's label has no section on side effects, one of the page is trimmed."
    from medlab.instruct import make_drafts
    from medlab.sources.openfda import read_label

    own, made = own_json("openfda.json"), {}
    for row in (own["syrup"], own["tablets"], *own["page"]["results"]):
        read = read_label(row, "p", "0" * 64, "2026-01-31T12:00:00+00:00")
        if hasattr(read, "sections"):
            drafts = make_drafts(SplitRecord(**{**examined(read).record.model_dump(), "group": "g", "split": "train"}), 45)
            made[read.subject] = [draft.topic.partition(": ")[0] for draft in drafts if not isinstance(draft, str)]
    assert set(made) == {"paranol", "zanitinib", "zanimertinib"} and all(made.values()), made


def test_labels_with_the_habits_of_real_ones_give_sentences_or_reasons():
    "The twin of `test_recorded_labels_give_sentences_or_reasons`: openFDA's own field names, a page with labels whose sections are missing."
    own, made, answers = own_json("openfda.json"), {}, {}
    for row in (own["syrup"], own["tablets"], *own["page"]["results"]):
        sections = {name: " ".join(texts) for name, texts in row.items() if isinstance(texts, list) and all(isinstance(text, str) for text in texts)}
        first, *others = labels.build(record("label", subject="Zanitinib", sections=sections), 120)
        made[row["set_id"][-4:]] = first
        answers[row["set_id"][-4:]] = [one.gold["answer"] for one, _ in others]
    assert made["a002"][0].gold == {
        "use": "Zanitinib tablets are indicated for adults with zana tumours that carry the Q9 change, as shown by a test.",
        "side_effects": "The most common adverse reactions (≥ 25%) are dry lips and vivid dreams.", "caution": "Zanitinib must not be given to people with zana anaemia."}
    missing = "the label has no sentence on {} that fits into 120 words"
    assert {key: found for key, found in made.items() if key != "a002"} == {
        "a001": missing.format("side effects"), "a005": missing.format("side effects and caution"),
        **dict.fromkeys(("a003", "a004"), missing.format("use and side effects and caution"))}
    assert answers["a001"] == ["Stop use and ask a doctor if: the fever is still there on the fourth day; a rash appears. These may be signs of something worse."]
    assert all(answer[0].isupper() and answer[-1] == "." for found in answers.values() for answer in found)


# multiple choice


def item(explanation, **more):
    return record("mcq", **{"question": "Which test comes next?", "options": OPTIONS, "gold": {"letter": "C"}, "answer": explanation, **more})


@pytest.mark.parametrize("explanation,analysis", [
    ("A cavity means tuberculosis. A smear shows whether he is infectious.", "A cavity means tuberculosis. A smear shows whether he is infectious."),
    ("Ans. (c) Sputum smear. In tuberculosis a smear is quick.", "In tuberculosis a smear is quick."),
    ("Answer- C. Sputum smearIn tuberculosis a smear is quick.", "In tuberculosis a smear is quick."),
    ("Ans: C. (Ref: Book 12/e p34)In tuberculosis a smear is quick.", "In tuberculosis a smear is quick."),
    ("The lung is large and has lobes. " * 20 + "In tuberculosis a smear is quick.", "In tuberculosis a smear is quick."),
])
def test_the_analysis_begins_where_the_verdict_ends(explanation, analysis):
    (made, phrasings), = built(choices.build, item(explanation), 30)
    assert made.gold["analysis"] == analysis and made.options[made.gold["letter"]] == OPTIONS["C"] and made.task == "clinical_reasoning"
    assert len({" ".join(phrasing.casefold().split()[:4]) for phrasing in phrasings}) >= 20


@pytest.mark.parametrize("explanation,more,word", [
    ("", {}, "no explanation"),
    ("Ans. A. Bronchoscopy. Look inside.", {}, "another option"),
    ("TB - cavity, smear", {}, "no whole sentence"),
    ("The lung is large and has lobes in it.", {}, "mentions the right option"),
    ("The hea is normal, so a smear of sputum is next.", {}, "letters are missing"),
    ("A smear of sputum is quick and cheap.", {"question": "Which test comes next, given the film shown below?"}, "picture"),
    ("A smear of sputum is quick and cheap.", {"gold": {"letter": "E"}}, "options"),
    ("A smear of sputum is quick and cheap.", {"gold": None}, "options"),
    ("A smear of sputum is quick and cheap.", {"options": {**OPTIONS, "A": "sputum  smear"}}, "options"),
    ("A smear of sputum is quick and cheap.", {"options": {**OPTIONS, "A": "Veical cut"}}, "letters are missing"),
    ("A smear of sputum is quick and cheap.", {"question": "The following lesion was seen. Which test comes next?"}, "picture"),
    ("Mohan H. Textbook of sputum, Medical Publishers; 2015.", {}, "no whole sentence"),
    ("A smear (of sputum is quick and cheap.", {}, "no whole sentence"),
])
def test_what_cannot_be_learnt_from_is_left_out_with_its_reason(explanation, more, word):
    found = reasons(choices.build, item(explanation, **more), 45)
    assert len(found) == 1 and word in found[0] and not built(choices.build, item(explanation, **more), 45)


def test_an_explanation_that_never_mentions_the_marked_option_shows_that_one_of_them_is_wrong():
    silent = "The chest is large and has two lobes on its left side, which a doctor hears best from behind when a patient breathes in and out."
    assert reasons(choices.build, item(silent, split="test")) == ["the explanation does not mention the option that is marked as right"]
    assert built(choices.build, item(f"{silent} A sputum smear shows the bacteria.", split="test"))


def test_the_name_of_an_exam_is_no_part_of_the_question():
    (made, phrasings), = built(choices.build, item("A smear of sputum is quick and cheap.", question="Which test comes next? (AIIMS May 2015, May 2014)"))
    assert made.question == "Which test comes next?" and not any("AIIMS" in phrasing for phrasing in phrasings)


def test_yes_no_maybe_about_a_text():
    one = item("Of the men, ten coughed less in the end.", options={"A": "yes", "B": "no", "C": "maybe"}, gold={"letter": "A"},
               question="Does water help?", text="We asked 40 men. " + "Each drank water daily for a month. " * 40)
    (made, phrasings), = built(choices.build, one)
    assert made.question == f"Does water help?\n{one.text.strip()}"  # the results stand at its end
    assert all(phrasing.count("\n") == 1 for phrasing in phrasings)
    for split in ("train", "test"):
        longer = one.model_copy(update={"text": one.text * 2, "split": split})
        assert reasons(choices.build, longer) == ["the text that it asks about has more than 300 words"]


def test_an_item_of_the_test_needs_no_explanation():
    for explanation in ("", "TB - cavity, smear", "The lung is large and has lobes in it."):
        (made, _), = built(choices.build, item(explanation, split="test"))
        assert made.options[made.gold["letter"]] == OPTIONS["C"] and set(made.gold) == {"letter"}
        assert reasons(choices.build, item(explanation, split="validation"))
    for more in ({"answer": "Ans. A. Bronchoscopy. Look inside."}, {"options": {**OPTIONS, "A": "sputum  smear"}}, {"question": "Which test comes next, given the film shown below?"}):
        assert reasons(choices.build, item(**{"explanation": "", "split": "test"} | {("explanation" if name == "answer" else name): value for name, value in more.items()}))


@pytest.mark.parametrize("explanation,word", [
    ("The 1VIentzer index of a smear is low in this disease.", "misread"), ("A smear of conju!gated dye shows the germ in sputum.", "misread"),
    ("A smear of sputum shows a hypeensive crisis at once.", "letters are missing"), ("A smear of sputum is the test that comes next.", "only repeats"),
    ("Bronchoscopy looks inside, and a lung function test or a smear follows it.", "another option"),
])
def test_an_explanation_that_is_damaged_or_supports_nothing_is_left_out(explanation, word):
    found = reasons(choices.build, item(explanation))
    assert len(found) == 1 and word in found[0]


SMEAR = "A smear of sputum is quick and shows the germ of tuberculosis."


@pytest.mark.parametrize("explanation", [
    "See the previous explanation.", "It is quick and a smear shows the germ.", "However, a smear of sputum is quick and cheap.", "These three smears of sputum are cheap and quick.",
    "According to the above table a smear of sputum is quick.", "Mainly a smear of the sputum, cheap and quick.", "Shown by a smear of sputum, which is cheap and quick.",
    "Smear- 2 samples of sputum are cheap and quick.", "Smear of sputum: it is cheap and quick.", "A smear of sputum is cheap Treatment is long and quick.",
    "We think that a smear of sputum is quick and cheap.", "A smear of sputum is quick and cheap. However, it is often wrong.", "Children under five years:\nA smear of sputum is quick and cheap.",
    "1) A smear of sputum is quick and cheap."])
def test_an_analysis_leans_on_nothing_that_is_left_out(explanation):
    words = 9 if "However, it" in explanation else 45
    assert not built(choices.build, item(explanation), words)
    if explanation.startswith("However"):  # it takes back what stands before it
        assert not built(choices.build, item(f"{SMEAR}\n{explanation}"), 12)
        return
    (made, _), = built(choices.build, item(f"{SMEAR}\n{explanation}"), 12)
    assert made.gold["analysis"] == SMEAR or made.gold["analysis"] in explanation


def test_an_analysis_is_one_passage_and_ends_where_its_subject_ends():
    for between in ("Cheap - quick, easy", "Caused by germs of one kind.", "Dose:"):
        (made, _), = built(choices.build, item(f"{SMEAR}\n{between}\nA smear is repeated on three days."), 45)
        assert made.gold["analysis"] == SMEAR
    (made, _), = built(choices.build, item(f"{SMEAR} Horses have long tails."), 45)
    assert made.gold["analysis"] == SMEAR


@pytest.mark.parametrize("more,word", [
    ({"options": {**OPTIONS, "A": "Sputum smear only"}}, "overlap"), ({"options": {**OPTIONS, "A": "Both 1 and 2"}}, "label"), ({"options": {**OPTIONS, "A": "a)Bronchoscopy"}}, "label"),
    ({"question": "Which of the following test comes next?"}, "grammatical"), ({"question": "He was schedule for surgery. Which test comes next?"}, "grammatical"),
    ({"question": "Which test shows Koplikov spots, as Koplykov said?"}, "misspelt"), ({"options": {**OPTIONS, "A": "Culture of Streptococcus aureus"}}, "misspelt"),
    ({"question": "Which test comes next, in the table?"}, "picture"), ({"question": "Which test of the anal spincter comes next?"}, "misspelt"),
])
def test_a_damaged_question_is_left_out_of_the_test_too(more, word):
    for split in ("train", "test"):
        found = reasons(choices.build, item(SMEAR, split=split, **more))
        assert len(found) == 1 and word in found[0]


def test_a_misspelt_explanation_is_no_analysis_but_its_item_can_be_scored():
    explanation = "A smear shows Koplikov germs. A smear of Koplykov germs in sputum is quick."
    assert "misspelt" in reasons(choices.build, item(explanation))[0]
    (made, _), = built(choices.build, item(explanation, split="test"))
    assert set(made.gold) == {"letter"}
    for sound in ("An anaemia or anemia shows in a smear at once, as lactose and lactase do.", "A smear shows abduction and adduction in a tumour or tumor at once."):
        assert built(choices.build, item(sound))


def test_an_analysis_decides_and_names_what_sets_its_option_apart():
    acids = {"A": "Ortho-ethoxy acid", "B": "Acetic acid", "C": "Alginic acid"}
    asked = {"question": "Which acid replaces eugenol in the cement?", "options": acids, "gold": {"letter": "A"}}
    assert reasons(choices.build, item("The acid of the cement replaces eugenol at low cost and sets within minutes.", **asked))
    assert built(choices.build, item("The ortho-ethoxy acid of the cement replaces eugenol at low cost and sets within minutes.", **asked))
    both = "The ortho-ethoxy acid and acetic acid of the cement both replace eugenol and set within minutes."
    assert "decide" in reasons(choices.build, item(both, **asked))[0]


@pytest.mark.parametrize("text", ["The way to the heart is short.", "Linseed oil, PAS stain and the ABO groups.", "So they pay for a port and start to report.", "Half of them do; pass it on."])
def test_sound_words_are_not_taken_for_damage(text):
    assert not choices.is_damaged(text)


def test_letters_are_balanced_and_the_same_in_every_run():
    explanation = "A smear of sputum is quick and shows the germ."
    made = [next(choices.build(item(explanation, id=str(number))))[0] for number in range(200)]
    letters = Counter(one.gold["letter"] for one in made)
    assert len(letters) == 4 and min(letters.values()) > 30
    assert all(one.options[one.gold["letter"]] == OPTIONS["C"] and sorted(one.options.values()) == sorted(OPTIONS.values()) for one in made)
    assert made == [next(choices.build(item(explanation, id=str(number))))[0] for number in range(200)]
    for last in ("None of the above", "Both A and B"):
        (one, _), = built(choices.build, item(explanation, options={**OPTIONS, "D": last}))
        assert one.options["D"] == last and one.options[one.gold["letter"]] == OPTIONS["C"]


def test_a_case_may_have_ten_options():
    options = {letter: f"{name} test" for letter, name in zip("ABCDEFGHIJ", "skin blood urine sweat breath tear stool hair nail smear".split())}
    (made, _), = built(choices.build, item("A smear of sputum is quick and shows the germ.", options=options, gold={"letter": "J"}))
    assert made.options[made.gold["letter"]] == "smear test" and len(made.options) == 10


def test_real_exam_items_are_built_or_refused_with_a_reason(shared_data):
    rows = [json.loads(line) for line in (shared_data / "medmcqa" / "dev.json").read_text().splitlines()]
    outcomes = Counter()
    for row in random.Random(1).sample(rows, 800):
        options = {letter: row[f"op{letter.lower()}"] for letter in "ABCD"}
        one = item((row["exp"] or "").strip(), question=row["question"], options=options, gold={"letter": " ABCD"[row["cop"]]})
        made, = choices.build(one, 60)
        outcomes[made.split(":")[0] if isinstance(made, str) else "built"] += 1
        if not isinstance(made, str):
            words = re.sub(r"\W", "", row["exp"])
            assert all(re.sub(r"\W", "", sentence) in words for sentence in sentences(made[0].gold["analysis"]))
    assert 5 < outcomes["built"] < 200 and outcomes["no explanation"] > 300 and outcomes["the explanation argues for another option"] < 10


def exam_item(row):
    "A row of MedMCQA's own files, whose right options are numbered from 1, as a record."
    return item((row["exp"] or "").strip(), question=row["question"], options={letter: row[f"op{letter.lower()}"] for letter in "ABCD"}, gold={"letter": " ABCD"[row["cop"]]})


#: Why rows of data/medmcqa.jsonl give no example; all others give one.
REFUSED = {1: "no explanation", 3: "not about the question", 4: "not about the question", 8: "mentions the right option", 9: "another option", 10: "picture", 11: "letters are missing",
           13: "mentions the right option", 14: "mentions the right option", 15: "not about the question", 16: "no explanation", 17: "two options are the same",
           18: "not about the question", 21: "not about the question", 22: "not about the question"}


@pytest.mark.parametrize("number, row", list(enumerate(own_lines("medmcqa.jsonl"), 1)), ids=lambda value: str(value) if isinstance(value, int) else "")
def test_exam_items_are_built_or_refused_with_a_reason(number, row):
    "The twin of `test_real_exam_items_are_built_or_refused_with_a_reason`: verdicts in many spellings, references, lists, lost letters, missing pictures."
    made, = choices.build(exam_item(row), 60)
    if number in REFUSED:
        assert isinstance(made, str) and REFUSED[number] in made
        return
    analysis, explanation = made[0].gold["analysis"], re.sub(r"\W", "", row["exp"])
    assert all(re.sub(r"\W", "", sentence) in explanation for sentence in sentences(analysis)) and len(analysis.split()) <= 60
    assert made[0].options[made[0].gold["letter"]] == row[f"op{' abcd'[row['cop']]}"] and not re.search(r"(?i)\bans|\bref\b|\bi\.e\b|AIIMS", analysis + made[0].question)


def test_questions_about_an_abstract_give_yes_no_maybe():
    "The twin of `test_pubmedqa_gives_yes_no_maybe`."
    letters, made = {"yes": "A", "no": "B", "maybe": "C"}, {}
    for pmid, row in own_json("pubmedqa.json").items():
        options = {letter: word for word, letter in letters.items()}
        made[pmid[-1]], = choices.build(item(row["LONG_ANSWER"], question=row["QUESTION"], options=options, gold={"letter": letters[row["final_decision"]]},
                                             text="\n".join(row["CONTEXTS"])), 90)
    assert "no whole sentence" in made.pop("6")
    assert {key: one.gold["letter"] for key, (one, _) in made.items()} == {"1": "A", "2": "B", "3": "C", "4": "A", "5": "B"}
    assert made["1"][0].question.startswith("Does a walk after supper help people with heartburn to sleep?\nLying down soon after a meal")


def test_pubmedqa_gives_yes_no_maybe(shared_data):
    rows = list(json.loads((shared_data / "pubmedqa" / "pqal_dev500.json").read_text()).values())[:60]
    letters = {"yes": "A", "no": "B", "maybe": "C"}
    made = [found for row in rows for found in built(choices.build, item(
        row["LONG_ANSWER"], question=row["QUESTION"], options={letter: word for word, letter in letters.items()},
        gold={"letter": letters[row["final_decision"]]}, text="\n".join(row["CONTEXTS"])), 90)]
    assert len(made) > 40 and {one.gold["letter"] for one, _ in made} >= {"A", "B"}


# pages and abstracts

PAGE = {"Overview": "Hiccups are sudden tugs of the diaphragm.", "Causes": "They are often caused by a full stomach.",
        "When to see a doctor": "See a doctor if they last two days.", "Call 999 if": "Call 999 if you also cannot speak.", "Weight": "- pounds\n- kilos"}


def test_a_page_gives_a_question_for_each_section_and_one_with_three_fields():
    one = record("page", subject="Hiccups", sections=PAGE)
    made = built(pages.build, one, 45)
    assert Counter(one.task for one, _ in made) == {"medical_qa": 5, "symptom_analysis": 1}
    assert made[0][0].gold == {"causes": PAGE["Causes"], "red_flags": PAGE["Call 999 if"], "next_step": PAGE["When to see a doctor"]}
    assert {one.gold["answer"] for one, _ in made[1:]} == {text for name, text in PAGE.items() if name != "Weight"} | {"Weight: pounds; kilos."}
    assert len({one.aspect for one, _ in made}) == 6
    assert reasons(pages.build, record("page", subject="Hiccups", sections={"Weight": "pounds, kilos"}), 45) == [
        "a section is not used: it has no whole sentence within 45 words that stands alone"]


@pytest.mark.parametrize("heading", ["Causes", "Symptoms of it", "How is it treated?", "Weight", "Can I swim?", "Call 999 if", "Who is at risk?", "Outlook"])
def test_every_heading_has_ways_to_ask_that_begin_differently(heading):
    phrasings = pages.page_questions("hiccups", heading)
    assert len(phrasings) >= 4 and len({" ".join(phrasing.casefold().split()[:4]) for phrasing in phrasings}) == len(phrasings)


@pytest.mark.parametrize("heading,kind", [
    ("Foods to avoid", "other"), ("Why it's used", "other"), ("How long to take it for", "other"), ("Non-urgent advice: See a GP if", "help"),
    ("Urgent advice: Call your GP", "danger"), ("Call an ambulance if", "danger"), ("What causes acne?", "causes"), ("Can I drink alcohol with it?", "question"),
])
def test_a_heading_is_of_a_kind_only_when_it_says_no_more(heading, kind):
    assert pages.section_kind(heading, "Acne") == kind


def test_a_list_of_links_is_no_answer():
    assert reasons(pages.build, record("page", subject="Acne", sections={"Useful contacts": "A club for skin."})) == ["a section is a list of links"]


def test_an_abstract_is_asked_for_what_it_concludes():
    one = record("abstract", title="Does water help?", text="We asked 40. In conclusion, water helps. Funded by nobody.")
    (made, phrasings), = built(pages.build, one)
    assert made.gold == {"answer": "In conclusion, water helps."} and phrasings[0] == "Does water help?"
    (made, phrasings), = built(pages.build, one.model_copy(update={"sections": {"METHODS": "We asked 40.", "INTERPRETATION": "Water may help."}}))
    assert made.gold == {"answer": "Water may help."}
    assert "no conclusion" in reasons(pages.build, one.model_copy(update={"text": "We asked 40. Ten drank."}))[0]


def test_recorded_abstracts_give_conclusions_of_their_own_words(shared_data):
    rows = [json.loads(line) for line in (shared_data / "pubmed_cc_abstracts" / "abstracts.jsonl").read_text().splitlines()]
    made = 0
    for row in rows:
        labelled = {part["label"]: part["text"] for part in row["abstract"] if part["label"]} or None
        text = "\n".join(part["text"] for part in row["abstract"])
        for one, phrasings in built(pages.build, record("abstract", title=row["title"], text=text, sections=labelled), 120):
            made += 1
            assert all(sentence.casefold() in " ".join(text.casefold().split()) for sentence in sentences(one.gold["answer"]))
            assert len(phrasings) >= 8
    assert made >= len(rows) / 3


def test_abstracts_with_and_without_labels_give_their_conclusions():
    "The twin of `test_recorded_abstracts_give_conclusions_of_their_own_words`."
    made = {}
    for row in own_lines("abstracts.jsonl"):
        labelled = {part["label"]: part["text"] for part in row["abstract"] if part["label"]} or None
        outcome, = pages.build(record("abstract", title=row["title"], text="\n".join(part["text"] for part in row["abstract"]), sections=labelled), 120)
        made[row["pmid"][-1]] = outcome if isinstance(outcome, str) else outcome[0].gold["answer"]
        assert isinstance(outcome, str) or len(outcome[1]) >= 8
    assert made == {
        "1": "Two litres more shortened a summer fever by half a day. A larger trial should look at older people.",
        "2": "In conclusion, a knee should be dry before a plaster goes on.", "3": "the abstract draws no conclusion in whole sentences within 120 words",
        "4": "Hiccups are rare after an anaesthetic, and they pass without treatment.", "5": "These findings suggest that young mice hear the highest tones best.",
        "6": "Patients with smooth soles should be given others before they are asked to walk.", "7": "Taken together, they show that short answers are wanted most.",
        "8": "We conclude that weighing halves the salt."}


BUILDERS = {"qa": qa.build, "label": labels.build, "mcq": choices.build, "page": pages.build, "abstract": pages.build}


@pytest.mark.parametrize("kind", BUILDERS)
def test_an_empty_record_is_a_reason_not_a_crash(kind):
    for one in (record(kind), record(kind, question="", answer="", text="", title="", subject="", sections={}, options={}, gold={})):
        outcomes = list(BUILDERS[kind](one))
        assert outcomes and all(isinstance(made, str) for made in outcomes)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(BUILDERS)), st.text(max_size=200), st.text(max_size=60), st.dictionaries(st.text(max_size=20), st.text(max_size=80), max_size=4))
def test_no_text_stops_a_builder(kind, text, short, sections):
    one = record(kind, question=short, answer=text, text=text, title=short, subject=short, aspect="symptoms", sections=sections,
                 options={"A": short, "B": text[:40]}, gold={"letter": "A"})
    for made in BUILDERS[kind](one, 30):
        if not isinstance(made, str):
            assert made[0].task and made[1] and all(len(str(value).splitlines()) == 1 for value in made[0].gold.values())
