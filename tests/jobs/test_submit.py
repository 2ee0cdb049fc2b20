"""`python -m jobs.submit` without a cluster: command line, batch script, what is queued."""

import os
import re
import shlex
import subprocess

import pytest
import torch

from jobs.submit import main, make_executor, parse_arguments, plan
from jobs.timelimit import describe_minutes, parse_minutes
from jobs.trainer import Trainer
from tests.training import REPOSITORY

DEMO = str(REPOSITORY / "configs" / "demo.yaml")
AWKWARD = ["OUTPUT_DIR", 'it\'s "a" $HOME `id` \\ folder', "DATASETS.TRAIN", "('coco:/x y:train',)"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("24:00", 24),  # minutes:seconds, as SLURM reads it
        ("90", 90),
        ("0:30", 1),
        ("24:00:00", 24 * 60),
        ("1:30:01", 91),
        ("2-0", 2 * 24 * 60),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
        ("1-12:30:30", 36 * 60 + 31),
        ("100:00:00", 100 * 60),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text, minutes):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "1h", "24h", "1:2:3:4", "1-2-3", "-5", "1.5", "0", "0:00", "UNLIMITED"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="must be a time in one of SLURM's forms: minutes, minutes:seconds"):
        parse_minutes(text)


def test_times_are_said_so_that_they_cannot_be_misread():
    assert describe_minutes(24) == "24 min"
    assert describe_minutes(24 * 60) == "1 day"
    assert describe_minutes(2 * 24 * 60 + 90) == "2 days 1 h 30 min"


def dry_run(capsys, *words):
    assert main(["--config-file", DEMO, "--dry-run", *words]) == 0
    return capsys.readouterr().out


