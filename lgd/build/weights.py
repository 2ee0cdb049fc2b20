"""Weights into a model as the configuration says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import nn

from lgd.config.check import check_config
from lgd.config.keys import known_keys, unknown_key, with_values
from lgd.config.read import read_overrides
from lgd.config.schema import Config
from lgd.ranks.process_group import on_first_of_node
from lgd.weights.classes import Classes
from lgd.weights.files import LoadedWeights, read_checkpoint_file
from lgd.weights.load import load_weights
from lgd.weights.report import LoadReport, WeightsError
from lgd.weights.sources import fetch_weights


def fill_model(cfg: Config, model: nn.Module, source: str, classes: Classes | None = None) -> LoadReport:
    """Load a file or a download into `model`; every rank calls this.

    Args:
        cfg: the model's configuration, against whose input the weights are held.
        model: parameters under `student.`, and `teacher.` and `adapter.` where it distills.
        source: as MODEL.WEIGHTS, see `fetch_weights`. One rank of each node downloads, the others wait.
        classes: of the data, into whose order the weights' classes are put where these are known; None takes
            them as they are.

    Raises:
        WeightsError: the weights cannot be had, read or used.
    """
    path = on_first_of_node(partial(fetch_weights, source))
    return load_weights(
        model,
        path,
        stride_in_1x1=cfg.model.resnets.stride_in_1x1,
        pixel_mean=cfg.model.pixel_mean,
        pixel_std=cfg.model.pixel_std,
        image_format=cfg.input.format,
        classes=classes,
        ignore_classes=cfg.model.weights_ignore_classes,
    )


def read_classes(cfg: Config) -> Classes | None:
    """The classes that the file of MODEL.WEIGHTS names, on every rank; None where it names none.

    Raises:
        WeightsError: the weights cannot be had or read.
    """
    weights = read_checkpoint_file(on_first_of_node(partial(fetch_weights, cfg.model.weights)))
    return Classes.of_file(weights.metadata) if weights.kind == "lgd" else None


def config_of_weights(source: str, weights: LoadedWeights, overrides: Sequence[str] = ()) -> Config:
    """The configuration that one of our files was trained with.

    Args:
        source: what the file is called in messages.
        weights: its content.
        overrides: KEY VALUE pairs over its settings.

    Raises:
        WeightsError: it does not say how its model is built.
        ConfigError: what it says is no setting of ours.
    """
    settings = weights.metadata.get("config")
    if not isinstance(settings, Mapping):
        raise WeightsError(f"{source}: does not say how its model is built; give its recipe by --config-file")
    keys = known_keys()
    for name in settings:
        if name not in keys:
            raise unknown_key(str(name), source)
    values = {name: keys[name].coerce(value, f"{source}: {name}") for name, value in settings.items()}
    changes = {name: setting.value for name, setting in read_overrides(overrides).items()}
    cfg = with_values(Config(), {**values, **changes})
    check_config(cfg)
    return cfg
