#!/usr/bin/env bash
# Start training in the background, with one log file.
#
#   bash scripts/run_train.sh RECIPE [--OPTION VALUE ...]
#
# RECIPE is a name that `vitbase recipes` lists (imagenet, ...). The log is train.log, or $LOG.
# Training runs on this machine's device; a rank table for several is not supported yet.
set -euo pipefail

if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: bash scripts/run_train.sh RECIPE [--OPTION VALUE ...]" >&2
    exit 2
fi
if [ -f "$1" ] && [ "${1%.toml}" = "$1" ]; then
    echo "run_train.sh: $1 looks like a rank table: training on several devices is not supported yet." >&2
    echo "Leave it out to train on this machine's device: bash scripts/run_train.sh ${2:-RECIPE}" >&2
    exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}
log=${LOG:-train.log}
recipe=$1
shift

nohup "$python" "$root/train.py" --name "$recipe" "$@" > "$log" 2>&1 < /dev/null &
process=$!
# A mistake is the first thing in the log: show it here, too.
for _ in {1..60}; do
    if [ -s "$log" ] || ! kill -0 "$process" 2> /dev/null; then
        break
    fi
    sleep 0.5
done
if grep -q "^vitbase: error" "$log" || ! kill -0 "$process" 2> /dev/null; then
    code=0
    wait "$process" || code=$?
    cat "$log"
    exit "$code"
fi
echo "Training $recipe in the background (process $process); follow it with: tail -f $log"
