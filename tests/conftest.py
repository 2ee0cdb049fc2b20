"""Shared by all tests."""

import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def two_threads():
    """Small tensors gain nothing from more threads, and numbers repeat on every machine."""
    torch.set_num_threads(min(2, os.cpu_count() or 1))
