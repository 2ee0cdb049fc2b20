"""Recipes by name: where those of the package lie, and which file a name means."""

from __future__ import annotations

import difflib
import logging
import os
import stat
from pathlib import Path, PurePath

from lgd.config.values import ConfigError
from lgd.files import at_home

logger = logging.getLogger(__name__)

_BASES = ("Base-", "bases/")

_LONGEST_NAME = 200
"""Beyond, a name is nothing that somebody mistyped."""


def recipes_folder() -> Path:
    """The package's recipes: `lgd/recipes` of a wheel, `configs/` at the top of the repository."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "configs"


def recipe_names() -> list[str]:
    """The package's recipes, sorted: "retinanet/r50_2x_ms_lgd". What they build on is left out."""
    return [name for name in _all_names() if not name.startswith(_BASES)]


def find_recipe(name: str | os.PathLike[str], folder: Path = Path()) -> Path:
    """Find the file that a name means: one of the user's, else a recipe of the package.

    Args:
        name: path of a YAML file, or a recipe of the package, `configs/` before it or not. Either may lack
            its ending.
        folder: what the path is relative to; by default where the process is.

    Returns:
        The file; it is logged which one where it is the package's.

    Raises:
        ConfigError: there is neither, or it is a folder.
    """
    name = os.fspath(name)
    path = _as_typed(name, folder)
    for file in (path, Path(f"{path}.yaml"), Path(f"{path}.yml")):
        if _is_there(file, is_folder=False):
            return file
    inside = _inside(name)
    if inside is not None:
        file = recipes_folder() / f"{_without_ending(str(inside))}.yaml"
        if _is_there(file, is_folder=False):
            logger.info("%s: the recipe of the package, %s", name, file)
            return file
    is_folder = find_folder(name, folder) is not None
    problem = "a folder, not a recipe" if is_folder else f"no such file or recipe{_suggest(name)}"
    raise ConfigError(f"{path}: {problem} (lgd recipes lists those of the package)")


def find_folder(name: str, folder: Path = Path()) -> Path | None:
    """Find the folder that a name means: one of the user's, else one in the package's recipes.

    Args:
        name: its path, or "retinanet", `configs/` before it or not.
        folder: what the path is relative to; by default where the process is.

    Returns:
        The folder, or None where there is none.
    """
    inside = _inside(name)
    places = [_as_typed(name, folder), *([] if inside is None else [recipes_folder() / inside])]
    return next((place for place in places if _is_there(place, is_folder=True)), None)


def _all_names() -> list[str]:
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def _as_typed(name: str, folder: Path) -> Path:
    try:
        return folder / at_home(name)
    except ValueError:  # a user whose name holds what no name may
        return folder / name


def _inside(name: str) -> PurePath | None:
    """A name as a path in the folder of recipes; None for one that would lead out of it."""
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        return None
    return path.relative_to("configs") if path.parts[:1] == ("configs",) else path


def _without_ending(name: str) -> str:
    return name.removesuffix(".yaml").removesuffix(".yml")


def _is_there(path: Path, *, is_folder: bool) -> bool:
    """Whether there is a folder, or a file, be it one that may not be read, which its reader says better."""
    try:
        return stat.S_ISDIR(path.stat().st_mode) == is_folder
    except PermissionError:
        return not is_folder
    except (OSError, ValueError):
        return False


def _suggest(name: str) -> str:
    """What to ask about a name: the recipes most like its end; "" where none is like it."""
    if len(name) > _LONGEST_NAME:
        return ""
    typed = "/".join(PurePath(_without_ending(name)).parts[-2:]).removeprefix("configs/")
    ranked = sorted(_all_names(), key=lambda known: -_likeness(typed, known))
    near = [known for known in ranked[:3] if _likeness(typed, known) >= 0.7]
    return f"; did you mean {', '.join(near)}?" if near else ""


def _likeness(typed: str, known: str) -> float:
    """From 0 to 1: half for the whole, half for what stands behind the folder."""
    pairs = ((typed, known), (PurePath(typed).name, PurePath(known).name))
    return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs) / 2
