#!/usr/bin/env bash
# check.sh rust | check.sh python INTERPRETER   says in one line what is missing, and how to get it
set -u
case $1 in
rust)
    if ! command -v cargo >/dev/null 2>&1; then
        echo "Rust is needed: see https://rustup.rs (rustup, stable toolchain)" >&2
        exit 1
    fi
    ;;
python)
    python=$2
    if ! command -v "$python" >/dev/null 2>&1; then
        echo "Python 3.11 or newer is needed: '$python' was not found (make PYTHON=python3.12 … names another one)" >&2
        exit 1
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "Python 3.11 or newer is needed: '$python' is $("$python" -V 2>&1) (make PYTHON=python3.12 … names another one)" >&2
        exit 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "Python's venv module is needed: on Debian and Ubuntu, apt-get install python3-venv" >&2
        exit 1
    fi
    ;;
*)
    echo "usage: check.sh rust | check.sh python INTERPRETER" >&2
    exit 2
    ;;
esac
