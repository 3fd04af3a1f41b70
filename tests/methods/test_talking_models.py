"""Talking Models."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.talking_models import CARD, TalkingModels, miniature, state_distance, task_loss
from preceptor.models.conversation import Translator, resume
from preceptor.models.reference import CNN, MLP
from preceptor.models.taps import forward

LAYERS = ("hidden1", "hidden2")
SPLITS = {"student_split": LAYERS, "teacher_split": LAYERS}
TERMS = {"hard", "interaction", "messages", "states", "reconstruction"}


@pytest.fixture
def world() -> tuple[dict, dict, State]:
    """A batch; a student of 4 classes and a teacher of 6, of other widths; a state."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 5, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2, 0]), "id": torch.arange(6)}
    roles = {
        "student": MLP(inputs=5, hidden=(7, 8), classes=4).double(),
        "teacher": MLP(inputs=5, hidden=(12, 9), classes=6).double().requires_grad_(False).eval(),
    }
    return batch, roles, State(total_steps=1)


def ready(method: TalkingModels, world: tuple[dict, dict, State]) -> dict:
    torch.manual_seed(1)
    return {**world[1], **method.extra_roles(world[1], world[0])}


def terms_of(method: TalkingModels, batch: dict, roles: dict) -> tuple[dict, dict]:
    state = State(total_steps=1)
    batch = method.prepare(batch, roles, state)
    return batch, method.loss(batch, method.signal(batch, roles, state), roles, state)


def test_defaults_are_those_of_the_card():
    method = TalkingModels()
    assert (method.interaction_weight, method.message_weight, method.state_weight, method.rounds) == (1.0, 1.0, 1.0, 1)
    assert (method.message_dim, method.distance, method.reconstruction_weight) == (64, "cosine", 0.1)
    assert CARD.slug == "talking-models"


