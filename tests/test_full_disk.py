"""Runs on a disk that is too small: nothing is called saved that is not; the end says what can be resumed."""

import contextlib
import json
import random
import re
import shutil
import signal
import subprocess

import pytest

from lgd import exits
from lgd.engine.checkpoint import check_seal, load_newest
from tests.cluster.engines import require
from tests.forked import Forked, start_ranks
from tests.test_resume import assert_same_run
from tests.training import small_settings

PERIODS = {
    "TEST__EVAL_PERIOD": 4,
    "SOLVER__CHECKPOINT_PERIOD": 2,
    "LOG_PERIOD": 1,
    "MODEL__DISTILLATOR__LABEL_ENCODER__WIDTH": 1024,  # checkpoints as large as the disks are made for
}
WIDER = {
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 16,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 24,
    "MODEL__FPN__OUT_CHANNELS": 48,
}
"""Checkpoints of 46 MB instead of 36, models of 20 instead of 12."""

DISKS = {
    "room for one checkpoint and no second": (60, {}),
    "room for some": (60, {"MODEL__DISTILLATOR__ENABLED": False}),
    "room for three": (180, WIDER),
}


def missing():
    """Why no disk can be made here, "" where it can."""
    probe = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    return "" if probe.returncode == 0 and shutil.which("mount") else f"no mounts: {probe.stderr.strip()}"


@contextlib.contextmanager
def disk(folder, megabytes):
    """A disk of its own at `folder`."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def uninterrupted(small_data, tmp_path_factory):
    """Output folders of finished runs on a large disk, by name of the small one."""
    outputs = {}
    for name, (_, changes) in DISKS.items():
        outputs[name] = tmp_path_factory.mktemp("uninterrupted")
        settings = small_settings(small_data, outputs[name], **PERIODS, **changes)
        assert Forked(settings, log=outputs[name] / "out").wait() == 0
    return outputs


def assert_says_what_is(code, text, output):
    """Hold the last words of a run against what lies on the disk."""
    whole = [path for path in (output / "checkpoints").glob("step_*.pth") if check_seal(path) is None]
    newest = max((int(path.stem[5:]) for path in whole), default=None)
    assert "Traceback" not in text, text
    assert "Logging error" not in text, text
    saved = re.findall(r"asked to leave: saved step (\d+) of", text)
    if code == exits.RUN_AGAIN:
        assert saved == [str(newest)] or "nothing to save" in text, text
    else:
        assert not saved
    if code == exits.USER_ERROR:
        said = re.findall(r"goes on from step (\d+)|(no checkpoint to resume from)", text.splitlines()[-1])
        assert said == [(str(newest), "") if newest else ("", "no checkpoint to resume from")], text
    if saved:
        end = json.loads((output / "history.jsonl").read_text().splitlines()[-1])
        assert f"saved step {newest} of" in end["message"]
        assert end["outcome"] == "saved"
    return newest


def live(settings, output, log, chance, *flags):
    """Run with a signal at some moment, one in four kills; return the exit code and the newest step."""
    log.unlink(missing_ok=True)
    run = Forked(settings, *flags, log=log)
    run.wait_a_while(chance.uniform(0, 4))
    run.signal(chance.choice([signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2, signal.SIGKILL]))
    code = run.wait()
    assert code in (exits.DONE, exits.RUN_AGAIN, exits.USER_ERROR, -signal.SIGKILL), log.read_text()
    return code, assert_says_what_is(code, log.read_text(), output)


@pytest.mark.slow
@pytest.mark.parametrize("name", DISKS)
@pytest.mark.parametrize("trial", range(8))
def test_signals_on_a_small_disk(small_data, tmp_path, uninterrupted, name, trial):
    require(missing())
    megabytes, changes = DISKS[name]
    output, chance = tmp_path / "disk", random.Random(trial)
    with disk(output, megabytes):
        changes = {**changes, "TRAIN__MAX_STARTS_WITHOUT_PROGRESS": 0}
        settings = small_settings(small_data, output, **PERIODS, **changes)
        steps = []
        for life in range(20):
            flags = ["--resume"] if life else []
            code, step = live(settings, output, tmp_path / "log", chance, *flags)
            steps.append(step or 0)
            if code in (exits.DONE, exits.USER_ERROR):
                break
        assert steps == sorted(steps)  # no checkpoint is lost but for a newer one
        if code == exits.USER_ERROR:
            subprocess.run(["mount", "-o", "remount,size=1g", output], check=True)
        run = Forked(settings, "--resume", log=tmp_path / "log")
        assert run.wait() == exits.DONE, run.log.read_text()
        assert load_newest(output / "checkpoints").step == 12
        assert_same_run(uninterrupted[name], output)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing(small_data, tmp_path, uninterrupted):
    """From the second step to the eighth not a byte can be written."""
    require(missing())
    name = "room for some"
    output = tmp_path / "disk"
    with disk(output, 200):
        settings = small_settings(small_data, output, **PERIODS, **DISKS[name][1])
        run = Forked(settings, log=tmp_path / "log")
        run.wait_for(output / "metrics.jsonl", '"iteration": 2')
        run.signal(signal.SIGSTOP)
        hog = output / "hog"
        with contextlib.suppress(OSError), hog.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        run.signal(signal.SIGCONT)
        run.wait_for(tmp_path / "log", "[ 8/12]")
        hog.unlink()
        assert run.wait() == exits.DONE, run.log.read_text()
        text = run.log.read_text()
        assert "Traceback" not in text
        assert "No space left on device; kept until there is room" in text
        assert "can be written to again; nothing is missing" in text
        assert "not saved" in text
        assert_same_run(uninterrupted[name], output)
        log = (output / "log.txt").read_text()
        assert all(f"[{step:>2}/12]" in log for step in range(1, 13))  # also what was said meanwhile


@pytest.mark.slow
def test_two_ranks_that_cannot_save_end_with_2(small_data, tmp_path):
    require(missing())
    output = tmp_path / "disk"
    with disk(output, 60):
        settings = small_settings(small_data, output, **{**PERIODS, "SOLVER__MAX_ITER": 200})
        ranks = start_ranks(settings, folder=tmp_path)
        ranks[0].wait_for(tmp_path / "rank0.log", "checkpoint of step 4 not saved")
        ranks[1].signal(signal.SIGUSR2)
        assert [rank.wait() for rank in ranks] == [exits.USER_ERROR] * 2
        text = ranks[0].log.read_text()
        assert assert_says_what_is(exits.USER_ERROR, text, output) == 2
        assert "error: asked to leave, but checkpoint of step " in text.splitlines()[-1]


@pytest.mark.slow
def test_a_start_on_a_full_disk_says_what_can_be_resumed(small_data, tmp_path):
    require(missing())
    output = tmp_path / "disk"
    with disk(output, 200):
        settings = small_settings(small_data, output, **{**PERIODS, "SOLVER__MAX_ITER": 2})
        assert Forked(settings, log=tmp_path / "first").wait() == exits.DONE
        with contextlib.suppress(OSError), (output / "hog").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        run = Forked([*settings, "SOLVER.MAX_ITER", "4"], "--resume", log=tmp_path / "second")
        assert run.wait() == exits.USER_ERROR
        assert_says_what_is(exits.USER_ERROR, run.log.read_text(), output)
