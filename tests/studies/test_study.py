"""`compare`: paired differences by hand, equal budget, exact resuming, a sweep that leaves nothing out."""

import json
import math
import statistics

import pytest
import torch
from scipy import stats
from torch import nn

import preceptor
from preceptor.data.examples import examples_from
from preceptor.data.splits import take
from preceptor.methods.classic_kd import ClassicKD
from preceptor.models.folder import load_student
from preceptor.preflight import Preflight, preflight
from preceptor.studies.statistics import ranks
from preceptor.training import Training
from preceptor.trial import run_trial

SEEDS = 5


def points(count, seed):
    """Inputs whose class is the largest of the first three, for one in eight another."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    y = x[:, :3].argmax(1)
    return x, torch.where(torch.rand(count, generator=generator) < 1 / 8, (y + 1) % 3, y)


def teacher():
    model = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(4 * torch.eye(3, 6))
    return model


def student():
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.1), nn.Linear(4, 3))


def compare(**changes):
    given = {
        "teacher": teacher(),
        "student": student,
        "train": points(90, 1),
        "test": points(120, 2),
        "methods": ["classic-kd", "dkd"],
        "seeds": 2,
        "training": {"steps": 6, "batch_size": 16, "evaluate_every": 3, "checkpoint_every": 2, "learning_rate": 0.02},
        "say": lambda line: None,
    }
    return preceptor.compare(**{**given, **changes})


def weights(model):
    return torch.cat([value.flatten() for value in model.state_dict().values()])


def accuracies(study, arm):
    return [trial.metrics["accuracy"] for trial in study.trials[arm]]


@pytest.fixture(scope="module")
def study():
    return compare(seeds=SEEDS, metrics=["accuracy", "nll"])


def test_every_trial_is_the_one_its_seed_makes_alone(study):
    x, y = points(120, 2)
    for arm, method in {"ce": preceptor.load("ce")(), "dkd": preceptor.load("dkd")()}.items():
        for trial in study.trials[arm][:2]:
            torch.manual_seed(trial.seed)
            model = student()
            task = preceptor.distillation.make_task(points(90, 1), None, (x, y), teacher=teacher())
            settings = Training(steps=6, batch_size=16, evaluate_every=3, learning_rate=0.02)
            run_trial(task, name=arm, method=method, student=model, training=settings, seed=trial.seed)
            assert torch.equal(weights(model), weights(trial.student))
            with torch.no_grad():
                assert trial.metrics["accuracy"] == pytest.approx(float((model.eval()(x).argmax(1) == y).double().mean()))


def test_paired_differences_are_those_of_a_paired_t_test(study):
    pairs = study.result["paired"]
    assert [(pair["method"], pair["metric"]) for pair in pairs] == [(m, k) for m in ("classic-kd", "dkd") for k in ("accuracy", "nll")]
    for pair in pairs:
        ours, base = ([trial.metrics[pair["metric"]] for trial in study.trials[arm]] for arm in (pair["method"], "ce"))
        differences = [a - b for a, b in zip(ours, base, strict=True)]
        assert pair["mean"] == pytest.approx(statistics.fmean(differences))
        half = stats.t.ppf(0.975, SEEDS - 1) * statistics.stdev(differences) / math.sqrt(SEEDS)
        assert [pair["low"], pair["high"]] == pytest.approx([pair["mean"] - half, pair["mean"] + half])
        assert pair["p_value"] == pytest.approx(stats.ttest_rel(ours, base).pvalue, rel=1e-6)
        assert pair["n"] == SEEDS
    ordered = sorted(pairs, key=lambda pair: pair["p_value"])
    largest = 0.0
    for rank, pair in enumerate(ordered):  # Holm 1979
        largest = max(largest, min(1.0, (len(pairs) - rank) * pair["p_value"]))
        assert pair["p_holm"] == pytest.approx(largest)


def test_all_arms_have_the_same_budget_and_the_same_first_weights():
    seen = {}

    def progress(label, record, updates, done, total):
        if record is None:
            seen[label] = updates

    made = []

    def numbered():
        made.append(student())
        return made[-1]

    found = compare(student=numbered, progress=progress, training={"steps": 4, "batch_size": 16, "learning_rate": 0.0})
    assert seen == {f"{arm} seed {seed}": 4 for arm in ("ce", "classic-kd", "dkd") for seed in (0, 1)}
    for seed in (0, 1):
        first, *others = [weights(found.trials[arm][seed].student) for arm in found.trials]  # a learning rate of 0 keeps them
        assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(weights(found.trials["ce"][0].student), weights(found.trials["ce"][1].student))
    assert "Equal budget: every trial ran 4 updates" in found.result["notes"][-1]


def test_a_module_is_copied_for_every_trial():
    given = student()
    before = weights(given)
    found = compare(student=given, seeds=1)
    assert torch.equal(weights(given), before)
    assert len({id(trial.student) for arm in found.trials.values() for trial in arm} | {id(given)}) == 4


def test_methods_by_name_with_options_and_as_objects():
    cold, hot = ClassicKD(temperature=1.0), ClassicKD(temperature=8.0)
    methods = {"same": {"method": "classic-kd", "temperature": 1.0}, "cold": cold, "hot": hot}
    found = compare(methods=methods, seeds=1, baseline="cold")
    assert list(found.trials) == ["cold", "same", "hot"]
    cold, same, hot = (weights(arm[0].student) for arm in found.trials.values())
    assert torch.equal(cold, same)
    assert not torch.equal(cold, hot)
    assert [row["role"] for row in found.result["rows"]] == ["teacher", "baseline", "method", "method"]


def test_the_budget_chooses_the_updates(monkeypatch):
    said, found = [], []

    def measured(*args, **options):
        found.append(preflight(*args, **options))
        return found[0]

    monkeypatch.setattr("preceptor.studies.study.preflight", measured)
    study = compare(budget="0.5s", seeds=2, methods=["classic-kd"], say=said.append)
    allowed = int(0.5 / (2 * sum(found[0].seconds_per_step.values())))
    assert {trial.steps for arm in study.trials.values() for trial in arm} == {allowed}
    assert said[0] == f"budget: 0.5s allows {allowed} updates per trial, 4 trials"
    assert not any(line.startswith("time: ") for line in said)


def test_a_budget_counts_the_sweep_and_the_workers(monkeypatch):
    measured = Preflight(lines=(), notes=(), seconds_per_step={"ce": 0.01, "classic-kd": 0.03}, steps=1, memory_mb=1.0)
    monkeypatch.setattr("preceptor.studies.study.preflight", lambda *args, **options: measured)
    study = compare(budget="1s", seeds=2, methods=["classic-kd"], sweep={20: ["ce"]}, workers=2)
    assert study.trials["ce"][0].steps == int(1 / ((4 * 0.01 + 2 * 0.03) / 2))


def test_a_study_with_a_budget_goes_on_with_the_updates_it_began_with(monkeypatch, tmp_path):
    for seconds in (0.01, 0.02):  # the machine is slower when the study is resumed
        measured = Preflight(lines=(), notes=(), seconds_per_step={"ce": seconds}, steps=1, memory_mb=1.0)
        monkeypatch.setattr("preceptor.studies.study.preflight", lambda *args, measured=measured, **options: measured)
        study = compare(budget="0.1s", seeds=1, methods=["ce"], out=tmp_path / "study", resume=seconds > 0.01)
        assert study.trials["ce"][0].steps == 10
    with pytest.raises(ValueError, match=r"budget: expected '0.1s', with which the study in .* began, got '0.2s'"):
        compare(budget="0.2s", seeds=1, methods=["ce"], out=tmp_path / "study", resume=True)


@pytest.mark.parametrize("budget", ["10", "ten m", "10 d", "-3m", ""])
def test_a_budget_that_is_no_time_is_refused(budget, tmp_path):
    with pytest.raises(ValueError, match="budget: expected a time such as '90s', '10m' or '2h', got "):
        compare(budget=budget, out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


class BrokenOffError(Exception):
    """Ends a study in the middle."""


SWEEP = {30: ["ce", "dkd"]}


@pytest.fixture(scope="module")
def straight():
    return compare(sweep=SWEEP)


@pytest.mark.parametrize(("label", "step"), [("ce seed 0", 1), ("classic-kd seed 1", 5), ("dkd seed 0, 30 examples", 3)])
def test_broken_off_anywhere_and_resumed_it_ends_like_the_straight_one(straight, label, step, tmp_path):
    def stop(at, record, updates, done, total):
        if at == label and record is not None and record.step == step:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        compare(sweep=SWEEP, out=tmp_path / "study", progress=stop)
    assert not (tmp_path / "study" / "result.json").exists()
    resumed = compare(sweep=SWEEP, out=tmp_path / "study", resume=True)
    for arm, trials in straight.trials.items():
        for one, other in zip(trials, resumed.trials[arm], strict=True):
            assert torch.equal(weights(one.student), weights(other.student))
            assert one.metrics == other.metrics
            assert one.curve == other.curve
    for part in ("paired", "sweep", "reliability", "disagreements", "curves"):
        assert resumed.result[part] == straight.result[part]
    assert json.loads((tmp_path / "study" / "result.json").read_text()) == resumed.result


def test_a_sweep_shows_every_size_and_method_with_the_numbers_of_its_own_trials(tmp_path):
    pool = examples_from(points(200, 1))
    found = compare(
        train=take(pool, 60, seed=None),
        valid=points(40, 5),
        sweep={30: ["ce", "classic-kd"], 60: ["ce", "classic-kd"], 150: ["ce"]},
        sweep_pool=pool,
        out=tmp_path / "study",
    )
    points_ = {(point["value"], point["name"]): point["mean"] for point in found.result["sweep"]["points"]}
    assert set(points_) == {(30, "ce"), (30, "classic-kd"), (60, "ce"), (60, "classic-kd"), (150, "ce")}
    for (size, name), mean in points_.items():
        if size == 60:
            expected = statistics.fmean(accuracies(found, name))
        else:
            folders = [tmp_path / "study" / "sweep" / str(size) / f"{name}-{seed}" for seed in (0, 1)]
            expected = statistics.fmean(json.loads((folder / "trial.json").read_text())["metrics"]["accuracy"] for folder in folders)
            alone = compare(train=take(pool, size, seed=None), valid=points(40, 5), methods=["classic-kd"])
            assert mean == pytest.approx(statistics.fmean(accuracies(alone, name)))  # the first examples of the pool
        assert mean == pytest.approx(expected)


def test_the_sizes_of_a_sweep_that_cannot_be_run_are_refused(tmp_path):
    for sweep, message in {(500, "ce"): "count: expected a number in", (30, "rkd"): "sweep: expected methods out of"}.items():
        with pytest.raises(ValueError, match=message):
            compare(sweep={sweep[0]: [sweep[1]]}, out=tmp_path / "study")
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("method", ["classic-kd", "dkd"])
def test_the_student_that_is_kept_is_the_best_on_validation_not_on_test(method, tmp_path):
    training = {"steps": 30, "batch_size": 16, "evaluate_every": 3, "learning_rate": 0.1, "schedule": "constant", "monitor": "nll"}
    found = compare(out=tmp_path / "study", training=training, methods=[method], valid=points(60, 7), seeds=1)
    courses = {arm: [v["nll"] for v in trials[0].curve["valid"]] for arm, trials in found.trials.items()}
    assert min(courses[method]) < min(courses["ce"])
    assert (max(courses[method]) > max(courses["ce"])) == (method == "classic-kd")  # so the worst validation would choose otherwise
    assert found.trials[method][0].metrics["nll"] > found.trials["ce"][0].metrics["nll"]
    kept = load_student(tmp_path / "study" / "student", model=student())
    assert torch.equal(weights(kept), weights(found.trials[method][0].student))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "seeds: expected at least one, each once"),
        ({"seeds": []}, "seeds: expected at least one"),
        ({"methods": []}, "methods: expected at least one"),
        ({"metrics": ["acuracy"]}, "metrics: expected some of"),
        ({"methods": ["dkdd"]}, "nearest: 'dkd'"),
        ({"methods": {"kd": {"method": "classic-kd", "temprature": 1.0}}}, "nearest: 'temperature'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        compare(**changes, out=tmp_path / "study")
    assert list(tmp_path.iterdir()) == []


def test_tuning_is_equal_for_all_and_its_best_choice_is_what_runs(tmp_path):
    labels = []

    def progress(label, record, updates, done, total):
        labels.extend([label] * (record is None))

    search = {"temperature": [1.0, 2.0, 4.0]}
    given = {"methods": {"classic-kd": {"search": search}, "hot": {"method": "classic-kd", "temperature": 8.0}}, "out": tmp_path / "s"}
    tune = {"trials": 3, "training": {"learning_rate": [0.0, 0.05, 0.2]}}
    found = compare(**given, tune=tune, progress=progress)
    for arm in ("ce", "classic-kd", "hot"):
        assert labels.count(f"{arm} seed 0") == 1
        assert sum(label.startswith(f"{arm} seed 1000, tuning") for label in labels) == 3
    choices = {choice["name"]: choice for choice in found.result["tuning"]}
    assert choices["ce"]["chosen"].keys() == {"learning_rate"}
    assert choices["classic-kd"]["chosen"].keys() == {"learning_rate", "temperature"}
    for arm, choice in choices.items():
        folders = sorted((tmp_path / "s" / "tuning").glob(f"*/{arm}-1000"))
        curves = [json.loads((folder / "trial.json").read_text())["curve"]["valid"] for folder in folders]
        assert choice["value"] == max(point["accuracy"] for curve in curves for point in curve)
        identity = json.loads((tmp_path / "s" / "trials" / f"{arm}-0" / "trial.json").read_text())["identity"]
        assert identity["training"]["learning_rate"] == choice["chosen"]["learning_rate"]
    again = compare(**given, tune=tune, resume=True, progress=lambda *_: None)
    assert again.result["tuning"] == found.result["tuning"]
    assert "What tuning chose" in (tmp_path / "s" / "report.html").read_text()


def test_tuning_asks_for_no_more_than_there_is_to_choose_from(tmp_path):
    with pytest.raises(ValueError, match="at most the 2 combinations that ce can choose from, got 3"):
        compare(tune={"trials": 3, "training": {"learning_rate": [0.01, 0.02]}}, out=tmp_path / "s")
    with pytest.raises(ValueError, match=r"a list of values to choose from at search\.temperature, got 3"):
        compare(methods={"classic-kd": {"search": {"temperature": 3}}}, tune={"trials": 1, "training": {"learning_rate": [0.1]}})
    with pytest.raises(ValueError, match="expected none of the seeds that count, got 1"):
        compare(tune={"trials": 1, "seed": 1})
    with pytest.raises(ValueError, match="expected none beside tune"):
        compare(tune={"trials": 1}, budget="1m")
    assert not (tmp_path / "s").exists()


def test_equal_compute_gives_the_cheap_arms_what_the_teacher_and_the_dear_ones_took(monkeypatch, tmp_path):
    seconds = {"ce": 0.001, "classic-kd": 0.002, "dkd": 0.003}

    def measured(*args, **kwargs):
        return Preflight(lines=(), notes=(), seconds_per_step=seconds, steps=6, memory_mb=1.0)

    monkeypatch.setattr("preceptor.studies.study.preflight", measured)
    given = {"seeds": 1, "equal_compute": True, "teacher_seconds": 0.012, "out": tmp_path / "s"}
    found = compare(**given).result["compute"]
    assert found["seconds"] == pytest.approx(6 * 0.003 + 0.012)
    assert {row["name"]: row["steps"] for row in found["rows"]} == {"ce": 30, "classic-kd": 9, "dkd": 6}
    lines = (tmp_path / "s" / "compute" / "ce-0" / "metrics.jsonl").read_text().splitlines()
    assert sum("losses" in json.loads(line) for line in lines) == 30
    assert "At equal total compute" in (tmp_path / "s" / "report.html").read_text()
    seconds["ce"] = 0.01
    assert compare(**given, resume=True).result["compute"]["rows"][0]["steps"] == 30  # as the study began


def test_ranks_share_ties_and_name_the_best_first():
    arms = {"a": {0: {"m": 3.0}, 1: {"m": 1.0}}, "b": {0: {"m": 2.0}, 1: {"m": 1.0}}, "c": {0: {"m": 1.0}, 1: {"m": 0.0}}}
    assert {name: found["mean"] for name, found in ranks(arms, "m", "higher").items()} == {"a": 1.25, "b": 1.75, "c": 3.0}
    assert {name: found["mean"] for name, found in ranks(arms, "m", "lower").items()} == {"a": 2.75, "b": 2.25, "c": 1.0}


def test_an_attack_lowers_accuracy_and_needs_to_be_asked_for():
    longer = {"steps": 60, "batch_size": 16, "learning_rate": 0.05}
    found = compare(seeds=1, attack={"epsilon": 0.5, "steps": 5}, metrics=["robust_accuracy"], training=longer)
    for arm in found.trials.values():
        assert arm[0].metrics["robust_accuracy"] < arm[0].metrics["accuracy"]
    teacher_row = found.result["rows"][0]
    assert teacher_row["summary"]["robust_accuracy"]["mean"] < teacher_row["summary"]["accuracy"]["mean"]
    with pytest.raises(ValueError, match="attack: expected one to measure robust_accuracy"):
        compare(metrics=["robust_accuracy"])
