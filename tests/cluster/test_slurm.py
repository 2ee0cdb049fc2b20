"""Jobs on a real SLURM: interrupted in every way, queued again, and ended as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.engines import require
from tests.cluster.slurm import Cluster, missing_parts
from tests.training import REPOSITORY, read_metrics, run_to_end, small_settings

pytestmark = pytest.mark.slurm

MAX_ITER = 20
RECIPE = ("--config-file", f"{REPOSITORY}/configs/demo.yaml")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = missing_parts()
    require(f"SLURM needs {missing}" if missing else "")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.start()
    yield cluster
    cluster.stop()


def make_settings(data, output, max_iter=MAX_ITER):
    return small_settings(
        data, output, SOLVER__MAX_ITER=max_iter, SOLVER__CHECKPOINT_PERIOD=1000, TEST__VIS_IMAGES=0
    )


@pytest.fixture(scope="module")
def uninterrupted(small_data, tmp_path_factory):
    """OUTPUT_DIR of a run of four ranks that nobody disturbed."""
    output = tmp_path_factory.mktemp("uninterrupted")
    run_to_end(make_settings(small_data, output), "--num-gpus", "4")
    return output


def execute(cluster, folder, *command):
    """Run a user's command in a folder that the nodes share; return what it says."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, text=True, check=False, timeout=120,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**cluster.environment, "PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def submit(cluster, folder, nodes, tasks, *arguments):
    """`python -m jobs.submit`; the ids of its jobs."""
    text = execute(
        cluster, folder, sys.executable, "-m", "jobs.submit", "--partition", "low", "--time", "10",
        "--nodes", str(nodes), "--gpus-per-node", str(tasks), "--cpus-per-task", "1", *arguments,
    )  # fmt: skip
    return [line.split(": job ")[1].split(",")[0] for line in text.splitlines() if ": job " in line]


def sbatch(cluster, folder, nodes, tasks, *arguments, script="train"):
    """`sbatch slurm/SCRIPT.sbatch`; the ids of its jobs."""
    text = execute(
        cluster, folder, "sbatch", "--parsable", "--partition=low", "--time=10", f"--nodes={nodes}",
        f"--gpus-per-node={tasks}", "--cpus-per-task=1", "--mem=1000",
        f"{REPOSITORY}/slurm/{script}.sbatch", *arguments,
    )  # fmt: skip
    return [text.strip()]


WAYS = {"submitit": submit, "sbatch": sbatch}


def logs(folder):
    """What the jobs of a folder wrote."""
    files = [path for pattern in ("*.out", "*.err") for path in folder.rglob(pattern)]
    return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')}" for path in sorted(files))


def wait_for_step(cluster, job, output, step, folder):
    """Wait until the job has trained that far."""
    deadline = time.monotonic() + 150
    metrics = output / "metrics.jsonl"
    while not (metrics.exists() and f'"iteration": {step},' in metrics.read_text()):
        state = cluster.state(job)
        assert state in ("PENDING", "RUNNING", "CONFIGURING"), f"{state}\n{logs(folder)}"
        assert time.monotonic() < deadline, logs(folder)
        time.sleep(0.05)


@pytest.fixture(params=WAYS)
def started(request, cluster, small_data, tmp_path):
    """A job on two nodes with two ranks each that has trained some steps: its id, OUTPUT_DIR, folder."""
    output = tmp_path / "output"
    (job,) = WAYS[request.param](cluster, tmp_path, 2, 2, *RECIPE, *make_settings(small_data, output))
    wait_for_step(cluster, job, output, 4, tmp_path)
    yield job, output, tmp_path
    cluster.run("scancel", job, check=False)


