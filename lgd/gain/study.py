"""A study is a list of runs, and a run is what its settings make of a recipe."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lgd.config.distillator_schema import IMITATING
from lgd.config.keys import flatten
from lgd.config.load import load_config
from lgd.config.schema import SIDE_SOLVERS, Config
from lgd.config.values import ConfigError
from lgd.words import counted

PLAIN, TEACHER, EQUAL_TIME = "plain", "teacher", "plain-equal-time"
_LGD = "MODEL.DISTILLATOR"
METHODS: Mapping[str, str] = {
    PLAIN: f"{_LGD}.ENABLED False",
    "ema": f"{_LGD}.ENABLED False TRAIN.EMA.ENABLED True TRAIN.EMA.WARMUP_ITERS 33%",
    "lgd": "",
    "detached": f"{_LGD}.TEACHER.DETACH_APPEARANCE_EMBED True",
    "fixed": f"{_LGD}.HEAD.MODE fixed",
    "fixed-first": f"{_LGD}.HEAD.FIXED_ITERS 33%",
    "ramp": f"{_LGD}.HEAD.RAMP_ITERS 67%",
    "averaged": f"{_LGD}.HEAD.MODE averaged",
    "late": f"{_LGD}.HEAD.MODE fixed {_LGD}.TEACHER.DETACH_APPEARANCE_EMBED True "
    f"{_LGD}.PRE_NONDISTILL_ITERS 67% {_LGD}.PRE_FREEZE_STUDENT_BACKBONE_ITERS 0",
    "quarter": f"{_LGD}.IMAGE_SHARE 0.25",
    "sssd": f"{_LGD}.LOSS jensen_shannon {_LGD}.LAMBDA_STEPS (67%,) {_LGD}.LAMBDA_GAMMA 2",
    "fgfi": f"{_LGD}.METHOD FGFI {_LGD}.PRE_NONDISTILL_ITERS 0",
    "pkd": f"{_LGD}.METHOD PKD {_LGD}.PRE_NONDISTILL_ITERS 0",
    "crosskd": f"{_LGD}.METHOD CrossKD {_LGD}.PRE_NONDISTILL_ITERS 0",
    "lgd-pkd": f"{_LGD}.METHOD LGD+PKD",
}
"""Settings by name; N% is a share of the steps. `lgd` is the paper's way, whatever the recipe says."""

_PAPER = (
    f"{_LGD}.HEAD.MODE shared {_LGD}.HEAD.FIXED_ITERS 0 {_LGD}.HEAD.RAMP_ITERS 0 {_LGD}.LOSS squared "
    f"{_LGD}.IMAGE_SHARE 1"
)
_LGD_FROM = 1 / 7
"""Of the steps, where the distillation begins if the recipe is a plain one: as in recipes for own data."""

OPTIONS: Mapping[str, str] = {
    "DATASETS.TRAIN": "--data",
    "DATASETS.TEST": "--test-split",
    "SOLVER.MAX_ITER": "--steps",
    "TEST.EVAL_PERIOD": "--evaluations",
    "SEED": "--seeds",
    "OUTPUT_DIR": "--out",
    f"{_LGD}.ENABLED": "--methods",
    f"{_LGD}.METHOD": "--methods",
}
"""Settings in which the runs of a study differ, and the options that say how."""

