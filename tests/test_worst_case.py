"""The largest batch before training: a run is not changed by it, and a full memory is said in one line."""

import pytest
import torch

from lgd import train
from lgd.layers.pixels import PixelNormalizer
from tests.training import REPOSITORY, read_metrics, run_to_end, small_settings

DEMO = str(REPOSITORY / "configs/demo.yaml")


@pytest.fixture
def full_memory(monkeypatch):
    """A memory that holds three images."""
    forward = PixelNormalizer.forward

    def check_and_forward(self, batch, dtype):
        if len(batch.images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return forward(self, batch, dtype)

    monkeypatch.setattr(PixelNormalizer, "forward", check_and_forward)


def assert_same(one, other):
    assert read_metrics(one) == read_metrics(other)
    ours, theirs = (torch.load(path / "model_final.pth", weights_only=True)["model"] for path in (one, other))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def settings_of(small_data, output, tries, **changes):
    return small_settings(
        small_data,
        output,
        SOLVER__MAX_ITER=2,
        INPUT__MAX_SIZE_TRAIN=96,
        TRAIN__TRY_WORST_SHAPE=tries,
        DATASETS__TEST="()",
        **changes,
    )


@pytest.mark.parametrize("changes", [{}, {"MODEL__RESNETS__NORM": "BN"}], ids=["normaliser", "batch norm"])
def test_a_run_that_tries_is_bit_equal_to_one_that_does_not(small_data, tmp_path, changes):
    for tries in (True, False):
        settings = settings_of(small_data, tmp_path / str(tries), tries, **changes)
        assert train.main(["--config-file", DEMO, *settings]) == 0
        assert ("the largest batch fits: " in (tmp_path / str(tries) / "log.txt").read_text()) is tries
    assert_same(tmp_path / "True", tmp_path / "False")


@pytest.mark.slow
def test_two_ranks_try_alone(small_data, tmp_path):
    texts = {
        tries: run_to_end(settings_of(small_data, tmp_path / str(tries), tries), "--num-gpus", "2")
        for tries in (True, False)
    }
    assert "the largest batch fits: 2 images a rank, " in texts[True]
    assert "the largest batch fits: " not in texts[False]
    assert_same(tmp_path / "True", tmp_path / "False")


def test_a_full_memory_is_said_at_once(small_data, tmp_path, capsys, full_memory):
    settings = settings_of(small_data, tmp_path, True)
    assert train.main(["--config-file", DEMO, *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "out of memory with the largest batch of this data, 4 images a rank, " in line
    assert "objects each; lower SOLVER.IMS_PER_BATCH, or keep it and raise TRAIN.ACCUMULATE_STEPS" in line
    assert not (tmp_path / "config.yaml").exists()


def test_find_batch_needs_cuda(small_data, tmp_path, capsys):
    assert train.main(["--config-file", DEMO, "--find-batch", *small_settings(small_data, tmp_path)]) == 2
    assert "--find-batch needs CUDA" in capsys.readouterr().err
