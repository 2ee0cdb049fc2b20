import math

import pytest
import torch

from lgd.ops.finite import replace_non_finite


@pytest.mark.parametrize(
    ("rows", "expected"), [(False, [[1.0, 0.0], [3.0, 4.0]]), (True, [[0.0, 0.0], [3.0, 4.0]])]
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_replaced_and_marked(value, rows, expected):
    x, mark = replace_non_finite(torch.tensor([[1.0, value], [3.0, 4.0]]), rows=rows)
    assert x.tolist() == expected
    assert math.isnan(mark)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_stay(dtype):
    x = torch.randn(3, 4, dtype=dtype)
    same, mark = replace_non_finite(x)
    assert torch.equal(same, x)
    assert (mark.item(), mark.dtype) == (0.0, dtype)
