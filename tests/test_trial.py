"""A trial of any method, chains included, broken off and resumed."""

import pytest
import torch
from tests.needs import options_for, student_config
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.catalog import load, read, slugs
from preceptor.data.examples import examples_from
from preceptor.data.text import Texts
from preceptor.models.reference import build
from preceptor.task import Task
from preceptor.training import Training
from preceptor.trial import run_trial


class BrokenOffError(Exception):
    """Ends a trial in the middle."""


def images(slug):
    whole = examples_from((torch.randn(60, 1, 6, 6), torch.randint(4, (60,))), 4)
    teacher, student = ({"reference": "cnn", "classes": 4, "channels": channels} for channels in ([4, 6], [3, 5]))
    return whole, build(teacher), build(student_config(slug, student))


def texts():
    tokens = torch.randint(3, 11, (60, 9))
    mask = torch.ones(60, 8, dtype=torch.bool)
    whole = Texts(tokens[:, :-1], torch.arange(8).expand(60, 8), tokens[:, 1:], mask, vocabulary=11, prompt=4)
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 1}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return whole, *(LlamaForCausalLM(LlamaConfig(vocab_size=11, num_hidden_layers=layers, **sizes, **special)) for layers in (3, 2))


def run(slug, out, *, stop_at=None, resume=False, global_seed=0):
    torch.manual_seed(0)
    whole, teacher, student = images(slug) if "classification" in read(slug).card.tasks else texts()
    method = load(slug)(**options_for(slug))
    task = Task(train=whole.subset(torch.arange(40)), valid=whole.subset(torch.arange(40, 60)), teacher=teacher)
    updates = []

    def progress(record, total):
        updates.append(record)
        if len(updates) == stop_at:
            raise BrokenOffError

    training = Training(steps=6, batch_size=8, checkpoint_every=2, evaluate_every=3)
    torch.manual_seed(global_seed)
    before = torch.get_rng_state()
    trial = run_trial(task, name=slug, method=method, student=student, training=training, seed=3, out=out, resume=resume, progress=progress)
    assert torch.equal(torch.get_rng_state(), before)
    return trial.student.state_dict()


@pytest.mark.parametrize("slug", [slug for slug in slugs() if read(slug).class_name and "generation" not in read(slug).card.tasks])
@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_trial_broken_off_and_resumed_is_the_straight_one_whatever_the_global_random_state(slug, stop_at, tmp_path):
    straight = run(slug, tmp_path / "a")
    with pytest.raises(BrokenOffError):
        run(slug, tmp_path / "b", stop_at=stop_at, global_seed=1)
    resumed = run(slug, tmp_path / "b", resume=True, global_seed=2)
    assert all(torch.equal(value, resumed[key]) for key, value in straight.items())


def test_a_validation_that_is_not_finite_is_a_number_in_the_curve(tmp_path, monkeypatch):
    torch.manual_seed(0)
    data = examples_from((torch.randn(20, 1, 6, 6), torch.randint(4, (20,))), 4)
    task = Task(train=data.subset(torch.arange(10)), valid=data.subset(torch.arange(10, 20)))
    monkeypatch.setattr(Task, "measure", lambda *_: ({"accuracy": 0.5, "nll": torch.inf}, None))
    student = build({"reference": "mlp", "inputs": 36, "hidden": [4], "classes": 4})
    trial = run_trial(task, name="ce", method=load("ce")(), student=student, training=Training(steps=1, batch_size=8), out=tmp_path)
    assert trial.curve["valid"] == [{"step": 1, "accuracy": 0.5, "nll": torch.inf}]
