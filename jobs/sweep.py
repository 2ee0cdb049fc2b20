"""Recipes x seeds, one run after another: `python -m jobs.sweep OPTIONS -- [KEY VALUE ...]`.

Started on every node as `lgd.launch` is, whose options it takes. One after another, since then a run may have
any number of nodes, and no scheduler ends the runs that take longer than the first.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath


def runs_of_sweep(configs: Sequence[str], seeds: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Name and arguments of each run of recipes x seeds; without seeds each recipe has its own.

    Raises:
        ValueError: no recipe, a seed that is none, or two runs of one name.
    """
    runs: dict[str, list[str]] = {}
    for config in configs:
        path = PurePosixPath(config.removesuffix(".yaml").removesuffix(".yml"))
        parts = [part for part in path.parts if part.strip("/.")]
        recipe = "-".join([part for part in parts if part != "configs"][-2:])
        for seed in seeds or [""]:
            if seed and not seed.isdecimal():
                raise ValueError(f"seeds must be whole numbers, not {seed!r}")
            name = f"{recipe}-seed{seed}" if seed else recipe
            if name in runs:
                raise ValueError(f"two runs of the sweep would write to {name!r}")
            runs[name] = ["--config-file", config, *(["SEED", seed] if seed else [])]
    if not runs:
        raise ValueError("a sweep needs at least one recipe")
    return list(runs.items())


def run_sweep(
    runs: Sequence[tuple[str, Sequence[str]]],
    *,
    output: str,
    options: Sequence[str],
    endpoint: str,
    run_id: str,
    settings: Sequence[str],
) -> int:
    """Train every run that is not trained yet to its end, going on from its newest checkpoint.

    Args:
        runs: names and arguments.
        output: folder of the runs' OUTPUT_DIRs.
        options: of `lgd.launch`, for all runs.
        endpoint: HOST:PORT where the nodes meet for the first run; the others take the following ports.
        run_id: of the sweep.
        settings: KEY VALUE pairs over every recipe's.

    Returns:
        0; at once `exits.RUN_AGAIN` of a run that was asked to leave; else the code of the first that failed.
    """
    from lgd import exits, launch
    from lgd.ranks.interruption import Interruption

    failed = exits.DONE
    with Interruption() as interruption:  # a run has its own; this one is for the moments between two
        for number, (name, own) in enumerate(runs):
            sys.stdout.write(f"run {number + 1} of {len(runs)}: {output}/{name}\n")
            sys.stdout.flush()
            meeting = [f"--rdzv-endpoint={shift_port(endpoint, number)}", f"--rdzv-id={run_id}-{number}"]
            # The last of a key wins: no setting may give all runs one seed or one folder.
            arguments = [*settings, *own, "--resume", "OUTPUT_DIR", f"{output}/{name}"]
            code = launch.main([*options, *meeting, "--", *arguments])
            if interruption.requested or code in (exits.RUN_AGAIN, exits.CTRL_C):
                return exits.CTRL_C if code == exits.CTRL_C else exits.RUN_AGAIN
            if code != exits.DONE:
                sys.stderr.write(f"run {name} ended with exit code {code}\n")
                failed = failed or code
    return failed


def shift_port(endpoint: str, number: int) -> str:
    """The endpoint of run `number`: a port of its own, as the last may still be closing; 0 stays any."""
    host, _, port = endpoint.rpartition(":")
    return f"{host}:{int(port) + number if int(port) else 0}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(prog="python -m jobs.sweep", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--configs", required=True, metavar="FILE,...", help="the recipes")
    parser.add_argument(
        "--seeds", default="", metavar="N,...", help="values of SEED; each recipe's own without"
    )
    parser.add_argument(
        "--output", default="outputs/sweep", metavar="DIR", help="folder of the runs' folders"
    )
    parser.add_argument("--rdzv-endpoint", default="localhost:0", metavar="HOST:PORT")
    parser.add_argument("--rdzv-id", default="sweep", metavar="ID")
    own, options = parser.parse_known_args(words[:place])
    try:
        runs = runs_of_sweep(split_list(own.configs), split_list(own.seeds))
    except ValueError as error:
        parser.error(str(error))
    return run_sweep(
        runs,
        output=own.output,
        options=options,
        endpoint=own.rdzv_endpoint,
        run_id=own.rdzv_id,
        settings=words[place + 1 :],
    )


def split_list(text: str) -> list[str]:
    """The parts of "a,b"; none of ""."""
    return [part for part in re.split(r"\s*,\s*", text.strip()) if part]


if __name__ == "__main__":
    sys.exit(main())
