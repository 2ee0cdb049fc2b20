"""What ranks do together, tried with two of them."""

import os
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from lgd.ranks import process_group
from lgd.ranks.store import find_free_port
from lgd.weights.report import WeightsError
from tests.forked import call_ranks


def run_rank(rank, port, folder):
    dist.init_process_group(
        "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    check_one_node(rank, folder)
    check_two_nodes(rank)
    dist.destroy_process_group()


def check_one_node(rank, folder):
    os.environ["LOCAL_RANK"] = str(rank)
    process_group._STEP_SECONDS = 0.01
    gather, meetings = process_group.all_gather_objects, []
    process_group.all_gather_objects = lambda value: meetings.append(value) or gather(value)
    file = folder / "file"

    def fetch():
        if not file.exists():
            assert rank == 0
            while len(meetings) < 5:  # the ranks go on meeting while this one works
                time.sleep(0.01)
            file.write_text("fetched")
        return file.read_text()

    assert process_group.on_first_of_node(fetch) == "fetched"
    assert len(meetings) > 5
    process_group.all_gather_objects = gather
    called = []

    def fail():
        called.append(rank)
        raise WeightsError("no network")

    with pytest.raises(WeightsError, match=r"^no network$"):
        process_group.on_first_of_node(fail)
    assert called == [0] * (rank == 0)


def check_two_nodes(rank):
    """Each rank is the first of its node; the second node fails."""
    os.environ["LOCAL_RANK"] = "0"

    def fail_on_the_second():
        if rank == 1:
            raise WeightsError("the second node has no such file")

    with pytest.raises(WeightsError, match="the second node has no such file"):
        process_group.on_first_of_node(fail_on_the_second)
    assert process_group.on_first_of_node(lambda: rank) == rank


def test_the_first_rank_of_a_node_works_while_the_others_wait(tmp_path):
    call_ranks(run_rank, find_free_port(), tmp_path)


def test_one_rank_alone_just_works():
    assert process_group.on_first_of_node(lambda: 3) == 3
    assert process_group.all_gather_objects("a") == ["a"]
