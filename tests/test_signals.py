"""A run that is asked to leave, at any moment: saved, exit code 75, and the resumed run ends bit-equal."""

import contextlib
import os
import random
import signal
import subprocess
import time
from functools import partial

import pytest

from lgd import exits
from lgd.engine.checkpoint import check_seal
from tests.forked import Forked, start_ranks
from tests.test_loopback import addresses_listened_on
from tests.test_resume import assert_same_run
from tests.training import descendants, small_settings, start

PERIODS = {"TEST__EVAL_PERIOD": 4, "LOG_PERIOD": 1}


@pytest.fixture(scope="module")
def alone(small_data, tmp_path_factory):
    """A finished run of one process, and how long it took."""
    output = tmp_path_factory.mktemp("alone")
    began = time.monotonic()
    assert Forked(small_settings(small_data, output, **PERIODS), log=output / "out").wait() == 0
    return output, time.monotonic() - began


@pytest.fixture(scope="module")
def together(small_data, tmp_path_factory):
    """A finished run of two ranks, and how long it took."""
    output = tmp_path_factory.mktemp("together")
    began = time.monotonic()
    ranks = start_ranks(small_settings(small_data, output, **PERIODS), folder=output)
    assert [rank.wait() for rank in ranks] == [0, 0]
    return output, time.monotonic() - began


def assert_checkpoints_whole(output):
    for path in (output / "checkpoints").glob("step_*.pth"):
        assert check_seal(path) is None
    assert not list(output.rglob("*.tmp"))


def interrupt_and_resume(small_data, output, chance, duration, start_all):
    """Signal at a random moment, resume, and so on until the run is done; return the number of signals."""
    # The signals come faster than any scheduler's: many lives may come to nothing.
    settings = small_settings(small_data, output, TRAIN__MAX_STARTS_WITHOUT_PROGRESS=0, **PERIODS)
    output.mkdir(exist_ok=True)
    for life in range(50):
        ranks = start_all(settings, *(["--resume"] if life else []), folder=output)
        # Other tests may slow the machine down meanwhile: lives become longer, so that one comes to the end.
        ranks[0].wait_a_while(chance.uniform(0, (1.1 + life / 10) * duration))
        number = chance.choice([signal.SIGTERM, signal.SIGUSR2])
        whom = chance.choice([ranks[:1], ranks[-1:], ranks])
        for rank in whom:
            rank.signal(number)
        codes = {rank.wait() for rank in ranks}
        text = "\n".join(rank.log.read_text() for rank in ranks)
        assert codes in ({exits.DONE}, {exits.RUN_AGAIN}), f"{codes}\n{text}"
        assert_checkpoints_whole(output)
        if codes == {exits.DONE}:
            return life + 1
    raise AssertionError("the run never ended")


def start_alone(settings, *flags, folder):
    return [Forked(settings, *flags, log=folder / "out")]


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
def test_signal_at_some_moments(small_data, tmp_path, alone, trial):
    output, duration = alone
    interrupt_and_resume(small_data, tmp_path / "out", random.Random(trial), duration, start_alone)
    assert_same_run(output, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(2))
def test_signal_to_two_ranks_at_some_moments(small_data, tmp_path, together, trial):
    output, duration = together
    interrupt_and_resume(small_data, tmp_path / "out", random.Random(trial), duration, start_ranks)
    assert_same_run(output, tmp_path / "out")


@pytest.mark.slow
def test_signal_at_a_hundred_moments(small_data, tmp_path, alone):
    output, duration = alone
    count, chance, run = 0, random.Random(100), 0
    while count < 100:
        run += 1
        # Short lives: several signals to a run.
        count += interrupt_and_resume(small_data, tmp_path / str(run), chance, 0.6 * duration, start_alone)
        assert_same_run(output, tmp_path / str(run))


@pytest.mark.slow
def test_signal_to_two_ranks_at_thirty_moments(small_data, tmp_path, together):
    output, duration = together
    count, chance, run = 0, random.Random(30), 0
    while count < 30:
        run += 1
        count += interrupt_and_resume(small_data, tmp_path / str(run), chance, 0.6 * duration, start_ranks)
        assert_same_run(output, tmp_path / str(run))


