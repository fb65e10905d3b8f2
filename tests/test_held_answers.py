"Answers that are held to a JSON schema or a grammar, by real engines."

import json

import pytest

from medlab.basics.errors import InputError
from medlab.contracts.engine import Sampling

from test_engines import binary, chat, gguf, llama, ollama, server, smollm  # noqa: F401  (fixtures)
from test_models import user

SCHEMA = {
    "type": "object", "required": ["level", "because"], "additionalProperties": False,
    "properties": {"level": {"enum": ["urgent", "routine"]}, "because": {"type": "string", "maxLength": 60}},
}
QUESTION = user("A cough for a week. How soon?", "You are a careful medical assistant.")


@pytest.mark.parametrize("name", ["llama", "ollama"])
def test_an_answer_is_held_to_a_schema(request, name):
    engine = request.getfixturevalue(name)
    answer = engine.generate([QUESTION], Sampling(length=120, json_schema=SCHEMA))[0]
    found = json.loads(answer.text)
    assert set(found) == {"level", "because"} and found["level"] in ("urgent", "routine")


def test_an_answer_is_held_to_a_grammar_in_llama_cpp_alone(llama, request):  # noqa: F811
    sampling = Sampling(length=60, grammar='root ::= "Triage: " ("urgent" | "routine") "\\nReason: " [a-z ]{3,30}')
    answer = llama.generate([QUESTION], sampling)[0]
    first, second = answer.text.split("\n")
    assert first in ("Triage: urgent", "Triage: routine") and second.startswith("Reason: ")
    with pytest.raises(InputError, match="use the embedded llama.cpp"):
        request.getfixturevalue("ollama").generate([QUESTION], sampling)
