#!/usr/bin/env bash
# Installs the Debian packages that tests use. Where that cannot be done it says so loudly; in CI it fails.
set -u
packages=(strace:strace) # command:package

missing=()
for entry in "${packages[@]}"; do
    command -v "${entry%%:*}" >/dev/null 2>&1 || missing+=("${entry##*:}")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo -n); fi
if command -v apt-get >/dev/null 2>&1 && { [ "${#as_root[@]}" -eq 0 ] || { [ "${CI:-}" = true ] && sudo -n true 2>/dev/null; }; }; then
    echo "installing: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    if "${as_root[@]}" apt-get update -qq && "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"; then
        exit 0
    fi
fi

echo "*** MISSING: ${missing[*]}: the tests that need it will NOT RUN. Install with: apt-get install ${missing[*]}" >&2
[ "${CI:-}" = true ] && exit 1
exit 0
