"""The launcher: its command line, and what it makes of its workers' ends."""

import signal
import socket
import time

import pytest

from lgd import launch
from lgd.config.values import ConfigError
from lgd.ranks.store import find_free_port
from tests.forked import ForkedProgram


def start(folder, behaviour, *options, log="out", workers=2):
    folder.mkdir(exist_ok=True)
    own = ["--nproc-per-node", str(workers), *options, "-m", "tests.launched_worker"]
    argv = [*own, "--", str(folder), behaviour]
    return ForkedProgram("lgd.launch", argv, log=folder / log, environment={"GLOO_SOCKET_IFNAME": "lo"})


def starts(folder):
    return sorted(path.name for path in folder.glob("rank*"))


def wait_for_files(folder, number):
    deadline = time.monotonic() + 60
    while len(starts(folder)) < number:
        assert time.monotonic() < deadline
        time.sleep(0.02)


ONCE = ["rank0start0", "rank1start0"]
TWICE = ["rank0start0", "rank0start1", "rank1start0", "rank1start1"]


def test_arguments_are_torchruns():
    parsed = launch.parse_arguments(
        [
            "--nnodes", "2:4", "--nproc-per-node", "8", "--rdzv-endpoint", "node1:29400", "--rdzv-id", "job7",
            "--max-restarts", "3", "--rdzv-conf", "join_timeout=60,read_timeout=10", "--local-addr", "node1",
            "--", "--config-file", "f.yaml", "SOLVER.MAX_ITER", "3",
        ]
    )  # fmt: skip
    assert parsed.command == ("-m", "lgd.train", "--config-file", "f.yaml", "SOLVER.MAX_ITER", "3")
    assert (parsed.min_machines, parsed.max_machines, parsed.num_workers) == (2, 4, 8)
    assert (parsed.endpoint, parsed.run_id, parsed.local_address) == ("node1:29400", "job7", "node1")
    assert parsed.max_restarts == 3
    assert parsed.settings["join_timeout"] == "60"
    assert parsed.settings["read_timeout"] == "10"


def test_settings_of_the_backends():
    static = launch.parse_arguments(
        ["--rdzv-backend", "static", "--node-rank", "1", "--rdzv-endpoint", "a:1", "--nnodes", "2", "--"]
    )
    assert static.settings["rank"] == 1
    assert launch.parse_arguments([]).endpoint == "localhost:0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nnodes", "two"], "--nnodes must be a number or MIN:MAX, not 'two'"),
        (["--nnodes", "3:2"], "--nnodes must be a number or MIN:MAX, not '3:2'"),
        (["--nnodes", "2"], "--nnodes 2 needs --rdzv-endpoint HOST:PORT, the same on all machines"),
        (["--nproc-per-node", "0"], "--nproc-per-node must be a number or gpu, not '0'"),
        (["--nproc-per-node", "9" * 50], f"--nproc-per-node must be a number or gpu, not '{'9' * 50}'"),
        (["--rdzv-conf", "timeout"], "--rdzv-conf must be KEY=VALUE,..., not 'timeout'"),
        (["--rdzv-conf", "timeout=x"], "--rdzv-conf timeout must be a whole number above 0, not 'x'"),
        (["--rdzv-conf", "is_host=x"], "--rdzv-conf is_host must be true or false, not 'x'"),
        (
            ["--nnodes", "2", "--rdzv-endpoint", "a:b"],
            "--rdzv-endpoint must be HOST:PORT, not 'a:b'",
        ),
        (["--nnodes", "2", "--rdzv-endpoint", ":1"], "--rdzv-endpoint must be HOST:PORT, not ':1'"),
        (["--node-rank", "1"], "--node-rank 1 is not in [0, 0] (--nnodes 1)"),
        (["--max-restarts", "-1"], "--max-restarts must be 0 or more, not -1"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ConfigError) as error:
        launch.parse_arguments(options)
    assert str(error.value) == message


@pytest.mark.parametrize("url", ["auto", "tcp://a", "tcp://a:99999", "tcp://a:b", "http://a:1", "tcp://[a:1"])
def test_wrong_urls(url):
    with pytest.raises(ConfigError, match="--dist-url must be tcp://HOST:PORT of machine 0, not "):
        launch._meeting_point(2, 0, url)


@pytest.mark.parametrize(
    ("text", "endpoint"), [("a", "a:29400"), ("a:1", "a:1"), ("[::1]:29400", "::1:29400")]
)
def test_endpoints(text, endpoint):
    assert launch.parse_arguments(["--nnodes", "2", "--rdzv-endpoint", text]).endpoint == endpoint


def test_wrong_options_end_with_2(capsys):
    assert launch.main(["--nnodes", "x"]) == 2
    assert capsys.readouterr().err == "error: --nnodes must be a number or MIN:MAX, not 'x'\n"


@pytest.mark.parametrize(
    ("behaviour", "code", "expected"),
    [("0", 0, ONCE), ("75", 75, ONCE), ("2", 2, ONCE), ("3", 3, TWICE), ("lose_one", 0, TWICE)],
)
def test_codes_of_workers_and_restarts(tmp_path, behaviour, code, expected):
    program = start(tmp_path, behaviour, "--max-restarts", "1")
    assert program.wait() == code, program.log.read_text()
    assert starts(tmp_path) == expected
    assert (tmp_path / "rank0start0").read_text() == "1 1 lo"
    text = program.log.read_text()
    host = socket.gethostname()
    if behaviour == "3":
        assert f"on {host}) ended with code 3" in text
    if behaviour == "lose_one":
        assert f"on {host}) was killed by SIGKILL" in text
        assert "starting again from the newest checkpoint, if there is one; restarts left: 1" in text


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_signals_are_passed_on_to_the_workers(tmp_path, number):
    program = start(tmp_path, "wait", "--max-restarts", "1")
    wait_for_files(tmp_path, 2)
    program.signal(number)
    program.signal(number)
    assert program.wait() == 75, program.log.read_text()
    assert starts(tmp_path) == ONCE


def test_a_signal_while_waiting_for_other_machines(tmp_path):
    endpoint = f"127.0.0.1:{find_free_port()}"
    program = start(tmp_path, "wait", "--nnodes", "2", "--rdzv-endpoint", endpoint)
    time.sleep(1.0)
    program.signal(signal.SIGTERM)
    assert program.wait() == 75, program.log.read_text()
    assert starts(tmp_path) == []


def test_machines_that_do_not_come(tmp_path):
    endpoint = f"127.0.0.1:{find_free_port()}"
    program = start(
        tmp_path, "wait", "--nnodes", "2", "--rdzv-endpoint", endpoint, "--rdzv-conf", "join_timeout=2"
    )
    assert program.wait() == 1
    assert f"{socket.gethostname()} cannot meet the other machines at {endpoint}" in program.log.read_text()


def test_two_machines_leave_with_75_though_one_is_later(tmp_path):
    options = ("--nnodes", "2", "--rdzv-endpoint", f"127.0.0.1:{find_free_port()}", "--max-restarts", "1")
    programs = [start(tmp_path, "last_lags", *options, log=log, workers=1) for log in ("a", "b")]
    assert [program.wait() for program in programs] == [75, 75]
    assert starts(tmp_path) == ONCE
