import pickle

import pytest
import torch
import torchvision

from lgd.weights import WeightsError, load_into, load_weights, reference_constants, to_reference
from lgd.weights.reference import find_cell_anchors
from tests.weights.modules import module_of, randomise, small_resnet, student_with
from tests.weights.test_backbones import NEW, caffe2_name

INPUT = {
    "stride_in_1x1": True,
    "pixel_mean": (103.53, 116.28, 123.675),
    "pixel_std": (1.0, 1.0, 1.0),
    "image_format": "BGR",
}
CONSTANTS = reference_constants(pixel_mean=INPUT["pixel_mean"], pixel_std=INPUT["pixel_std"])
STATE = randomise(
    {
        "student.backbone.stem.conv1.weight": torch.zeros(2, 3),
        "student.neck.fpn_lateral3.weight": torch.zeros(2, 2),
        "student.head.cls_score.bias": torch.zeros(4),
        "student.loss_normalizer": torch.zeros(()),
        "teacher.label_encoder.conv1.weight": torch.zeros(3, 2),
        "teacher.context_projection.weight": torch.zeros(2, 2),
        "teacher.attention.in_proj_bias": torch.zeros(6),
        "adapter.0.weight": torch.zeros(2, 2),
    }
)
STUDENT = {name: tensor for name, tensor in STATE.items() if name.startswith("student.")}


