"""The image: what it copies is there, not ignored, and all that its jobs need."""

import ast
import os
import shutil
import subprocess
import sys

from tests.training import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()


def copied():
    """Sources of the COPY lines, in order."""
    lines = [line.split() for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    return [source for _, *sources, _ in lines for source in sources]


def test_only_what_is_copied_is_sent_to_the_builder():
    rules = [
        line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] not in ("#", "")
    ]
    assert rules[0] == "*"
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    assert kept == {source.split("/")[0] for source in copied()}
    assert all((REPOSITORY / source).exists() for source in copied())


def test_what_is_copied_runs(tmp_path):
    """The programs of the jobs start in a folder that holds the copied files and nothing else."""
    for source in copied():
        if (REPOSITORY / source).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / source, tmp_path / source, ignore=ignore, dirs_exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for module in ("lgd.launch", "lgd.train", "jobs.sweep"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_first_install_finds_the_version_without_the_code():
    """So that the layer of dependencies outlives changes of the code."""
    tree = ast.parse((REPOSITORY / "lgd" / "__init__.py").read_text())
    values = {node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign)}
    assert isinstance(values["__version__"], ast.Constant)
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "typing"}
    assert not any(isinstance(node, ast.Import) for node in tree.body)
