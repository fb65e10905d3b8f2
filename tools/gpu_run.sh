#!/usr/bin/env bash
# What a GPU machine without a network is for, after `python3 install.py FOLDER`: training, evaluation, tests, benchmark.
#     bash FOLDER/gpu_run.sh FOLDER OUT [more words for medlab, such as -p finetune.steps=20]
# Every part has a time limit and a log of its own; one that fails does not stop the others. OUT gets few files, each under 15 MB:
# summary.txt, machine.json, results.json, logs.tgz, and run.tgz.* (cat them together: finetune, evaluate, report and the ledgers of the run).
# Limits in seconds: TRAIN, EVALUATE, TESTS, BENCH; 0 leaves a part out. TOTAL: for all of it.
set -uo pipefail
folder=$(cd "$1" && pwd) out=$(mkdir -p "$2" && cd "$2" && pwd)
shift 2
. "$folder/env.sh"
export MEDLAB_BUNDLE="$folder" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
logs=$(mktemp -d)
cd "$logs"
python=${PYTHON:-python3}

part() { # name, limit in seconds, command
    local name=$1 limit=$2 started=$SECONDS code left
    shift 2
    if [ "$limit" = 0 ]; then echo "$name: left out" >>"$out/summary.txt"; return 0; fi
    left=$((${TOTAL:-560} - SECONDS))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then echo "$name: no time was left" | tee -a "$out/summary.txt"; return 1; fi
    timeout --kill-after=10 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null
    code=$?
    echo "$name: exit code $code after $((SECONDS - started)) s" | tee -a "$out/summary.txt"
    [ $code = 0 ] || tr '\r' '\n' <"$logs/$name.log" | tail -n 12 | cut -c1-300
    return $code
}

pack() { # what is there so far
    cp "$MEDLAB_RUN/report/results.json" "$logs/bench_train.json" "$out" 2>/dev/null
    tar czf "$out/logs.tgz" -C "$logs" .
    (cd "$MEDLAB_RUN" && tar cz --exclude=checkpoints $(ls -d finetune evaluate ledgers quantize/*.json deploy/*.json report/results.json profile.yaml 2>/dev/null)) |
        split -b 15000000 - "$out/run.tgz."
}

rm -f "$out/summary.txt"
$python - "$out/machine.json" "$folder/bundle.json" <<'P' 2>"$logs/machine.err" || tail -n 3 "$logs/machine.err"
import json, sys
from importlib import metadata
from medlab.basics.machine import command_output, hardware
found = {"hardware": hardware(), "driver": command_output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"), "python": sys.version.split()[0]}
found["commit"] = json.load(open(sys.argv[2]))["commit"]
found["packages"] = {name: metadata.version(name) for name in ("medlab", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl", "datasets", "unsloth", "unsloth_zoo", "triton", "tokenizers")
                     if any(True for _ in metadata.distributions(name=name))}
import torch
found |= {"cuda": torch.version.cuda, "capability": list(torch.cuda.get_device_capability()) if torch.cuda.is_available() else None}
json.dump(found, open(sys.argv[1], "w"), indent=1)
print(json.dumps(found))
P

words=(--profile gpu "$@")
if ! part train "${TRAIN:-300}" medlab finetune "${words[@]}"; then
    words+=(-p finetune.backend=peft)
    part train-peft "${TRAIN:-300}" medlab finetune "${words[@]}"
fi
pack
# From here on nothing is timed: evaluation and tests share the card.
part tests "${TESTS:-240}" $python -m pytest -q -rsP -m gpu -p no:cacheprovider -c "$folder/pytest.ini" --rootdir "$folder" --durations=12 "$folder/tests/test_gpu.py" &
tests=$!
part evaluate "${EVALUATE:-240}" medlab evaluate "${words[@]}" && [ "${EVALUATE:-240}" != 0 ] && part report 120 medlab report "${words[@]}"
wait $tests
if [ "${BENCH:-120}" != 0 ] && medlab bench train --help >/dev/null 2>&1; then
    part bench "${BENCH:-120}" medlab bench train --out "$logs/bench_train.json" ${BENCH_WORDS:-}
fi
grep -E "passed|failed|error" "$logs/tests.log" 2>/dev/null | tail -n 3 | tee -a "$out/summary.txt"
pack
ls -l "$out"
cat "$out/summary.txt"
