"""Recipes by name, from any folder: which file is meant, what is said where none is, and the list of them."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lgd import cli
from lgd.config.command import describe_recipe
from lgd.config.load import ConfigError, load_config
from lgd.config.recipes import find_folder, find_recipe, recipe_names

CONFIGS = Path(__file__).parents[2] / "configs"
R50 = CONFIGS / "retinanet" / "r50_2x_ms_lgd.yaml"
LISTS = " (lgd recipes lists those of the package)"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which all of these tests are."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("before", ["", "configs/", "./configs/", "./"])
@pytest.mark.parametrize("ending", ["", ".yaml", ".yml"])
def test_a_recipe_of_the_package_is_found_from_anywhere(
    before: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{before}retinanet/r50_2x_ms_lgd{ending}"
    with caplog.at_level(logging.INFO, "lgd"):
        assert find_recipe(name) == R50
    assert [record.message for record in caplog.records] == [f"{name}: the recipe of the package, {R50}"]
    assert load_config(name) == load_config(R50)


@pytest.mark.parametrize(
    "name", [f"{name}{ending}" for name in ("Base-RetinaNet", "bases/r50") for ending in ("", ".yaml")]
)
def test_so_is_what_recipes_build_on(name: str) -> None:
    assert find_recipe(name) == CONFIGS / f"{name.removesuffix('.yaml')}.yaml"


@pytest.mark.parametrize("file", ["demo", "demo.yaml", "demo.yml"])
def test_a_file_of_the_users_wins(file: str, elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    (elsewhere / file).write_text("SEED: 5")
    with caplog.at_level(logging.INFO, "lgd"):
        assert find_recipe("demo") == Path(file)
        assert load_config("demo").seed == load_config(file).seed == 5
    assert not [record for record in caplog.records if "package" in record.message]


def test_of_the_users_files_the_one_as_typed_wins(elsewhere: Path) -> None:
    for file in ("mine", "mine.yaml", "mine.yml"):
        (elsewhere / file).write_text("")
        assert find_recipe(file) == Path(file)
    assert find_recipe("mine") == Path("mine")


def test_a_folder_of_that_name_does_not_hide_the_recipe(elsewhere: Path) -> None:
    (elsewhere / "demo").mkdir()
    assert find_recipe("demo") == CONFIGS / "demo.yaml"


def test_the_home_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    (elsewhere / "mine.yaml").write_text("SEED: 5")
    assert find_recipe("~/mine") == elsewhere / "mine.yaml"


def test_what_is_no_plain_file_is_read_too(elsewhere: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"SEED: 5")
    os.close(write)
    assert load_config(f"/dev/fd/{read}").seed == 5
    os.close(read)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retinanet/r50_2x_ms_ldg", ": no such file or recipe; did you mean retinanet/r50_2x_ms_lgd, "),
        ("reinanet/r50_voc.yaml", ": no such file or recipe; did you mean retinanet/r50_voc, "),
        ("r50_1x_ss_lgd", ": no such file or recipe; did you mean gfl/r50_1x_ss_lgd, "),
        ("/data/configs/demo.yaml", ": no such file or recipe; did you mean demo?" + LISTS),
        ("mine.yaml", ": no such file or recipe" + LISTS),
        ("~nobody-of-this-name/mine", ": no such file or recipe" + LISTS),
        ("x" * 5000, ": no such file or recipe" + LISTS),
        ("../configs/retinanet", ": no such file or recipe" + LISTS),
        ("retinanet", ": a folder, not a recipe" + LISTS),
        ("configs/retinanet/", ": a folder, not a recipe" + LISTS),
        ("configs", ": a folder, not a recipe" + LISTS),
        ("/", ": a folder, not a recipe" + LISTS),
        (".", ": a folder, not a recipe" + LISTS),
    ],
)
def test_what_is_not_there_is_said_in_one_line(name: str, message: str) -> None:
    typed = name.rstrip("/") or "/"
    with pytest.raises(ConfigError, match="^" + re.escape(typed + message)):
        find_recipe(name)


@pytest.mark.parametrize(
    "name", ["../secret", "../secret.yaml", "configs/../../secret", "x/../../secret.yml"]
)
def test_a_name_never_leads_out_of_the_folder_of_recipes(
    name: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("recipes/x", "a/b"):
        (elsewhere / folder).mkdir(parents=True)
    (elsewhere / "secret.yaml").write_text("SEED: 5")
    monkeypatch.setattr("lgd.config.recipes.recipes_folder", lambda: elsewhere / "recipes")
    monkeypatch.chdir(elsewhere / "a" / "b")
    with pytest.raises(ConfigError, match="no such file or recipe"):
        find_recipe(name)


def test_folders_of_recipes(elsewhere: Path) -> None:
    assert find_folder("retinanet") == find_folder("configs/retinanet/") == CONFIGS / "retinanet"
    assert find_folder("demo") is None
    assert find_folder("../configs") is None
    (elsewhere / "retinanet").mkdir()
    assert find_folder("retinanet") == Path("retinanet")


BASES = [
    "retinanet/r50_2x_ms_lgd",
    "configs/retinanet/r50_2x_ms_lgd.yaml",
    "[Base-RCNN-FPN, retinanet/r50_2x_ms_lgd]",
]


@pytest.mark.parametrize("base", BASES)
def test_a_recipe_anywhere_builds_on_one_of_the_package(base: str, elsewhere: Path) -> None:
    path = elsewhere / "deep" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(f"_BASE_: {base}\nSEED: 5")
    expected = load_config(R50, ["SEED", "5"])
    assert load_config(path).model.weights == expected.model.weights
    if not base.startswith("["):
        assert load_config(path) == expected


@pytest.mark.parametrize(
    "base", ["Base-RetinaNet.yaml", "../Base-RetinaNet.yaml", "Base-RetinaNet", "configs/Base-RetinaNet.yaml"]
)
def test_the_base_beside_the_file_wins(base: str, elsewhere: Path) -> None:
    path = elsewhere / "mine.yaml"
    path.write_text(f"_BASE_: {base}")
    there = (elsewhere / base).with_suffix(".yaml")
    there.parent.mkdir(exist_ok=True)
    there.write_text("SEED: 5")
    try:
        assert load_config(path).seed == 5
    finally:
        there.unlink()


def test_a_base_is_looked_for_beside_the_file_not_where_the_process_is(elsewhere: Path) -> None:
    path = elsewhere / "deep" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("_BASE_: demo")
    (elsewhere / "demo.yaml").write_text("SEED: 5")
    assert load_config(path) == load_config(CONFIGS / "demo.yaml")


@pytest.mark.parametrize("base", ["../../Base-RetinaNet.yaml", "~/retinanet/r50_2x_ms", "retinanet"])
def test_what_is_no_base(base: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(elsewhere))
    path = elsewhere / "a" / "b" / "mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"_BASE_: {base}")
    with pytest.raises(ConfigError, match=re.escape(f"mine.yaml:1: _BASE_ names {base}: {elsewhere}")):
        load_config(path)


def test_the_list_has_a_line_for_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes"]) == 0
    head, *groups = capsys.readouterr().out.rstrip().split("\n\n")
    assert str(CONFIGS) in head
    lines = [line for group in groups for line in group.splitlines()]
    assert [line.split()[0] for line in lines] == recipe_names()
    folders = [{line.split()[0].rpartition("/")[0] for line in group.splitlines()} for group in groups]
    assert all(len(names) == 1 for names in folders)
    start = max(map(len, recipe_names())) + 2
    for line in lines:
        assert line[start - 1] == " "
        assert line[start:] == describe_recipe(line.split()[0])


def test_recipes_are_the_files_that_are_no_bases() -> None:
    files = {path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.y*ml")}
    bases = {name for name in files if name.startswith(("Base-", "bases/"))}
    assert {f"{name}.yaml" for name in recipe_names()} == files - bases


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_is(name: str) -> None:
    says = describe_recipe(name)
    assert re.fullmatch(r"\S.{10,98}\.", says), name
    cfg = load_config(name)
    if "/" in name and not name.startswith("examples/"):
        assert says.startswith("Plain ") is not cfg.model.distillator.enabled
        assert (" with LGD" in says) is ("_lgd" in name)
        assert f"R-{cfg.model.resnets.depth}" in says or "X-101" in says or "Swin-T" in says
        assert ("DCNv2" in says) is any(cfg.model.resnets.deform_on_per_stage)
    sizes = {"multi-scale": 6, "single-scale": 1}
    for word, number in sizes.items():
        assert word not in says or len(cfg.input.min_size_train) == number
    schedule = re.search(r"\b([123])x ", says)
    assert not schedule or cfg.solver.max_iter == int(schedule[1]) * 90_000


def test_the_settings_of_one_can_be_copied(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "retinanet/r50_2x_ms_lgd"]) == 0
    (elsewhere / "copy.yaml").write_text(capsys.readouterr().out)
    assert load_config("copy") == load_config(R50)


def test_the_command_fails_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipes", "demmo"]) == 2
    said = capsys.readouterr()
    assert said.err == f"error: demmo: no such file or recipe; did you mean demo?{LISTS}\n"
    assert not said.out


def test_the_list_needs_no_torch() -> None:
    program = "import sys; from lgd import cli; cli.main(['recipes']); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
