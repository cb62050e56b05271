#!/usr/bin/env bash
#   scripts/quickstart.sh [PHOTO] [FLAGS]
# Set-up, then a photograph (yours, or one of scikit-image's) enlarged by 3.7 with the package's network, then a small CLIT trained in three stages on photographs, on the CPU; pictures and figures at the end.
# An interrupted run resumes. Accepts the flags of `basicsr train`, e.g. --force_yml manual_seed=1
set -euo pipefail
PHOTO=
if [ $# -gt 0 ] && [ -f "$1" ]; then
  PHOTO=$(realpath -- "$1")
  shift
elif [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
  echo "quickstart: $1 does not exist" >&2
  exit 1
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BEGAN=$SECONDS
scripts/setup.sh

# Idle threads sleep: spinning ones slow training tenfold where other programs compete for the cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

PY=.venv/bin/python
NAME=quickstart_clit_edsr
[ -e datasets/quickstart/done ] || { "$PY" scripts/prepare_quickstart.py && touch datasets/quickstart/done; }
if "$PY" -c 'from clit_basicsr import weights; exit(weights.DEFAULT not in weights.names())'; then
  "$PY" -m clit_basicsr upscale "${PHOTO:-datasets/quickstart/val/chelsea.png}" -s 3.7 -o results/enlarged/ -f
  echo 'quickstart: enlarged in results/enlarged/; for your own: .venv/bin/basicsr upscale PHOTO -s 3.7'
else
  echo 'quickstart: no network comes with this version of the package, so none is used before the training'
fi
if [ -e "experiments/$NAME/models/net_g_latest.pth" ] && [ $# -eq 0 ]; then
  echo "quickstart: experiments/$NAME is already trained; remove that folder to train again"
else
  "$PY" -m clit_basicsr train -opt "options/$NAME.yml" --auto_resume "$@" &
  TRAINING=$!
  trap 'kill -TERM "$TRAINING"' INT TERM  # it saves a state; a shell that ends first would leave it running
  CODE=0
  wait "$TRAINING" || CODE=$?
  [ "$CODE" -le 128 ] || { CODE=0; wait "$TRAINING" || CODE=$?; }  # a signal ends the first wait
  trap - INT TERM
  [ "$CODE" -eq 0 ] || exit "$CODE"
fi
echo 'quickstart: bicubic interpolation of the same picture, for comparison'
LOG=datasets/quickstart/bicubic.log
"$PY" -m clit_basicsr test -opt options/quickstart_bicubic.yml >"$LOG" 2>&1 || { cat "$LOG" >&2; exit 1; }
"$PY" scripts/quickstart_report.py --seconds "$((SECONDS - BEGAN))"