def test_distance_by_hand_and_its_bounds():
    torch.manual_seed(0)
    a, b = torch.randn(7, 5, dtype=torch.double), torch.randn(7, 5, dtype=torch.double)
    for i, value in enumerate(state_distance(a, b).tolist()):
        x, y = a[i].tolist(), b[i].tolist()
        lengths = [math.sqrt(sum(v * v for v in z)) for z in (x, y)]
        wanted = sum((u / lengths[0] - v / lengths[1]) ** 2 for u, v in zip(x, y, strict=True))
        assert math.isclose(value, wanted, rel_tol=1e-12)
    torch.testing.assert_close(state_distance(a, b), 2 - 2 * F.cosine_similarity(a, b))
    torch.testing.assert_close(state_distance(3 * a, 0.1 * b), state_distance(a, b))
    torch.testing.assert_close(state_distance(a, -a), torch.full((7,), 4.0, dtype=torch.double))
    assert (state_distance(a, a) == 0).all()
    torch.testing.assert_close(state_distance(a, b, distance="mse"), (a - b).square().mean(1))
    maps = torch.randn(3, 2, 4, 4, dtype=torch.double)
    torch.testing.assert_close(state_distance(maps, 2 * maps), torch.zeros(3, dtype=torch.double))


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_gradient(distance):
    torch.manual_seed(0)
    a, b = (torch.randn(3, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x, y: state_distance(x, y, distance=distance), (a, b))


def test_a_state_of_zeros_has_no_direction_and_a_finite_gradient():
    a = torch.zeros(2, 4, requires_grad=True)
    loss = state_distance(a, torch.ones(2, 4))
    torch.testing.assert_close(loss, torch.ones(2))
    (gradient,) = torch.autograd.grad(loss.sum(), a)
    assert gradient.isfinite().all()
    assert state_distance(torch.ones(2, 4).bfloat16(), torch.ones(2, 4).bfloat16()).dtype == torch.float32
    assert state_distance(torch.ones(0, 4), torch.ones(0, 4)).shape == (0,)


def test_going_on_from_a_network_s_own_state_changes_nothing(world):
    batch, roles, _ = world
    own = forward(roles["student"], batch["x"], LAYERS)
    again = resume(roles["student"], batch["x"], "hidden1", own.features["hidden1"], LAYERS)
    assert torch.equal(again.logits, own.logits)
    assert torch.equal(again.features["hidden2"], own.features["hidden2"])
    state = torch.rand(6, 7, dtype=torch.double, requires_grad=True)
    output = resume(roles["student"], torch.zeros(6, 5, dtype=torch.double), "hidden1", state)
    student = roles["student"]
    torch.testing.assert_close(output.logits, student.fc(student.hidden2(state)))  # the inputs no longer matter
    gradients = torch.autograd.grad(output.logits.sum(), [state, *student.hidden1.parameters()], allow_unused=True)
    assert gradients[0].any()
    assert gradients[1:] == (None, None)
    assert torch.equal(student(batch["x"]), own.logits)  # the hook is gone


def test_a_replaced_state_leaves_running_statistics_and_modes_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    before = copy.deepcopy(model.state_dict())
    x, state = torch.randn(5, 3), torch.randn(5, 4)
    first = resume(model, x, "0", state).logits
    assert torch.equal(first, resume(model, x, "0", state).logits)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_conversation_is_that_of_the_card(world):
    batch, _, _ = world
    method = TalkingModels(**SPLITS, rounds=2, message_dim=3, hidden=4, interaction_weight=0.7, message_weight=0.4, state_weight=0.3)
    roles = ready(method, world)
    g, t, x = roles["student"], roles["teacher"], batch["x"]
    e_g, d_g = roles["student_translator"].encoder, roles["student_translator"].decoder
    e_t, d_t = roles["teacher_translator"].encoder, roles["teacher_translator"].decoder
    u_g, u_t = g.hidden1(x), t.hidden1(x)
    s_g, s_t = g.hidden2(u_g), t.hidden2(u_t)
    message, losses, replies, answers = e_g(s_g), [], [], []
    for _ in range(2):
        replies.append(e_t(t.hidden2(d_t(message))))
        state = g.hidden2(d_g(replies[-1]))
        answers.append(g.fc(state))
        losses.append(F.cross_entropy(answers[-1], batch["y"], reduction="none"))
        message = e_g(state)
    d = state_distance
    wanted = {
        "hard": F.cross_entropy(g.fc(s_g), batch["y"], reduction="none"),
        "interaction": 0.7 * (losses[0] + losses[1]) / 2,
        "messages": 0.4 * d(e_g(s_g), e_t(s_t)),
        "states": 0.3 * (d(d_g(e_t(s_t)), u_g) + d(d_t(e_g(s_g)), u_t)),
        "reconstruction": 0.1 * d(d_t(e_t(s_t)), u_t),
    }
    _, terms = terms_of(method, batch, roles)
    assert terms.keys() == TERMS
    for name, value in wanted.items():
        torch.testing.assert_close(terms[name], value)
    said = method.converse(roles, x)
    assert [len(part) for part in said] == [3, 2, 2]
    assert all(m.shape == (6, 3) for m in (*said.messages, *said.replies))  # whatever the widths
    torch.testing.assert_close(said.messages[-1], message.detach())
    torch.testing.assert_close(said.replies, [reply.detach() for reply in replies])
    torch.testing.assert_close(said.answers, [answer.detach() for answer in answers])


def test_interaction_teaches_the_translators_through_a_teacher_that_stays(world):
    batch, _, _ = world
    method = TalkingModels(**SPLITS)
    roles = ready(method, world)
    _, terms = terms_of(method, batch, roles)
    terms["interaction"].sum().backward()
    for role in ("student_translator", "teacher_translator"):
        assert all(p.grad is not None and p.grad.any() for p in roles[role].parameters()), role
    assert all(p.grad is None for p in roles["teacher"].parameters())
    assert all(p.grad is not None for p in roles["student"].parameters())


def test_nothing_moves_the_teacher(world):
    batch, _, _ = world
    method = TalkingModels(**SPLITS)
    roles = ready(method, world)
    before = copy.deepcopy(roles["teacher"].state_dict())
    trained = [p for name in method.phases()[0].trains for p in roles[name].parameters()]
    train(method, roles, [batch], torch.optim.Adam(trained, 0.01), steps=5)
    assert all(torch.equal(value, before[key]) for key, value in roles["teacher"].state_dict().items())


def test_with_weights_of_zero_it_is_supervised_training_to_the_bit(world):
    batch, _, _ = world
    method = TalkingModels(**SPLITS, interaction_weight=0.0, message_weight=0.0, state_weight=0.0)
    roles = ready(method, world)
    twin = {"student": copy.deepcopy(roles["student"])}
    for trained, networks in ((method, roles), (CrossEntropy(), twin)):
        names = trained.phases()[0].trains
        train(trained, networks, [batch], torch.optim.Adam([p for n in names for p in networks[n].parameters()], 0.05), steps=20)
    for ours, theirs in zip(roles["student"].parameters(), twin["student"].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_two_equal_networks_that_speak_their_states_agree():
    torch.manual_seed(0)
    model = MLP(inputs=5, hidden=(6, 6), classes=3).double()
    nn.init.eye_(model.hidden2.linear.weight)
    nn.init.zeros_(model.hidden2.linear.bias)  # so that upper states are lower states
    roles = {"student": model, "teacher": copy.deepcopy(model)}
    for role in ("student", "teacher"):
        translator = Translator(torch.Size((1, 6)), torch.Size((1, 6)), message=6, hidden=6, rectified=True).double()
        translator.encoder, translator.decoder = nn.Sequential(nn.Identity()), nn.Sequential(nn.Identity())
        roles[f"{role}_translator"] = translator
    batch = {"x": torch.randn(4, 5, dtype=torch.double), "y": torch.tensor([0, 1, 2, 0]), "id": torch.arange(4)}
    _, terms = terms_of(TalkingModels(**SPLITS), batch, roles)
    for name in ("messages", "states", "reconstruction"):
        assert terms[name].abs().max() < 1e-12, name
    torch.testing.assert_close(terms["interaction"], terms["hard"])  # and the teacher says what the student knew


def test_without_rounds_there_is_no_interaction(world):
    batch, _, _ = world
    roles = ready(TalkingModels(**SPLITS), world)
    silent, without = (terms_of(TalkingModels(**SPLITS, **o), batch, roles)[1] for o in ({"rounds": 0}, {"interaction_weight": 0.0}))
    assert silent.keys() == without.keys() == TERMS - {"interaction"}
    assert all(torch.equal(silent[name], without[name]) for name in silent)
    said = TalkingModels(**SPLITS, rounds=0).converse(roles, batch["x"])
    assert [len(part) for part in said] == [1, 0, 0]


def test_examples_without_labels_are_left_out_of_the_task_and_not_of_the_talk(world):
    batch, _, _ = world
    method = TalkingModels(**SPLITS)
    roles = ready(method, world)
    some = {**batch, "y": torch.tensor([0, -1, 3, -1, 2, 0])}
    prepared, terms = terms_of(method, some, roles)
    assert prepared["mask/hard"].tolist() == prepared["mask/interaction"].tolist() == [1, 0, 1, 0, 1, 1]
    reduced = reduce_terms(terms, prepared, global_counts(prepared), 1)
    _, full = terms_of(method, batch, roles)
    kept = [0, 2, 4, 5]
    for name in ("hard", "interaction"):
        torch.testing.assert_close(reduced[name], full[name][kept].mean())
    for name in ("messages", "states", "reconstruction"):
        torch.testing.assert_close(reduced[name], full[name].mean())
    assert some["y"].tolist() == [0, -1, 3, -1, 2, 0]
    masked = method.prepare({**some, "mask": torch.tensor([0.0, 1, 1, 1, 1, 1])}, roles, State(total_steps=1))
    assert masked["mask/hard"].tolist() == [0, 0, 1, 0, 1, 1]


def test_a_batch_without_labels_has_no_task(world):
    batch, _, _ = world
    method = TalkingModels(**SPLITS)
    roles = ready(method, world)
    _, terms = terms_of(method, {"x": batch["x"], "id": batch["id"]}, roles)
    assert terms.keys() == TERMS - {"hard", "interaction"}


def test_numbers_are_labels_too(world):
    batch, _, _ = world
    output = torch.tensor([[1.0], [2.0]])
    torch.testing.assert_close(task_loss(output, {"y": torch.tensor([0.5, 4.0])}), torch.tensor([0.25, 4.0]))
    with pytest.raises(ValueError, match=r"^y: expected one number for each output \(2, 3\), got \(2,\)$"):
        task_loss(torch.zeros(2, 3), {"y": torch.zeros(2)})
    roles = {"student": MLP(inputs=5, hidden=(7, 8), classes=1).double(), "teacher": world[1]["teacher"]}
    method = TalkingModels(**SPLITS)
    roles |= method.extra_roles(roles, batch)
    y = torch.tensor([0.1, math.nan, 0.3, 2.0, -1.0, 0.0], dtype=torch.double)
    prepared, terms = terms_of(method, {**batch, "y": y}, roles)
    assert prepared["mask/hard"].tolist() == [1, 0, 1, 1, 1, 1]
    assert all(value.isfinite().all() for value in terms.values())


def test_the_warm_up_trains_the_teacher_s_translator_alone(world):
    batch, _, _ = world
    method = TalkingModels(**SPLITS, warmup_steps=3)
    roles = ready(method, world)
    before = copy.deepcopy(roles)
    optimizers = {p.name: torch.optim.Adam([w for r in p.trains for w in roles[r].parameters()], 0.01) for p in method.phases()}
    losses = []
    train(method, roles, [batch], optimizers, steps=3, progress=lambda record: losses.append(record.losses["warmup/reconstruction"]))
    moved = {
        name: not all(torch.equal(a, b) for a, b in zip(roles[name].parameters(), before[name].parameters(), strict=True)) for name in roles
    }
    assert moved == {"student": False, "teacher": False, "student_translator": False, "teacher_translator": True}
    assert losses[-1] < losses[0]


def test_maps_are_spoken_of_by_their_means_and_heard_whole():
    torch.manual_seed(0)
    roles = {"student": CNN(channels=(3, 4), classes=3), "teacher": CNN(channels=(5, 6, 7), norm="batch", classes=2).eval()}
    method = TalkingModels(student_split=("block1", "block2"), teacher_split=("block1", "block3"), message_dim=200, rounds=3)
    batch = {"x": torch.randn(2, 1, 8, 8), "y": torch.tensor([0, 2]), "id": torch.arange(2)}
    roles |= method.extra_roles(roles, batch)
    before = copy.deepcopy(roles["teacher"].state_dict())
    _, terms = terms_of(method, batch, roles)
    assert terms.keys() == TERMS
    assert all(value.shape == (2,) and value.isfinite().all() for value in terms.values())
    assert method.converse(roles, batch["x"]).messages[0].shape == (2, 200)  # wider than both states
    assert roles["student_translator"].hear(torch.zeros(2, 200)).shape == (2, 3, 4, 4)
    assert all(torch.equal(value, before[key]) for key, value in roles["teacher"].state_dict().items())
    state = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(
        roles["student_translator"].say(state), roles["student_translator"].say(state.mean((2, 3), keepdim=True).expand_as(state))
    )


def test_what_is_decoded_is_as_rectified_as_the_state(world):
    roles = ready(TalkingModels(**SPLITS), world)
    assert isinstance(roles["student_translator"].decoder[-1], nn.ReLU)
    signed = TalkingModels(student_split=("hidden1.linear", "hidden2"), teacher_split=LAYERS)
    assert isinstance(ready(signed, world)["student_translator"].decoder[-1], nn.Linear)
    tokens = Translator(torch.Size((2, 5, 8)), torch.Size((2, 5, 6)), message=3, hidden=4, rectified=False)
    assert tokens.hear(tokens.say(torch.randn(2, 5, 8))).shape == (2, 5, 6)


def test_the_user_s_own_translators_are_kept(world):
    roles = ready(TalkingModels(**SPLITS), world)
    assert TalkingModels(**SPLITS).extra_roles(roles, world[0]) == {}


def test_bad_input_is_refused(world):
    batch, roles, _ = world
    for options, message in (
        ({"rounds": -1}, r"^rounds: expected a number >= 0, got -1$"),
        ({"message_dim": 0}, r"^message_dim: expected at least 1, got 0$"),
        ({"state_weight": math.nan}, r"^state_weight: expected a number >= 0, got nan$"),
        ({"distance": "l1"}, r"^distance: expected one of cosine, mse, got 'l1'$"),
    ):
        with pytest.raises(ValueError, match=message):
            TalkingModels(**options)
    with pytest.raises(
        ValueError, match=r"^student_split: expected two layers, the lower and the upper, got \[\], the student has hidden1, "
    ):
        TalkingModels().extra_roles(roles, batch)
    with pytest.raises(ValueError, match=r"^layers: expected names of layers of MLP, got 'hiden2' \(nearest: hidden2"):
        TalkingModels(student_split=LAYERS, teacher_split=("hidden1", "hiden2")).extra_roles(roles, batch)
    with pytest.raises(ValueError, match=r"^state: expected shape \(6, 7\) as 'hidden1' has, got \(6, 3\)$"):
        resume(roles["student"], batch["x"], "hidden1", torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"^layer: expected a layer whose output can be replaced, got 'fc:input'$"):
        resume(roles["student"], batch["x"], "fc:input", torch.zeros(6, 3))
    with pytest.raises(ValueError, match=r"^heard: expected states \(N, D\), \(N, L, D\) or \(N, C, H, W\), got \(6,\)$"):
        Translator(torch.Size((6, 2)), torch.Size((6,)), message=2, hidden=2, rectified=False)
    with pytest.raises(ValueError, match=r"^b: expected shape \(2, 3\) like a, got \(2, 4\)$"):
        state_distance(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"^a: expected a floating-point tensor, got torch\.int64$"):
        state_distance(torch.zeros(2, 3).long(), torch.zeros(2, 3))


def test_miniature():
    run = miniature(1, "smoke")
    assert {"untrained-teacher", "alone", "hint", "talking-models", "interaction-1"} < run.arms.keys()
    assert run == miniature(1, "smoke")