def save(tmp_path, content, name="model.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def assert_holds(model, tensors):
    held = model.state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(held[name], tensor), name


def test_our_checkpoint_loads_whole(tmp_path):
    model = module_of(STATE)
    report = load_weights(model, save(tmp_path, {"format": "lgd", "model": STATE}), **INPUT)
    assert_holds(model, STATE)
    assert (report.num_loaded, report.kept, report.dropped) == (8, (), ())
    assert report.summary().endswith("model.pth (lgd checkpoint): 8 tensors loaded")


def test_the_student_alone_loads_from_an_lgd_checkpoint_and_says_so(tmp_path):
    model = module_of(STUDENT)
    report = load_weights(model, save(tmp_path, {"format": "lgd", "model": STATE}), **INPUT)
    assert_holds(model, STUDENT)
    assert "in the file, not used: teacher.label_encoder, teacher.context_projection" in report.summary()
    assert "adapter" in report.summary()


def test_a_plain_student_starts_a_distiller_whose_teacher_is_fresh(tmp_path):
    model = module_of(STATE)
    report = load_weights(model, save(tmp_path, {"format": "lgd", "model": STUDENT}), **INPUT)
    assert_holds(model, STUDENT)
    assert (model.state_dict()["adapter.0.weight"] == 0).all()
    assert "not in the file, kept as initialised: teacher.label_encoder, " in report.summary()


def test_half_a_teacher_is_an_error_and_nothing_is_loaded(tmp_path):
    model = module_of(STATE)
    state = {
        name: tensor for name, tensor in STATE.items() if not name.startswith(("adapter", "teacher.att"))
    }
    with pytest.raises(WeightsError, match=r"model\.pth: .*2 missing: adapter\.0\.weight, teacher\."):
        load_weights(model, save(tmp_path, {"format": "lgd", "model": state}), **INPUT)
    assert all((tensor == 0).all() for tensor in model.state_dict().values())


def test_a_reference_checkpoint_loads_but_for_the_normalizer(tmp_path):
    model = module_of(STATE)
    official = {"model": to_reference(STATE, CONSTANTS), "iteration": 5}
    report = load_weights(model, save(tmp_path, official), **INPUT)
    assert_holds(model, {name: t for name, t in STATE.items() if name != "student.loss_normalizer"})
    assert report.kept == ("student.loss_normalizer",)
    assert "kept as initialised: student.loss_normalizer" in report.summary()


def test_what_the_pattern_does_not_use_is_dropped_by_name(tmp_path):
    state = {n: t for n, t in STATE.items() if "context" not in n and "attention" not in n}
    model = module_of(state)
    path = save(tmp_path, {"model": to_reference(STATE, CONSTANTS)})
    report = load_weights(model, path, **INPUT)
    assert set(report.dropped) == {"teacher.context_projection.weight", "teacher.attention.in_proj_bias"}


def test_other_constants_than_the_configs_are_an_error_with_the_file(tmp_path):
    path = save(tmp_path, {"model": to_reference(STATE, CONSTANTS)})
    with pytest.raises(WeightsError, match=r"model\.pth: student\.pixel_std is"):
        load_weights(module_of(STATE), path, **(INPUT | {"pixel_std": (57.375, 57.12, 58.395)}))


def test_other_anchors_than_the_models_are_an_error(tmp_path):
    model = module_of(STATE)
    anchors = torch.tensor([[[-16.0, -16.0, 16.0, 16.0]], [[-32.0, -32.0, 32.0, 32.0]]], dtype=torch.float64)
    model.student.register_buffer("cell_anchors", anchors, persistent=False)
    constants = reference_constants(
        pixel_mean=INPUT["pixel_mean"], pixel_std=INPUT["pixel_std"], cell_anchors=find_cell_anchors(model)
    )
    load_weights(model, save(tmp_path, {"model": to_reference(STATE, constants)}), **INPUT)
    constants["student.anchor_generator.cell_anchors.1"] *= 2
    with pytest.raises(WeightsError, match=r"cell_anchors\.1 is \[-64.0, .*MODEL\.ANCHOR_GENERATOR"):
        load_weights(model, save(tmp_path, {"model": to_reference(STATE, constants)}), **INPUT)


def test_every_misfit_is_listed_with_its_count():
    model = module_of({f"missing{i:02}": torch.zeros(1) for i in range(12)} | {"shape": torch.zeros(2)})
    tensors = {"shape": torch.zeros(3), "extra": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        load_into(model, tensors, source="x.pth")
    message = str(caught.value)
    assert message.startswith("x.pth: these weights (weights) do not fit the model; 12 missing: missing00, ")
    assert "missing09 and 2 more; 1 unexpected: extra; 1 of another shape: shape (3,) for (2,)" in message


def test_values_take_the_models_type():
    model = module_of({"a": torch.zeros(2, dtype=torch.float64)})
    load_into(model, {"a": torch.tensor([0.1, 0.2])}, source="x")
    assert model.state_dict()["a"].tolist() == torch.tensor([0.1, 0.2]).double().tolist()


def test_a_pickled_msra_backbone_fills_the_backbone_alone(tmp_path):
    backbone = small_resnet()
    state = randomise(backbone.state_dict())
    blobs = {caffe2_name(name, NEW): tensor.numpy() for name, tensor in state.items()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(blobs | {"fc1000_w": torch.ones(2).numpy()}, protocol=2))
    model = student_with(backbone)
    head = model.student.head.weight.clone()
    report = load_weights(model, path, **INPUT)
    assert_holds(model, {"student.backbone." + name: tensor for name, tensor in state.items()})
    assert torch.equal(model.student.head.weight, head)
    assert report.num_loaded == len(state)
    assert report.summary() == (
        f"{path} (detectron2's ImageNet backbone): {len(state)} tensors loaded; "
        "not in the file, kept as initialised: student.neck (2), student.head (2); "
        "in the file, not used: fc1000_w"
    )


def test_a_backbone_that_lacks_a_layer_is_an_error(tmp_path):
    state = small_resnet().state_dict()
    blobs = {caffe2_name(name, NEW): tensor.numpy() for name, tensor in state.items()}
    del blobs["res3_1_branch2a_w"]
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(blobs))
    with pytest.raises(
        WeightsError, match=r"R-50\.pkl: .*1 missing: student\.backbone\.res3\.1\.conv1\.weight$"
    ):
        load_weights(student_with(small_resnet()), path, **INPUT)


def test_torchvision_weights_of_another_depth_are_listed(tmp_path):
    path = save(tmp_path, torchvision.models.resnet18().state_dict())
    settings = INPUT | {
        "image_format": "RGB",
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
    }
    with pytest.raises(
        WeightsError, match=r"missing: .* and \d+ more; .*of another shape: student\.backbone"
    ):
        load_weights(student_with(small_resnet()), path, **settings)


def test_weights_of_another_input_say_what_to_set(tmp_path):
    path = save(tmp_path, torchvision.models.resnet18().state_dict())
    with pytest.raises(WeightsError, match=r"model\.pth: .*INPUT\.FORMAT RGB"):
        load_weights(student_with(small_resnet(18)), path, **INPUT)


def test_errors_of_conversion_name_the_file(tmp_path):
    path = save(tmp_path, {"conv1_w": torch.ones(1), "conv_rpn_w": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"model\.pth: 1 name that a ResNet does not have: conv_rpn_w"):
        load_weights(student_with(small_resnet()), path, **INPUT)


CLASS_LAYERS = {
    "student.head.cls_score.weight": (6, 4, 3, 3),
    "student.head.cls_score.bias": (6,),
    "student.roi_heads.box_predictor.bbox_pred.weight": (8, 5),
    "student.roi_heads.mask_head.predictor.weight": (2, 4, 1, 1),
    "teacher.label_encoder.conv1.weight": (64, 6),
    "teacher.label_encoder.conv1.bias": (64,),
    "teacher.label_encoder.stn_desc.fc3.weight": (36, 256),
}


def with_classes(extra: int) -> dict[str, torch.Tensor]:
    shapes = {
        n: tuple(s + extra if s in (2, 6, 8, 36) else s for s in shape) for n, shape in CLASS_LAYERS.items()
    }
    others = {"student.neck.a.weight": (2, 3), "teacher.label_encoder.conv2.weight": (3, 3)}
    return randomise({name: torch.zeros(shape) for name, shape in (shapes | others).items()}, seed=extra)


def test_another_number_of_classes_is_named_with_the_way_out(tmp_path):
    path = save(tmp_path, {"format": "lgd", "model": with_classes(1)})
    model = module_of(with_classes(0))
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path, **INPUT)
    assert (
        "another number of classes: 5 layers of another shape: student.head.cls_score.bias (7,) for (6,)"
        in str(caught.value)
    )
    assert "set NUM_CLASSES as in the weights, or MODEL.WEIGHTS_IGNORE_CLASSES True" in str(caught.value)
    assert all((tensor == 0).all() for tensor in model.state_dict().values())


def test_ignoring_classes_leaves_whole_layers_as_they_are(tmp_path):
    state = with_classes(1)
    model = module_of(with_classes(0))
    report = load_weights(
        model, save(tmp_path, {"format": "lgd", "model": state}), **INPUT, ignore_classes=True
    )
    assert set(report.kept) == set(report.dropped) == set(CLASS_LAYERS)
    assert_holds(model, {name: tensor for name, tensor in state.items() if name not in CLASS_LAYERS})
    assert all((model.state_dict()[name] == 0).all() for name in CLASS_LAYERS)


def embedded(num_classes: int) -> dict[str, torch.Tensor]:
    shapes = {
        "student.head.cls_score.bias": (num_classes,),
        "teacher.category_embedding.weight": (num_classes, 3),
        "teacher.label_encoder.conv1.weight": (64, 7),
    }
    return randomise({name: torch.zeros(shape) for name, shape in shapes.items()}, seed=num_classes)


@pytest.mark.parametrize("ignore_classes", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_embedded_classes_and_others_do_not_fit(tmp_path, which, ignore_classes):
    states = [embedded(3), with_classes(1)]
    path = save(tmp_path, {"format": "lgd", "model": states[which]})
    model = module_of(states[1 - which])
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path, **INPUT, ignore_classes=ignore_classes)
    names = ["embedding", "one_hot (or norm_classes)"]
    assert str(caught.value) == (
        f"{path}: their teacher was trained with LABEL_ENCODER.CATEGORY_FORMAT {names[which]}, this model's "
        f"has {names[1 - which]}; set MODEL.DISTILLATOR.LABEL_ENCODER.CATEGORY_FORMAT as it was trained"
    )
    with pytest.raises(WeightsError, match=r"checkpoint: their teacher was trained with LABEL_ENCODER\."):
        load_into(model, states[which], source="checkpoint")
    assert all((tensor == 0).all() for tensor in model.state_dict().values())
    student = module_of({name: tensor for name, tensor in states[which].items() if "student" in name})
    load_weights(student, path, **INPUT)  # alone it does not mind
    assert_holds(student, {name: states[which][name] for name in student.state_dict()})


def test_another_number_of_embedded_classes_starts_them_alone_anew(tmp_path):
    state = embedded(5)
    path = save(tmp_path, {"format": "lgd", "model": state})
    model = module_of(embedded(3))
    with pytest.raises(WeightsError, match="another number of classes: 2 layers of another shape: student"):
        load_weights(model, path, **INPUT)
    report = load_weights(model, path, **INPUT, ignore_classes=True)
    assert report.kept == ("student.head.cls_score.bias", "teacher.category_embedding.weight")
    name = "teacher.label_encoder.conv1.weight"
    assert_holds(model, {name: state[name]})


def test_ignoring_classes_does_not_hide_another_width(tmp_path):
    state = with_classes(1) | {"student.neck.a.weight": torch.ones(2, 4)}
    path = save(tmp_path, {"format": "lgd", "model": state})
    with pytest.raises(
        WeightsError, match=r"of another shape: student\.head\.cls_score\.bias .*neck\.a\.weight"
    ):
        load_weights(module_of(with_classes(0)), path, **INPUT, ignore_classes=True)


def test_ignoring_classes_loads_all_where_they_agree(tmp_path):
    state = with_classes(0)
    path = save(tmp_path, {"format": "lgd", "model": state})
    model = module_of(state)
    assert load_weights(model, path, **INPUT, ignore_classes=True).kept == ()
    assert_holds(model, state)


def test_deformable_convolutions_keep_their_offsets_and_take_the_plain_weights(tmp_path):
    plain, backbone = (
        small_resnet(),
        small_resnet(deform_on_per_stage=(False, True, True, True), deform_modulated=True),
    )
    state = randomise(plain.state_dict())
    blobs = {caffe2_name(name, NEW): tensor.numpy() for name, tensor in state.items()}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(blobs))
    model = student_with(backbone)
    report = load_weights(model, path, **INPUT)
    assert_holds(model, {"student.backbone." + name: tensor for name, tensor in state.items()})
    offsets = [name for name in report.kept if "conv2_offset" in name]
    assert len(offsets) == 2 * (4 + 6 + 3)
    assert all((model.state_dict()[name] == 0).all() for name in offsets)


