#!/usr/bin/env bash
# Set-up, then a small CLIT trained in three stages on photographs, on the CPU; pictures and figures at the end.
# An interrupted run resumes. Accepts the flags of `basicsr train`, e.g. --force_yml manual_seed=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BEGAN=$SECONDS
scripts/setup.sh

# Idle threads sleep: spinning ones slow training tenfold where other programs compete for the cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

PY=.venv/bin/python
NAME=quickstart_clit_edsr
[ -e datasets/quickstart/done ] || { "$PY" scripts/prepare_quickstart.py && touch datasets/quickstart/done; }
if [ -e "experiments/$NAME/models/net_g_latest.pth" ] && [ $# -eq 0 ]; then
  echo "quickstart: experiments/$NAME is already trained; remove that folder to train again"
else
  "$PY" -m clit_basicsr train -opt "options/$NAME.yml" --auto_resume "$@"
fi
echo 'quickstart: bicubic interpolation of the same picture, for comparison'
LOG=datasets/quickstart/bicubic.log
"$PY" -m clit_basicsr test -opt options/quickstart_bicubic.yml >"$LOG" 2>&1 || { cat "$LOG" >&2; exit 1; }
"$PY" scripts/quickstart_report.py --seconds "$((SECONDS - BEGAN))"
