#!/usr/bin/env bash
# The reference programme on an accelerator, in parts that run apart and go on where they were
# stopped (a sweep is stopped after PART_SECONDS), on a machine without a network:
#
#   scripts/reference_sweep.sh prepare DIR      # where there is a network; carry DIR over
#   scripts/reference_sweep.sh install DIR      # there, as often as pieces of DIR come
#   scripts/reference_sweep.sh PART...          # roof decoder decoder-8bit decoder-compiled encoder
#                                               # smollm2 smollm2-perplexity smollm2-gsm8k
#                                               # smollm2-compiled energy aa soak
#
# Variables: DEVICE (cuda:0), RUNS (where runs
# are kept), SITE (where `install` puts wheels), PYTHON (python3), PART_SECONDS (470). With
# REHEARSE=1 every part but `energy` runs in minutes on a CPU, on small shapes: a trial of the script.
set -euo pipefail
cd "$(dirname "$0")/.."

DEVICE="${DEVICE:-cuda:0}"
RUNS="${RUNS:-results/reference}"
SITE="${SITE:-$HOME/.cache/precision-explorer-site}"
PYTHON="${PYTHON:-python3}"
PART_SECONDS="${PART_SECONDS:-470}"
export PYTHONPATH="$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

decoder=synthetic:llama-3-8b encoder=synthetic:bert-large work=scripts/reference
sizes=1,16,128 many=1,16,256 wide=1,8,64 limit=400 articles=30 problems=60 long=5m
formats=bf16,fp32,tf32,fp16,fp8-dynamic,fp8-weight-only,int8-llm,int8-weight-only,int8-dynamic,nf4
mixed="mixed:$work/llama-3-8b.recipe.yaml"
if [ -n "${REHEARSE:-}" ]; then
    DEVICE=cpu decoder=synthetic:$work/tiny-decoder encoder=synthetic:$work/tiny-encoder
    sizes=1,2 many=1,2 wide=1,2 limit=4 articles=1 problems=1 long=5s
    formats=fp32,bf16,int8-weight-only mixed=
fi

sweep() { # OUT, then options
    local out="$RUNS/$1"
    shift
    # 3: some cells failed, which their records tell. 124: interrupted as by Ctrl-C.
    timeout -s INT "$PART_SECONDS" "$PYTHON" -m precision_explorer sweep --device "$DEVICE" \
        --out "$out" "$@" || {
        code=$?
        [ $code -ne 124 ] || echo "$out is unfinished: run the part again" >&2
        [ $code -eq 3 ] || [ $code -eq 124 ] || return $code
    }
}

part() {
    case "$1" in
    roof) "$PYTHON" scripts/roof.py --device "$DEVICE" --json "$RUNS/roof.json" ;;
    decoder)
        sweep decoder --model "$decoder" --task news-perplexity --reference "${formats%%,*}" \
            --formats "$formats${mixed:+,$mixed}" --limit 12 --batch-size "$sizes" \
            --workload $work/request.yaml
        ;;
    decoder-8bit)
        sweep decoder-8bit --model "$decoder" --task news-perplexity --reference "${formats%%,*}" \
            --formats "${EIGHT:-bf16,fp8-dynamic,int8-dynamic,int8-weight-only,fp8-weight-only,nf4}${mixed:+,$mixed}" \
            --limit 12 --batch-size "$sizes" --workload $work/quick.yaml
        ;;
    decoder-compiled)
        # CUDA graphs.
        sweep decoder-compiled --model "$decoder" --task news-perplexity --reference "${formats%%,*}" \
            --formats "${COMPILED:-bf16,fp8-dynamic}" --runtime compile-fixed --limit 12 \
            --batch-size "$wide" --workload $work/quick.yaml
        ;;
    encoder)
        sweep encoder --model "$encoder" --task sentiment --reference "${formats%%,*}" \
            --formats "$formats" --limit "$limit" --batch-size "$sizes" --workload $work/quick.yaml
        ;;
    smollm2)
        sweep smollm2 --model smollm2-135m --task sentiment-choice --formats all --limit "$limit" \
            --batch-size "$many" --workload $work/quick.yaml
        ;;
    smollm2-perplexity)
        sweep smollm2-perplexity --model smollm2-135m --task news-perplexity --formats all \
            --limit "$articles" --batch-size 1 --workload $work/quality.yaml
        ;;
    smollm2-gsm8k)
        sweep smollm2-gsm8k --model smollm2-135m --task gsm8k --formats all --limit "$problems" \
            --batch-size 1 --workload $work/quality.yaml
        ;;
    smollm2-compiled)
        sweep smollm2-compiled --model smollm2-135m --task sentiment-choice \
            --formats "${COMPILED:-fp32,bf16,fp8-dynamic,int8-weight-only,int8-dynamic}" --limit "$limit" \
            --runtime compile --batch-size "$many" --workload $work/quick.yaml
        ;;
    energy) "$PYTHON" scripts/check_energy.py --json "$RUNS/energy.json" ;;
    aa)
        for run in a b; do
            sweep "aa-$run" --model demo --task sentiment --formats bf16,fp16 --reference bf16 \
                --limit "$limit" --batch-size "$sizes" --workload $work/quick.yaml
        done
        "$PYTHON" -m precision_explorer report "$RUNS/aa-a" "$RUNS/aa-b" --out "$RUNS/aa"
        ;;
    soak)
        sweep soak --model "$decoder" --task news-perplexity --formats "${SOAK:-bf16}" \
            --reference "${SOAK:-bf16}" --limit 12 --batch-size 1 --workload single-stream \
            --duration "$long"
        ;;
    *)
        echo "unknown part $1; see the head of scripts/reference_sweep.sh" >&2
        exit 1
        ;;
    esac
}

[ $# -gt 0 ] || { sed -n '2,14p' "$0"; exit 1; }
case "$1" in
prepare) exec "$PYTHON" scripts/offline_bundle.py prepare "${2:?where to}" ;;
install) exec "$PYTHON" scripts/offline_bundle.py install "${2:?from where}" "$SITE" ;;
esac
mkdir -p "$RUNS"
for name in "$@"; do
    begun=$SECONDS
    part "$name"
    echo "part $name: $((SECONDS - begun)) s" >&2
done