def test_batch_norms_need_no_counters_and_classifiers_have_none_for_frozen_ones(tmp_path):
    model = student_with(small_resnet(norm="BN", freeze_at=0))
    state = randomise(small_resnet().state_dict())
    path = save(tmp_path, state)
    assert any(name.endswith("num_batches_tracked") for name in load_weights(model, path, **INPUT).kept)
    model = module_of(STUDENT)
    counted = STUDENT | {"student.neck.fpn_lateral3.norm.num_batches_tracked": torch.tensor(5)}
    report = load_weights(model, save(tmp_path, {"format": "lgd", "model": counted}), **INPUT)
    assert report.dropped == ("student.neck.fpn_lateral3.norm.num_batches_tracked",)


def test_weights_that_are_not_finite_are_named_and_nothing_is_loaded(tmp_path):
    model = module_of(STATE)
    name = "student.neck.fpn_lateral3.weight"
    for value in (torch.full((2, 2), float("nan")), torch.full((2, 2), 1e300, dtype=torch.float64)):
        path = save(tmp_path, {"format": "lgd", "model": {**STATE, name: value}})
        with pytest.raises(WeightsError, match=rf"model\.pth: 1 tensor holds NaN or infinity: {name}"):
            load_weights(model, path, **INPUT)
    assert all((tensor == 0).all() for tensor in model.state_dict().values())


def test_a_backbone_with_two_names_for_one_tensor(tmp_path):
    blobs = {"conv1_w": torch.ones(2, 3), "conv1_bn_s": torch.ones(2), "conv1_bn_gamma": torch.ones(2)}
    with pytest.raises(WeightsError, match=r"conv1_bn_gamma and another name both mean stem\.conv1\.norm"):
        load_weights(module_of(STATE), save(tmp_path, {"blobs": blobs}), **INPUT)


def test_a_swin_transformer_without_its_first_layer(tmp_path):
    state = {"student.backbone.patch_embed.proj.weight": torch.zeros(4, 3, 2, 2)}
    for content in ({"patch_embed.proj.weight": torch.ones(4)}, {"patch_embed.proj.bias": torch.ones(4)}):
        with pytest.raises(WeightsError, match="do not fit the model"):
            load_weights(module_of(state), save(tmp_path, {"model": content}), **INPUT)
