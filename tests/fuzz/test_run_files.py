"""Damaged files in the folders of runs: a run goes on or is refused in one line, and the others are shown."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import cancel, logs, status
from jobs.records import read_history
from lgd import exits
from lgd.engine.checkpoint import check_seal, load_newest, read_file, save_checkpoint
from lgd.run import lock
from lgd.run import training as training_module
from lgd.run.holder import Holder
from lgd.train import main
from tests.fuzz.mutations import NASTY, Generator, damage_bytes, damage_value, nested
from tests.fuzz.outcomes import require_one_line, soon
from tests.training import REPOSITORY, small_settings

pytestmark = pytest.mark.slow

ROUNDS = range(8)
"""Each is a test of its own with a seed of its own."""

STEP = 2
"""That a run goes on from."""

SEAL, CHECKPOINT = f"checkpoints/step_{STEP:07d}.json", f"checkpoints/step_{STEP:07d}.pth"
READ_BACK = ("launch.json", "run.lock", "history.jsonl", "metrics.jsonl", SEAL)
LEFT = ("config.yaml", "log.txt", "results.json", "teacher", "inference", "checkpoints", "model_best.pth")


class Reached(Exception):  # noqa: N818 (nothing is wrong)
    """A run has come to its next step."""


@pytest.fixture(scope="module")
def begun(small_data, tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder of a run that was killed after `STEP` of four steps, and the arguments by which it began."""
    output = tmp_path_factory.mktemp("begun") / "run"
    settings = small_settings(
        small_data, output, SOLVER__MAX_ITER=4, SOLVER__CHECKPOINT_PERIOD=STEP, SOLVER__STEPS="[3]",
        SOLVER__IMS_PER_BATCH=2, LOG_PERIOD=1, TEST__EVAL_PERIOD=STEP, DATASETS__TEST="()",
        MODEL__RESNETS__DEPTH=18,
    )  # fmt: skip
    arguments = ["--config-file", str(REPOSITORY / "configs/demo.yaml"), *settings]
    assert main(arguments) == exits.DONE
    for path in (*output.glob("checkpoints/step_0000004.*"), output / "model_final.pth"):
        path.unlink()
    vain = {"settings": "a", "steps": [STEP], "starts": 1, "counted": 1.0}
    agents = {f"{socket.gethostname()}:1:2": 0}
    launch = {"agents": agents, "opened": True, "left": False, "vain": vain}
    (output / "launch.json").write_text(json.dumps(launch))
    holder = Holder.current([])
    dead = replace(holder, process=replace(holder.process, pid=2**22 + 1), step=1)
    (output / "run.lock").write_bytes(dead.content(700))
    return output, arguments


