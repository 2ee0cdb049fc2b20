"""Every end is an end: soon, with one code, one line last, and nothing left behind."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from lgd import exits
from tests.forked import Forked, ForkedProgram, start_ranks
from tests.training import REPOSITORY, descendants, small_settings, start_program

SECONDS = 15
"""How long a process may be there after what it cannot go on without is gone."""

LONG = {"SOLVER__MAX_ITER": 100_000, "SOLVER__CHECKPOINT_PERIOD": 50_000, "DATALOADER__NUM_WORKERS": 2}


def settings_of(data, output, **changes):
    return small_settings(data, output, **{**LONG, **changes})


def segments():
    return {path.name for path in Path("/dev/shm").iterdir()}


def wait_until_removed(names, seconds=100):
    """Wait until there are no segments of these names: those of other tests beside this one go too."""
    deadline = time.monotonic() + seconds
    while names & segments():
        assert time.monotonic() < deadline, names & segments()
        time.sleep(0.05)


def wait_for_step(run, output, step=4):
    """Wait until the run has done some steps."""
    metrics = output / "metrics.jsonl"
    run.wait_for(metrics, f'"iteration": {step}')
    assert metrics.exists(), run.log.read_text()


def wait_until_trained(output, step=4):
    """Wait until a program of its own has done some steps."""
    metrics, deadline = output / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and f'"iteration": {step}' in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def command_of(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def scorer_of(process):
    return next((child for child in descendants(process) if "serve()" in command_of(child)), None)


def workers_of(process):
    """The data workers of a rank: forked from it, so that they bear its command line."""
    return [child for child in descendants(process) if command_of(child) == command_of(process)]


def wait_until_gone(run, processes):
    """The exit code of a run that shall be gone in time, with all of the processes that were its."""
    code = run.wait(SECONDS)
    deadline = time.monotonic() + 2
    while (left := [p for p in processes if Path(f"/proc/{p}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, [command_of(process) for process in left]
    return code


def assert_one_line(log, *words, prefix="error"):
    """The terminal has no traceback, and its last line says it all."""
    text = log.read_text()
    assert "Traceback" not in text, text
    last = text.strip().splitlines()[-1]
    assert last.startswith(prefix), text
    for word in words:
        assert word in last, last


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS], ids=lambda n: n.name)
def test_a_killed_data_worker(small_data, tmp_path, number):
    before = segments()
    run = Forked(settings_of(small_data, tmp_path / "run"), log=tmp_path / "log")
    wait_for_step(run, tmp_path / "run")
    processes = descendants(run.process.pid)
    workers = workers_of(run.process.pid)
    assert len(workers) == 2
    os.kill(workers[0], number)
    assert wait_until_gone(run, processes) == exits.FAULT
    assert_one_line(run.log, f"a data worker (pid {workers[0]}) was killed by {number.name}")
    wait_until_removed(segments() - before)
    (*_, end) = map(json.loads, (tmp_path / "run/history.jsonl").read_text().splitlines())
    assert end["outcome"] == "failed"


def fail_in_the_worker(error):
    import lgd.data.samples as samples

    trainer, read = os.getpid(), samples.read_picture

    def read_picture(path, *more):
        if os.getpid() != trainer and int(path.stem.strip("0") or 0) % 5 == 3:
            raise error
        return read(path, *more)

    samples.read_picture = read_picture


class UnsendableError(Exception):
    """An error that no pickle can hold."""

    def __init__(self, *things):
        super().__init__(*things)
        self.thing = lambda: None


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "MemoryError; lower DATALOADER.NUM_WORKERS"),
        (KeyError("a\nb"), "KeyError"),
        (UnsendableError("odd"), "UnsendableError: odd"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_in_a_data_worker(small_data, tmp_path, error, says):
    run = Forked(
        settings_of(small_data, tmp_path / "run"),
        log=tmp_path / "log",
        before=partial(fail_in_the_worker, error) if type(error) is not UnsendableError else fail_unsendably,
    )
    assert run.wait() == exits.FAULT
    assert_one_line(run.log, "a data worker (pid ", says)
    assert "read_picture" in (tmp_path / "run/log.txt").read_text()


def fail_unsendably():
    fail_in_the_worker(UnsendableError("odd"))


CUT_OFF = """
import os, socket, sys, threading, time
from multiprocessing import resource_sharer
from lgd.data.workers import say_unless_gone
sys.excepthook = say_unless_gone
address, _ = resource_sharer.DupFd(os.dup(0))._id
with socket.socket(socket.AF_UNIX) as trainer:  # which is gone before it has said what it wants
    trainer.connect(address)
