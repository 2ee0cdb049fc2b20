"""Time limits as SLURM reads them."""

from __future__ import annotations

import math
import re

FORMS = (
    (re.compile(r"(?P<minutes>\d+)"), "minutes"),
    (re.compile(r"(?P<minutes>\d+):(?P<seconds>\d+)"), "minutes:seconds"),
    (re.compile(r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"), "hours:minutes:seconds"),
    (re.compile(r"(?P<days>\d+)-(?P<hours>\d+)"), "days-hours"),
    (re.compile(r"(?P<days>\d+)-(?P<hours>\d+):(?P<minutes>\d+)"), "days-hours:minutes"),
    (
        re.compile(r"(?P<days>\d+)-(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)"),
        "days-hours:minutes:seconds",
    ),
)
"""The forms that `sbatch --time` takes, and no others."""

_SECONDS = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}


def parse_minutes(text: str) -> int:
    """Read a time limit in any of SLURM's `FORMS`; as there, 24:00 is 24 minutes, not 24 hours.

    Returns:
        Whole minutes, rounded up as SLURM does it.

    Raises:
        ValueError: another form, or no time at all.
    """
    for pattern, _ in FORMS:
        if match := pattern.fullmatch(text.strip()):
            seconds = sum(int(value) * _SECONDS[unit] for unit, value in match.groupdict().items())
            if seconds == 0:
                break
            return math.ceil(seconds / 60)
    forms = ", ".join(form for _, form in FORMS)
    raise ValueError(f"--time {text!r} must be a time in one of SLURM's forms: {forms}")


def describe_minutes(minutes: int) -> str:
    """Say a time limit so that it cannot be misread: "1 day 2 h 30 min"."""
    days, rest = divmod(minutes, 24 * 60)
    hours, rest = divmod(rest, 60)
    parts = [(days, "day" if days == 1 else "days"), (hours, "h"), (rest, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)
