#!/usr/bin/env bash
# lock.sh INTERPRETER   writes requirements-dev.lock: the `dev` group and our own dependencies, as resolved today
set -euo pipefail
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --upgrade pip
"$work/venv/bin/python" - >"$work/ours.txt" <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["dependencies"]))
PY
"$work/venv/bin/python" -m pip install --quiet --group dev -r "$work/ours.txt"
{
    echo "# Made by \`make lock\` from the dev group and the dependencies in pyproject.toml. Do not edit."
    "$work/venv/bin/python" -m pip freeze --all --exclude setuptools --exclude wheel
} >"$work/lock"
mv "$work/lock" requirements-dev.lock
