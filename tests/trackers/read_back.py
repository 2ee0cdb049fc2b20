"""What the real libraries have of a run, read back from what they wrote offline."""

import json
import os
import struct
from pathlib import Path

_BLOCK, _FILE_HEADER, _HEADER = 2**15, 7, struct.Struct("<IHB")


def read_all(output):
    """By library: the points [(tag, step)] and pictures [(tag, step)] of the one run that is there."""
    folder = Path(output) / "trackers"
    return {"wandb": read_wandb(folder), "mlflow": read_mlflow(folder), "trackio": read_trackio(folder)}


def read_wandb(folder):
    """From all files of the run: a resume begins another one with the same id, and wandb sync joins them."""
    files = sorted((folder / "wandb").glob("wandb/offline-run-*/*.wandb"))
    assert len({path.name for path in files}) == 1
    points, pictures = [], []
    for row in (row for path in files for row in _history(path)):
        step = row.pop(("step",))
        for (tag, *rest), value in row.items():
            if rest == ["_type"]:
                assert value == "image-file"
                pictures.append((tag, step))
            elif not rest and not tag.startswith("_") and not isinstance(value, str):
                points.append((tag, step))
    return points, pictures


def _history(path):
    from wandb.proto import wandb_internal_pb2

    for content in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {tuple(item.nested_key) or (item.key,): json.loads(item.value_json) for item in items}


def _records(data):
    """The records of LevelDB's log format, behind the file's own header; the library reads it in Go alone."""
    at, whole = _FILE_HEADER, b""
    while at + _HEADER.size <= len(data):
        if _BLOCK - at % _BLOCK < _HEADER.size:
            at += _BLOCK - at % _BLOCK
            continue
        _, size, kind = _HEADER.unpack_from(data, at)
        if kind == 0:
            return
        whole += data[at + _HEADER.size : at + _HEADER.size + size]
        at += _HEADER.size + size
        if kind in (1, 4):
            yield whole
            whole = b""


def read_mlflow(folder):
    from mlflow import MlflowClient

    own = os.environ.get("MLFLOW_TRACKING_URI")
    client = MlflowClient(own or f"sqlite:///{folder}/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lgd").experiment_id])
    number = run.info.run_id
    points = [
        (tag, point.step) for tag in run.data.metrics for point in client.get_metric_history(number, tag)
    ]
    names = [Path(each.path).name for each in client.list_artifacts(number, "images")]
    pictures = [
        (name.split("+")[0].replace("~", "/"), int(name.split("+")[2]))
        for name in names
        if "compressed" not in name and name.endswith(".png")
    ]
    assert run.data.params["SOLVER.MAX_ITER"] == "60"
    assert run.info.status == "FINISHED"
    return points, pictures


def read_trackio(folder):
    """Straight from its database: the library reads its folder from the environment when it is imported."""
    import sqlite3

    with sqlite3.connect(folder / "trackio" / "lgd.db") as database:
        rows = database.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert len({name for name, *_ in rows}) == 1
    points, pictures = [], []
    for _, step, text in rows:
        for tag, value in json.loads(text).items():
            if isinstance(value, dict):
                pictures.append((tag, step))
            elif not isinstance(value, str):
                points.append((tag, step))
    return points, pictures
