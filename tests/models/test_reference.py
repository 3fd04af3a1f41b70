import pytest
import torch
from torch import nn

from preceptor.models.reference import CNN, MLP, ResNet, build, demo_student, demo_teacher, shrink
from preceptor.models.taps import forward

MODELS = [
    MLP(inputs=48, hidden=(7, 5), classes=3),
    CNN(channels=(4, 6), in_channels=3, classes=3),
    ResNet(depth=8, channels=(2, 3, 4), classes=3),
]


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_by_hand() -> None:
    assert num_parameters(MLP(inputs=784, hidden=(16,))) == 784 * 16 + 16 + 16 * 10 + 10
    assert num_parameters(MLP(inputs=3, hidden=(), classes=2)) == 8
    assert num_parameters(CNN(channels=(2, 3), in_channels=1, classes=4, grid=2)) == (9 * 2 + 2) + (9 * 6 + 3) + (12 * 4 + 4)
    assert num_parameters(CNN(channels=(2, 3), in_channels=1, classes=4, norm="batch")) == (18 + 4) + (54 + 6) + 16
    # He et al. 2015, table 6: 0.27 M for depth 20, 0.46 M for 32; option B adds 16 * 32 + 32 * 64 weights and two normalisations
    assert num_parameters(ResNet(depth=20)) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert round(num_parameters(ResNet(depth=32)) / 1e6, 2) == 0.47


def test_resnet_is_the_published_one() -> None:
    model = ResNet(depth=20).eval()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convs) + 1 == 20
    features = forward(model, torch.randn(2, 3, 32, 32), ["stem", "stage1", "stage2", "stage3", "fc:input"]).features
    assert [tuple(f.shape[1:]) for f in features.values()] == [(16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8), (64,)]


def test_residual_block_against_its_formula() -> None:
    model = ResNet(depth=8, channels=(3, 4, 5), norm="none")
    x = torch.randn(2, 3, 8, 8)
    block = model.get_submodule("stage2.0")
    first, second, short = (block.get_submodule(f"{name}.conv") for name in ("first", "second", "shortcut"))
    expected = (short(x) + second(first(x).relu())).relu()
    torch.testing.assert_close(block(x), expected)
    assert expected.shape == (2, 4, 4, 4)


def test_sigmoids_instead_of_rectifiers() -> None:
    torch.manual_seed(0)
    plain, model = MLP(inputs=6, hidden=(5, 4), classes=3), MLP(inputs=6, hidden=(5, 4), classes=3, activation="sigmoid")
    assert plain.config == {"reference": "mlp", "inputs": 6, "hidden": [5, 4], "classes": 3}
    assert model.config == plain.config | {"activation": "sigmoid"}
    assert shrink(model, 0.5).config == model.config | {"hidden": [2, 2]}
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6)
    (one, two, three), biases = ([p for name, p in plain.named_parameters() if name.endswith(end)] for end in ("weight", "bias"))
    hidden = (x @ one.T + biases[0]).sigmoid()
    torch.testing.assert_close(model(x), (hidden @ two.T + biases[1]).sigmoid() @ three.T + biases[2])
    with pytest.raises(ValueError, match=r"^activation: expected relu or sigmoid, got 'tanh'$"):
        build({"reference": "mlp", "activation": "tanh"})


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_a_model_is_remade_from_its_configuration(model: MLP | CNN | ResNet) -> None:
    twin = build(model.config)
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    assert twin(x).shape == (5, 3)


def test_same_seed_same_weights() -> None:
    for model in MODELS:
        torch.manual_seed(7)
        first = build(model.config)
        second = build(model.config)
        torch.manual_seed(7)
        third = build(model.config)
        one, two, three = (m.fc.weight for m in (first, second, third))
        assert torch.equal(one, three)
        assert not torch.equal(one, two)


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("family", [CNN, ResNet])
def test_norm_decides_whether_examples_meet(family: type[CNN | ResNet], norm: str) -> None:
    model = family(in_channels=1, norm=norm).double().train()
    x = torch.randn(4, 1, 12, 12, dtype=torch.double)
    alone = torch.cat([model(x[:2]), model(x[2:])])
    assert torch.allclose(model(x), alone) == (norm == "none")
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (norm == "batch")


