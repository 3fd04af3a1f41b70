import copy
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from preceptor import export as module
from preceptor.export import FILE_NAMES, export
from preceptor.export_check import check

FORMATS = ("onnx", "torch-export", "int8")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16 * 64, 96)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(96, 10)

    def forward(self, x):
        return self.fc(self.drop(F.relu(self.hidden(F.relu(self.norm(self.conv(x))).flatten(1)))))


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    return torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)


@pytest.fixture(scope="module")
def student(digits):
    x, y = digits
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(5):
        for indices in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[indices]), y[indices]).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def results(student, digits, tmp_path_factory):
    """Every format once: {format: (folder, Exported)}; calibrated on training digits, compared on 397 others (not a multiple of 64)."""
    x, _ = digits
    folder = tmp_path_factory.mktemp("export")
    before = copy.deepcopy(student.state_dict())
    done = {to: (folder, export(student, x[:200], to=to, out=folder, check_inputs=x[1400:])) for to in FORMATS}
    assert student.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    return done


@pytest.mark.parametrize("to", FORMATS)
def test_artefact_and_report_lie_side_by_side(results, to):
    folder, exported = results[to]
    artefact = folder / FILE_NAMES[to]
    assert sorted(path.name for path in folder.iterdir()) == sorted(name + end for name in FILE_NAMES.values() for end in ("", ".json"))
    assert json.loads((folder / (artefact.name + ".json")).read_text()) == asdict(exported)
    assert (exported.format, exported.file, exported.bytes) == (to, artefact.name, artefact.stat().st_size)
    assert exported.examples == 397


def test_float_formats_say_what_the_student_says(results):
    for to in ("onnx", "torch-export"):
        _, exported = results[to]
        assert exported.agreement == 1.0
        assert exported.max_abs_error < 1e-4
        assert 0.9 < exported.size_ratio < 1.5
    assert results["torch-export"][1].runtime == f"torch {torch.__version__}"
    assert results["onnx"][1].runtime == f"onnxruntime {onnxruntime.__version__}"


def test_no_example_is_saved_with_the_program(results):
    folder, exported = results["torch-export"]
    assert torch.export.load(folder / "model.pt2").example_inputs is None
    assert exported.bytes < exported.student_bytes + 50_000  # 200 digits as float32 are 51,200 bytes


@pytest.mark.parametrize("to", FORMATS)
def test_no_line_of_the_source_is_saved(results, to):
    folder, _ = results[to]
    content = (folder / FILE_NAMES[to]).read_bytes()
    assert b"hidden" in content or b"conv" in content  # names are readable, so a path would be, too
    assert Path(__file__).name.encode() not in content
    assert b"self.conv(x)" not in content
    assert b"site-packages" not in content


def test_int8_is_small_and_still_right(results, digits):
    folder, exported = results["int8"]
    assert exported.agreement > 0.95
    assert exported.size_ratio < 0.35
    assert exported.max_abs_error > 1e-4  # it is really quantised
    weights = {tensor.data_type for tensor in onnx.load(folder / FILE_NAMES["int8"]).graph.initializer if math.prod(tensor.dims) > 1000}
    assert weights == {onnx.TensorProto.INT8}
    x, y = digits
    session = onnxruntime.InferenceSession(folder / FILE_NAMES["int8"], providers=["CPUExecutionProvider"])
    accuracy = (session.run(None, {"x": x[1400:].numpy()})[0].argmax(1) == y[1400:].numpy()).mean()
    assert accuracy > 0.9


def test_batch_axis_is_free(results, student, digits):
    x, _ = digits
    folder, _ = results["onnx"]
    expected = copy.deepcopy(student).eval()(x[:7]).detach()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(folder / "model.pt2").module()
    assert [(node.name, node.shape[1:]) for node in session.get_inputs()] == [("x", [1, 8, 8])]
    assert [node.name for node in session.get_outputs()] == ["logits"]
    for size in (1, 3, 7):
        assert np.allclose(session.run(None, {"x": x[:size].numpy()})[0], expected[:size], atol=1e-5)
        torch.testing.assert_close(program(x[:size]), expected[:size], atol=1e-5, rtol=1e-5)


def test_latency_and_size_are_ratios_to_the_student(results):
    for to in FORMATS:
        _, exported = results[to]
        assert exported.size_ratio == exported.bytes / exported.student_bytes
        for size in ("1", "64"):
            ours, student = exported.latency_ms[size], exported.student_latency_ms[size]
            assert 0 < ours["p50"] <= ours["p95"]
            assert exported.latency_ratio[size] == ours["p50"] / student["p50"]
        assert exported.threads == torch.get_num_threads()


