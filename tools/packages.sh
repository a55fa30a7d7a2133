#!/usr/bin/env bash
# packages.sh INTERPRETER BIN DIR   proves that what we would publish installs and works:
# sdist → wheel built from the unpacked sdist → that wheel in an empty environment → tools/smoke.py
set -euo pipefail
python=$1 bin=$2 dir=$3
root=$PWD
rm -rf "$dir"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
unset PYO3_PYTHON # build as a user would, but share target/

"$bin/maturin" sdist --out "$dir"
mkdir "$dir/source"
# -m: files dated now, so that cargo builds them and not what an earlier run left in target/
tar -xzmf "$dir"/engram-*.tar.gz -C "$dir/source" --strip-components=1
for needed in Cargo.toml Cargo.lock LICENSE pyproject.toml rust/Cargo.toml rust/kernels/Cargo.toml rust/bindings/Cargo.toml proto; do
    [ -e "$dir/source/$needed" ] || { echo "the sdist lacks $needed" >&2; exit 1; }
done
if find "$dir/source" -name '*.so' | grep -q .; then echo "the sdist holds a built module" >&2; exit 1; fi

(cd "$dir" && "$bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$dir" ./source)
"$python" -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install --quiet "$dir"/engram-*.whl
(cd "$dir" && "$dir/venv/bin/python" -I "$root/tools/smoke.py")
"$dir/venv/bin/engram" --help >/dev/null
ls -l "$dir"/engram-*.tar.gz "$dir"/engram-*.whl | awk '{ printf "%s %.1f MB\n", $NF, $5 / 1e6 }' | sed "s|$dir/||"
