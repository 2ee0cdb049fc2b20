import os
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from lgd.weights import limits
from lgd.weights.files import read_checkpoint_file
from lgd.weights.report import WeightsError

CONTENTS = {
    "lgd": {"format": "lgd", "step": 3, "model": {"student.backbone.stem.conv1.weight": torch.ones(1)}},
    "reference": {
        "model": {
            "student.raw_backbone.stem.conv1.weight": torch.ones(1),
            "student.head.bias": torch.ones(2),
        },
        "iteration": 179999,
    },
    "detectron2-model": {
        "model": {"backbone.bottom_up.stem.conv1.weight": torch.ones(1), "head.bias": torch.ones(2)}
    },
    "torchvision-backbone": {"conv1.weight": torch.ones(1), "layer1.0.conv1.weight": torch.ones(1)},
    "detectron2-backbone": {"stem.conv1.weight": torch.ones(1)},
    "msra-backbone": {"conv1_w": torch.ones(1)},
    "swin-backbone": {"model": {"patch_embed.proj.weight": torch.ones(1), "head.bias": torch.ones(2)}},
    "torchvision-swin": {
        "features.0.0.weight": torch.ones(1),
        "features.1.0.attn.qkv.weight": torch.ones(2),
    },
}


def as_arrays(value):
    if isinstance(value, dict):
        return {name: as_arrays(item) for name, item in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_kinds_are_told_by_content(tmp_path, kind, form):
    path = tmp_path / "any_name.bin"
    if form == "pickle":
        path.write_bytes(pickle.dumps(as_arrays(CONTENTS[kind])))
    else:
        torch.save(CONTENTS[kind], path, _use_new_zipfile_serialization=form == "zip")
    weights = read_checkpoint_file(path)
    assert weights.kind == kind
    state = CONTENTS[kind].get("model", CONTENTS[kind])
    assert weights.tensors.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(weights.tensors[name], tensor)


def test_metadata_is_what_lies_beside_the_weights(tmp_path):
    path = tmp_path / "model.pth"
    torch.save(CONTENTS["reference"], path)
    assert read_checkpoint_file(path).metadata == {"iteration": 179999}


def test_a_bare_state_dict_of_ours_and_a_ddp_prefix_are_known(tmp_path):
    path = tmp_path / "state.pth"
    torch.save({"module.student.neck.fpn_lateral3.weight": torch.ones(1)}, path)
    weights = read_checkpoint_file(path)
    assert weights.kind == "lgd"
    assert list(weights.tensors) == ["student.neck.fpn_lateral3.weight"]


def test_blobs_and_foreign_byte_order(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.arange(3, dtype=">f4")}, "cfg": "text"}))
    weights = read_checkpoint_file(path)
    assert weights.kind == "msra-backbone"
    assert weights.tensors["conv1_w"].tolist() == [0.0, 1.0, 2.0]
    weights.tensors["conv1_w"] += 1  # the memory is the tensor's own


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such weights file"):
        read_checkpoint_file(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="a folder"):
        read_checkpoint_file(tmp_path)


@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", "student.raw_backbone.", "module.encoder.0."])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("stem.conv1.weight", "detectron2-backbone"), ("patch_embed.proj.weight", "swin-backbone")],
)
def test_a_backbone_may_be_filed_under_any_path(tmp_path, prefix, name, kind):
    path = tmp_path / "model.pth"
    torch.save({prefix + name: torch.ones(1), prefix + "other.bias": torch.ones(1)}, path)
    weights = read_checkpoint_file(path)
    assert weights.kind == kind
    assert list(weights.tensors) == [name, "other.bias"]


def test_safetensors_with_their_metadata(tmp_path):
    path = tmp_path / "student.bin"
    tensors = {"student.neck.fpn_lateral3.weight": torch.arange(3.0)}
    metadata = {"producer": "lgd", "config": '{"SEED": 1}', "classes": '{"names": ["a"]}'}
    safetensors.torch.save_file(tensors, path, metadata)
    weights = read_checkpoint_file(path)
    assert weights.kind == "lgd"
    assert weights.tensors["student.neck.fpn_lateral3.weight"].tolist() == [0.0, 1.0, 2.0]
    assert weights.metadata == {"producer": "lgd", "config": {"SEED": 1}, "classes": {"names": ["a"]}}


