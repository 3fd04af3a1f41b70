"""Every field of a recipe changes what happens. A field that is added needs a check here, a check without its field is found too."""

import io
import itertools
import json
import os
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from pydantic import BaseModel
from rich.console import Console
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.teachers.fake_vllm import Fake, served
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from preceptor.caching import run_cache
from preceptor.core.method import NonFinite
from preceptor.data.text import Texts
from preceptor.execute import prepare, run_compare, run_distill
from preceptor.progress import Bars
from preceptor.recipe import Recipe, parse
from preceptor.report.page import render

CLASSES = 3
CALLS = []
"""Sizes of the batches that a `Watched` student was trained on."""


class Watched(nn.Module):
    """A student of images (1, 6, 6): notes batches of training in CALLS, and its process in a file."""

    def __init__(self, log=None, bad=False):
        super().__init__()
        self.fc = nn.Linear(36, CLASSES)
        self.log, self.bad = log, bad

    def forward(self, x):
        if self.training:
            CALLS.append(len(x))
            if self.log:
                with Path(self.log).open("a") as file:
                    file.write(f"{os.getpid()}\n")
        logits = self.fc(x.flatten(1))
        return torch.where((x[:, 0, 0, 0] > 4)[:, None], torch.nan, logits) if self.bad and self.training else logits


def blank():
    """A teacher that knows nothing."""
    model = Watched()
    nn.init.zeros_(model.fc.weight)
    return model


def images(count=75):
    """Images whose class is the brightest of their first three pixels, and for some another."""
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, 1, 6, 6, generator=generator)
    x[:, 0, 0, :CLASSES] *= 3
    y = x[:, 0, 0, :CLASSES].argmax(1)
    return x, torch.where(torch.rand(count, generator=generator) < 0.1, (y + 1) % CLASSES, y)


class OnDisk(torch.utils.data.Dataset):
    """The same images, read one by one; each reading process leaves a file."""

    folder: Path

    def __len__(self):
        return 75

    def __getitem__(self, index):
        (self.folder / str(os.getpid())).touch()
        x, y = images()
        return x[index], int(y[index])


def in_memory():
    return images(), images(60)


def on_disk():
    return OnDisk(), images(60)


HERE = __name__
BASE = {
    "data": {"name": f"{HERE}:in_memory", "valid_rate": 0.2},
    "teacher": {
        "model": {"reference": "mlp", "inputs": 36, "hidden": [8]},
        "train": {"steps": 60, "batch_size": 32, "learning_rate": 0.03},
    },
    "student": {"reference": "mlp", "inputs": 36, "hidden": [4]},
    "training": {"steps": 6, "batch_size": 16, "learning_rate": 0.02, "evaluate_every": 2},
    "study": {"methods": ["classic-kd"], "seeds": 2},
    "threads": 1,
    "check_teacher": False,
}


class Run:
    """What a run left behind."""

    def __init__(self, folder, result, said):
        self.folder, self.result, self.said = folder, result, said
        journal = folder / "metrics.jsonl"
        self.lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
        self.updates = [line for line in self.lines if "losses" in line]
        self.validations = [line for line in self.lines if "valid" in line]
        self.rates = [line["learning_rate"] for line in self.updates]
        self.checkpoints = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*"))

    @property
    def weights(self):
        return torch.cat([value.flatten() for value in load_file(self.folder / "student" / "model.safetensors").values()])


class House:
    """Runs of the base recipe with changes, each once."""

    def __init__(self, folder):
        self.folder, self.runs, self.numbers = folder, {}, itertools.count()

    def recipe(self, changes):
        described = deepcopy(BASE)
        described["teacher"]["folder"] = str(self.folder / "teachers")
        for path, value in changes.items():
            *parents, last = path.split(".")
            target = described
            for part in parents:
                target = target.setdefault(part, {})
            target[last] = value
            if value is None:
                del target[last]
        return parse(described)

    def prepare(self, changes):
        return prepare(self.recipe(changes), bars=Bars(Console(file=io.StringIO())))

    def run(self, changes, doing=run_distill):
        key = (doing.__name__, json.dumps(changes, sort_keys=True))
        if key not in self.runs:
            said, folder = io.StringIO(), self.folder / f"run-{next(self.numbers)}"
            done = doing(self.recipe(changes), out=folder, resume=False, bars=Bars(Console(file=said)))
            self.runs[key] = Run(folder, done.result, said.getvalue())
        return self.runs[key]

    def compare(self, changes):
        return self.run(changes, run_compare)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for module in ("preceptor.distillation", "preceptor.studies.study"):
            patch.setattr(f"{module}.write_report", lambda result, folder: folder)  # charts are most of the time
        yield House(tmp_path_factory.mktemp("house"))


