"""Swing distillation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from preceptor.composition import compose
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.data.privacy import TokenTable, item_seeds, seeded_noise
from preceptor.losses.divergence import forward_kl
from preceptor.losses.hard import hard_loss
from preceptor.methods.classic_kd import ClassicKD
from preceptor.methods.logit_standardization import LogitStandardization, standardize_logits
from preceptor.methods.swing import CARD, Swing, miniature, swing_loss, swing_targets


@pytest.fixture
def items() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of student and teacher, 2 x 4 items of 5 classes, scores with 0 and 1 among them, seeds."""
    torch.manual_seed(0)
    student, teacher = 2 * torch.randn(2, 4, 5, dtype=torch.double), 3 * torch.randn(2, 4, 5, dtype=torch.double)
    privacy = torch.tensor([[0.0, 0.2, 1.0, 0.5], [1.0, 0.0, 0.9, 0.3]], dtype=torch.double)
    return student, teacher, privacy, item_seeds(torch.tensor([7, 3]), (2, 4), 1)


def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def slow_target(row: list[float], rho: float, drawn: list[float], *, t_max: float, b: float, floor: float) -> list[float]:
    """One target from the equations."""
    temperature = 1 + (t_max - 1) * rho
    weights = [math.exp(v / temperature) for v in row]
    q = [w / sum(weights) for w in weights]
    if b * rho == 0:
        return q
    excess = [max(p + rho * b * xi - floor, 0.0) for p, xi in zip(q, drawn, strict=True)]
    return [floor + (1 - len(row) * floor) * e / sum(excess) for e in excess]


def test_defaults():
    method = Swing()
    assert (method.t_base, method.t_max, method.noise_scale, method.noise) == (1.0, 20.0, 0.2, "laplace")
    assert (method.asymmetric, method.frozen_noise, method.hard_weight) == (True, False, 0.0)
    assert CARD.tasks == ("classification", "language")


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_reference(items, kind, asymmetric):
    student, teacher, privacy, seeds = items
    targets = swing_targets(teacher, privacy, t_max=6.0, noise_scale=0.1, noise=kind, floor=0.01, seeds=seeds)
    loss = swing_loss(student, targets, privacy, t_max=6.0, asymmetric=asymmetric)
    drawn = seeded_noise(seeds, 5, kind)
    for n in range(2):
        for t in range(4):
            rho = privacy[n, t].item()
            q = slow_target(teacher[n, t].tolist(), rho, drawn[n, t].tolist(), t_max=6.0, b=0.1, floor=0.01)
            assert targets[n, t].tolist() == pytest.approx(q, rel=1e-12)
            heat = 1.0 if asymmetric else 1 + 5 * rho
            z = [v / heat for v in student[n, t].tolist()]
            total = sum(map(math.exp, z))
            value = sum(p * (math.log(p) - v + math.log(total)) for p, v in zip(q, z, strict=True))
            assert math.isclose(loss[n, t].item(), heat**2 * value, rel_tol=1e-9)


def test_the_base_temperature_and_the_power_reach_the_loss(items):
    student, teacher, privacy, _ = items
    options = {"t_base": 2.0, "t_max": 6.0, "power": 3.0}
    heated = 2 + 4 * privacy**3
    loss = swing_loss(student, swing_targets(teacher, privacy, **options), privacy, **options)
    torch.testing.assert_close(loss, 4 * forward_kl(student, teacher, temperature=torch.full_like(heated, 2), teacher_temperature=heated))
    loss = swing_loss(student, swing_targets(teacher, privacy, **options), privacy, **options, asymmetric=False)
    torch.testing.assert_close(loss, heated**2 * forward_kl(student, teacher, temperature=heated))


@pytest.mark.parametrize("t_base", [1.0, 1.1])
def test_nothing_private_and_no_noise_is_plain_distillation(items, t_base):
    student, teacher, privacy, seeds = items
    public = torch.zeros_like(privacy).float()  # scores of a lower precision than logits take nothing off the temperature's
    targets = swing_targets(teacher, public, t_base=t_base, noise_scale=5.0, seeds=seeds)  # noise is multiplied by 0
    assert torch.equal(targets, (teacher / t_base).log_softmax(-1).exp())
    loss = swing_loss(student, targets, public, t_base=t_base)
    torch.testing.assert_close(loss, t_base**2 * forward_kl(student, teacher, temperature=t_base), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-3, 0.2, 10.0, 1e6])
