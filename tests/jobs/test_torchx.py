"""`torchx run` itself: dry runs on SLURM and Kubernetes, and real training on this machine."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import yaml

from tests.jobs.validation import problems
from tests.training import REPOSITORY, small_settings

SETTINGS = ["A", 'it\'s "5" $HOME $(HOME) ${app_id} $$', "B", "('x y',)"]
UNREAD = ["--check", "False"]
COMMANDS = {
    "train": [
        "--config",
        "c.yaml",
        "--check",
        "False",
        "-j",
        "2x8",
        "--data",
        "/d",
        "--output",
        "claim:/o",
        "--",
        *SETTINGS,
    ],
    "evaluate": ["--config", "c.yaml", "--weights", "w.pth", *UNREAD, "--j", "1x8", *SETTINGS],
    "preflight": ["-j", "3x8", "--nccl_socket_ifname", "ib0"],
    "sweep": [
        "--configs",
        "a.yaml,b.yaml",
        "--check",
        "False",
        "--seeds",
        "1,2,3",
        "-j",
        "4x8",
        "--env",
        "X=1,Y=2",
    ],
    "tensorboard": ["--logdir", "claim:/o"],
}


def torchx_run(*arguments, **popen):
    """Start `torchx run`, as its own process: it takes the options once in a process only."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", "from torchx.cli.main import main; main()", "run", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        text=True,
        stdout=subprocess.PIPE,
        **popen,
    )


@cache
def dry_run(scheduler, component, *arguments):
    """The request that `torchx run --dryrun` prints."""
    command = ["--dryrun", "-s", scheduler, f"jobs/components.py:{component}", *arguments]
    process = torchx_run(*command, stderr=subprocess.PIPE)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.split("=== SCHEDULER REQUEST ===\n")[1]


@pytest.mark.parametrize("component", COMMANDS)
def test_kubernetes_job_is_valid(component):
    job = yaml.safe_load(dry_run("kubernetes", component, *COMMANDS[component]))
    assert problems(job) == []
    num_pods = {"train": 2, "evaluate": 1, "preflight": 3, "sweep": 4, "tensorboard": 1}[component]
    assert len(job["spec"]["tasks"]) == num_pods
    for task in job["spec"]["tasks"]:
        # What Volcano calls the pod; Kubernetes allows 63.
        assert len(f"{job['metadata']['name']}-{task['name']}-0") <= 63


def test_kubernetes_job_has_what_training_needs():
    job = yaml.safe_load(dry_run("kubernetes", "train", *COMMANDS["train"]))
    spec = job["spec"]
    assert (spec["queue"], spec["maxRetry"], set(spec["plugins"])) == ("default", 3, {"env", "svc"})
    for task in spec["tasks"]:
        assert {"event": "PodFailed", "action": "RestartJob"} in task["policies"]
        pod = task["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/dev/shm", "/d", "/o"}
        assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"
        if version_of_torchx() > (0, 7):
            assert pod["terminationGracePeriodSeconds"] >= 120


def version_of_torchx():
    import torchx

    numbers = torchx.__version__.split(".")[:2]
    return tuple(int(number) for number in numbers)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda spec: spec.update(replicas=2), "'replicas' was unexpected"),
        (lambda spec: spec["tasks"][0].update(name="Train_0"), "spec/tasks/0/name"),
        (lambda spec: spec["tasks"][1]["policies"][0].update(event="Failed"), "tasks/1/policies/0/event"),
        (lambda spec: spec["tasks"][1]["template"]["spec"].update(hostIpc=True), "'hostIpc' was unexpected"),
    ],
    ids=["field of the job", "name", "event", "field of the pod"],
)
def test_broken_kubernetes_job_is_refused(damage, message):
    job = yaml.safe_load(dry_run("kubernetes", "train", *COMMANDS["train"]))
    damage(job["spec"])
    (line,) = problems(job)
    assert message in line


