"""Shared by all tests."""

import gc
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest

# As in our programs: threads that wait soon sleep. Read when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from tests.samples import BCCD, folder_of

LONG = (
    "cluster/test_two_hosts.py",
    "parity/test_parity.py",
    "cluster/test_slurm.py",
    "test_compile.py",
    "test_signals.py",
    "test_demo.py",
    "test_ends.py",
    "export/test_runtimes.py",
    "test_full_disk.py",
    "test_overfit.py",
    "export/test_command.py",
    "data/test_memory.py",
)
"""Files with many minutes of slow tests come first, those that wait and those that compute by turns: at the
end one process would be left alone with them."""


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers():
    """`-n auto` is one more than there are cores: a third of the time is waiting for other processes."""
    return 1 + (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported and collected stays to the end: there is no garbage to look for, then or later."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors gain nothing from more, and threads that wait for one another stall on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture
def own_threads():
    """Sets how many threads torch has, until the test has ended."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(own_threads):
    """Two in place of the one that tests compute with."""
    own_threads(2)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heeded():
    """A shell starts what is in the background with SIGINT ignored, and whatever that starts inherits it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def logging_as_before():
    """Commands that a test calls set logging up, with streams that are closed when the test is over."""
    ours = logging.getLogger("lgd")
    handlers, level, propagate = ours.handlers[:], ours.level, ours.propagate
    yield
    ours.handlers[:] = handlers
    ours.setLevel(level)
    ours.propagate = propagate


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Folder of a small synthetic set in COCO layout: splits "train" (12 images) and "val" (5)."""
    from lgd.data.synthetic import write_synthetic

    folder = tmp_path_factory.mktemp("small_data")
    write_synthetic(folder, "train", num_images=12)
    write_synthetic(folder, "val", num_images=5)
    return folder


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory):
    """A copy of the photographs that lie here: what is read from a set leaves its columns beside it."""
    return shutil.copytree(BCCD, tmp_path_factory.mktemp("sample_data") / "bccd")


@pytest.fixture(scope="session")
def nasty_data(tmp_path_factory):
    """Folder of awkward image files: images/ and instances.json."""
    from tests.data.nasty import write_nasty

    folder = tmp_path_factory.mktemp("nasty_data")
    write_nasty(folder)
    return folder


@pytest.fixture(scope="session")
def data_set(request):
    """Folder of the set that a test names: "sample", "synthetic", "made" (awkward files) or a further one."""
    fixtures = {"sample": "sample_data", "synthetic": "small_data", "made": "nasty_data"}
    if request.param in fixtures:
        return request.getfixturevalue(fixtures[request.param])
    return folder_of(request.param)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """File of a small student with random weights, which finds things with scores about 0.01."""
    from tests.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "student.safetensors")


@pytest.fixture(scope="session")
def tiny_model(tiny_weights):
    """`tiny_weights`, loaded."""
    import lgd

    return lgd.load(tiny_weights, "cpu")
