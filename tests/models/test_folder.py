import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from preceptor.models.folder import load_student, save_student
from preceptor.models.reference import CNN, MLP, ResNet

X = torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8)


class Tied(nn.Module):
    """Two names for one weight, two views of one storage, and a transposed buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        base = torch.arange(8.0)
        self.register_buffer("low", base[:4])
        self.register_buffer("high", base[4:])
        self.register_buffer("transposed", torch.arange(6.0).view(2, 3).T)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) + self.low - self.high


@pytest.mark.parametrize(
    "model",
    [MLP(inputs=192, hidden=(5, 4), classes=3), CNN(channels=(2, 3), in_channels=3, norm="batch"), ResNet(depth=8, norm="none")],
    ids=lambda m: type(m).__name__,
)
def test_reference_models_come_back_from_their_folder_alone(model: nn.Module, tmp_path: Path) -> None:
    model.train()(X)  # moves the statistics of batch normalisation
    save_student(model, tmp_path / "deep" / "student", {})
    loaded = load_student(tmp_path / "deep" / "student")
    assert sorted(p.name for p in (tmp_path / "deep" / "student").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(loaded(X), model.eval()(X))


def test_same_model_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        torch.manual_seed(0)
        save_student(CNN(norm="batch"), tmp_path / name, {})
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_users_own_module_needs_an_instance(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    save_student(model, tmp_path, {})
    assert json.loads((tmp_path / "config.json").read_text())["preceptor"] == {"class": "torch.nn.modules.linear:Linear"}
    with pytest.raises(ValueError, match=r"^model: expected model=, an instance of torch.nn.modules.linear:Linear, to load .*, got None"):
        load_student(tmp_path)
    empty = nn.Linear(4, 2)
    assert load_student(tmp_path, model=empty) is empty
    assert torch.equal(empty.weight, model.weight)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    save_student(nn.Linear(4, 2), tmp_path, {})
    with pytest.raises(
        ValueError, match=r"^weights: expected those of Linear, got .*: weight of shape \(2, 4\) instead of \(3, 4\), bias of"
    ):
        load_student(tmp_path, model=nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"no 0.weight, no 0.bias, unknown bias and 1 more$"):
        load_student(tmp_path, model=nn.Sequential(nn.Linear(4, 2)))


def test_tied_and_overlapping_tensors(tmp_path: Path) -> None:
    model = Tied()
    save_student(model, tmp_path, {})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == ["first.weight", "high", "low", "transposed"]
    loaded = load_student(tmp_path, model=Tied())
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True))
    assert loaded.second.weight is loaded.first.weight
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), model(x))


def test_gathered_weights_replace_the_models_own(tmp_path: Path) -> None:
    model, other = MLP(inputs=192, hidden=(3,)), MLP(inputs=192, hidden=(3,))
    save_student(model, tmp_path, {}, state_dict=other.state_dict())
    assert torch.equal(load_student(tmp_path)(X), other(X))


def test_a_compiled_student_is_saved_as_what_it_is(tmp_path: Path) -> None:
    model = MLP(inputs=192, hidden=(3,))
    compiled = torch.compile(model, backend="eager")
    save_student(compiled, tmp_path, {})  # pyright: ignore[reportArgumentType]
    assert torch.equal(load_student(tmp_path)(X), model(X))
    save_student(compiled, tmp_path / "given", {}, state_dict=compiled.state_dict())  # pyright: ignore
    assert torch.equal(load_student(tmp_path / "given")(X), model(X))


def test_transformers_models_by_their_own_format(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4)
    model, other = ViTForImageClassification(config).eval(), ViTForImageClassification(config).eval()
    save_student(model, tmp_path / "vit", {"method": "kd"})
    assert torch.equal(load_student(tmp_path / "vit")(X).logits, model(X).logits)
    assert torch.equal(AutoModelForImageClassification.from_pretrained(tmp_path / "vit")(X).logits, model(X).logits)
    assert torch.equal(load_student(tmp_path / "vit", model=other)(X).logits, model(X).logits)

    save_student(model, tmp_path / "gathered", {}, state_dict=ViTForImageClassification(config).state_dict())
    assert not torch.equal(load_student(tmp_path / "gathered")(X).logits, model(X).logits)

    options = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}
    llama = LlamaForCausalLM(LlamaConfig(**options, tie_word_embeddings=True)).eval()
    save_student(llama, tmp_path / "llama", {})
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(load_student(tmp_path / "llama")(tokens).logits, llama(tokens).logits)


def test_card(tmp_path: Path) -> None:
    save_student(MLP(inputs=4, hidden=(), classes=2), tmp_path / "student", {"method": "classic-kd", "accuracy": 0.9, "note": "a|b"})
    text = (tmp_path / "student" / "README.md").read_text()
    for line in ["| architecture | MLP |", "| parameters | 10 |", "| method | classic-kd |", "| accuracy | 0.9 |", r"| note | a\|b |"]:
        assert f"\n{line}\n" in text
    assert "model = load_student('student')\n" in text
    assert text.startswith("---\nlibrary_name: preceptor\n")
    save_student(nn.Linear(1, 1), tmp_path / "mine", {})
    assert "model = load_student('mine', model=Linear(...))\n" in (tmp_path / "mine" / "README.md").read_text()


def test_folders_that_are_not_students(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^model: expected an existing folder, got .*nowhere'"):
        load_student(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^model: expected a folder with config.json, got .* without it"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^model: expected JSON in .*config.json'"):
        load_student(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["Pipeline"]}')
    with pytest.raises(ValueError, match=r"^model: expected .safetensors weights in .*, got none"):
        load_student(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    for architecture in ("Pipeline", "NoSuchModel"):
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        with pytest.raises(ValueError, match=rf"^model: expected a folder of preceptor or transformers, got .*{architecture}'"):
            load_student(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"preceptor": {"reference": "mlp"}, "tied": {}}))
    with pytest.raises(ValueError, match=r"^weights: expected an intact .safetensors file, got .*model.safetensors'"):
        load_student(tmp_path)
