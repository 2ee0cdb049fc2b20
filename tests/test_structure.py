"""The house stays as it was designed: who imports whom, and how long files and functions are."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOMS = (
    "exits", "structures", "files", "config", "channel", "distributed", "agreement", "ops", "layers",
    "backbones", "detectors", "distill", "data", "evaluation", "weights", "engine", "build", "output",
    "evaluations", "elastic", "launch", "resume", "run", "command", "train", "preflight", "convert", "bench",
    "cli",
)  # fmt: skip
SEES_CONFIG = {"config", "build", "resume", "run", "command", "train", "preflight", "convert", "bench", "cli"}
FILES = sorted(path for folder in ("lgd", "jobs") for path in (REPOSITORY / folder).rglob("*.py"))
LIBRARY = [path for path in FILES if path.is_relative_to(REPOSITORY / "lgd") and path.parent.name]


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "lgd").parts[0].removesuffix(".py")


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
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 80, f"{node.name} is too long"


@pytest.mark.parametrize(
    "path",
    [path for path in LIBRARY if path.name != "__init__.py"],
    ids=lambda path: str(path.relative_to(REPOSITORY)),
)
def test_imports_point_upwards(path):
    room = room_of(path)
    for module in imported_modules(ast.parse(path.read_text())):
        parts = module.split(".")
        assert parts[0] != "jobs", "lgd never imports jobs"
        if parts[0] != "lgd" or parts[1:] in ([], ["__version__"]):
            continue
        assert ROOMS.index(parts[1]) <= ROOMS.index(room), f"{room} imports {module} from a later room"


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_config_object_below_build(path):
    if path.name == "__init__.py" or room_of(path) in SEES_CONFIG:
        return
    for module in imported_modules(ast.parse(path.read_text())):
        assert not module.startswith("lgd.config.") or module == "lgd.config.values.ConfigError", (
            f"{path.name} imports {module}"
        )
