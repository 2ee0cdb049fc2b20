"""Runs that go on after a lost worker, with another number of ranks, and under plain torchrun."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.engine.checkpoint import Checkpoint, load_newest
from lgd.run.resume import Share, Starts, adapt_to_ranks
from tests.forked import Forked, start_ranks
from tests.test_resume import assert_same_run
from tests.training import REPOSITORY, descendants, read_metrics, small_settings, start_program

PERIODS = {"SOLVER__MAX_ITER": 12, "LOG_PERIOD": 1}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "-m", "lgd.train")
LAUNCH = ("-m", "lgd.launch", "--")


def start_elastic(launcher, settings, workers=2):
    """Start workers that may be lost twice."""
    options = ["--nproc-per-node", str(workers), "--max-restarts", "2"]
    arguments = ["--config-file", str(REPOSITORY / "configs/demo.yaml"), *settings]
    return start_program([sys.executable, *launcher[:2], *options, *launcher[2:], *arguments])


def workers_when_it_runs(process, output):
    """Wait for the fourth step; return the workers, rank by rank."""
    metrics = output / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"iteration": 4' in metrics.read_text()):
        time.sleep(0.01)
    return [
        pid for pid in descendants(process.pid) if b"lgd.train" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@pytest.fixture(scope="module")
def uninterrupted(small_data, tmp_path_factory):
    return run_uninterrupted(small_data, tmp_path_factory.mktemp("uninterrupted"), 2)


def run_uninterrupted(small_data, output, workers):
    ranks = start_ranks(small_settings(small_data, output, **PERIODS), folder=output, number=workers)
    assert [rank.wait() for rank in ranks] == [0] * workers
    return output


def lose_a_worker(small_data, output, launcher, uninterrupted, number=2):
    process = start_elastic(launcher, small_settings(small_data, output, **PERIODS), number)
    workers = workers_when_it_runs(process, output)
    assert len(workers) >= number
    os.kill(workers[-1], signal.SIGKILL)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 0, text
    assert "resumed from" in text
    assert not list(output.glob("earlier-*"))
    assert_same_run(uninterrupted, output)
    return text


@pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_worker_is_started_again_and_the_run_ends_bit_equal(small_data, tmp_path, number):
    whole, lost = tmp_path / "whole", tmp_path / "lost"
    whole.mkdir()
    text = lose_a_worker(small_data, lost, LAUNCH, run_uninterrupted(small_data, whole, number), number)
    assert f"on {os.uname().nodename}) was killed by SIGKILL" in text
    assert "starting again from the newest checkpoint" in text


@pytest.mark.slow
def test_a_killed_worker_under_plain_torchrun(small_data, tmp_path, uninterrupted):
    lose_a_worker(small_data, tmp_path, TORCHRUN, uninterrupted)


@pytest.mark.slow
def test_an_interrupted_worker_under_plain_torchrun_trains_no_further(small_data, tmp_path, uninterrupted):
    """Torchrun takes 75 for a fault and starts the workers again; they leave at once, until it gives up."""
    settings = small_settings(small_data, tmp_path, **PERIODS)
    process = start_elastic(TORCHRUN, settings)
    os.kill(workers_when_it_runs(process, tmp_path)[1], signal.SIGTERM)
    text, _ = process.communicate(timeout=200)
    assert process.returncode == 1, text
    assert text.count("asked to leave: saved step") == 1
    assert text.count("asked to leave, and started again nevertheless") == 2
    ranks = start_ranks(settings, "--resume", folder=tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert_same_run(uninterrupted, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 1), (signal.SIGUSR2, -signal.SIGUSR2), (signal.SIGKILL, -9)]
)
def test_a_signal_to_plain_torchrun(small_data, tmp_path, uninterrupted, number, code):
    """It passes SIGTERM on; of the others it dies, and the kernel tells the workers."""
    settings = small_settings(small_data, tmp_path, **PERIODS)
    process = start_elastic(TORCHRUN, settings)
    workers_when_it_runs(process, tmp_path)
    process.send_signal(number)
    text, _ = process.communicate(timeout=200)  # to the end of the last worker, which has the same output
    assert process.returncode == code, text
    assert text.count("asked to leave: saved step") == 1
    ranks = start_ranks(settings, "--resume", folder=tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert_same_run(uninterrupted, tmp_path)


def test_fewer_ranks_go_on_with_the_same_batch(small_data, tmp_path):
    settings = small_settings(small_data, tmp_path, **PERIODS)
    ranks = start_ranks([*settings, "SOLVER.MAX_ITER", "6"], folder=tmp_path)
    assert [rank.wait() for rank in ranks] == [0, 0]
    run = Forked(settings, "--resume", log=tmp_path / "out")
    assert run.wait() == 0, run.log.read_text()
    text = run.log.read_text()
    assert "2 ranks x 1 micro-batch before, now 1 x 2: the same 4 images a step in the same order" in text
    assert "4 images a step = 1 rank x 2 micro-batches x 2" in text
    assert load_newest(tmp_path / "checkpoints").state["share"] == {
        "world_size": 1, "accumulate_steps": 2, "asked_steps": 1
    }  # fmt: skip
    assert [line["iteration"] for line in read_metrics(tmp_path) if "eval" not in line] == list(range(1, 13))


def make_config(*settings):
    return load_config(REPOSITORY / "configs/demo.yaml", ["SOLVER.IMS_PER_BATCH", "16", *settings])


def make_checkpoint(world_size, accumulate_steps, asked_steps=1, reference=0):
    share = Share(world_size, accumulate_steps, asked_steps)
    state = {"share": vars(share), "config": {"SOLVER.REFERENCE_WORLD_SIZE": reference}}
    return Checkpoint(Path("step.pth"), 3, state)


@pytest.mark.parametrize(
    ("before", "world_size", "steps"),
    [((16, 1), 8, 2), ((8, 2), 16, 1), ((4, 2), 1, 8), ((2, 1), 16, 1), ((2, 1), 2, 1), ((4, 1), 1, 4)],
)
def test_micro_batches_make_up_for_ranks(before, world_size, steps):
    cfg, share, changes = adapt_to_ranks(make_config(), make_checkpoint(*before), world_size)
    assert cfg.train.accumulate_steps == steps
    assert share == Share(world_size, steps, 1)
    assert bool(changes) == (before != (world_size, steps))


def test_a_batch_of_fewer_images_than_there_were_passes_comes_to_its_own_refusal():
    # `restore` says that the batch has to stay; here an image a pass is as little as there is.
    cfg, share, _ = adapt_to_ranks(make_config(), make_checkpoint(8, 4), 2)
    assert (cfg.solver.ims_per_batch, share) == (16, Share(2, 8, 1))


def test_micro_batches_that_were_asked_for_stay():
    asked = make_config("TRAIN.ACCUMULATE_STEPS", "4")
    assert adapt_to_ranks(asked, make_checkpoint(2, 1), 1)[0].train.accumulate_steps == 4
    assert adapt_to_ranks(asked, None, 2)[1:] == (Share(2, 4, 4), [])


def test_ranks_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError) as error:
        adapt_to_ranks(make_config(), make_checkpoint(4, 1), 3)
    assert str(error.value) == (
        "the 16 images of a step (SOLVER.IMS_PER_BATCH) cannot be shared among 3 ranks; the run began with "
        "4. Start one of 1, 2, 4, 8, 16 ranks"
    )


def test_a_run_that_was_scaled_when_it_began_is_not_scaled_again():
    cfg = make_config("SOLVER.REFERENCE_WORLD_SIZE", "8")
    scaled, _, _ = adapt_to_ranks(cfg, None, 2)
    again, share, _ = adapt_to_ranks(cfg, make_checkpoint(2, 1, reference=2), 1)
    assert scaled.solver == again.solver
    assert (again.solver.ims_per_batch, share.accumulate_steps) == (4, 2)


def test_an_agent_knows_its_run_again(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    alone = Starts(tmp_path)
    alone.note_opened()
    alone.note_left()
    assert not list(tmp_path.iterdir())  # no launcher would start it again
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    first = Starts(tmp_path)
    assert (first.is_restart, first.has_left) == (False, False)
    first.note_opened()
    assert (Starts(tmp_path).is_restart, Starts(tmp_path).has_left) == (True, False)
    first.note_left()
    assert not Starts(tmp_path).has_left  # a machine joined: no fault
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert (Starts(tmp_path).is_restart, Starts(tmp_path).has_left) == (True, True)
    monkeypatch.setattr("os.getppid", os.getpid)  # another agent
    assert (Starts(tmp_path).is_restart, Starts(tmp_path).has_left) == (False, False)


def test_what_lies_there_is_not_an_agents_run_before_it_opened_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    Starts(tmp_path).note_left()
    assert not Starts(tmp_path).is_restart
    (tmp_path / "launch.json").write_text("damaged")
    assert not Starts(tmp_path).is_restart
