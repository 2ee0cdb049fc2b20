"""Imported once by the process that `tests.forked` forks its programs from; by nothing else."""

import gc
import signal

import PIL.Image
import tabulate
from tensorboard.summary.writer import record_writer
from torch.utils.tensorboard import summary

import lgd.command
import lgd.ranks.elastic
from lgd.ranks.interruption import SIGNALS

assert lgd.command
assert lgd.ranks.elastic
# What a training imports when it comes to it.
assert record_writer
assert summary
assert tabulate
PIL.Image.preinit()
# As under lgd.launch: a program lets them through when it can handle them.
signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
# No program looks through all that is imported for garbage, page by page.
gc.collect()
gc.freeze()
