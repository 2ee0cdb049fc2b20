"""Signals that ask a run to leave, in processes without torch."""

import os
import signal
import subprocess
import sys

from lgd.ranks.interruption import Interruption
from tests.training import REPOSITORY


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]),
    )  # fmt: skip


def test_the_first_signal_is_noted_and_others_change_nothing():
    with Interruption() as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
        assert interruption.signal == signal.SIGUSR2


def test_what_was_there_before_is_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)]
    with Interruption():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)] == before


def test_every_signal_is_passed_on():
    seen = []
    with Interruption() as interruption:
        interruption.on_signal = seen.append
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGUSR2, signal.SIGTERM]


def test_a_signal_that_came_while_blocked_is_let_through_and_torch_is_not_imported():
    done = run_python(
        "import os, signal, sys\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "from lgd.train import main\n"
        "from lgd.launch import main\n"
        "from lgd.ranks.interruption import Interruption\n"
        "with Interruption() as interruption:\n"
        "    print(interruption.signal, 'torch' in sys.modules)\n"
    )
    assert done.stdout == "15 False\n", done


def test_nothing_changes_the_exit_code_of_a_program_that_is_done():
    done = run_python(
        "import atexit, os, signal, sys\n"
        "from lgd.ranks.interruption import Interruption\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "with Interruption(until_exit=True):\n"
        "    pass\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "sys.exit(7)\n"
    )
    assert done.returncode == 7, done


def test_workers_get_a_signal_when_their_launcher_dies():
    done = run_python(
        "import os, signal, sys, time\n"
        "reading, writing = os.pipe()\n"
        "if os.fork() == 0:\n"  # the launcher
        "    if os.fork() == 0:\n"  # its worker
        "        from lgd.ranks.interruption import Interruption, leave_with_parent\n"
        "        with Interruption() as interruption:\n"
        "            leave_with_parent()\n"
        "            os.write(writing, b'ready')\n"
        "            while not interruption.requested:\n"
        "                time.sleep(0.01)\n"
        "            os.write(writing, b'asked')\n"
        "        os._exit(0)\n"
        "    os.read(reading, 5)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.wait()\n"
        "print(os.read(reading, 5))\n"
    )
    assert done.stdout == "b'asked'\n", done
