"""Damaged and odd files of weights: each is loaded right or is refused in one line, and soon."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lgd.build.weights import config_of_weights
from lgd.config.load import load_config
from lgd.config.values import ConfigError
from lgd.ending import last_line
from lgd.weights import convert, sources
from lgd.weights.classes import Classes
from lgd.weights.load import load_weights
from lgd.weights.reference import reference_constants, to_detectron2, to_reference
from lgd.weights.report import WeightsError
from lgd.weights.sources import fetch_weights
from tests.fuzz.mutations import NASTY, Generator, damage_bytes, damage_value
from tests.fuzz.outcomes import require_one_line, soon
from tests.weights.modules import module_of, randomise

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning"),  # of pickletools
]

ROUNDS = range(10)
"""Each is a test of its own with a seed of its own."""

MEAN, STD = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)
INPUT = {"stride_in_1x1": True, "pixel_mean": MEAN, "pixel_std": STD, "image_format": "BGR"}
CLASSES = Classes(("cat", "dog", "cow"), (1, 2, 3))
CONVS = ("student.backbone.stem.conv1", "student.backbone.res2.0.conv1")
STATE = randomise(
    {
        **{f"{conv}.weight": torch.zeros(2, 3, 1, 1) for conv in CONVS},
        **{
            f"{conv}.norm.{name}": torch.zeros(2)
            for conv in CONVS
            for name in ("weight", "bias", "running_mean", "running_var")
        },
        "student.neck.fpn_lateral3.weight": torch.zeros(2, 2),
        "student.head.cls_score.weight": torch.zeros(6, 2, 3, 3),
        "student.head.cls_score.bias": torch.zeros(6),
        "student.loss_normalizer": torch.zeros(()),
        "teacher.label_encoder.conv1.weight": torch.zeros(3, 9),
        "teacher.label_encoder.stn_desc.fc3.weight": torch.zeros(81, 2),
        "adapter.0.weight": torch.zeros(2, 2),
    }
)
SWIN = randomise(
    {
        "student.backbone.patch_embed.proj.weight": torch.zeros(4, 3, 2, 2),
        "student.backbone.patch_embed.proj.bias": torch.zeros(4),
        "student.backbone.layers.0.blocks.0.attn.qkv.weight": torch.zeros(12, 4),
        "student.head.weight": torch.zeros(2, 2),
    }
)
CONFIG = {
    "INPUT.FORMAT": "BGR", "MODEL.PIXEL_MEAN": list(MEAN), "MODEL.PIXEL_STD": list(STD),
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
}  # fmt: skip
OURS = {
    "format": "lgd", "step": 5, "config": CONFIG, "version": "0",
    "classes": {"names": ["dog", "cow", "cat"], "category_ids": [2, 3, 1]}, "model": STATE,
}  # fmt: skip
CONSTANTS = reference_constants(pixel_mean=MEAN, pixel_std=STD)
PREFIX = "student.backbone."
BACKBONE = {name[len(PREFIX) :]: value for name, value in STATE.items() if name.startswith(PREFIX)}


def as_torchvision(name: str) -> str:
    place, _, tensor = name.rpartition("conv1.")
    prefix = "" if place.startswith("stem") else "layer1.0."
    return f"{prefix}bn1.{tensor[5:]}" if tensor.startswith("norm.") else f"{prefix}conv1.{tensor}"


def as_caffe2(name: str) -> str:
    place, _, tensor = name.rpartition("conv1.")
    prefix = "conv1" if place.startswith("stem") else "res2_0_branch2a"
    short = {
        "norm.weight": "bn_s", "norm.bias": "bn_b", "norm.running_mean": "bn_rm",
        "norm.running_var": "bn_riv",
    }  # fmt: skip
    return f"{prefix}_{short.get(tensor, 'w')}"


CAFFE2 = {as_caffe2(name): value for name, value in BACKBONE.items()}
TORCHVISION = {as_torchvision(name): value for name, value in BACKBONE.items()}
MICROSOFT = {name[len(PREFIX) :]: value for name, value in SWIN.items() if name.startswith(PREFIX)}
CONTENTS: Mapping[str, Any] = {
    "ours": OURS,
    "a state dict of ours": {f"module.{name}": value for name, value in STATE.items()},
    "reference": {"model": to_reference(STATE, CONSTANTS), "iteration": 5},
    "detectron2": {"model": to_detectron2(STATE, CONSTANTS), "__author__": "x"},
    "torchvision": {**TORCHVISION, "fc.bias": torch.ones(2)},
    "caffe2": {"blobs": CAFFE2},
    "swin": {"model": MICROSOFT},
}
OTHER_INPUT = {"image_format": "RGB", "pixel_mean": MEAN[::-1], "pixel_std": (58.395, 57.12, 57.375)}
INPUTS = {"torchvision": {"stride_in_1x1": False, **OTHER_INPUT}}


def model_for(kind: str) -> nn.Module:
    return module_of(SWIN if kind == "swin" else STATE)


def load_or_refuse(path: Path, kind: str) -> bool:
    """Load a file into a model, which otherwise stays as it is; whether that was done."""
    model = model_for(kind)
    try:
        load_weights(model, path, **INPUTS.get(kind, INPUT), classes=CLASSES)
    except WeightsError as error:
        require_one_line(last_line(str(error)))
        require_named(path, str(error))
        assert all((tensor == 0).all() for tensor in model.state_dict().values())
        return False
    for tensor in model.state_dict().values():
        assert tensor.isfinite().all()
    return True


def require_named(path: Path, message: str) -> None:
    assert str(path) in message


def arrays(value: Any) -> Any:
    """Tensors as what numpy writes."""
    if isinstance(value, dict):
        return {name: arrays(item) for name, item in value.items()}
    return value.numpy() if isinstance(value, Tensor) else value


def as_torch(content: Any, *, new: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def as_safetensors(content: Any) -> bytes:
    tensors = content.get("model", content)
    metadata = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in content.items()
        if name not in ("model", *tensors)
    }
    return safetensors.torch.save(
        {name: value.contiguous().clone() for name, value in tensors.items()}, metadata
    )


FORMS: Mapping[str, Callable[[Any], bytes]] = {
    "zip": as_torch,
    "legacy": lambda content: as_torch(content, new=False),
    "pickle2": lambda content: pickle.dumps(arrays(content), protocol=2),
    "pickle4": lambda content: pickle.dumps(arrays(content), protocol=4),
    "pickle0": lambda content: pickle.dumps(arrays(content), protocol=0),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_whole_files_load(tmp_path, kind):
    path = tmp_path / "weights"
    for form in FORMS.values():
        path.write_bytes(form(CONTENTS[kind]))
        assert load_or_refuse(path, kind)
    if kind == "ours":
        path.write_bytes(as_safetensors(CONTENTS[kind]))
        assert load_or_refuse(path, kind)


@pytest.mark.parametrize("seed", ROUNDS)
@pytest.mark.parametrize("form", FORMS)
def test_damaged_bytes(tmp_path, form, seed):
    generator, path = random.Random(f"{form} {seed}"), tmp_path / "weights"
    for number in range(40):
        kind = generator.choice(list(CONTENTS))
        path.write_bytes(damage_bytes(generator, FORMS[form](CONTENTS[kind])))
        with soon(f"{form}, seed {seed}, case {number}"):
            load_or_refuse(path, kind)


@pytest.mark.parametrize("seed", ROUNDS)
def test_damaged_safetensors(tmp_path, seed):
    generator, path = random.Random(300 + seed), tmp_path / "weights"
    whole = as_safetensors(OURS)
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    for number in range(60):
        if number % 2:
            path.write_bytes(damage_bytes(generator, whole))
        else:
            text = json.dumps(damage_value(generator, header)).encode()
            size = generator.choice((len(text), len(text), len(text), 0, 2**62, len(text) - 1))
            path.write_bytes(size.to_bytes(8, "little") + text + whole[8 + length :])
        with soon(f"seed {seed}, case {number}"):
            load_or_refuse(path, "ours")


def odd_tensors() -> list[Any]:
    """Tensors that are no weights, and other things in their place."""
    nan = torch.full((2, 2), float("nan"))
    quantized = torch.quantize_per_tensor(torch.ones(2, 2), 0.5, 0, torch.qint8)
    return [
        torch.zeros(0), torch.zeros(2, 0), torch.zeros(()), torch.ones(1), torch.ones(2, 2, 2, 2, 2, 2), nan,
        -nan / 0, torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.complex64),
        torch.ones(2, dtype=torch.int8), torch.ones(2, 2).to(torch.float8_e4m3fn), torch.ones(2, 2).half(),
        torch.ones(2, 2).bfloat16(), quantized, torch.ones(2, 2).to_sparse(), torch.ones(2, 2, device="meta"),
        torch.ones(1).expand(2**20, 2**15), torch.ones(2**10).as_strided((2, 2), (7, 3)),
        nn.Parameter(torch.ones(2, 2)), torch.ones(2, 2, dtype=torch.uint16),
        torch.full((2, 2), 1e300, dtype=torch.float64), torch.ones(2, 2).T, torch.Size([2, 2]), torch.float32,
        OrderedDict(a=torch.ones(1)), {"a": {"b": torch.ones(1)}}, [torch.ones(1)], b"bytes", bytearray(b"x"),
        {1}, 1j,
    ]  # fmt: skip


def odd_arrays() -> list[Any]:
    """Arrays that are no weights."""
    records = np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])
    return [
        np.zeros(0), np.zeros((2, 0)), np.float32(1), np.array(1.0), np.ones((2, 2), dtype=bool),
        np.ones(2, dtype="c8"), np.array([None, 1], dtype=object), np.array([[1, 2], [3, "x"]], dtype=object),
        np.array(["a", "b"]), records, np.array(["2020-01-01"], dtype="M8[D]"),
        np.ones((2, 2), dtype=np.longdouble), np.ones((2, 2), dtype=np.float16), np.ones((2, 2), dtype=">f8"),
        np.asfortranarray(np.ones((2, 2))), np.full((2, 2), np.nan), np.full(2, np.inf),
        np.ones((2, 2), dtype=np.uint64), np.ones((1,) * 60), np.broadcast_to(np.float32(1), (2**8, 2**8)),
        np.dtype("f4"), np.ma.masked_array([1, 2], [True, False]), np.array(b"x"), np.zeros(2, dtype="V8"),
        np.matrix([[1.0]]),
    ]  # fmt: skip


def _mutable(content: Any) -> Any:
    """Dictionaries all the way, for what changes them."""
    return (
        {name: _mutable(item) for name, item in content.items()} if isinstance(content, Mapping) else content
    )


def _damage(generator: Generator, content: Any, odd: list[Any]) -> Any:
    """Put odd tensors in the place of others, and damage what lies beside them."""
    damaged = _mutable(content)
    for _ in range(generator.choice((1, 1, 2, 5))):
        state = next(
            (damaged[key] for key in ("model", "blobs") if isinstance(damaged.get(key), dict)), damaged
        )
        names = [name for name in state if isinstance(name, str)]
        if not names:
            break
        name, kind = generator.choice(names), generator.randrange(6)
        if kind < 3:
            state[name] = generator.choice([*odd, *NASTY])
        elif kind == 3:
            del state[name]
        elif kind == 4:
            new = generator.choice(
                (
                    name.upper(),
                    name + ".weight",
                    "module." + name,
                    "",
                    "x" * 10_000,
                    "\x1b[31m",
                    5,
                    (1,),
                    None,
                )
            )
            state[new] = state.pop(name)
        else:
            state[name], state[generator.choice(list(state))] = (
                state[generator.choice(list(state))],
                state[name],
            )
    if generator.randrange(3) == 0:
        beside = {
            name: value
            for name, value in damaged.items()
            if not isinstance(value, Tensor | np.ndarray | dict)
        }
        beside |= {name: damaged[name] for name in ("config", "classes") if name in damaged}
        changed = damage_value(generator, beside)
        damaged |= changed if isinstance(changed, dict) else {"format": changed}
    return damaged


@pytest.mark.filterwarnings("ignore")  # of what torch thinks of quantized and sparse tensors
@pytest.mark.parametrize("seed", ROUNDS)
@pytest.mark.parametrize("form", FORMS)
def test_odd_values(tmp_path, form, seed):
    generator, path, loaded = random.Random(f"odd {form} {seed}"), tmp_path / "weights", 0
    for number in range(60):
        kind = generator.choice(list(CONTENTS))
        if form.startswith("pickle"):
            content = _damage(generator, arrays(_mutable(CONTENTS[kind])), odd_arrays())
        else:
            content = _damage(generator, CONTENTS[kind], odd_tensors())
        try:
            path.write_bytes(FORMS[form](content))
        except (
            TypeError,
            ValueError,
            OverflowError,
            RuntimeError,
            NotImplementedError,
            RecursionError,
            pickle.PicklingError,
        ):
            continue  # what cannot be written does not lie about
        with soon(f"{form}, seed {seed}, case {number}"):
            loaded += load_or_refuse(path, kind)
    assert loaded < 60


TOPS = [
    *NASTY, torch.ones(2), np.ones(2), {"model": None}, {"model": {}}, {"model": {"a": {}}},
    {"state_dict": OURS}, {1: torch.ones(1)}, {None: torch.ones(1)}, {"format": torch.ones(2), **STATE},
    {"format": np.ones(2), "model": STATE}, {"format": "lgd"}, {"format": "lgd", "model": {}},
    {"format": "lgd", "model": [1]}, {**OURS, "format": "LGD"},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_files_of_other_things(tmp_path, form):
    path = tmp_path / "weights"
    for number, content in enumerate(TOPS):
        with contextlib.suppress(UnicodeEncodeError):
            path.write_bytes(FORMS[form](content))
            with soon(f"case {number}"):
                load_or_refuse(path, "ours")


@pytest.mark.parametrize("seed", ROUNDS)
def test_what_our_files_say_of_themselves(tmp_path, seed):
    generator, path, loaded = random.Random(500 + seed), tmp_path / "weights", 0
    for number in range(60):
        said = damage_value(generator, {"config": CONFIG, "classes": OURS["classes"], "step": 5})
        path.write_bytes(
            pickle.dumps(arrays({**OURS, **(said if isinstance(said, dict) else {"config": said})}))
        )
        with soon(f"seed {seed}, case {number}"):
            loaded += load_or_refuse(path, "ours")
    assert 0 < loaded < 60


@pytest.fixture(scope="module")
def settings():
    from lgd.config.keys import flatten

    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in flatten(load_config("demo")).items()}  # fmt: skip


@pytest.mark.parametrize("seed", ROUNDS)
def test_settings_in_files_of_ours(tmp_path, settings, seed):
    generator = random.Random(600 + seed)
    for number in range(30):
        said = damage_value(generator, settings)
        path = tmp_path / "weights"
        path.write_bytes(pickle.dumps(arrays({**OURS, "config": said})))
        with soon(f"seed {seed}, case {number}"):
            try:
                config_of_weights(str(path), convert.read_checkpoint_file(path))
            except (ConfigError, WeightsError) as error:
                require_one_line(last_line(str(error)))


def test_names_of_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "download", lambda url, file, sha256: file.write_bytes(b""))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    texts = [
        "", ".", "/", "~", "~nobody/x", "~no_such_user/x", "~\x1b/x", "x" * 300, "x/" * 3000, "a\nb",
        "\ud800", "a\0b", "/dev/zero", "/dev/null", "/proc/self/mem", "://", "://x", "https://", "https://[",
        "https://[::1/x", "https://x:y/z", "https://x:99999/z", "https://x/%00", "https://x/%ff",
        "https://x/a%2fb", "https://x/" + "y" * 300, "https://x/?a", "https://x/y#sha256=" + "0" * 64,
        "https://x/y#sha256=", "https://x/\x1b", "detectron2://", "detectron2://../..", "torchvision://",
        "torchvision://" + "x" * 10_000, "torchvision://resnet50/x", "file:///etc/passwd", "HTTPS://x/y",
        "https://\ud800/x", "https://x/\ud800", "https://user:word@x/y", "https://x/..;/y",
        "https://x/\u2028", "ftp://x/y",
    ]  # fmt: skip
    for text in texts:
        with soon(text[:50]):
            try:
                fetch_weights(text)
            except WeightsError as error:
                require_one_line(last_line(str(error)))
            except (FileNotFoundError, NotADirectoryError):
                assert "://" in text  # the stand-in for a download makes no folders


def test_places_of_weights(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "loop", "empty", "folder", "nowhere", "empty/below"):
        with soon(name):
            assert not load_or_refuse(tmp_path / name, "ours")
