#!/usr/bin/env bash
# SmolLM2 on sums, from the plain model to joint GRPO, about an hour on two cores: bash run.sh, after `make smollm2`.
# A step whose result is there is not run again.
set -euo pipefail
cd "$(dirname "$0")/../../.."
recipe=recipes/SmolLM2-135M-Instruct/chain_sum runs=runs/SmolLM2-chain_sum
python=.venv/bin/python launch=".venv/bin/accelerate launch"

step() { # MARK COMMAND...: until the mark is there; the log is kept
  [[ -e $1 ]] && return
  mkdir -p $runs/logs
  echo "$(date +%T) ${*:2}"
  "${@:2}" >> "$runs/logs/$(basename "$(dirname "$1")").log" 2>&1
}

evaluate() { # MODEL [KEYS...]
  step $runs/eval_$1/report.md $python recipes/eval_gsr.py --config $recipe/eval.yaml --model $runs/$1 \
    --output_dir $runs/eval_$1 "${@:2}"
}

step $runs/teacher_rows.jsonl $python $recipe/starter_rows.py --output_dir $runs
step $runs/base/model.safetensors $python recipes/sft_gsr.py --config $recipe/base.yaml
step $runs/teacher/model.safetensors $python recipes/sft_gsr.py --config $recipe/teacher.yaml
step $runs/distill/sft_rows.jsonl $python recipes/distill_gsr.py --config $recipe/distill.yaml
step $runs/sft/model.safetensors $python recipes/sft_gsr.py --config $recipe/sft.yaml
evaluate base
evaluate sft --candidates_from $runs/eval_base/samples.parquet
step $runs/grpo/model.safetensors $launch --config_file accelerate_configs/zero3_cpu.yaml recipes/grpo_gsr.py \
  --config $recipe/grpo.yaml
evaluate grpo --candidates_from $runs/eval_base/samples.parquet
