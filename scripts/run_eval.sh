#!/usr/bin/env bash
# Evaluate a checkpoint, or each checkpoint of a folder in turn.
#
#   bash scripts/run_eval.sh [--checkpoint_path ./ckpt_0] [--OPTION VALUE ...]
#
# Without --checkpoint_path: the run folder ./ckpt_0, where train.py keeps its checkpoints, or else
# ./ckpt_parallel, where run_train.sh does.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python3)}
case " $* " in
    *" --checkpoint_path"*) ;;
    *)
        folder=./ckpt_0
        [ -d "$folder" ] || [ ! -d ./ckpt_parallel ] || folder=./ckpt_parallel
        set -- --checkpoint_path "$folder" "$@"
        ;;
esac
exec "$python" "$root/eval.py" "$@"
