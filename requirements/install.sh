#!/bin/bash
# What `make install` and `make docs` run: install.sh cpu|gpu|docs VENV, with PYTHON for a VENV that is not there yet.
# Says what it does; ends with one line where the machine lacks something. uv's own words are in VENV/install.log.
set -uo pipefail
target=$1 venv=$2 log=$2/install.log
case $target in # GiB of disk: of the packages and, while they come down, of the cache
  cpu) needed=6 words="the pinned packages for a CPU, about 4 GB" ;;
  gpu) needed=12 words="the pinned packages for CUDA 13.0, about 8.4 GB" ;;
  docs) needed=1 words="what builds the pages" ;;
  *) echo "make install: TARGET=$target is not known: use cpu or gpu"; exit 2 ;;
esac

fail() {
  echo "make install: $*" >&2
  exit 1
}

# Runs a command that installs; what it prints is shown with `show`, and kept in the log.
try() {
  if [ "$1" = show ]; then "${@:2}" 2>&1 | tee "$log"; else "${@:2}" >"$log" 2>&1; fi && return
  if grep -qiE 'dns error|error sending request|connection (refused|reset|error)|timed out|NewConnectionError' "$log"; then
    fail "no package index can be reached: check the network or the proxy, then start it again ($log)"
  elif grep -qiE 'no space left' "$log"; then
    fail "the disk is full, $needed GB are needed: make room, or set UV_CACHE_DIR to another disk ($log)"
  fi
  tail -n 20 "$log" >&2
  fail "the packages could not be installed, see the lines above ($log)"
}

if [ ! -x "$venv/bin/python" ]; then
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "PYTHON=$PYTHON is no Python of 3.11 or newer: make install PYTHON=python3.12"
  "$PYTHON" -c 'import ensurepip' 2>/dev/null || fail "$PYTHON has no venv module: install it, such as python3-venv"
fi
[ "$target" = docs ] || command -v g++ >/dev/null ||
  fail "there is no g++, by which vLLM and Triton compile when they start: install it, such as the package g++"
free=$(($(df -Pk . | tail -n 1 | awk '{print $4}') / 1048576))
[ -e "$venv/.installed-$target" ] || [ "$free" -ge "$needed" ] ||
  fail "$PWD has $free GB of disk free, $needed GB are needed: make room"

echo "make install: $words, into $venv"
[ -x "$venv/bin/python" ] || "$PYTHON" -m venv "$venv" || fail "$PYTHON -m venv $venv failed"
[ -x "$venv/bin/uv" ] || try quiet "$venv/bin/python" -m pip install --disable-pip-version-check uv
options=(--no-deps)
# A folder of wheels that pip was told of serves uv too; for a CPU uv otherwise takes torch from where its CPU builds are.
if [ -n "${PIP_FIND_LINKS:-}" ]; then
  options+=(--find-links "$PIP_FIND_LINKS")
elif [ "$target" = cpu ]; then
  options+=(--torch-backend cpu)
fi
export VIRTUAL_ENV=$venv
try "$([ "$target" = gpu ] && echo show || echo quiet)" "$venv/bin/uv" pip install "${options[@]}" -r "requirements/$target.txt"
if [ "$target" != docs ]; then
  try quiet "$venv/bin/uv" pip install --no-deps --editable .
  rm -f "$venv"/.installed-cpu "$venv"/.installed-gpu
fi
touch "$venv/.installed-$target"
echo "make install: done, in $SECONDS seconds"
