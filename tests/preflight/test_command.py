"""The command on one process and on two, and its report."""

import json
import socket

import pytest

from lgd import cli, exits
from lgd.preflight import report
from lgd.preflight.calls import Call, Listener, call
from lgd.preflight.collectives import AllReduce, Link, Measurement
from lgd.preflight.command import FINDINGS, main
from lgd.preflight.findings import Finding
from lgd.preflight.meeting import MeetingError, open_meeting
from lgd.preflight.place import Place
from lgd.preflight.storage import Dataset, Storage, sees, try_output
from lgd.ranks.store import find_free_port
from tests.forked import ForkedProgram
from tests.preflight.cards import make_card, make_cards
from tests.training import REPOSITORY, small_settings


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


def test_alone_with_a_recipe(small_data, tmp_path, capsys):
    settings = small_settings(small_data, tmp_path / "not" / "yet")
    config = ["--config-file", str(REPOSITORY / "configs/demo.yaml")]
    assert main([*config, "--json", str(tmp_path / "report.json"), *settings]) == exits.DONE
    text = capsys.readouterr().out
    assert "1 of 1 rank on 1 host, started by nothing" in text
    assert f"coco:{small_data}:train" in text
    assert text.rstrip().endswith("all well")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["findings"] == []
    dataset = found["storages"][0]["datasets"][f"coco:{small_data}:val"]
    assert dataset["num_images"] == 5
    assert found["storages"][0]["output"] == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]  # nothing else is left


def test_alone_with_findings(small_data, tmp_path, capsys):
    settings = small_settings(small_data, tmp_path, DATASETS__TEST=f"('coco:{small_data}:lost',)")
    assert main(["--config-file", str(REPOSITORY / "configs/demo.yaml"), *settings]) == FINDINGS
    text = capsys.readouterr().out
    assert "1 finding:" in text
    assert f"cannot read data set coco:{small_data}:lost" in text


def test_a_file_that_cannot_be_written_is_known_at_once(capsys):
    assert main(["--json", "/proc/report.json"]) == exits.USER_ERROR
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: --json /proc/report.json: No such file or directory\n"


