"""What is installed is enough: a wheel holds every recipe, finds them and trains, from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

from tests.training import REPOSITORY, small_settings

pytestmark = pytest.mark.slow

RECIPES = {
    path.relative_to(REPOSITORY / "configs").as_posix(): path.read_bytes()
    for path in (REPOSITORY / "configs").rglob("*.yaml")
}


def copy_sources(target, names=("setup.py", "setup.cfg", "README.md", "LICENSE", "lgd", "jobs", "configs")):
    """What a clone holds of the package, without what others have built in it."""
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_dir():
            shutil.copytree(
                REPOSITORY / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".lgd")
            )
        else:
            shutil.copy(REPOSITORY / name, target / name)
    return target


def run(*command, folder, **environment):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*words, folder):
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")
    run(sys.executable, "-m", "pip", words[0], *quiet, *words[1:], folder=folder)


def build_wheel(source, target):
    """A wheel of a folder or of an sdist, as `pip wheel` makes it."""
    pip("wheel", "--use-pep517", "--no-build-isolation", "--wheel-dir", target, source, folder=target.parent)
    (wheel,) = target.glob("*.whl")
    return wheel


def build(what, source, target):
    """What `setuptools.build_meta` makes of a folder: "sdist", "wheel" or "editable"."""
    program = f"from setuptools import build_meta; build_meta.build_{what}({str(target)!r})"
    run(sys.executable, "-c", program, folder=source)
    (built,) = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return build_wheel(copy_sources(folder / "clone"), folder / "wheels")


@pytest.fixture(scope="module")
def installed(wheel):
    """A folder with the wheel's files alone, for PYTHONPATH."""
    target = wheel.parents[1] / "site"
    pip("install", "--target", target, wheel, folder=wheel.parent)
    return target


def recipes_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(("yaml", "yml"))]
        return {name.removeprefix("lgd/recipes/"): archive.read(name) for name in names}


def test_a_wheel_holds_every_recipe(wheel):
    assert recipes_in(wheel) == RECIPES


def test_a_wheel_holds_the_sample_with_its_licence(wheel):
    samples = REPOSITORY / "lgd" / "data" / "samples"
    files = [path for path in samples.rglob("*") if path.is_file() and ".lgd" not in path.parts]
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("lgd/data/samples/")}
    assert held == {path.relative_to(REPOSITORY).as_posix() for path in files}
    assert "lgd/data/samples/blood_cells/LICENSE" in held


def test_so_does_one_that_is_built_from_an_sdist(wheel, tmp_path):
    source = copy_sources(tmp_path / "clone")
    (tmp_path / "sdists").mkdir()
    other = build_wheel(build("sdist", source, tmp_path / "sdists"), tmp_path / "wheels")
    assert recipes_in(other) == RECIPES
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(other) as two:
        assert sorted(one.namelist()) == sorted(two.namelist())


def test_the_first_step_of_the_image_needs_no_recipe(tmp_path):
    """It installs what the package needs before there is any code."""
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    assert "RUN mkdir configs && pip install . && pip uninstall -y lgd" in lines
    source = copy_sources(
        tmp_path / "first", ("setup.py", "setup.cfg", "README.md", "LICENSE", "lgd/__init__.py")
    )
    (source / "configs").mkdir()
    assert not recipes_in(build_wheel(source, tmp_path / "wheels"))


def test_an_editable_install_reads_the_recipes_where_they_are_edited(tmp_path):
    source = copy_sources(tmp_path / "clone")
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(build("editable", source, tmp_path / "wheels")) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    # The interpreter's other packages come without its .pth files, which may name another lgd.
    program = (
        f"import site, sys; site.addsitedir({str(tmp_path / 'site')!r}); "
        f"sys.path.append({sysconfig.get_path('purelib')!r}); "
        "import jobs; from lgd import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-I", "-S", "-c", program, "recipes"]
    assert str(source / "configs") in run(*command, folder=tmp_path / "empty")
    demo = source / "configs" / "demo.yaml"
    demo.write_text(demo.read_text().replace("# A small", "# A tiny").replace("SEED: 1", "SEED: 7"))
    assert "A tiny RetinaNet" in run(*command, folder=tmp_path / "empty")
    assert "SEED: 7" in run(*command, "demo", folder=tmp_path / "empty")


def test_the_command_lists_and_shows_the_recipes(installed, tmp_path):
    command = [installed / "bin" / "lgd", "recipes"]
    listed = run(*command, folder=tmp_path, PYTHONPATH=str(installed))
    assert f"Recipes in {installed / 'lgd' / 'recipes'}" in listed
    assert "retinanet/r50_2x_ms_lgd " in listed
    shown = run(*command, "retinanet/r50_2x_ms_lgd", folder=tmp_path, PYTHONPATH=str(installed))
    assert "MAX_ITER: 180000" in shown


def test_it_trains_from_an_empty_folder(installed, small_data, tmp_path):
    (tmp_path / "mine.yaml").write_text("_BASE_: demo\nLOG_PERIOD: 1\n")
    settings = small_settings(small_data, "out", SOLVER__MAX_ITER=2, SOLVER__STEPS="[1]")
    command = [installed / "bin" / "lgd", "train", "--config-file", "mine", *settings]
    said = run(*command, folder=tmp_path, PYTHONPATH=str(installed))
    assert f"demo: the recipe of the package, {installed / 'lgd' / 'recipes' / 'demo.yaml'}" in said
    assert (tmp_path / "out" / "model_final.pth").is_file()


def test_the_demo_finds_its_photographs_and_recipe_from_an_empty_folder(installed, tmp_path):
    """A step of either training."""
    sizes = ("INPUT.MIN_SIZE_TRAIN", "[64]", "INPUT.MIN_SIZE_TEST", "64", "SOLVER.MAX_ITER", "1")
    settings = (*sizes, "SOLVER.WARMUP_ITERS", "0", "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS", "0")
    command = [installed / "bin" / "lgd", "demo", *settings]
    said = run(*command, folder=tmp_path, PYTHONPATH=str(installed))
    assert "sample:blood_cells:train: 146 images, 1987 objects" in said
    assert "on 36 photographs" in said
    assert len(list((tmp_path / "outputs" / "demo").glob("found*.jpg"))) == 1
