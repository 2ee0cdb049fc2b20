"""Jobs on a real SLURM: interrupted in every way, queued again, and ended as if nothing had happened."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.engines import require
from tests.cluster.slurm import PATIENCE, Cluster, missing_parts
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


def execute(cluster, folder, *command, code=0, **variables):
    """Run a user's command in a folder that the nodes share; return what it says."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": path, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        command, cwd=folder, text=True, check=False, timeout=PATIENCE,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**cluster.environment, **own},
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def tool(cluster, name, output, code=0):
    """`python -m jobs.NAME OUTPUT_DIR`."""
    return execute(cluster, output.parent, sys.executable, "-m", f"jobs.{name}", str(output), code=code)


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
    deadline = time.monotonic() + PATIENCE
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
    end = cluster.wait_for(job, "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
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
    cluster.wait_for(job, "PENDING")
    cluster.wait_for(urgent, "COMPLETED")
    check_end(cluster, job, output, folder, uninterrupted)


def test_out_of_time(cluster, started, uninterrupted):
    job, output, folder = started
    # The warning is due 5 minutes before the limit, and SLURM looks every 30 seconds.
    cluster.signal_frozen(job, lambda: cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=5"))
    cluster.wait_for(job, "PENDING")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=10")
    check_end(cluster, job, output, folder, uninterrupted)


def test_cancelled_by_the_user_it_saves_but_does_not_come_back(cluster, small_data, tmp_path):
    jobs = {}
    for name, way in WAYS.items():
        settings = make_settings(small_data, tmp_path / name, 10_000)
        (jobs[name],) = way(cluster, tmp_path, 1, 1, *RECIPE, *settings)
    for name, job in jobs.items():
        wait_for_step(cluster, job, tmp_path / name, 4, tmp_path)
        assert tool(cluster, "status", tmp_path / name).splitlines()[1].endswith(f"  slurm {job}")
        text = tool(cluster, "logs", tmp_path / name)
        assert "==> " in text
        assert ".out" in text.splitlines()[0], text  # the job's own, not log.txt
        assert "/10000]" in text
        assert tool(cluster, "cancel", tmp_path / name).startswith(f"asked SLURM to cancel job {job}")
    for name, job in jobs.items():
        cluster.wait_for(job, "CANCELLED")
        assert list((tmp_path / name / "checkpoints").glob("*.pth")), logs(tmp_path)
    time.sleep(2)
    for name, job in jobs.items():
        assert cluster.state(job) == "CANCELLED"
        assert cluster.restarts(job) == 0
        assert "is not in SLURM's queue any more" in tool(cluster, "cancel", tmp_path / name, code=2)


def test_what_fails_is_not_queued_again(cluster, small_data, tmp_path):
    settings = [*make_settings(small_data, tmp_path), "MODEL.WEIGHTS", str(tmp_path / "missing.pth")]
    jobs = [way(cluster, tmp_path, 1, 1, *RECIPE, *settings)[0] for way in WAYS.values()]
    for job in jobs:
        cluster.wait_for(job, "FAILED")
        assert cluster.restarts(job) == 0
    assert logs(tmp_path).count(f"error: {tmp_path}/missing.pth") == 2, logs(tmp_path)


def test_table_of_recipes(cluster, small_data, tmp_path):
    settings = make_settings(small_data, tmp_path / "runs", 2)
    jobs = submit(cluster, tmp_path, 1, 1, "--array", RECIPE[1], *settings, "--seeds", "1,2")
    assert [job.split("_")[1] for job in jobs] == ["0", "1"]
    for job in jobs:
        assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", logs(tmp_path)
    for seed, job in zip((1, 2), jobs, strict=True):
        (folder,) = (tmp_path / "runs").glob(f"*demo-seed{seed}")
        assert (folder / "model_final.pth").exists()
        assert tool(cluster, "status", folder).splitlines()[1].endswith(f"  slurm {job}")
        assert f"/{job}_0_log.out\n" in tool(cluster, "logs", folder)
        assert f"\nSEED: {seed}\n" in (folder / "config.yaml").read_text()


def test_what_slurm_refuses_is_one_line(cluster, tmp_path):
    words = [sys.executable, "-m", "jobs.submit", *RECIPE, "--time", "5", "--gpus-per-node", "1"]
    text = execute(cluster, tmp_path, *words, "--partition", "nope", code=2)
    assert text.startswith("error: sbatch refuses the job: invalid partition specified: nope; ")
    assert text.count("\n") == 1
    without_munge = tmp_path / "slurm.conf"
    settings = (cluster.root / "slurm.conf").read_text()
    without_munge.write_text(settings.replace("munge.socket", "no.socket"))
    text = execute(cluster, tmp_path, *words, code=2, SLURM_CONF=str(without_munge))
    assert text.startswith("error: sbatch refuses the job: ")
    assert "Munge encode failed" in text
    assert text.count("\n") == 1


@contextlib.contextmanager
def next_jobs_port_taken(cluster, count=1):
    """Have the ports that the next jobs' ids stand for."""
    last = int(cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=true")[1])
    with contextlib.ExitStack() as stack:
        for number in range(1, count + 1):
            stack.enter_context(socket.create_server(("", 20000 + (last + number) % 10000)))
        yield


def test_one_node_needs_no_port(cluster, small_data, tmp_path):
    with next_jobs_port_taken(cluster, 2):
        for name, way in WAYS.items():
            (job,) = way(cluster, tmp_path, 1, 2, *RECIPE, *make_settings(small_data, tmp_path / name, 2))
            assert cluster.wait_for(job, "COMPLETED", "FAILED") == "COMPLETED", logs(tmp_path)
            assert "2 x CPU" in (tmp_path / name / "log.txt").read_text()


@pytest.mark.parametrize("name", WAYS)
def test_two_nodes_say_that_their_port_is_taken(cluster, small_data, tmp_path, name):
    with next_jobs_port_taken(cluster):
        (job,) = WAYS[name](cluster, tmp_path, 2, 1, *RECIPE, *make_settings(small_data, tmp_path / "run"))
        cluster.wait_for(job, "FAILED")
    text = logs(tmp_path)
    port = 20000 + int(job) % 10000
    assert re.search(rf"error: .*port {port} on node\d is in use by another program; take another", text), (
        text
    )
    assert "Traceback" not in text


def test_a_wrong_interface_fails_at_the_first_try(cluster, small_data, tmp_path):
    words = [*RECIPE, "--env", "GLOO_SOCKET_IFNAME=ib0", *make_settings(small_data, tmp_path / "run")]
    (job,) = submit(cluster, tmp_path, 2, 1, *words)
    cluster.wait_for(job, "FAILED")
    text = logs(tmp_path)
    assert re.search(
        r"error: on node1 GLOO_SOCKET_IFNAME is ib0, which is not there; this host has lo 127", text
    )
    assert cluster.restarts(job) == 0


def test_evaluation_and_preflight(cluster, small_data, tmp_path, uninterrupted):
    settings = make_settings(small_data, tmp_path / "evaluation")
    weights = ("MODEL.WEIGHTS", str(uninterrupted / "model_final.pth"))
    (evaluation,) = sbatch(cluster, tmp_path, 1, 2, *RECIPE, *settings, *weights, script="evaluate")
    report = tmp_path / "preflight.json"
    # A busy machine may look slow to it.
    limits = ("--slow-factor", "1000", "--min-bandwidth", "0", "--max-skew", "60", "--timeout", "120")
    (preflight,) = sbatch(cluster, tmp_path, 2, 1, "--json", str(report), *limits, script="preflight")
    assert cluster.wait_for(evaluation, "COMPLETED", "FAILED") == "COMPLETED", logs(tmp_path)
    expected = (uninterrupted / "results.json").read_text()
    assert (tmp_path / "evaluation" / "results.json").read_text() == expected
    # Both nodes are this machine: the ranks talk over loopback, and that the names lead there does no harm.
    assert cluster.wait_for(preflight, "COMPLETED", "FAILED") == "COMPLETED", logs(tmp_path)
    assert "2 of 2 ranks on 2 hosts" in logs(tmp_path)
    assert json.loads(report.read_text())["findings"] == []


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
    assert tool(cluster, "status", output).splitlines()[1].endswith(f"  slurm {job}")
    os.kill(cluster.ranks(job)[0], signal.SIGKILL)
    cluster.wait_for(job, "PENDING")
    while cluster.state(job) == "PENDING":
        # SLURM looks again at a job of several parts, as TorchX makes them, only after something has changed.
        cluster.run("sbatch", "--partition=high", "--output=/dev/null", "--wrap=true")
        time.sleep(2)
    end = cluster.wait_for(job, "COMPLETED", "FAILED")
    assert end == "COMPLETED", logs(tmp_path)
    assert cluster.restarts(job) == 1
    assert "SUCCEEDED" in torchx("status", address)
    text = torchx("log", "--streams", "stdout", address)
    assert "resumed from" in text
    assert f"{MAX_ITER}/{MAX_ITER}" in text
