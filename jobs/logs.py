"""What a run's job has written: `python -m jobs.logs OUTPUT_DIR [-f]`.

Under SLURM the job's own output, where it can be read from here; else OUTPUT_DIR/log.txt, what rank 0 said.
"""

from __future__ import annotations

import argparse
import codecs
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.console import guarded
from jobs.records import Start, find_start
from jobs.scheduler import SchedulerError, ask
from jobs.status import read_run
from lgd.files import typed_path

_SECONDS_BETWEEN_LOOKS = 0.5
_CHUNK = 2**16


def find_log(folder: Path) -> Path:
    """The file that the job of a run writes to.

    Raises:
        ValueError: there is no run, or nothing of it can be read.
    """
    start = find_start(folder)
    own, problem = folder / "log.txt", ""
    if start.kind == "slurm" and start.job_id:
        try:
            path = _output_of(start)
            if os.access(path, os.R_OK) and path.is_file():
                return path
            problem = f"; its job {start.job_id} writes to {path}, which cannot be read here"
        except SchedulerError as error:
            problem = f"; {error}"
    if own.is_file():
        return own
    raise ValueError(f"{folder}: there is no log.txt{problem}")


def _output_of(start: Start) -> Path:
    """Where SLURM puts the output of a job; it forgets jobs some minutes after their end.

    Raises:
        SchedulerError: it does not say.
    """
    for line in ask("scontrol", "show", "job", start.job_id).splitlines():
        key, _, value = line.strip().partition("=")
        if key == "StdOut" and value:
            return Path(value)
    raise SchedulerError(f"scontrol does not say where job {start.job_id} writes to")


def show(folder: Path, *, follow: bool) -> int:
    """Print the log; with `follow` what is added too, until the run has ended. Returns the exit code."""
    path = find_log(folder)
    sys.stderr.write(f"==> {path}\n")
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    file = path.open("rb")
    try:
        while True:
            while chunk := file.read(_CHUNK):
                sys.stdout.write(decoder.decode(chunk))
            sys.stdout.flush()
            if not follow:
                return 0
            if _has_been_replaced(path, file.fileno(), file.tell()):
                file.close()
                file = path.open("rb")
                continue
            if read_run(folder, time.time()).state in ("finished", "failed"):
                follow = False  # and read what was written since
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    finally:
        file.close()


def _has_been_replaced(path: Path, handle: int, place: int) -> bool:
    """Whether another file has the name now, or the file was emptied."""
    try:
        now, opened = path.stat(), os.fstat(handle)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) != (opened.st_dev, opened.st_ino) or now.st_size < place


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 with one line where there is nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m jobs.logs", description="Show what a run's job wrote.")
    parser.add_argument("folder", type=typed_path, metavar="OUTPUT_DIR", help="of the run")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    arguments = parser.parse_args(argv)
    return guarded(lambda: show(arguments.folder, follow=arguments.follow))


if __name__ == "__main__":
    sys.exit(main())
