"""How many threads compute a training."""

import pytest
import torch

from lgd.engine.checkpoint import find_newest
from lgd.ranks import process_group
from lgd.ranks.cores import CoresWatch
from lgd.run import threads
from lgd.run.threads import settle_threads
from tests.forked import Forked
from tests.training import small_settings

CPU = torch.device("cpu")


class Checkpoint:
    def __init__(self, **state):
        self.state = state


@pytest.fixture
def settle(monkeypatch, own_threads):
    """Settles on a machine of eight cores; returns the threads of torch and what was said."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "count_cores", lambda: 8)
    own_threads(8)

    def settle(taken, checkpoint=None, device=CPU):
        monkeypatch.setattr(CoresWatch, "count_taken", lambda self: taken)
        lines = list(settle_threads(device, CoresWatch.begin(), checkpoint))
        return torch.get_num_threads(), lines

    return settle


@pytest.mark.parametrize(
    ("taken", "number", "says"),
    [
        (0, 8, []),
        (1, 7, ["7 threads: other work keeps 1 of 8 cores busy; OMP_NUM_THREADS=8 takes all"]),
        (9, 1, ["1 thread: other work keeps 8 of 8 cores busy; OMP_NUM_THREADS=8 takes all"]),
    ],
)
def test_a_thread_for_each_free_core(settle, taken, number, says):
    assert settle(taken) == (number, says)


def test_cores_beyond_what_torch_takes_may_be_busy(settle, own_threads):
    own_threads(4)  # a core each, of two hardware threads
    assert settle(4) == (4, [])
    assert settle(5) == (3, ["3 threads: other work keeps 5 of 8 cores busy; OMP_NUM_THREADS=4 takes all"])


def test_a_run_that_goes_on_keeps_its_number(settle):
    says = "3 threads: the run began with 3; OMP_NUM_THREADS=8 takes all"
    assert settle(0, Checkpoint(threads=3)) == (3, [says])


def test_a_run_that_began_with_all_goes_on_so_beside_other_work(settle):
    assert settle(6, Checkpoint(threads=8)) == (8, [])


def test_a_run_that_goes_on_with_fewer_cores_than_it_began_with(settle):
    says = "8 threads: the run began with 16; OMP_NUM_THREADS=8 takes all"
    assert settle(0, Checkpoint(threads=16)) == (8, [says])


@pytest.mark.parametrize("state", [{}, {"threads": None}, {"threads": 0}, {"threads": "2"}])
def test_a_checkpoint_that_does_not_say(settle, state):
    assert settle(2, Checkpoint(**state))[0] == 6


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_who_has_chosen_keeps_it(settle, monkeypatch, name):
    monkeypatch.setenv(name, "8")
    assert settle(5, Checkpoint(threads=2)) == (8, [])


def test_gpus_and_several_ranks_are_left_alone(settle, monkeypatch):
    assert settle(5, device=torch.device("cuda")) == (8, [])
    monkeypatch.setattr(process_group, "get_world_size", lambda: 2)
    assert settle(5) == (8, [])


def test_checkpoints_say_how_many(small_data, tmp_path):
    run = Forked(small_settings(small_data, tmp_path / "run", SOLVER__MAX_ITER=3), log=tmp_path / "out")
    assert run.wait() == 0, run.log.read_text()
    assert find_newest(tmp_path / "run" / "checkpoints").state["threads"] == 1
