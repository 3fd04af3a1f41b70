import math
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from preceptor.metrics import cost as module
from preceptor.metrics.cost import (
    checkpoint_bytes,
    cost,
    latency,
    macs,
    parameters,
    peak_memory_mb,
    peak_tensor_mb,
    reset_peak_memory,
    take,
)
from preceptor.metrics.timing import timed


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids).mean(1))


class Attention(nn.Module):
    """Self-attention by torch's fused function, written out apart from nn.MultiheadAttention."""

    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, width))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Linear(20, 7), (20,), 20 * 7),
        (nn.Linear(20, 7, bias=False), (5, 20), 5 * 20 * 7),
        (nn.Conv2d(4, 8, 3), (4, 10, 9), 8 * 4 * 3 * 3 * 8 * 7),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2), (4, 8, 8), 8 * 2 * 3 * 3 * 4 * 4),
        (Attention(), (9, 16), 4 * 9 * 16 * 16 + 2 * 9 * 9 * 16),
        (SelfAttention(), (9, 16), 4 * 9 * 16 * 16 + 2 * 9 * 9 * 16),
        (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (9, 16), 4 * 9 * 16 * 16 + 2 * 9 * 9 * 16 + 2 * 9 * 16 * 32),
        (nn.LSTM(16, 8, batch_first=True), (9, 16), 9 * 4 * 8 * (16 + 8)),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)), (3, 4), 12 * 3),
    ],
)
def test_macs_by_hand(model, shape, expected):
    assert macs(model, torch.randn(1, *shape)) == expected
    assert macs(model, torch.randn(6, *shape)) == expected  # of one example, however many are given
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_macs_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert macs(model, torch.randn(1, 5)) == 25  # batch norm in train mode would refuse a single example
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_inputs_by_keyword():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, *, pixels, scale):
            return {"logits": self.fc(pixels * scale)}

    inputs = {"pixels": torch.randn(3, 4), "scale": torch.ones(3, 1)}
    assert macs(Named(), inputs) == 12
    assert set(latency(Named(), inputs, repeats=3)) == {"1", "64"}


def test_parameters_and_checkpoint(tmp_path):
    model = nn.Sequential(nn.Linear(20, 7), nn.BatchNorm1d(7))
    assert parameters(model) == 20 * 7 + 7 + 14
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert checkpoint_bytes(model) == (tmp_path / "model.safetensors").stat().st_size
    assert sum(tensor.numel() * tensor.element_size() for tensor in load_file(tmp_path / "model.safetensors").values()) < checkpoint_bytes(
        model
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert parameters(model) == 161


def test_shared_weights_count_once():
    assert parameters(Tied()) == 66
    assert 66 * 4 <= checkpoint_bytes(Tied()) < 2 * 66 * 4


def test_take_repeats_examples_in_turn():
    assert take(torch.arange(3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert take({"a": torch.arange(3), "b": torch.arange(3, 6)}, 2)["b"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("inputs", "size", "words"),
    [
        (torch.zeros(0, 3), 1, r"inputs: expected .* at least one, got \[0\]"),
        ({"a": torch.zeros(2), "b": torch.zeros(3)}, 1, r"the same number of examples, at least one, got \[2, 3\]"),
        ({}, 1, "got no tensor"),
        (torch.zeros(2, 3), 0, "batch size: expected at least 1, got 0"),
    ],
)
def test_take_names_bad_input(inputs, size, words):
    with pytest.raises(ValueError, match=words):
        take(inputs, size)


def test_latency_sees_the_batch_size_and_runs_in_eval_mode():
    seen = []

    class Slow(nn.Module):
        def forward(self, x):
            seen.append((len(x), self.training, torch.is_grad_enabled()))
            time.sleep(0.001 * len(x))
            return x

    result = latency(Slow(), torch.zeros(2, 3), batch_sizes=(1, 8), warmup=2, repeats=5)
    assert seen == [(1, False, False)] * 7 + [(8, False, False)] * 7
    assert 1 <= result["1"]["p50"] <= result["1"]["p95"]
    assert result["8"]["p50"] >= 8


def test_timed_leaves_the_warm_up_out(monkeypatch):
    clock = iter([0, 100, 100, 101, 101, 103, 103, 106])  # one call of 100 s, then calls of 1, 2 and 3 s
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    result = timed(lambda: None, warmup=1, repeats=3, budget=1000)
    assert math.isclose(result["p50"], 2000)
    assert math.isclose(result["p95"], 2900)


def test_timed_stops_when_the_budget_is_used_up():
    calls = []
    timed(lambda: (calls.append(0), time.sleep(0.02)), warmup=50, repeats=50, budget=0.001)
    assert len(calls) == 1 + 3


def test_cost_holds_all_figures():
    result = cost(nn.Linear(20, 7), torch.randn(2, 20), batch_sizes=(1, 4))
    assert (result["parameters"], result["macs"]) == (147, 140)
    assert set(result["latency_ms"]) == {"1", "4"}
    assert result["checkpoint_bytes"] > 147 * 4


def test_peak_memory_rises_and_is_reset():
    resettable = reset_peak_memory()
    start = peak_memory_mb()
    block = torch.ones(30_000_000)  # 120 MB, written to
    high = peak_memory_mb()
    assert block.sum() > 0
    assert start + 100 < high < start + 200
    del block
    assert peak_memory_mb() > high - 5  # it stays; the kernel counts pages in batches, so the last few may come and go
    if resettable:
        assert reset_peak_memory()
        assert peak_memory_mb() < high - 100


def test_the_peak_of_tensors_counts_what_lives_at_one_time():
    def call():
        first = torch.zeros(1000, 250)  # 1 MB
        view = first.view(250, 1000)[:, :10]  # no memory of its own
        del first
        second = torch.ones(250, 1000)  # 2 MB now
        second += 1
        del view, second
        return torch.zeros(500, 250)

    assert peak_tensor_mb(call) == peak_tensor_mb(call) == 2.0


def test_the_peak_of_tensors_sees_the_backward_pass_and_not_what_was_there():
    weight = torch.randn(1000, 250, requires_grad=True)
    assert peak_tensor_mb(lambda: weight.exp().sum().backward()) == pytest.approx(2.0, abs=0.01)  # result and gradient


def test_peak_memory_without_proc(monkeypatch, tmp_path):
    kernel = peak_memory_mb()
    monkeypatch.setattr(module, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(module, "_CLEAR_REFS", tmp_path / "none" / "none")
    assert not reset_peak_memory()
    assert peak_memory_mb() > kernel - 50  # getrusage: the peak of the whole life, in the same unit
    assert peak_memory_mb() < 100 * kernel