def options_of(text):
    """The #SBATCH lines as a dictionary."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {key: "".join(shlex.split(value)) for key, _, value in (line.partition("=") for line in lines)}


def test_batch_script(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "it's ib0")
    text = dry_run(
        capsys, "--nodes", "2", "--gpus-per-node", "8", "--partition", "P", "--time", "24:00",
        "--folder", str(tmp_path / "a folder"), "--account", "A", "--qos", "Q", "--constraint", "h100&ib",
        "--mem", "0", "--exclude", "node[1-3]", "--comment", "it's mine", "--cpus-per-task", "12",
        "--sbatch", "reservation=R", "--sbatch", "exclusive", "--env", "A=$B c",
        "--setup", "module load cuda", *AWKWARD,
    )  # fmt: skip
    assert options_of(text) == {
        "nodes": "2", "gpus-per-node": "8", "ntasks-per-node": "8", "cpus-per-task": "12", "partition": "P",
        "time": "24", "signal": "USR2@300", "open-mode": "append", "requeue": "", "exclusive": "",
        "account": "A", "qos": "Q", "constraint": "h100&ib", "mem": "0", "exclude": "node[1-3]",
        "comment": "it's mine", "reservation": "R", "job-name": "demo",
        "output": str(tmp_path / "a folder" / "%j_0_log.out"),
    }  # fmt: skip
    lines = text.splitlines()
    assert "module load cuda" in lines
    assert "export A='$B c'" in lines
    assert "export NCCL_SOCKET_IFNAME=ib0" in lines
    assert """export GLOO_SOCKET_IFNAME='it'"'"'s ib0'""" in lines
    assert "export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in lines
    (srun,) = (shlex.split(line) for line in lines if line.startswith("srun "))
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=12", "--open-mode=append", "--export=ALL"} <= set(srun)
    assert srun[-4:] == ["-u", "-m", "submitit.core._submit", str(tmp_path / "a folder")]
    assert f"--resume {shlex.join(AWKWARD)}" in lines[-1]
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_logs_may_lie_at_home(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    text = dry_run(capsys, "--time", "4", "--folder", "~/logs")
    assert options_of(text)["output"] == str(tmp_path / "logs" / "%j_0_log.out")
    assert "~" not in text


@pytest.mark.parametrize(("time", "seconds"), [("4", 120), ("24:00:00", 300)])
def test_the_warning_comes_early_enough(capsys, time, seconds):
    assert options_of(dry_run(capsys, "--time", time))["signal"] == f"USR2@{seconds}"


def test_tasks_without_gpus(capsys):
    words = ["--gpus-per-node", "0", "--tasks-per-node", "4", "--time", "5"]
    options = options_of(dry_run(capsys, *words))
    assert options["ntasks-per-node"] == "4"
    assert "gpus-per-node" not in options


def test_one_recipe_keeps_its_arguments():
    ((name, job),) = plan(parse_arguments(["--config-file", DEMO, "--time", "5", *AWKWARD]))
    assert name == "demo"
    assert job == Trainer(("--config-file", DEMO, "--resume", *AWKWARD))


def test_an_evaluation_does_not_resume():
    ((_, job),) = plan(parse_arguments(["--config-file", DEMO, "--eval-only", "MODEL.WEIGHTS", "w.pth"]))
    assert job.arguments == ("--config-file", DEMO, "--eval-only", "MODEL.WEIGHTS", "w.pth")


def test_table_of_recipes_and_seeds(capsys, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    words = ["--array", "configs/fcos", "configs/demo.yaml", "SOLVER.MAX_ITER", "5", "SEED", "9",
             "--seeds", "1, 2", "--max-running", "3", "--dry-run", "--time", "5",
             "OUTPUT_DIR", "/o"]  # fmt: skip
    jobs = plan(parse_arguments(words))
    recipes = sorted((REPOSITORY / "configs" / "fcos").glob("*.yaml"))
    assert len(jobs) == 2 * len(recipes) + 2
    assert jobs[0][0] == f"fcos-{recipes[0].stem}-seed1"
    folders = {job.arguments[-1] for _, job in jobs}
    assert folders == {f"/o/{name}" for name, _ in jobs}
    assert jobs[-1][1].arguments[-4:] == ("SEED", "2", "OUTPUT_DIR", "/o/demo-seed2")
    assert main(words) == 0
    options = options_of(capsys.readouterr().out)
    assert options["array"] == f"0-{len(jobs) - 1}%3"
    assert options["output"].endswith("%A_%a_0_log.out")


def test_names_of_recipes_are_handed_on_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((name, job),) = plan(parse_arguments(["--config-file", "fcos/r50_2x_ms_lgd"]))
    assert (name, job.arguments) == ("r50_2x_ms_lgd", ("--config-file", "fcos/r50_2x_ms_lgd", "--resume"))
    options = parse_arguments(["--array", "demo", "configs/fcos", "fcos", "SEED", "3"])
    fcos = [str(path) for path in sorted((REPOSITORY / "configs" / "fcos").glob("*.yaml"))]
    assert options.recipes == ["demo", *fcos, *fcos]
    assert options.settings == ["SEED", "3"]
    jobs = plan(parse_arguments(["--array", "demo", "fcos/r50_2x_ms", "SEED", "3"]))
    assert [(name, job.arguments[1]) for name, job in jobs] == [
        ("demo", "demo"),
        ("fcos-r50_2x_ms", "fcos/r50_2x_ms"),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", DEMO], "--time is missing"),
        (["--array", "demmo", "SEED", "3", "--time", "5"], "did you mean demo"),
        (["--config-file", DEMO, "--time", "1h"], "--time '1h' must be a time"),
        (["--config-file", DEMO, "--time", "5", "SOLVER.MAXITER", "3"], "did you mean SOLVER.MAX_ITER"),
        (["--config-file", DEMO, "--time", "5", "SOLVER.MAX_ITER"], "SOLVER.MAX_ITER has no value"),
        (["--config-file", "missing.yaml", "--time", "5"], "missing.yaml"),
        (["--array", DEMO, DEMO, "--time", "5"], "two runs of the sweep"),
        (["--array", "docs", "--time", "5"], "--array docs: no \\*.yaml"),
        (["--config-file", DEMO, "--seeds", "1,x", "--time", "5"], "whole numbers, not 'x'"),
        (["--config-file", DEMO, "--time", "5", "--env", "A"], "--env 'A' must be NAME=VALUE"),
        (["--config-file", DEMO, "--time", "5", "--sbatch", "Mem 3"], "--sbatch 'Mem 3' must be NAME"),
        (["--config-file", DEMO, "--time", "5", "--tasks-per-node", "4"], "every task has one GPU"),
        (["--config-file", DEMO, "--time", "5", "--nodes", "0"], "--nodes must be 1 or more, not 0"),
        (["--config-file", DEMO, "--time", "5", "--cpus-per-task=-1"], "--cpus-per-task must be 1 or more"),
        (["--config-file", "a\nb.yaml", "--time", "5"], r"a b.yaml: no such file"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(capsys, monkeypatch, words, message):
    monkeypatch.chdir(REPOSITORY)
    assert main([*words, "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line


INJECTED = "a\n#SBATCH --uid=0"


@pytest.mark.parametrize(
    "option",
    [
        *("partition", "account", "qos", "constraint", "nodelist", "exclude", "dependency", "comment"),
        *("name", "folder", "mem", "time", "seeds", "setup"),
    ],
)
def test_no_option_adds_lines_to_the_script(capsys, option):
    assert main(["--config-file", DEMO, "--time", "5", "--dry-run", f"--{option}", INJECTED]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        rf"error: --{option} has the character '\n' in it, which would break the line: 'a\n"
    )


@pytest.mark.parametrize("words", [("--sbatch", f"reservation={INJECTED}"), ("--env", f"A={INJECTED}")])
def test_nor_does_any_that_is_given_several_times(capsys, words):
    assert main(["--config-file", DEMO, "--time", "5", "--dry-run", words[0], "x=1", *words]) == 2
    assert f"error: {words[0]} has the character" in capsys.readouterr().err


def test_nor_a_recipes_name(capsys, tmp_path):
    recipe = tmp_path / f"{INJECTED.replace('/', '')}.yaml"
    recipe.write_text(f"_BASE_: {DEMO}\n")
    assert main(["--config-file", str(recipe), "--time", "5", "--dry-run"]) == 2
    assert "error: the job's name, which is the recipe's, has the character" in capsys.readouterr().err


def test_settings_stay_in_the_comment_that_shows_them(capsys):
    text = dry_run(capsys, "--time", "5", "DATASETS.TRAIN", "('a',\n#SBATCH --uid=0\n'b')")
    assert r"\n#SBATCH --uid=0\n" in text.splitlines()[-1]
    assert "\n#SBATCH --uid" not in text


@pytest.mark.parametrize(
    ("gpus", "variable", "words", "expected"),
    [
        (0, None, [], (0, 1, ())),
        (2, None, [], (2, 2, (0, 1))),
        (2, "5,3", [], (2, 2, (5, 3))),
        (4, None, ["--gpus-per-node", "2"], (2, 2, (0, 1, 2, 3))),
        (4, None, ["--gpus-per-node", "0", "--tasks-per-node", "3"], (0, 3, (0, 1, 2, 3))),
        (0, None, ["--tasks-per-node", "3"], (0, 3, ())),
    ],
)
def test_here_it_asks_for_the_gpus_that_are_there(monkeypatch, tmp_path, gpus, variable, words, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    own = ["--config-file", DEMO, "--cluster", "local", "--folder", str(tmp_path), *words]
    asked = make_executor(parse_arguments(own), "demo").parameters
    assert (asked["gpus_per_node"], asked["tasks_per_node"], asked["visible_gpus"]) == expected


def test_more_gpus_than_are_here(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["--config-file", DEMO, "--cluster", "local", "--gpus-per-node", "8"]) == 2
    assert capsys.readouterr().err == "error: --gpus-per-node 8: torch sees 1 on this machine\n"


STUB = """\
#!/bin/sh
echo "sbatch: error: invalid partition specified: nope" >&2
echo "sbatch: error: Batch job submission failed: Invalid partition name specified" >&2
exit 1
"""


def add_program(folder, name, text="#!/bin/sh\n"):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_what_sbatch_refuses_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for name in ("srun", "scontrol"):
        add_program(tmp_path, name)
    add_program(tmp_path, "sbatch", STUB)
    assert main(["--config-file", DEMO, "--time", "5", "--folder", str(tmp_path / "logs")]) == 2
    assert capsys.readouterr().err == (
        "error: sbatch refuses the job: invalid partition specified: nope; Batch job submission failed: "
        "Invalid partition name specified\n"
    )


@pytest.mark.parametrize("missing", ["sbatch", "scontrol"])
def test_half_a_slurm(capsys, monkeypatch, tmp_path, missing):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in {"srun", "sbatch", "scontrol"} - {missing}:
        add_program(tmp_path, name)
    assert main(["--config-file", DEMO, "--time", "5", "--folder", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: there is no {missing} on this machine: submit from a login node")


def test_a_folder_that_cannot_be(capsys, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    words = ["--config-file", DEMO, "--cluster", "local", "--folder", str(tmp_path / "file" / "logs")]
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/file/logs: Not a directory\n"


def test_without_slurm_it_says_what_to_do(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--config-file", DEMO, "--time", "5", "--folder", str(tmp_path)]) == 2
    assert "there is no srun on this machine" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--dry-run"], [], ["--cluster", "local"]])
def test_without_submitit(capsys, monkeypatch, words):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["--config-file", DEMO, "--time", "1:00:00", *words]) == 2
    assert capsys.readouterr().err == "error: submitit is not installed: pip install lgd[jobs]\n"
