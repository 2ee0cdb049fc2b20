"""slurm/*.sbatch and the batch script of `jobs.submit`, run by bash with programs that only pretend."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.submit import RESTART, main
from tests.training import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sbatch"))
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
AWKWARD = ["--config-file", "a b.yaml", "OUTPUT_DIR", 'it\'s "a" $HOME `id` * \\']


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed: pip has it for most machines")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run([SHELLCHECK, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def pretend(tmp_path):
    """Ways to write programs that note their arguments and end as told, and to read what they noted."""

    def write(name, body):
        stub = tmp_path / name
        note = f"open({str(stub)!r} + '.json', 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
        stub.write_text(f"#!{sys.executable} -S\nimport json, sys\n{note}\n{body}\n")
        stub.chmod(0o755)

    def read(name):
        path = tmp_path / f"{name}.json"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    write("squeue", "print('RUNNING')")
    write("scontrol", "print('node1\\nnode2') if sys.argv[1] == 'show' else None")
    return write, read


def environment(folder, **variables):
    slurm = {"JOB_ID": "123456", "JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "8",
             "CPUS_PER_TASK": "48", **variables}  # fmt: skip
    path = {"PATH": f"{folder}:/usr/bin:/bin"}
    return {**path, **{f"SLURM_{key}": value for key, value in slurm.items() if value is not None}}


def requeues(read):
    return [words for words in read("scontrol") if words[0] == "requeue"]


@pytest.mark.parametrize("missing", ["scontrol", "srun"])
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_node_without_slurms_programs_says_so(script, missing, pretend, tmp_path):
    write, _ = pretend
    write("srun", "")
    (tmp_path / missing).unlink()
    for program in ("bash", "hostname", "head"):
        (tmp_path / program).symlink_to(shutil.which(program))
    variables = {**environment(tmp_path), "PATH": str(tmp_path)}
    done = subprocess.run(["bash", script], env=variables, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith(f"error: there is no {missing} on ")) == (2, True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_word_reaches_the_launcher(script, pretend, tmp_path):
    write, read = pretend
    write("srun", "")
    done = subprocess.run(["bash", script, *AWKWARD], env=environment(tmp_path), check=False)
    assert done.returncode == 0
    (words,) = read("srun")
    own, arguments = words[: words.index("--")], words[words.index("--") + 1 :]
    assert own[:6] == ["--kill-on-bad-exit=1", "--cpus-per-task=48", "python", "-u", "-m", "lgd.launch"]
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=node1:23456", "--rdzv-id=123456"} <= set(own)
    flags = {"train": ["--resume"], "evaluate": ["--eval-only"], "preflight": []}[script.stem]
    assert arguments == [*flags, *AWKWARD]
    assert requeues(read) == []


@pytest.mark.parametrize("script", ["train", "evaluate", "submitit"])
@pytest.mark.parametrize(
    ("code", "state", "restarts", "comes_back"),
    [
        (0, "RUNNING", None, False),
        (1, "RUNNING", None, False),
        (2, "RUNNING", None, False),
        (137, "RUNNING", None, False),
        (140, "RUNNING", None, True),  # SIGUSR2 before anything could handle it
        (143, "RUNNING", "3", True),
        (143, "COMPLETING", None, False),  # cancelled, or being queued again by SLURM
        (143, "RUNNING", "100", False),
        (75, "RUNNING", None, True),
        (75, "SIGNALING", None, True),
        (75, "COMPLETING", None, False),
    ],
)
def test_only_what_may_end_better_comes_back(script, code, state, restarts, comes_back, pretend, tmp_path):
    write, read = pretend
    write("srun", f"sys.exit({code})")
    write("squeue", f"print({state!r})")
    path = REPOSITORY / "slurm" / f"{script}.sbatch"
    if script == "submitit":  # there the task itself sees to 75
        comes_back = comes_back and code != 75
        path = tmp_path / "submitit.sh"
        path.write_text(f"srun\n{RESTART.format(limit=100, mark='no-mark')}")
    done = subprocess.run(["bash", path], env=environment(tmp_path, RESTART_COUNT=restarts), check=False)
    assert done.returncode == code
    assert requeues(read) == ([["requeue", "123456"]] if comes_back else [])


def test_a_rank_that_failed_is_no_pre_emption(pretend, tmp_path, capsys):
    """srun ends the others by SIGTERM then, and tells their code."""
    write, read = pretend
    folder = tmp_path / "it's a folder"
    words = ["--config-file", str(REPOSITORY / "configs/demo.yaml"), "--time", "5", "--folder", str(folder)]
    assert main([*words, "--dry-run"]) == 0
    script = tmp_path / "script.sh"
    script.write_text(capsys.readouterr().out)
    variables = {**environment(tmp_path), "SLURM_JOB_ID": "123456"}
    folder.mkdir()
    write("srun", "sys.exit(143)")
    subprocess.run(["bash", script], env=variables, check=False)
    assert requeues(read) == [["requeue", "123456"]]
    write("srun", f"open({str(folder / '123456_failed')!r}, 'w').close(); sys.exit(143)")
    subprocess.run(["bash", script], env=variables, check=False)
    assert requeues(read) == [["requeue", "123456"]]  # not again
    write("srun", "sys.exit(143)")  # the next start forgets it
    subprocess.run(["bash", script], env=variables, check=False)
    assert len(requeues(read)) == 2


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_warning_is_passed_on_and_the_save_awaited(number, pretend, tmp_path):
    write, read = pretend
    ready = tmp_path / "ready"
    write(
        "srun",
        "import signal, time\n"
        "signal.signal(signal.SIGUSR2, lambda *_: (time.sleep(0.3), sys.exit(75)))\n"
        f"open({str(ready)!r}, 'w').close()\n"
        "time.sleep(60)\nsys.exit(1)",
    )
    script = REPOSITORY / "slurm" / "train.sbatch"
    process = subprocess.Popen(["bash", script], env=environment(tmp_path))
    deadline = time.monotonic() + 30
    while not ready.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert process.wait(30) == 75
    assert requeues(read) == [["requeue", "123456"]]
