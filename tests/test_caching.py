"""`preceptor cache`: a student taught from a cache is the student taught by its teacher, and never meets it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.teachers.answers import contents
from tests.test_cli import call
from tests.test_every_recipe_field import House, texts, tokenizer

from preceptor.core.run import fingerprint
from preceptor.data.examples import examples_from
from preceptor.data.splits import fingerprint as data_fingerprint
from preceptor.data.splits import holdout
from preceptor.distillation import distill, make_task
from preceptor.methods.born_again import BornAgain
from preceptor.models.reference import build as reference
from preceptor.studies.study import compare
from preceptor.teachers.build import build
from preceptor.teachers.cache import Cache, Spec

RECIPE = {
    "threads": 1,
    "data": {"name": "digits", "train_images": 150},
    "teacher": {"model": {"reference": "mlp", "inputs": 64, "hidden": [32]}, "train": {"epochs": 3, "learning_rate": 0.01}},
    "student": {"reference": "mlp", "inputs": 64, "hidden": [4]},
    "training": {"steps": 12, "batch_size": 32},
    "check_teacher": False,
}


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kitchen")
    recipe = {**RECIPE, "teacher": {**RECIPE["teacher"], "folder": str(folder / "teachers")}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def done(*words):
    result = call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words):
    result = call(*words)
    assert result.exit_code == 2, result.output
    return result.stderr.strip().splitlines()[-1]


def weights(run):
    return load_file(run / "student" / "model.safetensors")


@pytest.mark.parametrize("augment", [{}, {"flip": 0.5, "crop": 1}], ids=["plain", "augmented"])
@pytest.mark.parametrize("method", ["classic-kd", "dkd"])
def test_the_same_student_bit_for_bit(kitchen, method, augment):
    name = f"{method}-{'views' if augment else 'plain'}"
    words = [kitchen / "tiny.yaml", f"method={method}", f"data.augment={json.dumps(augment)}"]
    facts = json.loads(done("cache", *words, "--out", kitchen / name, "--json"))
    assert facts["items"] == 150 * (3 if augment else 1)  # 12 updates are 2.4 epochs of 5 batches
    done("distill", *words, "--out", kitchen / f"{name}-live")
    done("distill", *words, f"teacher.cache={kitchen / name}", "--out", kitchen / f"{name}-cached")
    live, cached = weights(kitchen / f"{name}-live"), weights(kitchen / f"{name}-cached")
    assert all(torch.equal(value, cached[key]) for key, value in live.items())
    result = json.loads((kitchen / f"{name}-cached" / "result.json").read_text())
    assert [row["role"] for row in result["rows"]] == ["method"]
    assert any("answered from a cache" in note for note in result["notes"])


def test_the_teacher_is_not_loaded(kitchen, tmp_path):
    """Not even its weights need be there, nor its description; a student made of it still needs it."""
    done("cache", kitchen / "tiny.yaml", "--out", tmp_path / "cache")
    recipe = yaml.safe_load((kitchen / "tiny.yaml").read_text())
    recipe["teacher"] = {"cache": str(tmp_path / "cache")}
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(recipe))
    done("distill", tmp_path / "alone.yaml", "--out", tmp_path / "run")
    done("evaluate", tmp_path / "run")
    done("compare", tmp_path / "alone.yaml", "study.methods=[classic-kd, dkd]", "study.seeds=1", "study.workers=2", "--out", tmp_path / "s")
    line = refused("distill", tmp_path / "alone.yaml", "student={shrink: 0.5}", "--out", tmp_path / "none")
    assert "student: expected a teacher to make smaller" in line
    done("distill", kitchen / "tiny.yaml", "student={shrink: 0.5}", f"teacher.cache={tmp_path / 'cache'}", "--out", tmp_path / "smaller")


def test_other_kinds_teach_too(kitchen, tmp_path):
    for kind in ("{kind: top-k, k: 4, temperature: 4.0}", "{kind: sample, k: 4, temperature: 4.0, precision: float32}"):
        name = kind[7:10]
        done("cache", kitchen / "tiny.yaml", f"cache={kind}", "--out", tmp_path / name)
        done("distill", kitchen / "tiny.yaml", f"teacher.cache={tmp_path / name}", "--out", tmp_path / f"run-{name}")
    features = 'method={name: rkd, student_layers: ["fc:input"], teacher_layers: ["fc:input"]}'
    done("cache", kitchen / "tiny.yaml", 'cache={kind: features, layers: ["fc:input"]}', "--out", tmp_path / "f")
    done("distill", kitchen / "tiny.yaml", features, f"teacher.cache={tmp_path / 'f'}", "--out", tmp_path / "run-f")
    done("distill", kitchen / "tiny.yaml", features, "--out", tmp_path / "live-f")
    assert all(torch.equal(value, weights(tmp_path / "run-f")[key]) for key, value in weights(tmp_path / "live-f").items())


def test_refusals(kitchen, tmp_path):
    recipe, cache, out = kitchen / "tiny.yaml", tmp_path / "cache", ("--out", tmp_path / "run")
    assert "k: expected at most the 10 classes of the teacher, got 11" in refused("cache", recipe, "cache={kind: top-k, k: 11}", *out)
    assert "k: expected a number of classes" in refused("cache", recipe, "cache.kind=top-k", *out)
    assert "cache.kind" in refused("cache", recipe, "cache.kind=topk", *out)
    assert "teacher.model: expected the model to ask" in refused("cache", recipe, "teacher=null", "method=ce", *out)
    assert "layers: expected names of layers of MLP, got 'fd'" in refused("cache", recipe, "cache={kind: features, layers: [fd]}", *out)
    assert not (tmp_path / "run").exists()
    done("cache", recipe, "--out", cache)
    with_cache = ("distill", recipe, f"teacher.cache={cache}")
    assert "expected described" in refused(*with_cache, "teacher.seed=1", *out)
    unnamed = ("distill", recipe, f"teacher={{cache: {cache}}}")
    assert "expected augment" in refused(*unnamed, "data.augment.flip=0.5", *out)
    assert "expected data" in refused(*with_cache, "data.train_images=140", *out)
    assert "training.monitor" in refused(*with_cache, "training.monitor=agreement", *out)
    assert "a network for the chain of trainings of BornAgain" in refused(*with_cache, "method=born-again", *out)
    assert "a network for the chain of trainings of TAKD" in refused(*with_cache, "method=takd", *out)
    hints = 'method={name: fitnets, student_layers: ["fc:input"], teacher_layers: ["fc:input"]}'
    assert "a network for FitNets, which cannot learn from a cache" in refused(*with_cache, hints, *out)
    assert "teacher.model: expected a model, or a folder" in refused("distill", recipe, "teacher={}", *out)
    assert "expected a finished cache" in refused("distill", recipe, f"teacher.cache={tmp_path / 'nowhere'}", *out)
    shard = cache / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 4
    shard.write_bytes(data)
    assert "shard-00000.arrow is torn or was altered" in refused(*with_cache, *out)
    assert not (tmp_path / "run").exists()
    assert "precision was 'float32'" in refused("cache", recipe, "cache.precision=float16", "--out", cache)


def test_a_run_is_resumed_with_the_same_cache_only(kitchen, tmp_path):
    for name, more in (("a", []), ("b", ["cache.precision=float16"])):
        done("cache", kitchen / "tiny.yaml", *more, "--out", tmp_path / name)
    words = ["distill", kitchen / "tiny.yaml", "--out", tmp_path / "run"]
    done(*words, f"teacher.cache={tmp_path / 'a'}")
    done(*words, f"teacher.cache={tmp_path / 'a'}", "--resume")
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    assert "cache was" in refused(*words, f"teacher.cache={tmp_path / 'a'}", "--resume")


def test_killed_three_times_and_stopped_once(kitchen, tmp_path):
    words = [str(kitchen / "tiny.yaml"), "training.batch_size=1", "data.train_images=600"]
    done("cache", *words, "--out", tmp_path / "straight")
    broken = tmp_path / "broken"

    def begin():
        command = [sys.executable, "-m", "preceptor.cli", "cache", *words, "--out", str(broken)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    def lines():
        journal = broken / ".journal.jsonl"
        return len(journal.read_text().splitlines()) if journal.exists() else 0

    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        child, before = begin(), lines()
        for _ in range(3000):
            if lines() > before + 3:
                break
            time.sleep(0.02)
        os.kill(child.pid, number)
        _, errors = child.communicate(timeout=60)
        assert child.returncode == (-9 if number == signal.SIGKILL else 143), errors
        assert before < lines() < 600
    assert "go on with: preceptor cache" in errors
    done("cache", *words, "--out", broken)
    assert contents(broken) == contents(tmp_path / "straight")


def test_from_python(tmp_path):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 1, 6, 6, generator=generator), torch.randint(4, (60,), generator=generator)
    torch.manual_seed(0)
    teacher, student = (reference({"reference": "cnn", "channels": channels, "classes": 4}) for channels in ([4, 6], [3, 5]))
    start = {key: value.clone() for key, value in student.state_dict().items()}
    train, valid = holdout(examples_from((x, y), 4), rate=0.2)
    batches = [train.batch(indices) for indices in torch.arange(len(train)).split(8)]
    teacher.eval()
    spec = Spec(teacher=fingerprint(teacher), data=data_fingerprint(train))
    cache = build(tmp_path / "cache", batches, lambda batch: teacher(batch["x"]), spec)
    options = {"train": train, "valid": valid, "training": {"steps": 20, "batch_size": 8}, "check_teacher": False, "say": lambda line: None}
    distill(student=student, teacher=teacher, **options)
    live = {key: value.clone() for key, value in student.state_dict().items()}
    student.load_state_dict(start)
    distill(student=student, teacher=cache, **options)
    assert all(torch.equal(value, live[key]) for key, value in student.state_dict().items())
    with pytest.raises(ValueError, match="expected data"):
        distill(student=student, teacher=cache, **{**options, "train": valid, "valid": train})
    with pytest.raises(ValueError, match="sweep: expected at most the 48 examples of the cache, got 50"):
        compare(student=student, teacher=cache, methods=["classic-kd"], sweep={50: ["classic-kd"]}, **options)
    task = make_task(train, valid, None, teacher=cache)
    with pytest.raises(ValueError, match="a network for the chain"):
        task.stages(BornAgain(), student)


def test_texts(tmp_path):
    house = House(tmp_path)
    path = texts(house).recipe.text.documents
    recipe = {
        "threads": 1,
        "text": {"documents": path, "length": 8, "valid_rate": 0.3, "test_rate": 0.3},
        "teacher": {"model": tokenizer(house)},
        "student": {"shrink": 1.0},
        "method": {"name": "classic-kd", "temperature": 1.0, "alpha": 1.0},
        "training": {"steps": 4, "batch_size": 2, "monitor": "nll", "learning_rate": 0.01},
        "check_teacher": False,
    }
    (tmp_path / "texts.yaml").write_text(yaml.safe_dump(recipe))
    done("cache", tmp_path / "texts.yaml", "cache={kind: top-k, k: 3}", "--out", tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    assert cache.texts
    assert cache.spec.precision == "compact"
    assert cache.spec.tokenizer is not None
    train = house.prepare({"data": None, **{key: recipe[key] for key in ("text", "teacher", "student", "method")}}).train
    signal = cache.signal(train.ids)
    assert torch.equal(signal["mask"], train.batch(torch.arange(len(train)))["mask"].bool())
    done("distill", tmp_path / "texts.yaml", f"teacher.cache={tmp_path / 'cache'}", "--out", tmp_path / "run")
    other = f"text.tokenizer={tokenizer(house, end='[stop]')}"
    assert "expected tokenizer" in refused(
        "distill", tmp_path / "texts.yaml", other, f"teacher.cache={tmp_path / 'cache'}", "--out", tmp_path / "none"
    )
    done("cache", tmp_path / "texts.yaml", "--out", tmp_path / "whole")
    done("distill", tmp_path / "texts.yaml", f"teacher.cache={tmp_path / 'whole'}", "--out", tmp_path / "cached")
    done("distill", tmp_path / "texts.yaml", "--out", tmp_path / "live")
    for key, value in weights(tmp_path / "live").items():
        torch.testing.assert_close(weights(tmp_path / "cached")[key], value, atol=1e-5, rtol=1e-5)
