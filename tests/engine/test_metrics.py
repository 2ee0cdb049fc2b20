"""Progress lines, metrics.jsonl and TensorBoard events, through kills and resumes too."""

import json
import logging
import math
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lgd.distill.schedule import Phase
from lgd.engine.metrics import (
    TIMING_KEYS,
    MetricsWriter,
    StepRecord,
    format_progress,
    measure_memory,
)
from lgd.trackers.tracker import Log

LOSSES = {
    "loss_cls": 0.61,
    "loss_box_reg": 0.42,
    "loss_cls.tea": 0.33,
    "loss_box_reg.tea": 0.21,
    "loss_distill": 0.26,
}


def record(iteration=120, **changes):
    values = {
        "iteration": iteration,
        "total_loss": 1.0 / 3.0 + iteration,
        "losses": LOSSES,
        "learning_rates": {"student": 0.01, "teacher": 0.01},
        "grad_norm": 2.5,
        "seconds": 0.5,
        "data_seconds": 0.015,
        "images_per_second": 31.23,
        "memory": 1229.0,
        "skipped_images": 0,
        "phase": Phase(freeze_backbone=False, distill=True),
    }
    return StepRecord(**{**values, **changes})


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def read_events(folder):
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    events.Reload()
    return events


def scalars(events, tag):
    return [(event.step, pytest.approx(event.value, rel=1e-6)) for event in events.Scalars(tag)]


def test_progress_line():
    assert format_progress(record(total_loss=1.832), 3000, 751) == (
        "[ 120/3000]   4.0%  loss 1.832 (cls 0.610 box 0.420 | tea cls 0.330 box 0.210 | distill 0.260)  "
        "lr 1.00e-02/1.00e-02  31.2 img/s  data 3%  ETA 0:12:31  mem 1.2 GiB  phase distill"
    )


def test_progress_line_of_a_plain_student_with_other_losses():
    line = format_progress(
        record(
            iteration=1000,
            losses={"loss_rpn_cls": 0.1, "loss_mask": 12.5, "centerness": 1e-9},
            learning_rates={"student": 1e-4},
            memory=812.4,
            skipped_images=3,
            seconds=0.0,
            phase=Phase(freeze_backbone=True, distill=True),
        ),
        1000,
        100_000,
    )
    assert line.startswith(
        "[1000/1000] 100.0%  loss 1000.333 (rpn_cls 0.100 mask 12.500 centerness 0.000)  lr 1.00e-04  "
    )
    assert line.endswith("ETA 1d 3:46:40  mem 812 MiB  phase freeze  skipped 3")


@pytest.mark.parametrize(
    ("freeze", "distill", "sides", "name"),
    [
        (True, False, ("student", "teacher"), "freeze"),
        (True, True, ("student", "teacher"), "freeze+distill"),
        (False, True, ("student", "teacher"), "distill"),
        (False, False, ("student", "teacher"), "train"),
        (False, True, ("student",), "train"),
    ],
)
def test_phase_name(freeze, distill, sides, name):
    phase = Phase(freeze_backbone=freeze, distill=distill)
    assert record(phase=phase, learning_rates=dict.fromkeys(sides, 0.1)).phase_name == name


def test_eta_is_the_median_step_times_the_steps_left(tmp_path, caplog):
    writer = MetricsWriter(tmp_path, max_iter=100)
    with caplog.at_level(logging.INFO):
        for iteration, seconds in ((10, 90.0), (20, 1.0), (30, 1.0)):
            writer.log(record(iteration, seconds=seconds))
    writer.close()
    assert [line["eta_seconds"] for line in read_lines(tmp_path)] == [8100.0, 45.5 * 80, 70.0]
    assert "ETA 0:01:10" in caplog.messages[-1]


def test_line_holds_every_number_exactly(tmp_path):
    writer = MetricsWriter(tmp_path, max_iter=3000)
    writer.log(record(20, grad_norm=math.inf))
    (line,) = read_lines(tmp_path)  # on disk before the file is closed
    writer.close()
    eta_seconds = line.pop("eta_seconds")
    assert eta_seconds == 0.5 * 2980
    assert line == {
        "iteration": 20,
        "total_loss": 1.0 / 3.0 + 20,
        **LOSSES,
        "lr_student": 0.01,
        "lr_teacher": 0.01,
        "grad_norm": None,
        "phase": "distill",
        "skipped_images": 0,
        "skipped_steps": 0,
        "time": 0.5,
        "data_time": 0.015,
        "images_per_second": 31.23,
        "memory": 1229.0,
    }
    assert TIMING_KEYS - {"eta_seconds"} < line.keys()