_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        data: the line of the training set.
        recipe: as `lgd train --config-file` takes it.
        method: a key of `Study.methods`, TEACHER, or EQUAL_TIME.
        steps: of the training.
        seed: of everything random.
        fold: the part of the pictures that validates, from 0 on; None for the set's own division.
    """

    data: str
    recipe: str
    method: str
    steps: int
    seed: int
    fold: int | None = None

    def name(self) -> str:
        """In words."""
        fold = "" if self.fold is None else f", fold {self.fold}"
        place = f"{name_of_data(self.data)}, {Path(self.recipe).stem}"
        return f"{place}, {self.method}, {counted(self.steps, 'step')}, seed {self.seed}{fold}"

    def folder(self, out: Path) -> Path:
        """Where it writes."""
        fold = "" if self.fold is None else f"-fold{self.fold}"
        last = f"{self.method}-{self.steps}-seed{self.seed}{fold}"
        return out / name_of_data(self.data) / Path(self.recipe).stem / last


@dataclass(frozen=True)
class Study:
    """Everything that is trained.

    Attributes:
        data: lines of training sets.
        recipes: as `lgd train --config-file` takes them.
        methods: settings by name, as in METHODS.
        steps: lengths of trainings.
        seeds: of each.
        folds: parts that validate in turn; 0 for the sets' own division.
        test_split: of the same folders, to validate on; with folds it is divided too.
        evaluations: of a training, evenly over its steps.
        options: KEY VALUE pairs over everything.
        out: the folder to write to.
    """

    data: tuple[str, ...]
    recipes: tuple[str, ...]
    methods: Mapping[str, str]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    folds: int
    test_split: str
    evaluations: int
    options: tuple[str, ...]
    out: Path

    def runs(self) -> list[Run]:
        """All of them: what is to be compared comes one after the other, and pretrained teachers first."""
        return [*dict.fromkeys(self._runs())]

    def imitates(self, method: str) -> bool:
        """Whether a method needs a trained teacher."""
        words = shlex.split(self.methods.get(method, ""))
        named = [value for key, value in zip(words[::2], words[1::2], strict=True) if key == f"{_LGD}.METHOD"]
        return bool(named) and named[-1] in IMITATING

    def _runs(self) -> Iterator[Run]:
        folds = range(self.folds) if self.folds else (None,)
        for data in self.data:
            for recipe in self.recipes:
                for steps in self.steps:
                    for seed in self.seeds:
                        for fold in folds:
                            runs = [Run(data, recipe, method, steps, seed, fold) for method in self.methods]
                            yield from (teacher_of(run) for run in runs if self.imitates(run.method))
                            yield from runs


def teacher_of(run: Run) -> Run:
    """The plain training of a pretrained teacher: twice as long, and one for all seeds."""
    return replace(run, method=TEACHER, seed=1, steps=2 * run.steps)


def name_of_data(line: str) -> str:
    """A word for a data set: its folder's name."""
    parts = line.split(":")
    return Path(parts[1] if len(parts) > 1 else parts[0]).name or "data"


def test_line(line: str, split: str) -> str:
    """The line of the set to validate on, in the same folder."""
    if line.count(":") < 2:
        raise ConfigError(f"--data {line}: write KIND:FOLDER:SPLIT, as in coco:datasets/bccd:train")
    return f"{line.rpartition(':')[0]}:{split}"


def read_methods(texts: Sequence[str]) -> dict[str, str]:
    """Read NAME, or NAME=KNOWN KEY VALUE ..., for each method.

    Raises:
        ConfigError: a name that is not known or taken, no pairs, or what has an option of its own.
    """
    methods = {}
    for text in texts:
        name, own, rest = text.partition("=")
        base, *pairs = _words_of(text, rest) if own else [name]
        if base not in METHODS or not re.fullmatch(r"[\w.-]+", name) or name in (TEACHER, EQUAL_TIME):
            known = ", ".join(METHODS)
            raise ConfigError(
                f"--methods {text!r}: write one of {known}; or a name of your own as in "
                f'"weak=lgd {_LGD}.LAMBDA 0.3"'
            )
        if len(pairs) % 2:
            raise ConfigError(f"--methods {text!r}: {pairs[-1]} has no value")
        if own and (name in methods or name in METHODS):
            raise ConfigError(f"--methods {text!r}: there is a method called {name}; give it another name")
        refuse_settings(pairs, {key: option for key, option in OPTIONS.items() if option != "--methods"})
        methods[name] = " ".join([METHODS[base], *map(shlex.quote, pairs)]).strip()
    return methods


def refuse_settings(texts: Sequence[str], options: Mapping[str, str]) -> None:
    """See that no KEY VALUE pair sets what an option is for.

    Args:
        texts: as typed.
        options: by the setting in whose place they are.

    Raises:
        ConfigError: one does.
    """
    for key in texts[::2]:
        if key in options:
            raise ConfigError(f"command line: {key}: give {options[key]} in its place")


def _words_of(text: str, rest: str) -> list[str]:
    """A method's base and pairs, split as a shell does."""
    try:
        return shlex.split(rest) or [""]
    except ValueError as error:
        raise ConfigError(f"--methods {text!r}: {str(error).lower()}") from error


def settings_of(run: Run, study: Study, train: Sequence[str], test: Sequence[str]) -> list[str]:
    """KEY VALUE pairs over the run's recipe: schedule in proportion, method, data.

    Args:
        run: of the study.
        study: its options win over everything.
        train: lines to train on.
        test: lines to validate on.
    """
    cfg = load_config(run.recipe)
    general = {
        "DATASETS.TRAIN": tuple(train),
        "DATASETS.TEST": tuple(test),
        "TEST.EVAL_PERIOD": max(1, run.steps // study.evaluations),
        "TEST.VIS_IMAGES": 0,
        "SOLVER.CHECKPOINT_PERIOD": max(1, run.steps // 4),
        "TRAIN.KEEP_CHECKPOINTS": 1,
        "SEED": run.seed,
        "OUTPUT_DIR": str(run.folder(study.out)),
        **_in_proportion(cfg, run.steps),
    }
    method = METHODS[PLAIN] if run.method in (TEACHER, EQUAL_TIME) else study.methods[run.method]
    pairs = [str(item) for pair in general.items() for item in pair]
    pairs += shlex.split(f"{_PAPER} {_with_steps(method, run.steps)}")
    if study.imitates(run.method):
        folder = teacher_of(run).folder(study.out)
        pairs += [f"{_LGD}.TEACHER.WEIGHTS", str(folder / "model_final.pth")]
        pairs += [f"{_LGD}.TEACHER.CONFIG_FILE", str(folder / "config.yaml")]
    return [*pairs, *study.options]


def _with_steps(text: str, steps: int) -> str:
    """Put steps in the place of shares of them."""
    return _SHARE.sub(lambda share: str(round(float(share[1]) / 100 * steps)), text)


def _in_proportion(cfg: Config, steps: int) -> dict[str, Any]:
    """A recipe's schedule for another number of steps, with LGD's phases."""
    scale, lgd = steps / cfg.solver.max_iter, cfg.model.distillator
    # A plain recipe may have phases for who switches LGD on; COCO's default ones end beyond its schedule.
    has_phases = lgd.enabled or lgd.pre_nondistill_iters < cfg.solver.max_iter
    start = lgd.pre_nondistill_iters * scale if has_phases else steps * _LGD_FROM
    freeze = lgd.pre_freeze_student_backbone_iters * scale if has_phases else 0
    values: dict[str, Any] = {
        "SOLVER.MAX_ITER": steps,
        "MODEL.DISTILLATOR.ENABLED": True,
        "MODEL.DISTILLATOR.PRE_NONDISTILL_ITERS": round(start),
        "MODEL.DISTILLATOR.POST_NONDISTILL_ITERS": round(lgd.post_nondistill_iters * scale),
        "MODEL.DISTILLATOR.PRE_FREEZE_STUDENT_BACKBONE_ITERS": round(freeze),
    }
    if not has_phases and cfg.model.meta_architecture == "RetinaNet":
        values["MODEL.DISTILLATOR.TEACHER.ADD_CONTEXT_BOX"] = True
    settings = flatten(cfg)
    for solver in ("SOLVER", *SIDE_SOLVERS):
        drops, warmup = settings[f"{solver}.STEPS"], settings[f"{solver}.WARMUP_ITERS"]
        if drops is not None:
            values[f"{solver}.STEPS"] = tuple(max(1, round(step * scale)) for step in drops)
        if warmup is not None:
            values[f"{solver}.WARMUP_ITERS"] = min(warmup, steps // 10)
    return values
