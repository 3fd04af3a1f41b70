"""The contract that every method of the catalogue keeps. Adding a method adds its cases: there is no list here."""

import copy
import dataclasses
import importlib
import math
import time
from pathlib import Path

import pytest
import torch
from tests.needs import options_for, student_config
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.catalog import FOLDER, load, read, slugs
from preceptor.composition import LogitMethod
from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import as_stream
from preceptor.data.examples import examples_from
from preceptor.data.priors import Prior
from preceptor.data.sources import Source
from preceptor.models.reference import build
from preceptor.teachers.flow import FlowMap, PointFlow
from preceptor.training import Training
from preceptor.trial import make_accelerator

TEACHER = {"reference": "cnn", "channels": [4, 6], "classes": 4}
STUDENT = {"reference": "cnn", "channels": [3, 5], "classes": 4}
VOCABULARY = 11
METHODS = [slug for slug in slugs() if read(slug).class_name and {"classification", "language", "generation"} & set(read(slug).card.tasks)]
"""Those of other tasks need other batches; their own tests train them."""
TRAINED = pytest.mark.parametrize("slug", METHODS)


def make(slug):
    """The last stage of a method, with layers where it needs features, and its networks."""
    torch.manual_seed(0)
    if flows(slug):
        teacher, student = PointFlow(2, width=8).double(), FlowMap(PointFlow(2, width=6), "time", 6).double()
    else:
        teacher, student = (
            [tiny_lm(3), tiny_lm(2)] if speaks(slug) else [build(TEACHER).double(), build(student_config(slug, STUDENT)).double()]
        )
    norm = {"norm": "none"} if "norm" in {field.name for field in read(slug).fields} else {}
    method = load(slug)(**options_for(slug), **norm)
    stage = method.stages(teacher, student)[-1]
    assert stage.student is student
    return stage.method, {"student": student, "teacher": teacher}


def speaks(slug):
    """Whether a method is of language models only."""
    return "classification" not in read(slug).card.tasks and not flows(slug)


def flows(slug):
    """Whether a method trains on noise."""
    return "generation" in read(slug).card.tasks


def tiny_lm(layers):
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)).double()


def source_for(slug, batch_size=8, dtype=torch.double):
    """Images, or texts of which the last half answers the first: a prompt, left-padded, and the tokens that count."""
    if flows(slug):
        return Prior((2,), batch_size=batch_size, dtype=dtype)
    if not speaks(slug):
        return Source(data(), batch_size=batch_size)
    generator = torch.Generator().manual_seed(1)
    batches = []
    for start in range(0, 40, batch_size):
        tokens = torch.randint(3, VOCABULARY, (batch_size, 9), generator=generator)
        mask = torch.zeros(batch_size, 8)
        mask[:, 3:] = 1
        mask[0, 6:] = 0
        prompt = {"input_ids": tokens[:, :4].clone(), "attention_mask": torch.ones(batch_size, 4, dtype=torch.int64)}
        prompt["input_ids"][0, 0] = prompt["attention_mask"][0, 0] = 0
        x = {"input_ids": tokens[:, :-1], "use_cache": False}
        batches.append({"x": x, "y": tokens[:, 1:], "mask": mask, "prompt": prompt, "id": torch.arange(start, start + batch_size)})
    return as_stream(batches)


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 1, 6, 6, dtype=torch.double, generator=generator)
    return examples_from((x, torch.randint(0, 4, (40,), generator=generator)), 4)


def run(slug, *, steps=4, micro=1, batch_size=8, precision="no", **rest):
    method, roles = make(slug)
    source = source_for(slug, batch_size)
    roles |= method.extra_roles(roles, next(source_for(slug, batch_size)))
    if precision != "no":
        dtype = torch.bfloat16 if precision == "pure bf16" else torch.float32
        for role in roles.values():
            role.to(dtype)
        if flows(slug):
            source = source_for(slug, batch_size, dtype)
        elif not speaks(slug):
            source = [{**batch, "x": batch["x"].to(dtype)} for batch in source.scan()]
    training = Training(optimizer="SGD", learning_rate=0.05, schedule="constant", warmup=0.0)
    optimizers, _ = training.build(method, roles, steps)
    before = {name: copy.deepcopy(role.state_dict()) for name, role in roles.items()}
    losses = []
    train(
        method,
        roles,
        source,
        optimizers,
        steps=steps,
        micro=micro,
        streams={"valid": source},
        accelerator=make_accelerator("bf16" if precision == "bf16" else "no"),
        progress=lambda record: losses.extend(value for name, value in record.losses.items() if name.endswith("total")),
        **rest,
    )
    return method, roles, before, losses


def weights(roles):
    return {f"{name}.{key}": value for name, role in roles.items() for key, value in role.state_dict().items()}


@pytest.mark.parametrize("slug", slugs())
def test_its_file_is_read_in_one_sitting(slug):
    lines = (FOLDER / f"{slug.replace('-', '_')}.py").read_text().count("\n")
    assert lines <= 250, f"{lines} lines: move its world to preceptor.miniature, what others could use to losses or data"


