"""Damaged recipes and odd settings: each comes as far as the data or is refused in one line, and soon."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from lgd import exits
from lgd.build.training import build_schedule
from lgd.config.keys import flatten, known_keys, known_sections
from lgd.config.load import dump_config, load_config
from lgd.config.recipes import recipe_names, recipes_folder
from lgd.config.schema import Config
from lgd.config.solver import resolve_solver, scale_to_world_size
from lgd.config.values import ConfigError
from lgd.ending import last_line
from lgd.engine.optim import LRSchedule
from lgd.run import run as run_module
from lgd.train import main
from tests.fuzz.mutations import NASTY, Generator, damage_bytes, damage_value
from tests.fuzz.outcomes import require_one_line, soon

pytestmark = pytest.mark.slow

ROUNDS = range(8)
"""Each is a test of its own with a seed of its own."""

TEXTS = (
    *(
        "",
        " ",
        "0",
        "1",
        "-1",
        "2",
        "0.5",
        "1e-4",
        "1e03",
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "-.inf",
        "9" * 300,
    ),
    *("9" * 5000, "-" + "9" * 5000, "0x" + "f" * 5000, "1_000", "0o17", "1:30:00", "²", "٣", "1,5", "2**70"),
    *(
        "true",
        "None",
        "~",
        "null",
        "yes",
        "'",
        '"',
        "''",
        "[",
        "]",
        "()",
        "[]",
        "(,)",
        "{}",
        "{",
        "[[]]",
        "[1,",
    ),
    *(
        "(1, 2",
        "[1, [2, 3]]",
        "((1, 2), (3,))",
        "[None]",
        "[true, 1]",
        "[x]",
        "('a',)",
        "{'a': 1}",
        "[1e400]",
    ),
    *("[" * 3000, "[" * 90 + "]" * 90, "(" * 300 + ")" * 300, "-" * 3000 + "1", "[" + "1," * 3000 + "]"),
    *("!!python/object/apply:os.getcwd []", "[!!int '']", "[!!float '']", "[2024-99-99]", "[=]", "[<<]"),
    *("[&a [*a]]", "[&a a, *a]", "[*b]", "[!!bool x]", "[!!timestamp x]", "b'x'", "{1}", "1+1j", "lambda: 1"),
    *("\0", "a\0b", "\x1b[31m", "a\nb", "\ud800", "ü" * 3000, "x" * 100_000, "--resume", "SEED", "_BASE_"),
    *(
        "/dev/null",
        "/dev/zero",
        "~nobody/x",
        "~",
        ".",
        "..",
        "/",
        "/proc/self/mem",
        "a/" * 3000,
        "C:\\x",
        "$HOME",
    ),
    *(
        "cpu",
        "cuda",
        "auto",
        "RetinaNet",
        "https://x",
        "file:///x",
        "coco:a:b",
        "coco::",
        "%s%n{0}",
        "2024-01-01",
    ),
)
"""What may stand behind a key on the command line."""


class Opened(Exception):  # noqa: N818 (nothing is wrong)
    """A run has come to its data."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg


@pytest.fixture(autouse=True)
def in_folder_without_data(tmp_path, monkeypatch):
    """Relative paths lead nowhere else, and a run ends where it would open its data."""

    def open_data(cfg: Config, *, with_training: bool, trained: object = ()) -> None:
        raise Opened(cfg)

    monkeypatch.setattr(run_module, "open_data", open_data)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def begin(capsys, recipe: str | Path, settings: Sequence[str] = ()) -> Config | None:
    """What `lgd train` does up to its data: the configuration, or None where it is refused in one line."""
    output = [] if "OUTPUT_DIR" in settings else ["OUTPUT_DIR", "out"]
    try:
        code: object = main(["--config-file", str(recipe), *settings, *output])
    except Opened as opened:
        capsys.readouterr()
        return opened.cfg
    except SystemExit as usage:  # argparse takes "-1e400" for an option
        code = usage.code
    said = capsys.readouterr().err
    assert code == exits.USER_ERROR, said
    if said.startswith("usage: "):
        assert "error: " in said.splitlines()[-1]
        return None
    assert said.startswith("error: ")
    assert said.endswith("\n")
    require_one_line(said[:-1])
    return None