def test_damaged_safetensors_are_one_line(tmp_path):
    path = tmp_path / "student.safetensors"
    content = safetensors.torch.save({"student.neck.a.weight": torch.ones(1000)})
    path.write_bytes(content[:2000])
    with pytest.raises(WeightsError, match=r"student\.safetensors: not a readable safetensors") as caught:
        read_checkpoint_file(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(safetensors.torch.save({"student.neck.a": torch.ones(1)}, {"config": "{"}))
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        read_checkpoint_file(path)


def test_damaged_torch_files_are_one_line(tmp_path):
    whole, path = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"model": {"student.neck.a.weight": torch.ones(1000)}}, whole)
    path.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"cut\.pth: not a readable torch file") as caught:
        read_checkpoint_file(path)
    assert "\n" not in str(caught.value)


class Anything:
    pass


def test_a_torch_file_with_a_foreign_class_is_refused_by_name(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": {"conv1.weight": torch.ones(1)}, "hooks": Anything()}, path)
    with pytest.raises(WeightsError, match=r"model\.pth: refused.*test_files\.Anything") as caught:
        read_checkpoint_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"a": torch.ones(1)}, r"unknown kind \(first names: a\)"),
        ({"iteration": 3}, r"unknown kind \(first names: none\)"),
        ({"model": {"conv1.weight": "text"}}, "'conv1.weight' is a str"),
    ],
)
def test_files_that_hold_no_weights(tmp_path, content, message):
    path = tmp_path / "model.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        read_checkpoint_file(path)


def test_an_archive_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LARGEST", 2**20)
    path = tmp_path / "model.pth"
    torch.save({"conv1.weight": torch.zeros(2**19), "layer1.0.conv1.weight": torch.ones(1)}, path)
    assert read_checkpoint_file(path).kind == "torchvision-backbone"  # it is as large itself
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(
        WeightsError, match=r"packed\.pth: unpacks to 2.0 MiB, and is 0.0 MiB itself; at most 1.0"
    ):
        read_checkpoint_file(packed)
    monkeypatch.undo()
    assert read_checkpoint_file(packed).kind == "torchvision-backbone"


def test_an_archive_that_is_none(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"PK\x03\x04" + bytes(range(256)))
    with pytest.raises(WeightsError, match=r"model\.pth: not a readable torch file \("):
        read_checkpoint_file(path)


def test_large_tensors_of_a_few_bytes(tmp_path):
    path = tmp_path / "model.pth"
    huge = torch.ones(1).as_strided((2**20, 2**20), (0, 0))
    torch.save({"conv1.weight": huge, "layer1.0.conv1.weight": torch.ones(1)}, path)
    with pytest.raises(
        WeightsError, match=r"holds tensors of 4096.0 GiB, and is 0.0 MiB itself; at most 4.0 GiB"
    ):
        read_checkpoint_file(path)


def test_many_arrays_of_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "LARGEST", 2**20)
    path = tmp_path / "model.pkl"
    array = np.zeros(2**16, np.float32)
    path.write_bytes(pickle.dumps({"conv1_w": array, **{f"a{i}": array for i in range(10)}}))
    with pytest.raises(WeightsError, match=r"holds tensors of 2\.\d MiB"):
        read_checkpoint_file(path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.ones(2, dtype=torch.bool), "tensor of bool"),
        (torch.ones(2, dtype=torch.complex64), "tensor of complex64"),
        (torch.ones(2).to_sparse(), "tensor that is not dense"),
        (torch.ones(2, device="meta"), "tensor that is not dense"),
        (np.ones(2, dtype=bool), "array of bool"),
        (np.ones(2, dtype=np.longdouble), "array of "),
    ],
)
def test_what_is_no_tensor_of_real_numbers_is_named(tmp_path, value, kind):
    path = tmp_path / "weights"
    content = {"model": {"student.neck.weight": value}}
    if isinstance(value, np.ndarray):
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=f"weights: 'student.neck.weight' is an? {kind}"):
        read_checkpoint_file(path)


def test_two_tensors_of_one_name(tmp_path):
    torch.save(
        {"student.neck.w": torch.ones(1), "module.student.neck.w": torch.ones(1)}, tmp_path / "weights"
    )
    with pytest.raises(WeightsError, match="several tensors of one name"):
        read_checkpoint_file(tmp_path / "weights")


def test_an_array_in_the_place_of_a_word(tmp_path):
    content = {"format": np.ones(2), "__author__": np.ones(2), "stem.conv1.weight": np.ones(1)}
    (tmp_path / "weights").write_bytes(pickle.dumps(content))
    assert read_checkpoint_file(tmp_path / "weights").kind == "detectron2-backbone"


@pytest.mark.parametrize("name", ["~no_such_user/x", "x" * 5000, "a\0b", "pipe"])
def test_names_of_files_that_cannot_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(WeightsError, match=r"no such weights file|cannot be read"):
        read_checkpoint_file(name)