@pytest.fixture
def output(begun, tmp_path, monkeypatch) -> Path:
    """A copy of that folder, for a run that ends before its next step."""

    def reach(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(training_module, "_run_loop", reach)
    for name, seconds in (("WATCH_SECONDS", 0.05), ("_UNREADABLE_SECONDS", 0.05), ("_LOOK_SECONDS", 0.01)):
        monkeypatch.setattr(lock, name, seconds)
    monkeypatch.setenv("PATH", str(tmp_path))  # no scheduler is asked for anything
    return copy(begun[0], tmp_path / "run")


def copy(whole: Path, folder: Path) -> Path:
    """The checkpoint is large, and a link to it."""
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(
        whole, folder, copy_function=lambda source, target: link_large(Path(source), Path(target))
    )


def link_large(source: Path, target: Path) -> None:
    if source.suffix == ".pth":
        target.symlink_to(source)
    else:
        shutil.copyfile(source, target)


def go_on(capsys, begun, output: Path) -> bool:
    """What `lgd train --resume` does up to its next step; False where it refuses in one line."""
    try:
        code = main([*begun[1], "OUTPUT_DIR", str(output), "--resume"])
    except Reached:
        capsys.readouterr()
        return True
    said = capsys.readouterr().err
    assert code == exits.USER_ERROR, said
    assert said.startswith("error: ")
    assert said.endswith("\n")
    require_one_line(said[:-1])
    return False


def damage_json(generator: Generator, content: bytes) -> bytes:
    """Damage the values of a file of one JSON object, or of one a line."""
    entries = [json.loads(line) for line in content.splitlines()]
    damaged = damage_value(generator, entries)
    lines = damaged if isinstance(damaged, list) else [damaged]
    return "\n".join(json.dumps(line) for line in lines).encode() + b"\n"


def damage_file(generator: Generator, path: Path) -> None:
    """Damage a file, or put something else in its place."""
    whole, kind = path.read_bytes(), generator.randrange(14)
    if path.is_symlink():
        path.unlink()
        path.write_bytes(whole)
    if kind < 3 and path.suffix in (".json", ".jsonl", ".lock"):
        path.write_bytes(damage_json(generator, whole))
    elif kind < 6:
        path.write_bytes(damage_bytes(generator, whole))
    elif kind == 6:
        path.write_bytes(
            json.dumps(generator.choice([*NASTY, [nested(900)]])).encode() * generator.choice((1, 3))
        )
    elif kind == 7:
        path.write_bytes(
            generator.choice((b"", b"\n", b"\0" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe\0"))
        )
    elif kind == 8:
        path.write_bytes(
            generator.choice((whole * 2, whole[:-1], whole + b'{"ev', whole.swapcase(), whole[::-1]))
        )
    elif kind == 9:
        path.write_bytes(
            whole.decode(errors="replace").encode(generator.choice(("utf-16", "utf-32", "utf-7")))
        )
    elif kind == 10:
        path.write_bytes(
            b'{"bytes": ' + b"9" * generator.choice((20, 5000)) + b', "event": "start", "iteration": 1e999}\n'
        )
    else:
        replace_file(path, generator.choice(("folder", "pipe", "ring", "nowhere", "gone", "device")))


def replace_file(path: Path, other: str) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if other == "folder":
        path.mkdir()
    elif other == "pipe":
        os.mkfifo(path)
    elif other != "gone":
        path.symlink_to({"ring": path.name, "nowhere": "missing/missing", "device": "/dev/zero"}[other])


@pytest.mark.parametrize("seed", ROUNDS)
def test_a_run_goes_on_or_says_why_not(capsys, begun, output, seed):
    generator, reached = random.Random(seed), 0
    for number in range(40):
        copy(begun[0], output)
        names = generator.sample(READ_BACK, generator.choice((1, 1, 1, 2)))
        for name in names:
            damage_file(generator, output / name)
        with soon(f"seed {seed}, case {number}, {names}"):
            went_on = go_on(capsys, begun, output)
        if went_on:
            reached += 1
            entry = read_history(output)[-1]
            assert (entry["event"], entry["outcome"]) == ("end", "failed")
            assert all(0 <= line["iteration"] <= STEP for line in metrics_lines(output))
            assert not (output / "run.lock").exists()
    assert reached > 10


def metrics_lines(output: Path) -> Iterator[dict[str, Any]]:
    for line in (output / "metrics.jsonl").read_bytes().splitlines():
        yield json.loads(line)


@pytest.mark.parametrize("other", ["folder", "pipe", "ring", "nowhere", "gone", "device"])
def test_other_things_in_the_place_of_files(capsys, begun, output, other):
    for name in (*READ_BACK, *LEFT, CHECKPOINT):
        copy(begun[0], output)
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        replace_file(path, other)
        with soon(f"{name}: {other}"):
            go_on(capsys, begun, output)


@pytest.mark.parametrize("seed", ROUNDS)
def test_damaged_checkpoints_and_seals(tmp_path, seed):
    generator, folder = random.Random(100 + seed), tmp_path / "checkpoints"
    for number in range(80):
        shutil.rmtree(folder, ignore_errors=True)
        for step in (1, STEP):
            save_checkpoint(folder, step, {"model": {"w": torch.full((9,), float(step))}}, keep=3)
        path = tmp_path / (SEAL if number % 2 else CHECKPOINT)
        damage_file(generator, path)
        with soon(f"seed {seed}, case {number}"):
            checked = check_seal(tmp_path / CHECKPOINT) if (tmp_path / CHECKPOINT).exists() else ""
            found = load_newest(folder)
        assert found.step == (STEP if checked is None else 1)
        assert torch.equal(found.state["model"]["w"], torch.full((9,), float(found.step)))


@pytest.mark.parametrize("seed", ROUNDS)
def test_sealed_checkpoints_that_hold_something_else(capsys, begun, output, seed):
    generator, whole = random.Random(200 + seed), read_file(begun[0] / CHECKPOINT)
    large = {name: whole.pop(name) for name in ("model", "optimizers")}
    reached = 0
    for number in range(12):
        copy(begun[0], output)
        shutil.rmtree(output / "checkpoints")
        content = damage_value(generator, whole)
        content = {**large, **(content if isinstance(content, dict) else {})}
        if generator.randrange(4) == 0:
            content[generator.choice(list(large))] = generator.choice(
                (None, {}, [], {"a": 1}, {"student": {}}, large["model"])
            )
        step = content.pop("step", None)
        save_checkpoint(
            output / "checkpoints", STEP, {**content, **({} if step == STEP else {"step": step})}, keep=3
        )
        with soon(f"seed {seed}, case {number}"):
            reached += go_on(capsys, begun, output)
    assert reached < 12


@pytest.mark.parametrize("seed", ROUNDS)
def test_a_damaged_run_hides_no_other(capsys, begun, output, tmp_path, seed):
    generator, runs = random.Random(300 + seed), tmp_path / "runs"
    for name in ("one", "three"):
        copy(begun[0], runs / name)
    places = [str(runs / name) for name in ("one", "two", "three")]
    for number in range(60):
        copy(begun[0], runs / "two")
        (runs / "two" / "results.json").write_text('{"val": {"student": {"bbox": {"AP": 40.0}}}}')
        names = generator.sample(
            (*READ_BACK, "results.json", "config.yaml", "log.txt"), generator.choice((1, 1, 2, 5))
        )
        for name in names:
            damage_file(generator, runs / "two" / name)
        with soon(f"seed {seed}, case {number}, {names}"):
            rows = table(capsys, places)
        assert [row["run"] for row in rows] == places
        assert {row["state"] for row in (rows[0], rows[2])} == {"finished"}
        assert rows[0]["step"] == rows[2]["step"] == 4
        for act in (logs.main, cancel.main):
            with soon(f"seed {seed}, case {number}, {names}"):
                code = act([places[1]])
            said = capsys.readouterr().err.splitlines()
            assert code in (0, exits.USER_ERROR)
            assert code == 0 or said[-1].startswith("error: ")
            require_one_line(said[-1] if said else "nothing")


def table(capsys, places: list[str]) -> list[dict[str, Any]]:
    """What `jobs.status` says of runs, in its table and as JSON."""
    assert status.main(places) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(places)]] == places
    for line in lines:
        require_one_line(line)
    assert status.main([*places, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows
