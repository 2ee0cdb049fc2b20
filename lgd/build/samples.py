"""The training samples of a recipe one by one, to look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lgd.build.augmentations import build_augmentations
from lgd.build.training import build_crop, build_decoding, flip_probability
from lgd.config.keys import with_values
from lgd.config.load import load_config
from lgd.config.schema import Config
from lgd.data.index import AnnotationIndex
from lgd.data.samples import Preparation, TrainingImages
from lgd.data.transforms import Resize

_BASE = "Base-RetinaNet"
"""What says the sizes where no recipe does."""


def samples_of(recipe: str | None, augmentations: str | None) -> Callable[[AnnotationIndex], TrainingImages]:
    """Read how a recipe makes samples; returns what opens a set's, by (image, position), RGB and with masks.

    Args:
        recipe: a YAML file or the name of one of the package's; None for COCO's sizes.
        augmentations: INPUT.AUGMENTATIONS as on the command line; None for the recipe's.

    Raises:
        ConfigError: one of them cannot be.
    """
    overrides = [] if augmentations is None else ["INPUT.AUGMENTATIONS", augmentations]
    # What is said of a distillation that does nothing is of no interest here.
    cfg = load_config(recipe or _BASE, ["MODEL.DISTILLATOR.ENABLED", "False", *overrides])
    return partial(_open, with_values(cfg, {"INPUT.FORMAT": "RGB"}))


def _open(cfg: Config, index: AnnotationIndex) -> TrainingImages:
    options = cfg.input
    has_objects = np.flatnonzero(index.counts)
    return TrainingImages(
        Preparation(index, "RGB", options.max_size_train, torch.float64, True, decoding=build_decoding(cfg)),
        candidates=has_objects if len(has_objects) else np.arange(len(index)),
        resize=Resize(options.min_size_train, options.max_size_train, options.min_size_train_sampling),
        crop=build_crop(cfg),
        flip_prob=flip_probability(cfg),
        seed=max(cfg.seed, 0),
        on_bad_image="fail",
        augmentations=build_augmentations(cfg),
    )
