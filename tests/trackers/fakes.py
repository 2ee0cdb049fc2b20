"""A library in place of wandb that writes down how it is called, or fails as it is told to."""

import json

WANDB = """
import json, os, sys, time
from pathlib import Path

BEHAVIOUR = os.environ.get("FAKE_TRACKER", "")

class api:
    api_key = os.environ.get("FAKE_KEY")

in_use = set()

def teardown():
    in_use.clear()

class Settings:
    def __init__(self, **options):
        pass

class Image:
    def __init__(self, array):
        self.shape = list(array.shape)

class Run:
    def __init__(self, options):
        self.path = Path(options["dir"]) / "calls.jsonl"
        self.url, self.dir = None, options["dir"] + "/files"
        chosen = ("project", "name", "id", "resume", "config", "mode")
        self.write("init", {name: options[name] for name in chosen})

    def write(self, call, facts):
        with self.path.open("a") as file:
            file.write(json.dumps([call, facts]) + "\\n")

    def define_metric(self, *names, **options):
        pass

    def log(self, row):
        if BEHAVIOUR == "dies":
            os._exit(3)
        self.write("log", {k: v.shape if isinstance(v, Image) else v for k, v in row.items()})

    def finish(self, exit_code):
        print("words of a library", flush=True)
        self.write("finish", exit_code)

def init(**options):
    if BEHAVIOUR == "asks":
        options["name"] = input("Your key, please: ")
    if BEHAVIOUR == "hangs":
        time.sleep(1000)
    if options["id"] in in_use:
        raise RuntimeError("run ID is in use")
    in_use.add(options["id"])
    if BEHAVIOUR == "fails" or BEHAVIOUR == "fails online" and options["mode"] == "online":
        raise RuntimeError("no server there\\nnor here")
    return Run(options)
"""


def install(folder, monkeypatch, behaviour=""):
    """Put the library where the trainer, and so the tracker's process, finds it."""
    folder.mkdir()
    (folder / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("FAKE_TRACKER", behaviour)
    for name in ("WANDB_DIR", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def calls(output):
    """How it was called for a run."""
    path = output / "trackers" / "wandb" / "calls.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(output):
    """What it was told of steps."""
    return [facts for call, facts in calls(output) if call == "log"]
