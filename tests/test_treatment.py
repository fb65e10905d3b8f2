"Treatment plans: the form is guaranteed with real engines, and plans are checked against the caller's facts."

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from medlab.api.treatment import SECTIONS, TreatmentRequest, check_value, medicines_in, plan_warnings, read_plan, recommend
from medlab.basics.errors import InputError
from medlab.basics.files import read_jsonl, shipped
from medlab.contracts.engine import Completion, Sampling
from medlab.contracts.records import Patient

from test_engines import binary, chat, gguf, llama, ollama, server, smollm  # noqa: F401  (fixtures)


def patient(**facts):
    return Patient(**({"age": 62, "sex": "female", "complaint": "A sore knee."} | facts))


@pytest.mark.parametrize(("name", "form"), [("llama", "lines"), ("ollama", "json")])
def test_the_form_is_kept_by_a_model_that_never_learnt_it(request, name, form):
    engine = request.getfixturevalue(name)
    reply = recommend(engine, None, Sampling(context=2048), TreatmentRequest(patient=patient(), samples=2 if form == "lines" else 1), "smollm")
    assert (reply.form, reply.format_valid, list(reply.sections)) == (form, True, list(SECTIONS.values()))
    assert all(reply.sections.values()) and reply.calibrated is False
    assert set(reply.uncertainty) == set(reply.sections) and 0 < reply.uncertainty["Follow-up"]["token_probability"] <= 1
    assert reply.uncertainty["Follow-up"].get("answers") == (2 if form == "lines" else None)


@pytest.mark.parametrize(
    ("facts", "plan", "kinds"),
    [
        ({"allergies": ["Penicillin (anaphylaxis)"]}, "Start co-amoxiclav 625 mg three times daily.", ["allergy"]),
        ({"allergies": ["penicillin"]}, "No penicillins; doxycycline 100 mg daily.", []),
        ({"allergies": ["elastoplast"]}, "Cover with Elastoplast.", ["allergy"]),
        ({"allergies": ["NSAIDs"]}, "Naproxen 250 mg twice daily.", ["allergy"]),
        ({"medications": ["warfarin 3 mg daily"]}, "Ibuprofen 400 mg as needed.", ["interaction"]),
        ({"medications": ["apixaban"]}, "Stop ibuprofen; paracetamol 1 g.", []),
        ({"medications": ["ibuprofen"]}, "Start apixaban 5 mg twice daily.", ["interaction"]),
        ({"medications": ["GTN spray"]}, "Sildenafil 50 mg.", ["interaction"]),
        ({"conditions": ["asthma"]}, "Bisoprolol 2.5 mg once daily.", ["condition"]),
        ({"conditions": ["CKD stage 4"]}, "Metformin 500 mg.", ["condition"]),
        ({"pregnancy": "24 weeks"}, "Doxycycline 100 mg daily.", ["pregnancy"]),
        ({"pregnancy": "no"}, "Doxycycline 100 mg daily.", []),
        ({}, "", []),
        # a "no" that belongs to something else
        ({"allergies": ["penicillin"]}, "If there is no improvement, give amoxicillin 500 mg.", ["allergy"]),
        ({"allergies": ["penicillin"]}, "Without delay give amoxicillin.", ["allergy"]),
        ({"allergies": ["penicillin"]}, "Do not wait for results before amoxicillin.", ["allergy"]),
        ({"allergies": ["NSAIDs"]}, "Stop smoking, ibuprofen 400 mg as needed.", ["allergy"]),
        ({"allergies": ["NSAIDs"]}, "No fever: ibuprofen 400 mg.", ["allergy"]),
        ({"allergies": ["NSAIDs"]}, "If paracetamol is not enough, naproxen.", ["allergy"]),
        ({"allergies": ["NSAIDs"]}, "Switch from codeine to ibuprofen.", ["allergy"]),
        ({"allergies": ["NSAIDs"]}, "Do not take or use ibuprofen, naproxen or aspirin.", []),
        ({"allergies": ["NSAIDs"]}, "Stop codeine and ibuprofen.", []),
        # other names of an allergy, and entries that are none
        ({"allergies": ["Augmentin"]}, "Amoxicillin 500 mg.", ["allergy"]),
        ({"allergies": ["flucloxacillin"]}, "Amoxicillin 500 mg.", ["allergy"]),
        ({"allergies": ["penicilin - rash in childhood"]}, "Amoxicillin 500 mg; childhood vaccines.", ["allergy"]),
        ({"allergies": ["No known drug allergies", "NKDA", "none reported"]}, "Avoid known triggers. Amoxicillin 500 mg, as reported.", []),
        ({"allergies": ["latex gloves"]}, "Wear gloves.", []),
    ],
)
def test_a_plan_is_checked_against_the_callers_facts(facts, plan, kinds):
    found = plan_warnings(patient(**facts), plan)
    assert [one["kind"] for one in found] == kinds
    assert all(one["basis"] and one["drug"] in one["message"] for one in found)


