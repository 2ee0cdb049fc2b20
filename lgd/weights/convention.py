"""Which input weights expect; a mismatch trains without an error and costs AP in silence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from lgd.weights.files import LoadedWeights
from lgd.weights.kind import Content, InputConvention
from lgd.weights.kinds import KINDS


def check_input_convention(weights: LoadedWeights, config: InputConvention) -> str | None:
    """Hold the model's input and strides against those that the weights were trained with.

    Args:
        weights: as read from the file. Published backbones state a convention by their kind, our own files
            by the configuration in them. Swin transformers are adapted instead (`adapt_to_input`); what the
            reference's and detectron2's detectors hold of it is checked with their other constants.
        config: the model's.

    Returns:
        What to set, for the user; None where all fits. Basic blocks have no 1x1 to stride in, so that
        setting is not looked at for them.

    Raises:
        WeightsError: what one of our files says of its input is nothing that we write.
    """
    trained = _trained_with(weights)
    if trained is None or KINDS[weights.kind].fit is not None:
        return None
    differing = []
    strides = (trained.stride_in_1x1, config.stride_in_1x1)
    if None not in strides and strides[0] != strides[1] and _has_bottlenecks(weights):
        differing.append(f"MODEL.RESNETS.STRIDE_IN_1X1 {trained.stride_in_1x1}")
    if trained.image_format != config.image_format:
        differing.append(f"INPUT.FORMAT {trained.image_format}")
    if not _close(trained.pixel_mean, config.pixel_mean):
        differing.append(f"MODEL.PIXEL_MEAN {list(trained.pixel_mean)}")
    if not _close(trained.pixel_std, config.pixel_std):
        differing.append(f"MODEL.PIXEL_STD {list(trained.pixel_std)}")
    if not differing:
        return None
    return f"these weights were trained otherwise than the config says; set {', '.join(differing)}"


def adapt_to_input(
    weights: LoadedWeights, tensors: Mapping[str, Tensor], config: InputConvention
) -> tuple[dict[str, Tensor], str | None]:
    """Fit the weights to the config's input where their kind can be; leave others as they are.

    Args:
        weights: as read from the file.
        tensors: the same by our names.
        config: the model's input.

    Returns:
        The tensors, and what was done to them, for the log.
    """
    fit = KINDS[weights.kind].fit
    trained = None if fit is None else _trained_with(weights)
    if fit is None or trained is None or _sees_the_same(trained, config):
        return dict(tensors), None
    return fit(dict(tensors), trained, config)


def _trained_with(weights: LoadedWeights) -> InputConvention | None:
    return KINDS[weights.kind].trained_with(Content(weights.tensors, weights.metadata))


def _sees_the_same(trained: InputConvention, config: InputConvention) -> bool:
    return (
        trained.image_format == config.image_format
        and _close(trained.pixel_mean, config.pixel_mean)
        and _close(trained.pixel_std, config.pixel_std)
    )


def _close(trained: Sequence[float], configured: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(trained, configured, strict=True))


def _has_bottlenecks(weights: LoadedWeights) -> bool:
    return any(".conv3." in name or "branch2c" in name for name in weights.tensors)
