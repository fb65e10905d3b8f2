"""Inputs written for medlab's tests, in the sources' own formats: they hold the oddities of real answers, and stand in every clone.

Where recorded answers are at hand (`shared_data`), the tests beside these read those too. All drugs, diseases, papers and pages are made up.
"""

import json
import random
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "data"


def own_bytes(name):
    return (FOLDER / name).read_bytes()


def own_json(name):
    return json.loads(own_bytes(name))


def own_lines(name):
    "The rows of a JSON Lines file."
    return [json.loads(line) for line in own_bytes(name).decode().splitlines()]


# --- MedQuAD -------------------------------------------------------------------------------------------------------------


def medquad_zip(path, more=()):
    "The documents of data/medquad as GitHub packs the archive, with `more` (name, text) beside them; returns the path."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("MedQuAD-master/readme.txt", "Not a document.")
        for file in sorted((FOLDER / "medquad").rglob("*.xml")):
            archive.write(file, f"MedQuAD-master/{file.relative_to(FOLDER / 'medquad').as_posix()}")
        for name, text in more:
            archive.writestr(f"MedQuAD-master/{name}", text)
    return path


PLACES = ("ankle", "elbow", "throat", "left ear", "scalp", "lower back", "tongue", "wrist", "spleen", "jaw", "big toe", "eyelid", "shoulder", "knee", "gullet")
SIGNS = ("burns in the evening", "itches after a bath", "swells on warm days", "aches when it rains", "turns pale at night", "tingles before meals", "feels stiff at dawn",
         "throbs during exercise", "goes numb in the cold", "clicks on the stairs", "stings in salt water", "twitches under stress")
CARE = ("a cool cloth", "two days of rest", "gentle stretching", "more water and less salt", "a firm bandage", "an ointment with zinc", "a short course of tablets",
        "breathing exercises", "a softer mattress", "warm compresses", "a change of shoes", "a referral to a specialist")
TIMES = ("within a week", "by the second month", "after one winter", "in most families", "before the age of ten", "without any treatment", "only after an operation",
         "sooner in young adults", "slowly over the years", "once the cause was removed")
ASKED = {"information": "What is (are) {} ?", "symptoms": "What are the symptoms of {} ?", "treatment": "What are the treatments for {} ?", "causes": "What causes {} ?"}


def ailment(chance):
    "A name that no disease has."
    return f"{chance.choice('BDFGKLMNPRSTVZ')}{''.join(chance.choice(('ara', 'elo', 'imu', 'osti', 'une', 'yva', 'erri', 'olba')) for _ in range(3))}sis"


def made_up_documents(count, seed=1):
    "`count` documents of one pair each with long answers that share no passage, as (name, text)."
    chance = random.Random(seed)
    for number in range(count):
        name, (aspect, asked) = ailment(chance), chance.choice(sorted(ASKED.items()))
        said = [f"{name} is made up, and {chance.randint(11, 999)} people had it {chance.choice(TIMES)}."]
        for _ in range(5):  # numbers keep two documents from sharing thirteen words in a row
            said += [f"In {chance.randint(11, 999)} people the {chance.choice(PLACES)} {chance.choice(SIGNS)}.",
                     f"After {chance.randint(11, 999)} days {chance.choice(CARE)} helped {chance.choice(TIMES)}."]
        folder, source = chance.choice((("1_CancerGov_QA", "CancerGov"), ("5_NIDDK_QA", "NIDDK"), ("7_SeniorHealth_QA", "NIHSeniorHealth")))
        identity = f"9{number:06d}"
        yield f"{folder}/{identity}.xml", (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Document id="{identity}" source="{source}" url="https://example.org/{identity}">\n<Focus>{name}</Focus>\n<QAPairs>\n'
            f'\t<QAPair pid="1">\n\t\t<Question qid="{identity}-1" qtype="{aspect}">{asked.format(name)}</Question>\n\t\t<Answer>{" ".join(said)}</Answer>\n\t</QAPair>\n</QAPairs>\n</Document>\n'
        )
