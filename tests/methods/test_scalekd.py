"""ScaleKD: views, projector, the way through the teacher's tail, and training."""

import copy

import pytest
import torch
from scipy.fft import dctn, idctn

from preceptor.core.state import State
from preceptor.data.examples import examples_from
from preceptor.losses.dual_view import dual_view, remove_dc
from preceptor.methods.scalekd import CARD, ScaleKD, as_map, miniature
from preceptor.miniature.patches import PatchTransformer
from preceptor.miniature.worlds import fit
from preceptor.models.attention_projectors import CrossAttentionProjector
from preceptor.models.reference import CNN

FULL = {"student_layers": ("block1", "block2"), "teacher_layers": ("norm",), "teacher_tail": ("blocks.3", "norm")}


@pytest.fixture
def features():
    """Tokens of a student (2, 12, 5) and a teacher's map (2, 5, 3, 4)."""
    generator = torch.Generator().manual_seed(0)
    tokens, target = torch.randn(2, 2, 12, 5, generator=generator, dtype=torch.double)
    return tokens, target.transpose(1, 2).reshape(2, 5, 3, 4)


@pytest.fixture
def world():
    """Eight images, and networks in double precision; the teacher as in a run: frozen, in eval mode."""
    torch.manual_seed(0)
    batch = {"x": torch.randn(8, 1, 8, 8, dtype=torch.double), "y": torch.arange(8), "id": torch.arange(8)}
    teacher = PatchTransformer(width=8).double().requires_grad_(False).eval()
    return batch, {"student": CNN(channels=(4, 6), grid=2).double(), "teacher": teacher}


def terms_of(method, world, projector=None):
    batch, roles = world
    torch.manual_seed(1)
    roles = {**roles, **({"projector": projector} if projector is not None else method.extra_roles(roles, batch))}
    with torch.no_grad():
        signal = method.signal(batch, roles, State(total_steps=1))
    return method.loss(batch, signal, roles, State(total_steps=1)), roles


def projector(**options):
    torch.manual_seed(0)
    build = {"student_width": 3, "teacher_width": 4, "student_grid": (3, 2), "query_grid": (2, 5), "heads": 2} | options
    return CrossAttentionProjector(**build).double()


def test_the_card_and_its_defaults():
    method = ScaleKD()
    assert (method.direct_weight, method.alternative_weight, method.soft_weight) == (0.08, 0.06, 0.5)
    assert (method.temperature, method.kappa, method.norm) == (1.0, 5.0, "batch")
    assert (CARD.slug, CARD.needs) == ("scalekd", ("teacher", "logits", "features", "labels"))


def test_the_constant_of_a_map(features):
    x = features[1]
    waves = dctn(x.numpy(), axes=(2, 3))
    waves[:, :, 0, 0] = 0
    torch.testing.assert_close(remove_dc(x), torch.from_numpy(idctn(waves, axes=(2, 3))))
    torch.testing.assert_close(remove_dc(remove_dc(x)), remove_dc(x))
    assert (remove_dc(torch.full((1, 2, 4, 4), 3.0)) == 0).all()


def test_views_reference(features):
    tokens, target = features
    direct, alternative = dual_view(tokens, target)
    other = target.flatten(2).transpose(1, 2)
    for n in range(2):
        sums = [0.0, 0.0]
        for i in range(12):
            for view, (p, t) in enumerate(
                [(tokens[n, i], other[n, i]), (tokens[n, i] - tokens[n].mean(dim=0), other[n, i] - other[n].mean(dim=0))]
            ):
                sums[view] += 2 - 2 * float(p @ t / (p.norm() * t.norm()))
        assert direct[n].item() == pytest.approx(sums[0], rel=1e-12)
        assert alternative[n].item() == pytest.approx(sums[1], rel=1e-12)


def test_views_invariances(features):
    tokens, target = features
    direct, alternative = dual_view(tokens, target)
    same = dual_view(target.flatten(2).transpose(1, 2), target)
    assert all(value.abs().max() < 1e-12 for value in same)
    opposite = dual_view(-target.flatten(2).transpose(1, 2), target)
    torch.testing.assert_close(opposite, (torch.full((2,), 48.0).double(),) * 2)
    assert all(((value >= 0) & (value <= 48)).all() for value in (direct, alternative))
    torch.testing.assert_close(dual_view(tokens * torch.linspace(0.5, 3, 12)[:, None], target)[0], direct)
    torch.testing.assert_close(dual_view(7 * tokens, target)[1], alternative)
    constant = torch.arange(5.0, dtype=torch.double)
    torch.testing.assert_close(dual_view(tokens + constant, target)[1], alternative)
    torch.testing.assert_close(dual_view(tokens, target + constant[:, None, None])[1], alternative)
    second = dual_view(tokens, target, alternative=tokens.flip(1))
    torch.testing.assert_close(second, (direct, dual_view(tokens.flip(1), target)[1]))