@pytest.mark.parametrize("slug", slugs())
def test_the_card_is_complete_and_every_default_has_a_source(slug):
    entry = read(slug)
    for name, value in vars(entry.card).items():
        assert value or name in ("arxiv", "needs"), name
    assert all(field.source for field in entry.fields), [field.name for field in entry.fields if not field.source]
    assert "Claim" in entry.docstring
    golden = Path(__file__).parent / "golden" / f"{slug}.json"
    assert not golden.exists() or (Path(__file__).parent / "adapters" / f"{slug}.py").exists()


@TRAINED
def test_what_is_not_trained_stays_and_what_is_trained_moves(slug):
    method, roles, before, _ = run(slug)
    trained = {role for phase in method.phases() for role in phase.trains}
    for name, role in roles.items():
        for key, value in role.state_dict().items():
            same = torch.equal(value, before[name][key])
            assert same == (name not in trained | {"mean_teacher"}), f"{name}.{key}"  # which follows the student


@TRAINED
def test_one_batch_equals_four_microbatches(slug):
    method, _ = make(slug)
    if method.coupled:
        with pytest.raises(ValueError, match="cannot be split"):
            run(slug, micro=4)
        return
    whole, split = weights(run(slug)[1]), weights(run(slug, micro=4)[1])
    for key, value in whole.items():
        torch.testing.assert_close(split[key], value, rtol=1e-9, atol=1e-11)


@TRAINED
def test_the_same_seed_is_the_same_run_and_a_resumed_run_too(slug, tmp_path):
    straight = weights(run(slug, steps=6)[1])
    again = weights(run(slug, steps=6)[1])

    class StopError(Exception):
        pass

    def stop(roles, state):
        if state.step == 4:
            raise StopError
        return {"accuracy": 0.0}

    with pytest.raises(StopError):
        run(slug, steps=6, out=tmp_path / "run", checkpoint_every=3, valid=stop, evaluate_every=4)
    resumed = weights(run(slug, steps=6, out=tmp_path / "run", checkpoint_every=3, resume=True)[1])
    for key, value in straight.items():
        assert torch.equal(value, again[key]), key
        assert torch.equal(value, resumed[key]), key


@TRAINED
def test_every_trained_parameter_gets_a_gradient_and_no_other(slug):
    method, roles, _, _ = run(slug, steps=1)
    trained = {role for phase in method.phases() for role in phase.trains}
    for name, role in roles.items():
        for key, parameter in role.named_parameters():
            given = parameter.grad is not None and bool(parameter.grad.any())
            assert given == (name in trained and not method.gradient_free), f"{name}.{key}"


@TRAINED
def test_hooks_do_not_edit_the_batch(slug):
    method, roles = make(slug)
    batch = next(source_for(slug))
    roles |= method.extra_roles(roles, batch)
    kept = copy.deepcopy(batch)
    state = State(total_steps=1)
    state.source = state.streams["valid"] = source_for(slug)
    prepared = method.prepare(batch, roles, state)
    kept_prepared = copy.deepcopy(prepared)
    for phase in method.phases():
        with torch.no_grad():
            signal = phase.signal(prepared, roles, state)
        phase.loss(prepared, signal, roles, state)
    for now, before in ((batch, kept), (prepared, kept_prepared)):
        assert now.keys() == before.keys()
        torch.testing.assert_close(now, before, rtol=0, atol=0)


@TRAINED
@pytest.mark.parametrize("precision", ["bf16", "pure bf16"])
def test_bfloat16_stays_finite(slug, precision):
    _, roles, _, losses = run(slug, precision=precision)
    assert all(map(math.isfinite, losses))
    assert all(value.isfinite().all() for value in weights(roles).values())


@TRAINED
def test_a_method_is_a_frozen_dataclass_of_its_hyper_parameters(slug):
    cls = load(slug)
    assert cls.__bases__ in ((Method,), (LogitMethod,))
    assert cls.__dataclass_params__.frozen
    fields = dataclasses.fields(cls)
    assert all(field.kw_only for field in fields)
    assert [field.name for field in fields] == [field.name for field in read(slug).fields]
    assert cls() == cls()


@pytest.mark.parametrize("slug", [slug for slug in slugs() if read(slug).card.kind != "baseline"])
def test_the_miniature_is_finite_deterministic_complete_and_quick(slug):
    module = importlib.import_module(f"preceptor.methods.{slug.replace('-', '_')}")
    first = module.miniature(0, "smoke")
    start = time.thread_time()
    second = module.miniature(0, "smoke")
    assert time.thread_time() - start < 3
    assert first == second != module.miniature(1, "smoke")
    assert slug in first.arms
    assert all(claim.method == slug or claim.method.endswith(f"-{slug}") for claim in first.claims)  # "WORLD-slug": in another world
    assert any(name.startswith("untrained") for name in first.arms)  # the null baseline
    arms = list(first.arms.values())
    assert not any(one == other for i, one in enumerate(arms) for other in arms[:i])
    worlds = {claim.method for claim in first.claims}
    assert len({frozenset(arm) for arm in arms}) <= len(worlds)  # within a world all arms are measured alike
    assert all(set(first.arms[claim.method]) == set(first.arms[claim.baseline]) for claim in first.claims)
    assert all(math.isfinite(value) for arm in arms for value in arm.values())