def test_what_the_starter_plans_forbid_is_not_in_their_own_medicines():
    "The plans that doctors' guidelines lead to give no warning, but for the few that give a relative of the allergen on purpose."
    rows = read_jsonl(shipped("data", "starter", "treatment_recommendation.jsonl"))
    allergic = [row for row in rows if row["patient"].get("allergies")]
    wrong = [row["key"] for row in allergic if any(one["kind"] == "allergy" for one in plan_warnings(Patient(**row["patient"]), row["fields"]["medication"]))]
    assert len(allergic) > 30 and len(wrong) <= len(allergic) // 10, wrong


@pytest.mark.parametrize(
    ("name", "value", "good"),
    [
        ("pulse", "80/min", True), ("pulse", "800/min", False), ("Blood pressure", "145/92 mmHg (home average)", True), ("blood pressure", "145/2 mmHg", False),
        ("temperature", "38.4 C", True), ("temperature", "384 C", False), ("creatinine", "1.1 mg/dL", True), ("creatinine", "88", False),
        ("potassium", "41 mmol/L", False), ("eGFR", "92 mL/min/1.73 m2", True), ("INR", "2.5", True), ("oxygen saturation", "97 % on air", True),
        ("BP", "900/20 mmHg", False), ("blood pressure", "80/120 mmHg", False), ("HR", "(900/min)", False), ("pulse", "-80/min", False), ("pulse", "80-900/min", False),
        ("pulse", "60-80/min", True), ("SpO2", "970 %", False), ("INR", "2.5 mg/dL", False), ("INR", "2.0-3.0 (on warfarin)", True), ("eGFR", "92 mL/min (stable)", True),
        ("grip", "whatever", True), ("ketones", "negative", True), ("glucose", "180 mg/dL", True), ("glucose", "180 mmol/L", False),
    ],
)  # fmt: skip
def test_values_and_units_are_checked(name, value, good):
    if good:
        check_value(name, value)
    else:
        with pytest.raises(InputError, match="expected"):
            check_value(name, value)


def test_the_starter_patients_pass_the_checks():
    for row in read_jsonl(shipped("data", "starter", "treatment_recommendation.jsonl")):
        for name, value in {**row["patient"].get("vitals", {}), **row["patient"].get("labs", {})}.items():
            check_value(name, value)


def test_a_dose_is_never_made_up():
    assert medicines_in("Consider a statin and paracetamol.") == []
    assert [(one["drug"], one["dose"], one["route"]) for one in medicines_in("Give prednisolone 40 mg by mouth daily, salbutamol 2 puffs inhaled")] == [
        ("prednisolone", "40 mg", "by mouth"), ("salbutamol", "2 puffs", "inhaled")]
    assert read_plan("Immediate actions: x", "lines") is None and read_plan('{"medication": 3}', "json") is None


def test_what_any_section_gives_is_checked_and_what_it_only_mentions_is_not():
    facts = TreatmentRequest(patient=patient(allergies=["penicillin"]))
    lines = {label: "Rest." for label in SECTIONS.values()}

    def warned(**changed):
        text = "\n".join(f"{label}: {changed.get(label.split()[0], words)}" for label, words in lines.items())
        engine = SimpleNamespace(name="llama_cpp", generate=lambda conversations, sampling: [Completion(text, 5, 5, 0.1, "stop")])
        reply = recommend(engine, None, Sampling(context=2048), facts, "toy", verdict=None)
        assert reply.format_valid
        return [one["drug"] for one in reply.warnings]

    last = list(lines)[-1].split()[0]
    assert warned(**{last: "Start amoxicillin 500 mg if it comes back."}) == ["amoxicillin"]
    assert warned(**{last: "Amoxicillin and its relatives can harm you. Rest."}) == []


def test_unknown_fields_are_refused():
    with pytest.raises(ValidationError):
        TreatmentRequest(patient=patient(), temperature=2)
