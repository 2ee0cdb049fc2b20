"""The callable that submitit runs: interrupted, queued again, and going on from the newest checkpoint."""

import json
import os
import re
import subprocess
import time

import pytest
import submitit
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from jobs import trainer
from jobs.submit import main
from jobs.trainer import Trainer
from tests.training import REPOSITORY, read_metrics, small_settings

DEMO = str(REPOSITORY / "configs" / "demo.yaml")
AWKWARD = ("OUTPUT_DIR", 'it\'s "a" $HOME `id` \\ folder\n', "SEED", "")


STRANDED = "error: saved, but the job could not be queued again ("


def test_arguments_survive_the_pickle(tmp_path):
    DelayedSubmission(Trainer(AWKWARD)).dump(tmp_path / "job.pkl")
    assert DelayedSubmission.load(tmp_path / "job.pkl").function.arguments == AWKWARD


@pytest.mark.parametrize(
    ("state", "comes_back"),
    [("RUNNING", True), ("SIGNALING", True), ("COMPLETING", False), ("CANCELLED", False)],
)
def test_checkpoint_is_the_same_again_unless_the_job_is_ending(monkeypatch, tmp_path, state, comes_back):
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$3" = 4711 ] && echo {state}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    job = Trainer(AWKWARD)
    again = job.checkpoint()
    assert (again is not None and again.function == job and not again.args) == comes_back


def test_the_group_is_what_slurm_says(monkeypatch):
    slurm = {"JOB_ID": "123456", "NTASKS": "16", "JOB_NUM_NODES": "2", "NODEID": "1", "PROCID": "11",
             "LOCALID": "3", "JOB_NODELIST": "gpu[007-008],x1", "CPUS_PER_TASK": "6"}  # fmt: skip
    monkeypatch.setattr(
        os, "environ", dict(os.environ, SUBMITIT_EXECUTOR="slurm", MASTER_PORT="1", NCCL_DEBUG="INFO")
    )
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ.update({f"SLURM_{key}": value for key, value in slurm.items()})
    trainer.join_group()
    expected = {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8",
                "MASTER_ADDR": "gpu007", "MASTER_PORT": "23456", "OMP_NUM_THREADS": "6", "NCCL_DEBUG": "INFO",
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # fmt: skip
    assert {key: os.environ[key] for key in expected} == expected
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def wait_for(condition, job):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, job.stdout()
        time.sleep(0.02)


def test_on_one_node_rank_0_tells_the_others_any_port(monkeypatch):
    slurm = {"JOB_ID": "123456", "NTASKS": "2", "JOB_NUM_NODES": "1", "NODEID": "0", "PROCID": "1",
             "LOCALID": "1", "JOB_NODELIST": "gpu007"}  # fmt: skip
    monkeypatch.setattr(os, "environ", dict(os.environ, SUBMITIT_EXECUTOR="slurm"))
    os.environ.update({f"SLURM_{key}": value for key, value in slurm.items()})
    trainer.join_group()
    expected = {"MASTER_PORT": "0", "LGD_MEETING": "job-123456", "LOCAL_WORLD_SIZE": "2"}
    assert {key: os.environ[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UncompletedJobError("Job not requeued because: x."), 75, "Job not requeued because: x."),
        (FileNotFoundError(2, "No such file", "scontrol"), 2, STRANDED),
        (subprocess.CalledProcessError(1, ["scontrol"]), 2, STRANDED),
        (subprocess.TimeoutExpired(["scontrol"], 60), 2, STRANDED),
    ],
)
def test_a_job_that_cannot_be_queued_again_says_so(capsys, error, code, said):
    def requeue(number, frame):
        raise error

    with pytest.raises(SystemExit) as end:
        trainer.queue_again(requeue)
    assert end.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_rank_that_fails_leaves_a_mark(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", dict(os.environ, SUBMITIT_EXECUTOR="slurm", SLURM_JOB_ID="4711"))
    os.environ["SUBMITIT_FOLDER"] = str(tmp_path)
    trainer.note_failure()
    assert [path.name for path in tmp_path.iterdir()] == ["4711_failed"]


def test_nobody_to_ask_whether_the_job_is_ending(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert not trainer.is_ending()


@pytest.mark.slow
def test_here_several_ranks_meet(small_data, tmp_path, monkeypatch):
    """Without GPUs, and without a port that anybody has fixed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    settings = small_settings(small_data, tmp_path / "output", SOLVER__MAX_ITER=4, SOLVER__STEPS="[2]")
    words = ["--cluster", "local", "--tasks-per-node", "2", "--config-file", DEMO, *settings]
    assert main(words) == 0
    deadline = time.monotonic() + 200
    while not (tmp_path / "output" / "model_final.pth").exists():
        logs = [path.read_text() for path in (tmp_path / "job_logs").glob("*.out")]
        assert time.monotonic() < deadline, logs
        time.sleep(0.2)
    assert "2 x CPU" in (tmp_path / "output" / "log.txt").read_text()
    (start, _) = (json.loads(line) for line in (tmp_path / "output" / "history.jsonl").open())
    assert re.fullmatch(r"local \d+", start["job"])


@pytest.mark.slow
def test_interrupted_it_is_started_again_and_goes_on(small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    settings = small_settings(
        small_data,
        tmp_path / "output",
        SOLVER__MAX_ITER=60,
        TEST__VIS_IMAGES=0,
        SOLVER__CHECKPOINT_PERIOD=1000,
    )
    executor = submitit.LocalExecutor(tmp_path / "logs", max_num_timeout=5)
    executor.update_parameters(timeout_min=10, tasks_per_node=1, stderr_to_stdout=True)
    job = executor.submit(Trainer(("--config-file", DEMO, "--resume", *settings)))
    metrics = tmp_path / "output" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and '"iteration": 4,' in metrics.read_text(), job)
    job._process.terminate()  # the process that looks after the tasks passes it on to them
    wait_for(job.done, job)
    assert job.result() == 0
    text = job.stdout()
    assert text.index("exit code 75: run me again") < text.index("resumed from")
    steps = [line["iteration"] for line in read_metrics(tmp_path / "output") if "total_loss" in line]
    assert steps == list(range(2, 61, 2))


def test_debug_runs_here_and_passes_the_exit_code_on(small_data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = small_settings(small_data, tmp_path / "output", SOLVER__MAX_ITER=2)
    assert main(["--cluster", "debug", "--config-file", DEMO, *settings]) == 0
    assert (tmp_path / "output" / "model_final.pth").exists()
    with pytest.raises(SystemExit) as end:
        main(
            [
                "--cluster",
                "debug",
                "--config-file",
                DEMO,
                *settings,
                "MODEL.WEIGHTS",
                "missing.pth",
                "OUTPUT_DIR",
                "x",
            ]
        )
    assert end.value.code == 2
