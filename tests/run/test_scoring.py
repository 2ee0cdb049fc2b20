"""The process that scores beside the training."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lgd.evaluation.predictions import Predictions
from lgd.run.scoring import Scored, ScoringError, ScoringJob, ScoringProcess, score_and_write
from tests.data.sets import annotation, image_record, open_coco, write_coco
from tests.training import REPOSITORY


@pytest.fixture
def process():
    process = ScoringProcess()
    yield process
    process.close()


def make_job(folder, box=(8, 8, 20, 10), image_id=1):
    """A set of one object, and one detection."""
    path = write_coco(folder, [image_record(1), image_record(2)], [annotation(1, 1)])
    result = {"image_id": image_id, "category_id": 3, "bbox": list(box), "score": 0.5}
    paths = {"student": folder / "predictions.json"}
    return ScoringJob(
        open_coco(path), {"student": Predictions.from_results([result])}, False, "hotcoco", paths
    )


def test_scores_and_predictions_are_those_of_this_process(tmp_path, process):
    jobs = []
    for name, shift in (("a", 0), ("b", 2)):
        (tmp_path / name).mkdir()
        jobs.append(make_job(tmp_path / name, box=(8 + shift, 8, 20, 10)))
    expected = [score_and_write(job) for job in jobs]
    texts = [job.paths["student"].read_text() for job in jobs]
    for _ in range(2):
        for job in jobs:
            job.paths["student"].unlink()
        process.submit(jobs)
        assert process.result() == expected
        assert [job.paths["student"].read_text() for job in jobs] == texts


def test_it_needs_no_torch(tmp_path, process):
    process.submit([make_job(tmp_path)])
    process.result()
    libraries = Path(f"/proc/{process.process_id}/maps").read_text()
    assert "hotcoco" in libraries
    assert "torch" not in libraries


def test_what_it_logs_is_logged_here(tmp_path, process, caplog):
    path = write_coco(tmp_path, [image_record(1)], None)
    process.submit([ScoringJob(open_coco(path), {}, False, "hotcoco", {})])
    assert process.result() == [Scored({})]
    nothing = {"student": Predictions.from_results([])}
    paths = {"student": tmp_path / "predictions.json"}
    process.submit([ScoringJob(open_coco(path), nothing, False, "hotcoco", paths)])
    with caplog.at_level(logging.INFO):
        assert process.result() == [Scored({"student": {"bbox": None}})]
    assert f"{path} has no annotations: only predictions are written, there is no AP" in caplog.text


def test_errors_are_those_of_this_process(tmp_path, process):
    wrong = make_job(tmp_path, image_id=7)
    with pytest.raises(ValueError, match=r"1 unknown image id \(7\)") as expected:
        score_and_write(wrong)
    process.submit([wrong])
    with pytest.raises(ValueError, match="evaluate on the set that the images were read from") as error:
        process.result()
    assert str(error.value) == str(expected.value)
    assert "in the process that scores" in error.value.__notes__[0]

    process.submit([make_job(tmp_path)])  # it goes on
    assert process.result()[0].scores["student"]["bbox"] is not None


def test_detections_that_the_disk_refuses_are_named_and_the_scores_come(tmp_path, process):
    (tmp_path / "file").write_text("")
    job = make_job(tmp_path)
    job.paths["student"] = tmp_path / "file" / "predictions.json"
    process.submit([job])
    (found,) = process.result()
    assert found.scores["student"]["bbox"] is not None
    assert found.refused in ({job.paths["student"]: reason} for reason in ("Not a directory", "File exists"))


def hand_over_and_wait(process, job):
    process.submit([job])  # whether it notices here hangs on how soon the process is gone
    process.result()


@pytest.mark.parametrize("when", ["before the job", "after the job"])
def test_a_lost_process_is_reported(tmp_path, process, when):
    job = make_job(tmp_path)
    if when == "after the job":
        os.kill(process.process_id, signal.SIGSTOP)
        process.submit([job])
    os.kill(process.process_id, signal.SIGKILL)
    text = rf"process that scores the detections \(pid {process.process_id}\) was killed by SIGKILL; the "
    with pytest.raises(ScoringError, match=text + "machine may have run out of memory"):
        process.result() if when == "after the job" else hand_over_and_wait(process, job)


def test_signals_to_all_processes_of_a_job_are_the_trainers_own(tmp_path, process):
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
        os.kill(process.process_id, number)
    process.submit([make_job(tmp_path)])
    assert len(process.result()) == 1
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


SCRIPT = """
import time
from lgd.run.scoring import ScoringProcess
process = ScoringProcess()
process.submit([])
process.result()
print(process.process_id, flush=True)
time.sleep(600)
"""


def test_it_goes_with_its_trainer_and_runs_no_script_again(tmp_path):
    """The script has no `if __name__ == "__main__"`: what multiprocessing starts would run it anew."""
    (tmp_path / "script.py").write_text(SCRIPT)
    trainer = subprocess.Popen(
        [sys.executable, tmp_path / "script.py"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    process_id = int(trainer.stdout.readline())
    assert process_id != trainer.pid
    trainer.kill()
    assert trainer.communicate()[0] == ""
    deadline = time.monotonic() + 60
    while is_running(process_id) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(process_id)


def test_it_starts_without_what_is_slow_to_import():
    program = "import sys, lgd.run.scoring; sys.exit(str({'torch', 'scipy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


def is_running(process_id):
    """Whether it is there, and no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