def another_student(house, one, other):
    assert not torch.equal(house.run(one).weights, house.run(other).weights)


FLIPPED = {"data.augment": {"flip": 0.5}}

# ---- another student comes out; what the field does to it is the business of other tests
CHECKS = {
    name: partial(another_student, one=one, other=other)
    for name, one, other in [
        ("Recipe.method", {}, {"method": {"name": "classic-kd", "temperature": 1.0}}),
        ("Recipe.seed", {}, {"seed": 1}),
        ("AugmentRecipe.crop", {}, {"data.augment": {"crop": 1}}),
        ("AugmentRecipe.flip", {}, FLIPPED),
        ("AugmentRecipe.mixup", {}, {"data.augment": {"mixup": 0.4}}),
        ("AugmentRecipe.seed", FLIPPED, {"data.augment": {"flip": 0.5, "seed": 1}}),
        ("TeacherRecipe.model", {}, {"teacher.model": {"reference": "mlp", "inputs": 36, "hidden": [9]}}),
        ("TeacherRecipe.seed", {}, {"teacher.seed": 1}),
        ("Training.optimizer", {}, {"training.optimizer": "SGD"}),
        ("Training.optimizer_options", {}, {"training.optimizer_options": {"weight_decay": 5.0}}),
        ("Training.clip", {"training.optimizer": "SGD"}, {"training.optimizer": "SGD", "training.clip": 1e-4}),
        ("Training.precision", {}, {"training.precision": "bf16"}),
        ("Training.ema", {}, {"training.ema": 0.9}),
    ]
}


def field(name):
    """Make a function the check of a field."""

    def keep(check):
        CHECKS[name] = check
        return check

    return keep


@field("Recipe.title")
def _(house):
    assert "<h1>A title of its own</h1>" in render(house.run({"title": "A title of its own"}).result)


@field("Recipe.data")
def _(house):
    assert not isinstance(house.prepare({"teacher": None, "method": "ce"}).train, Texts)


@field("Recipe.text")
def _(house):
    assert isinstance(texts(house).train, Texts)


@field("Recipe.teacher")
def _(house):
    assert [row["role"] for row in house.run({"teacher": None, "method": "ce"}).result["rows"]] == ["method"]
    assert [row["role"] for row in house.run({}).result["rows"]] == ["teacher", "method"]


@field("Recipe.student")
def _(house):
    assert house.run({"student": {"shrink": 0.5}}).result["rows"][1]["cost"]["parameters"] == 4 * 37 + CLASSES * 5
    assert house.run({"student": {"shrink": 0.25}}).result["rows"][1]["cost"]["parameters"] == 2 * 37 + CLASSES * 3


@field("Recipe.threads")
def _(house):
    before = torch.get_num_threads()
    try:
        for count in (2, 1):
            house.prepare({"threads": count})
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


@field("Recipe.check_teacher")
def _(house):
    ignorant = {"teacher.model": f"{HERE}:blank", "teacher.train": None}
    with pytest.raises(ValueError, match="better than chance"):
        house.run({**ignorant, "check_teacher": True})
    assert house.run(ignorant).updates


@field("Recipe.trackers")
def _(house):
    run = house.run({"trackers": ["tensorboard"]})
    assert not (house.run({}).folder / "trackers").exists()
    (file,) = run.folder.glob("trackers/**/events*")
    events = EventAccumulator(str(file)).Reload()
    assert [event.value for event in events.Scalars("total")] == pytest.approx([line["losses"]["total"] for line in run.updates])
    accuracies = [line["valid"]["accuracy"] for line in run.validations]
    assert [event.value for event in events.Scalars("valid/accuracy")] == pytest.approx(accuracies)


