"""A cache gives back what the teacher said, refuses another's, and notices every flipped byte."""

import json
import os
import shutil
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from tests.models.whole import Whole
from tests.teachers.answers import CLASSES, WHOSE, contents, examples, made, said, texts, whole
from torch import nn

from preceptor.core.state import State
from preceptor.data.augment import Flip
from preceptor.data.examples import examples_from
from preceptor.data.sources import Source
from preceptor.losses.divergence import forward_kl, kl
from preceptor.methods.ce import CrossEntropy
from preceptor.methods.classic_kd import ClassicKD
from preceptor.methods.fitnets import FitNets
from preceptor.methods.gkd import GKD
from preceptor.methods.rkd import RKD
from preceptor.miniature.toys import Halves
from preceptor.teachers.build import build
from preceptor.teachers.cache import Cache, Spec, from_cache
from preceptor.teachers.targets import KL_BOUND_PER_BUCKET, top_k

KINDS = [
    {"kind": "logits"},
    {"kind": "logits", "precision": "float16"},
    {"kind": "top-k", "k": 5},
    {"kind": "top-k", "k": 5, "precision": "float16"},
    {"kind": "top-k", "k": 5, "precision": "compact", "temperature": 2.0},
    {"kind": "sample", "k": 5},
    {"kind": "sample", "k": 5, "precision": "compact", "seed": 3},
]


def name(kind):
    return "-".join(str(value) for value in kind.values())


def shuffled(data):
    order = torch.randperm(len(data["id"]), generator=torch.Generator().manual_seed(1))
    return {key: value[order] for key, value in data.items()}


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize("batches", [texts(), examples()], ids=["texts", "examples"])
def test_round_trip_in_any_order(tmp_path, kind, batches):
    cache = made(tmp_path / "c", batches, shard_bytes=500, **kind)
    data = shuffled(whole(batches))
    signal = cache.signal(data["id"])
    counts = data.get("mask", torch.ones(data["y"].shape, dtype=torch.bool))
    assert cache.items == int(counts.sum())
    assert ("mask" in signal) == cache.texts == ("mask" in data)
    if cache.texts:
        assert torch.equal(signal["mask"], counts)
    z, exact = data["z"], kind.get("precision", "float32") == "float32"
    if kind["kind"] == "logits":
        assert signal.keys() - {"mask"} == {"logits"}
        expected = z if exact else z.half().float()
        assert torch.equal(signal["logits"][counts], expected[counts])
    elif kind["kind"] == "top-k":
        assert signal.keys() - {"mask"} == {"top_indices", "top_logprobs", "tail"}
        indices, values, tail = top_k(z[counts], 5, temperature=kind.get("temperature", 1.0))
        assert torch.equal(signal["top_indices"][counts], indices)
        p, q = (
            torch.cat(parts, dim=-1).double()
            for parts in ((values, tail[:, None]), (signal["top_logprobs"][counts], signal["tail"][counts].log()[:, None]))
        )
        if kind.get("precision") == "compact":
            assert (kl(p, q) <= cache.kl_bound).all()
            assert cache.kl_bound == 6 * KL_BOUND_PER_BUCKET
        else:
            torch.testing.assert_close(p, q, atol=1e-5 if exact else 5e-3, rtol=0)
            assert cache.kl_bound is None
    else:
        assert signal.keys() - {"mask"} == {"sample_indices", "sample_weights"}
        weights = signal["sample_weights"][counts]
        assert (signal["sample_indices"].diff(dim=-1)[counts] > 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)), atol=1e-5 if exact else 0.02, rtol=0)
    assert all(value.isfinite().all() for value in signal.values())


@pytest.mark.parametrize("batches", [texts(), examples()], ids=["texts", "examples"])
def test_features(tmp_path, batches):
    layers = {"a": lambda z: z.unsqueeze(-2) * 2, "b": lambda z: z[..., 0]}
    cache = made(
        tmp_path / "c", batches, kind="features", layers=tuple(layers), answer=lambda b: {name: f(b["z"]) for name, f in layers.items()}
    )
    data = shuffled(whole(batches))
    signal = cache.signal(data["id"])
    assert signal.keys() - {"mask"} == {"features"}
    counts = data.get("mask", torch.ones(data["y"].shape, dtype=torch.bool))
    for layer, function in layers.items():
        assert torch.equal(signal["features"][layer][counts], function(data["z"])[counts])


