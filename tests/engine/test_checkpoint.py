import errno
import json
import logging
import pickle
import stat
from contextlib import contextmanager

import pytest
import torch

from lgd import files
from lgd.engine import checkpoint
from lgd.engine.checkpoint import (
    CheckpointError,
    amend_checkpoint,
    attempt,
    check_seal,
    find_newest,
    list_changes,
    load_newest,
    read_file,
    save_checkpoint,
    save_file,
    sealed_steps,
    write_file,
)


def save(folder, *steps, keep=10):
    for step in steps:
        save_checkpoint(folder, step, {"model": {"w": torch.full((1000,), float(step))}}, keep=keep)


def test_save_and_load(tmp_path):
    save(tmp_path, 5, 10)
    found = load_newest(tmp_path)
    assert found.step == 10
    assert found.path == tmp_path / "step_0000010.pth"
    assert torch.equal(found.state["model"]["w"], torch.full((1000,), 10.0))
    assert find_newest(tmp_path).step == 10


def test_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_0000003.json", "step_0000003.pth", "step_0000004.json", "step_0000004.pth",
    ]  # fmt: skip


def test_what_became_known_later_goes_over_what_was_saved(tmp_path):
    state = {"model": {"w": torch.ones(2)}, "best": {}, "owes_evaluation": True}
    path = save_checkpoint(tmp_path, 5, state, keep=3)
    content = path.read_bytes()
    best = {"AP": 100 / 3, "step": 5}
    amend_checkpoint(tmp_path, 5, {"best": best, "owes_evaluation": False})
    for found in (load_newest(tmp_path), find_newest(tmp_path)):
        assert (found.state["best"], found.state["owes_evaluation"]) == (best, False)
        assert torch.equal(found.state["model"]["w"], torch.ones(2))
    assert path.read_bytes() == content
    assert check_seal(path) is None
    path.write_bytes(content[:-1])
    assert check_seal(path) == f"{len(content) - 1} bytes instead of {len(content)}"
    save_checkpoint(tmp_path, 5, state, keep=3)  # again, after the evaluation was repeated
    assert load_newest(tmp_path).state["owes_evaluation"]


def test_a_checkpoint_that_is_not_there_cannot_be_amended_and_need_not(tmp_path, monkeypatch, caplog):
    amend_checkpoint(tmp_path, 5, {"best": {}})
    assert not list(tmp_path.iterdir())
    save(tmp_path, 5)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_text_atomically", fail)
    with pytest.raises(CheckpointError, match=r"could not write .*step_0000005\.json: No space left"):
        amend_checkpoint(tmp_path, 5, {})
    assert not attempt(lambda: amend_checkpoint(tmp_path, 5, {}))
    assert "No space left on device; training goes on" in caplog.text


def no_room(monkeypatch, count, kind="torch"):
    """Let the disk be full for so many writes of checkpoints, or of seals."""
    left = [count]
    module, name = (checkpoint.torch, "save") if kind == "torch" else (checkpoint, "write_text_atomically")
    real = getattr(module, name)

    def write(*arguments):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(module, name, write)


def steps_in(folder):
    return sorted(int(path.stem[5:]) for path in folder.glob("step_*.pth"))


@pytest.mark.parametrize("kind", ["torch", "seal"])
def test_on_a_full_disk_the_oldest_are_given_up_and_never_the_last_good_one(tmp_path, monkeypatch, kind):
    for name, number, left in (("a", 1, [2, 3, 4]), ("b", 2, [3, 4])):
        save(tmp_path / name, 1, 2, 3)
        no_room(monkeypatch, number, kind)
        save(tmp_path / name, 4)
        assert steps_in(tmp_path / name) == left
        assert sealed_steps(tmp_path / name) == left[::-1]
        monkeypatch.undo()
    save(tmp_path / "c", 1, 2, 3)
    no_room(monkeypatch, 99, kind)
    with pytest.raises(
        CheckpointError, match=r"step 4 not saved .*No space.* step_0000003\.pth stays: --resume goes"
    ):
        save(tmp_path / "c", 4)
    assert steps_in(tmp_path / "c") == [3]
    assert load_newest(tmp_path / "c").step == 3


