"""Imported once by the process that `tests.forked` forks its programs from; by nothing else."""

import signal

import lgd.command
import lgd.ranks.elastic
from lgd.ranks.interruption import SIGNALS

assert lgd.command
assert lgd.ranks.elastic
# As under lgd.launch: a program lets them through when it can handle them.
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
