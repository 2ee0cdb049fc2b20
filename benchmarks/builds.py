"""Two builds in one run: each in a process of its own, so that they can take turns."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import report

from lgd.exits import describe_end


def unpack(revision: str, folder: Path) -> Path:
    """Lay the package of a revision down in a folder of its own."""
    archive = folder / "tree.tar"
    subprocess.run(["git", "archive", "-o", str(archive), revision, "lgd"], cwd=report.ROOT, check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "before", filter="data")
    return folder / "before"


class Build:
    """A process that runs a script with the package of one tree, and answers each line with a number.

    Args:
        tree: the folder that holds the package.
        words: the script and its arguments.
        threads: of torch.
    """

    def __init__(self, tree: Path, words: Sequence[str], threads: int = 1) -> None:
        """Start it."""
        self._process = subprocess.Popen(
            [sys.executable, *words],
            env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: object) -> float:
        """Send a line; returns the number that comes back.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(line, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of a build {describe_end(self._process.wait())}: see above")
        return float(answer)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
