import math

import pytest
import torch
from torch import nn

from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.metrics.calibration import adaptive_ece, classwise_ece, ece
from preceptor.metrics.classification import accuracy, brier, nll, top_k
from preceptor.metrics.evaluate import predict, score
from preceptor.metrics.fidelity import agreement, kl_to_teacher, rank_correlation

ALONE = ["accuracy", "top5", "nll", "brier", "ece", "classwise_ece", "adaptive_ece"]
FIDELITY = ["agreement", "kl_to_teacher", "rank_correlation"]


def example_batches(n=23, size=5, classes=6):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 4, generator=generator), torch.randint(classes, (n,), generator=generator)
    return x, y, [{"x": x[i : i + size], "y": y[i : i + size], "id": 100 + torch.arange(n)[i : i + size]} for i in range(0, n, size)]


def network(classes=6):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, classes))


def test_predict_runs_in_eval_mode_and_restores_it():
    x, y, batches = example_batches()
    model = network()
    model[1].eval()  # a part the user froze stays as it was
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, labels, ids = predict(model, batches)
    assert [m.training for m in model] == [True, False, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(logits, model.eval()(x).detach())
    assert not logits.requires_grad
    assert torch.equal(labels, y)
    assert torch.equal(ids, 100 + torch.arange(23))


def test_predict_does_not_depend_on_the_split():
    _, _, small = example_batches(size=1)
    _, _, large = example_batches(size=23)
    torch.testing.assert_close(predict(network(), small).logits, predict(network(), large).logits)


def test_predict_takes_the_scan_of_a_source():
    x, y, _ = example_batches()
    source = Source(examples_from((x, y)), batch_size=10)
    position = source.state_dict()
    predictions = predict(network(), source.scan())
    assert torch.equal(predictions.labels, y)
    assert torch.equal(predictions.ids, torch.arange(23))
    assert source.state_dict() == position


def test_predict_by_keyword_and_in_half_precision():
    class Named(nn.Module):
        def forward(self, pixels):
            return {"logits": pixels.bfloat16()}

    x, _, _ = example_batches()
    out = predict(Named(), [{"x": {"pixels": x}, "y": torch.zeros(23).long(), "id": torch.arange(23)}])
    assert out.logits.dtype == torch.float32
    assert torch.equal(out.logits, x.bfloat16().float())


def test_predict_passes_empty_batches_over_but_needs_an_example():
    _, _, batches = example_batches()
    empty = {key: value[:0] for key, value in batches[0].items()}
    assert len(predict(network(), [empty, *batches, empty]).labels) == 23
    for nothing in ([], [empty]):
        with pytest.raises(ValueError, match="batches: expected at least one example, got none"):
            predict(network(), nothing)


def test_score_is_each_metric():
    generator = torch.Generator().manual_seed(1)
    logits, teacher = torch.randn(2, 300, 7, generator=generator)
    labels = torch.randint(7, (300,), generator=generator)
    scores = score(logits, labels, teacher)
    assert list(scores) == ["accuracy", "top5", "nll", "brier", *FIDELITY, "ece", "classwise_ece", "adaptive_ece"]
    expected = {
        "accuracy": accuracy(logits, labels).mean(),
        "top5": top_k(logits, labels, k=5).mean(),
        "nll": nll(logits, labels).mean(),
        "brier": brier(logits, labels).mean(),
        "ece": ece(logits, labels),
        "classwise_ece": classwise_ece(logits, labels),
        "adaptive_ece": adaptive_ece(logits, labels),
        "agreement": agreement(logits, teacher).mean(),
        "kl_to_teacher": kl_to_teacher(logits, teacher).mean(),
        "rank_correlation": rank_correlation(logits, teacher).mean(),
    }
    assert set(scores) == set(expected)
    for name, value in expected.items():
        assert math.isclose(scores[name], value, rel_tol=1e-5), name


@pytest.mark.parametrize(("classes", "has_top5"), [(5, False), (6, True)])
def test_score_without_teacher_and_with_few_classes(classes, has_top5):
    scores = score(torch.randn(9, classes), torch.zeros(9, dtype=torch.long))
    assert set(scores) == {name for name in ALONE if has_top5 or name != "top5"}
    assert all(type(value) is float for value in scores.values())


def test_score_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="logits: expected at least one example, got none"):
        score(torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
