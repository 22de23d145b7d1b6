#!/usr/bin/env bash
# What is measured on a GPU, in parts; each leaves a log and its figures as JSON in $OUT (runs/gpu unless set).
#   bash benchmarks/on_gpu.sh PART...
# Parts: tests, kernels, and with shapes behind a colon (smollm2-135m, qwen3-0.6b, llama-8b):
#   serve:SHAPE,...   the four workloads          trials:SHAPE,...    the ideas measured one by one
#   steps:SHAPE,...   where a step's time goes    plan:SHAPE,...      the planner beside served traces
#   train:SHAPE,...   training (135m, d12, 1.2b)  memory:SHAPE,...    its memory and its slowdown by offload
# SECONDS_A_PART stops a part that takes longer; PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python3}
SECONDS_A_PART=${SECONDS_A_PART:-600}
export PYTHONPATH="src:${PYTHONPATH:-}"
mkdir -p "$OUT"

# run NAME COMMAND...: its output to a log and, the end of it, to the screen.
run() {
  local name=$1 started=$SECONDS
  shift
  timeout "$SECONDS_A_PART" "$@" >"$OUT/$name.log" 2>&1
  echo "== $name: exit $?, $((SECONDS - started)) s"
  grep -v USDT "$OUT/$name.log" | tail -n "${LINES_A_PART:-40}"
}

for part in "$@"; do
  IFS=, read -ra shapes <<<"${part#*:}"
  case $part in
    tests)
      # Apart: an illegal access spoils every later test of its process.
      run tests-kernels "$PYTHON" -m pytest -m gpu -q -n 8 tests/kernels tests/engine
      run tests-train "$PYTHON" -m pytest -m gpu -q -n 4 tests/train tests/model tests/test_gpu.py
      run tests-plan "$PYTHON" -m pytest -m gpu -q tests/plan # alone: it measures rates
      ;;
    kernels)
      run kernels-decode "$PYTHON" benchmarks/decode_kernels.py --chain --rows 1 8
      run kernels-paged "$PYTHON" benchmarks/paged_attention.py
      ;;
    serve:*)
      for shape in "${shapes[@]}"; do
        run "serve-$shape" "$PYTHON" -m gristmill bench serve --shape "$shape" --out "$OUT/serve-$shape.json" \
          --workload b1 --workload b32 --workload w1 --workload prefill
      done
      ;;
    trials:*)
      for shape in "${shapes[@]}"; do
        run "trials-$shape" "$PYTHON" -m gristmill bench serve --shape "$shape" --out "$OUT/trials-$shape.json" \
          --workload prefix --workload interleave --workload copy --workload long --workload idle --workload ready
        run "batching-$shape" "$PYTHON" -m gristmill bench serve --shape "$shape" --out "$OUT/batching-$shape.json" \
          --workload w1 --requests 32 --max-num-seqs 8 --batching naive --batching static --batching continuous
      done
      ;;
    steps:*)
      for shape in "${shapes[@]}"; do
        run "steps-$shape" "$PYTHON" benchmarks/profile_steps.py serve --shape "$shape" --rows 1 32 256 --prompts 4 \
          --out "$OUT/steps-$shape.json"
      done
      ;;
    plan:*)
      run calibrate "$PYTHON" -m gristmill plan calibrate --device cuda
      for shape in "${shapes[@]}"; do
        run "simulator-$shape" "$PYTHON" benchmarks/simulator_accuracy.py --shape "$shape" --out "$OUT/simulator-$shape.json" \
          --workloads b1 b32 prefill --seconds 14 --rounds 1 --requests 200 --max-num-seqs 256 --prompt 500 --output 200
      done
      ;;
    train:*)
      for shape in "${shapes[@]}"; do
        run "train-$shape" "$PYTHON" -m gristmill bench train --shape "$shape" --steps 30 --out "$OUT/train-$shape.json"
      done
      ;;
    memory:*)
      for shape in "${shapes[@]}"; do
        for offload in none cpu disk; do
          run "offload-$offload-$shape" "$PYTHON" benchmarks/profile_steps.py train --shape "$shape" --top 5 \
            --set weights=fp32 --set "memory.offload=$offload"
        done
        run "sqrt-$shape" "$PYTHON" benchmarks/profile_steps.py train --shape "$shape" --batch 4 --top 5 \
          --set memory.activation_checkpointing=sqrt
      done
      ;;
    *)
      echo "no such part: $part; known are tests, kernels, and with :SHAPE,... serve, trials, steps, plan, train, memory" >&2
      exit 2
      ;;
  esac
done