def test_without_a_recipe(capsys):
    assert cli.main(["preflight"]) == exits.DONE
    assert "data and disks not looked at: no --config-file" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["SEED", "1"], ["--timeout", "0"], ["--slow-factor", "1"], ["--largest", "0"], ["--wrong"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == exits.USER_ERROR
    assert "error:" in capsys.readouterr().err


def test_a_recipe_that_is_not_there(capsys, tmp_path):
    assert main(["--config-file", str(tmp_path / "none.yaml")]) == exits.USER_ERROR
    assert "none.yaml" in capsys.readouterr().err


def test_a_broken_environment(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert main([]) == exits.USER_ERROR
    assert "RANK is 'x'" in capsys.readouterr().err


def environment_of(rank, port):
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def test_two_ranks(tmp_path):
    port = find_free_port()
    arguments = ["--slow-factor", "1000", "--largest", "1", "--json", str(tmp_path / "report.json")]
    ranks = [
        ForkedProgram(
            "lgd.preflight", arguments, log=tmp_path / f"said{rank}", environment=environment_of(rank, port),
            as_module=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    codes = [rank.wait(150) for rank in ranks]
    outputs = [rank.log.read_text() for rank in ranks]
    assert codes == [exits.DONE, exits.DONE], outputs
    assert "2 of 2 ranks on 1 host, started by another launcher" in outputs[0]
    assert "all well" in outputs[0]
    assert "all well" not in outputs[1]
    found = json.loads((tmp_path / "report.json").read_text())
    results = found["measurements"]["1"]["all_reduces"]
    assert [(result["scope"], result["num_bytes"]) for result in results] == [
        ("node", 2**10), ("node", 2**14), ("node", 2**18),
    ]  # fmt: skip


def test_nobody_serves_the_store():
    place = Place(1, 0, 2, 1, 1, "127.0.0.1", find_free_port(), "torchrun")
    with pytest.raises(
        MeetingError, match=r"nobody answers at 127\.0\.0\.1:\d+ .* in 1 s: rank 0 did not start"
    ):
        open_meeting(place, 1.0)


def test_the_port_is_taken():
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        place = Place(0, 0, 2, 1, 0, "127.0.0.1", other.getsockname()[1], "SLURM")
        with pytest.raises(
            MeetingError, match=r"rank 0 cannot listen at .* is in use by another program; take"
        ):
            open_meeting(place, 2.0)


def test_messages_of_those_that_are_there():
    meeting = open_meeting(Place(), 1.0)
    meeting.post("topic", {"a": 1})
    assert meeting.collect("topic", [0, 1], 0.0) == {0: {"a": 1}}
    meeting.announce("plan", "")
    assert meeting.hear("plan", 0.0) == ""
    with pytest.raises(MeetingError, match=r"no word of it \(verdict\) in 0 s"):
        meeting.hear("verdict", 0.0)


def test_calls():
    listener = Listener("127.0.0.1")
    here = make_card(0, address="127.0.0.1", port=listener.port)
    answered = call(make_card(1), here)
    assert answered.error == ""
    assert answered.round_trip > 0
    assert abs(answered.skew) <= answered.round_trip  # one clock: only the way there and back is between
    nobody = make_card(0, address="127.0.0.1", port=find_free_port())
    assert call(make_card(1), nobody).error == "Connection refused"
    assert call(make_card(1), make_card(0, address="")).error == "it has no address"
    listener.shutdown()
    listener.server_close()


def test_the_output_folder(tmp_path, monkeypatch):
    folder, mark, problem = try_output(tmp_path / "a" / "b")
    assert (folder, problem) == (str(tmp_path), "")
    assert sees(mark, 0.0)
    assert not sees(mark + "x", 0.0)

    def fail(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", fail)
    assert try_output(tmp_path) == (str(tmp_path), "", f"{tmp_path} cannot be written to: Permission denied")


def test_report():
    cards = make_cards(4, r3={"interface": "eth1", "address": ""})
    place = Place(0, 0, 4, 2, 0, "node0", 1, "torchrun")
    assert list(report.describe_ranks(place, cards)) == [
        "4 of 4 ranks on 2 hosts, started by torchrun",
        "",
        "ranks  host   device  driver  interface  address      chosen by  versions",
        "0-1    node0  CPU     -       eth0       10.0.0.1/24  host name  torch 2.15.0, gloo",
        "2      node1  CPU     -       eth0       10.0.0.2/24  host name  torch 2.15.0, gloo",
        "3      node1  CPU     -       eth1       -            host name  torch 2.15.0, gloo",
    ]
    calls = [Call(1, 0, 2e-5, 0.0), Call(2, 0, 1.5e-4, -0.25), Call(3, 0, error="no")]
    assert list(report.describe_clocks(calls, cards)) == [
        "clock  against rank 0  round trip",
        "node1       +250.0 ms     0.15 ms",
    ]
    storage = Storage(
        0, {"t": Dataset(3, 4, "a" * 64, "b" * 64)}, shared_free=-1, shared_needed=1024, output="/out",
        output_free=2048, output_needed=1024,
    )  # fmt: skip
    broken = Storage(2, {"t": Dataset(error="gone")}, shared_free=2048)
    assert list(report.describe_storage([storage, broken], cards)) == [
        "data set  host   images  objects   annotations   image files",
        "t         node0       3        4  aaaaaaaaaaaa  bbbbbbbbbbbb",
        "t         node1       -        -             -             -",
        "",
        "disk      host      free   needed",
        "/dev/shm  node0        -  1.0 KiB",
        "/out      node0  2.0 KiB  1.0 KiB",
        "/dev/shm  node1  2.0 KiB      0 B",
    ]
    measurements = {
        0: Measurement("", 1e12, [Link(0, 2, 1e-4, 2**20)], [AllReduce("all", 4, 2**20, 0.5)]),
        2: Measurement("", 2e12, [Link(2, 0, 2e-4, 2**21)], [AllReduce("all", 4, 2**20, 1.0)]),
    }
    assert list(report.describe_speed(measurements, cards, 3 * 2**20)) == [
        "link            latency  bandwidth",
        "node0 -> node1   100 us  1.0 MiB/s",
        "node1 -> node0   200 us  2.0 MiB/s",
        "",
        "all-reduce  ranks     size        time  algorithm        bus",
        "all ranks       4  1.0 MiB  1000.00 ms  1.0 MiB/s  1.5 MiB/s",
        "",
        "matrix products: 1 to 2 TFLOP/s a rank, median 1.5",
        "a step of the recipe all-reduces 3.0 MiB: 3000 ms at this speed",
    ]
    assert list(report.describe_findings([Finding("it is slow", "wait")])) == [
        "1 finding:",
        "  1. it is slow",
        "     -> wait",
    ]


def test_of_many_links_the_slowest_are_shown():
    cards = make_cards(10)
    links = [Link(2 * a, 2 * b, 1e-4, 2.0**20 * (1 + a + b)) for a in range(5) for b in range(5) if a != b]
    lines = list(report.describe_speed({0: Measurement(links=links)}, cards, 0))
    assert lines[0] == "20 links between nodes: 2.0 MiB/s to 8.0 MiB/s, median 5.0 MiB/s; the slowest:"
    assert len(lines) == 1 + 1 + 6 + 1
