#!/usr/bin/env bash
# Builds, checks and times the CUDA kernels on a machine with a GPU and prints one table, in under 8 minutes: the limits of
# its steps add up to 470 s. It needs nvcc and a python with torch (2.10 or later) and pytest; nothing is fetched and
# nothing installed.
#
#   scripts/gpu_check.sh [WHEELS]
#
#   WHEELS   a folder of wheels of what that python lacks, unpacked for this run alone. With basicsr (made elsewhere by
#            pip wheel --no-deps basicsr==1.4.2) and what it imports the networks are timed too, without it only the kernels.
#   PYTHON   the interpreter, instead of python3
set -uo pipefail

fail() { echo "gpu_check: $*" >&2; exit 1; }

WHEELS=${1:-}
if [ -n "$WHEELS" ]; then
  WHEELS=$(realpath -e -- "$1" 2>/dev/null) || fail "folder $1 does not exist"
  compgen -G "$WHEELS/*.whl" >/dev/null || fail "folder $1 holds no wheels"
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PY=${PYTHON:-python3}
TEMPORARY=$(mktemp -d)
ROWS=$TEMPORARY/rows
STEPS=()
FAILED=0
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8

finish() {  # the table, also of a run that was stopped
  local line
  if [ ${#STEPS[@]} -gt 0 ]; then
    printf '\n%s\n\n' "$MACHINE"
    cat "$ROWS"
    for line in "${STEPS[@]}"; do printf '| %s | | | | | | | | | %s |\n' "${line%%=*}" "${line#*=}"; done
  fi
  rm -rf "$TEMPORARY"
}
trap finish EXIT
trap 'kill "$!" 2>/dev/null; STEPS+=("gpu_check=STOPPED"); exit 143' INT TERM

step() {  # step name seconds command...
  local name=$1 limit=$2 began=$SECONDS result
  shift 2
  printf '\n== %s\n' "$name"
  timeout -k 5 "$limit" "$@" &
  wait $!  # which a signal ends immediately
  case $? in
    0) result=passed ;;
    124 | 137) result="DID NOT END within $limit s" FAILED=1 ;;
    *) result=FAILED FAILED=1 ;;
  esac
  STEPS+=("$name=$result, $((SECONDS - began)) s")
}

if [ -n "$WHEELS" ]; then
  "$PY" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$TEMPORARY/site" "$WHEELS"/*.whl ||
    fail "the wheels in $WHEELS cannot be unpacked"
  PYTHONPATH=$PWD:$TEMPORARY/site
fi
"$PY" -c 'import torch, pytest' || fail "$PY needs torch and pytest"
"$PY" -c 'import torch; exit(not torch.cuda.is_available())' ||
  fail 'no GPU here: torch finds no CUDA device, so nothing was built, tested or timed'
MACHINE=$("$PY" - <<'EOF'
import datetime
import torch

major, minor = torch.cuda.get_device_capability()
versions = f'compute capability {major}.{minor}, torch {torch.__version__}, CUDA {torch.version.cuda}'
print(f'{datetime.date.today()}, {torch.cuda.get_device_name()}, {versions}')
EOF
) || exit 1
BENCHMARK=("$PY" scripts/benchmarks/gpu.py --rows "$ROWS")
"${BENCHMARK[@]}" || exit 1  # the head of the table

step 'build' 110 "$PY" -c 'from clit_basicsr.ops.backends import cuda_backend; print(problem := cuda_backend.unavailable() or ""); exit(bool(problem))'
[ "$FAILED" -eq 0 ] || fail 'the kernels cannot be built'
step 'accuracy' 20 "${BENCHMARK[@]}" accuracy
step 'tests' 100 "$PY" -m pytest -q -p no:cacheprovider -m cuda tests/test_cuda.py tests/test_kernels.py
step 'time of the networks' 90 "${BENCHMARK[@]}" networks
step 'time of the kernels' 50 "${BENCHMARK[@]}" kernels resources

SANITIZER=$(PATH=$PATH:/usr/local/cuda/bin command -v compute-sanitizer)
if [ -n "$SANITIZER" ]; then
  SMALL='import sys; sys.path.insert(0, "scripts/benchmarks"); import kernel_checks; kernel_checks.check_small("cuda")'
  for tool in memcheck racecheck; do
    # Without torch's own cache every tensor is an allocation, and a read beyond it is seen. Calls of the driver that fail
    # are torch's own probing; ours are checked where they are made.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "compute-sanitizer $tool" 50 "$SANITIZER" --tool "$tool" --kernel-name kns=clit \
      --report-api-errors no --error-exitcode 9 "$PY" -c "$SMALL"
  done
else
  STEPS+=('compute-sanitizer=not on this machine: not run')
fi
exit "$FAILED"