# ---- data


@field("DataRecipe.name")
def _(house):
    assert len(house.prepare({}).test) == 60
    assert len(house.prepare({"data.name": "digits", "teacher": None, "method": "ce"}).test) == 539


def on_hand(house, **more):
    """A data set of two image columns and two label columns; prepared without a teacher."""
    folder = house.folder / "hf"
    if not folder.exists():
        pixels, labels = images(40)
        pictures = [((p[0] - p.min()) / (p.max() - p.min()) * 255).byte().numpy() for p in pixels]
        columns = {"front": pictures, "back": pictures[::-1], "kind": labels.tolist(), "half": [i // 20 for i in range(40)]}
        kinds = Features({"front": Image(), "back": Image(), "kind": ClassLabel(num_classes=3), "half": ClassLabel(num_classes=2)})
        Dataset.from_dict(columns, features=kinds).save_to_disk(str(folder))
    data = {"name": f"hf:{folder}", "image_column": "front", "label_column": "kind", **more}
    return house.prepare({"data": data, "teacher": None, "method": "ce"})


def first_images(made):
    return made.train.batch(torch.arange(5))["x"]


@field("DataRecipe.image_column")
def _(house):
    assert not torch.equal(first_images(on_hand(house)), first_images(on_hand(house, image_column="back")))


@field("DataRecipe.label_column")
def _(house):
    assert (on_hand(house).train.num_classes, on_hand(house, label_column="half").train.num_classes) == (3, 2)


@field("DataRecipe.size")
def _(house):
    assert first_images(on_hand(house)).shape[1:] == (1, 6, 6)
    assert first_images(on_hand(house, size=[4, 5])).shape[1:] == (1, 4, 5)


@field("DataRecipe.channels")
def _(house):
    assert first_images(on_hand(house, channels=3)).shape[1:] == (3, 6, 6)


@field("DataRecipe.test_rate")
def _(house):
    assert [len(on_hand(house, **more).test) for more in ({}, {"test_rate": 0.5})] == [8, 20]


@field("DataRecipe.valid_rate")
def _(house):
    assert [len(house.prepare(more).valid) for more in ({"data.valid_rate": 0.2}, {"data.valid_rate": 0.4})] == [15, 30]


@field("DataRecipe.split_seed")
def _(house):
    assert not torch.equal(house.prepare({}).valid.ids, house.prepare({"data.split_seed": 1}).valid.ids)


@field("DataRecipe.train_images")
def _(house):
    fewer = house.run({"data.train_images": 20})
    assert fewer.updates[0]["items"] == 16
    assert fewer.updates[1]["items"] == 4
    assert "Trained on 20 examples." in fewer.result["notes"]


# ---- text


def tokenizer(house, end="[end]"):
    """A folder with a tokenizer of words and a tiny language model."""
    folder = house.folder / f"lm-{end}"
    if not folder.exists():
        words = Tokenizer(WordLevel({word: i for i, word in enumerate([end, *(f"w{i}" for i in range(9))])}, unk_token=end))
        words.pre_tokenizer = Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, unk_token=end).save_pretrained(folder)
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
        LlamaForCausalLM(LlamaConfig(vocab_size=10, max_position_embeddings=32, **sizes)).save_pretrained(folder)
    return f"hf:{folder}"


def texts(house, **more):
    """Forty documents of ten words, prepared with a teacher that comes with its weights."""
    path = house.folder / "texts.jsonl"
    if not path.exists():
        words = torch.randint(9, (40, 10), generator=torch.Generator().manual_seed(0)).tolist()
        path.write_text("\n".join(json.dumps({"text": " ".join(f"w{number}" for number in row)}) for row in words))
    described = {"documents": str(path), "length": 8, "valid_rate": 0.3, "test_rate": 0.3, **more}
    recipe = {"data": None, "text": described, "teacher": {"model": tokenizer(house)}, "student": {"shrink": 1.0}}
    return house.prepare({**recipe, "method": {"name": "classic-kd"}})


@field("TextRecipe.documents")
def _(house):
    whole, path = texts(house), house.folder / "short.jsonl"
    path.write_text("\n".join((house.folder / "texts.jsonl").read_text().splitlines()[:20]))
    assert len(texts(house, documents=str(path)).pool) < len(whole.pool)


@field("TextRecipe.tokenizer")
def _(house):
    assert texts(house).train.tokenizer.eos_token == "[end]"
    assert texts(house, tokenizer=tokenizer(house, end="[stop]")).train.tokenizer.eos_token == "[stop]"


@field("TextRecipe.length")
def _(house):
    assert [texts(house, length=length).train.batch(torch.tensor([0]))["y"].shape[1] for length in (8, 5)] == [8, 5]


@field("TextRecipe.rows")
def _(house):
    assert len(texts(house, rows=3).train) == 3 < len(texts(house).train)


@field("TextRecipe.prompt")
def _(house):
    assert "prompt" not in texts(house).train.batch(torch.tensor([0]))
    assert texts(house, prompt=3).train.batch(torch.tensor([0]))["prompt"]["input_ids"].shape == (1, 3)


@field("TextRecipe.valid_rows")
def _(house):
    assert len(texts(house, valid_rows=2).valid) == 2 < len(texts(house).valid)


@field("TextRecipe.test_rows")
def _(house):
    assert len(texts(house, test_rows=2).test) == 2 < len(texts(house).test)


@field("TextRecipe.valid_rate")
def _(house):
    assert len(texts(house, valid_rate=0.1).valid) < len(texts(house).valid)


@field("TextRecipe.test_rate")
def _(house):
    assert len(texts(house, test_rate=0.1).test) < len(texts(house).test)


@field("TextRecipe.split_seed")
def _(house):
    one, other = (texts(house, split_seed=seed).valid.batch(torch.tensor([0]))["y"] for seed in (0, 1))
    assert not torch.equal(one, other)


# ---- teacher


@field("TeacherRecipe.cache")
def _(house):
    cached = house.run({"teacher.cache": str(cache(house).folder)})
    assert [row["role"] for row in cached.result["rows"]] == ["method"]
    assert torch.equal(cached.weights, house.run({}).weights)


@field("TeacherRecipe.server")
def _(house):
    made = texts(house)
    described = made.recipe.model_dump()
    described["text"]["tokenizer"] = described["student"] = described["teacher"]["model"]
    with served(Fake(made.teacher, made.train.tokenizer)) as url:
        described |= {"teacher": {"server": url, "model": "tiny"}, "cache": {"kind": "top-k", "k": 2}}
        bars = Bars(Console(file=io.StringIO()))
        from_there = run_cache(parse(described), out=house.folder / "caches" / "server", name="server", bars=bars)
    assert from_there.items == made.train.tokens()
    assert from_there.spec.described == f"tiny at {url}"


@field("TeacherRecipe.train")
def _(house):
    longer, none = {"teacher.train": {"steps": 50, "batch_size": 32, "learning_rate": 0.03}}, {"teacher.train": None}
    models = [house.prepare(changes).teacher.state_dict() for changes in ({}, longer, none)]
    assert all(not torch.equal(a["fc.weight"], b["fc.weight"]) for a, b in zip(models, [*models[1:], models[0]], strict=True))


@field("TeacherRecipe.images")
def _(house):
    assert "teacher: training on 30 examples" in house.run({"teacher.images": 30, "teacher.seed": 5}).said
    another_student(house, {"teacher.images": 30, "teacher.seed": 5}, {"teacher.seed": 5})


@field("TeacherRecipe.folder")
def _(house):
    house.prepare({"teacher.folder": str(house.folder / "elsewhere")})
    assert len(list((house.folder / "elsewhere").glob("*/student/model.safetensors"))) == 1


# ---- training


@field("Training.epochs")
def _(house):
    found = [len(house.run({"training.steps": None, "training.epochs": float(epochs)}).updates) for epochs in (1, 2)]
    assert found == [4, 8]  # 60 examples in batches of 16


@field("Training.steps")
def _(house):
    assert [len(house.run(changes).updates) for changes in ({}, {"training.steps": 9})] == [6, 9]


@field("Training.batch_size")
def _(house):
    assert [house.run(changes).updates[0]["items"] for changes in ({}, {"training.batch_size": 10})] == [16, 10]


@field("Training.micro")
def _(house):
    sizes = []
    for micro in (1, 4):
        CALLS.clear()
        house.run({"student": {"factory": f"{HERE}:Watched"}, "training.micro": micro, "data.train_images": 48})
        sizes.append(set(CALLS))
    assert sizes == [{16}, {4}]


@field("Training.learning_rate")
def _(house):
    low, high = (house.run({"training.learning_rate": rate, "training.warmup": 0.0}).rates for rate in (0.02, 0.04))
    assert [high[0], low[0]] == [0.04, 0.02]


@field("Training.schedule")
def _(house):
    cosine, constant = house.run({}).rates, house.run({"training.schedule": "constant"}).rates
    assert constant == [0.02] * 6
    assert cosine[-1] < cosine[0]


@field("Training.schedule_options")
def _(house):
    options = {"training.schedule": "StepLR", "training.schedule_options": {"step_size": 2, "gamma": 0.5}}
    assert house.run(options).rates == pytest.approx([0.02, 0.02, 0.01, 0.01, 0.005, 0.005])


@field("Training.warmup")
def _(house):
    assert house.run({"training.warmup": 0.5, "training.schedule": "constant"}).rates == pytest.approx([0.005, 0.01, 0.015] + [0.02] * 3)


@field("Training.evaluate_every")
def _(house):
    assert [line["step"] for line in house.run({}).validations] == [2, 4, 6]
    assert [line["step"] for line in house.run({"training.evaluate_every": 3}).validations] == [3, 6]


@field("Training.monitor")
def _(house):
    chosen = []
    for monitor, best in (("accuracy", max), ("nll", min)):
        changes = {"training.monitor": monitor, "training.evaluate_every": 1, "training.steps": 12, "training.learning_rate": 0.2}
        run, made = house.run(changes), house.prepare(changes)
        value = best(line["valid"][monitor] for line in run.validations)
        chosen.append(next(line["step"] for line in run.validations if line["valid"][monitor] == value))
        student = made.student()
        student.load_state_dict(load_file(run.folder / "student" / "model.safetensors"))
        logits = student(made.valid.batch(torch.arange(len(made.valid)))["x"]).detach()
        measured = {
            "accuracy": float((logits.argmax(1) == made.valid.labels).double().mean()),
            "nll": float(nn.functional.cross_entropy(logits, made.valid.labels)),
        }
        assert measured[monitor] == pytest.approx(value)
    assert len(set(chosen)) == 2


@field("Training.patience")
def _(house):
    idle = {"training.learning_rate": 0.0, "training.steps": 20}
    assert len(house.run(idle).updates) == 20
    assert len(house.run({**idle, "training.patience": 2}).updates) == 6  # one validation to remember, two without improvement


@field("Training.checkpoint_every")
def _(house):
    assert house.run({"training.keep": 9}).checkpoints == [2, 4, 6]
    assert house.run({"training.keep": 9, "training.checkpoint_every": 1}).checkpoints == [1, 2, 3, 4, 5, 6]


@field("Training.keep")
def _(house):
    assert house.run({}).checkpoints == [4, 6]
    assert house.run({"training.keep": 1}).checkpoints == [6]


@field("Training.skip_nonfinite")
def _(house):
    bad = {"student": {"factory": f"{HERE}:Watched", "bad": True}, "training.batch_size": 4, "training.steps": 12}
    with pytest.raises(NonFinite, match="batch and state kept in"):
        house.run(bad)
    run = house.run({**bad, "training.skip_nonfinite": 10})
    assert len(run.updates) == 12
    assert any("nonfinite" in line for line in run.lines)


@field("Training.num_workers")
def _(house):
    readers = []
    for workers in (0, 1):
        OnDisk.folder = house.folder / f"readers-{workers}"
        OnDisk.folder.mkdir()
        changes = {"data.name": f"{HERE}:on_disk", "training.num_workers": workers, "teacher": None, "method": "ce", "training.steps": 2}
        house.run(changes)
        readers.append({path.name for path in OnDisk.folder.iterdir()} - {str(os.getpid())})
    assert not readers[0]
    assert readers[1]


# ---- studies


def names(run):
    return {role: [row["name"] for row in run.result["rows"] if row["role"] == role] for role in ("baseline", "method")}


@field("StudyRecipe.methods")
def _(house):
    assert names(house.compare({})) == {"baseline": ["ce"], "method": ["classic-kd"]}
    hot = {"name": "classic-kd", "temperature": 9.0, "label": "hot"}
    assert names(house.compare({"study.methods": ["classic-kd", hot]})) == {"baseline": ["ce"], "method": ["classic-kd", "hot"]}


@field("StudyRecipe.seeds")
def _(house):
    assert [house.compare(changes).result["seeds"] for changes in ({}, {"study.seeds": 1})] == [[0, 1], [0]]


@field("StudyRecipe.baseline")
def _(house):
    assert names(house.compare({"study.baseline": "dkd"})) == {"baseline": ["dkd"], "method": ["classic-kd"]}


@field("StudyRecipe.metrics")
def _(house):
    found = house.compare({"study.metrics": ["nll", "ece"]}).result["paired"]
    assert [pair["metric"] for pair in found] == ["nll", "ece"]
    assert [pair["metric"] for pair in house.compare({}).result["paired"]] == ["accuracy"]


@field("StudyRecipe.budget")
def _(house):
    steps = {seed["steps"] for row in house.compare({"study.budget": "0.00001s"}).result["rows"][1:] for seed in row["seeds"]}
    assert steps == {1}


@field("StudyRecipe.workers")
def _(house):
    processes = []
    for workers in (1, 2):
        log = house.folder / f"processes-{workers}"
        house.compare({"student": {"factory": f"{HERE}:Watched", "log": str(log)}, "study.workers": workers})
        processes.append(set(log.read_text().split()) - {str(os.getpid())})
    assert [len(found) for found in processes] == [0, 2]


SWEPT = {"study.sweep": {"sizes": [20, 30], "methods": ["ce", "classic-kd"]}}


def points(run):
    return {(point["value"], point["name"]) for point in run.result["sweep"]["points"]}


@field("StudyRecipe.sweep")
def _(house):
    assert house.compare({}).result["sweep"] is None
    assert points(house.compare(SWEPT)) == {(size, name) for size in (20, 30, 60) for name in ("ce", "classic-kd")}


@field("SweepRecipe.sizes")
def _(house):
    found = points(house.compare({"study.sweep": {"sizes": [20], "methods": ["ce", "classic-kd"]}}))
    assert found == {(size, name) for size in (20, 60) for name in ("ce", "classic-kd")}


@field("SweepRecipe.methods")
def _(house):
    assert points(house.compare({"study.sweep": {"sizes": [20], "methods": ["ce"]}})) == {(20, "ce"), (60, "ce")}


@field("StudyRecipe.tune")
def _(house):
    assert house.compare({}).result["tuning"] == []
    assert [choice["name"] for choice in tuned(house).result["tuning"]] == ["ce", "classic-kd"]


def tuned(house, **changes):
    return house.compare({"study.tune": {"trials": 2, "training": {"learning_rate": [0.0, 0.02]}, **changes}, "study.seeds": 1})


@field("Tuning.trials")
def _(house):
    assert {choice["trials"] for choice in tuned(house, trials=1).result["tuning"]} == {1}


@field("Tuning.seed")
def _(house):
    assert (tuned(house, seed=1001).folder / "tuning" / "0" / "ce-1001").is_dir()


@field("Tuning.training")
def _(house):
    chosen = tuned(house, training={"batch_size": [8, 20]}).result["tuning"][0]["chosen"]
    assert chosen.keys() == {"batch_size"}


@field("StudyRecipe.equal_compute")
def _(house):
    assert [row["name"] for row in house.compare({"study.equal_compute": True}).result["compute"]["rows"]] == ["ce", "classic-kd"]


@field("StudyRecipe.attack")
def _(house):
    assert "robust_accuracy" not in house.compare({}).result["rows"][1]["summary"]
    assert robust(house, epsilon=1.0) < robust(house, epsilon=0.01)


def robust(house, **attack):
    run = house.compare({"study.attack": attack, "study.seeds": 1, "training.steps": 60})
    return run.result["rows"][1]["seeds"][0]["metrics"]["robust_accuracy"]


@field("Attack.epsilon")
def _(house):
    assert robust(house, epsilon=1.0) < robust(house, epsilon=0.01)


@field("Attack.steps")
def _(house):
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preceptor.task.pgd", lambda model, x, y, *, steps, step_size, **rest: taken.append(steps * step_size) or x)
        robust(house, epsilon=0.5, steps=3)
    assert taken
    assert taken == pytest.approx([2.5 * 0.5] * len(taken))


# ---- cache


def cache(house, **wanted):
    """The cache of the base recipe with changes to what is kept."""
    name = "-".join(f"{key}-{value}" for key, value in wanted.items()) or "base"
    changes = {f"cache.{key}": value for key, value in wanted.items()}
    return run_cache(house.recipe(changes), out=house.folder / "caches" / name, name="base", bars=Bars(Console(file=io.StringIO())))


def answers(house, **wanted):
    """What it says about the first examples."""
    made = cache(house, **wanted)
    return made.signal(house.prepare({}).train.ids[:5])


@field("CacheRecipe.kind")
def _(house):
    assert answers(house).keys() == {"logits"}
    assert answers(house, kind="sample", k=2).keys() == {"sample_indices", "sample_weights"}


@field("CacheRecipe.k")
def _(house):
    assert [answers(house, kind="top-k", k=k)["top_indices"].shape for k in (1, 2)] == [(5, 1), (5, 2)]


@field("CacheRecipe.temperature")
def _(house):
    cold, warm = (answers(house, kind="top-k", k=1, temperature=temperature)["top_logprobs"] for temperature in (1.0, 4.0))
    assert (warm < cold).all()


@field("CacheRecipe.precision")
def _(house):
    assert torch.equal(answers(house)["logits"].half().float(), answers(house, precision="float16")["logits"])
    assert cache(house, precision="float16").bytes_per_item < cache(house).bytes_per_item


@field("CacheRecipe.seed")
def _(house):
    one, other = (answers(house, kind="sample", k=1, temperature=9.0, seed=seed)["sample_indices"] for seed in (0, 1))
    assert not torch.equal(one, other)


@field("CacheRecipe.layers")
def _(house):
    assert answers(house, kind="features", layers=["hidden1"])["features"]["hidden1"].shape == (5, 8)


# ---- every field


def models_in(annotation):
    """Models that an annotation names, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_in(part)]


def fields(model):
    """Names such as ``Training.steps`` of all fields, those of nested models included; a field that only holds fields is none."""
    for name, info in model.model_fields.items():
        inner = models_in(info.annotation)
        if info.annotation not in inner:
            yield f"{model.__name__}.{name}"
        for nested in inner:
            yield from fields(nested)


FIELDS = sorted(set(fields(Recipe)))


@pytest.mark.parametrize("name", FIELDS)
def test_field(house, name):
    assert name in CHECKS, f"{name} is new: say here what setting it changes"
    CHECKS[name](house)


def test_no_check_is_without_a_field():
    assert set(CHECKS) == set(FIELDS)


def test_a_new_field_is_found():
    class Inner(BaseModel):
        deep: int = 0

    class Outer(BaseModel):
        plain: str = ""
        whole: Inner = Inner()
        many: list[Inner] | None = None

    assert set(fields(Outer)) == {"Outer.plain", "Outer.many", "Inner.deep"}