def test_views_of_every_epoch(tmp_path):
    images = examples_from((torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2), 2)
    flip = Flip(rate=0.5)
    source = Source(images, batch_size=4, shuffle=False, augment=flip)
    batches = [next(source) for _ in range(2 * source.batches_per_epoch)]
    cache = made(tmp_path / "c", batches, answer=lambda b: b["x"].flatten(1), augment=repr(flip), epochs=2)
    seen = [cache.signal(torch.arange(10), epoch=epoch)["logits"] for epoch in (0, 1)]
    assert not torch.equal(*seen)
    for epoch in (0, 1):
        view = flip({**images.batch(torch.arange(10)), "epoch": epoch})["x"]
        assert torch.equal(seen[epoch], view.flatten(1))
    with pytest.raises(ValueError, match="epoch: expected one of 2"):
        cache.signal(torch.arange(10), epoch=2)


def test_rows_of_other_widths_no_rows_and_strangers(tmp_path):
    first, second = texts(rows=4, batch_size=2)
    second = {key: value[:, :6] if value.ndim > 1 else value for key, value in second.items()}
    first["mask"][:, 7:] = False
    cache = made(tmp_path / "c", [first, second], kind="top-k", k=3)
    ids = torch.cat([second["id"], first["id"]])
    assert cache.signal(second["id"])["top_indices"].shape == (2, 6, 3)
    wide = cache.signal(ids, width=12)
    assert wide["mask"].shape == (4, 12)
    assert not wide["mask"][:, 7:].any()
    last = int(first["mask"].nonzero()[:, 1].max())
    assert torch.equal(cache.signal(ids, width=last + 1)["mask"], wide["mask"][:, : last + 1])
    with pytest.raises(ValueError, match=f"width: expected at least {last + 1}"):
        cache.signal(ids, width=last)
    assert cache.signal(ids[:0], width=5)["top_logprobs"].shape == (0, 5, 3)
    with pytest.raises(ValueError, match=r"id: expected examples in the cache .*, got 5"):
        cache.signal(torch.tensor([int(ids[0]), 5]))


def test_positions_without_an_answer_are_a_harmless_distribution(tmp_path):
    for kind in ({"kind": "top-k", "k": 3}, {"kind": "sample", "k": 3}, {"kind": "logits"}):
        signal = made(tmp_path / kind["kind"], texts(), **kind).signal(whole(texts())["id"])
        empty = ~signal["mask"]
        if "top_logprobs" in signal:
            torch.testing.assert_close(signal["top_logprobs"][empty].exp().sum(-1), torch.ones(int(empty.sum())))
            assert (signal["top_indices"][empty] == torch.arange(3)).all()
        if "sample_weights" in signal:
            torch.testing.assert_close(signal["sample_weights"][empty].sum(-1), torch.ones(int(empty.sum())))


def test_a_sample_depends_on_the_item_and_the_seed_alone(tmp_path):
    batches = texts()
    data = whole(batches)
    options = {"kind": "sample", "k": 5, "precision": "compact"}
    one = made(tmp_path / "a", batches, **options).signal(data["id"])
    regrouped = [{key: value[start : start + 4] for key, value in data.items()} for start in range(0, 12, 4)]
    assert all(torch.equal(value, one[key]) for key, value in made(tmp_path / "b", regrouped, **options).signal(data["id"]).items())
    other = made(tmp_path / "c", batches, seed=1, **options).signal(data["id"])
    assert not torch.equal(one["sample_indices"], other["sample_indices"])
    same = [{**batch, "z": data["z"][:1, :1].expand_as(batch["z"])} for batch in batches]  # one distribution at every position
    found = made(tmp_path / "d", same, **options).signal(data["id"])["sample_indices"]
    assert len(found[0][data["mask"][0]].unique(dim=0)) > 2  # its positions draw each for itself
    assert len(found[data["mask"]].unique(dim=0)) > 5  # at most 23 outcomes there are: one for each stretch between break points


@pytest.mark.parametrize("scale", [1.0, 2.5, 8.0])
def test_few_bytes(tmp_path, scale):
    """k = 64 of 32,000 with ids anywhere, the hardest case for their coding: 131 bytes besides the 2.2 kB that Arrow takes for a batch."""
    z = scale * torch.randn(1, 512, 32_000, generator=torch.Generator().manual_seed(0))
    batch = {"id": torch.arange(1), "y": torch.zeros(1, 512, dtype=torch.int64), "z": z}
    cache = made(tmp_path / "c", [batch], kind="top-k", k=64, precision="compact")
    size = (tmp_path / "c" / "shard-00000.arrow").stat().st_size
    assert size <= 131 * 512 + 2200
    assert cache.bytes_per_item == round(size / 512, 3)


