import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification, ViTModel

from preceptor.models.adapters import count_classes, resolve
from preceptor.models.folder import save_student
from preceptor.models.reference import CNN, MLP, demo_student

BATCH = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
VIT = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 8, "patch_size": 4}
VIT["num_channels"] = 1


def vit(num_labels: int = 3) -> ViTForImageClassification:
    return ViTForImageClassification(ViTConfig(**VIT, num_labels=num_labels)).eval()


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An importable module with factories, as a user writes one."""
    module = ModuleType("zoo")
    vars(module).update(small=lambda classes=4: nn.Linear(64, classes), ready=nn.Linear(2, 2), words="words", wrong=lambda: "a string")
    monkeypatch.setitem(sys.modules, "zoo", module)
    return module


def test_objects_and_callables() -> None:
    model = nn.Linear(2, 3)
    assert resolve(model) is model
    assert isinstance(resolve(demo_student), CNN)
    with pytest.raises(TypeError, match=r"^model: expected a module, a callable, a string or a mapping, got int"):
        resolve(3)  # pyright: ignore[reportArgumentType]


def test_factories(zoo: ModuleType) -> None:
    assert resolve("zoo:small").out_features == 4
    assert resolve({"factory": "zoo:small", "classes": 7}).out_features == 7
    assert resolve("zoo:ready") is vars(zoo)["ready"]
    assert resolve("preceptor.models.reference:demo_student").config == demo_student().config


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("zoo:smal", ValueError, r"model: expected a name of zoo after the colon, got 'smal' \(nearest: small\)"),
        ("nosuch.zoo:small", ValueError, r"model: expected an importable module .*got 'nosuch.zoo:small' \(no module nosuch\)"),
        ("zoo:words", TypeError, "model: expected a factory at 'zoo:words', got str"),
        ("zoo:wrong", TypeError, "model: expected an nn.Module from zoo:wrong, got str"),
        ("resnet20", ValueError, "model: expected module:factory, hf:NAME, timm:NAME or an existing folder, got 'resnet20'"),
        ("a.pt", ValueError, "weights: expected .safetensors, got 'a.pt', a pickle"),
        ("a.safetensors", ValueError, "model: expected an architecture for the weights too"),
        ({"refrence": "cnn"}, ValueError, r"model: expected exactly one of the keys .*got 'refrence' \(nearest: reference\)"),
        ({}, ValueError, "model: expected exactly one of the keys .*got nothing"),
        ({"hf": "x", "timm": "y"}, ValueError, "model: expected exactly one of the keys .*got 'hf', 'timm'"),
        (
            {"hf": "x", "num_label": 3},
            ValueError,
            r"model: expected only hf, num_labels together, got also 'num_label' \(nearest: num_labels",
        ),
        ({"hf": 3}, TypeError, "hf: expected text, got int"),
        ({"shrink": 0.5}, ValueError, "shrink: expected a teacher to make smaller, got none"),
        ({"weights": "a.safetensors"}, ValueError, "model: expected the architecture for the weights 'a.safetensors' under model"),
        ({"reference": "cnn", "chanels": [2]}, ValueError, r"cnn: expected .*nearest: channels"),
        ({"hf_config": "vitt"}, ValueError, r"hf_config: expected an image classifier of transformers, got 'vitt' \(nearest: vit\)"),
        ({"hf_config": "gpt2"}, ValueError, "hf_config: expected an image classifier of transformers, got 'gpt2'"),
        ({"hf_config": "vit", "hiden_size": 8}, ValueError, r"hf_config: expected options of vit, got 'hiden_size' \(nearest: hidden_size"),
        ("hf:./nowhere", ValueError, "hf: expected an existing folder or a name like 'owner/model', got './nowhere'"),
    ],
)
@pytest.mark.usefixtures("zoo")
def test_one_line_for_bad_specs(spec: str | dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}") as caught:
        resolve(spec)
    assert "\n" not in str(caught.value)


def test_an_import_error_inside_a_users_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_zoo.py").write_text("import missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="missing_dependency"):
        resolve("broken_zoo:small")


def test_reference_takes_the_class_count_where_it_says_none() -> None:
    assert count_classes(resolve({"reference": "cnn", "width": 0.25}, num_classes=7), BATCH) == 7
    assert count_classes(resolve({"reference": "cnn", "classes": 3}, num_classes=7), BATCH) == 3
    assert count_classes(resolve({"reference": "cnn"}), BATCH) == 10


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", VIT),
        ("resnet", {"num_channels": 1, "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}),
        ("convnext", {"num_channels": 1, "patch_size": 2, "hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "image_size": 32}),
    ],
)
def test_architectures_of_transformers_from_their_configuration(name: str, options: dict) -> None:
    torch.manual_seed(3)
    model = resolve({"hf_config": name, **options}, num_classes=5)
    torch.manual_seed(3)
    twin = resolve({"hf_config": name, **options, "num_labels": 5}, num_classes=9)
    x = torch.randn(2, 1, 8, 8) if name == "vit" else torch.randn(2, 1, 32, 32)
    assert count_classes(model, x) == 5
    assert torch.equal(model.eval()(x).logits, twin.eval()(x).logits)


def test_pretrained_classifiers_from_disk(tmp_path: Path) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    loaded = resolve(f"hf:{tmp_path}")
    assert torch.equal(loaded(BATCH).logits, model(BATCH).logits)
    assert torch.equal(resolve(str(tmp_path))(BATCH).logits, model(BATCH).logits)
    assert torch.equal(resolve({"hf": str(tmp_path)})(BATCH).logits, model(BATCH).logits)

    renewed = resolve({"hf": str(tmp_path), "num_labels": 6})
    assert count_classes(renewed, BATCH) == 6
    assert torch.equal(renewed.vit(BATCH).last_hidden_state, model.vit(BATCH).last_hidden_state)


def test_a_teacher_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    ViTModel(ViTConfig(**VIT), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"^hf: expected weights for all of ViTForImageClassification, got .* without classifier.bias, classifier.w"
    ):
        resolve(f"hf:{tmp_path}")
    assert count_classes(resolve({"hf": str(tmp_path), "num_labels": 4}), BATCH) == 4


def test_a_body_with_missing_weights_is_refused_also_for_a_new_head(tmp_path: Path) -> None:
    model = vit()
    model.save_pretrained(tmp_path)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if "layers.2" not in k}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^hf: expected weights for all of ViTForImageClassification, got .* without vit\."):
        resolve({"hf": str(tmp_path), "num_labels": 4})


def test_names_that_are_not_on_disk_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^hf: expected an image classifier on disk or in the hub, got 'nobody/nothing' \(") as caught:
        resolve("hf:nobody/nothing")
    assert "\n" not in str(caught.value)


def test_folders_with_only_pickles_are_refused(tmp_path: Path) -> None:
    model = vit()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for spec in (f"hf:{tmp_path}", str(tmp_path)):
        with pytest.raises(ValueError, match=r"^weights: expected .safetensors, got .*pytorch_model.bin'.*convert it once"):
            resolve(spec)


def test_weights_of_a_file(tmp_path: Path) -> None:
    model = MLP(inputs=64, hidden=(5,))
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    save_file(model.state_dict(), tmp_path / "plain.safetensors")
    torch.save(model, tmp_path / "whole.pt")
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "nested.pt")
    for name in ("plain.pt", "plain.safetensors"):
        loaded = resolve({"weights": str(tmp_path / name), "model": model.config})
        assert loaded is not model
        assert torch.equal(loaded(BATCH), model(BATCH))
    for name, message in [
        ("whole.pt", r"weights: expected .safetensors, got .*whole.pt', a pickle that can run code .*safetensors.torch.save_file"),
        ("nested.pt", r"weights: expected a state dict \(names to tensors\) in .*nested.pt', got dict"),
        ("none.pt", r"weights: expected an existing file, got .*none.pt'"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            resolve({"weights": str(tmp_path / name), "model": model.config})


def test_a_pickle_never_runs(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"weight": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="a pickle that can run code"):
        resolve({"weights": str(tmp_path / "trap.pt"), "model": {"reference": "mlp"}})
    assert not (tmp_path / "sprung").exists()


def test_preceptors_own_folder(tmp_path: Path) -> None:
    model = CNN(channels=(2, 3))
    save_student(model, tmp_path / "student", {})
    assert torch.equal(resolve(str(tmp_path / "student"))(BATCH), model(BATCH))


def test_smaller_than_the_teacher() -> None:
    student = resolve({"shrink": 0.25}, teacher=CNN(channels=(8, 16), classes=3))
    assert student.config["channels"] == [2, 4]
    assert student.config["classes"] == 3
    teacher = vit()
    for spec, kept in [
        ({"shrink": 0.5}, [0, 2]),
        ({"shrink": 0.75}, [0, 1, 2]),
        ({"keep_layers": 3}, [0, 3]),
        ({"keep_layers": [1, 2]}, [1, 2]),
    ]:
        student = resolve(spec, teacher=teacher)
        assert student.config.num_hidden_layers == len(kept)
        for mine, old in enumerate(kept):
            assert all(
                torch.equal(a, b) for a, b in zip(student.vit.layers[mine].parameters(), teacher.vit.layers[old].parameters(), strict=True)
            )
    with pytest.raises(ValueError, match=r"^shrink: expected a share of the layers in \(0, 1\], got 2"):
        resolve({"shrink": 2}, teacher=teacher)
    with pytest.raises(TypeError, match=r"^keep_layers: expected a transformers model as teacher, got CNN"):
        resolve({"keep_layers": 2}, teacher=CNN())
    with pytest.raises(TypeError, match=r"^shrink: expected a reference model"):
        resolve({"shrink": 0.5}, teacher=nn.Linear(2, 2))
    convolutional = ResNetForImageClassification(ResNetConfig(hidden_sizes=[4, 8], depths=[1, 1], embedding_size=4, layer_type="basic"))
    with pytest.raises(ValueError, match=r"^model: expected one stack of equal layers"):
        resolve({"shrink": 0.5}, teacher=convolutional)


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"^timm is needed for timm:resnet18: pip install timm torchvision") as caught:
        resolve("timm:resnet18")
    assert "\n" not in str(caught.value)

    asked = []
    timm = ModuleType("timm")

    def create_model(name: str, pretrained: bool) -> nn.Module:
        asked.append((name, pretrained))
        if name == "nosuch":
            raise RuntimeError("Unknown model (nosuch)")
        return nn.Linear(2, 2)

    vars(timm)["create_model"] = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert isinstance(resolve("timm:resnet18"), nn.Linear)
    assert isinstance(resolve({"timm": "resnet18.a1_in1k"}), nn.Linear)
    assert asked == [("resnet18", False), ("resnet18.a1_in1k", True)]
    with pytest.raises(ValueError, match=r"^timm: expected a model of timm, got 'nosuch' \(Unknown model \(nosuch\)\)"):
        resolve("timm:nosuch")


def test_count_classes_leaves_the_model_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), CNN(channels=(2,), norm="batch", classes=6)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert count_classes(model, BATCH) == 6
    assert count_classes(vit(), {"pixel_values": BATCH}) == 3
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    with pytest.raises(ValueError, match=r"^model: expected CNN to take the data, got: .*channels"):
        count_classes(CNN(in_channels=3), BATCH)
