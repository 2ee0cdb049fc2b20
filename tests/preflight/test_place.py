"""The environments of launchers, as they set them."""

import pytest

from lgd.config.values import ConfigError
from lgd.preflight.place import Place, first_host, read_place

TORCHRUN = {
    "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "x",
}  # fmt: skip
SRUN = {
    "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NODEID": "1", "SLURM_STEP_NODELIST": "gpu[07-09]", "SLURM_JOB_ID": "41234",
}  # fmt: skip


def test_torchrun():
    assert read_place(TORCHRUN) == Place(5, 1, 8, 4, 1, "node1", 29500, "torchrun")


def test_torchrun_inside_slurm_is_torchrun():
    assert read_place({**SRUN, **TORCHRUN}).launcher == "torchrun"


def test_others_set_less():
    some = {name: TORCHRUN[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert read_place(some) == Place(5, 0, 8, 0, -1, "node1", 29500, "another launcher")


def test_srun_alone():
    assert read_place(SRUN) == Place(3, 1, 4, 0, 1, "gpu07", 21234, "SLURM")


def test_a_batch_script_and_no_launcher_are_one_process():
    assert read_place({}) == Place()
    assert read_place({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}) == Place()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-09,12],cpu3", "gpu07"), ("node1", "node1"), ("node2,node5", "node2"), ("a[3]-ib", "a3-ib"),
        ("", ""),
    ],
)  # fmt: skip
def test_first_host(nodes, first):
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "x"}, "RANK is 'x', not a number"),
        ({"RANK": "8"}, r"RANK 8 is not in \[0, 7\]"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE is 8, but MASTER_ADDR or MASTER_PORT is not set"),
    ],
)
def test_broken_environments(changes, message):
    environment = {name: value for name, value in {**TORCHRUN, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=message):
        read_place(environment)
