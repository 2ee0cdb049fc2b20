"""Two runs in one OUTPUT_DIR, runs that are started in vain, and folders that nodes do not share."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import time
from functools import partial

import pytest

from lgd import exits
from lgd.config.values import ConfigError
from lgd.engine.checkpoint import load_newest
from lgd.run import lock
from lgd.run.resume import Starts, StartsError
from tests.forked import Forked, start_ranks
from tests.test_resume import assert_same_run
from tests.training import read_metrics, small_settings

PERIODS = {"TEST__EVAL_PERIOD": 4, "LOG_PERIOD": 1}


@pytest.fixture(scope="module")
def alone(small_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("alone")
    assert Forked(small_settings(small_data, output, **PERIODS), log=output / "out").wait() == 0
    return output


def wait_at_step_six():
    """Let this process stand still once it has a checkpoint and is past it, until it is woken."""
    from lgd.engine import loop

    set_lr, steps = loop.set_lr, []

    def stop(*arguments):
        steps.append(0)
        if len(steps) == 2 * 4 + 1:  # two sides a step
            os.kill(os.getpid(), signal.SIGSTOP)
        set_lr(*arguments)

    loop.set_lr = stop


def first_run(settings, folder, *flags):
    """A run that stands at its fifth step."""
    run = Forked(settings, *flags, log=folder / "first", before=wait_at_step_six)
    deadline = time.monotonic() + 100
    while open(f"/proc/{run.process.pid}/stat").read().rpartition(")")[2].split()[0] != "T":  # noqa: PTH123, SIM115
        assert run.process.is_alive(), run.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return run


@pytest.mark.parametrize(
    "first", [pytest.param((), id="new"), pytest.param(("--resume",), id="resumed", marks=pytest.mark.slow)]
)
def test_a_second_run_is_refused_and_the_first_not_harmed(small_data, tmp_path, alone, first):
    output = tmp_path / "run"
    settings = small_settings(small_data, output, **PERIODS)
    run = first_run(settings, tmp_path, *first)
    # The first run stands still, the process that scores for it writes predictions on.
    files = [path for path in output.rglob("*") if path.is_file() and "inference" not in path.parts]
    before = {path: path.read_bytes() for path in files if not path.name.startswith(".")}
    del before[output / "run.lock"]
    ways = {"new": (), "resumed": ("--resume",), "evaluation": ("--eval-only", "--resume")}
    seconds = {way: Forked(settings, *flags, log=tmp_path / way) for way, flags in ways.items()}
    for second in seconds.values():
        assert second.wait() == exits.USER_ERROR
        (line,) = [line for line in second.log.read_text().splitlines() if line.startswith("error: ")]
        assert line == second.log.read_text().splitlines()[-1]
        whose = f"process {run.process.pid} on {socket.gethostname()}, since "
        assert line.startswith(f"error: {output} is in use by another run: {whose}")
    assert {path: path.read_bytes() for path in before} == before
    run.signal(signal.SIGCONT)
    assert run.wait() == exits.DONE, run.log.read_text()
    assert_same_run(alone, output)
    assert not (output / "run.lock").exists()


def test_a_killed_run_is_taken_over_at_once(small_data, tmp_path, alone):
    output = tmp_path / "run"
    settings = small_settings(small_data, output, **PERIODS)
    run = first_run(settings, tmp_path)
    run.signal(signal.SIGKILL)
    run.wait()
    assert (output / "run.lock").exists()
    again = Forked(settings, "--resume", log=tmp_path / "second")
    assert again.wait() == exits.DONE, again.log.read_text()
    assert "taken over from a run that is dead: process" in again.log.read_text()
    assert_same_run(alone, output)


def test_two_new_runs_at_the_same_moment(small_data, tmp_path, alone):
    settings = small_settings(small_data, tmp_path / "run", **PERIODS)
    runs = [Forked(settings, log=tmp_path / str(number)) for number in range(3)]
    assert sorted(run.wait() for run in runs) == [exits.DONE, exits.USER_ERROR, exits.USER_ERROR]
    assert_same_run(alone, tmp_path / "run")
    assert not list((tmp_path / "run").glob("earlier-*"))


def run_elsewhere():
    """Let this process look as if it ran on another machine, and train no further than four steps."""
    from lgd.engine import loop
    from lgd.run.place import Process

    loop.set_lr = wait_after_four_steps(loop.set_lr)
    real = Process.current.__func__
    Process.current = classmethod(lambda cls: dataclasses.replace(real(cls), boot="elsewhere", host="hostB"))
    lock.BEAT_SECONDS = 0.2


def wait_after_four_steps(set_lr):
    steps = []

    def wait(*arguments):
        steps.append(0)
        if len(steps) > 2 * 4:  # two sides a step
            time.sleep(600)
        set_lr(*arguments)

    return wait


def watch_shortly():
    lock.WATCH_SECONDS = 2.0


@pytest.mark.parametrize(
    "flags", [pytest.param((), id="new", marks=pytest.mark.slow), pytest.param(("--resume",), id="resumed")]
)
def test_two_hosts(small_data, tmp_path, alone, flags):
    output = tmp_path / "run"
    settings = small_settings(small_data, output, **PERIODS)
    run = Forked(settings, log=tmp_path / "first", before=run_elsewhere)
    run.wait_for(output / "metrics.jsonl", '"iteration": 4')
    second = Forked(settings, *flags, log=tmp_path / "second", before=watch_shortly)
    assert second.wait() == exits.USER_ERROR
    assert f"in use by another run: process {run.process.pid} on hostB" in second.log.read_text()
    run.signal(signal.SIGKILL)
    run.wait()
    again = Forked(settings, "--resume", log=tmp_path / "third", before=watch_shortly)
    assert again.wait() == exits.DONE, again.log.read_text()
    assert "watching whether it lives" in again.log.read_text()
    assert_same_run(alone, output)


def leave_before_the_first_step():
    from lgd.run import run

    def leave(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    real, run.compile_model = run.compile_model, leave


def die_before_the_first_step():
    from lgd.run import run

    run.compile_model = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_never_comes_to_a_checkpoint_stops_being_started(small_data, tmp_path):
    output = tmp_path / "run"
    settings = small_settings(small_data, output, TRAIN__MAX_STARTS_WITHOUT_PROGRESS=2, **PERIODS)
    leaves = (leave_before_the_first_step, exits.RUN_AGAIN)
    for before, code in (leaves, (die_before_the_first_step, -signal.SIGKILL), leaves):
        assert Forked(settings, "--resume", log=tmp_path / "log", before=before).wait() == code
    for _ in range(2):
        refused = Forked(settings, "--resume", log=tmp_path / "refused")
        assert refused.wait() == exits.USER_ERROR
        text = (
            f"error: {output}: started 3 times without coming from its first checkpoint to a new checkpoint"
        )
        assert text in refused.log.read_text()
    assert Forked([*settings, "SOLVER.MAX_ITER", "4"], "--resume", log=tmp_path / "log").wait() == exits.DONE
    assert not (output / "launch.json").exists()


def test_starts_in_vain_are_counted_by_settings_and_checkpoints(tmp_path, monkeypatch):
    def start(settings="a", steps=(), limit=2):
        Starts(tmp_path).count(settings, list(steps), limit)

    start()
    start()
    with pytest.raises(StartsError, match=r"started 2 times .* its first checkpoint .*PROGRESS 0"):
        start()
    assert issubclass(StartsError, ConfigError)
    start(limit=0)
    start(limit=9)
    start(settings="b")
    start(settings="b", steps=[3])
    start(settings="b", steps=[3])
    with pytest.raises(StartsError, match="from step 3 to a new checkpoint"):
        start(settings="b", steps=[3])
    start(settings="b", steps=[6, 3])
    Starts(tmp_path).forget()
    assert not list(tmp_path.iterdir())
    for _ in range(4):  # asked to leave, which counts half
        starts = Starts(tmp_path)
        starts.count("c", [], 2)
        starts.note_left()
        starts.note_left()
    with pytest.raises(StartsError, match="started 4 times"):
        start(settings="c")
    Starts(tmp_path).forget()
    for content in (
        '{"vain": 3}',
        '{"vain": {"starts": "x"}}',
        '{"agents": [], "opened": 1}',
        "[]",
        "[" * 100000,
    ):
        (tmp_path / "launch.json").write_text(content)
        starts = Starts(tmp_path)
        assert (starts.is_restart, starts.has_left) == (False, False)
        start()
    monkeypatch.setattr("lgd.run.resume.write_text_atomically", fail)
    start()  # a full disk does not end the run here


def fail(*_):
    raise OSError(28, "No space left on device")


def hide(folder, on_rank):
    """Let one rank find another folder in the place of OUTPUT_DIR."""
    if os.environ["RANK"] != str(on_rank):
        return
    from lgd.run import lock, run, sharing

    sharing.SECONDS_TO_SEE = 1.0
    lock.BEAT_SECONDS = 0.2
    real = run.OutputFolder
    run.OutputFolder = lambda root: real(folder)
    real_hold = run.hold_folder
    run.hold_folder = lambda root, *rest: real_hold(folder, *rest)


def see_soon():
    from lgd.run import sharing

    sharing.SECONDS_TO_SEE = 1.0


def both(first, second):
    first()
    second()


@pytest.mark.parametrize(
    "has", ["checkpoints", *(pytest.param(has, marks=pytest.mark.slow) for has in ("nothing", "a folder"))]
)
def test_a_folder_that_is_not_shared(small_data, tmp_path, alone, has):
    output, theirs = tmp_path / "run", tmp_path / "theirs"
    if has != "nothing":
        theirs.mkdir()
    if has == "checkpoints":
        subprocess.run(["cp", "-r", alone / "checkpoints", theirs / "checkpoints"], check=True)
    before = partial(both, see_soon, partial(hide, theirs, 1))
    settings = small_settings(small_data, output, **PERIODS)
    ranks = start_ranks(settings, "--resume", folder=tmp_path, before=before)
    assert [rank.wait() for rank in ranks] == [exits.USER_ERROR] * 2, ranks[0].log.read_text()
    here = socket.gethostname()
    expected = (
        f"error: OUTPUT_DIR {output} on rank 1 on {here} is not the folder that rank 0 on {here} writes to"
    )
    steps = " (it has step_0000006.pth, step_0000009.pth, step_0000012.pth)" if has == "checkpoints" else ""
    end = ": all nodes must share OUTPUT_DIR, by the same path"
    assert ranks[0].log.read_text().splitlines()[-1] == expected + steps + end
    assert not output.exists()  # nothing was begun
    assert theirs.exists() == (has != "nothing")


def see_more(name):
    """Let rank 1 see a checkpoint that rank 0 does not, as through an overlay."""
    see_soon()
    if os.environ["RANK"] == "1":
        from lgd.run import sharing

        look = sharing._look
        sharing._look = lambda *arguments: (
            lambda view: sharing._View(view.host, view.sees_lock, (*view.files, name))
        )(look(*arguments))


def test_a_node_that_has_checkpoints_of_its_own(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path / "run", **PERIODS)
    before = partial(see_more, "checkpoints/step_0000006.pth")
    ranks = start_ranks(settings, folder=tmp_path, before=before)
    assert [rank.wait() for rank in ranks] == [exits.USER_ERROR] * 2
    text = ranks[0].log.read_text()
    assert "has step_0000006.pth, which rank 0 on" in text
    assert not (tmp_path / "run").exists()


def show_late(folder):
    """Let the node's view come to be that of rank 0 after a while, as on NFS."""
    if os.environ["RANK"] == "1":
        from lgd.run import sharing

        began, real = time.monotonic(), sharing._can_open
        sharing._can_open = lambda path: time.monotonic() > began + 3 and real(path)


def test_a_folder_that_shows_things_late(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path / "run", SOLVER__MAX_ITER=2)
    ranks = start_ranks(settings, folder=tmp_path, before=partial(show_late, tmp_path))
    assert [rank.wait() for rank in ranks] == [exits.DONE] * 2, ranks[0].log.read_text()
    assert read_metrics(tmp_path / "run")
    assert load_newest(tmp_path / "run" / "checkpoints").step == 2
    assert not list((tmp_path / "run").glob(".*"))
    assert (
        json.loads((tmp_path / "run" / "history.jsonl").read_text().splitlines()[-1])["outcome"] == "finished"
    )
