"""`lgd recipes [NAME]`: the recipes that come with the package, or every setting of one."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence

from lgd import exits
from lgd.config.keys import flatten
from lgd.config.load import dump_config, load_config
from lgd.config.recipes import recipe_names, recipes_folder
from lgd.config.values import ConfigError
from lgd.ending import last_line
from lgd.events import add_json_flag, write_event


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="lgd recipes", description="List the recipes of the package, or print every setting of one."
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="a recipe, whose settings are printed as YAML"
    )
    add_json_flag(parser)
    arguments = parser.parse_args(argv)
    write = _write_events if arguments.json else _write_text
    try:
        write(arguments.name)
    except ConfigError as error:
        sys.stderr.write(f"error: {last_line(str(error))}\n")
        return exits.USER_ERROR
    return exits.DONE


def _write_text(name: str | None) -> None:
    sys.stdout.write(list_recipes() if name is None else dump_config(load_config(name)))


def _write_events(name: str | None) -> None:
    if name is not None:
        write_event("settings", recipe=name, settings=flatten(load_config(name)))
        return
    for each in recipe_names():
        write_event("recipe", name=each, about=describe_recipe(each))


def list_recipes() -> str:
    """A line for each recipe of the package: its name, and what it says of itself; folders stand apart."""
    names = recipe_names()
    width = max(map(len, names), default=0)
    lines = [f"Recipes in {recipes_folder()}, each for --config-file NAME:"]
    for _, group in itertools.groupby(names, key=lambda name: name.rpartition("/")[0]):
        lines += ["", *(f"{name:<{width}}  {describe_recipe(name)}" for name in group)]
    return "\n".join(lines) + "\n"


def describe_recipe(name: str) -> str:
    """What a recipe of the package is: the comment on its first line, "" where there is none."""
    with (recipes_folder() / f"{name}.yaml").open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.removeprefix("# ") if first.startswith("#") else ""
