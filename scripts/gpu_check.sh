#!/usr/bin/env bash
# Builds, checks and times the CUDA kernels on a machine with a GPU, in under 8 minutes. It needs nvcc and a python with torch
# (2.10 or later) and pytest; nothing is fetched and nothing installed.
#
#   scripts/gpu_check.sh [WHEELS]
#
#   WHEELS   a folder of wheels of what that python lacks, unpacked for this run alone. With basicsr (made elsewhere by
#            pip wheel --no-deps basicsr==1.4.2) and what it imports the networks are timed too, without it only the kernels.
#   PYTHON   the interpreter, instead of python3
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PY=${PYTHON:-python3}
SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
TABLE=()
FAILED=0

fail() { echo "gpu_check: $*" >&2; exit 1; }

step() {  # step name seconds command...
  local name=$1 limit=$2 began=$SECONDS code result
  shift 2
  printf '\n== %s\n' "$name"
  timeout "$limit" "$@"
  code=$?
  case $code in
    0) result=passed ;;
    124) result="did not end within $limit s" FAILED=1 ;;
    *) result="failed ($code)" FAILED=1 ;;
  esac
  TABLE+=("$(printf '%-28s %5d s  %s' "$name" $((SECONDS - began)) "$result")")
}

if [ $# -gt 0 ]; then
  "$PY" -m pip install -q --no-index --no-deps --no-compile --target "$SITE" "$1"/*.whl || fail "the wheels in $1 cannot be unpacked"
  PYTHONPATH=$PWD:$SITE
fi
"$PY" -c 'import torch, pytest' 2>/dev/null || fail "$PY needs torch and pytest"
GPU=$("$PY" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")') || exit 1
[ -n "$GPU" ] || fail "no GPU here: torch finds no CUDA device, so nothing was built, tested or timed"
VERSIONS=$("$PY" -c 'import torch; print("torch", torch.__version__, "capability", torch.cuda.get_device_capability())')

step 'build' 120 "$PY" -c 'from clit_basicsr.ops import native; print(native.problem("cuda") or native.find("cuda")); exit(bool(native.problem("cuda")))'
[ "$FAILED" -eq 0 ] || fail 'the kernels cannot be built'
step 'tests' 110 "$PY" -m pytest -q -p no:cacheprovider tests/test_cuda.py

SMALL='
import sys
sys.path.insert(0, "tests")
import torch, cuda_checks
for name in ("attention", "attend_linear", "upsampled_conv", "dense_linear"):
    for shape in ((64, 2, 3, 8), (10, 2, 3, 5)):
        cuda_checks.check(name, torch.float32, "cuda", size=(4, 3), queries=9, shape=shape)
'
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    # without torch's own cache every tensor is an allocation, and a read beyond it is seen
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "compute-sanitizer $tool" 45 \
      compute-sanitizer --tool "$tool" --kernel-name kns=clit --error-exitcode 9 "$PY" -c "$SMALL"
  done
else
  TABLE+=('compute-sanitizer                     not on this machine')
fi
step 'benchmark of the kernels' 60 "$PY" scripts/benchmarks/gpu.py kernels
step 'benchmark of the networks' 90 "$PY" scripts/benchmarks/gpu.py networks

printf '\n%s, %s\n' "$GPU" "$VERSIONS"
printf '%s\n' "${TABLE[@]}"
exit "$FAILED"
