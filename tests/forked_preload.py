"""Imported once by the process that `tests.forked` forks its runs from; by nothing else."""

import signal

import lgd.command
from lgd.engine.interruption import SIGNALS

assert lgd.command
# As under lgd.launch: a run lets them through when it can handle them.
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
