"""The preflight on hosts with networks of their own: what is wrong on one of them is named."""

import json
import re
import sys
from pathlib import Path

import pytest

from lgd import exits
from lgd.preflight.command import FINDINGS
from tests.cluster import netns
from tests.cluster.engines import require
from tests.training import REPOSITORY, small_settings

pytestmark = pytest.mark.netns
PATIENCE = 300
"""Seconds for a run of some 10 to 20; what is measured here is against other links, not against the clock."""


@pytest.fixture(autouse=True)
def engine():
    require(netns.missing())


def preflight(network, *arguments, world_size=None, of_last=None, hide=()):
    """Run it on every host, a rank each; `of_last` is environment, `hide` folders of the last host."""
    processes = []
    for rank, host in enumerate(network.hosts):
        is_last = rank == len(network.hosts) - 1
        environment = {
            "RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size or len(network.hosts),
            "LOCAL_WORLD_SIZE": 1, "GROUP_RANK": rank, "MASTER_ADDR": network.hosts[0].name,
            "MASTER_PORT": 29500, **((of_last or {}) if is_last else {}),
        }  # fmt: skip
        command = ["-m", "lgd.preflight", "--slow-factor", "10", *arguments]
        options = {"hide": hide if is_last else ()}
        environment = {name: str(value) for name, value in environment.items()}
        processes.append(host.python(*command, environment=environment, **options))
    outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    codes = {process.returncode for process in processes}
    assert len(codes) == 1, outputs
    return codes.pop(), outputs[0]


def findings(output):
    text = re.split(" findings?:\n", output)[-1]
    return [line.split(". ", 1)[1] for line in text.splitlines() if line[:3].strip().isdigit()]


def recipe(data, output):
    return ["--config-file", str(REPOSITORY / "configs/demo.yaml"), *small_settings(data, output)]


def test_all_well_under_torchrun(tmp_path, small_data):
    torchrun = Path(sys.executable).with_name("torchrun")
    with netns.Network(tmp_path) as network:
        command = [
            torchrun, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=preflight",
            f"--rdzv-endpoint={network.hosts[0].name}:29400", "-m", "lgd.preflight", "--slow-factor", "50",
            "--min-bandwidth", "0", "--timeout", "120", "--json", tmp_path / "report.json",
            *recipe(small_data, tmp_path / "run"),
        ]  # fmt: skip
        processes = [host.start(command) for host in network.hosts]
        outputs = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert [process.returncode for process in processes] == [exits.DONE] * 2, outputs
    text = next(output for output in outputs if "all well" in output)
    assert "2 of 2 ranks on 2 hosts, started by torchrun" in text
    found = json.loads((tmp_path / "report.json").read_text())
    links = [link for measurement in found["measurements"].values() for link in measurement["links"]]
    assert sorted((link["source"], link["target"]) for link in links) == [(0, 1), (1, 0)]
    assert [storage["output_error"] for storage in found["storages"]] == ["", ""]
    assert not list(tmp_path.glob(".lgd-preflight-*"))


def test_a_rank_on_another_interface(tmp_path):
    with netns.Network(tmp_path) as network:
        network.hosts[1].add_interface("eth1", "10.88.0.2/24")
        code, output = preflight(network, of_last={"GLOO_SOCKET_IFNAME": "eth1"})
        address = network.hosts[1].address
    assert code == FINDINGS
    start = "rank 1 (hostB): on another interface, eth1 10.88.0.2 (by GLOO_SOCKET_IFNAME)"
    assert [found.startswith(start) for found in findings(output)].count(True) == 1, output
    assert f"eth0 {address}/24" in output


def test_an_interface_that_is_not_there(tmp_path):
    with netns.Network(tmp_path) as network:
        code, output = preflight(network, of_last={"GLOO_SOCKET_IFNAME": "ib0"})
    assert code == FINDINGS
    assert "rank 1 (hostB): GLOO_SOCKET_IFNAME is ib0, which is not there" in findings(output)


def test_a_node_without_the_data_and_with_an_output_folder_of_its_own(tmp_path, small_data):
    output_dir = tmp_path / "run"
    output_dir.mkdir()
    with netns.Network(tmp_path) as network:
        code, output = preflight(network, *recipe(small_data, output_dir), hide=(small_data, output_dir))
    assert code == FINDINGS
    found = findings(output)  # a busy machine may add findings about speed behind these
    assert found[0].startswith(f"hostB: cannot read data set coco:{small_data}:train: "), output
    assert found[1].startswith(f"hostB: cannot read data set coco:{small_data}:val: ")
    assert found[2] == f"hostB: OUTPUT_DIR {output_dir} is not the one that rank 0 writes to"


def test_one_slow_direction_between_two_hosts(tmp_path):
    with netns.Network(tmp_path) as network:
        network.hosts[1].shape("2mbit")
        code, output = preflight(network)
    assert code == FINDINGS
    assert findings(output)[0].startswith("slow link from hostB to hostA: "), output


def test_a_slow_host_among_three_and_a_fourth_that_is_missing(tmp_path):
    with netns.Network(tmp_path, num_hosts=3) as network:
        network.hosts[2].shape("2mbit")
        network.hosts[2].shape_incoming("2mbit")
        code, output = preflight(network, "--timeout", "30", world_size=4)
    assert code == FINDINGS
    missing, slow, *_ = findings(output)  # a busy machine may add findings behind these
    assert missing == "rank 3 of 4 did not come in 30 s (node 3, of which nobody came)"
    assert slow.startswith("hostC is slow to and from every other node: ")
