"""Prove that a refactor changes no number: two revisions train alike, and all that they compute is compared.

    python benchmarks/same_losses.py HEAD~3 HEAD
    python benchmarks/same_losses.py main . --config-file examples/mask_rcnn_small --steps 8

Each revision is checked out beside the other; `.` is this working tree as it stands. Both train the demo's
recipe, or F, in four cases: plain and with LGD, on one rank and on two, on the CPU, one thread a rank. The
schedule is cut to `--steps`: the backbone is frozen in the first quarter, nothing is distilled in the first
half. Compared bit by bit are all that every step logs (losses, learning rates, the gradients' norm), the
evaluation at the end, and the final weights. Data that the recipe makes is made once, by the first training;
other data is sought in `datasets`.

Exit codes: 0 all cases are bit-equal, 1 something differs, 2 what you can mend (no such revision or recipe, a
training that failed), 130 Ctrl-C. Nothing is left behind but what `--json` names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import torch
from torch import Tensor

from lgd import exits
from lgd.engine.metrics import TIMING_KEYS

WORKING_TREE = "."
DIFFERS = 1
COLUMNS = ("case", "steps", "losses", "other numbers", "weights", "s, first", "s, second", "result")
_FEWEST_STEPS = 4
_SECONDS_TO_LEAVE = 30


class ComparisonError(Exception):
    """What keeps the revisions from being compared, in one line."""


@dataclass(frozen=True)
class Case:
    """How to train.

    Attributes:
        distills: with LGD; else the plain detector.
        num_ranks: processes that train together.
    """

    distills: bool
    num_ranks: int

    @property
    def name(self) -> str:
        """The case in words."""
        return f"{'LGD' if self.distills else 'plain'}, {self.num_ranks} rank{'s' * (self.num_ranks > 1)}"


# The first has one rank: it makes the data that all others find.
CASES = [Case(distills, num_ranks) for num_ranks in (1, 2) for distills in (False, True)]


@dataclass(frozen=True)
class Run:
    """What a training left.

    Attributes:
        numbers: (step, name) -> what metrics.jsonl says, without what depends on the machine's speed.
        weights: those of model_final.pth by name.
        seconds: that the training took.
    """

    numbers: Mapping[tuple[int, str], Any]
    weights: Mapping[str, Tensor]
    seconds: float


def find_difference(first: Run, second: Run) -> str | None:
    """What differs first, in words with both values; None where all is equal, bit by bit."""
    # A stable sort: within a step the order of the file, losses before rates before the evaluation.
    for step, name in sorted({**first.numbers, **second.numbers}, key=lambda key: key[0]):
        found = _compare(first.numbers, second.numbers, (step, name), _differing_values)
        if found:
            return f"step {step}: {name}: {found}"
    for name in {**first.weights, **second.weights}:
        found = _compare(first.weights, second.weights, name, _differing_tensors)
        if found:
            return f"final weights: {name}: {found}"
    return None


def _compare(first: Mapping[Any, Any], second: Mapping[Any, Any], key: Any, differing: Any) -> str | None:
    if key in first and key in second:
        words: str | None = differing(first[key], second[key])
        return words
    return f"only the {'first' if key in first else 'second'} revision has it"


def _differing_values(a: Any, b: Any) -> str | None:
    # As they are written: 0.0 and -0.0 are equal, their digits are not.
    return None if repr(a) == repr(b) else f"{a!r} and {b!r}"


def _differing_tensors(a: Tensor, b: Tensor) -> str | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return " and ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (a, b))
    places = (_bits(a) != _bits(b)).any(dim=1).nonzero().flatten().tolist()
    if not places:
        return None
    values = " and ".join(repr(tensor.flatten()[places[0]].item()) for tensor in (a, b))
    return f"{len(places)} of {a.numel()} differ, first {values}"


def _bits(tensor: Tensor) -> Tensor:
    """(N, bytes of a number) uint8: NaN equals NaN there, and 0.0 is not -0.0."""
    plain = tensor.flatten().clone(memory_format=torch.contiguous_format)
    return plain.view(torch.uint8).reshape(-1, tensor.element_size())


def read_run(output: Path, seconds: float) -> Run:
    """Read what a training left in its OUTPUT_DIR."""
    numbers: dict[tuple[int, str], Any] = {}
    for line in (output / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        step = entry.pop("iteration")
        numbers |= {(step, name): value for name, value in _flatten(entry) if name not in TIMING_KEYS}
    content = torch.load(output / "model_final.pth", map_location="cpu", weights_only=True)
    return Run(numbers, content["model"], seconds)


def _flatten(entry: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    """Each number under the names of the sections that it is in, joined by blanks."""
    for name, value in entry.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{section}{name} ")
        else:
            yield section + name, value


def resolve(revision: str) -> str | None:
    """The commit that is meant; None for the working tree.

    Raises:
        ComparisonError: there is no such revision.
    """
    if revision == WORKING_TREE:
        return None
    try:
        return _git("rev-parse", "--verify", f"{revision}^{{commit}}")
    except ComparisonError as error:
        raise ComparisonError(
            f"unknown revision {revision!r}: give a commit, a branch or a tag of {report.ROOT}, or "
            f"{WORKING_TREE} for its files as they stand ({error})"
        ) from error


@contextlib.contextmanager
def checked_out(commit: str | None, folder: Path) -> Iterator[Path]:
    """The files of a commit, in `folder` for as long as the context lasts; the working tree itself for None.

    Raises:
        ComparisonError: git refuses.
    """
    if commit is None:
        yield report.ROOT
        return
    try:
        _git("worktree", "add", "--detach", str(folder), commit)
        yield folder
    finally:
        # Nothing is there to remove where an interruption came before it was.
        with contextlib.suppress(ComparisonError):
            _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(report.ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ComparisonError(f"git: {error.strerror}") from error
    if done.returncode:
        raise ComparisonError((done.stderr.strip().splitlines() or ["git failed"])[-1])
    return done.stdout.strip()


def find_recipe(tree: Path, recipe: str) -> Path:
    """The file of a recipe, given by its path in `tree`, by its name in there, or by an absolute path.

    Raises:
        ComparisonError: there is none.
    """
    configs = tree / "configs"
    for path in (tree / recipe, configs / recipe, configs / f"{recipe}.yaml"):
        if path.is_file():
            return path
    raise ComparisonError(f"{recipe}: neither a file in {tree} nor the name of a recipe in its configs")


def settings_of(case: Case, steps: int, output: Path) -> dict[str, Any]:
    """What a training has over its recipe: every phase within `steps`, and every step in metrics.jsonl."""
    return {
        "MODEL.DISTILLATOR.ENABLED": case.distills,
        "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS": steps // 4,
        "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": steps // 2,
        "MODEL.DISTILLATOR.POST_NONDISTILL_ITERS": 0,
        "SOLVER.MAX_ITER": steps,
        "SOLVER.STEPS": f"({3 * steps // 4},)",
        "SOLVER.WARMUP_ITERS": steps // 4,
        "SOLVER.CHECKPOINT_PERIOD": steps,
        "SOLVER.REFERENCE_WORLD_SIZE": 0,
        "TEST.EVAL_PERIOD": 0,
        "TEST.VIS_IMAGES": 0,
        "LOG_PERIOD": 1,
        "SEED": 1,
        "OUTPUT_DIR": output,
    }


def train(tree: Path, case: Case, output: Path, options: argparse.Namespace) -> Run:
    """Train with the code and the recipe of `tree` in the folder that `output` lies in; read what that left.

    Raises:
        ComparisonError: the training failed or ended early.
    """
    recipe = find_recipe(tree, options.config_file)
    settings = settings_of(case, options.steps, output)
    command = [sys.executable, "-m", "lgd.train", "--config-file", str(recipe)]
    command += ["--num-gpus", str(case.num_ranks), *(str(x) for pair in settings.items() for x in pair)]
    log = output.with_suffix(".log")
    began = time.perf_counter()
    code = run_to_end([*command, *options.opts], tree, log)
    seconds = time.perf_counter() - began
    if code:
        said = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise ComparisonError(f"the training ended with exit code {code}: {said}")
    run = read_run(output, seconds)
    logged = {step for step, name in run.numbers if name == "total_loss"}
    if logged != set(range(1, options.steps + 1)):
        raise ComparisonError(f"the training logged {len(logged)} steps in place of {options.steps}")
    return run


def run_to_end(command: Sequence[str], tree: Path, log: Path) -> int:
    """Run a program of `tree` in its log's folder; returns its exit code. An interruption ends it too."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            cwd=log.parent,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that a Ctrl-C reaches it once, from here
        )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C to the program and all that it started; what it takes where that does not help."""
    for number in (signal.SIGINT, signal.SIGKILL):
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SECONDS_TO_LEAVE)
            return


def compare(trees: Mapping[str, Path], case: Case, folder: Path, options: argparse.Namespace) -> list[Any]:
    """Train one case with both revisions; returns a row of the table.

    Args:
        trees: the files of the first and the second revision, by what is said of them where one fails.
        case: how to train.
        folder: of all trainings.
        options: the command line.

    Raises:
        ComparisonError: a training failed.
    """
    runs = []
    for number, (revision, tree) in enumerate(trees.items()):
        output = folder / f"{case.name.replace(', ', '-').replace(' ', '-')}-{number}"
        try:
            runs.append(train(tree, case, output, options))
        except ComparisonError as error:
            raise ComparisonError(f"{revision}, {case.name}: {error}") from error
    first, second = runs
    num_losses = sum("loss" in name for _, name in first.numbers)
    num_weights = sum(weight.numel() for weight in first.weights.values())
    counts = [options.steps, num_losses, len(first.numbers) - num_losses, num_weights]
    difference = find_difference(first, second)
    return [case.name, *counts, first.seconds, second.seconds, difference or "bit-equal"]


def compare_all(commits: Sequence[str | None], options: argparse.Namespace) -> list[list[Any]]:
    """Check both out, train every case and clean up; returns the rows of the table.

    Raises:
        ComparisonError: a recipe is missing, or a training failed.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="same-losses-"))).resolve()
        trees = {
            f"{which} ({revision})": stack.enter_context(checked_out(commit, folder / f"{which}-tree"))
            for which, revision, commit in zip(("first", "second"), options.revisions, commits, strict=True)
        }
        for tree in trees.values():
            find_recipe(tree, options.config_file)
        data = Path("datasets").resolve()
        if data.is_dir():
            (folder / data.name).symlink_to(data)
        rows = []
        for case in CASES:
            rows.append(compare(trees, case, folder, options))
            sys.stderr.write(f"{case.name}: {rows[-1][-1]}\n")
        return rows


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = report.make_parser(__doc__)
    parser.add_argument(
        "revisions", nargs=2, metavar="REVISION", help=f"of git; {WORKING_TREE} is the working tree"
    )
    parser.add_argument(
        "--config-file",
        default="configs/demo.yaml",
        metavar="F",
        help="a recipe of both revisions, by path or name",
    )
    parser.add_argument("--steps", type=int, default=20, help=f"of each training, at least {_FEWEST_STEPS}")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over all the others")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.steps < _FEWEST_STEPS:
        parser.error(f"--steps {arguments.steps}: at least {_FEWEST_STEPS}, so that every phase has a step")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print the table; returns the exit code."""
    options = parse_arguments(argv)
    try:
        commits = [resolve(revision) for revision in options.revisions]
        rows = compare_all(commits, options)
    except ComparisonError as error:
        sys.stderr.write(f"error: {error}\n")
        return exits.USER_ERROR
    except KeyboardInterrupt:
        return exits.CTRL_C
    report.publish(
        f"{' and '.join(options.revisions)}: {options.config_file}, one thread a rank",
        report.describe_machine(),
        COLUMNS,
        rows,
        options.json,
        commits=commits,
    )
    return exits.DONE if all(row[-1] == "bit-equal" for row in rows) else DIFFERS


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cleans up like Ctrl-C
    sys.exit(main())
