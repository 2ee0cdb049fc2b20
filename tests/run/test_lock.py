"""Who has OUTPUT_DIR: refused while the holder lives, taken at once when it is dead, never two at a time."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lgd.ranks.interruption import Interrupted
from lgd.run import lock
from lgd.run.holder import Holder
from lgd.run.lock import FolderError, FolderLostError, Hold

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Beats and waits a hundredth as long."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.4)
    monkeypatch.setattr(lock, "_UNREADABLE_SECONDS", 0.1)
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.01)


@contextlib.contextmanager
def held(root, agents=()):
    hold = Hold(root, agents)
    hold.take()
    try:
        yield hold
    finally:
        hold.release()


def refuses(root):
    """What a second run is told."""
    with pytest.raises(FolderError) as error:
        Hold(root).take()
    return str(error.value)


def takes_at_once(root, agents=()):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "WATCH_SECONDS", 60)  # what is no moment even on a busy machine
        began = time.monotonic()
        with held(root, agents):
            assert time.monotonic() - began < 30
            assert (root / "run.lock").exists()


@contextlib.contextmanager
def holder_process(root):
    """A process that holds the folder until it is killed."""
    ready = FORK.Event()

    def hold_on():
        hold = Hold(root)
        hold.take()
        hold.step = 7
        time.sleep(0.12)
        ready.set()
        time.sleep(600)

    process = FORK.Process(target=hold_on)
    process.start()
    assert ready.wait(20)
    try:
        yield process
    finally:
        process.kill()
        process.join()


def write_lock(root, **changes):
    """Write the file as another process would have, with changes to what it says."""
    holder = Holder.current(())
    process = dataclasses.replace(holder.process, **changes.pop("process", {}))
    content = dataclasses.replace(holder, process=process, **changes).content(0)
    (root / "run.lock").write_bytes(content)


ELSEWHERE = {"boot": "another-start", "host": "hostB", "pid": 1}


def test_a_second_run_is_told_who_has_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1234")
    with holder_process(tmp_path) as process:
        text = refuses(tmp_path)
        holder = f"process {process.pid} on {os.uname().nodename}, job slurm 1234"
        expected = f"{tmp_path} is in use by another run: {holder}"
        assert text.startswith(expected)
        assert ", last at step 7. Wait for its end, or end it, or choose another OUTPUT_DIR" in text
        assert time.strftime(", since %Y-%m-%d ") in text
        os.kill(process.pid, signal.SIGSTOP)
        assert "in use by another run" in refuses(tmp_path)
        assert (tmp_path / "run.lock").exists()


def test_a_killed_holder_does_not_block(tmp_path):
    with holder_process(tmp_path) as process:
        os.kill(process.pid, signal.SIGKILL)
        while "Z" not in (status := open(f"/proc/{process.pid}/stat").read()):  # noqa: PTH123, SIM115
            assert status
        takes_at_once(tmp_path)  # though its parent has not asked how it ended
    with holder_process(tmp_path) as process:
        process.kill()
        process.join()
        takes_at_once(tmp_path)


def test_a_number_that_another_process_has_by_now_is_none(tmp_path):
    write_lock(tmp_path, process={"began": 1})
    takes_at_once(tmp_path)


def test_a_holder_elsewhere_lives_as_long_as_it_counts(tmp_path, monkeypatch):
    real = Holder.current

    def elsewhere(agents):
        holder = real(agents)
        return dataclasses.replace(holder, process=dataclasses.replace(holder.process, **ELSEWHERE))

    with monkeypatch.context() as patch:
        patch.setattr(Holder, "current", elsewhere)
        theirs = Hold(tmp_path)
    theirs.take()
    assert "process 1 on hostB" in refuses(tmp_path)
    theirs._end.set()  # it dies, without a word
    theirs._thread.join()
    began = time.monotonic()
    with held(tmp_path) as ours:
        assert 0.4 <= time.monotonic() - began < 1.0
        ours.require()
        theirs._check()  # it was only asleep
        with pytest.raises(FolderError, match=r"was taken over by process \d+ on"):
            theirs.require()
        theirs.release()
        ours._check()
        ours.require()


def test_what_ended_the_holder_need_not_be_watched(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    write_lock(tmp_path, process=ELSEWHERE, job="slurm 5", restarts=0)
    takes_at_once(tmp_path)  # queued again
    for other in (
        {"job": "slurm 5", "restarts": 1},
        {"job": "slurm 6", "restarts": 0},
        {"job": None, "restarts": 0},
    ):
        write_lock(tmp_path, process=ELSEWHERE, **other)
        began = time.monotonic()
        with held(tmp_path):
            assert time.monotonic() - began >= 0.4
    write_lock(tmp_path, agents=("hostA:7:9", "hostB:8:9"))
    takes_at_once(tmp_path, {"hostB:8:9": 2, "hostC:1:1": 0})
    write_lock(tmp_path, agents=("hostA:7:9",))
    assert "in use" in refuses(tmp_path)  # this process lives


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b"null", b"[" * 100_000, b'{"token": 7}'])
def test_a_file_that_says_nothing_is_not_believed_for_long(tmp_path, content):
    (tmp_path / "run.lock").write_bytes(content)
    began = time.monotonic()
    with held(tmp_path):
        assert 0.1 <= time.monotonic() - began < 0.5


def test_a_file_that_is_just_being_written_is_believed(tmp_path):
    (tmp_path / "run.lock").write_bytes(b"")
    threading.Timer(0.03, write_lock, [tmp_path]).start()
    assert "in use by another run: process" in refuses(tmp_path)


def test_of_two_that_find_a_dead_taker_the_second_leaves_the_firsts_guard(tmp_path):
    """Which it takes for the dead one's, as it looked before the first removed that."""
    write_lock(tmp_path, process={"began": 1})
    dead = (tmp_path / "run.lock").read_bytes()
    guard = lock._guard(tmp_path / "run.lock", dead)
    guard.write_bytes(dead)
    first, second = Hold(tmp_path), Hold(tmp_path)
    first._remove_dead(guard, dead)
    assert not guard.exists()
    os.close(first._write_new(guard))
    second._remove_dead(guard, dead)
    assert first._is_mine(guard.read_bytes())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["run.lock", guard.name])