time.sleep(0.5)
raise SystemExit("still here" if all(thread.is_alive() for thread in threading.enumerate()) else "gone")
"""


def test_a_worker_says_nothing_of_a_trainer_that_is_gone():
    """Its thread that hands memory on meets the end of Ctrl-C at any moment."""
    run = start_program([sys.executable, "-c", CUT_OFF])
    text, _ = run.communicate(timeout=60)
    assert text.strip() == "still here"


def test_a_killed_scorer(small_data, tmp_path):
    settings = settings_of(small_data, tmp_path / "run", TEST__EVAL_PERIOD=2)
    run = Forked(settings, log=tmp_path / "log")
    deadline = time.monotonic() + 60
    while (scorer := scorer_of(run.process.pid)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    processes = descendants(run.process.pid)
    os.kill(scorer, signal.SIGKILL)
    assert wait_until_gone(run, processes) == exits.FAULT
    assert_one_line(run.log, f"(pid {scorer}) was killed by SIGKILL")


def test_a_folder_that_goes_away(small_data, tmp_path):
    """Removed, and renamed: nothing is made anew in its place."""
    for number, take_away in enumerate((shutil.rmtree, lambda path: path.rename(tmp_path / "elsewhere"))):
        output = tmp_path / f"run{number}"
        run = Forked(settings_of(small_data, output), log=tmp_path / f"log{number}")
        wait_for_step(run, output)
        processes = descendants(run.process.pid)
        take_away(output)
        assert wait_until_gone(run, processes) == exits.FAULT
        assert_one_line(run.log, f"OUTPUT_DIR {output}")
        assert not output.exists()


@pytest.mark.parametrize(
    "flags",
    [pytest.param((), id="alone"), pytest.param(("--num-gpus", "2"), id="launched", marks=pytest.mark.slow)],
)
def test_nobody_reads_the_output(small_data, tmp_path, flags):
    output = tmp_path / "run"
    arguments = [sys.executable, "-m", "lgd.train", "--config-file", str(REPOSITORY / "configs/demo.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.Popen(
        [*arguments, *flags, *settings_of(small_data, output)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=(tmp_path / "err").open("w"),
    )
    run.stdout.readline()
    run.stdout.close()
    deadline = time.monotonic() + 100
    while not (output / "metrics.jsonl").exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert run.wait(SECONDS) == exits.FAULT
    assert_one_line(tmp_path / "err", "nobody reads the output of this run any more")


@pytest.mark.parametrize("command", ["recipes", "--help"])
def test_a_command_whose_output_nobody_reads(command):
    program = "import sys; from lgd.cli import main; sys.exit(main())"
    run = subprocess.Popen(
        [sys.executable, "-c", program, command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    run.stdout.close()
    assert "Traceback" not in run.stderr.read()
    run.wait(SECONDS)


def test_a_fault_of_our_own(small_data, tmp_path):
    """What nobody foresaw: its traceback is in log.txt, the terminal has the line."""
    run = Forked(settings_of(small_data, tmp_path / "run"), log=tmp_path / "log", before=break_the_loop)
    assert run.wait() == exits.FAULT
    log = tmp_path / "run/log.txt"
    assert_one_line(run.log, "ZeroDivisionError: by design", f"traceback in {log}")
    assert "Traceback" in log.read_text()


def break_the_loop():
    import lgd.engine.loop as loop

    def clip(*_, **__):
        raise ZeroDivisionError("by design")

    loop.clip_gradients = clip


def stand_at_step_four(rank):
    """Let one rank of a run stand in the middle of a step."""
    import lgd.engine.loop as loop

    clip, calls = loop.clip_gradients, [0]

    def clip_gradients(*arguments, **keywords):
        calls[0] += 1
        if calls[0] == 8 and os.environ.get("RANK", "0") == rank:  # twice a step: student and teacher
            time.sleep(1000)
        return clip(*arguments, **keywords)

    loop.clip_gradients = clip_gradients


def test_a_run_that_stands(small_data, tmp_path):
    settings = settings_of(small_data, tmp_path / "run", TRAIN__STALL_TIMEOUT=4)
    run = Forked(settings, log=tmp_path / "log", before=partial(stand_at_step_four, "0"))
    assert run.wait(90) == exits.FAULT
    assert_one_line(run.log, "no step for 4 s (TRAIN.STALL_TIMEOUT)")
    assert "clip_gradients" in (tmp_path / "run/log.txt").read_text()


@pytest.mark.parametrize("rank", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_the_rank_that_stands_is_named(small_data, tmp_path, rank):
    settings = settings_of(small_data, tmp_path / "run", TRAIN__STALL_TIMEOUT=4)
    ranks = start_ranks(settings, folder=tmp_path, before=partial(stand_at_step_four, rank))
    assert [each.wait(120) for each in ranks] == [exits.FAULT] * 2
    text = "".join(each.log.read_text() for each in ranks)
    assert "Traceback" not in text
    assert f"rank {rank} on " in text.split("no step for 4 s")[1], text
    stacks = (tmp_path / "run/log.txt").read_text()
    assert all(f"rank {number} on" in stacks for number in (0, 1))


def test_a_run_that_gets_on_is_left_alone(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path / "run", TRAIN__STALL_TIMEOUT=1, TEST__EVAL_PERIOD=4)
    assert Forked(settings, log=tmp_path / "log").wait() == exits.DONE


@pytest.mark.parametrize("detector", ["faster_rcnn", "dcn"])
def test_a_diverged_training_ends_in_a_line(small_data, tmp_path, detector):
    """These operators of torchvision end the process on a CPU where coordinates are no numbers."""
    changes = {"SOLVER__BASE_LR": 1e30, "SOLVER__WARMUP_ITERS": 0, "SOLVER__MAX_ITER": 30}
    if detector == "dcn":
        changes |= {"MODEL__RESNETS__DEPTH": 50}  # only bottlenecks have such convolutions
        changes |= {"MODEL__RESNETS__DEFORM_ON_PER_STAGE": "[False, True, True, True]"}
        config = "configs/demo.yaml"
    else:
        config = "configs/examples/mask_rcnn_small.yaml"
        changes |= {"MODEL__MASK_ON": False}
    settings = small_settings(small_data, tmp_path / "run", **changes)
    arguments = ["--config-file", str(REPOSITORY / config), *settings]
    run = ForkedProgram("lgd.train", arguments, log=tmp_path / "log")
    assert run.wait() == exits.USER_ERROR, run.log.read_text()
    assert_one_line(run.log, prefix="error: non-finite loss at step ")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--num-gpus", "2")], ids=["alone", "launched"])
def test_thirty_moments_of_ctrl_c(small_data, tmp_path, flags):
    """From the first import on, before which Python itself is not ours, into the training."""
    chance, duration = random.Random(len(flags)), 0.0
    for moment in range(15):
        output = tmp_path / f"run{moment}"
        program = [sys.executable, "-m", "lgd.train", "--config-file", str(REPOSITORY / "configs/demo.yaml")]
        run = start_program([*program, *flags, *settings_of(small_data, output)], start_new_session=True)
        if moment == 0:
            began = time.monotonic()
            wait_until_trained(output)
            duration = time.monotonic() - began
        else:
            time.sleep(chance.uniform(0.3, 1.2 * duration))
        processes = descendants(run.pid)
        os.killpg(run.pid, signal.SIGINT)
        text, _ = run.communicate(timeout=SECONDS)
        assert run.returncode == exits.CTRL_C, text
        assert "Traceback" not in text, text
        assert not [each for each in processes if "lgd" in command_of(each)]


@pytest.mark.slow
def test_a_full_shared_memory(small_data, tmp_path):
    """Of 1 MB, in a mount namespace of its own."""
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    program = [sys.executable, "-m", "lgd.train", "--config-file", str(REPOSITORY / "configs/demo.yaml")]
    sizes = {"INPUT__MIN_SIZE_TRAIN": "[480]", "INPUT__MAX_SIZE_TRAIN": 640}
    for flags in ((), ("--num-gpus", "2")):
        output = tmp_path / f"run{len(flags)}"
        run = start_program([*prefix, *program, *flags, *settings_of(small_data, output, **sizes)])
        text, _ = run.communicate(timeout=300)  # of a training without end
        assert run.returncode == exits.FAULT, text
        assert "Traceback" not in text, text
        assert "/dev/shm (1 MiB" in text.strip().splitlines()[-1], text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["alone", "launched", "torchrun"])
def test_a_lost_worker_under_every_launcher(small_data, tmp_path, how):
    """A data worker and the scorer, again and again."""
    start = {
        "alone": ["-m", "lgd.train"],
        "launched": ["-m", "lgd.train", "--num-gpus", "2"],
        "torchrun": [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
            "lgd.train",
        ],
    }[how]
    before = segments()
    for repetition in range(3):
        output = tmp_path / f"run{repetition}"
        settings = settings_of(small_data, output, TEST__EVAL_PERIOD=6)
        arguments = ["--config-file", str(REPOSITORY / "configs/demo.yaml"), *settings]
        run = start_program([sys.executable, *start, *arguments])
        wait_until_trained(output)
        processes = descendants(run.pid)
        ranks = [each for each in [run.pid, *processes] if workers_of(each)]
        victims = [workers_of(ranks[-1])[0]]
        if repetition % 2:
            deadline = time.monotonic() + 120
            while (scorer := next(filter(None, map(scorer_of, ranks)), None)) is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            victims = [scorer]
        os.kill(victims[0], signal.SIGKILL)
        text, _ = run.communicate(timeout=SECONDS + (35 if how == "torchrun" else 0))
        assert run.returncode == exits.FAULT, text
        assert f"(pid {victims[0]}) was killed by SIGKILL" in text, text
        if how != "torchrun":  # whose own report is a table with what the ranks said
            assert "Traceback" not in text, text
            assert "was killed by SIGKILL" in text.strip().splitlines()[-1], text
        assert not [each for each in processes if Path(f"/proc/{each}").exists()]
    wait_until_removed(segments() - before)


@pytest.mark.parametrize(
    ("set_by_user", "count"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_of_a_program_soon_sleep_when_they_wait(set_by_user, count):
    """Which the library of threads reads when torch is imported."""
    program = (
        "import os, sys, lgd.cli, lgd.train\n"
        "from lgd.ending import as_program\n"
        "assert 'torch' not in sys.modules\n"
        "as_program(lambda: print(os.environ.get('GOMP_SPINCOUNT')) or 0)\n"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environment, **set_by_user}, text=True, capture_output=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, count), done.stderr


@pytest.mark.parametrize(
    ("set_by_user", "keeps"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)]
)
def test_a_program_keeps_memory_that_it_freed(set_by_user, keeps):
    """Counted are the pages that the system gives for a block that is freed and taken again and again."""
    program = (
        "import resource\n"
        "from lgd.ending import as_program\n"
        "def pages(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def take(): bytearray(b'x') * 2**24\n"
        "def main():\n"
        "    take(); begin = pages()\n"
        "    for _ in range(10): take()\n"
        "    print(pages() - begin)\n"
        "    return 0\n"
        "as_program(main)\n"
    )
    names = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environment, **set_by_user}, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout) < 2**24 // os.sysconf("SC_PAGESIZE")) is keeps