def test_hugging_face_reads_the_shards(tmp_path):
    batches = texts()
    cache = made(tmp_path / "c", batches, kind="top-k", k=5, shard_bytes=500)
    files = sorted(str(path) for path in (tmp_path / "c").glob("*.arrow"))
    assert len(files) > 1
    read = datasets.concatenate_datasets([datasets.Dataset.from_file(file) for file in files])
    data = whole(batches)
    assert read["id"][:] == data["id"].tolist()
    for row, example in enumerate(read):
        counts = data["mask"][row]
        signal = cache.signal(data["id"][row : row + 1])
        assert example["items"] == int(counts.sum())
        assert np.flatnonzero(np.unpackbits(np.array(example["mask"], dtype=np.uint8))).tolist() == counts.nonzero()[:, 0].tolist()
        assert example["indices"] == signal["top_indices"][0][counts].flatten().tolist()
        torch.testing.assert_close(torch.tensor(example["log_probs"]), signal["top_logprobs"][0][counts].flatten())
    compact = made(tmp_path / "d", batches, kind="top-k", k=5, precision="compact")
    assert len(datasets.Dataset.from_file(str(tmp_path / "d" / "shard-00000.arrow"))) == 12 == len(data["id"])
    assert compact.bytes_per_item < cache.bytes_per_item + 30


def test_the_manifest_describes_the_cache(tmp_path):
    cache = made(tmp_path / "c", texts(), kind="top-k", k=5, precision="compact", tokenizer="tok", template="tem", shard_bytes=400)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["spec"] == {
        "kind": "top-k",
        "k": 5,
        "temperature": 1.0,
        "precision": "compact",
        "seed": 0,
        "teacher": "t",
        "described": "",
        "data": "d",
        "tokenizer": "tok",
        "template": "tem",
        "augment": None,
        "epochs": 1,
        "layers": [],
    }
    assert sum(shard["items"] for shard in manifest["shards"]) == manifest["items"] == cache.items
    assert sum(shard["rows"] for shard in manifest["shards"]) == 12
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"manifest.json", *(shard["name"] for shard in manifest["shards"])}


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("teacher", "another"),
        ("tokenizer", "another"),
        ("template", "another"),
        ("data", "another"),
        ("augment", "Flip()"),
        ("k", 4),
        ("temperature", 2.0),
        ("kind", "sample"),
        ("precision", "float16"),
        ("layers", ("fc",)),
    ],
)
def test_another_cache_is_refused_by_the_field(tmp_path, field, wanted):
    made(tmp_path / "c", examples(), kind="top-k", k=5)
    Cache.open(tmp_path / "c", {**WHOSE, "k": 5, "temperature": 1.0, "augment": None, "layers": ()})
    with pytest.raises(ValueError, match=rf"^cache .*: expected {field} .*, got a cache with {field} [^\n]*$"):
        Cache.open(tmp_path / "c", {field: wanted})
    if field not in ("layers", "augment", "kind"):
        with pytest.raises(ValueError, match=field):
            made(tmp_path / "c", examples(), **{"kind": "top-k", "k": 5, field: wanted})


def test_every_flipped_byte_is_noticed(tmp_path):
    made(tmp_path / "c", texts(rows=4, batch_size=2, length=3), kind="top-k", k=3, precision="compact", shard_bytes=400)
    files = sorted((tmp_path / "c").iterdir())
    assert len(files) == 3
    draws = np.random.default_rng(0)
    for path in files:
        intact = path.read_bytes()
        places = range(len(intact)) if path.suffix == ".json" else draws.choice(len(intact), 60, replace=False)
        for place in [*places, 0, len(intact) - 1]:
            flipped = bytearray(intact)
            flipped[place] ^= 1 << int(draws.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=path.name) as refusal:
                Cache.open(tmp_path / "c")
            assert "\n" not in str(refusal.value)
        path.write_bytes(intact[:-1])
        with pytest.raises(ValueError, match=path.name):
            Cache.open(tmp_path / "c")
        path.unlink()
        with pytest.raises(ValueError, match=f"{path.name}"):
            Cache.open(tmp_path / "c")
        path.write_bytes(intact)
    Cache.open(tmp_path / "c")


