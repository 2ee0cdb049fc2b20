"""Imported once by the process that `tests.forked` forks its programs from; by nothing else."""

import signal

import lgd.command
import lgd.elastic
from lgd.engine.interruption import SIGNALS

assert lgd.command
assert lgd.elastic
# As under lgd.launch: a program lets them through when it can handle them.
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