def test_views_gradient_and_half_precision(features):
    tokens, target = features
    target.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dual_view(x, target), (tokens.clone().requires_grad_(),))
    sum(dual_view(tokens.requires_grad_(), target)).sum().backward()
    assert target.grad is None
    flat = torch.ones(1, 12, 5, requires_grad=True)
    dual_view(flat, torch.ones(1, 5, 3, 4))[1].sum().backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()
    half = dual_view(tokens.bfloat16(), target.bfloat16())
    assert all(value.dtype == torch.float32 for value in half)


def test_tokens_depend_on_the_query_grid_alone():
    x = torch.randn(2, 3, 3, 2, dtype=torch.double)
    assert projector()(x).shape == (2, 10, 4)
    query = torch.randn(2, 7, 4, dtype=torch.double)
    assert projector(learned_query=False)(x, query).shape == (2, 7, 4)
    names = dict(projector(learned_query=False).named_parameters())
    assert "table" not in names


def test_projector_reference():
    net = projector()
    x = torch.randn(2, 3, 3, 2, dtype=torch.double)
    seen = net.conv(x)
    mean, var = seen.mean(dim=(0, 2, 3), keepdim=True), seen.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    seen = (((seen - mean) / (var + 1e-5).sqrt()).relu() + net.positions).flatten(2).transpose(1, 2)
    q = net.query(net.query_map(net.table).relu())
    k, v = net.key(seen), net.value(seen)
    rows = []
    for n in range(2):
        heads = []
        for h in range(2):
            part = slice(2 * h, 2 * h + 2)
            heads.append((5 * q[:, part] @ k[n, :, part].T / 2**0.5).softmax(dim=1) @ v[n, :, part])
        z = net.output(torch.cat(heads, dim=1))
        z = (z - z.mean(dim=1, keepdim=True)) / (z.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        rows.append(z + net.feed_forward(z))
    torch.testing.assert_close(net(x), torch.stack(rows))


def test_uniform_attention_sees_the_mean():
    net, x = projector(), torch.randn(2, 3, 3, 2, dtype=torch.double)
    torch.nn.init.zeros_(net.key.weight)
    out = net(x)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    assert not torch.allclose(projector()(x), projector()(x)[:, :1].expand_as(out))


def test_the_order_of_keys_does_not_matter():
    net, x = projector(norm="none"), torch.randn(2, 3, 3, 2, dtype=torch.double)
    before = net(x)
    seen = torch.relu(net.conv(x))
    order = torch.randperm(6)
    net.conv = torch.nn.Identity()
    net.positions.data = net.positions.flatten(2)[:, :, order].reshape(1, 3, 3, 2)
    torch.testing.assert_close(net(seen.flatten(2)[:, :, order].reshape(2, 3, 3, 2)), before)


def test_one_example_is_normalised_by_running_statistics():
    net = projector(student_grid=(1, 1))
    net(torch.randn(1, 3, 1, 1, dtype=torch.double))
    assert net.norm.num_batches_tracked == 0
    assert net.norm.training


def test_terms_and_their_weights(world):
    method = ScaleKD(**FULL)
    terms, roles = terms_of(method, world)
    assert set(terms) == {"hard", "soft", "direct3", "alternative3", "direct4", "alternative4"}
    assert all(term.shape == (8,) for term in terms.values())
    student, teacher = roles["student"], roles["teacher"]
    x = world[0]["x"]
    s3 = student.block1(x)
    tokens = teacher.patches(x).flatten(2).transpose(1, 2) + teacher.positions
    for block in teacher.blocks:
        tokens = block(tokens)
    target = teacher.norm(tokens).transpose(1, 2).reshape(8, 8, 4, 4)
    z = [teacher.norm(teacher.blocks[3](p(s3))) for p in roles["projector"]["stage3"]]
    y = [p(student.block2(s3), query) for p, query in zip(roles["projector"]["stage4"], z, strict=True)]
    for stage, found in ((3, z), (4, y)):
        direct, alternative = dual_view(found[0], target, alternative=found[1])
        torch.testing.assert_close(terms[f"direct{stage}"], 0.005 * direct)
        torch.testing.assert_close(terms[f"alternative{stage}"], 0.06 / 16 * alternative)


def test_gradient_flows_through_the_tail_and_not_into_it(world):
    terms, roles = terms_of(ScaleKD(**FULL), world)
    later = terms["direct4"].sum() + terms["alternative4"].sum()
    stage3 = list(roles["projector"]["stage3"].parameters())
    found = torch.autograd.grad(later, stage3, retain_graph=True, allow_unused=True)
    assert any(g is not None and g.any() for g in found)  # the query is not detached
    later.backward()
    assert all(p.grad is None for p in roles["teacher"].parameters())
    assert roles["student"].block1.conv.weight.grad.any()


def test_without_a_tail_there_is_one_stage(world):
    method = ScaleKD(student_layers=("block2",), teacher_layers=("norm",))
    terms, roles = terms_of(method, world)
    assert set(terms) == {"hard", "soft", "direct4", "alternative4"}
    assert set(roles["projector"]) == {"stage4"}


def test_a_tail_of_maps(world):
    batch, roles = world
    teacher = CNN(channels=(6, 8), grid=2).double().requires_grad_(False).eval()
    terms, _ = terms_of(
        ScaleKD(student_layers=("block1", "block2"), teacher_layers=("block2",), teacher_tail=("block2",)),
        (batch, roles | {"teacher": teacher}),
    )
    assert all(term.isfinite().all() for term in terms.values())


def test_tokens_become_maps():
    tokens = torch.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    found = as_map(tokens, 1)
    assert found.shape == (2, 3, 2, 2)
    assert torch.equal(found[1, :, 1, 0], tokens[1, 3])
    with pytest.raises(ValueError, match="a square number"):
        as_map(tokens)


class WithClassToken(PatchTransformer):
    """The same with a constant token before those of the image, which the head takes for one more patch."""

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        tokens = torch.cat([tokens.new_ones(len(x), 1, tokens.shape[2]), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.fc(self.norm(tokens).mean(dim=1))


def test_class_tokens_are_dropped(world):
    batch, _ = world
    roles = {"student": WithClassToken(width=4).double(), "teacher": WithClassToken(width=8).double().requires_grad_(False).eval()}
    tapped = {"student_layers": ("blocks.1", "blocks.3"), "teacher_layers": ("norm",), "teacher_tail": ("blocks.3", "norm")}
    terms, _ = terms_of(ScaleKD(**tapped, student_prefix=1, teacher_prefix=1), (batch, roles))
    assert terms["direct3"].isfinite().all()
    for options in ({"student_prefix": 1}, {"teacher_prefix": 1}):
        with pytest.raises(ValueError, match="student_prefix and teacher_prefix"):
            terms_of(ScaleKD(**tapped, **options), (batch, roles))


@pytest.mark.parametrize(
    "options",
    [
        {"teacher_tail": ()},
        {"direct_weight": 1.0},
        {"alternative_weight": 1.0},
        {"soft_weight": 0.2},
        {"temperature": 2.0},
        {"heads": 4},
        {"kappa": 1.0},
        {"norm": "none"},
    ],
)
def test_every_field_changes_the_loss(world, options):
    first, other = (sum(term.sum() for term in terms_of(ScaleKD(**(FULL | more)), world)[0].values()) for more in ({}, options))
    assert first != other


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: projector(heads=3), "heads: expected a number that divides"),
        (lambda: projector(learned_query=False)(torch.zeros(2, 3, 3, 2, dtype=torch.double)), "query: expected tokens"),
        (lambda: remove_dc(torch.zeros(2, 3)), "x: expected maps"),
        (lambda: dual_view(torch.zeros(2, 5, 3), torch.zeros(2, 3, 2, 2)), "student: expected tokens"),
        (lambda: dual_view(torch.zeros(2, 4, 3), torch.zeros(2, 3)), "teacher: expected a map"),
        (lambda: ScaleKD(soft_weight=2.0), "soft_weight: expected a number in"),
        (lambda: ScaleKD(direct_weight=-1.0), "direct_weight: expected a number >= 0"),
        (lambda: ScaleKD(heads=0), "heads: expected at least 1"),
        (lambda: ScaleKD().extra_roles({}, {}), "scalekd: expected 1 or 2 student_layers"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_both_views_fall_and_the_teacher_stays(world):
    batch, roles = world
    method = ScaleKD(**FULL)
    torch.manual_seed(1)
    roles = {name: role.float() for name, role in roles.items()} | method.extra_roles(
        {n: r.float() for n, r in roles.items()}, {"x": batch["x"].float()}
    )
    examples = examples_from((batch["x"].float(), batch["y"]), 10)
    world = {**batch, "x": batch["x"].float()}, roles
    kept, size = copy.deepcopy(roles["teacher"].state_dict()), sum(p.numel() for p in roles["student"].parameters())
    first, _ = terms_of(method, world, roles["projector"])
    fit(method, roles, examples, steps=60, batch_size=8, learning_rate=3e-3)
    last, _ = terms_of(method, world, roles["projector"])
    for name in ("direct3", "alternative3", "direct4", "alternative4"):
        assert last[name].mean() < 0.8 * first[name].mean(), name
    assert all(torch.equal(value, kept[name]) for name, value in roles["teacher"].state_dict().items())
    assert sum(p.numel() for p in roles["student"].parameters()) == size


def test_miniature_is_complete():
    assert set(miniature(0, "smoke").arms) == {"untrained-teacher", "ce", "kd", "direct", "views", "features", "scalekd"}