def test_no_cache_and_an_unfinished_one(tmp_path):
    with pytest.raises(ValueError, match=r"expected a finished cache, got no manifest\.json there"):
        Cache.open(tmp_path)
    with pytest.raises(ValueError, match=r"expect: expected fields out of kind, k, .*, got 'topk'"):
        made(tmp_path / "d", examples()).check({"topk": 3})
    with pytest.raises(ZeroDivisionError):
        made(tmp_path / "c", examples(), progress=lambda rows: 1 // (rows - 12))
    with pytest.raises(ValueError, match="not finished; build it on"):
        Cache.open(tmp_path / "c")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "topk"}, "kind: expected one of logits"),
        ({"kind": "top-k"}, "k: expected a number of classes >= 1"),
        ({"kind": "sample", "k": 0}, "k: expected a number of classes >= 1"),
        ({"k": 3}, "k: expected none for kind 'logits', got 3"),
        ({"kind": "top-k", "k": 3, "temperature": 0.0}, "temperature: expected a number > 0"),
        ({"temperature": 2.0}, "temperature: expected 1 for kind 'logits'"),
        ({"precision": "compact"}, "precision: expected one of float32, float16"),
        ({"kind": "sample", "k": 3, "precision": "float16"}, "precision: expected one of float32, compact"),
        ({"epochs": 2}, "epochs: expected 1 without augmentation"),
        ({"kind": "features"}, "layers: expected names"),
    ],
)
def test_impossible_caches(spec, words):
    with pytest.raises(ValueError, match=words):
        Spec(**WHOSE, **spec)


def test_bad_answers_write_nothing(tmp_path):
    batches = examples()
    with pytest.raises(ValueError, match=f"k: expected at most the {CLASSES} classes of the teacher, got {CLASSES + 1}"):
        made(tmp_path / "c", batches, kind="top-k", k=CLASSES + 1)
    with pytest.raises(ValueError, match=r"answer: expected logits of shape \(6,\) \+ \(classes,\), got \(6, 1, 23\)"):
        made(tmp_path / "c", batches, answer=lambda b: b["z"][:, None])
    batches[0]["z"][4, 2] = torch.nan
    with pytest.raises(ValueError, match="answer: expected finite logits, got NaN or infinity in example 28"):
        made(tmp_path / "c", batches)
    batches[0]["z"][4] = -torch.inf
    with pytest.raises(ValueError, match="in example 28"):
        made(tmp_path / "c", batches)
    batches[0]["z"][4, 2] = 7e4
    with pytest.raises(ValueError, match=r"precision: expected numbers that fit float16, got 7e\+04"):
        made(tmp_path / "c", batches, precision="float16")
    with pytest.raises(ValueError, match="answer: expected features of fc, got fd"):
        made(tmp_path / "c", batches, kind="features", layers=("fc",), answer=lambda b: {"fd": b["z"]})
    assert not (tmp_path / "c").exists()


def test_an_empty_mask_everywhere_and_an_id_twice(tmp_path):
    batches = texts()
    nothing = [{**batch, "mask": torch.zeros_like(batch["mask"])} for batch in batches]
    with pytest.raises(ValueError, match="mask: expected at least one position that counts, got none in 12 examples"):
        made(tmp_path / "a", nothing, kind="top-k", k=3, precision="compact")
    with pytest.raises(ValueError, match=f"id: expected every example once in an epoch, got {int(batches[0]['id'].min())} twice"):
        made(tmp_path / "b", [batches[0], batches[0]])
    fewer = [batches[0], {**batches[1], "z": batches[1]["z"][..., :-1]}]
    with pytest.raises(ValueError, match=r"answer: expected arrays like .* in every batch"):
        made(tmp_path / "c", fewer)


