"""Write data/results/gpu.json from what gpu_run.sh brought back: python tools/gpu_results.py OUT [RUN].

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


def main() -> None:
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    later = json.loads((Path(sys.argv[2]) / "report" / "results.json").read_text()) if len(sys.argv) > 2 else None
    parts = [json.loads((out / name).read_text()) for name in ("machine.json", "results.json")]
    written = root / "data" / "results" / "gpu.json"
    written.write_text(json.dumps(combined(parts[0], parts[1], later), indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
