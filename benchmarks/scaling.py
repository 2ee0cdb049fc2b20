"""Time a training step on 1, 2 and 4 ranks of this machine, and what the ranks' agreement adds to it.

    python benchmarks/scaling.py                                            # the recipe demo, gloo
    python benchmarks/scaling.py --config-file configs/retinanet/r50_2x_ms_lgd.yaml --size 160 160
    python benchmarks/scaling.py --device cuda --ranks 1,2,4,8 --config-file ...    # a GPU and NCCL for each

Every rank works on its own images. Steps that average the gradients over the ranks take turns with steps of
the same ranks that don't (DDP's no_sync), so that what both share - cores, memory, the other ranks - drops
out: the difference is the overhead. Figures are the slowest rank's medians.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import nullcontext
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import report
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from lgd.bench.machine import synchronize, take_turns
from lgd.bench.step import Step, make_batch, make_step
from lgd.build.training import reads_masks
from lgd.config.load import load_config

SYNCED, ALONE = "averaging", "alone"
COLUMNS = (
    "ranks", "s/step", "without averaging", "overhead", "images/s", "of linear", "gradients MiB",
    "sent by a rank, MiB",
)  # fmt: skip


def time_step(step: Step, module: DistributedDataParallel, average: bool) -> float:
    """Take a step that ends when all ranks' have ended; returns its seconds."""
    distributed.barrier()
    synchronize(step.device)
    begin = time.perf_counter()
    with nullcontext() if average else module.no_sync():
        step.take()
    synchronize(step.device)
    return time.perf_counter() - begin


def run_rank(rank: int, num_ranks: int, port: int, work: dict[str, Any], answers: Queue[Any]) -> None:
    """What one rank does; rank 0 answers with the slowest rank's figures."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(work["threads"])
    on_cuda = work["device"] == "cuda"
    device = torch.device("cuda", rank) if on_cuda else torch.device("cpu")
    distributed.init_process_group("nccl" if on_cuda else "gloo", rank=rank, world_size=num_ranks)
    cfg = load_config(work["config_file"], work["opts"])
    batch = make_batch(
        work["batch"],
        *work["size"],
        num_boxes=work["boxes"],
        num_classes=cfg.num_classes,
        device=device,
        with_masks=reads_masks(cfg),
    )
    plain = make_step(cfg, batch, device)
    module = DistributedDataParallel(
        plain.model, device_ids=[device] if on_cuda else None, gradient_as_bucket_view=True
    )
    step = Step(plain.model, partial(module, batch, distill=True), plain.optimizers, device, plain.dtype)
    seconds = take_turns(
        {name: partial(time_step, step, module, name == SYNCED) for name in (SYNCED, ALONE)},
        num_turns=work["steps"],
    )
    slowest = torch.tensor([seconds[SYNCED], seconds[ALONE]], dtype=torch.float64, device=device)
    distributed.all_reduce(slowest, distributed.ReduceOp.MAX)
    num_bytes = sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
    if rank == 0:
        answers.put((*slowest.tolist(), num_bytes))
    distributed.destroy_process_group()


def run_ranks(num_ranks: int, work: dict[str, Any]) -> tuple[float, float, int]:
    """Start the ranks; returns seconds of a step with and without averaging, and the gradients' bytes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    multiprocessing.spawn(run_rank, args=(num_ranks, port, work, answers), nprocs=num_ranks)
    found: tuple[float, float, int] = answers.get(timeout=60)
    return found


def ring_bytes(num_bytes: int, num_ranks: int) -> float:
    """Bytes that each rank sends to all-reduce `num_bytes` around a ring."""
    return 2 * num_bytes * (num_ranks - 1) / num_ranks


def make_rows(found: dict[int, tuple[float, float, int]], batch: int) -> list[list[Any]]:
    """The table's rows; "of linear" is the speed against so many times that of the fewest ranks."""
    fewest = min(found)
    rows = []
    for num_ranks, (averaging, alone, num_bytes) in found.items():
        speed, reference = num_ranks * batch / averaging, batch / found[fewest][0]
        rows.append(
            [
                num_ranks,
                averaging,
                alone,
                averaging / alone - 1,
                speed,
                speed / (num_ranks * reference),
                num_bytes / 2**20,
                ring_bytes(num_bytes, num_ranks) / 2**20,
            ]
        )
    return rows


def main() -> None:
    """Print the table."""
    parser = report.make_parser(__doc__)
    parser.add_argument("--config-file", type=Path, default=report.ROOT / "configs/demo.yaml")
    parser.add_argument("--ranks", type=report.numbers, default=[1, 2, 4])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=2, help="images of a rank")
    parser.add_argument("--size", type=int, nargs=2, default=[160, 224], metavar=("H", "W"))
    parser.add_argument("--boxes", type=int, default=7, help="objects of an image")
    parser.add_argument("--threads", type=int, default=1, help="of a rank; torchrun's default is 1")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the recipe's")
    arguments = parser.parse_intermixed_args()
    work = {key: value for key, value in vars(arguments).items() if key not in ("ranks", "json")}
    work["opts"] = ["NUM_CLASSES", "80", *arguments.opts]
    found = {num_ranks: run_ranks(num_ranks, work) for num_ranks in arguments.ranks}
    height, width = arguments.size
    report.publish(
        f"Scaling of {arguments.config_file.parent.name}/{arguments.config_file.name}: "
        f"{arguments.batch} images of {height} x {width} a rank, "
        f"{'NCCL' if arguments.device == 'cuda' else 'gloo'}, medians of {arguments.steps}",
        report.describe_machine(arguments.device),
        COLUMNS,
        make_rows(found, arguments.batch),
        arguments.json,
    )


if __name__ == "__main__":
    main()