def test_who_died_over_a_dead_takers_guard_is_done_too(tmp_path):
    write_lock(tmp_path, process={"began": 1})
    dead = (tmp_path / "run.lock").read_bytes()
    guard = lock._guard(tmp_path / "run.lock", dead)
    for path in (guard, lock._guard(guard, dead)):
        path.write_bytes(dead)
    with held(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]


def take_or_not(root, barrier, results):
    hold = Hold(root)
    barrier.wait()
    try:
        hold.take()
        results.put(("took", hold.token))
        time.sleep(0.3)
        hold.require()
        barrier.wait()
        hold.release()
    except FolderError:
        results.put(("refused", hold.token))
        barrier.wait()


@pytest.mark.parametrize("before", ["nothing", "a dead holder", "a dead holder elsewhere", "a dead taker"])
@pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_of_those_that_start_at_once_exactly_one_wins(tmp_path, before, times):
    for number in range(times):
        root = tmp_path / str(number)
        root.mkdir()
        if before != "nothing":
            write_lock(root, process=ELSEWHERE if "elsewhere" in before else {"began": 1})
        if before == "a dead taker":
            guard = lock._guard(root / "run.lock", (root / "run.lock").read_bytes())
            guard.write_bytes((root / "run.lock").read_bytes())
        barrier, results = FORK.Barrier(6), FORK.Queue()
        processes = [FORK.Process(target=take_or_not, args=(root, barrier, results)) for _ in range(6)]
        for process in processes:
            process.start()
        answers = [results.get(timeout=30) for _ in processes]
        assert sorted(answer for answer, _ in answers) == ["refused"] * 5 + ["took"]
        for process in processes:
            process.join(30)
        assert [process.exitcode for process in processes] == [0] * 6
        assert not list(root.iterdir())


