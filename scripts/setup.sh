#!/usr/bin/env bash
# Makes .venv/ at the root of the repository; quickstart.sh and test.sh begin with it. Does nothing when .venv is up to date.
#
#   PYTHON=/path/to/python3.11   the interpreter, instead of the first python3.12 or python3.11 on the path
#   CLIT_TORCH=cpu|cuda|ARGS     the build of torch; ARGS goes to pip as it stands, e.g.
#                                'torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126'
#                                By default cuda with an NVIDIA driver (nvidia-smi answers), else cpu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CPU_INDEX=https://download.pytorch.org/whl/cpu
VENV=.venv
PY=$VENV/bin/python
STAMP=$VENV/setup.done       # holds the key of the set-up that finished
STARTED=$VENV/setup.started  # there while one is under way
BUILT=$VENV/setup.build      # the build of torch that was asked for
LOG=$VENV/setup.log

fail() { echo "setup: $*" >&2; exit 1; }

pin() { grep -i "^$1==" requirements.txt; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
      2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "${PYTHON:+$PYTHON is not usable: }Python 3.11 or 3.12 with venv is needed (Debian, Ubuntu: apt install" \
    'python3.11-venv); set PYTHON to its path if it is installed elsewhere'
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

step() {  # step 'what is done' command...: runs it with its output in the log, prints how long it took
  local what=$1 began=$SECONDS
  shift
  printf 'setup: %s ... ' "$what"
  if ! "$@" >>"$LOG" 2>&1; then
    echo 'failed'
    tail -n 25 "$LOG" >&2
    fail "'$what' failed; the whole output is in $LOG"
  fi
  echo "$((SECONDS - began)) s"
}

pip_install() { "$PY" -m pip install "$@"; }

# The CPU build: from the indexes pip is configured with, where they have it under its own name; from PyTorch's index; else
# whatever the plain name gives (on macOS that is the CPU build).
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
      # shellcheck disable=SC2086  # several words on purpose
      pip_install $BUILD && pip_install --no-deps "$(pin torchvision)"
      ;;
  esac
}

torch_version() { "$PY" -c 'import importlib.metadata as m; print(m.version("torch"))'; }

install_rest() {
  # The installed torch is pinned: no later step may replace it, or fetch the CUDA packages for a CPU build.
  echo "torch==$(torch_version)" >"$VENV/torch.txt"
  grep -iv '^torch==' requirements.txt >"$VENV/requirements.txt"
  pip_install --no-build-isolation -c "$VENV/torch.txt" -r "$VENV/requirements.txt" -r requirements-dev.txt
}

[ -f requirements.txt ] || fail 'requirements.txt is missing: run this script from a complete clone'
BUILD=$(torch_build)
KEY=$({ cat requirements.txt requirements-dev.txt setup.py scripts/setup.sh && echo "$PWD $BUILD"; } | cksum)
if [ "$(cat "$STAMP" 2>/dev/null)" = "$KEY" ] && "$PY" -c '' 2>/dev/null; then
  echo "setup: $VENV is up to date (torch $(torch_version))"
  exit 0
fi

BEGAN=$SECONDS
if [ -e "$STARTED" ] || { [ -e "$VENV" ] && ! "$PY" -m pip --version >/dev/null 2>&1; }; then
  echo "setup: $VENV was left unfinished; starting again"
  rm -rf "$VENV"
elif [ -e "$BUILT" ] && [ "$(cat "$BUILT")" != "$BUILD" ]; then
  # for pip torch==2.13.0 is satisfied by a CPU build: it would not be exchanged
  echo "setup: $VENV has another build of torch ($(cat "$BUILT")); starting again"
  rm -rf "$VENV"
fi
PYTHON_FOUND=$([ -e "$VENV" ] && echo "$PY" || find_python)
mkdir -p "$VENV"
rm -f "$STAMP"
: >"$STARTED"
: >"$LOG"
echo "$BUILD" >"$BUILT"
[ -x "$PY" ] || step "virtual environment in $VENV, $("$PYTHON_FOUND" --version)" "$PYTHON_FOUND" -m venv "$VENV"
step 'tools to build with' pip_install 'setuptools<81' wheel "$(pin Cython)" "$(pin numpy)"
step "torch and torchvision ($BUILD)" install_torch
step 'BasicSR and the tools of development' install_rest
step 'this package, editable' pip_install --no-build-isolation --no-deps -e .
step 'trying it: import basicsr' "$PY" -c 'import clit_basicsr, basicsr'
echo "$KEY" >"$STAMP.new"
mv "$STAMP.new" "$STAMP"
rm -f "$STARTED"
echo "setup: done in $((SECONDS - BEGAN)) s, torch $(torch_version)"
