import copy

import pytest
import torch
from torch import nn

from lgd.layers.conv import ConvNorm, set_winograd
from lgd.layers.prediction import for_prediction
from tests.detectors.small import DETECTORS, excite_head, make_batch
from tests.layers.test_norm import randomized


@pytest.mark.parametrize("norm", ["FrozenBN", "BN", "SyncBN"])
def test_constant_norms_are_in_the_weights_once(norm):
    conv = ConvNorm(8, 12, 3, norm=norm).double()
    randomized(conv.norm)
    x = torch.randn(2, 8, 9, 10, dtype=torch.float64)
    before = copy.deepcopy(conv.state_dict())
    ready = for_prediction(conv)
    assert ready.norm is None
    assert torch.allclose(ready(x), conv.eval()(x), atol=1e-10)
    assert not ready.weight.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in conv.state_dict().items())


@pytest.mark.parametrize("norm", ["GN", "SeparateFrozenBN", ""])
def test_other_norms_stay(norm):
    conv = ConvNorm(16, 16, 3, norm=norm).eval()
    ready = for_prediction(conv)
    x = torch.randn(1, 16, 7, 5)
    assert type(ready.norm) is type(conv.norm)
    assert torch.allclose(ready(x), conv(x), atol=1e-5)


def test_on_a_cpu_convolutions_are_plain_and_channels_last():
    model = nn.Sequential(ConvNorm(8, 8, 3), ConvNorm(8, 8, 3))
    set_winograd(model, True)
    ready = for_prediction(model)
    assert not any(conv.winograd for conv in ready)
    assert all(conv.weight.is_contiguous(memory_format=torch.channels_last) for conv in ready)
    assert all(conv.winograd for conv in model)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_prepared_detector_detects_the_same(name):
    detector = DETECTORS[name]().eval().double()
    excite_head(detector)
    batch = make_batch([1, 2], height=128, width=192, dtype=torch.float64)
    expected, found = (
        each.detect(each.extract_features(batch), batch) for each in (detector, for_prediction(detector))
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.allclose(ours.boxes, theirs.boxes, atol=1e-8)
        assert torch.allclose(ours.scores, theirs.scores, atol=1e-10)
