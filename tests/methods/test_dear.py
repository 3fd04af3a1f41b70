import pytest
import torch
from tests.data.test_passages import Words
from transformers import LlamaConfig, LlamaForSequenceClassification

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.passages import passage_batch
from preceptor.losses.groups import listnet, positive_nll, ranknet
from preceptor.methods.dear import DeAR, group_distill_loss, main_loss, miniature
from preceptor.models.group_scorer import GroupScorer

MAINS = ("ce", "ranknet", "ranknet-binary", "listnet", "listnet-binary", "ranknet-ce")


def scores(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return *(torch.randn(4, 5, dtype=torch.double, generator=generator) for _ in range(2)), torch.tensor([0, 3, 1, 4])


def total(*args, **options):
    return sum(group_distill_loss(*args, **options))


def test_main_losses_are_what_they_say():
    s, t, y = scores()
    clicked = torch.nn.functional.one_hot(y, 5).double()
    expected = {
        "ce": positive_nll(s, y),
        "ranknet": ranknet(s, t),
        "ranknet-binary": ranknet(s, clicked),
        "listnet": listnet(s, t),
        "listnet-binary": listnet(s, clicked),
        "ranknet-ce": (ranknet(s, clicked) + positive_nll(s, y)) / 2,
    }
    for main in MAINS:
        torch.testing.assert_close(main_loss(s, t, y, main=main), expected[main])
        torch.testing.assert_close(total(s, None if main in ("ce", "ranknet-ce") else t, y, main=main, alpha=0.0), expected[main])


@pytest.mark.parametrize("main", MAINS)
def test_alpha_1_ignores_labels_and_alpha_0_the_teacher(main):
    s, t, y = scores()
    torch.testing.assert_close(total(s, t, y, main=main, alpha=1.0), total(s, t, y.flip(0), main=main, alpha=1.0))
    same = torch.allclose(total(s, t, y, main=main, alpha=0.0), total(s, -t, y, main=main, alpha=0.0))
    assert same == (main not in ("ranknet", "listnet"))


def test_the_place_of_the_positive_does_not_matter():
    s, t, y = scores()
    order = torch.stack([torch.tensor([at, *(i for i in range(5) if i != at)]) for at in y.tolist()])
    for main in MAINS:
        first = total(s.gather(1, order), t.gather(1, order), torch.zeros_like(y), main=main)
        torch.testing.assert_close(first, total(s, t, y, main=main))


def test_a_method_without_a_teacher_learns_from_labels():
    s, _, y = scores()

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = torch.nn.Parameter(s.clone())

        def forward(self, x):
            return self.scores[x]

    roles, batch = {"student": Table()}, {"x": torch.arange(4), "y": y}
    method = DeAR(main="ce")
    state = State(total_steps=1)
    terms = method.loss(batch, method.signal(batch, roles, state), roles, state)
    assert terms.keys() == {"main"}
    torch.testing.assert_close(terms["main"], positive_nll(s, y))
    with pytest.raises(ValueError, match="teacher: expected scores for main 'ranknet', got None"):
        DeAR().loss(batch, {}, roles, state)


def scorer(layers, *, pad=0):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": layers}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=40, num_labels=1, pad_token_id=pad, **sizes))


def test_cross_encoders_of_two_tokenizers_learn_together():
    torch.manual_seed(0)
    roles = {"student": GroupScorer(scorer(1)), "teacher": GroupScorer(scorer(2))}
    batch = passage_batch(["x yy", "zzz"], [["aa bbb cccc", "d", "ff g"], ["eeee", "aaa"]], Words(), teacher=Words(10))
    before = [p.clone() for p in roles["teacher"].parameters()]
    losses = []
    train(
        DeAR(),
        roles,
        [batch],
        torch.optim.Adam(roles["student"].parameters(), lr=0.01),
        steps=30,
        progress=lambda record: losses.append(record.losses["distill"]),
    )
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(a, b) for a, b in zip(before, roles["teacher"].parameters(), strict=True))


def test_a_score_does_not_depend_on_padding():
    torch.manual_seed(0)
    model = GroupScorer(scorer(1)).eval()
    long, short = (passage_batch(["x"], [group], Words())["x"] for group in (["a", "b c d e f"], ["a"]))
    torch.testing.assert_close(model(**long)[:, :1], model(**short))


def test_networks_that_cannot_score():
    with pytest.raises(ValueError, match=r"config.pad_token_id, got None"):
        GroupScorer(scorer(1, pad=None))
    model = scorer(1)
    model.config.num_labels = 3
    with pytest.raises(ValueError, match=r"num_labels=1\), got 3"):
        GroupScorer(model)


def test_bad_numbers():
    for options in ({"main": "lambda"}, {"temperature": 0.0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match=next(iter(options))):
            DeAR(**options)


def test_miniature():
    found = miniature(0, "smoke")
    assert {"teacher", "ce", "pointwise", "dear", "untrained-agent", "untrained-teacher"} <= found.arms.keys()
    assert all(0 <= value <= 1 for arm in found.arms.values() for value in arm.values())
    assert found.arms["dear"]["ndcg"] == found.arms["pointwise"]["ndcg"]
