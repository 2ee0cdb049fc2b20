"""What tests let `lgd.launch` start: `python -m tests.launched_worker FOLDER BEHAVIOUR`, without torch."""

import os
import signal
import sys
import time
from pathlib import Path

from lgd.ranks.interruption import Interruption

NAMES = ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "TORCH_NCCL_ASYNC_ERROR_HANDLING", "GLOO_SOCKET_IFNAME")


def wait_for(interruption):
    while not interruption.requested:
        time.sleep(0.01)


def main():
    folder, behaviour = Path(sys.argv[1]), sys.argv[2]
    rank, start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    with Interruption() as interruption:
        names = (
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING",
            "GLOO_SOCKET_IFNAME",
        )
        environment = " ".join(os.environ.get(name, "-") for name in names)
        (folder / f"rank{rank}start{start}").write_text(environment)
        if behaviour == "wait":
            while not interruption.requested:
                time.sleep(0.01)
            return 75
        if behaviour == "last_lags":
            time.sleep(2.0 * rank)
            return 75
        if behaviour == "lose_one" and start == 0:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            wait_for(interruption)
            return 1
        return int(behaviour) if behaviour.isdecimal() and rank == 1 else 0


if __name__ == "__main__":
    sys.exit(main())