@pytest.mark.parametrize("to", FORMATS)
def test_transformers_models(to, tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    model = ViTForImageClassification(config)
    x = torch.randn(20, 1, 8, 8)
    with torch.no_grad():
        model.classifier.weight *= 50  # spreads the logits of this untrained model, so that agreement means something
    assert len(model.eval()(x).logits.argmax(1).unique()) > 1
    exported = export(model, {"pixel_values": x}, to=to, out=tmp_path)
    assert exported.agreement == 1.0 if to != "int8" else exported.agreement >= 0.9
    if to == "torch-export":
        logits = torch.export.load(tmp_path / "model.pt2").module()({"pixel_values": x[:3]})
        torch.testing.assert_close(logits, model(x[:3]).logits, atol=1e-4, rtol=1e-4)
    else:
        session = onnxruntime.InferenceSession(tmp_path / FILE_NAMES[to], providers=["CPUExecutionProvider"])
        assert [node.name for node in session.get_inputs()] == ["pixel_values"]


def test_several_inputs_keep_their_names(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(9, 4)
            self.fc = nn.Linear(4, 3)

        def forward(self, ids, weight):
            return {"logits": self.fc((self.embed(ids) * weight[..., None]).sum(1))}

    inputs = {"weight": torch.rand(6, 5, dtype=torch.double), "ids": torch.randint(9, (6, 5))}  # not in the order of the signature
    assert export(Two().double(), inputs, to="onnx", out=tmp_path).max_abs_error < 1e-5
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert {node.name: node.type for node in session.get_inputs()} == {"weight": "tensor(float)", "ids": "tensor(int64)"}


def test_an_artefact_that_disagrees_is_not_put_in_place(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Linear(8, 5), torch.randn(50, 8)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.neg_()
    trace = module._trace
    monkeypatch.setattr(module, "_trace", lambda _, examples: trace(module._Student(other, by_keyword=False), examples))
    with pytest.raises(RuntimeError, match=r"onnx: expected agreement with the student of at least 0.99, got 0\.\d+"):
        export(model, x, to="onnx", out=tmp_path)
    assert list(tmp_path.iterdir()) == []
    exported = export(model, x, to="onnx", out=tmp_path, min_agreement=0)
    assert exported.agreement < 0.5
    assert exported.max_abs_error > 1


def test_a_model_that_cannot_be_traced_is_one_line(tmp_path):
    class Fickle(nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(RuntimeError, match=r"torch.export cannot trace the model with a free batch axis: .+") as info:
        export(Fickle(), torch.randn(4, 3), to="torch-export", out=tmp_path)
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_load_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_save_onnx", lambda program, names, path: path.write_bytes(b"broken"))
    with pytest.raises(RuntimeError, match=r"onnx: the exported file does not run in a fresh process: .+") as info:
        export(nn.Linear(3, 2), torch.randn(4, 3), to="onnx", out=tmp_path)
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
@pytest.mark.parametrize("to", ["onnx", "int8"])
def test_a_missing_extra_is_one_line(name, to, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"^{name} is needed for exporting to {to}: pip install 'preceptor\[export\]'$"):
        export(nn.Linear(3, 2), torch.randn(4, 3), to=to, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("inputs", "to", "words"),
    [
        (torch.randn(4, 3), "tflite", "to: expected onnx, torch-export, int8, got 'tflite'"),
        (torch.randn(1, 3), "onnx", "example_inputs: expected at least 2 examples, so that the batch axis stays free, got 1"),
        (torch.randn(0, 3), "onnx", r"example_inputs: expected tensors with the same number of examples, at least one, got \[0\]"),
        ({"a": torch.randn(2), "b": torch.randn(3)}, "onnx", r"the same number of examples, at least one, got \[2, 3\]"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(inputs, to, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        export(nn.Linear(3, 2), inputs, to=to, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_check_sees_other_shapes_and_values_that_are_not_finite(results, digits, tmp_path):
    folder, _ = results["onnx"]
    x = digits[0][:10].contiguous()
    save_file({"input": x, "logits": torch.zeros(10, 4)}, tmp_path / "data")
    with pytest.raises(ValueError, match=r"expected logits of shape \(10, 4\) like the student's, got \(10, 10\)"):
        check(folder / "model.onnx", tmp_path / "data", threads=1)
    save_file({"input": x, "logits": torch.full((10, 10), -math.inf)}, tmp_path / "data")
    with pytest.raises(ValueError, match="finite where the student's are"):
        check(folder / "model.onnx", tmp_path / "data", threads=1)


def test_check_counts_disagreement(results, student, digits, tmp_path):
    folder, _ = results["onnx"]
    x = digits[0][:10].contiguous()
    logits = copy.deepcopy(student).eval()(x).detach()
    logits[:3] = -logits[:3]
    save_file({"input": x, "logits": logits}, tmp_path / "data")
    assert check(folder / "model.onnx", tmp_path / "data", threads=1)["agreement"] == 0.7


def test_an_onnx_file_is_checked_without_torch(results, digits, tmp_path):
    folder, _ = results["onnx"]
    save_file({"input": digits[0][:10].contiguous(), "logits": torch.zeros(10, 10)}, tmp_path / "data")
    code = (
        "import sys; from pathlib import Path; from preceptor.export_check import check;"
        f"check(Path({str(folder / 'model.onnx')!r}), Path({str(tmp_path / 'data')!r}), threads=1);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exporting_again_replaces_the_artefact(tmp_path):
    x = torch.randn(8, 3)
    first = export(nn.Linear(3, 2), x, to="onnx", out=tmp_path)
    second = export(nn.Sequential(nn.Linear(3, 50), nn.ReLU(), nn.Linear(50, 2)), x, to="onnx", out=tmp_path)
    assert (tmp_path / "model.onnx").stat().st_size == second.bytes > first.bytes
    assert json.loads((tmp_path / "model.onnx.json").read_text()) == asdict(second)