def test_signal_while_the_program_imports(small_data, tmp_path):
    """A real program, signalled as soon as it runs Python code of its own."""
    process = start(
        small_settings(small_data, tmp_path),
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]),
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == exits.RUN_AGAIN, output
    assert "asked to leave before the data was read: nothing to save; exit code 75" in output
    assert not list(tmp_path.iterdir())


def test_second_signal_and_data_workers(small_data, tmp_path, alone):
    settings = small_settings(small_data, tmp_path, DATALOADER__NUM_WORKERS=2, **PERIODS)
    run = Forked(settings, log=tmp_path / "out")
    run.wait_for(tmp_path / "metrics.jsonl", '"iteration": 2')
    workers = subprocess.run(
        ["pgrep", "-P", str(run.process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    assert len(workers) >= 2
    for process in [*workers, run.process.pid]:
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), number)
    assert run.wait() == exits.RUN_AGAIN, run.log.read_text()
    assert Forked(settings, "--resume", log=tmp_path / "out").wait() == 0
    assert_same_run(alone[0], tmp_path)


def evaluate_for_a_minute(folder):
    """Let every evaluation of this process see its first batch over and over again."""
    from lgd.run import measuring

    make_loader = measuring.build_test_loader

    def repeat_first(*arguments, **keywords):
        batch = next(iter(make_loader(*arguments, **keywords)))
        (folder / f"evaluating{os.environ['RANK']}").write_text("yes")
        for _ in range(1200):
            time.sleep(0.05)
            yield batch

    measuring.build_test_loader = repeat_first


@pytest.mark.parametrize(
    "signalled",
    [pytest.param([0], marks=pytest.mark.slow), [1], pytest.param([0, 1], marks=pytest.mark.slow)],
    ids=str,
)
def test_evaluation_is_abandoned_and_made_up_for(small_data, tmp_path, together, signalled):
    """The evaluation at step 4 is made to last until the signal."""
    settings = small_settings(small_data, tmp_path, **PERIODS)
    ranks = start_ranks(settings, folder=tmp_path, before=partial(evaluate_for_a_minute, tmp_path))
    for number, rank in enumerate(ranks):
        rank.wait_for(tmp_path / f"evaluating{number}", "yes")
    for rank in signalled:
        ranks[rank].signal(signal.SIGUSR2)
    assert [rank.wait() for rank in ranks] == [exits.RUN_AGAIN] * 2, ranks[0].log.read_text()
    assert "asked to leave: saved step 4 of 12" in ranks[0].log.read_text()
    assert '"eval"' not in (tmp_path / "metrics.jsonl").read_text()
    ranks = start_ranks(settings, "--resume", folder=tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert_same_run(together[0], tmp_path)


def test_signal_after_the_run_changes_nothing(small_data, tmp_path):
    """From the last checkpoint on the run ends as it would have."""
    run = Forked(small_settings(small_data, tmp_path, SOLVER__MAX_ITER=2), log=tmp_path / "out")
    run.wait_for(tmp_path / "checkpoints" / "step_0000002.json", "sha256")
    for _ in range(50):
        run.signal(signal.SIGTERM)
        time.sleep(0.002)
    assert run.wait() == exits.DONE, run.log.read_text()


def test_evaluation_only_leaves_with_75(small_data, tmp_path, alone):
    settings = small_settings(small_data, tmp_path, MODEL__WEIGHTS=alone[0] / "model_final.pth")
    run = Forked(settings, "--eval-only", log=tmp_path / "out")
    run.signal(signal.SIGTERM)
    assert run.wait() == exits.RUN_AGAIN
    assert not (tmp_path / "results.json").exists()


def test_the_launcher_passes_signals_and_code_on(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path, SOLVER__MAX_ITER=1000)
    run = Forked(settings, "--num-gpus", "2", log=tmp_path / "out")
    run.wait_for(tmp_path / "metrics.jsonl", '"iteration": 2')
    seen = set(addresses_listened_on([run.process.pid, *descendants(run.process.pid)]))
    run.signal(signal.SIGUSR2)
    assert run.wait() == exits.RUN_AGAIN, run.log.read_text()
    assert "asked to leave: saved step" in run.log.read_text()
    assert_checkpoints_whole(tmp_path)
    assert seen, "ranks that meet"
    assert all(address.is_loopback for address in seen), seen
