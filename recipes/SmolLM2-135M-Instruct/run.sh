#!/usr/bin/env bash
# SmolLM2 from the plain model to joint GRPO, after `make smollm2`. A step whose result is there is not run again.
#   bash recipes/SmolLM2-135M-Instruct/run.sh chain_sum                # sums, 60 to 100 minutes on two cores
#   bash recipes/SmolLM2-135M-Instruct/run.sh gsm8k TRAIN TEST         # GSM8K from two local files, half an hour
set -euo pipefail
recipe=recipes/SmolLM2-135M-Instruct sums=runs/SmolLM2-chain_sum
python=.venv/bin/python launch=".venv/bin/accelerate launch"
case "${1-} $#" in
  "chain_sum 1") yaml=$recipe/chain_sum runs=$sums train=() steps=() test=() ;;
  "gsm8k 3")
    yaml=$recipe runs=runs/SmolLM2-gsm8k train=(--dataset_name "$(realpath "$2")") steps=(--max_steps 10)
    test=(--benchmark_files "{gsm8k: $(realpath "$3")}") ;;
  *) grep '^#   bash' "$0"; exit 2 ;;
esac
cd "$(dirname "$0")/../.."

step() { # MARK COMMAND...: until the mark is there; the log is kept
  [[ -e $1 ]] && return
  mkdir -p $runs/logs
  echo "$(date +%T) ${*:2}"
  "${@:2}" >> "$runs/logs/$(basename "$(dirname "$1")").log" 2>&1
}

evaluate() { # YAML NAME MODEL [KEYS...]
  step $runs/$1_$2/report.md $python recipes/eval_gsr.py --config $yaml/$1.yaml --model $3 \
    --output_dir $runs/$1_$2 "${test[@]}" "${@:4}"
}

# by itself the model boxes no answer: worked sums teach it the form of a solution
step $sums/teacher_rows.jsonl $python $recipe/chain_sum/starter_rows.py --output_dir $sums
step $sums/base/model.safetensors $python recipes/sft_gsr.py --config $recipe/chain_sum/base.yaml
if [[ $1 == chain_sum ]]; then
  step $sums/teacher/model.safetensors $python recipes/sft_gsr.py --config $yaml/teacher.yaml
fi
step $runs/distill/sft_rows.jsonl $python recipes/distill_gsr.py --config $yaml/distill.yaml "${train[@]}" \
  --output_dir $runs/distill
step $runs/sft/model.safetensors $python recipes/sft_gsr.py --config $yaml/sft.yaml \
  --dataset_name $runs/distill/sft_rows.jsonl --output_dir $runs/sft
evaluate eval base $sums/base
base_sets=(--candidates_from $runs/eval_base/samples.parquet)
evaluate eval sft $runs/sft "${base_sets[@]}" --compare_with $runs/eval_base
step $runs/grpo/model.safetensors $launch --config_file accelerate_configs/zero3_cpu.yaml recipes/grpo_gsr.py \
  --config $yaml/grpo.yaml "${train[@]}" "${steps[@]}" --model_name_or_path $runs/sft --output_dir $runs/grpo
evaluate eval grpo $runs/grpo "${base_sets[@]}" --compare_with $runs/eval_sft
if [[ $1 == chain_sum ]]; then # the same models on problems unlike those of training
  evaluate knights base $runs/base
  evaluate knights sft $runs/sft --compare_with $runs/knights_base
  evaluate knights grpo $runs/grpo --compare_with $runs/knights_sft
fi
