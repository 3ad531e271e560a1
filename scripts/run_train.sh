#!/usr/bin/env bash
# Start training in the background, on all devices of this machine or of a rank table.
#
#   bash scripts/run_train.sh [RANK_TABLE_FILE] RECIPE [--OPTION VALUE ...]
#
# RECIPE is a name that `vitbase recipes` lists (imagenet, ...). With a rank table, start it on
# every server; see docs/cluster.md. One log per server: train.log, with a rank table
# train_<server>.log, or $LOG. Options of `vitbase launch` go into $LAUNCH_OPTIONS, such as
# "--num_devices 4", or "--server_id 10.0.0.2" where a server does not find itself.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}
read -ra launch <<< "${LAUNCH_OPTIONS:-}"
log=${LOG:-train.log}
if [ $# -gt 0 ] && { [ "$1" != "${1%.json}" ] || { [ -f "$1" ] && [ "${1%.toml}" = "$1" ]; }; }; then
    server=$(sed -n 's/.*--server_id[= ]\([^ ]*\).*/\1/p' <<< "${LAUNCH_OPTIONS:-}")
    log=${LOG:-train_${server:-$(hostname)}.log}
    launch+=(--rank_table "$1")
    shift
fi
if [ $# -eq 0 ] || [ "${1#-}" != "$1" ]; then
    echo "usage: bash scripts/run_train.sh [RANK_TABLE_FILE] RECIPE [--OPTION VALUE ...]" >&2
    exit 2
fi
recipe=$1
shift
# Runs of this script have a folder of their own: train.py keeps ./ckpt_0.
case " $* " in
    *" --output_dir"*) ;;
    *) set -- --output_dir ./ckpt_parallel "$@" ;;
esac
: > "$log" # what an earlier run left in it says nothing of this one

# ENGINE=mindspore is --engine mindspore: MindSpore itself, through msrun.
if [ -n "${ENGINE:-}" ]; then
    set -- --engine "$ENGINE" "$@"
fi

nohup "$python" -m vitbase launch "${launch[@]}" -- "$root/train.py" --name "$recipe" "$@" \
    >> "$log" 2>&1 < /dev/null &
process=$!
# A mistake is the first thing in the log: show it here, too.
for _ in {1..60}; do
    if [ -s "$log" ] || ! kill -0 "$process" 2> /dev/null; then
        break
    fi
    sleep 0.5
done
sleep 0.2 # the log may have its first line, and the process not yet have ended
if grep -q "^vitbase: error" "$log" || ! kill -0 "$process" 2> /dev/null; then
    code=0
    wait "$process" || code=$?
    cat "$log"
    exit "$code"
fi
echo "Training $recipe in the background (process $process); follow it with: tail -f $log"
