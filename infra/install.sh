#!/usr/bin/env bash
# What `make` runs where requirements.lock or pyproject.toml changed: makes .venv and installs into it.
# install.sh STAMP PYTHON...: STAMP is written when all is there; the first PYTHON that fits is taken.
set -euo pipefail
stamp=$1
shift
here=$(pwd -P)

fail() {
    echo "error: $*" >&2
    exit 1
}

# Said before minutes of downloads.
case $here in
*:*) fail "the path of this folder, $here, holds a colon, and Python makes no environment there: move the folder" ;;
*' '*[\$\"\`]* | *[\$\"\`]*' '*)
    fail "the path of this folder, $here, holds a blank and one of \$ \" \`, and commands of an environment there do not" \
        "start: move the folder"
    ;;
esac
case ${AGENTPS_HOME:-$here} in
*[?#%]*)
    fail "${AGENTPS_HOME:-$here}: MLflow's database cannot be in a folder whose path holds ?, # or %: set AGENTPS_HOME to" \
        "another folder, or move this one"
    ;;
esac

# One at a time: the lock is on a file that is there, and ends with this process.
if command -v flock > /dev/null; then
    exec 9< Makefile
    flock -n 9 || { echo "another make installs into $here/.venv: waiting for it" >&2 && flock 9; }
    [ ! -e "$stamp" ] || exit 0
fi

# An environment that came with a copied or moved folder is made anew: its scripts name the old place.
if ! grep -qsF " $here/.venv" .venv/pyvenv.cfg; then
    found=
    for python in "$@"; do
        if "$python" -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null; then
            found=$python
            break
        fi
    done
    [ -n "$found" ] || fail "none of '$*' is a Python 3.11, 3.12 or 3.13 with the module venv; install one (Debian, Ubuntu:" \
        "apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11"
    "$found" -m venv --clear .venv
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }
# The locks name all packages, so that pip adds none; and wheels only: building one would run code that has no hash.
locked() { pip install --require-hashes --no-deps --only-binary :all: -r "$1"; }
locked requirements.lock
cpu=$(sed -n 's/^\(torch==[^ ]*\) .*/\1/p' requirements-torch-cpu.lock)
if pip install --dry-run --no-deps --only-binary :all: "$cpu" > /dev/null 2>&1; then
    locked requirements-torch-cpu.lock
else
    locked requirements-torch.lock
fi
pip install --no-deps --no-build-isolation -e .
pip check
cp infra/*.pth "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
rm -f .venv/installed-* .venv/scoring-* .venv/team-*
touch "$stamp"
