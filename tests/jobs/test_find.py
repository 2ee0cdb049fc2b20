"""`python -m jobs.logs` and `python -m jobs.cancel`: how they find a run's job, and whom they ask."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from jobs import cancel, logs, status
from jobs.records import Start
from lgd.run.job import process_start, scheduler_job
from tests.training import small_settings, start


def write_run(folder, job="", *, log="what was said\n", **changes):
    """An OUTPUT_DIR of a run that a scheduler's job `job` has started here."""
    folder.mkdir(exist_ok=True)
    entry = {"event": "start", "step": 0, "host": "elsewhere", "pid": 1, "began": "1", "job": job, **changes}
    (folder / "history.jsonl").write_text(json.dumps(entry) + "\n")
    if log is not None:
        (folder / "log.txt").write_text(log)
    return folder


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Make programs that note how they are called, and do what they are told to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{folder}/calls"\n{script}\n')
            (folder / name).chmod(0o755)
        return folder / "calls"

    return make


def run(main, folder, capsys, *words):
    """Exit code, output, and the one line of an error."""
    code = main([str(folder), *words])
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if not line.startswith("==> ")]
    assert len(errors) == (code == 2)
    return code, told.out, "".join(errors)


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({}, ""),
        ({"SLURM_JOB_ID": "7"}, "slurm 7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "slurm 7_2"),
        ({"SLURM_JOB_ID": "8", "SLURM_HET_JOB_ID": "7", "TORCHX_JOB_ID": "slurm://torchx/7"}, "slurm 7"),
        (
            {"TORCHX_JOB_ID": "kubernetes://torchx/default:train-x1"},
            "torchx kubernetes://torchx/default:train-x1",
        ),
        ({"SUBMITIT_LOCAL_JOB_ID": "4242"}, "local 4242"),
        ({"LGD_JOB": "kubernetes jobset/lgd-train", "SLURM_JOB_ID": "7"}, "kubernetes jobset/lgd-train"),
    ],
)
def test_the_job_of_an_environment(variables, job):
    assert scheduler_job(variables) == job
    start = Start.read({"job": job})
    assert f"{start.kind} {start.job_id}".strip() == job


def test_processes_are_told_from_later_ones_of_their_number():
    assert process_start(os.getpid()) == process_start(os.getpid()) != process_start(1)
    assert process_start(2**22 + 1) == ""
    ended = subprocess.Popen(["true"])
    deadline = time.monotonic() + 60
    while process_start(ended.pid) and time.monotonic() < deadline:  # then it waits to be asked for its code
        time.sleep(0.01)
    assert process_start(ended.pid) == ""
    ended.wait()


@pytest.mark.parametrize("main", [logs.main, cancel.main])
def test_no_run(main, tmp_path, capsys):
    assert run(main, tmp_path / "none", capsys)[2].startswith(f"error: {tmp_path}/none: no such folder")
    assert run(main, tmp_path, capsys)[2].startswith(f"error: {tmp_path}: no run has started there")
    (tmp_path / "history.jsonl").write_text("\x00\n[1]\n")
    assert run(main, tmp_path, capsys)[0] == 2


@pytest.mark.parametrize("main", [logs.main, cancel.main, status.main])
def test_a_tilde_is_a_home(main, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_run(tmp_path / "run")
    code = main(["~/run"])
    told = capsys.readouterr()
    assert code == (2 if main is cancel.main else 0)
    assert f"{tmp_path}/run" in told.out + told.err
    with pytest.raises(SystemExit) as ended:
        main(["~nobody.here/run"])
    assert ended.value.code == 2
    assert "~nobody.here's home is not known here" in capsys.readouterr().err


def test_the_log_is_the_jobs_own(tmp_path, capsys, programs):
    folder = write_run(tmp_path / "run", "slurm 4711_3")
    output = tmp_path / "the job's output = 1.out"
    output.write_bytes("é\xff\n".encode("latin1") + "weiß\n".encode())
    calls = programs(scontrol=f"echo '   JobId=4711 JobName=x'; echo \"   StdOut={output}\"")
    assert run(logs.main, folder, capsys) == (0, "��\nweiß\n", "")
    assert calls.read_text() == "scontrol show job 4711_3\n"


@pytest.mark.parametrize(
    "scontrol", [None, "echo StdOut=/not/here", "echo slurm_load_jobs error: x >&2; exit 1", ""]
)
def test_else_it_is_that_of_rank_0(tmp_path, capsys, programs, scontrol):
    programs(**({} if scontrol is None else {"scontrol": scontrol}))
    folder = write_run(tmp_path / "run", "slurm 4711")
    assert run(logs.main, folder, capsys) == (0, "what was said\n", "")
    (folder / "log.txt").unlink()
    code, _, error = run(logs.main, folder, capsys)
    assert code == 2
    assert error.startswith(f"error: {folder}: there is no log.txt; ")


def test_following_ends_with_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logs, "_SECONDS_BETWEEN_LOOKS", 0.02)
    folder = write_run(tmp_path / "run")

    def go_on():
        time.sleep(0.2)
        with (folder / "log.txt").open("a") as file:
            file.write("more\n")
        time.sleep(0.2)
        (folder / "log.txt").rename(folder / "old")
        (folder / "log.txt").write_text("another start\n")
        time.sleep(0.2)
        with (folder / "history.jsonl").open("a") as file:
            file.write('{"event": "end", "outcome": "finished"}\n')

    thread = threading.Thread(target=go_on)
    thread.start()
    assert run(logs.main, folder, capsys, "-f") == (0, "what was said\nmore\nanother start\n", "")
    thread.join()


