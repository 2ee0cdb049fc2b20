"""Answer a recorded case of the reference: python -m tests.parity CASE.json RESULT.json."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tests.parity.case import read_case
from tests.parity.single_step import run_case
from tests.parity.trace import run_trace


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("case", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    torch.set_num_threads(1)  # as recorded: the order of the reference's float32 sums hangs on it
    content = json.loads(arguments.case.read_text())
    if "steps" in content:
        case = read_case(arguments.case.parent / f"{content['case']}.json")
        result = run_trace(content, case, dtype)
    else:
        result = run_case(read_case(arguments.case), dtype)
    arguments.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
