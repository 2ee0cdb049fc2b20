#!/usr/bin/env bash
# wandb: a run whose online start failed cannot be started offline in its place, until everything of the library is torn down.
#
# Guess: where the server does not answer, catch the error of `wandb.init` and call it again with mode="offline" and the same id, so that the
# run is there to be synchronised later. The second call says that the id is in use, by the first call, which had failed; only
# `wandb.teardown()`, which ends all runs of the process, makes the process forget it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check wandb==0.31.0
cd "$folder"
# A port of this machine on which nobody listens stands for a server that is down.
env WANDB_SILENT=true WANDB_API_KEY="$(printf '0%.0s' {1..40})" WANDB_BASE_URL=http://127.0.0.1:9 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import wandb


def start(mode):
    try:
        run = wandb.init(project="p", id="abc", mode=mode, dir=".", settings=wandb.Settings(init_timeout=5))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    run.log({"loss": 1.0})
    run.finish()
    return "logs"


first, second = start("online"), start("offline")
wandb.teardown()
third = start("offline")
print(f"wandb {wandb.__version__}\nonline, no server: {first}\nthen offline: {second}\nafter wandb.teardown(), offline: {third}")
if first == "logs" or second == "logs" or third != "logs":
    sys.exit("changed")
print("as seen")
PYTHON
