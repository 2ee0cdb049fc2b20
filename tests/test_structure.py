"""The house stays as it was designed: who imports whom, and how long files and functions are."""

import ast
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PLAN = (
    "exits", "ending", "words", "structures", "files", "events", "notices", "config", "ranks", "ops",
    "layers", "backbones", "detectors", "distill", "data", "evaluation", "weights", "trackers", "engine",
    "inference", "inspect", "export", "recipe", "build", "memory", "run", "adapters", "launch", "command",
    "train", "predict", "analyse", "preflight", "weights.convert", "export.command", "bench", "gain",
    "demo", "cli",
)  # fmt: skip
"""Each imports only from itself and from those before it. `weights.convert` and `export.command` are commands
beside their topics."""
TYPED = {"demo", "train", "predict", "launch", "cli", "command"}
LOOSE = {"__init__", "words", "structures", "files", "events", "notices", "exits", "ending", *TYPED}
SEES_CONFIG = {
    "config", "recipe", "build", "memory", "run", "command", "train", "analyse", "preflight",
    "weights.convert", "export.command", "bench", "gain", "demo", "cli",
}  # fmt: skip
FILES = sorted(path for folder in ("lgd", "jobs") for path in (REPOSITORY / folder).rglob("*.py"))
LIBRARY = [path for path in FILES if path.is_relative_to(REPOSITORY / "lgd") and path.parent.name]


def place_of(module: str) -> str:
    """The place in the plan of `lgd.ROOM.MODULE.NAME`."""
    parts = module.split(".")[1:]
    return next(place for place in (".".join(parts[:2]), parts[0]) if place in PLAN)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


@cache
def parse(path: Path) -> ast.Module:
    """Once, for all tests that look at the file."""
    return ast.parse(path.read_text())


def imported_modules(tree: ast.AST) -> list[str]:
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_length(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 80, f"{node.name} is too long"


def test_only_what_people_type_or_everything_uses_is_loose():
    assert {path.stem for path in (REPOSITORY / "lgd").glob("*.py")} == LOOSE


ROOMS = sorted({path.parent for path in LIBRARY if path.parent != REPOSITORY / "lgd"})


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_says_in_one_line_what_lives_there(room):
    assert room.name in PLAN
    says = ast.get_docstring(ast.parse((room / "__init__.py").read_text()))
    assert len(says.splitlines()) == 1


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent.name == "run"], ids=lambda path: path.name
)
def test_functions_of_a_run_take_few_arguments(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
            assert len([name for name in names if name != "self"]) <= 5, node.name


@pytest.mark.parametrize(
    "path",
    [path for path in LIBRARY if path.name != "__init__.py"],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_imports_point_upwards(path):
    place = place_of(name_of(path))
    for module in imported_modules(parse(path)):
        parts = module.split(".")
        assert parts[0] != "jobs", "lgd never imports jobs"
        if parts[0] != "lgd" or parts[1:] in ([], ["__version__"]):
            continue
        assert PLAN.index(place_of(module)) <= PLAN.index(place), (
            f"{place} imports {module} from a later room"
        )


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_config_object_below_build(path):
    if path.name == "__init__.py" or place_of(name_of(path)) in SEES_CONFIG:
        return
    for module in imported_modules(parse(path)):
        assert not module.startswith("lgd.config.") or module == "lgd.config.values.ConfigError", (
            f"{path.name} imports {module}"
        )


def names_for_types(tree: ast.Module) -> set[str]:
    """The names that are imported for type checkers alone."""
    blocks = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [
        node for block in blocks for node in block.body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    return {alias.asname or alias.name for node in imports for alias in node.names}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_is_imported_for_types_is_imported_again_where_it_runs(path):
    tree = parse(path)
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        statements = [node for statement in function.body for node in ast.walk(statement)]
        imported = {
            alias.asname or alias.name
            for node in statements
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        annotations = [node.annotation for node in statements if isinstance(node, ast.AnnAssign | ast.arg)]
        apart = {id(node) for each in annotations if each is not None for node in ast.walk(each)}
        used = {node.id for node in statements if isinstance(node, ast.Name) and id(node) not in apart}
        assert not (used & names_for_types(tree)) - imported, function.name
