"""The world of encoders."""

import math

import torch

from preceptor.miniature.encoders import HeLinear, encoder_world
from preceptor.models.embeddings import embed
from preceptor.models.fresh import fresh_copy


def test_layers_are_drawn_with_a_variance_of_2_by_outputs_and_no_bias():
    torch.manual_seed(0)
    layer = HeLinear(400, 200)
    for drawn in (layer, fresh_copy(layer)):
        assert math.isclose(float(drawn.weight.detach().var()), 2 / 200, rel_tol=0.02)
        assert not drawn.bias.any()
    assert not torch.equal(fresh_copy(layer).weight, layer.weight)


def test_a_seed_is_a_network_and_a_training_set():
    world, again, other = encoder_world(0, "full"), encoder_world(0, "full"), encoder_world(1, "full")
    for one, same, another in zip(*(w.student().parameters() for w in (world, again, other)), strict=True):
        assert torch.equal(one, same)
        assert not one.any() or not torch.equal(one, another)
    assert torch.equal(world.train.ids, again.train.ids)
    assert not torch.equal(world.train.ids, other.train.ids)
    assert torch.equal(world.test.ids, other.test.ids)
    assert (len(world.train), len(world.test)) == (2000, 1000)


def test_an_embedding_is_what_the_last_layer_before_the_class_head_gives():
    world = encoder_world(0, "full")
    student = world.student()
    x = world.test.batch(torch.arange(5))["x"]
    logits, vectors = embed(student, x)
    torch.testing.assert_close(vectors, student[:-1](x))
    torch.testing.assert_close(logits, student[-1](vectors))
    assert vectors.shape == (5, 64)
    assert (vectors < 0).any()  # no ReLU after it
