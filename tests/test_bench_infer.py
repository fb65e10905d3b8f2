"The speed bench: both sides do the same work, what is not here is said, and an interrupted bench goes on."

import json

import pytest

from medlab.basics.errors import InputError
from medlab.basics.files import read_json, write_json
from medlab.bench import infer
from medlab.bench.infer import Timed, bench_infer, infer_plan, infer_table, ours, theirs_llama_cpp, theirs_transformers, timed_stream
from medlab.contracts.engine import Sampling
from medlab.engines.deployment import model_file
from medlab.engines.hf import HfEngine
from medlab.engines.llama_cpp import LlamaCppEngine
from medlab.contracts.chat import ChatFormat

SHORT = Sampling(length=6)


def test_both_sides_generate_the_same_tokens(smoke_run):
    folder = smoke_run[0].file("quantize", "merged")
    with LlamaCppEngine(model_file(smoke_run[0]), ChatFormat.from_folder(folder)) as engine:
        assert sum(ours(engine, SHORT)) == sum(theirs_llama_cpp(engine, SHORT)) > 1
    with HfEngine(folder) as engine:
        assert sum(ours(engine, SHORT)) == sum(theirs_transformers(engine, SHORT)) > 1


def test_a_stream_is_timed():
    assert Timed(1.0, 11, 3.0).speed == 5.0 and Timed(1.0, 1, 1.0).speed == 0.0
    assert timed_stream(iter([0, 1, 2])).tokens == 3


def test_a_machine_that_slows_down_changes_no_ratio():
    "Both sides slow down together, from turn to turn; each turn is compared with itself, so that what is added stays the same."
    turns = []

    def speed_now(ratio):
        turns.append(ratio)
        return ratio * 100 / (1 + (len(turns) - 1) // 2)

    taken = infer.by_turns({"medlab": lambda: speed_now(0.9), "direct": lambda: speed_now(1.0)}, 6)
    assert turns[:4] in ([1.0, 0.9, 0.9, 1.0], [0.9, 1.0, 1.0, 0.9]), "who begins changes"
    assert [len(found) for found in taken.values()] == [6, 6]
    assert infer.added(taken["medlab"], taken["direct"], ratio=True) == {"median": 0.9, "low": 0.9, "high": 0.9}


def test_what_fails_is_said_and_a_finished_part_is_kept(smoke_run, tmp_path, monkeypatch):
    run, asked = smoke_run[0], []

    def measured(work, **given):
        asked.append(given["engine"])
        if given["engine"] == "ollama":
            raise InputError("no Ollama here")
        side = {"first_ms": 10.0, "tokens_per_second": 50.0, "tokens_per_second_of_8": 80.0, "processor_ms": 9.0, "tokens": 6}
        more = {name: {"median": 0.98, "low": 0.97, "high": 1.01} for name in side}
        return {"bytes": 1000, "sides": {"medlab": side, "direct": {**side, "tokens_per_second": 51.0}}, "added": more, "peak_mb": 99.0, "others_cores": 0.1}

    monkeypatch.setattr(infer, "run_measured", measured)
    said = []
    found = bench_infer(run, ["f16"], length=6, repeats=1, report=said.append, out=tmp_path / "out.json")
    assert asked == ["llama_cpp", "ollama", "transformers"] and len(infer_plan(run, ["f16"])) == 3
    assert any("f16 on ollama: not run: no Ollama here" in line for line in said)
    assert any("(-2.0 %, -3.0 to +1.0)" in line and "99 MB" in line for line in said)
    table = infer_table(found)
    assert "| f16 on ollama | not run |" in table and "| f16 on llama_cpp | 10.0 | +1.0 | 50.0 | -2.0 %, -3.0 to +1.0 |" in table
    kept = read_json(tmp_path / "out.json")
    del kept["parts"]["f16 on ollama"]
    write_json(tmp_path / "out.json", {**kept, "finished": None})
    asked.clear()
    bench_infer(run, ["f16"], length=6, repeats=1, report=said.append, out=tmp_path / "out.json")
    assert asked == ["ollama"]
    assert json.loads((tmp_path / "out.json").read_text())["finished"]
    with pytest.raises(InputError, match="at least 2 tokens"):
        bench_infer(run, repeats=0)
