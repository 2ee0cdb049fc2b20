"""benchmarks/same_losses.py: what it takes for equal, and that it compares what trainings leave."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.training import REPOSITORY

CASE_NAMES = ["plain, 1 rank", "LGD, 1 rank", "plain, 2 ranks", "LGD, 2 ranks"]

PRETENDED_TRAINING = """
import json, os, shutil, signal, sys, time
from pathlib import Path

tree = Path(__file__).parents[1]
settings = dict(zip(sys.argv[5::2], sys.argv[6::2]))
output = Path(settings["OUTPUT_DIR"])
with Path("started.txt").open("a") as file:
    file.write(f"{os.getpid()} {sys.argv[4]} {settings['MODEL.DISTILLATOR.ENABLED']}\\n")
if "FAIL" in settings:
    sys.exit("first words\\nerror: no data")
if "INTERRUPT" in settings:
    shutil.copy("started.txt", tree)
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
output.mkdir()
shutil.copy(tree / "weights.pth", output / "model_final.pth")
num_steps = int(settings["SOLVER.MAX_ITER"]) - int(settings.get("MISSING", 0))
lines = [
    {"iteration": step, "total_loss": 1 / step, "loss_cls": 1 / step, "lr_student": 0.1, "time": time.time()}
    for step in range(1, num_steps + 1)
]
if "CHANGE" in settings:
    lines[2]["loss_cls"] = time.time()