def test_what_is_damaged_goes_first_and_the_last_good_one_stays_though_it_is_old(tmp_path, monkeypatch):
    save(tmp_path, 1, 2, 3)
    (tmp_path / "step_0000003.pth").write_bytes(b"x")
    (tmp_path / "step_0000002.json").unlink()
    no_room(monkeypatch, 1)
    save(tmp_path, 4)
    assert steps_in(tmp_path) == [1, 3, 4]
    monkeypatch.undo()
    (tmp_path / "step_0000004.pth").write_bytes(b"x")
    no_room(monkeypatch, 99)
    with pytest.raises(CheckpointError, match=r"step_0000001\.pth stays: --resume goes on from step 1"):
        save(tmp_path, 5)
    assert steps_in(tmp_path) == [1]


def test_a_new_checkpoint_is_not_dropped_for_damaged_ones_of_later_steps(tmp_path):
    save(tmp_path, 2, 6, 8)
    for step in (6, 8):
        (tmp_path / f"step_000000{step}.pth").write_bytes(b"x")
    save(tmp_path, 3, keep=1)
    assert load_newest(tmp_path).step == 3
    assert steps_in(tmp_path) == [3, 6, 8]


def test_a_whole_checkpoint_of_the_same_step_is_not_put_at_risk(tmp_path, monkeypatch):
    state = {"model": {"w": torch.ones(2)}, "best": {}, "owes_evaluation": True}
    path = save_checkpoint(tmp_path, 5, state, keep=3)
    content = path.read_bytes()
    no_room(monkeypatch, 99)
    save_checkpoint(tmp_path, 5, {**state, "best": {"AP": 1.5, "step": 5}, "owes_evaluation": False}, keep=3)
    assert path.read_bytes() == content
    found = load_newest(tmp_path).state
    assert (found["best"], found["owes_evaluation"]) == ({"AP": 1.5, "step": 5}, False)


@pytest.mark.parametrize(
    "seal",
    [
        '{"bytes": 1e999, "sha256": "x"}',
        '{"bytes": 5, "sha256": "x", "amended": 7}',
        '{"bytes": 5, "sha256": "x", "amended": {"model": 1}}',
        '{"bytes": 5, "sha256": "x", "amended": {"best": 1}}',
        '{"bytes": 5}',
        '{"bytes": 5, "sha256": 7}',
        "[]",
        "7",
        "[" * 100_000,
    ],
    ids=range(9),
)
def test_a_seal_that_says_nonsense_is_none(tmp_path, seal):
    save(tmp_path, 5)
    path = tmp_path / "step_0000005.pth"
    path.with_suffix(".json").write_text(seal)
    assert check_seal(path) == "unreadable seal"
    with pytest.raises(CheckpointError, match="could not write"):
        amend_checkpoint(tmp_path, 5, {"best": {}})


def test_what_torch_makes_of_a_full_disk_is_told_as_it_is(tmp_path, monkeypatch):
    """Torch turns the error of a failing write into one of its own."""
    (tmp_path / "small").mkdir()

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    @contextmanager
    def replacing(path):
        yield Full(None)

    monkeypatch.setattr(checkpoint, "replacing", replacing)
    with pytest.raises(OSError, match="No space left on device") as error:
        write_file(tmp_path / "x.pth", {"format": "lgd", "model": {"w": torch.ones(100_000)}})
    assert error.value.errno == errno.ENOSPC