def test_slurm_is_asked_to_cancel(tmp_path, capsys, programs):
    folder = write_run(tmp_path / "run", "slurm 4711_3")
    calls = programs(squeue="echo RUNNING", scancel="")
    code, text, _ = run(cancel.main, folder, capsys)
    assert (code, text.startswith("asked SLURM to cancel job 4711_3")) == (0, True)
    assert calls.read_text().splitlines()[-1] == "scancel 4711_3"


@pytest.mark.parametrize(
    ("scripts", "said"),
    [
        ({}, "cannot run squeue: No such file or directory"),
        (
            {"squeue": "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1"},
            "is not in SLURM's queue",
        ),
        ({"squeue": "echo COMPLETING"}, "its job 4711 is not in SLURM's queue any more"),
        ({"squeue": "echo 'Munge encode failed' >&2; exit 1"}, "squeue failed: Munge encode failed"),
        (
            {"squeue": "echo RUNNING", "scancel": "echo 'scancel: error: denied' >&2; exit 1"},
            "failed: denied",
        ),
    ],
)
def test_slurm_that_cannot_be_asked(tmp_path, capsys, programs, scripts, said):
    programs(**scripts)
    code, _, error = run(cancel.main, write_run(tmp_path / "run", "slurm 4711"), capsys)
    assert code == 2
    assert said in error


NO_JOBS = (
    "slurm --user=root",
    "slurm 1 2",
    "slurm",
    "kubernetes --all",
    "torchx -x",
    "local 1;x",
    "other 3",
    "\n",
)


@pytest.mark.parametrize("job", NO_JOBS)
def test_a_job_that_is_none_is_never_asked_for(tmp_path, capsys, programs, job):
    """The file may be anybody's, and what it holds becomes an argument."""
    calls = programs(squeue="echo RUNNING", scancel="", kubectl="")
    code, _, error = run(cancel.main, write_run(tmp_path / "run", job), capsys)
    assert (code, calls.exists()) == (2, False)
    assert "it is process 1 on elsewhere: type this line there" in error


def test_kubernetes_is_asked_to_delete(tmp_path, capsys, programs):
    calls = programs(kubectl="")
    assert run(cancel.main, write_run(tmp_path / "run", "kubernetes jobset/lgd-train"), capsys)[0] == 0
    assert calls.read_text() == "kubectl delete jobset/lgd-train --wait=false\n"


def test_torchx_is_asked_to_cancel(tmp_path, capsys, monkeypatch):
    folder = write_run(tmp_path / "run", "torchx kubernetes://torchx/default:train-x1")
    code, _, error = run(cancel.main, folder, capsys)  # there is no cluster
    assert code == 2
    assert error.startswith("error: torchx cannot cancel kubernetes://torchx/default:train-x1: ")


def test_no_process_is_signalled_that_is_not_the_run(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    with subprocess.Popen(["sleep", "100"]) as bystander:
        here = {"host": socket.gethostname(), "pid": bystander.pid}
        for began in ("1", "", process_start(bystander.pid)):  # the last has not the run's log open
            write_run(folder, **here, began=began)
            code, _, error = run(cancel.main, folder, capsys)
            assert (code, "is not there any more" in error) == (2, True)
            assert bystander.poll() is None
        bystander.kill()
    for process_id in (0, -1, 2**40, "x"):
        write_run(folder, host=socket.gethostname(), pid=process_id)
        assert run(cancel.main, folder, capsys)[0] == 2


@pytest.mark.slow
def test_a_run_of_this_host_saves_and_leaves(small_data, tmp_path, capsys):
    folder = tmp_path / "run"
    process = start(small_settings(small_data, folder, SOLVER__MAX_ITER=10_000, LOG_PERIOD=1))
    deadline = time.monotonic() + 200
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    code, text, _ = run(cancel.main, folder, capsys)
    assert code == 0
    assert text.startswith(f"asked process {process.pid} on {socket.gethostname()} to leave")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 75, output
    assert run(cancel.main, folder, capsys)[0] == 2
    assert "exit code 75: run me again" in output
    code, text, _ = run(logs.main, folder, capsys)
    assert (code, "asked to leave" in text or "saved" in text) == (0, True)


@pytest.mark.slow
def test_submitits_own_jobs_do_not_come_back(small_data, tmp_path):
    folder = tmp_path / "run"
    settings = small_settings(small_data, folder, SOLVER__MAX_ITER=10_000, LOG_PERIOD=1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = ["--cluster", "local", "--tasks-per-node", "2", "--config-file", "configs/demo.yaml"]
    words += ["--folder", str(tmp_path / "logs")]
    subprocess.run([sys.executable, "-m", "jobs.submit", *words, *settings], env=environment, check=True)
    deadline = time.monotonic() + 200
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text()):
        assert time.monotonic() < deadline, [path.read_text() for path in (tmp_path / "logs").glob("*.out")]
        time.sleep(0.1)
    (entry,) = (json.loads(line) for line in (folder / "history.jsonl").open())
    begun = Start.read(entry)
    controller = int(begun.job_id)
    assert process_start(controller)
    cancel.cancel(folder)
    while begun.runs():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not process_start(controller)
    (_, end) = (json.loads(line) for line in (folder / "history.jsonl").open())
    assert end["outcome"] == "saved"
