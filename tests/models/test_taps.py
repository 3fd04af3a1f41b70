from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from preceptor.models.reference import CNN, MLP
from preceptor.models.taps import Output, find_layer, forward, layer_names

BATCH = torch.linspace(-1, 1, 2 * 28 * 28).view(2, 1, 28, 28)


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Odd(nn.Module):
    """Calls one layer twice, another one never, edits in place, and answers as it is told."""

    def __init__(self, answer: str = "tensor") -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.edit = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        x = self.edit(self.twice(self.twice(x)))
        first, _ = self.pair(hidden=x)
        return {"tensor": first, "tuple": ("meta", first, first * 2), "mapping": {"loss": x.sum(), "logits": first}, "none": {"loss": x}}[
            self.answer
        ]


class Pair(nn.Module):
    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return hidden + 1, hidden - 1


class Bad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.layer(x)
        raise RuntimeError("stop")


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_logits_are_the_models_own_with_and_without_layers() -> None:
    model = CNN()
    expected = model(BATCH)
    plain = forward(model, BATCH)
    assert isinstance(plain, Output)
    assert torch.equal(plain.logits, expected)
    assert plain.features == {}
    assert torch.equal(forward(model, BATCH, ["fc:input", "block1"]).logits, expected)


def test_features_equal_a_walk_through_the_layers() -> None:
    model = CNN(channels=(3, 5), grid=2)
    output = forward(model, BATCH, ["fc:input", "block2.conv", "block1", "block2:input"])
    block1 = model.get_submodule("block1")(BATCH)
    conv = model.get_submodule("block2.conv")(block1)
    embedding = model.pool(conv.relu())
    assert list(output.features) == ["fc:input", "block2.conv", "block1", "block2:input"]
    for layer, expected in [("block1", block1), ("block2:input", block1), ("block2.conv", conv), ("fc:input", embedding)]:
        assert torch.equal(output.features[layer], expected)


def test_gradient_flows_through_features() -> None:
    model = MLP(hidden=(6,))
    forward(model, BATCH, ["hidden1.linear"]).features["hidden1.linear"].sum().backward()
    linear = find_layer(model, "hidden1.linear")
    torch.testing.assert_close(linear.get_parameter("weight").grad, BATCH.flatten(1).sum(0).expand(6, -1))
    assert model.fc.weight.grad is None


@pytest.mark.parametrize("answer", ["tensor", "tuple", "mapping"])
def test_every_kind_of_answer(answer: str) -> None:
    model, x = Odd(answer), torch.randn(3, 4)
    expected = model.twice(model.twice(x)).relu() + 1
    assert torch.equal(forward(model, x).logits, expected)
    assert torch.equal(forward(model, {"x": x}, ["pair"]).logits, expected)


def test_last_call_counts_in_place_edits_do_not_and_tuples_give_their_first_tensor() -> None:
    model, x = Odd(), torch.randn(3, 4)
    features = forward(model, x, ["twice", "twice:input", "edit", "pair", "pair:input"]).features
    once = model.twice(x)
    twice = model.twice(once)
    assert (twice < 0).any()
    for layer, expected in [("twice", twice), ("twice:input", once), ("edit", twice.relu()), ("pair", twice.relu() + 1)]:
        assert torch.equal(features[layer], expected), layer
    assert torch.equal(features["pair:input"], twice.relu())


def test_hooks_are_gone_after_a_call_and_after_an_exception() -> None:
    model, bad = CNN(), Bad()
    forward(model, BATCH, ["block1", "fc:input"])
    with pytest.raises(RuntimeError, match="stop"):
        forward(bad, torch.randn(1, 4), ["layer", "layer:input"])
    with pytest.raises(ValueError, match="nosuch"):
        forward(model, BATCH, ["block1", "nosuch"])
    assert num_hooks(model) == num_hooks(bad) == 0


@pytest.mark.parametrize(
    ("layer", "nearest"),
    [("blok1", "block1"), ("block1.convv", "block1.conv"), ("block1.conv.weight", "block1.conv"), ("", "pool"), (":input", "pool")],
)
def test_an_unknown_layer_lists_the_nearest(layer: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"^layers: expected names of layers of CNN, got {layer!r} \(nearest: .*{nearest}.*\)$"):
        forward(CNN(), BATCH, [layer])