@pytest.mark.parametrize("depth", [8, 56])
def test_norm_free_resnet_keeps_its_scale(depth: int) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        logits = ResNet(depth=depth, norm="none")(torch.randn(16, 3, 32, 32))
    assert 0.1 < logits.std() < 10


def test_every_parameter_gets_a_gradient() -> None:
    for model in [*MODELS, ResNet(depth=8, norm="none")]:
        size = 4 if isinstance(model, MLP) else 16
        model.train()(torch.randn(4, 3, size, size)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("size", [(4, 4), (28, 28), (9, 33)])
def test_any_image_size(size: tuple[int, int]) -> None:
    assert CNN(channels=(2, 3, 4), grid=2)(torch.randn(1, 1, *size)).shape == (1, 10)
    assert ResNet(depth=8, channels=(2, 3, 4)).eval()(torch.randn(1, 3, *size)).shape == (1, 10)


def test_width_and_shrink_multiply_the_widths() -> None:
    assert CNN(channels=(8, 16), width=0.25).config["channels"] == [2, 4]
    smaller = shrink(CNN(channels=(8, 16, 2), classes=3, in_channels=2, norm="batch", grid=3), 0.25)
    assert smaller.config == {"reference": "cnn", "channels": [2, 4, 1], "in_channels": 2, "classes": 3, "norm": "batch", "grid": 3}
    assert shrink(MLP(hidden=(400, 40), inputs=9, classes=4), 0.1).config == {
        "reference": "mlp",
        "inputs": 9,
        "hidden": [40, 4],
        "classes": 4,
    }
    assert shrink(ResNet(depth=14), 0.5).config["channels"] == [8, 16, 32]
    assert shrink(ResNet(depth=14), 0.5).config["depth"] == 14
    assert shrink(MODELS[1], 1).config == MODELS[1].config
    ratio = num_parameters(shrink(ResNet(), 0.25)) / num_parameters(ResNet())
    assert 0.25**2 <= ratio < 1.1 * 0.25**2


def test_demo_pair() -> None:
    teacher, student = demo_teacher(), demo_student()
    assert num_parameters(teacher) == 256_954
    assert num_parameters(student) == 3_818
    x = torch.randn(2, 1, 28, 28)
    assert teacher(x).shape == student(x).shape == (2, 10)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in student.modules())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reference": "cmm"}, r"reference: expected one of mlp, cnn, resnet, got 'cmm'"),
        ({}, r"reference: expected one of .*, got None"),
        ({"reference": "cnn", "chanels": [3]}, r"cnn: expected channels, .*got 'chanels' \(nearest: channels\)"),
        ({"reference": "cnn", "channels": []}, "channels: expected at least one block, got none"),
        ({"reference": "cnn", "channels": 8}, "channels: expected whole numbers of at least 1, got 8"),
        ({"reference": "cnn", "channels": [4, 0]}, r"channels: expected whole numbers of at least 1, got \[4, 0\]"),
        ({"reference": "cnn", "width": 0}, "width: expected a number above 0, got 0"),
        ({"reference": "cnn", "width": "a"}, "width: expected a number above 0, got 'a'"),
        ({"reference": "cnn", "norm": "layer"}, "norm: expected none or batch, got 'layer'"),
        ({"reference": "mlp", "classes": 0}, "inputs, classes: expected whole numbers"),
        ({"reference": "mlp", "hidden": [2.5]}, r"hidden: expected whole numbers of at least 1, got \[2.5\]"),
        ({"reference": "resnet", "depth": 18}, r"depth: expected 6n \+ 2 .*, got 18"),
        ({"reference": "resnet", "channels": [1, 2]}, "channels: expected 3 stages, got 2"),
    ],
)
def test_bad_configurations(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build(config)


def test_bad_shrink() -> None:
    with pytest.raises(ValueError, match=r"^factor: expected a number above 0, got -1"):
        shrink(MODELS[0], -1)
    with pytest.raises(TypeError, match=r"^shrink: expected a reference model \(mlp, cnn, resnet\), got Linear"):
        shrink(nn.Linear(2, 2), 0.5)
