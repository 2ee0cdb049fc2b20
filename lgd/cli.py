"""The console script: `lgd train ...` is `python -m lgd.train ...`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from lgd import exits


def _train(arguments: Sequence[str], is_program: bool) -> int:
    from lgd import train

    return train.main(arguments, is_program=is_program)


def _preflight(arguments: Sequence[str], is_program: bool) -> int:
    from lgd.preflight import command

    return command.main(arguments)


def _convert(arguments: Sequence[str], is_program: bool) -> int:
    from lgd.weights import convert

    return convert.main(arguments)


def _export(arguments: Sequence[str], is_program: bool) -> int:
    from lgd.export import command

    return command.main(arguments)


def _predict(arguments: Sequence[str], is_program: bool) -> int:
    from lgd import predict

    return predict.main(arguments)


def _analyse(arguments: Sequence[str], is_program: bool) -> int:
    from lgd.analyse import command

    return command.main(arguments)


def _bench(arguments: Sequence[str], is_program: bool) -> int:
    from lgd.bench import command

    return command.main(arguments)


def _gain(arguments: Sequence[str], is_program: bool) -> int:
    from lgd.gain import command

    if is_program:
        _end_when_asked()
    return command.main(arguments)


def _demo(arguments: Sequence[str], is_program: bool) -> int:
    from lgd import demo

    if is_program:
        _end_when_asked()
    return demo.main(arguments)


def _end_when_asked() -> None:
    """End on SIGTERM, and the trainings too: they go on from their checkpoints when it is given again."""
    from lgd.ending import end

    signal.signal(signal.SIGTERM, lambda number, frame: end(exits.RUN_AGAIN))


def _recipes(arguments: Sequence[str], is_program: bool) -> int:
    from lgd.config import command

    return command.main(arguments)


def _data(arguments: Sequence[str], is_program: bool) -> int:
    from lgd.build.samples import samples_of
    from lgd.inspect import command

    return command.main(arguments, samples_of)


COMMANDS: Mapping[str, tuple[Callable[[Sequence[str], bool], int], str]] = {
    "demo": (_demo, "train on photographs that come along, plain and with LGD, and show what came out"),
    "train": (_train, "train a detector, or evaluate one"),
    "predict": (_predict, "detect in pictures and videos with a trained model"),
    "analyse": (_analyse, "say what a trained model gets wrong, or compare two: a page and numbers"),
    "recipes": (_recipes, "list the recipes, or print every setting of one"),
    "data": (_data, "say what is in data sets, and what to set for them"),
    "preflight": (_preflight, "look at the machines of a job before it trains"),
    "bench": (_bench, "time a recipe's training step and its loader on this machine"),
    "gain": (_gain, "train plain and with distillation, and say what it gains: a page and numbers"),
    "export": (_export, "write a trained detector for other runtimes"),
    "convert": (_convert, "write weights of one kind as another"),
}
"""Each imports its torch only when it is called, since `train` catches signals first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit code.

    Without `argv` this is the program, which ends with the code (see `lgd.ending`).
    """
    if argv is None:
        exits.leave_on_ctrl_c()
        from lgd.ending import as_program

        as_program(partial(_main, sys.argv[1:], is_program=True))
    return _main(list(argv), is_program=False)


def _main(arguments: Sequence[str], *, is_program: bool) -> int:
    if arguments and arguments[0] in COMMANDS:
        function, _ = COMMANDS[arguments[0]]
        return function(arguments[1:], is_program)
    usage = ["usage: lgd COMMAND ...", ""] + [f"  {name:<9} {help_}" for name, (_, help_) in COMMANDS.items()]
    asked = arguments[:1] in (["-h"], ["--help"])
    stream = sys.stdout if asked else sys.stderr
    if arguments and not asked:
        usage.insert(0, f"error: unknown command {arguments[0]!r}")
    stream.write("\n".join(usage) + "\n")
    return 0 if asked else 2


if __name__ == "__main__":
    main()
