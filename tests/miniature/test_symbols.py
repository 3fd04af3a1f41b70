"""Toy languages: contexts line up with their symbols, samples follow the model."""

import torch

from preceptor.miniature.symbols import ContextLM, TextLM, all_contexts, code, contexts_of, peaked_table, sample


def test_contexts_stand_before_their_symbols():
    texts = torch.tensor([[3, 1, 2, 4]])
    assert contexts_of(texts, 2).tolist() == [[[0, 0], [0, 3], [3, 1], [1, 2]]]


def test_every_context_has_its_number():
    contexts = all_contexts(4, 3)
    assert code(contexts, 4).tolist() == list(range(64))


def test_samples_follow_the_model():
    generator = torch.Generator().manual_seed(0)
    table = peaked_table(5, 1, sharpness=1.5, generator=generator)
    texts = sample(table, 4000, 6, generator=generator)
    contexts = contexts_of(texts, 1)[:, 1:].flatten()
    counts = torch.zeros(5, 5).index_put_((contexts, texts[:, 1:].flatten()), torch.ones(contexts.numel()), accumulate=True)
    seen = counts / counts.sum(1, keepdim=True)
    assert (seen - table.table.softmax(-1)).abs().max() < 0.05


def test_a_network_sees_nothing_but_its_context():
    torch.manual_seed(0)
    model = ContextLM(symbols=4, context=2, hidden=8)
    assert model(all_contexts(4, 2)).shape == (16, 4)
    assert not torch.equal(model(torch.tensor([1, 2])), model(torch.tensor([2, 1])))


def test_as_a_language_model_it_sees_each_symbol_and_those_before():
    torch.manual_seed(0)
    network = ContextLM(symbols=4, context=3, hidden=8)
    texts = torch.tensor([[3, 1, 2], [1, 1, 0]])
    logits = TextLM(network)(texts, use_cache=False)
    torch.testing.assert_close(logits[:, :-1], network(contexts_of(texts, 3)[:, 1:]))
    torch.testing.assert_close(logits[:, -1], network(texts))
