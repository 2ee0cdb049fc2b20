"""Training on two hosts with a network between them: it loses workers, hosts, the link, and goes on or ends.

What a user reads then is held here; docs/clusters.md shows the same messages.
"""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from lgd import exits
from tests.cluster import netns
from tests.cluster.engines import require
from tests.training import REPOSITORY, read_metrics, small_settings

pytestmark = pytest.mark.netns

PATIENCE = 300
"""Seconds for what takes some 10 to 40 on idle cores; the time-outs that are under test are far shorter."""

NUM_STEPS = 30
SHORT = {"process_group": 10, "join": 15}
"""Time-outs, in seconds, of what is to end by them: ranks that wait for ranks, machines for machines."""
LONG = {"process_group": 600, "join": 900}
"""Of what is not, however busy the machine: longer than anything here is waited for."""


def meeting(seconds):
    """--rdzv-conf: machines wait `seconds` for one another, and call one dead that was silent for 5 s."""
    return (
        f"--rdzv-conf=timeout={seconds},join_timeout={seconds},last_call_timeout=1,"
        "keep_alive_interval=1,keep_alive_max_attempt=5,read_timeout=5"
    )


@pytest.fixture(scope="module", autouse=True)
def engine():
    require(netns.missing())


@pytest.fixture
def network(tmp_path):
    with netns.Network(tmp_path) as network:
        yield network


def recipe(data, output, limits=LONG, **changes):
    """Arguments of a run of `NUM_STEPS` steps with a checkpoint every fourth."""
    settings = small_settings(
        data,
        output,
        **{
            "SOLVER__MAX_ITER": NUM_STEPS,
            "SOLVER__STEPS": "[20]",
            "SOLVER__CHECKPOINT_PERIOD": 4,
            "TEST__VIS_IMAGES": 0,
            "TRAIN__PROCESS_GROUP_TIMEOUT": limits["process_group"],
            **changes,
        },
    )
    return ["--config-file", REPOSITORY / "configs/demo.yaml", *settings]


def torchrun(network, host, arguments, log=None):
    """The line of the README, with time-outs."""
    program = Path(sys.executable).with_name("torchrun")
    words = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--max-restarts=3",
             f"--rdzv-endpoint={network.hosts[0].name}:29400", meeting(LONG["join"])]  # fmt: skip
    return host.start(
        [program, *words, "-m", "lgd.train", *arguments],
        log=log or f"{host.name}.log",
        environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )


def launch(network, host, arguments, log=None, limits=LONG):
    """Our launcher."""
    words = ["--nnodes=2", "--nproc-per-node=1", f"--rdzv-endpoint={network.hosts[0].name}:29400",
             "--max-restarts=3", meeting(limits["join"])]  # fmt: skip
    return host.python("-m", "lgd.launch", *words, "--", *arguments, log=log or f"{host.name}.log")


def seeds_form(network, host, arguments):
    """The reference's way to start several machines."""
    words = ["--num-gpus", "1", "--num-machines", "2", "--machine-rank", network.hosts.index(host),
             "--dist-url", f"tcp://{network.hosts[0].name}:29500"]  # fmt: skip
    return host.python("-m", "lgd.train", *map(str, words), *arguments, log=f"{host.name}.log")


def finish(*processes):
    """Wait for all to end; their exit codes and what they wrote."""
    netns.wait_until(lambda: all(p.poll() is not None for p in processes), PATIENCE, "the end")
    return [p.returncode for p in processes], [p.log.read_text(errors="replace") for p in processes]


def train_until(step, output, processes):
    """Wait for a line of metrics at `step` or later; fails where the processes end before."""
    file = output / "metrics.jsonl"

    def has_come():
        ended = [p.log.read_text() for p in processes if p.poll() is not None]
        assert not ended, ended
        return file.exists() and any(line.get("iteration", 0) >= step for line in read_metrics(output))

    netns.wait_until(has_come, PATIENCE, f"step {step}")


def kill_worker(host):
    """End the training process of a host as the kernel does where memory is short; not its launcher."""
    for pid in host.pids():
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"lgd.train" in words[2:4] and b"--nnodes=2" not in words:
            os.kill(pid, signal.SIGKILL)
            return pid
    raise AssertionError(f"no worker on {host.name}")


