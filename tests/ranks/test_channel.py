"""The ranks' second way to talk, and what it says of those that are missing."""

import os
import re
import signal
import socket
import time

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from lgd.config.values import ConfigError
from lgd.ranks import channel, process_group
from lgd.ranks import store as ranks_store
from lgd.ranks.channel import Channel, call_roll
from lgd.ranks.interruption import SIGNALS
from lgd.ranks.store import RanksError, find_free_port, open_store
from tests.forked import call_ranks, start_ranks
from tests.training import small_settings

HOST = socket.gethostname()


def run_ranks(function, *arguments, number=2):
    call_ranks(join_and_call, number, find_free_port(), function, arguments, number=number)


def join_and_call(rank, number, port, function, arguments):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
    function(rank, *arguments)


def vote(rank):
    talk = process_group.init(torch.device("cpu"), 60)
    assert talk.any(rank == 1)
    assert not talk.any(False)
    # Each answer is to the question before.
    assert [talk.vote(flag) for flag in (False, rank == 1, False, False)] == [False, False, True, False]
    assert not talk.has_heard("leave")
    talk.meet("the test")
    if rank == 1:
        talk.announce("leave")
    talk.meet("the test")
    assert talk.has_heard("leave")
    talk.close()
    process_group.shutdown()


def test_ranks_vote_announce_and_meet():
    run_ranks(vote)


def test_a_process_alone_needs_nobody():
    talk = Channel.alone()
    assert talk.any(True)
    assert talk.vote(True)
    assert not talk.has_heard("leave")
    talk.announce("leave")
    talk.meet("the test")
    talk.close()
    with pytest.raises(RuntimeError, match="gloo"), talk.explaining(lambda: "the test"):
        raise RuntimeError("gloo: nothing to do with other ranks")


def join(seconds):
    """Join the others however long they take to come on a busy machine; then they wait `seconds`."""
    process_group.open_store = lambda rank, number, _: open_store(rank, number, 120)
    process_group.call_roll = lambda store, rank, number, _: call_roll(store, rank, number, 120)
    return process_group.init(torch.device("cpu"), seconds)


def lose_rank_1(rank, how):
    channel._PATIENCE_SECONDS = 2.0
    talk = join(5)
    if rank == 1:
        if how == "dies":
            os._exit(0)
        time.sleep(600 if how == "hangs" else 0)  # until the test ends it
        return
    with pytest.raises(RanksError) as error, talk.explaining(lambda: "step 3"):
        process_group.all_reduce_sum(torch.ones(1))
    message = str(error.value)
    expected = (
        f"rank 0 on {HOST} gave up summing over the ranks (all-reduce) at step 3; nothing is heard of rank 1"
    )
    assert message.startswith(f"{expected} on {HOST}. Ranks wait 5 s for one another"), message
    with pytest.raises(RanksError, match=f"at the evaluation; nothing is heard of rank 1 on {HOST}"):
        talk.meet("the evaluation")
    os._exit(3)


@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_missing_rank_is_named_with_the_collective(how):
    with pytest.raises(multiprocessing.ProcessExitedException) as error:
        run_ranks(lose_rank_1, how)
    assert (error.value.error_index, error.value.exit_code) == (0, 3)


def test_a_rank_that_never_comes(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_port()))
    store = open_store(0, 3, 5)
    with pytest.raises(RanksError) as error:
        call_roll(store, 0, 3, 0.2)
    assert str(error.value) == (
        f"rank 0 on {HOST} waited 0.2 s (TRAIN.PROCESS_GROUP_TIMEOUT) in vain for ranks 1, 2; "
        f"those that came are on {HOST}"
    )
    with pytest.raises(RanksError, match=r"rank 2 on .* in vain for the others, which rank 0 names"):
        call_roll(store, 2, 3, 0.2)


class LostStore:
    """A store that is gone after so many calls."""

    def __init__(self, store, calls=0):
        self.store, self.calls = store, calls

    def __getattr__(self, name):
        def call(*arguments):
            self.calls -= 1
            if self.calls < 0:
                raise dist.DistNetworkError("Failed to recv, got 0 bytes.\nException raised from ...")
            return getattr(self.store, name)(*arguments)

        return call


@pytest.mark.parametrize("calls", range(8))
def test_the_store_is_gone_while_the_roll_is_called(monkeypatch, calls):
    """Rank 0 found out that it cannot join, and left, before rank 1 had seen that all have come."""
    monkeypatch.setenv("MASTER_ADDR", "node1")
    with pytest.raises(RanksError) as error:
        call_roll(LostStore(dist.HashStore(), calls), 1, 2, 30)
    assert str(error.value) == (
        f"rank 1 on {HOST} lost rank 0 on node1, which keeps the ranks' store; see its message. "
        "Failed to recv, got 0 bytes."
    )


def test_rank_0_leaves_while_the_roll_is_called(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    port = find_free_port()
    servers = [dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)]
    client = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)

    class Leaving:
        def check(self, keys):
            servers.clear()
            return client.check(keys)

        def set(self, key, value):
            client.set(key, value)

    with pytest.raises(RanksError, match=f"^rank 1 on {HOST} lost rank 0 on node1, which keeps") as error:
        call_roll(Leaving(), 1, 2, 30)
    assert "\n" not in str(error.value)


