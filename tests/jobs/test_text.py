"""Options and what broken files say, kept on one line."""

import os
import subprocess
import sys

import pytest

from jobs.scheduler import SchedulerError, ask, require_programs, summarise
from jobs.text import on_one_line, require_one_line
from tests.training import REPOSITORY


@pytest.mark.parametrize("text", [None, "", "a b", 'it\'s "a" $5 \\n é 漢 🙂', "node[1-3],x"])
def test_one_line_is_one_line(text):
    require_one_line("--comment", text)
    assert on_one_line(text or "") == (text or "")


@pytest.mark.parametrize(
    "character",
    ["\n", "\r", "\0", "\t", "\x0b", "\x0c", "\x1b", "\x7f", "\x85", "\u2028", "\u2029", "\udcff"],
)
def test_what_breaks_a_line(character):
    with pytest.raises(
        ValueError, match=r"^--comment has the character '.*' in it, which would break"
    ) as error:
        require_one_line("--comment", f"a{character}#SBATCH --uid=0")
    assert str(error.value).isprintable()
    assert on_one_line(f"a{character}b").isprintable()


def test_what_a_program_complains_of():
    text = "sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed: A\n\n"
    assert summarise(text) == "invalid partition specified: x; Batch job submission failed: A"
    assert len(summarise("x" * 10_000)) < 1000


def test_programs_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match=r"^there is no sbatch on this machine: go elsewhere$"):
        require_programs(["sbatch"], "go elsewhere")
    with pytest.raises(SchedulerError, match=r"^cannot run scancel: No such file or directory$"):
        ask("scancel", "1")


def test_what_is_asked():
    assert ask("echo", "a") == "a\n"
    with pytest.raises(SchedulerError, match=r"^sh failed: b; c$"):
        ask("sh", "-c", "echo 'scancel: error: b' >&2; echo c >&2; exit 1")
    with pytest.raises(SchedulerError, match=r"^sh failed: exit code 3$"):
        ask("sh", "-c", "exit 3")


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    for number in range(300):
        (tmp_path / f"run{number}").mkdir()
        (tmp_path / f"run{number}" / "log.txt").touch()
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m jobs.status "{tmp_path}" | head -n 1; exit ${{PIPESTATUS:-0}}'],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("run ")
    assert done.stderr == ""
