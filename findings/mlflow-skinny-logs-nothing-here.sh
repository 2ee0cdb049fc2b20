#!/usr/bin/env bash
# mlflow-skinny: freshly installed it can log nothing to this machine, neither to files nor to SQLite; two packages more and it can.
#
# Guess: the small package is for those who only log, so that `mlflow.start_run()` writes to a folder as it has for years. Since 3.17 a folder
# is refused as a store (an environment variable brings it back), and the SQLite store that the message asks for needs sqlalchemy and alembic,
# which the small package leaves out; what it says then is that the *model registry* is missing. Without a server it needs both packages.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
pip=("$folder/venv/bin/pip" install --quiet --disable-pip-version-check)
"${pip[@]}" mlflow-skinny==3.17.2
cat >"$folder/log.py" <<'PYTHON'
import sys
from importlib.metadata import version

import mlflow

folder, kind, expected = sys.argv[1:]
mlflow.set_tracking_uri(f"sqlite:///{folder}/{kind}.db" if kind == "sqlite" else f"file://{folder}/runs")
try:
    with mlflow.start_run():
        mlflow.log_metric("loss", 1.0, step=1)
    said = "logs"
except Exception as error:
    said = " ".join(str(error).split())[:160]
print(f"mlflow-skinny {version('mlflow-skinny')}, {kind}: {said}")
if (said == "logs") != (expected == "logs"):
    sys.exit("changed")
PYTHON
cd "$folder"
"$folder/venv/bin/python" log.py "$folder" files refused
"$folder/venv/bin/python" log.py "$folder" sqlite refused
"${pip[@]}" sqlalchemy==2.0.44 alembic==1.17.2
echo "with sqlalchemy and alembic:"
"$folder/venv/bin/python" log.py "$folder" sqlite logs 2>"$folder/migrations" || { tail -3 "$folder/migrations"; exit 1; }
echo "as seen"
