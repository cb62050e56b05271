#!/usr/bin/env bash
# Creates .venv/ at the root of the repository; quickstart.sh and test.sh start with it. Does nothing if .venv is up to date.
#
#   --mmagic, or CLIT_MMAGIC=1   installs MMagic too, the other host; later runs keep it
#   PYTHON=/path/to/python3.12   the interpreter, 3.11 to 3.14; default: the first on the PATH, 3.12 and 3.11 preferred
#   CLIT_TORCH=cpu|cuda|ARGS     the build of torch; ARGS is passed to pip unchanged, e.g.
#                                'torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126'
#                                Default: cuda with an NVIDIA driver (nvidia-smi works), otherwise cpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CPU_INDEX=https://download.pytorch.org/whl/cpu
VENV=.venv
PY=$VENV/bin/python
STAMP=$VENV/setup.done       # the key of the last set-up that finished
STARTED=$VENV/setup.started  # exists while a set-up is running
BUILT=$VENV/setup.build      # the build of torch that was requested
WITH_MMAGIC=$VENV/setup.mmagic  # exists if MMagic was requested
LOG=$VENV/setup.log

fail() { echo "setup: $*" >&2; exit 1; }

pin() { grep -i "^$1==" requirements.txt; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3.14 python3 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "${PYTHON:+$PYTHON is not usable: }Python 3.11 to 3.14 with venv is needed (Debian, Ubuntu: apt install" \
    'python3-venv); set PYTHON to its path if it is installed elsewhere'
}

torch_build() {
  if [ -n "${CLIT_TORCH:-}" ]; then
    echo "$CLIT_TORCH"
  elif nvidia-smi >/dev/null 2>&1; then
    echo cuda
  else
    echo cpu
  fi
}

step() {  # step DESCRIPTION COMMAND...: runs the command with its output in the log and reports how long it took
  local what=$1 began=$SECONDS
  shift
  printf 'setup: %s ... ' "$what"
  if ! "$@" >>"$LOG" 2>&1; then
    echo 'failed'
    tail -n 25 "$LOG" >&2
    fail "'$what' failed; see $LOG for the complete output"
  fi
  echo "$((SECONDS - began)) s"
}

pip_install() { "$PY" -m pip install "$@"; }

# The CPU build: from pip's configured indexes, if they have it under its own name; otherwise from PyTorch's index; otherwise
# whatever the plain name installs (on macOS that is the CPU build).
install_cpu_build() {
  local requirement=$1
  shift
  pip_install "$@" "$requirement+cpu" ||
    pip_install "$@" --retries 1 --timeout 20 --index-url "$CPU_INDEX" "$requirement" ||
    pip_install "$@" "$requirement"
}

install_torch() {
  # --no-deps: torchvision must use the installed torch, whatever its build
  case $BUILD in
    cpu) install_cpu_build "$(pin torch)" && install_cpu_build "$(pin torchvision)" --no-deps ;;
    cuda) pip_install "$(pin torch)" && pip_install --no-deps "$(pin torchvision)" ;;
    *)
      # shellcheck disable=SC2086  # word splitting is intended
      pip_install $BUILD && pip_install --no-deps "$(pin torchvision)"
      ;;
  esac
}

torch_version() { "$PY" -c 'import importlib.metadata as m; print(m.version("torch"))'; }

install_rest() {
  # Pins the installed torch: no later step may replace it, or fetch the CUDA packages in addition to a CPU build.
  echo "torch==$(torch_version)" >"$VENV/torch.txt"
  grep -iv '^torch==' requirements.txt >"$VENV/requirements.txt"
  # With the folder on its path, BasicSR builds on Python 3.13 and later too; its file says why.
  PYTHONPATH=$PWD/scripts/python313${PYTHONPATH:+:$PYTHONPATH} \
    pip_install --no-build-isolation -c "$VENV/torch.txt" -r "$VENV/requirements.txt" -r requirements-dev.txt
}

MMAGIC=${CLIT_MMAGIC:-}
case ${1:-} in
  '') ;;
  --mmagic) MMAGIC=1 ;;
  *) fail "unknown argument $1; there is --mmagic" ;;
esac
[ -n "$MMAGIC" ] || [ ! -e "$WITH_MMAGIC" ] || MMAGIC=1
[ -f requirements.txt ] || fail 'requirements.txt is missing; run this script from a complete clone'
BUILD=$(torch_build)
KEY=$({ cat requirements*.txt setup.py scripts/setup.sh && echo "$PWD $BUILD $MMAGIC"; } | cksum)
if [ "$(cat "$STAMP" 2>/dev/null)" = "$KEY" ] && "$PY" -c '' 2>/dev/null; then
  echo "setup: $VENV is up to date (torch $(torch_version))"
  exit 0
fi

BEGAN=$SECONDS
if [ -e "$STARTED" ] || { [ -e "$VENV" ] && ! "$PY" -m pip --version >/dev/null 2>&1; }; then
  echo "setup: $VENV is incomplete; starting over"
  rm -rf "$VENV"
elif [ -e "$BUILT" ] && [ "$(cat "$BUILT")" != "$BUILD" ]; then
  # pip considers torch==2.13.0 satisfied by a CPU build and would not replace it
  echo "setup: $VENV has a different build of torch ($(cat "$BUILT")); starting over"
  rm -rf "$VENV"
fi
PYTHON_FOUND=$([ -e "$VENV" ] && echo "$PY" || find_python)
mkdir -p "$VENV"
rm -f "$STAMP"
: >"$STARTED"
: >"$LOG"
echo "$BUILD" >"$BUILT"
[ -x "$PY" ] || step "virtual environment in $VENV, $("$PYTHON_FOUND" --version)" "$PYTHON_FOUND" -m venv "$VENV"
step 'build tools' pip_install 'setuptools<81' wheel "$(pin Cython)" "$(pin numpy)"
step "torch and torchvision ($BUILD)" install_torch
step 'BasicSR and development tools' install_rest
step 'this package, editable' pip_install --no-build-isolation --no-deps -e .
step 'check: import basicsr' "$PY" -c 'import clit_basicsr, basicsr'
if [ -n "$MMAGIC" ]; then
  : >"$WITH_MMAGIC"
  step 'MMagic' pip_install --no-deps -r requirements-mmagic.txt
  step 'check: import mmagic' "$PY" -c 'import clit_basicsr, mmagic.models'
fi
echo "$KEY" >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
rm -f "$STARTED"
echo "setup: done in $((SECONDS - BEGAN)) s, torch $(torch_version)"