def weights(output):
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def assert_same_run(output, reference):
    """The losses and the weights of two runs are equal to the bit."""
    assert read_metrics(output) == read_metrics(reference)
    ours, theirs = weights(output), weights(reference)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def resumed_at(text):
    return [int(step) for step in re.findall(r"resumed from \S+: step (\d+) of", text)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, small_data):
    """OUTPUT_DIR of a run on two hosts, started in the seed's form, that nothing happens to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    with netns.Network(folder) as network:
        processes = [seeds_form(network, host, recipe(small_data, folder / "run")) for host in network.hosts]
        codes, texts = finish(*processes)
    assert codes == [exits.DONE] * 2, texts
    assert "2 x CPU" in texts[0]
    assert "2 x CPU" not in texts[1]
    return folder / "run"


def test_the_seeds_form_trains(uninterrupted):
    assert read_metrics(uninterrupted)[-1]["iteration"] == NUM_STEPS


def test_torchrun_goes_on_after_a_lost_worker(network, tmp_path, small_data, uninterrupted):
    output = tmp_path / "run"
    processes = [torchrun(network, host, recipe(small_data, output)) for host in network.hosts]
    train_until(8, output, processes)
    kill_worker(network.hosts[1])
    codes, texts = finish(*processes)
    assert codes == [exits.DONE] * 2, texts
    text = "".join(texts)
    (step,) = resumed_at(text)
    assert step >= 4
    assert step % 4 == 0
    assert re.search(r"rank \d on host[AB] gave up .* nothing is heard of rank \d on hostB\.", text), text
    assert_same_run(output, uninterrupted)


def test_the_launcher_goes_on_with_a_host_in_place_of_a_lost_one(
    network, tmp_path, small_data, uninterrupted
):
    output = tmp_path / "run"
    arguments = recipe(small_data, output)
    stays, lost = network.hosts
    processes = [launch(network, host, arguments) for host in network.hosts]
    train_until(8, output, processes)
    lost.kill()
    replacement = launch(network, lost, arguments, log="replacement.log")
    codes, texts = finish(processes[0], replacement)
    assert codes == [exits.DONE] * 2, texts
    (step,) = resumed_at("".join(texts))
    assert step >= 4
    assert f"on {stays.name}) ended with code {exits.FAULT}" in texts[0]
    assert "starting again from the newest checkpoint, if there is one; restarts left: 3" in texts[0]
    assert_same_run(output, uninterrupted)


def test_a_host_that_is_lost_for_good_is_named(network, tmp_path, small_data):
    output = tmp_path / "run"
    arguments = recipe(small_data, output, SHORT)
    processes = [launch(network, host, arguments, limits=SHORT) for host in network.hosts]
    train_until(4, output, processes)
    network.hosts[1].kill()
    (code, _), (text, _) = finish(*processes)
    assert code == exits.FAULT
    assert re.search(
        r"rank \d on hostA gave up .* at step \d+ of 30; nothing is heard of rank \d on hostB", text
    )
    assert (
        f"hostA cannot meet the other machines at hostA:29400: not all of 2 came in {SHORT['join']} s "
        "(--rdzv-conf join_timeout); at the last start they were this one and hostB" in text
    ), text


def test_a_cut_link_ends_both_sides(network, tmp_path, small_data):
    output = tmp_path / "run"
    arguments = recipe(small_data, output, SHORT)
    processes = [launch(network, host, arguments, limits=SHORT) for host in network.hosts]
    train_until(4, output, processes)
    network.hosts[1].cut()
    codes, (near, far) = finish(*processes)
    assert codes == [exits.FAULT] * 2
    assert re.search(r"rank \d on hostA gave up .*; nothing is heard of rank \d on hostB", near), near
    assert "at the last start they were this one and hostB" in near
    # The store lies at the meeting point, on the other side: all that this one can know.
    assert "hostB cannot meet the other machines at hostA:29400: " in far
    assert "frame #" not in far.partition("hostB cannot meet")[2], far


def test_the_host_with_other_settings_is_named(network, tmp_path, small_data):
    output = tmp_path / "run"
    usual, other = recipe(small_data, output), recipe(small_data, output, SOLVER__WARMUP_ITERS=3)
    odd = network.hosts[1]
    processes = [launch(network, network.hosts[0], usual), launch(network, odd, other)]
    codes, texts = finish(*processes)
    assert codes == [exits.USER_ERROR] * 2, texts
    assert "the ranks do not agree: rank " in "".join(texts)
    assert re.search(r"rank \d on host[AB] has SOLVER.WARMUP_ITERS \d, rank 0 \d\.", "".join(texts)), texts


@pytest.fixture(scope="session")
def other_data(tmp_path_factory):
    """As `small_data`, with other images and boxes in "train"."""
    from lgd.data.synthetic import write_synthetic

    folder = tmp_path_factory.mktemp("other_data")
    write_synthetic(folder, "train", num_images=11)
    write_synthetic(folder, "val", num_images=5)
    return folder


def test_the_host_with_other_data_is_named(network, tmp_path, small_data, other_data):
    arguments = recipe(small_data, tmp_path / "run")
    words = ["--nnodes=2", "--rdzv-endpoint=hostA:29400", meeting(LONG["join"]), "--"]
    processes = [
        host.python("-m", "lgd.launch", *words, *arguments, binds=binds, log=f"{host.name}.log")
        for host, binds in zip(network.hosts, ({}, {other_data: small_data}), strict=True)
    ]
    codes, texts = finish(*processes)
    assert codes == [exits.USER_ERROR] * 2, texts
    assert re.search(
        r"rank 1 on host[AB] has data set coco:\S+:train content \w+, rank 0 ", "".join(texts)
    ), texts
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_machine_that_never_comes(network):
    meeting = ["--nnodes=2", "--rdzv-backend=static", "--rdzv-endpoint=hostA:29500", "--rdzv-conf=timeout=3"]
    process = network.hosts[0].python("-m", "lgd.launch", *meeting, "--", "--help", log="hostA.log")
    (code,), (text,) = finish(process)
    assert code == exits.FAULT
    assert "hostA cannot meet the other machines at hostA:29500: " in text


@pytest.mark.parametrize("hidden_on", [0, 1])
def test_an_output_folder_that_is_not_shared(network, tmp_path, small_data, uninterrupted, hidden_on):
    """Whichever host has rank 0: no new run is begun beside the one that the other host has."""
    arguments = ["--resume", *recipe(small_data, uninterrupted, SOLVER__MAX_ITER=NUM_STEPS + 4)]
    words = ["--nnodes=2", "--rdzv-endpoint=hostA:29400", meeting(LONG["join"]), "--"]
    processes = [
        host.python(
            "-m", "lgd.launch", *words, *arguments,
            hide=(uninterrupted,) if number == hidden_on else (), log=f"{host.name}.log",
        )
        for number, host in enumerate(network.hosts)
    ]  # fmt: skip
    codes, texts = finish(*processes)
    assert codes == [exits.USER_ERROR] * 2, texts
    expected = (
        r"error.*: OUTPUT_DIR \S+ on rank 1 on host[AB] is not the folder that rank 0 on host[AB] writes to.*"
        ": all nodes must share OUTPUT_DIR, by the same path"
    )
    assert all(re.search(expected, text) for text in texts), texts
    assert not any("lgd 0" in text for text in texts)  # nothing was begun


def test_a_folder_that_a_run_on_another_host_has(network, tmp_path, small_data, uninterrupted):
    """Refused while that one lives; half a minute after its host is gone, whoever asks goes on with it."""
    output = tmp_path / "run"
    near, far = network.hosts
    arguments = ["-m", "lgd.train", *recipe(small_data, output, SOLVER__MAX_ITER=3000)]
    holder = near.python(*arguments, log="holder.log", own_processes=True)
    train_until(8, output, [holder])
    for flags in ([], ["--resume"]):
        (code,), (text,) = finish(far.python(*arguments, *flags, log=f"far{flags}.log", own_processes=True))
        assert code == exits.USER_ERROR
        assert re.search(
            rf"error: {output} is in use by another run: process \d+ on hostA, since .*step \d+", text
        )
    assert holder.poll() is None
    near.kill()
    began = time.monotonic()
    successor = far.python(*arguments, "--resume", log="successor.log", own_processes=True)
    netns.wait_until(lambda: "resumed from" in successor.log.read_text(), PATIENCE, "the successor")
    assert time.monotonic() - began > 25
    assert "taken over from a run that is dead: process" in successor.log.read_text()
    far.kill(signal.SIGTERM)
    assert finish(successor)[0] == [exits.RUN_AGAIN]


def interfaces_of(host):
    """The environment of a host's command, and a piece of what is to be said of it."""
    return {
        "not there": (
            {"GLOO_SOCKET_IFNAME": "ib0"},
            f"on {host} GLOO_SOCKET_IFNAME is ib0, which is not there",
        ),
        "of nccl": ({"NCCL_SOCKET_IFNAME": "ib"}, f"on {host} NCCL_SOCKET_IFNAME is ib, which is not there"),
        "not reached": ({"GLOO_SOCKET_IFNAME": "eth1"}, rf"cannot reach {host} at 10\.88\.0\.2, its eth1"),
        "loopback": ({"GLOO_SOCKET_IFNAME": "lo"}, rf"cannot reach {host} at 127\.0\.0\.1, its lo"),
    }


