"""`make docs`: gathers the pages, runs the walk-through and builds the site in build/site.

The pages lie to one another as they do in the repository, so that their links hold in both. A fence of a page
that is marked "run" is run, in a folder of its own that all fences of the page share: lines of a shell that
begin with lgd, or Python. What it said is put behind it, and the picture whose file stands behind "run".
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "build/docs"
SINGLE = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "benchmarks/RESULTS.md", "configs/README.md",
    "slurm/README.md",
)  # fmt: skip
"""What is on the site besides `docs/`."""

FENCE = re.compile(r"^```(?P<language>sh|python) run(?: (?P<picture>\S+))?\n(?P<code>.*?)^```\n", re.M | re.S)
MOST_LINES = 44
"""Of what a step said; of more, the middle is left out."""


def main() -> None:
    """Build the site; ends with a message where a step or a link is broken."""
    gather()
    page = STAGE / "docs/walkthrough.md"
    page.write_text(run_page(page.read_text(encoding="utf-8"), STAGE / "docs/walkthrough"), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False)
    if done.returncode:
        sys.exit("the site could not be built: see the lines above")
    sys.stdout.write("the site is in build/site: open build/site/index.html\n")


def gather() -> None:
    """Copy the pages and pictures to where mkdocs finds them."""
    shutil.rmtree(STAGE, ignore_errors=True)
    pages = [path for path in (ROOT / "docs").rglob("*") if path.is_file() and path.suffix != ".py"]
    for path in [*pages, *(ROOT / name for name in SINGLE)]:
        target = STAGE / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def run_page(text: str, pictures: Path) -> str:
    """Run the fences of a page.

    Args:
        text: the page.
        pictures: the folder for what was drawn, beside the page.

    Returns:
        The page with what they said and drew.
    """
    pictures.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        return FENCE.sub(lambda fence: run_fence(fence, Path(folder), pictures), text)


def run_fence(fence: re.Match[str], folder: Path, pictures: Path) -> str:
    """Run one fence in `folder`; returns it with what came of it."""
    code, picture, started = fence["code"], fence["picture"], time.monotonic()
    said = "".join(run_command(command, folder) for command in commands_of(fence["language"], code))
    parts = [f"```{fence['language']}\n{code}```\n"]
    if said:
        parts.append(f"```text\n{shorten(said)}```\n")
    if picture:
        name = picture.replace("/", "-")
        shutil.copy(folder / picture, pictures / name)
        parts.append(f"![{picture}]({pictures.name}/{name})\n")
    sys.stdout.write(f"{code.splitlines()[-1]}: {time.monotonic() - started:.0f} s\n")
    sys.stdout.flush()
    return "\n".join(parts)


def commands_of(language: str, code: str) -> list[list[str]]:
    """The programs of a fence as lists of arguments."""
    if language == "python":
        return [[sys.executable, "-c", code]]
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    for words in filter(None, lines):
        if words[0] != "lgd":
            sys.exit(f"the walk-through runs lgd and Python, not {words[0]}")
    return [[sys.executable, "-m", "lgd.cli", *words[1:]] for words in lines if words]


def run_command(command: list[str], folder: Path) -> str:
    """Run a program on one core in `folder`; returns what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def shorten(said: str) -> str:
    """Leave out the middle of what is long."""
    lines = said.splitlines(keepends=True)
    if len(lines) <= MOST_LINES:
        return said
    half = MOST_LINES // 2
    return "".join([*lines[:half], f"[... {len(lines) - 2 * half} lines ...]\n", *lines[-half:]])


if __name__ == "__main__":
    main()
