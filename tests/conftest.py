"""Shared by all tests."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors gain nothing from more, and threads that wait for one another stall on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Folder of a small synthetic set in COCO layout: splits "train" (12 images) and "val" (5)."""
    from lgd.data.synthetic import write_synthetic

    folder = tmp_path_factory.mktemp("small_data")
    write_synthetic(folder, "train", num_images=12)
    write_synthetic(folder, "val", num_images=5)
    return folder