@pytest.mark.parametrize("what", interfaces_of(""))
def test_a_wrong_interface_ends_all_machines_at_once(network, tmp_path, small_data, what):
    arguments = recipe(small_data, tmp_path / "run")
    words = ["--nnodes=2", "--rdzv-endpoint=hostA:29400", "--max-restarts=3", meeting(LONG["join"]), "--"]
    network.hosts[1].add_interface("eth1", "10.88.0.2/24")
    environment, said = interfaces_of("hostB")[what]
    processes = [
        host.python("-m", "lgd.launch", *words, *arguments, environment=own, log=f"{host.name}.log")
        for host, own in zip(network.hosts, ({}, environment), strict=True)
    ]
    codes, texts = finish(*processes)
    assert codes == [exits.USER_ERROR] * 2, texts
    for text in texts:
        assert "Traceback" not in text
        assert re.search(f"error.*: .*{said}.* has .*eth0 {network.hosts[1].address}/24", text), text
        assert "starting again" not in text


def test_a_wrong_interface_on_one_machine(network, tmp_path, small_data):
    process = network.hosts[0].python(
        "-m", "lgd.train", "--num-gpus", "2", *recipe(small_data, tmp_path / "run"),
        environment={"GLOO_SOCKET_IFNAME": "ib0"}, log="hostA.log",
    )  # fmt: skip
    (code,), (text,) = finish(process)
    assert code == exits.USER_ERROR
    assert "error: on hostA GLOO_SOCKET_IFNAME is ib0, which is not there; this host has lo 127" in text


