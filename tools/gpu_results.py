"""Write data/results/gpu.json from what gpu_run.sh brought back: python tools/gpu_results.py OUT [RUN].

With `--score UNPACKED DATA` the answers are scored again here: UNPACKED is run.tgz unpacked, DATA the run folder that the bundle was made of.

OUT holds machine.json and results.json of the GPU machine. RUN is the run folder in which further variants (the GGUF) were evaluated on a CPU
afterwards; their rows and that computer are noted apart."""

import json
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent


def combined(machine: dict, found: dict, later: dict | None) -> dict:
    "The results of the GPU machine, which names its card and driver, and under `cpu` the variants that only a later evaluation elsewhere has."
    here = {row["variant"] for row in found["rows"]}
    apart = None
    if later:
        rows = [row for row in later["rows"] if row["variant"] not in here]
        comparisons = [row for row in later["comparisons"] if not {row["variant"], row["against"]} <= here]
        apart = {"hardware": later["hardware"], "packages": later["packages"], "rows": rows, "comparisons": comparisons}
    return {**found, "machine": machine, "cpu": apart}


def scored_again(found: dict, unpacked: Path, data: Path) -> dict:
    "The results with rows, comparisons, rivals and training from the answers and logs that came back, by the present rules."
    from medlab.contracts.predictions import read_predictions
    from medlab.contracts.tasks import read_examples
    from medlab.metrics.rivals import rival_rows
    from medlab.metrics.scores import CHOICES, compare, score

    predictions = read_predictions(unpacked / "evaluate" / "predictions.parquet")
    asked = {one.item_id for one in predictions}
    items = [one for one in read_examples(data / "instruct" / "test.jsonl") if one.id in asked]
    log, info = (json.loads((unpacked / "finetune" / name).read_text()) for name in ("training_log.json", "model_info.json"))
    training = {name: log[name] for name in ("seconds", "tokens", "tokens_per_second", "validation", "lost")} | {
        "backend": log["method"]["backend"], "compute": log["method"]["compute"], "steps": len(log["steps"]), "kept_step": log["kept"],
        "memory_mb": max(step["memory_mb"] for step in log["steps"]), "examples": info["examples"]}
    note = "rows, comparisons and rivals were scored again on a CPU from the answers that the GPU machine gave, after the rule that no accuracy is shown under the floor"
    return found | {
        "rows": [row.model_dump() for row in score(items, predictions, {}, found["seed"], ["base", "adapter"], 0.5)],
        "comparisons": [row.model_dump() for row in compare(items, predictions, seed=found["seed"], floor=0.5)],
        "rivals": rival_rows(read_examples(data / "instruct" / "train.jsonl"), [one for one in items if one.task in CHOICES]),
        "notes": [*found["notes"], note], "training": training,
    }


def main() -> None:
    again = sys.argv[sys.argv.index("--score") + 1 :] if "--score" in sys.argv else []
    del sys.argv[len(sys.argv) - len(again) - bool(again) :]
    if not 2 <= len(sys.argv) <= 3 or len(again) not in (0, 2):
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    later = json.loads((Path(sys.argv[2]) / "report" / "results.json").read_text()) if len(sys.argv) > 2 else None
    parts = [json.loads((out / name).read_text()) for name in ("machine.json", "results.json")]
    if again:
        parts[1] = scored_again(parts[1], *map(Path, again))
    written = root / "data" / "results" / "gpu.json"
    written.write_text(json.dumps(combined(parts[0], parts[1], later), indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
