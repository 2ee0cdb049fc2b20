"""When a process alone leaves; several ranks are in tests/test_signals.py."""

import os
import signal

import pytest

from lgd.ranks.channel import Channel
from lgd.ranks.interruption import Interrupted, Interruption
from lgd.ranks.leaving import Leaving


def test_a_process_alone_leaves_as_soon_as_it_is_asked():
    with Interruption() as interruption:
        leaving = Leaving(interruption, Channel.alone())
        leaving.check("before the data was read")
        assert not leaving.after_step()
        assert not leaving.during_evaluation()
        os.kill(os.getpid(), signal.SIGTERM)
        assert leaving.after_step()
        assert leaving.during_evaluation()
        with pytest.raises(Interrupted, match="asked to leave before the data was read: nothing to save"):
            leaving.check("before the data was read")
