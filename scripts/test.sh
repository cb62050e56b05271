#!/usr/bin/env bash
# Set-up, then every check: format, lint, types, tests. Arguments go to pytest: scripts/test.sh -k sampler
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
BEGAN=$SECONDS
scripts/setup.sh || exit 1

PY=.venv/bin/python
FAILED=()
check() {  # check name command...
  local name=$1 began=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@" || FAILED+=("$name")
  echo "$name: $((SECONDS - began)) s"
}

# As many tests at a time as there are cores, up to four, each with one thread.
WORKERS=$(($(getconf _NPROCESSORS_ONLN) > 4 ? 4 : $(getconf _NPROCESSORS_ONLN)))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Threads that sleep while they wait: spinning ones cost a factor of ten where other programs use the same cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}
REPORT=$(mktemp)
trap 'rm -f "$REPORT"' EXIT
CSRC=clit_basicsr/ops/csrc
check 'clang-format' .venv/bin/clang-format --dry-run --Werror --style="file:$CSRC/.clang-format" \
  "$CSRC"/*.{h,cpp,cuh,cu} tests/cuda_emulation/*.{h,cpp}
check 'ruff format' "$PY" -m ruff format --check .
check 'ruff check' "$PY" -m ruff check .
check 'mypy' "$PY" -m mypy
check 'pytest' "$PY" -m pytest -n "$WORKERS" --dist loadfile --durations=10 --junitxml="$REPORT" "$@"

counts=$("$PY" - "$REPORT" <<'EOF'
import sys
from collections import Counter
from xml.etree import ElementTree

try:
    cases = list(ElementTree.parse(sys.argv[1]).iter('testcase'))
except ElementTree.ParseError:
    print('no tests were run')
    sys.exit()
failed = sum(case.find('failure') is not None or case.find('error') is not None for case in cases)
skips = Counter(skip.get('message') for case in cases for skip in case.iter('skipped'))
print(f'{len(cases) - failed - skips.total()} tests passed, {failed} failed, {skips.total()} skipped', end='')
print(f' ({"; ".join(f"{count} x {why}" for why, count in skips.items())})' if skips else '')
EOF
)
printf '\ntest.sh: %s; %s; %s s\n' \
  "$([ ${#FAILED[@]} -eq 0 ] && echo 'all checks pass' || echo "FAILED: ${FAILED[*]}")" "$counts" "$((SECONDS - BEGAN))"
[ ${#FAILED[@]} -eq 0 ]