def test_a_method_learns_from_a_cache(tmp_path):
    batches = examples()
    cache = made(tmp_path / "c", batches)
    method = ClassicKD(temperature=3.0)
    reader = from_cache(method, cache)
    assert reader == method
    assert repr(reader) == repr(method)
    signal = reader.phases()[0].signal(batches[1], {}, State(total_steps=1))
    assert torch.equal(signal["logits"], batches[1]["z"])
    assert method.signal.__func__ is ClassicKD.signal
    assert from_cache(CrossEntropy(), cache).signal.__func__ is CrossEntropy.signal
    with pytest.raises(ValueError, match="expected a network for FitNets, which cannot learn from a cache"):
        from_cache(FitNets(), cache)
    with pytest.raises(ValueError, match="expected kind features for RKD, got 'logits'"):
        from_cache(RKD(), cache)
    few = made(tmp_path / "k", batches, kind="top-k", k=3, temperature=2.0)
    with pytest.raises(ValueError, match=r"expected temperature 3\.0 like ClassicKD, got 2\.0"):
        from_cache(method, few)
    assert "top_logprobs" in from_cache(replace(method, temperature=2.0), few).signal(batches[0], {}, State(total_steps=1))
    features = made(tmp_path / "f", batches, kind="features", layers=("fc",), answer=lambda b: {"fc": b["z"]})
    layers = {"student_layers": ("fc",), "teacher_layers": ("fc",)}
    assert "fc" in from_cache(RKD(**layers), features).signal(batches[0], {}, State(total_steps=1))["features"]
    with pytest.raises(ValueError, match="expected the layer 'fd' that RKD needs, got fc"):
        from_cache(RKD(student_layers=("fc",), teacher_layers=("fd",)), features)


def test_positions_that_were_not_cached_are_not_trained_on(tmp_path):
    batches = texts()
    reader = from_cache(ClassicKD(temperature=1.0), made(tmp_path / "c", batches, kind="top-k", k=3))
    state = State(total_steps=1)
    part = {**batches[0], "mask": batches[0]["mask"] & (torch.arange(9) % 2 == 0)}
    assert reader.signal(part, {}, state)["mask"].shape == part["mask"].shape
    for mask in ({"mask": torch.ones_like(batches[0]["mask"])}, {}):
        with pytest.raises(ValueError, match="expected an answer for every position that counts"):
            reader.signal({"id": batches[0]["id"], "y": batches[0]["y"], **mask}, {}, state)


def test_a_finished_cache_is_opened_and_a_stranger_in_the_folder_refused(tmp_path):
    made(tmp_path / "c", examples())
    before = contents(tmp_path / "c")

    def never(batch):
        raise AssertionError

    assert made(tmp_path / "c", examples(), answer=never).items == 20
    assert contents(tmp_path / "c") == before
    with pytest.raises(ValueError, match="teacher was 't'"):
        build(tmp_path / "c", examples(), said, Spec(teacher="u", data="d"))


def test_answers_are_read_where_they_lie(tmp_path):
    """Reading one row touches no others: the shard may be far larger than the memory."""
    cache = made(tmp_path / "c", examples(rows=600, batch_size=6), kind="logits", shard_bytes=1 << 12)
    shards = len(list((tmp_path / "c").glob("*.arrow")))
    assert shards > 5
    shutil.rmtree(tmp_path / "c")  # mapped, not copied: the bytes are there until they are let go
    assert cache.signal(torch.tensor([7 * 599]))["logits"].shape == (1, CLASSES)
    assert not os.path.exists(tmp_path / "c")


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("kind", ["top-k", "sample"])
def test_a_language_model_learns_from_what_a_cache_knows(tmp_path, kind, halves):
    torch.manual_seed(1)
    body, output = nn.Embedding(50, 4), nn.Linear(4, CLASSES, bias=False)
    batch = {**texts()[1], "x": {"input_ids": torch.randint(50, (3, 9))}}
    logits, teacher, counts = output(body(batch["x"]["input_ids"])), batch["z"], batch["mask"]
    student = Halves(body, output) if halves else Whole(Halves(body, output))
    reader = from_cache(GKD(on_policy_rate=0.0, beta=0.0), made(tmp_path / "c", texts(), kind=kind, k=CLASSES))
    state = State(total_steps=1)
    found = reader.loss(batch, reader.signal(batch, {}, state), {"student": student}, state)["divergence"]
    expected = forward_kl(logits, teacher)
    if kind == "sample":
        expected = expected + torch.special.entr(teacher.softmax(-1)).sum(-1)  # with all classes in the sample, the cross-entropy
    torch.testing.assert_close(found[counts], expected[counts], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("field", "value"), [("on_policy_rate", 0.5), ("beta", 0.5)])
def test_settings_that_a_cache_cannot_serve_are_refused(tmp_path, field, value):
    cache = made(tmp_path / "c", texts(), kind="top-k", k=3)
    with pytest.raises(ValueError, match=rf"expected {field} 0\.0 of GKD, to learn from a cache, got {value}"):
        from_cache(GKD(**{"on_policy_rate": 0.0, "beta": 0.0, field: value}), cache)