def test_only_an_own_file_is_removed(tmp_path):
    with held(tmp_path):
        write_lock(tmp_path)
        assert Holder.read((tmp_path / "run.lock").read_bytes())
    assert (tmp_path / "run.lock").exists()


def test_a_file_removed_by_hand_is_made_again(tmp_path):
    with held(tmp_path) as hold:
        (tmp_path / "run.lock").unlink()
        hold._check()
        hold.require()
        assert "in use" in refuses(tmp_path)


def test_a_folder_that_goes_away_is_noticed(tmp_path):
    with held(tmp_path / "run") as hold:
        (tmp_path / "run" / "run.lock").unlink()
        (tmp_path / "run").rmdir()
        hold._check()
        with pytest.raises(FolderLostError, match=r"OUTPUT_DIR .*run is gone"):
            hold.require()


def test_another_folder_of_the_same_name_is_not_it(tmp_path):
    with held(tmp_path / "run") as hold:
        (tmp_path / "run").rename(tmp_path / "away")
        (tmp_path / "run").mkdir()
        hold.require()  # the last beat is not long ago
        with pytest.raises(FolderLostError, match="is gone"):
            hold.require(look=True)
    assert not list((tmp_path / "run").iterdir())


def test_a_link_to_nowhere(tmp_path):
    (tmp_path / "run.lock").symlink_to(tmp_path / "nowhere")
    assert refuses(tmp_path).endswith(f"cannot be used: a link to nowhere: {tmp_path / 'run.lock'}")
    (tmp_path / "run.lock").unlink()
    (tmp_path / "run.lock").mkdir()
    assert "Is a directory" in refuses(tmp_path)


def test_a_process_that_slept_looks_before_it_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 60)
    with held(tmp_path) as hold:
        write_lock(tmp_path)
        hold.require()
        hold._confirmed -= 121
        with pytest.raises(FolderError, match="taken over"):
            hold.require()


def test_an_empty_new_folder_goes_a_used_one_stays(tmp_path):
    with held(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())
    with held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_what_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        text = refuses(place)
        assert text.startswith(f"OUTPUT_DIR {place} cannot be used: ")
        assert "\n" not in text


def test_who_is_asked_to_leave_does_not_go_on_watching(tmp_path):
    write_lock(tmp_path, process=ELSEWHERE)
    with pytest.raises(Interrupted, match="nothing to save"):
        Hold(tmp_path).take(lambda: True)


def test_another_container_is_watched(tmp_path):
    """Numbers of processes count in their namespace: a holder in another one cannot be looked up."""
    write_lock(tmp_path, process={"namespace": 5, "pid": 2**22 - 1})
    began = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - began >= 0.4


def test_the_count_goes_up_and_the_step_is_told(tmp_path):
    with held(tmp_path) as hold:
        seen = set()
        deadline = time.monotonic() + 5
        hold.step = 12345
        while len(seen) < 3 and time.monotonic() < deadline:
            holder = Holder.read((tmp_path / "run.lock").read_bytes())
            if holder and holder.step:
                seen.add(holder.beat)
        assert len(seen) == 3
        assert holder.step == 12345


def test_a_namespace_of_its_own(tmp_path):
    """In a container whose /proc is the host's, numbers prove nothing: nobody is taken for dead by them."""
    probe = subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no namespaces here")
    code = (
        "from lgd.run.place import Process; p = Process.current(); print(p.boot, p.namespace, p.is_running())"
    )
    done = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["0", "None"]


@pytest.mark.parametrize("pid", [0, -1, 2**31, 10**30])
def test_a_holder_that_is_no_process_never_blocks(tmp_path, pid):
    """Numbers below 1 stand for groups of processes, of which this one is a part."""
    content = json.loads(Holder.current([]).content(0))
    content["process"]["pid"] = pid
    (tmp_path / "run.lock").write_text(json.dumps(content))
    takes_at_once(tmp_path)


def test_a_pipe_keeps_nobody_waiting(tmp_path):
    os.mkfifo(tmp_path / "run.lock")
    assert "cannot be used: a pipe or a device, where a file is needed" in refuses(tmp_path)