@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
def test_targets_are_distributions_with_any_noise(scale, kind):
    torch.manual_seed(0)
    teacher, seeds = 5 * torch.randn(2000, 7), torch.arange(2000) * 1000
    targets = swing_targets(teacher, torch.ones(2000), noise_scale=scale, noise=kind, floor=1e-4, seeds=seeds)
    assert targets.min() >= 1e-4 * (1 - 1e-5)
    torch.testing.assert_close(targets.sum(-1), torch.ones(2000))


def test_noise_that_leaves_no_class_gives_the_uniform_target():
    seeds = torch.arange(100)
    worst = seeded_noise(seeds, 2).amax(-1).argmin()
    assert seeded_noise(seeds[worst], 2).max() < 0
    target = swing_targets(torch.zeros(1, 2), torch.ones(1), noise_scale=1e4, seeds=seeds[worst : worst + 1])
    assert target.tolist() == [[0.5, 0.5]]


def test_an_endless_temperature_leaves_nothing(items):
    _, teacher, privacy, _ = items
    targets = swing_targets(teacher, torch.ones_like(privacy), t_max=1e12)
    torch.testing.assert_close(targets, torch.full_like(targets, 0.2))


def test_entropy_grows_with_the_score():
    torch.manual_seed(0)
    teacher = 4 * torch.randn(50, 1, 6, dtype=torch.double)
    privacy = torch.linspace(0, 1, 21, dtype=torch.double).expand(50, 21)
    found = entropy(swing_targets(teacher.expand(50, 21, 6), privacy, t_max=9.0))
    assert (found.diff(dim=1) > 0).all()


@pytest.mark.parametrize(("asymmetric", "heat"), [(True, 8.0), (False, 1.0)])
def test_what_the_student_ends_with(asymmetric, heat):
    """The asymmetric form ends at the flattened teacher, the symmetric one at the teacher itself, secret and all."""
    torch.manual_seed(0)
    teacher, private = 4 * torch.randn(1, 5, dtype=torch.double), torch.ones(1, dtype=torch.double)
    student = torch.zeros(1, 5, dtype=torch.double, requires_grad=True)
    targets = swing_targets(teacher, private, t_max=8.0)
    optimizer = torch.optim.LBFGS([student], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = swing_loss(student, targets, private, t_max=8.0, asymmetric=asymmetric).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(student.detach().softmax(-1), (teacher / heat).softmax(-1), rtol=1e-5, atol=1e-7)


def test_gradient(items):
    student, teacher, privacy, seeds = items
    targets = swing_targets(teacher, privacy, noise_scale=0.1, seeds=seeds)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]])
    for options in ({}, {"asymmetric": False}, {"mask": mask}):
        assert torch.autograd.gradcheck(lambda x, o=options: swing_loss(x, targets, privacy, **o), (student.requires_grad_(),))


def test_targets_are_constant(items):
    student, teacher, privacy, seeds = items
    teacher.requires_grad_()
    swing_loss(student.requires_grad_(), swing_targets(teacher, privacy, noise_scale=0.1, seeds=seeds), privacy).sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_masked_items_cost_nothing_and_change_nothing(items):
    student, teacher, privacy, _ = items
    mask = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    broken = student.masked_fill(mask.unsqueeze(-1) == 0, math.nan).requires_grad_()
    loss = swing_loss(broken, swing_targets(teacher, privacy), privacy, mask=mask)
    torch.testing.assert_close(loss, swing_loss(student, swing_targets(teacher, privacy), privacy) * mask)
    (gradient,) = torch.autograd.grad(loss.sum(), broken)
    assert gradient.isfinite().all()
    assert torch.equal(gradient.abs().sum(-1) > 0, mask > 0)
    nothing = swing_loss(broken, swing_targets(teacher, privacy), privacy, mask=torch.zeros(2, 4))
    assert nothing.tolist() == [[0.0] * 4] * 2
    assert torch.equal(torch.autograd.grad(nothing.sum(), broken)[0], torch.zeros_like(student))