def write_run(folder, iterations, resume=0):
    writer = MetricsWriter(folder, max_iter=100, first_iteration=resume)
    for iteration in iterations:
        writer.log(record(iteration))
        if iteration % 40 == 0:
            writer.log_evaluation(iteration, "val", {"student": {"bbox": {"AP": float(iteration)}}})
    writer.close()


def test_killed_and_resumed_run_leaves_the_lines_of_an_uninterrupted_one(tmp_path):
    write_run(tmp_path / "whole", range(20, 101, 20))
    write_run(tmp_path / "killed", (20, 40, 60))
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 80, "total_lo')
    write_run(tmp_path / "killed", (60, 80, 100), resume=40)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == (
        tmp_path / "whole" / "metrics.jsonl"
    ).read_bytes()
    for tag in ("loss/total_loss", "AP_bbox/val/AP"):
        killed, whole = (scalars(read_events(tmp_path / name), tag) for name in ("killed", "whole"))
        assert killed == whole


def test_lines_wait_for_the_evaluation_before_them(tmp_path):
    writer = MetricsWriter(tmp_path, 12)
    writer.log(record(4))
    writer.hold()
    for iteration in (5, 6):
        writer.log(record(iteration))
    assert [line["iteration"] for line in read_lines(tmp_path)] == [4]
    writer.log_evaluation(4, "val", {"student": {"bbox": {"AP": 1.0}}})
    writer.release()
    writer.log(record(7))
    writer.hold()
    writer.log(record(8))
    writer.close()
    assert [line["iteration"] for line in read_lines(tmp_path)] == [4, 4, 5, 6, 7, 8]
    assert "eval" in read_lines(tmp_path)[1]
    on_another_rank = MetricsWriter(None, 12)
    on_another_rank.hold()
    on_another_rank.release()


def test_what_an_evaluation_shows_comes_with_its_score(tmp_path):
    """A run that was killed before the score repeats the evaluation, and shows it once."""
    picture = torch.zeros(3, 4, 6, dtype=torch.uint8)
    for killed in (True, False):
        resume = {} if killed else {"first_iteration": 4, "repeats_evaluation": True}
        writer = MetricsWriter(tmp_path, 12, **resume)
        if killed:
            writer.log(record(4))
        writer.hold()
        writer.log_losses(4, "val", {"student": {"total_loss": 1.5}})
        writer.log_images("val", 4, [picture])
        writer.log(record(5))
        if not killed:
            writer.log_evaluation(4, "val", {"student": {"bbox": {"AP": 1.0}}})
            writer.release()
        writer.close()
    events = read_events(tmp_path)
    assert [event.step for event in events.Images("validation_images/val/0")] == [4]
    assert scalars(events, "validation_loss/val/total_loss") == [(4, 1.5)]
    assert [step for step, _ in scalars(events, "loss/total_loss")] == [4, 5]


def test_damaged_lines_are_dropped_and_counted(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"iteration": 20}\n\xff\x00\n[1]\n{"no": 1}\n{"iteration": 40}\n{"iteration": -3}\n{"itera'
    )
    MetricsWriter(tmp_path, max_iter=100, first_iteration=40).close()
    assert [line["iteration"] for line in read_lines(tmp_path)] == [20, 40]
    assert "dropped 5 damaged lines" in caplog.text


def test_resume_without_a_checkpoint_begins_anew(tmp_path):
    write_run(tmp_path, (20, 40))
    write_run(tmp_path, (20,), resume=0)
    assert [line["iteration"] for line in read_lines(tmp_path)] == [20]


