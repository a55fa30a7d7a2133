#!/usr/bin/env bash
# phase.sh NAME COMMAND…   runs the command and notes how long it took
# phase.sh --table         prints what was noted since `make test` began
set -uo pipefail
timings=.make/timings

if [ "$1" = --table ]; then
    [ -f "$timings" ] || exit 0
    awk 'BEGIN { printf "\n%-16s %8s  %s\n", "phase", "seconds", "result" }
         { printf "%-16s %8d  %s\n", $1, $2, $3; total += $2 }
         END { printf "%-16s %8d\n", "total", total }' "$timings"
    exit 0
fi

name=$1
shift
mkdir -p .make
printf '\n== %s\n' "$name"
start=$(date +%s)
"$@"
status=$?
took=$(($(date +%s) - start))
if [ "$status" -eq 0 ]; then result=ok; else result="FAILED($status)"; fi
printf '%s %s %s\n' "$name" "$took" "$result" >>"$timings"
printf '== %s: %s in %s s\n' "$name" "$result" "$took"
exit "$status"