def test_nothing_to_resume(tmp_path):
    assert load_newest(tmp_path / "absent") is None
    assert load_newest(tmp_path) is None


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "no seal", "broken seal", "empty"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, damage):
    save(tmp_path, 5, 10)
    path = tmp_path / "step_0000010.pth"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped bit":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "no seal":
        path.with_suffix(".json").unlink()
    elif damage == "broken seal":
        path.with_suffix(".json").write_text("{")
    else:
        path.write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert load_newest(tmp_path).step == 5
    assert "step_0000010.pth" in caplog.text
    assert "falling back to" in caplog.text


def test_no_whole_checkpoint_at_all(tmp_path):
    save(tmp_path, 5)
    (tmp_path / "step_0000005.pth").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"step_0000005.pth damaged; start without --resume"):
        load_newest(tmp_path)


def test_a_failing_write_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 5)

    def full_disk(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full_disk)
    with pytest.raises(CheckpointError, match=r"step 10 not saved.*No space left.*step_0000005.pth stays"):
        save(tmp_path, 10)
    assert load_newest(tmp_path).step == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000005.json", "step_0000005.pth"]


def test_a_crash_between_file_and_seal_falls_back(tmp_path, monkeypatch):
    save(tmp_path, 5)

    def crash(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_text_atomically", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 10)
    assert check_seal(tmp_path / "step_0000010.pth").startswith("no seal")
    assert load_newest(tmp_path).step == 5


def test_what_a_killed_writer_left_is_cleared(tmp_path):
    (tmp_path / ".step_0000003.pth.0123.tmp").write_bytes(b"half")
    save(tmp_path, 5)
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="there is no checkpoint to resume from"):
        save(tmp_path / "file" / "checkpoints", 5)


def test_saved_file_replaces_the_old_one_only_when_whole(tmp_path, monkeypatch):
    path = tmp_path / "model.pth"
    save_file(path, {"format": "lgd", "model": {}})
    monkeypatch.setattr(
        files.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_file(path, {"format": "lgd", "model": {"w": torch.ones(3)}})
    assert read_file(path)["model"] == {}
    assert stat.S_ISREG(path.stat().st_mode)


def test_foreign_and_malicious_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    evil, foreign = tmp_path / "evil.pth", tmp_path / "foreign.pth"
    evil.write_bytes(pickle.dumps(Evil()))
    torch.save({"model": {}}, foreign)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_file(evil)
    with pytest.raises(CheckpointError, match="not a checkpoint of this library"):
        read_file(foreign)


def test_the_seal_is_plain_json(tmp_path):
    save(tmp_path, 5)
    seal = json.loads((tmp_path / "step_0000005.json").read_text())
    assert seal["step"] == 5
    assert seal["bytes"] == (tmp_path / "step_0000005.pth").stat().st_size


def test_changes_are_listed_by_key():
    old, new = {"A": 1, "B": (1, 2), "C": 3}, {"A": 1, "B": (1, 3), "D": 4}
    assert list_changes(old, new) == ["B: (1, 2) -> (1, 3)", "C: 3 -> None", "D: None -> 4"]


def test_other_things_in_the_place_of_a_checkpoint_are_passed_over(tmp_path):
    save(tmp_path, 5, 10)
    newest = tmp_path / "step_0000010.pth"
    newest.unlink()
    for make, said in (
        (lambda: newest.symlink_to("nowhere"), "No such file"),
        (lambda: newest.symlink_to(newest.name), "Too many levels"),
        (newest.mkdir, ""),
    ):
        make()
        assert said in check_seal(newest)
        assert load_newest(tmp_path).step == 5
        newest.rmdir() if newest.is_dir() else newest.unlink()


def test_where_no_checkpoint_is_whole_the_weights_that_are_there_are_named(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 5)
    (folder / "step_0000005.json").unlink()
    with pytest.raises(CheckpointError, match=r"start without --resume, or from MODEL\.WEIGHTS$"):
        load_newest(folder)
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(CheckpointError, match=r"from MODEL\.WEIGHTS .*/model_final\.pth$"):
        load_newest(folder)