def test_tensorboard_scalars(tmp_path):
    writer = MetricsWriter(tmp_path, max_iter=3000)
    writer.log(record(20, phase=Phase(freeze_backbone=True, distill=False)))
    writer.log(record(40))
    metrics = {"AP": 41.5, "APs": None, "APl": math.nan, "AR100": 50.0, "AP-a/b": 7.0}
    masks = {"AP": 38.5, "AR1": 9.0, "AP-a/b": 6.0}
    writer.log_evaluation(
        40, "val", {"student": {"bbox": metrics, "segm": masks}, "teacher": {"bbox": {"AP": 60.0}}}
    )
    writer.log_evaluation(40, "test", {"student": {"bbox": None}})
    writer.close()
    student, teacher = read_events(tmp_path), read_events(tmp_path / "teacher")
    assert set(student.Tags()["scalars"]) == {
        "loss/total_loss",
        "loss/loss_cls",
        "loss/loss_box_reg",
        "loss/loss_distill",
        "optimizer/lr",
        "optimizer/grad_norm",
        "phase/freeze",
        "phase/distill",
        "speed/images_per_second",
        "speed/seconds_per_iteration",
        "speed/data_seconds_per_iteration",
        "system/memory_MiB",
        "system/skipped_images",
        "system/skipped_steps",
        "AP_bbox/val/AP",
        "recall_bbox/val/AR100",
        "per_class_AP_bbox/val/a_b",
        "AP_segm/val/AP",
        "recall_segm/val/AR1",
        "per_class_AP_segm/val/a_b",
    }
    assert set(teacher.Tags()["scalars"]) == {
        "loss/loss_cls",
        "loss/loss_box_reg",
        "optimizer/lr",
        "AP_bbox/val/AP",
    }
    assert scalars(student, "loss/loss_cls") == [(20, 0.61), (40, 0.61)]
    assert scalars(teacher, "loss/loss_cls") == [(20, 0.33), (40, 0.33)]
    assert scalars(student, "phase/freeze") == [(20, 1), (40, 0)]
    assert scalars(student, "phase/distill") == [(20, 0), (40, 1)]
    assert scalars(student, "AP_bbox/val/AP") == [(40, 41.5)]
    assert scalars(student, "AP_segm/val/AP") == [(40, 38.5)]
    assert scalars(teacher, "AP_bbox/val/AP") == [(40, 60.0)]


def test_tensorboard_texts_and_images(tmp_path):
    writer = MetricsWriter(tmp_path, max_iter=3000, log=Log(settings="MODEL:\n  DEVICE: cpu"))
    for iteration, freeze in ((20, True), (40, True), (60, False)):
        writer.log(record(iteration, phase=Phase(freeze_backbone=freeze, distill=False)))
    writer.log_images("val", 60, [torch.full((3, 4, 6), 200, dtype=torch.uint8)] * 2)
    writer.close()
    events = read_events(tmp_path)
    assert events.Tags()["images"] == ["validation_images/val/0", "validation_images/val/1"]
    assert (
        events.Images("validation_images/val/1")[0].step,
        events.Images("validation_images/val/1")[0].width,
    ) == (60, 6)
    texts = {
        tag: [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    assert texts == {
        "config/text_summary": [(0, "```\nMODEL:\n  DEVICE: cpu\n```")],
        "phase/text_summary": [(20, "freeze"), (60, "train")],
    }


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    writer = MetricsWriter(None, max_iter=100)
    with caplog.at_level(logging.INFO):
        writer.log(record(20))
        writer.log_evaluation(20, "val", {"student": {"bbox": {"AP": 1.0}}})
        writer.log_images("val", 20, [torch.zeros(3, 4, 4, dtype=torch.uint8)])
        writer.close()
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == []


def test_missing_tensorboard_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="TensorBoard is not installed: pip install tensorboard"):
        MetricsWriter(tmp_path, max_iter=100)


def test_memory_of_this_process_in_mib():
    assert 50 < measure_memory(torch.device("cpu")) < 100_000


def test_lines_that_a_checkpoint_carries_along_are_there_once(tmp_path):
    writer = MetricsWriter(tmp_path, max_iter=100)
    writer.log(record(20))
    assert writer.waiting() == []
    writer._lines._file._write = refuse
    writer.log(record(40))
    (waiting,) = writer.waiting()
    assert json.loads(waiting)["iteration"] == 40
    assert writer.flush() == {tmp_path / "metrics.jsonl": "No space left on device"}
    for _ in range(2):
        again = MetricsWriter(tmp_path, max_iter=100, first_iteration=40, unwritten=[waiting])
        again.close()
        assert [line["iteration"] for line in read_lines(tmp_path)] == [20, 40]


def refuse(entry):
    raise OSError(28, "No space left on device")


def test_taking_lines_back_needs_no_room(tmp_path, monkeypatch):
    write_run(tmp_path, (20, 40, 60))
    monkeypatch.setattr("lgd.engine.lines.replacing", refuse)
    MetricsWriter(tmp_path, max_iter=100, first_iteration=40).close()
    assert [line["iteration"] for line in read_lines(tmp_path)] == [20, 40, 40]


def test_events_that_the_disk_refuses_come_later_and_the_file_stays_readable(tmp_path, capfd):
    writer = MetricsWriter(tmp_path, max_iter=3000)
    file = writer._writers[0]._runs["student"].file
    whole = file._write
    file._write = refuse
    writer.log(record(20))
    assert read_events(tmp_path).Tags()["scalars"] == []
    file._write = whole
    writer.log(record(40))
    writer.close()
    assert scalars(read_events(tmp_path), "loss/loss_cls") == [(20, 0.61), (40, 0.61)]
    assert "Traceback" not in capfd.readouterr().err