def test_slurm_script_brings_every_word_to_every_node(tmp_path):
    script = dry_run("slurm", "train", *COMMANDS["train"], "--x").split("#!/bin/bash", 1)[1]
    assert script.count("--gpus-per-task=8") == 2
    assert "#SBATCH hetjob" in script
    assert all("--requeue" in line for line in script.splitlines() if "--job-name" in line)
    stubs = {"srun": 75, "scontrol": 0}
    told = run_with_stubs(tmp_path, script, stubs, SLURM_JOB_ID="4711")
    assert told["scontrol"] == ["requeue", "4711"]
    endpoints = []
    for words in split(told["srun"], ":"):
        line = words[words.index("-c") + 1].replace(sys.executable, "/nowhere")
        told = run_with_stubs(tmp_path, line, {"python3": 0}, SLURM_JOB_NODELIST_HET_GROUP_0="n1")["python3"]
        assert told[told.index("--") + 1 :][-5:] == [*SETTINGS, "--x"]
        assert "--rdzv-id=4711" in told
        endpoints += [word for word in told if word.startswith("--rdzv-endpoint=n1:2")]
    assert len(endpoints) == 2
    assert endpoints[0] == endpoints[1]


def run_with_stubs(folder, script, exit_codes, **environment):
    """Run a bash script with programs that only note their arguments; return those by program."""
    for program, code in exit_codes.items():
        stub = folder / program
        note = f"json.dump(sys.argv[1:], open({str(folder / program)!r} + '.json', 'w'))"
        stub.write_text(f"#!{sys.executable}\nimport json, sys\n{note}\nsys.exit({code})\n")
        stub.chmod(0o755)
    environment["PATH"] = f"{folder}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == max(exit_codes.values()), done.stderr
    return {program: json.loads((folder / f"{program}.json").read_text()) for program in exit_codes}


def split(words, separator):
    place = words.index(separator)
    return words[:place], words[place + 1 :]


def start_training(settings, *options):
    """Train 2 processes on this machine."""
    command = ["-s", "local_cwd", "jobs/components.py:train", "--config", "configs/demo.yaml", "-j", "1x2"]
    return torchx_run(*command, *options, "--", *settings, stderr=subprocess.STDOUT)


def finish(process):
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def wait_for_checkpoint(process, output):
    """Wait for the run's first checkpoint; fail with its output if it ends before."""
    deadline = time.monotonic() + 240
    while not list((output / "checkpoints").glob("*.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers_of(output):
    """Process ids of the ranks that write to `output`, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0")
            variables = (entry / "environ").read_text().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if str(output) in words and "lgd.train" in words:
            found.update(
                {int(v.removeprefix("RANK=")): int(entry.name) for v in variables if v.startswith("RANK=")}
            )
    return found


def read_log(output):
    return (output / "log.txt").read_text()


@pytest.mark.slow
def test_two_processes_train_and_a_lost_one_comes_back(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path, SOLVER__CHECKPOINT_PERIOD=1, SOLVER__MAX_ITER=20)
    process = start_training(settings)
    wait_for_checkpoint(process, tmp_path)
    os.kill(workers_of(tmp_path)[1], signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert "was killed by SIGKILL" in output
    assert (tmp_path / "model_final.pth").exists()
    assert "2 x CPU" in read_log(tmp_path)


@pytest.mark.slow
def test_asked_to_leave_it_saves_and_the_same_line_goes_on(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path, SOLVER__CHECKPOINT_PERIOD=1, SOLVER__MAX_ITER=20)
    process = start_training(settings)
    wait_for_checkpoint(process, tmp_path)
    os.kill(workers_of(tmp_path)[0], signal.SIGUSR2)
    code, output = finish(process)
    assert code != 0
    assert "exit code 75: run me again" in output
    assert not (tmp_path / "model_final.pth").exists()
    code, output = finish(start_training(settings))
    assert code == 0, output
    assert "resumed from" in read_log(tmp_path)
    assert (tmp_path / "model_final.pth").exists()
