#!/usr/bin/env bash
# Set-up, then a small CLIT through its three training stages on photographs, on the CPU; pictures and figures at the end.
# An interrupted run resumes where it was. Accepts the options of `basicsr train`, e.g. --force_yml manual_seed=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BEGAN=$SECONDS
scripts/setup.sh

# Threads that sleep while they wait: spinning ones cost a factor of ten where other programs use the same cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

PY=.venv/bin/python
NAME=quickstart_clit_edsr
[ -e datasets/quickstart/done ] || { "$PY" scripts/prepare_quickstart.py && touch datasets/quickstart/done; }
if [ -e "experiments/$NAME/models/net_g_latest.pth" ] && [ $# -eq 0 ]; then
  echo "quickstart: experiments/$NAME is trained already; remove that folder to train it again"
else
  "$PY" -m clit_basicsr train -opt "options/$NAME.yml" --auto_resume "$@"
fi
echo 'quickstart: bicubic interpolation of the same picture, to compare'
LOG=datasets/quickstart/bicubic.log
"$PY" -m clit_basicsr test -opt options/quickstart_bicubic.yml >"$LOG" 2>&1 || { cat "$LOG" >&2; exit 1; }
"$PY" scripts/quickstart_report.py --seconds "$((SECONDS - BEGAN))"