def use(cfg: Config) -> None:
    """Do what a run does with settings before it has a model; nothing is lost on the way to a file."""
    Path("written.yaml").write_text(dump_config(cfg))
    assert flatten(load_config("written.yaml")) == flatten(cfg)
    for world_size in (1, 3, 64):
        try:
            scaled, _ = scale_to_world_size(cfg, world_size)
        except ConfigError as error:
            require_one_line(last_line(str(error)))
            continue
        for side in ("student", "teacher"):
            solver = vars(resolve_solver(scaled, side))
            solver["kind"] = solver.pop("lr_scheduler_name")
            for unused in ("optimizer", "momentum", "weight_decay"):
                del solver[unused]
            rates = LRSchedule(**solver, max_iter=scaled.solver.max_iter)
            for step in (0, 1, scaled.solver.max_iter // 2, scaled.solver.max_iter - 1):
                assert rates.at(step) >= 0
                build_schedule(scaled).phase(step)


def write(text: str | bytes, name: str = "recipe.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    return path


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """{"A.B": 1} to {"A": {"B": 1}}."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = list(value) if isinstance(value, tuple) else value
    return nested


def some_settings(generator: Generator) -> dict[str, Any]:
    """A few settings of their own defaults, as a recipe nests them."""
    chosen = generator.sample(sorted(known_keys()), 12)
    return nest({name: known_keys()[name].default for name in chosen})


@pytest.mark.parametrize("seed", ROUNDS)
def test_damaged_recipes(capsys, seed):
    generator, begun = random.Random(seed), 0
    wholes = [(recipes_folder() / f"{name}.yaml").read_bytes() for name in recipe_names()]
    for number in range(60):
        recipe = write(damage_bytes(generator, generator.choice(wholes)))
        with soon(f"seed {seed}, case {number}"):
            cfg = begin(capsys, recipe)
            if cfg is not None:
                use(cfg)
                begun += 1
    assert 0 < begun < 60


@pytest.mark.parametrize("seed", ROUNDS)
def test_values_in_recipes(capsys, seed):
    generator, begun = random.Random(100 + seed), 0
    for number in range(120):
        text = yaml.safe_dump(damage_value(generator, some_settings(generator)))
        with soon(f"seed {seed}, case {number}"):
            cfg = begin(capsys, write(text))
            if cfg is not None:
                use(cfg)
                begun += 1
    assert 0 < begun < 120


@pytest.mark.parametrize("seed", ROUNDS)
def test_every_setting_on_the_command_line(capsys, seed):
    generator = random.Random(200 + seed)
    names = [
        *known_keys(),
        *known_sections(),
        "_BASE_",
        "<<",
        "",
        "MODEL.",
        "x" * 10_000,
        "SEED\0",
        "\ud800",
        "a b",
    ]
    nasty = [repr(value) for value in NASTY if not isinstance(value, int) or abs(value) < 10**300]
    for name in names:
        words = [name, generator.choice((*TEXTS, *nasty))]
        with soon(f"seed {seed}, {words}"):
            cfg = begin(capsys, "demo", words)
            if cfg is not None:
                use(cfg)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_every_text_as_any_kind_of_setting(capsys, text):
    names = (
        "SEED",
        "OUTPUT_DIR",
        "SOLVER.BASE_LR",
        "SOLVER.STEPS",
        "MODEL.WEIGHTS",
        "DATASETS.TRAIN",
        "TRAIN.COMPILE",
    )
    for name in (*names, "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.META_ARCHITECTURE", "SOLVER", "MODEL.DEVICE"):
        with soon(name):
            cfg = begin(capsys, "demo", [name, text])
            if cfg is not None:
                use(cfg)


def laughs(depth: int, wide: int, item: str = "[1]") -> str:
    """Lists that name the one before several times each."""
    lines = [f"a0: &a0 {item}"]
    for level in range(depth):
        lines.append(f"a{level + 1}: &a{level + 1} [{', '.join([f'*a{level}'] * wide)}]")
    return "\n".join(lines)


def bases(names: Sequence[str]) -> str:
    return f"_BASE_: [{', '.join(names)}]\n"


RECIPES = {
    "deep lists": "SOLVER: {STEPS: " + "[" * 5000,
    "deep closed lists": "SOLVER: {STEPS: " + "[" * 900 + "]" * 900 + "}",
    "less deep lists": "SOLVER: {STEPS: " + "[" * 150 + "]" * 150 + "}",
    "deep sections": "\n".join(" " * level + "MODEL:" for level in range(400)),
    "deep dashes": "SOLVER: {STEPS: \n" + "- " * 20_000,
    "deep questions": "? " * 20_000,
    "a list of aliases": f"SOLVER:\n  STEPS: [&a [1], {', '.join(['*a'] * 5000)}]",
    "laughs": "SOLVER: {STEPS: " + "[&a [1], &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]]}",
    "many laughs": laughs(12, 10),
    "laughs in a value": "SEED: [" + ", ".join(
        f"&a{level} [{', '.join([f'*a{level - 1}'] * 9) if level else 1}]" for level in range(12)
    ) + "]",
    "laughs in keys": "SEED:\n  ? [" + ", ".join(
        f"&a{level} [{', '.join([f'*a{level - 1}'] * 9) if level else 1}]" for level in range(12)
    ) + "]\n  : 1",
    "merges that grow": "SEED: [&a0 {a: 1}, " + ", ".join(
        f"&a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 4)}]}}" for level in range(1, 14)
    ) + "]",
    "a merge of sections": "MODEL: &m {MASK_ON: True}\nSOLVER: {<<: *m}",
    "an alias to itself": "SOLVER: {STEPS: &a [*a]}",
    "a section in itself": "MODEL: &m\n  RPN: *m",
    "a key in itself": "SEED: &a {? *a : 1}",
    "an alias to nothing": "SEED: *a",
    "a section as an alias": "SOLVER: &s {GAMMA: 0.5}\nTEST: *s",
    "a key that is a list": "[SEED]: 1",
    "a key that is a section": "{SEED: 1}: 1",
    "a long key": "? " + "K" * 60_000 + "\n: 1",
    "many keys": "".join(f"KEY{number}: 1\n" for number in range(5000)),
    "a long value": "SEED: " + "7" * 60_000,
    "a long text": "MODEL: {WEIGHTS: '" + "x" * 100_000 + "'}",
    "too long a file": "# " + "x" * 10_000_000,
    "a long number": "SEED: 0x" + "f" * 50_000,
    "a long octal number": "SEED: 0" + "7" * 50_000,
    "a long binary number": "SEED: 0b" + "1" * 50_000,
    "a long sexagesimal number": "SEED: 1" + ":59" * 5000,
    "a list of long numbers": "SOLVER: {STEPS: [0x" + "f" * 20_000 + ", 5]}",
    "numbers of no kind": "SEED: !!int ''",
    "a float of no kind": "SOLVER: {BASE_LR: !!float ''}",
    "a boolean of no kind": "MODEL: {MASK_ON: !!bool perhaps}",
    "a time of no kind": "SEED: !!timestamp soon",
    "bytes of no kind": "MODEL: {WEIGHTS: !!binary '\N{SNOWMAN}'}",
    "bytes": "MODEL: {WEIGHTS: !!binary aGVsbG8=}",
    "a set": "SOLVER: {STEPS: !!set {1, 2}}",
    "pairs": "SOLVER: {STEPS: !!pairs [a: 1]}",
    "an ordered mapping": "SOLVER: {STEPS: !!omap [1]}",
    "a date": "SEED: 2024-01-01",
    "an impossible date": "SOLVER: {STEPS: [2024-99-99]}",
    "an equals sign": "SEED: =",
    "a tag on the file": "!!python/object/apply:os.getcwd []",
    "a tag on a section": "SOLVER: !!python/dict {GAMMA: 0.5}",
    "a tag on a key": "!!python/name:os.system SEED: 1",
    "another tag on a section": "!x SOLVER: {GAMMA: 0.5}",
    "nul": "SEED: 1\0",
    "control characters": 'MODEL: {WEIGHTS: "\\e[31m\\0\\n"}',
    "half a character": 'MODEL: {WEIGHTS: "\\ud800"}',
    "half a character in a key": '"\\ud800": 1',
    "control characters in a key": '"\\e[31m\\0": 1',
    "a folder with half a character": 'OUTPUT_DIR: "\\ud800"',
    "two documents": "SEED: 1\n---\nSEED: 2",
    "other encodings": "SEED: 1".encode("utf-16"),
    "bytes that are no text": b"SEED: \xff\xfe",
    "a mark of the byte order": b"\xef\xbb\xbfSEED: 1",
    "a directive": "%YAML 9.9\n---\nSEED: 1",
    "another directive": "%TAG ! tag:yaml.org,2002:python/\n---\nSEED: !int 1",
    "tabs": "SOLVER:\n\tGAMMA: 1",
    "nothing": "",
    "null": "~",
    "a list": "- 1",
    "a number": "5",
    "its own base": "_BASE_: recipe.yaml",
    "a base of no name": "_BASE_: ''",
    "a base of nobody": "_BASE_: ~nobody/x",
    "a base with a long name": "_BASE_: " + "x" * 5000,
    "a base with a very long name": "_BASE_: " + "x/" * 30_000,
    "a folder as base": "_BASE_: /",
    "a device as base": "_BASE_: /dev/zero",
    "another device as base": "_BASE_: /dev/null",
    "memory as base": "_BASE_: /proc/self/mem",
    "half a character as base": '_BASE_: "\\ud800"',
    "nul as base": '_BASE_: "a\\0b"',
    "bases of no kind": "_BASE_: {a: 1}",
    "a base in bases": "_BASE_: [[demo]]",
    "no bases": "_BASE_: []",
    "null as base": "_BASE_: ~",
    "the same base very often": bases(["demo"] * 10_000),
    "bases that grow": bases(["grow0.yaml"] * 8),
    "a long chain of bases": "_BASE_: chain0.yaml",
    "a ring of bases": "_BASE_: [ring0.yaml, ring1.yaml]",
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_beyond_reason(capsys, name):
    for level in range(12):
        write(bases([f"grow{level + 1}.yaml"] * 8) if level < 11 else "SEED: 3", f"grow{level}.yaml")
    for level in range(1500 if "chain" in name else 0):
        write(f"_BASE_: chain{level + 1}.yaml" if level < 1499 else "SEED: 3", f"chain{level}.yaml")
    write("_BASE_: ring1.yaml", "ring0.yaml")
    write("_BASE_: ring0.yaml", "ring1.yaml")
    with soon(name):
        cfg = begin(capsys, write(RECIPES[name]))
        if cfg is not None:
            use(cfg)


def test_recipes_that_are_no_files(capsys):
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("folder.yaml").mkdir()
    places = ("pipe", "loop", "folder", "folder.yaml", "/dev/zero", "/proc/self/mem", "/proc/kmsg")
    texts = (
        "",
        "\0",
        "demo\0",
        "~nobody/x",
        "~",
        "x" * 300,
        "x" * 60_000,
        "a/" * 30_000,
        "\ud800",
        "..",
        "*",
        "\x1b[31m",
    )
    for recipe in (*places, *texts):
        with soon(recipe[:50]):
            assert begin(capsys, recipe) is None, recipe


def test_folders_that_are_none(capsys):
    write("", "file")
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    Path("nowhere").symlink_to("missing/missing")
    places = (
        "file",
        "file/below",
        "pipe",
        "loop",
        "loop/below",
        "nowhere/below",
        "/dev/null",
        "/dev/null/below",
    )
    others = ("", " ", "''", "x" * 300, "a/" * 3000, "/proc/below", "/dev/full", "a\0b", "\ud800")
    for output in (*places, *others):
        with soon(output[:50]):
            assert begin(capsys, "demo", ["OUTPUT_DIR", output]) is None, output


@pytest.mark.parametrize(
    "name", ["run.lock", "launch.json", "checkpoints", "history.jsonl", "log.txt", "config.yaml"]
)
def test_other_things_in_the_place_of_files(capsys, name):
    for number, make in enumerate((Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path), Path.touch)):
        output = Path(f"out{number}")
        output.mkdir()
        make(output / name)
        with soon(name):
            begin(capsys, "demo", ["OUTPUT_DIR", str(output)])