def check_end(cluster, job, output, folder, uninterrupted):
    """The job goes on where it was interrupted, once, and ends like one that was not."""
    end = cluster.wait_for(job, ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED"], 180)
    text = logs(folder)
    assert end == "COMPLETED", text
    assert cluster.restarts(job) == 1
    assert text.count("resumed from") == 1
    # One checkpoint where it was interrupted, which it resumed from, and one at the end.
    first, last = sorted(path.stem for path in (output / "checkpoints").glob("*.pth"))
    assert f"{first}.pth: step" in text
    assert (first > "step_0000003", last) == (True, f"step_{MAX_ITER:07d}")
    check_losses(output, uninterrupted)


def check_losses(output, uninterrupted):
    expected, got = (
        [line for line in read_metrics(folder) if "total_loss" in line] for folder in (uninterrupted, output)
    )
    assert len(got) == MAX_ITER // 2
    for line, other in zip(expected, got, strict=True):
        assert line.keys() == other.keys()
        losses = {key: value for key, value in line.items() if "loss" in key}
        # Four gradients are summed in another order in the first step after a start: equal but for rounding,
        # which grows. Another image or another rate would show in the second digit.
        assert {key: other[key] for key in losses} == pytest.approx(losses, rel=1e-3)


def test_preempted_by_a_job_of_higher_priority(cluster, started, uninterrupted):
    job, output, folder = started
    urgent = ""

    def preempt():
        nonlocal urgent
        urgent = cluster.run(
            "sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null",
            "--wrap=sleep 3",
        )[1]  # fmt: skip

    cluster.signal_frozen(job, preempt)
    cluster.wait_for(job, ["PENDING"], 60)
    cluster.wait_for(urgent, ["COMPLETED"], 60)
    check_end(cluster, job, output, folder, uninterrupted)


def test_out_of_time(cluster, started, uninterrupted):
    job, output, folder = started
    # The warning is due 5 minutes before the limit, and SLURM looks every 30 seconds.
    cluster.signal_frozen(job, lambda: cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=5"))
    cluster.wait_for(job, ["PENDING"], 60)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    check_end(cluster, job, output, folder, uninterrupted)


def test_cancelled_by_the_user_it_saves_but_does_not_come_back(cluster, small_data, tmp_path):
    jobs = {}
    for name, way in WAYS.items():
        settings = make_settings(small_data, tmp_path / name, 10_000)
        (jobs[name],) = way(cluster, tmp_path, 1, 1, *RECIPE, *settings)
    for name, job in jobs.items():
        wait_for_step(cluster, job, tmp_path / name, 4, tmp_path)
    cluster.run("scancel", *jobs.values())
    for name, job in jobs.items():
        cluster.wait_for(job, ["CANCELLED"], 60)
        assert list((tmp_path / name / "checkpoints").glob("*.pth")), logs(tmp_path)
    time.sleep(2)
    for job in jobs.values():
        assert cluster.state(job) == "CANCELLED"
        assert cluster.restarts(job) == 0


def test_what_fails_is_not_queued_again(cluster, small_data, tmp_path):
    settings = [*make_settings(small_data, tmp_path), "MODEL.WEIGHTS", str(tmp_path / "missing.pth")]
    jobs = [way(cluster, tmp_path, 1, 1, *RECIPE, *settings)[0] for way in WAYS.values()]
    for job in jobs:
        cluster.wait_for(job, ["FAILED"], 120)
        assert cluster.restarts(job) == 0
    assert logs(tmp_path).count(f"error: {tmp_path}/missing.pth") == 2, logs(tmp_path)


def test_table_of_recipes(cluster, small_data, tmp_path):
    settings = make_settings(small_data, tmp_path / "runs", 2)
    jobs = submit(cluster, tmp_path, 1, 1, "--array", RECIPE[1], *settings, "--seeds", "1,2")
    assert [job.split("_")[1] for job in jobs] == ["0", "1"]
    for job in jobs:
        assert cluster.wait_for(job, ["COMPLETED", "FAILED"], 120) == "COMPLETED", logs(tmp_path)
    for seed in (1, 2):
        (folder,) = (tmp_path / "runs").glob(f"*demo-seed{seed}")
        assert (folder / "model_final.pth").exists()
        assert f"\nSEED: {seed}\n" in (folder / "config.yaml").read_text()


def test_evaluation_and_preflight(cluster, small_data, tmp_path, uninterrupted):
    settings = make_settings(small_data, tmp_path / "evaluation")
    weights = ("MODEL.WEIGHTS", str(uninterrupted / "model_final.pth"))
    (evaluation,) = sbatch(cluster, tmp_path, 1, 2, *RECIPE, *settings, *weights, script="evaluate")
    report = tmp_path / "preflight.json"
    # A busy machine may look slow to it: only the nodes' names shall be found.
    limits = ("--slow-factor", "1000", "--min-bandwidth", "0", "--max-skew", "60", "--timeout", "120")
    (preflight,) = sbatch(cluster, tmp_path, 2, 1, "--json", str(report), *limits, script="preflight")
    assert cluster.wait_for(evaluation, ["COMPLETED", "FAILED"], 150) == "COMPLETED", logs(tmp_path)
    expected = (uninterrupted / "results.json").read_text()
    assert (tmp_path / "evaluation" / "results.json").read_text() == expected
    # What it finds is true: these nodes' names lead to this machine only. The exit code tells.
    cluster.wait_for(preflight, ["FAILED"], 150)
    assert "2 of 2 rank(s) on 2 host(s)" in logs(tmp_path)
    found = json.loads(report.read_text())["findings"]
    hosts = sorted(finding["what"].split("(")[1].split(")")[0] for finding in found)
    assert hosts == ["node1", "node2"], found
    assert all("the host's own name resolves to 127.0.0.1" in finding["what"] for finding in found), found


def test_torchx(cluster, small_data, tmp_path):
    """Run, status, log, and a retry after a rank was killed."""
    output = tmp_path / "output"

    def torchx(*words):
        program = "from torchx.cli.main import main; main()"
        return execute(cluster, tmp_path, sys.executable, "-c", program, *words)

    text = torchx(
        "run", "--workspace", "", "-s", "slurm", "-cfg", "partition=low,time=10",
        f"{REPOSITORY}/jobs/components.py:train", "--config", RECIPE[1], "-j", "2x1", "--cpu", "1",
        "--gpu", "1", "--memMB", "1000", "--max_restarts", "0", "--max_retries", "1",
        "--", *make_settings(small_data, output), "SOLVER.CHECKPOINT_PERIOD", "2",
    )  # fmt: skip
    address = re.search(r"slurm://\S+", text)[0]
    job = address.split("/")[-1]
    wait_for_step(cluster, job, output, 4, tmp_path)
    assert "RUNNING" in torchx("status", address)
    os.kill(cluster.ranks(job)[0], signal.SIGKILL)
    cluster.wait_for(job, ["PENDING"], 60)
    while cluster.state(job) == "PENDING":
        # SLURM looks again at a job of several parts, as TorchX makes them, only after something has changed.
        cluster.run("sbatch", "--partition=high", "--output=/dev/null", "--wrap=true")
        time.sleep(2)
    end = cluster.wait_for(job, ["COMPLETED", "FAILED"], 180)
    assert end == "COMPLETED", logs(tmp_path)
    assert cluster.restarts(job) == 1
    assert "SUCCEEDED" in torchx("status", address)
    text = torchx("log", "--streams", "stdout", address)
    assert "resumed from" in text
    assert f"{MAX_ITER}/{MAX_ITER}" in text