def test_a_layer_that_did_not_run_and_an_answer_without_logits() -> None:
    with pytest.raises(ValueError, match="got 'never', which did not"):
        forward(Odd(), torch.randn(1, 4), ["never"])
    with pytest.raises(TypeError, match="a mapping with loss"):
        forward(Odd("none"), torch.randn(1, 4))
    with pytest.raises(TypeError, match=r"the model's output: expected a tensor.*got dict_keys"):
        forward(Answer({}.keys()), torch.randn(1, 4))


class Answer(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer


def test_layer_names_are_all_accepted() -> None:
    model = CNN(norm="batch").eval()
    names = layer_names(model)
    assert names[:4] == ("block1", "block1.conv", "block1.norm", "block1.relu")
    assert set(forward(model, BATCH, names).features) == set(names)
    shared = nn.Sequential(model, model)
    assert "1.fc" in layer_names(shared)


def test_compiled_models_are_tapped_by_the_names_of_the_original() -> None:
    model = MLP(hidden=(5,))
    compiled = torch.compile(model, backend="eager")
    expected = forward(model, BATCH, ["hidden1", "fc:input"])
    forward(compiled, BATCH)
    output = forward(compiled, BATCH, ["hidden1", "fc:input"])
    assert torch.equal(output.features["hidden1"], expected.features["hidden1"])
    assert torch.equal(output.logits, forward(compiled, BATCH).logits)
    assert layer_names(compiled) == layer_names(model)

    inner = nn.Sequential(torch.compile(nn.Linear(4, 3), backend="eager"), nn.ReLU())
    x = torch.randn(2, 4)
    assert layer_names(inner) == ("0", "1")
    inner(x)
    assert torch.equal(forward(inner, x, ["0"]).features["0"], inner[0](x))


@pytest.mark.usefixtures("one_process")
def test_distributed_wrappers_are_tapped_by_the_names_of_the_original() -> None:
    model = MLP(hidden=(5,))
    expected = forward(model, BATCH, ["hidden1.linear"])
    ddp = DistributedDataParallel(model)
    assert layer_names(ddp) == layer_names(model)
    assert torch.equal(forward(ddp, BATCH, ["hidden1.linear"]).features["hidden1.linear"], expected.features["hidden1.linear"])


@pytest.mark.usefixtures("one_process")
def test_sharded_models_are_tapped() -> None:
    model = MLP(hidden=(5,))
    expected = forward(model, BATCH, ["hidden1.linear", "fc:input"])
    mesh = dist.init_device_mesh("cpu", (1,))
    for module in (model.get_submodule("hidden1"), model):
        fully_shard(module, mesh=mesh)
    output = forward(model, BATCH, ["hidden1.linear", "fc:input"])
    torch.testing.assert_close(output.logits, expected.logits)
    torch.testing.assert_close(output.features["hidden1.linear"], expected.features["hidden1.linear"])


def test_transformers_outputs() -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=28, patch_size=14)
    config.num_channels = 1
    model = ViTForImageClassification(config).eval()
    hidden = model(BATCH, output_hidden_states=True).hidden_states
    output = forward(model, {"pixel_values": BATCH}, ["vit.layers.0", "vit.layers.1:input"])
    assert torch.equal(output.logits, model(BATCH).logits)
    assert torch.equal(output.features["vit.layers.0"], hidden[1])
    assert torch.equal(output.features["vit.layers.1:input"], hidden[1])
    assert output.features["vit.layers.0"].shape == (2, 5, 8)


@pytest.mark.parametrize("layers", [(), ("model.layers.0",)])
def test_documents_in_one_row_do_not_see_each_other(layers: tuple[str, ...]) -> None:
    """Though the model keeps a cache by default, with which its masks would take no notice of positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=10, **sizes)).eval()
    assert model.config.use_cache
    ids, places = torch.randint(10, (2, 7)), torch.tensor([0, 1, 2, 0, 1, 2, 3]).expand(2, -1)
    packed = forward(model, {"input_ids": ids, "position_ids": places}, layers).logits
    alone = [forward(model, {"input_ids": part}, layers).logits for part in (ids[:, :3], ids[:, 3:])]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1))
