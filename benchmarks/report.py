"""What all benchmarks have in common: their options, their tables, and what they say of the machine."""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lgd.bench.machine import machine_facts

ROOT = Path(__file__).parents[1]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option --json; the description is the script's docstring."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser


def numbers(text: str) -> list[int]:
    """Read "1,10,100", each above 0; for argparse."""
    values = [int(part) for part in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} has numbers below 1")
    return values


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """The rows as a Markdown table; floats with three digits, None as a dash."""
    cells = [list(columns), *([format_cell(value) for value in row] for row in rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def format_cell(value: Any) -> str:
    """A number in at most three digits after the leading ones that matter; text as it is."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def mebibytes(num_bytes: int | None) -> float | None:
    """Bytes in MiB; None stays."""
    return None if num_bytes is None else num_bytes / 2**20


def growth(sizes: Sequence[float], costs: Sequence[float]) -> list[float | None]:
    """The exponent of the cost between each size and the one before it: 1 is linear, 0 constant.

    The first has none.
    """
    pairs = zip(sizes[:-1], sizes[1:], costs[:-1], costs[1:], strict=True)
    exponents = [_log_ratio(c, d) / _log_ratio(a, b) for a, b, c, d in pairs]
    return [None, *exponents]


def _log_ratio(a: float, b: float) -> float:
    return float(torch.tensor([b / a], dtype=torch.float64).log())


def describe_machine(device: str = "cpu", **versions: str) -> dict[str, str]:
    """Machine, versions, commit and date of a measurement."""
    commit = _git("rev-parse", "--short", "HEAD")
    changed = "+" if _git("status", "--porcelain", "--untracked-files=no", "--", "lgd", "benchmarks") else ""
    return {
        **machine_facts(torch.device(device)),
        **versions,
        "commit": f"{commit}{changed}" if commit else "unknown",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def publish(
    title: str,
    machine: Mapping[str, str],
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    json_path: Path | None,
    **more: Any,
) -> None:
    """Print a table with what it was measured on, and write it to the file where one is named."""
    print(f"{title}\n\n" + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n", flush=True)
    print(markdown_table(columns, rows), flush=True)
    if json_path:
        content = {
            "title": title,
            "machine": dict(machine),
            "rows": [dict(zip(columns, row, strict=True)) for row in rows],
            **more,
        }
        json_path.write_text(json.dumps(content, indent=2) + "\n")