def test_the_launcher_keeps_the_store(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(RanksError, match="lost the launcher on node1, which keeps the ranks' store; see"):
        call_roll(LostStore(None), 0, 2, 30)


def hang(*arguments):
    time.sleep(60)


def test_a_store_that_does_not_answer(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setattr(channel, "_PATIENCE_SECONDS", 0.1)
    store = dist.HashStore()
    monkeypatch.setattr(channel, "_look_up", hang)
    with pytest.raises(RanksError) as error:
        call_roll(store, 1, 2, 0.1)
    assert str(error.value) == (
        f"rank 1 on {HOST} waited 0.2 s in vain for the answer of rank 0 on node1, which keeps the ranks' "
        "store: it hangs, or is cut off"
    )


def take_wrong_interface(rank, number):
    os.environ["GLOO_SOCKET_IFNAME"] = "ib0" if rank == number else "lo"
    with pytest.raises(ConfigError) as error:
        process_group.init(torch.device("cpu"), 60)
    message = str(error.value)
    expected = rf"on {HOST} GLOO_SOCKET_IFNAME is ib0, which is not there; this host has .*lo 127\.0\.0\.1/8"
    assert re.match(expected, message), message
    os._exit(0)


@pytest.mark.parametrize("number", [0, 1])
def test_every_rank_says_that_one_has_a_wrong_interface(number):
    run_ranks(take_wrong_interface, number)


def wait_for_news(talk):
    while not talk.has_heard("leave"):
        time.sleep(0.1)


def ask_while_rank_0_hangs(rank, folder):
    talk = join(5)
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    talk.meet("the test")
    if rank == 0:
        while not (folder / "done").exists():
            time.sleep(0.05)
        os._exit(0)
    process_id = int((folder / "pid0").read_text())
    os.kill(process_id, signal.SIGSTOP)
    try:
        with pytest.raises(RanksError, match=f"waited 5 s in vain for the answer of rank 0 on {HOST}, which"):
            wait_for_news(talk)
    finally:
        (folder / "done").write_text("")
        os.kill(process_id, signal.SIGCONT)
    os._exit(0)


def test_the_main_rank_hangs_while_the_others_ask_for_news(tmp_path):
    run_ranks(ask_while_rank_0_hangs, tmp_path)


def test_the_main_rank_cannot_be_reached(monkeypatch):
    port = find_free_port()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    with pytest.raises(RanksError, match=f"rank 1 on {HOST} cannot reach rank 0 at 127.0.0.1:{port}"):
        open_store(1, 2, 1)


@pytest.mark.parametrize("port", [None, "x"])
def test_nobody_says_where_the_main_rank_is(monkeypatch, port):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    if port:
        monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(
        ConfigError, match="WORLD_SIZE is 2, but MASTER_ADDR and MASTER_PORT do not say where"
    ):
        open_store(0, 2, 1)


def test_the_port_is_taken(monkeypatch):
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", 0))
        other.listen()
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(other.getsockname()[1]))
        monkeypatch.setattr(ranks_store, "_PATIENCE_SECONDS", 0.1)
        expected = rf"rank 0 on {HOST} cannot serve .*: port \d+ on {HOST} is in use by another program; take"
        with pytest.raises(ConfigError, match=expected):
            open_store(0, 2, 1)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")  # whose launcher takes another at the next start
        with pytest.raises(RanksError, match=expected):
            open_store(0, 2, 1)


def come_three_times(rank, port):
    store = dist.TCPStore("127.0.0.1", port, is_master=rank == 0, wait_for_workers=False)
    parts = []
    for _ in range(3):
        part, hosts = call_roll(store, rank, 2, 30)
        assert hosts == [HOST, HOST]
        assert not part.check(["value"])
        parts.append(part)
        dist.barrier()
        part.set("value", "1")
        dist.barrier()
    assert all(part.check(["value"]) for part in parts)
    dist.barrier()  # rank 0 takes the store along when it leaves


def come_again(rank, port):
    dist.init_process_group("gloo")
    come_three_times(rank, port)
    dist.destroy_process_group()


def test_a_store_that_outlives_its_ranks():
    """What an earlier start of the workers has written is not taken for this one's."""
    run_ranks(come_again, find_free_port())


@pytest.mark.slow
def test_a_hanging_rank_ends_the_run_within_the_time_out(small_data, tmp_path):
    settings = small_settings(
        small_data, tmp_path / "out", SOLVER__MAX_ITER=10000, TRAIN__PROCESS_GROUP_TIMEOUT=8
    )
    ranks = start_ranks(settings, folder=tmp_path)
    ranks[0].wait_for(tmp_path / "out" / "metrics.jsonl", '"iteration": 2')
    ranks[1].signal(signal.SIGSTOP)
    try:
        assert ranks[0].wait() == 1
    finally:
        ranks[1].signal(signal.SIGKILL)
    (line,) = (line for line in ranks[0].log.read_text().splitlines() if line.startswith("error"))
    assert line.startswith(f"error: rank 0 on {HOST} gave up ")
    assert " of 10000; nothing is heard of rank 1 on " in line
    assert "(all-reduce) at step" in line