lines.append({"iteration": num_steps, "eval": {"coco:a:val": {"student": {"bbox": {"AP": 1.5}}}}})
(output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return importlib.import_module("same_losses")


@pytest.fixture
def repository(script, tmp_path, monkeypatch):
    """A repository whose training takes no time; what is temporary is in the folder `temporary`."""
    root = tmp_path / "repository"
    for file, text in {
        "lgd/__init__.py": "",
        "lgd/train.py": PRETENDED_TRAINING,
        "configs/demo.yaml": "",
    }.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    torch.save({"model": {"head.weight": torch.ones(2, 3)}}, root / "weights.pth")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(script.report, "ROOT", root)
    return root


def make_run(script, *, losses=((1, "loss_cls", 0.5), (2, "loss_cls", 0.25)), weights=None):
    numbers = {(step, name): value for step, name, value in losses}
    return script.Run(numbers, {"w": torch.zeros(2)} if weights is None else weights, 1.0)


def test_equal_runs(script):
    weights = {"w": torch.tensor([float("nan"), -0.0]), "count": torch.tensor(3), "none": torch.zeros(0, 4)}
    again = {name: weight.clone() for name, weight in weights.items()}
    first, second = (make_run(script, weights=each) for each in (weights, again))
    assert script.find_difference(first, second) is None


def test_the_first_step_that_differs_is_named(script):
    first = make_run(script, losses=[(1, "loss", 0.5), (2, "loss", 0.25), (2, "lr", 0.1), (3, "loss", 0.1)])
    second = make_run(
        script, losses=[(1, "loss", 0.5), (2, "loss", 0.25000000000000006), (2, "lr", 0.2), (3, "loss", 0.2)]
    )
    assert script.find_difference(first, second) == "step 2: loss: 0.25 and 0.25000000000000006"


@pytest.mark.parametrize("values", [(0.0, -0.0), (None, 0.0), (1, 1.0)])
def test_numbers_are_not_equal_by_value_alone(script, values):
    runs = [make_run(script, losses=[(1, "loss", value)]) for value in values]
    assert script.find_difference(*runs) == f"step 1: loss: {values[0]} and {values[1]}"


def test_a_missing_loss(script):
    whole = make_run(script, losses=[(1, "loss_a", 1.0), (1, "loss_b", 2.0), (2, "loss_a", 1.0)])
    part = make_run(script, losses=[(1, "loss_a", 1.0), (2, "loss_a", 3.0)])
    assert script.find_difference(whole, part) == "step 1: loss_b: only the first revision has it"
    assert script.find_difference(part, whole) == "step 1: loss_b: only the second revision has it"


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.tensor([[0.0, 2.0], [3.0, 4.5]]), "final weights: w: 2 of 4 differ, first 1.0 and 0.0"),
        (torch.tensor([[1.0, 2.0], [3.0, 4.0]]).half(), "torch.float32 (2, 2) and torch.float16 (2, 2)"),
        (torch.tensor([1.0, 2.0, 3.0, 4.0]), "torch.float32 (2, 2) and torch.float32 (4,)"),
        (None, "final weights: w: only the first revision has it"),
    ],
)
def test_different_weights(script, weight, says):
    first = make_run(script, weights={"v": torch.ones(3), "w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    changed = {} if weight is None else {"w": weight}
    second = make_run(script, weights={"v": torch.ones(3), **changed})
    assert says in script.find_difference(first, second)


@pytest.mark.parametrize("pair", [(0.0, -0.0), (float("nan"), 0.0)])
def test_weights_are_compared_by_their_bits(script, pair):
    runs = [make_run(script, weights={"w": torch.tensor(value)}) for value in pair]
    assert "1 of 1 differ" in script.find_difference(*runs)


def test_memory_layout_is_no_difference(script):
    weight = torch.arange(64.0).reshape(4, 4, 2, 2)
    runs = [
        make_run(script, weights={"w": each, "one": torch.ones(1)})
        for each in (weight, weight.to(memory_format=torch.channels_last))
    ]
    assert script.find_difference(*runs) is None


def test_all_phases_come(script, tmp_path):
    from lgd.config.load import load_config
    from lgd.distill.schedule import DistillSchedule

    settings = script.settings_of(script.Case(distills=True, num_ranks=1), 4, tmp_path)
    # Its own last phase, which does not distill, is longer than the whole training here.
    recipe = REPOSITORY / "configs/fcos/r101_dcn_2x_ms_lgd.yaml"
    cfg = load_config(recipe, [str(x) for pair in settings.items() for x in pair])
    lgd = cfg.model.distillator
    schedule = DistillSchedule(
        lgd.pre_nondistill_iters,
        lgd.post_nondistill_iters,
        lgd.pre_freeze_student_backbone_iters,
        cfg.solver.max_iter,
    )
    phases = [schedule.phase(step) for step in range(cfg.solver.max_iter)]
    assert [(phase.freeze_backbone, phase.distill) for phase in phases] == [
        (True, False), (False, False), (False, True), (False, True),
    ]  # fmt: skip


def test_a_recipe_is_found_by_path_and_by_name(script, repository):
    recipe = repository / "configs/demo.yaml"
    for name in ("configs/demo.yaml", "demo.yaml", "demo", str(recipe)):
        assert script.find_recipe(repository, name) == recipe


def test_the_same_code_twice(script, repository, tmp_path, capsys):
    assert script.main([".", ".", "--json", str(tmp_path / "out.json")]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["case"] for row in rows] == CASE_NAMES
    for row in rows:
        assert (row["steps"], row["losses"], row["other numbers"], row["weights"]) == (20, 40, 21, 6)
        assert row["result"] == "bit-equal"
    assert capsys.readouterr().out.count("bit-equal") == 4
    assert not list((tmp_path / "temporary").iterdir())


def test_a_training_that_does_not_repeat(script, repository, capsys):
    assert script.main([".", ".", "--steps", "4", "CHANGE", "1"]) == 1
    assert capsys.readouterr().out.count("step 3: loss_cls: ") == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["FAIL", "1"],
            "error: first (.), plain, 1 rank: the training ended with exit code 1: error: no data",
        ),
        (["MISSING", "1"], "error: first (.), plain, 1 rank: the training logged 3 steps in place of 4"),
        (["--config-file", "none"], "error: none: neither a file in "),
    ],
)
def test_what_the_user_can_mend_is_one_line(script, repository, capsys, tmp_path, arguments, says):
    assert script.main([".", ".", "--steps", "4", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith(says)
    assert said.count("\n") == 1
    assert not list((tmp_path / "temporary").iterdir())


def test_an_unknown_revision(script, repository, capsys):
    # Where there is no repository, or no git, no revision is known either.
    assert script.main(["nowhere", "."]) == 2
    assert capsys.readouterr().err.startswith("error: unknown revision 'nowhere': give a commit, ")


@pytest.mark.parametrize("arguments", [["."], [".", ".", "--steps", "3"]])
def test_wrong_usage(script, arguments):
    with pytest.raises(SystemExit) as error:
        script.main(arguments)
    assert error.value.code == 2


def test_ctrl_c_ends_the_training_and_leaves_nothing(script, repository, tmp_path):
    assert script.main([".", ".", "INTERRUPT", "1"]) == 130
    process_id, num_ranks, distills = (repository / "started.txt").read_text().split()
    assert (num_ranks, distills) == ("1", "False")
    with pytest.raises(ProcessLookupError):
        os.kill(int(process_id), 0)
    assert not list((tmp_path / "temporary").iterdir())


@pytest.fixture
def temporary():
    """A folder with a short name: sockets of data workers lie in it, and a path of one has 108 characters."""
    with tempfile.TemporaryDirectory(prefix="lgd-") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_two_revisions_of_a_repository(tmp_path, temporary):
    """Real trainings: half the weight of the distillation shows with LGD, and there alone."""
    root = tmp_path / "repository"
    for folder in ("lgd", "configs", "benchmarks"):
        shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def git(*arguments):
        who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
        command = ["git", "-C", str(root), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "before")
    demo = root / "configs/demo.yaml"
    demo.write_text(demo.read_text().replace("  DISTILLATOR:\n", "  DISTILLATOR:\n    LAMBDA: 0.5\n"))
    git("commit", "--quiet", "--all", "--message", "after")

    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/same_losses.py", "HEAD~1", "HEAD", "--config-file", "demo"),
            *("--steps", "4", "--json", str(tmp_path / "out.json"), "SOLVER.IMS_PER_BATCH", "2"),
            *("INPUT.MIN_SIZE_TRAIN", "[64]", "INPUT.MIN_SIZE_TEST", "64", "MODEL.FPN.OUT_CHANNELS", "16"),
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    results = {row["case"]: row["result"] for row in json.loads((tmp_path / "out.json").read_text())["rows"]}
    assert list(results) == CASE_NAMES
    for name, result in results.items():
        if name.startswith("plain"):
            assert result == "bit-equal"
        else:
            where, name, values = result.split(": ")
            assert (where, name) == ("step 1", "total_loss")
            first, second = (float(value) for value in values.split(" and "))
            assert second < first
    assert git("worktree", "list").count("\n") == 1
    assert not [path for path in temporary.iterdir() if path.name.startswith("same-losses")]