def test_a_wrong_local_address(network):
    words = ["--nnodes=2", "--rdzv-endpoint=hostA:29400", "--local-addr", "hostB", "--", "--help"]
    process = network.hosts[0].python("-m", "lgd.launch", *words, log="hostA.log")
    (code,), (text,) = finish(process)
    assert code == exits.USER_ERROR
    address = network.hosts[1].address
    assert f"error: --local-addr hostB ({address}) is no address of this machine, which has lo 127" in text


OCCUPIER = """\
import socket, sys, time
with socket.create_server(("", int(sys.argv[1]))) as server:
    while True:
        connection, _ = server.accept()
        if sys.argv[2] == "talks":
            connection.sendall(b"SSH-2.0-OpenSSH_9.2\\r\\n")
        elif sys.argv[2] == "hangs up":
            connection.close()
        kept = connection
"""


@pytest.mark.parametrize("manner", ["silent", "talks", "hangs up"])
@pytest.mark.parametrize("start", [launch, seeds_form], ids=["launch", "seed's form"])
def test_a_port_that_another_program_has(network, tmp_path, small_data, manner, start):
    host = network.hosts[0]
    port = "29400" if start is launch else "29500"
    host.python("-c", OCCUPIER, port, manner, log="occupier.log")
    process = start(network, host, recipe(small_data, tmp_path / "run"))
    (code,), (text,) = finish(process)  # before its time-outs
    assert code == exits.USER_ERROR, text
    assert re.search(rf"error: .*port {port} on hostA is in use by another program; take another", text), text
    assert "frame #" not in text


def test_a_port_that_another_run_has(network, tmp_path, small_data):
    host = network.hosts[0]
    others = ["--nnodes=2", "--rdzv-endpoint=hostA:29400", "--rdzv-id=other", "--", "--help"]
    host.python("-m", "lgd.launch", *others, log="other.log")
    netns.wait_until(
        lambda: ":29400 " in netns.run("ip", "netns", "exec", host.namespace, "ss", "-ltn"), PATIENCE, "it"
    )
    process = launch(network, host, recipe(small_data, tmp_path / "run"))
    (code,), (text,) = finish(process)
    assert code == exits.USER_ERROR
    assert "error: --rdzv-endpoint hostA:29400: port 29400 on hostA is in use by another program" in text


def test_workers_save_when_a_machine_joins(network, tmp_path, small_data, uninterrupted):
    """Nothing that was trained is trained again: the last step before is the first after."""
    output = tmp_path / "run"
    changes = {"SOLVER__MAX_ITER": 60, "SOLVER__CHECKPOINT_PERIOD": 50, "LOG_PERIOD": 1}
    arguments = recipe(small_data, output, **changes)
    words = ["--nnodes=1:2", "--rdzv-endpoint=hostA:29400", meeting(LONG["join"]), "--", *arguments]
    first = network.hosts[0].python("-m", "lgd.launch", *words, log="hostA.log")
    train_until(8, output, [first])
    second = network.hosts[1].python("-m", "lgd.launch", *words, log="hostB.log")
    codes, texts = finish(first, second)
    assert codes == [exits.DONE] * 2, texts
    text = "".join(texts)
    (saved,) = re.findall(r"saved step (\d+)", text)
    assert resumed_at(text) == [int(saved)]
    assert 8 <= int(saved) < 50
    assert "another machine joins" in texts[0]
    assert "2 x CPU" in text
    steps = [line["iteration"] for line in read_metrics(output) if "total_loss" in line]
    assert steps == list(range(1, 61))
