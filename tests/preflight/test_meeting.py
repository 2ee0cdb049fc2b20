import threading

import pytest
import torch.distributed as dist

from lgd.preflight import meeting
from lgd.preflight.meeting import Meeting, MeetingError


def test_messages_arrive():
    ours, theirs = (Meeting(store, rank) for rank, store in enumerate([dist.HashStore()] * 2))
    theirs.post("cards", {"host": "b"})
    ours.announce("verdict", [1, 2])
    assert ours.collect("cards", [0, 1], seconds=0.0) == {1: {"host": "b"}}
    assert theirs.hear("verdict", seconds=1.0) == [1, 2]


def test_a_store_that_never_answers_is_not_waited_for_without_end(monkeypatch):
    class Silent(dist.Store):
        def check(self, keys):
            threading.Event().wait(5.0)

    monkeypatch.setattr(meeting, "_ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(meeting, "PrefixStore", lambda prefix, store: store)
    with pytest.raises(MeetingError, match="no answer of rank 0 in 0 s: it hangs, or the way to it is cut"):
        Meeting(Silent(), rank=1).hear("verdict", seconds=10.0)


def test_no_word_of_rank_0():
    with pytest.raises(MeetingError, match=r"no word of it \(verdict\) in 0 s"):
        Meeting(dist.HashStore(), rank=1).hear("verdict", seconds=0.0)
