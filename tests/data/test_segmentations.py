import numpy as np
import pytest
from pycocotools import mask as mask_api

from lgd.data.segmentations import decode_run_lengths


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_compressed_run_lengths_as_pycocotools_writes_them(share):
    mask = np.random.default_rng(0).random((97, 131)) < share
    encoded = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    counts = decode_run_lengths(encoded)
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    assert np.array_equal(values.reshape(131, 97).T, mask)


def test_decodes_by_hand():
    # 3; 40 = 8 + 1 * 32 in two digits; 5; then differences from two places before: 41 - 40, 4 - 5.
    assert decode_run_lengths("3X151O") == [3, 40, 5, 41, 4]