def test_noise_is_of_the_seed_and_of_private_items_alone(items):
    _, teacher, privacy, seeds = items
    clean = swing_targets(teacher, privacy)
    noisy, again = (swing_targets(teacher, privacy, noise_scale=0.1, seeds=seeds) for _ in range(2))
    other = swing_targets(teacher, privacy, noise_scale=0.1, seeds=seeds + 10**6)
    assert torch.equal(noisy, again)
    for blurred in (noisy, other):
        assert torch.equal((blurred != clean).any(-1), privacy > 0)
    assert torch.equal((noisy != other).any(-1), privacy > 0)
    everywhere = swing_targets(teacher, privacy, noise_scale=0.1, noise_minimum=0.3, seeds=seeds)
    assert torch.equal((everywhere != noisy).any(-1), privacy < 0.3)


def test_noise_vanishes_with_its_scale(items):
    _, teacher, privacy, seeds = items
    clean = swing_targets(teacher, privacy)
    gaps = [(swing_targets(teacher, privacy, noise_scale=b, seeds=seeds) - clean).abs().max().item() for b in (1e-1, 1e-3, 1e-5, 1e-12)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 5e-6  # the floor is 1e-6


def test_fresh_noise_averages_out_and_frozen_noise_does_not():
    torch.manual_seed(0)
    teacher, batch = torch.zeros(1, 4), {"id": torch.tensor([5]), "y": torch.tensor([0]), "privacy": torch.ones(1)}
    student = torch.randn(1, 4, requires_grad=True)

    def mean_gradient(method: Swing) -> Tensor:
        """Its zero is where a student that sees all steps ends."""
        found = [
            torch.autograd.grad(method.soft(student, {"logits": teacher}, batch, State(total_steps=1, step=step))["soft"].sum(), student)[0]
            for step in range(400)
        ]
        return torch.stack(found).mean(0)

    clean = torch.autograd.grad(Swing(noise_scale=0.0).soft(student, {"logits": teacher}, batch, State(total_steps=1))["soft"], student)[0]
    fresh, frozen = (mean_gradient(Swing(noise_scale=0.05, frozen_noise=f)) for f in (False, True))
    assert (fresh - clean).abs().max() < 0.02 < 2 * (frozen - clean).abs().max()


def test_a_large_vocabulary_does_not_drown_the_target():
    """1,000 classes: with the scale as it is, the noise adds up to 100 times the target, and the likeliest class is lost."""
    logits, private = torch.zeros(20, 1000), torch.ones(20)
    logits[:, 17] = 10.0  # probability 0.96
    seeds = torch.arange(20) * 5000
    shared = swing_targets(logits, private, t_max=1.0, noise_scale=0.2, seeds=seeds)
    drowned = swing_targets(logits, private, t_max=1.0, noise_scale=0.2, noise_classes=1000, seeds=seeds)
    assert (shared.argmax(-1) == 17).all()
    assert (shared[:, 17] > 0.1).all()
    assert (drowned[:, 17] < 0.03).all()
    assert (drowned.argmax(-1) != 17).float().mean() > 0.5
    mass = [
        swing_targets(torch.zeros(50, v), torch.ones(50), noise_scale=0.2, seeds=seeds.repeat(3)[:50]).std(-1).mean() * v
        for v in (1000, 4000)
    ]
    assert math.isclose(mass[0], mass[1], rel_tol=0.1)  # the noise has one weight next to the target, whatever the vocabulary


def test_classes_that_the_teacher_rules_out_stay_out_and_padding_changes_nothing(items):
    _, teacher, privacy, seeds = items
    options = {"noise_scale": 0.1, "seeds": seeds, "floor": 0.01}
    padded = torch.cat([teacher, torch.full((2, 4, 3), -torch.inf, dtype=torch.double)], dim=-1)
    targets = swing_targets(padded, privacy, **options)
    torch.testing.assert_close(targets[..., :5], swing_targets(teacher, privacy, **options))
    assert targets[..., 5:].max() < 1e-300
    nothing = swing_targets(torch.full((1, 4), -torch.inf), torch.ones(1), noise_scale=0.1, seeds=torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(nothing.sum(-1), torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    torch.manual_seed(0)
    student, teacher = (1e4 * torch.randn(6, 5).clamp(-3, 3)).to(dtype), (1e4 * torch.randn(6, 5).clamp(-3, 3)).to(dtype)
    privacy, seeds = torch.linspace(0, 1, 6), torch.arange(6)
    options = {"t_max": 1e5, "noise_scale": 0.1, "seeds": seeds}
    targets = swing_targets(teacher, privacy.to(dtype).float(), **options)
    torch.testing.assert_close(targets, swing_targets(teacher.float(), privacy.to(dtype).float(), **options))
    student.requires_grad_()
    loss = swing_loss(student, targets, privacy, t_max=1e5)
    assert loss.dtype == torch.float32
    assert torch.autograd.grad(loss.sum(), student)[0].isfinite().all()


@pytest.fixture
def world() -> tuple[Batch, dict[str, nn.Module]]:
    """Examples of whom every second is private, a student with its teacher."""
    torch.manual_seed(0)
    batch: Batch = {"x": torch.randn(8, 3, dtype=torch.double), "y": torch.tensor([0, 1, 3, 2, 2, 0, 1, 3]), "id": torch.arange(8) + 5}
    batch["privacy"] = torch.tensor([0, 1] * 4)
    return batch, {"student": nn.Linear(3, 4).double(), "teacher": nn.Linear(3, 4).double()}


def terms_of(method: Swing, world: tuple[Batch, dict[str, nn.Module]], state: State | None = None) -> dict[str, Tensor]:
    batch, roles = world
    state = state or State(total_steps=9)
    with torch.no_grad():
        batch = method.prepare(batch, roles, state)
        signal = method.signal(batch, roles, state)
    return method.loss(batch, signal, roles, state)


def test_terms_of_the_method(world):
    batch, roles = world
    method = Swing(t_base=1.5, t_max=5.0, noise_scale=0.3, soft_weight=2.0, hard_weight=0.5)
    state = State(total_steps=9, step=4, seed=11)
    terms = terms_of(method, world, state)
    assert state.log["privacy"] == 0.5
    student, teacher, rho = roles["student"](batch["x"]), roles["teacher"](batch["x"]), batch["privacy"].double()
    options = {"t_base": 1.5, "t_max": 5.0}
    targets = swing_targets(teacher, rho, **options, noise_scale=0.3, seeds=item_seeds(batch["id"], (8,), 11, 4))
    torch.testing.assert_close(terms["soft"], 2 * swing_loss(student, targets, rho, **options))
    torch.testing.assert_close(terms["hard"], 0.5 * (1 - rho) * hard_loss(student, batch))
    assert (terms["hard"][1::2] == 0).all()  # labels of private examples are no way in


def test_every_hyper_parameter_changes_the_loss(world):
    world[0]["privacy"] = torch.full((8,), 0.5, dtype=torch.double)
    base = terms_of(Swing(), world, State(total_steps=9, step=3))
    for change in (
        {"t_base": 2.0},
        {"t_max": 5.0},
        {"power": 2.0},
        {"noise_scale": 0.1},
        {"noise": "gaussian"},
        {"noise_minimum": 0.8},
        {"noise_classes": 2},
        {"floor": 0.1},
        {"frozen_noise": True},
        {"asymmetric": False},
        {"soft_weight": 2.0},
        {"hard_weight": 1.0},
    ):
        found = terms_of(Swing(**change), world, State(total_steps=9, step=3))
        assert any(not torch.equal(found[name], base[name]) for name in base), change


@pytest.mark.parametrize("frozen", [False, True])
def test_noise_belongs_to_the_example_not_to_its_batch(world, frozen):
    batch, roles = world
    method = Swing(frozen_noise=frozen)
    whole = terms_of(method, world)["soft"]
    order = torch.tensor([3, 1, 6])
    part = {key: value[order] for key, value in batch.items()}
    torch.testing.assert_close(terms_of(method, (part, roles))["soft"], whole[order])
    for change, same in ((State(total_steps=9, step=1), frozen), (State(total_steps=9, seed=1), False)):
        later = terms_of(method, world, change)["soft"]
        assert torch.equal(later[::2], whole[::2])
        assert torch.equal(later[1::2], whole[1::2]) == same


def test_scores_of_the_batch_come_before_the_detector_s(world):
    batch, roles = world
    seen = terms_of(Swing(detector=lambda batch: batch["y"] > 9), world)
    torch.testing.assert_close(seen["soft"], terms_of(Swing(), world)["soft"])
    detected = ({key: value for key, value in batch.items() if key != "privacy"}, roles)
    torch.testing.assert_close(terms_of(Swing(detector=lambda _: batch["privacy"]), detected)["soft"], seen["soft"])
    named = Swing(detector="tests.needs:label_is_zero")
    assert named == Swing(detector="tests.needs:label_is_zero")
    by_hand = ({**batch, "privacy": batch["y"] == 0}, roles)
    torch.testing.assert_close(terms_of(named, detected)["soft"], terms_of(Swing(), by_hand)["soft"])


def test_what_nobody_scored_is_refused_or_private(world):
    batch, roles = world
    bare = {key: value for key, value in batch.items() if key != "privacy"}
    for refuse in (lambda: Swing().prepare(bare, roles, State(total_steps=1)), lambda: Swing().extra_roles(roles, bare)):
        with pytest.raises(ValueError, match=r"^privacy: expected scores in the batch or a detector, got neither$"):
            refuse()
    student, signal = roles["student"](batch["x"]), {"logits": roles["teacher"](batch["x"])}
    alone = Swing().items(student, signal, bare, State(total_steps=1))
    private = Swing().items(student, signal, {**bare, "privacy": torch.ones(8)}, State(total_steps=1))
    torch.testing.assert_close(alone, private)


def test_language_with_a_table_of_tokens():
    torch.manual_seed(0)
    table = TokenTable.of(["a", "b", "1", "2", " "])
    logits = nn.Embedding(5, 5).double()
    network = nn.Module()
    network.forward = lambda input_ids, **_: logits(input_ids)
    tokens = torch.tensor([[0, 2, 3, 4, 1], [1, 0, 4, 2, 2]])
    mask = torch.ones(2, 4)
    mask[1, 3] = 0
    batch = {"x": {"input_ids": tokens[:, :-1]}, "y": tokens[:, 1:], "mask": mask, "id": torch.arange(2)}
    teacher = nn.Module()
    teacher.forward = lambda input_ids, **_: 3 * logits.weight.detach()[input_ids].flip(-1)
    terms = terms_of(Swing(detector=table, noise_scale=0.0), (batch, {"student": network, "teacher": teacher}))
    plain = terms_of(ClassicKD(temperature=1.0, alpha=1.0), (batch, {"student": network, "teacher": teacher}))
    private = batch["y"].ge(2) & batch["y"].le(3)  # the target's score counts, not that of the token that is read
    assert private.any()
    assert torch.equal(torch.isclose(terms["soft"], plain["soft"]) & (mask == 1), ~private & (mask == 1))
    assert terms["soft"][1, 3] == 0


def test_it_takes_a_transform(world):
    batch, roles = world
    method = compose(Swing(noise_scale=0.0, t_max=3.0), transform=LogitStandardization())
    found = terms_of(method, world)
    student, teacher = (standardize_logits(roles[role](batch["x"])) for role in ("student", "teacher"))
    rho = batch["privacy"].double()
    torch.testing.assert_close(found["soft"], swing_loss(student, swing_targets(teacher, rho, t_max=3.0), rho, t_max=3.0))


def test_a_student_learns_the_public_and_not_the_secret():
    """A table of two contexts, the second one private: training ends at the teacher there and at the flattened one here."""
    teacher, student = nn.Embedding(2, 4), nn.Embedding(2, 4)
    with torch.no_grad():
        teacher.weight.copy_(torch.tensor([[6.0, 0.0, 1.0, 0.0], [0.0, 8.0, 0.0, 1.0]]))
    batch = {"x": torch.tensor([0, 1]), "y": torch.tensor([0, 1]), "id": torch.arange(2), "privacy": torch.tensor([0.0, 1.0])}
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    train(Swing(noise_scale=0.0), {"student": student, "teacher": teacher}, [batch], optimizer, steps=400)
    expected = torch.stack([teacher.weight[0], teacher.weight[1] / 20]).softmax(-1)
    torch.testing.assert_close(student.weight.softmax(-1), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_base": 0.0}, "t_base: expected a finite number > 0, got 0.0"),
        ({"t_max": 0.5}, "t_max: expected at least t_base, 1.0, got 0.5"),
        ({"power": -1.0}, "power: expected a finite number > 0, got -1.0"),
        ({"noise_scale": -0.1}, "noise_scale: expected a finite number >= 0, got -0.1"),
        ({"noise_scale": math.nan}, "noise_scale: expected a finite number >= 0, got nan"),
        ({"noise": "uniform"}, "noise: expected one of laplace, gaussian, got 'uniform'"),
        ({"noise_minimum": 1.5}, r"noise_minimum: expected a number in \[0, 1\], got 1.5"),
        ({"noise_classes": 0}, "noise_classes: expected at least 1, got 0"),
        ({"soft_weight": -1.0}, "soft_weight: expected a number >= 0, got -1.0"),
        ({"hard_weight": math.nan}, "hard_weight: expected a number >= 0, got nan"),
        ({"detector": "nowhere:nothing"}, "detector: expected module:name of a function of batches, got 'nowhere:nothing'"),
        ({"detector": "math:pi"}, "detector: expected module:name of a function of batches, got 'math:pi'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Swing(**options)


def test_wrong_input_is_refused(items):
    student, teacher, privacy, seeds = items
    with pytest.raises(ValueError, match=r"^privacy: expected scores in \[0, 1\], got 1.5$"):
        swing_targets(teacher, privacy + 0.5)
    with pytest.raises(ValueError, match=r"^privacy: expected scores in \[0, 1\], got nan$"):
        swing_targets(teacher, privacy.clone().index_fill_(0, torch.tensor([0]), math.nan))
    with pytest.raises(ValueError, match=r"^privacy: expected shape \(2, 4\) like teacher, got \(2,\)$"):
        swing_targets(teacher, privacy[:, 0])
    with pytest.raises(ValueError, match=r"^seeds: expected one for each item where noise_scale is 0\.1, got none$"):
        swing_targets(teacher, privacy, noise_scale=0.1)
    with pytest.raises(ValueError, match=r"^seeds: expected shape \(2, 4\) like privacy, got \(2,\)$"):
        swing_targets(teacher, privacy, noise_scale=0.1, seeds=seeds[:, 0])
    with pytest.raises(ValueError, match=r"^floor: expected a number in \(0, 1 / 5\) for as many classes, got 0\.2$"):
        swing_targets(teacher, privacy, noise_scale=0.1, seeds=seeds, floor=0.2)
    with pytest.raises(ValueError, match=r"^teacher: expected 5 classes like student, got 4$"):
        swing_loss(student, teacher[..., :4], privacy)
    with pytest.raises(ValueError, match=r"^mask: expected shape \(2, 4\) like privacy, got \(2,\)$"):
        swing_loss(student, swing_targets(teacher, privacy), privacy, mask=torch.ones(2))
    with pytest.raises(TypeError, match=r"^student: expected a floating-point tensor, got torch\.int64$"):
        swing_loss(student.long(), teacher, privacy)


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {
        "untrained",
        "classic-kd",
        "masked",
        "noise-alone",
        "temperature-alone",
        "symmetric",
        "swing",
    }
    assert run.arms["classic-kd"]["relative_exposure"] == 1
    assert all(0 <= arm["exposure"] <= math.log2(100) and arm["perplexity"] > 1 for arm in run.arms.values())
    assert run.arms["masked"]["digit_mass"] < run.arms["classic-kd"]["digit_mass"]
