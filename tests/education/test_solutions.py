"""From a tutor's log to vectors: steps, components, unseen problems, groups by mastery, and the made-up log itself."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from preceptor.cli import app
from preceptor.education.clusters import refine
from preceptor.education.solutions import Solutions, embed, solutions_from, split_last
from preceptor.education.strategies import instance_vectors, mastery, mastery_groups
from preceptor.education.strategy_samples import compare_samples
from preceptor.miniature.tutor import COMPONENTS, FAMILIES, PROBLEMS, log


def small():
    return Solutions(
        student=np.array([1, 0, 1, 1]),
        problem=np.array([0, 1, 1, 0]),
        strategies=[[2, 0], [1], [], [0, 3]],
        correct=[[1, 0], [1], [], [0, 1]],
        num_students=3,
        num_problems=3,
        num_components=5,
    )


def test_steps_are_those_of_each_student_in_order():
    steps = small().steps()
    assert steps.item.tolist() == [[1, -1, -1, -1], [2, 0, 0, 3], [-1] * 4]
    assert steps.correct.tolist() == [[1, -1, -1, -1], [1, 0, 0, 1], [-1] * 4]
    assert steps.first.tolist() == (steps.item >= 0).tolist()
    assert small().components() == [[0, 2, 3], [1], []]
    assert small().take(np.array([0, 3])).steps().item[1].tolist() == [2, 0, 0, 3]
    assert small().take(np.array([2])).steps().item.tolist() == [[-1]] * 3
    assert small().take(np.array([3])).components() == [[0, 3], [], []]


def test_vectors_of_what_no_edge_leads_to_are_0_and_an_unseen_problem_has_those_of_its_components():
    mastered = np.array([[0.9, 0.8, 0.1, 0.1, 0.1], [0.1, 0.2, 0.9, 0.9, 0.1], [0.2, 0.3, 0.1, 0.1, 0.1]])
    found = embed(small(), mastered, dim=4, num_walks=2, length=4, window=1)
    assert found.shape == (3 + 3 + 5, 4)
    assert (~found.any(1)).nonzero()[0].tolist() == [5, 10]  # the third problem, the fifth component
    parts = instance_vectors(found, np.array([0, 2]), np.array([2, 2]), num_users=3, components=[[0, 2, 3], [1], [1, 3]])
    mean = (found[6 + 1] + found[6 + 3]) / 2
    np.testing.assert_allclose(parts[0], np.concatenate([found[0] / np.linalg.norm(found[0]), mean / np.linalg.norm(mean)]), rtol=1e-6)
    assert not instance_vectors(found, np.array([0]), np.array([2]), num_users=3)[0, 4:].any()
    known = instance_vectors(found, np.array([0]), np.array([1]), num_users=3, components=[[], [3], []])
    np.testing.assert_allclose(known, instance_vectors(found, np.array([0]), np.array([1]), num_users=3))  # a vector of its own stays
    with pytest.raises(ValueError, match=r"^mastered: expected shape \(3, 5\), got \(3, 4\)$"):
        embed(small(), mastered[:, :4])
    with pytest.raises(ValueError, match=r"^seen: expected at least one solution, got none$"):
        embed(small().take(np.array([], int)), mastered)


def test_groups_are_quantiles_of_the_mean():
    mean = np.array([0.5, 0.1, 0.9, 0.3, 0.7, 0.2, 0.8])
    assert mastery_groups(np.stack([mean, mean + 0.01], 1), 3).tolist() == [1, 0, 2, 0, 1, 0, 2]
    assert np.bincount(mastery_groups(np.full((10, 2), 0.5), 4)).tolist() == [3, 2, 3, 2]  # ties are cut as well
    with pytest.raises(ValueError, match=r"^count: expected a number of groups in \[1, 2\], got 3$"):
        mastery_groups(np.zeros((2, 1)), 3)


def test_clusters_of_a_draw_extend_to_all_and_do_not_explode():
    random = np.random.default_rng(0)
    group = random.integers(0, 5, 900)
    x = 4 * np.eye(5)[group] + 0.1 * random.standard_normal((900, 5))
    strategies = [(int(g),) for g in group]
    whole, drawn = (refine(x, strategies, penalty=4.0, fit_on=count) for count in (900, 100))
    for labels in (whole, drawn):
        assert len(set(zip(labels.tolist(), group.tolist(), strict=True))) == labels.max() + 1 == 5
    noise = refine(random.standard_normal((300, 16)), [(int(k),) for k in random.integers(0, 9, 300)])
    assert noise.max() + 1 <= 100  # no way to make members alike, but no cluster for each of them either


def test_the_log_holds_what_it_says():
    made = log(80, 10, seed=0)
    solutions, drills = made.solutions, made.drill
    assert drills.sum() == 80 * COMPONENTS * 3
    assert all(solutions.strategies[i] == [solutions.problem[i] - PROBLEMS] for i in np.flatnonzero(drills))
    assert (solutions.problem[~drills] < PROBLEMS).all()
    tried = solutions.take(np.flatnonzero(~drills))
    assert len({(u, p) for u, p in zip(tried.student, tried.problem, strict=True)}) == len(tried) == 800
    for family in range(FAMILIES):
        ways = {tuple(tried.strategies[i]) for i in np.flatnonzero(tried.problem % FAMILIES == family)}
        assert 2 <= len(ways) <= 3
    right = np.concatenate([np.array(row) for row in solutions.correct])
    component, user = np.concatenate(solutions.strategies), np.repeat(solutions.student, [len(s) for s in solutions.strategies])
    chance = 1 / (1 + np.exp(-made.ability[user, component]))
    assert abs(right.mean() - chance.mean()) < 4 * 0.5 / np.sqrt(len(right))
    counts = [np.mean([(made.ability[made.kind == kind] > 0.5).sum(1).mean()]) for kind in range(4)]
    assert counts == sorted(counts, reverse=True)
    found = mastery(solutions.steps(), COMPONENTS, by="mean")
    rank = [np.argsort(np.argsort(values.ravel())) for values in (found, made.ability)]
    assert np.corrcoef(*rank)[0, 1] > 0.6


def test_in_the_control_ways_keep_their_shares_and_say_nothing_of_students():
    def ways(depends):
        made = log(400, 12, seed=1, depends=depends)
        rows = np.flatnonzero(~made.drill & (made.solutions.problem % FAMILIES == 0))
        names = [tuple(made.solutions.strategies[i]) for i in rows]
        return names, made.kind[made.solutions.student[rows]]

    plain, dealt = ways(True), ways(False)
    assert sorted(plain[0]) == sorted(dealt[0])

    def moved(names, kind):
        """Largest difference between the kinds of students in the share of a way."""
        shares = [[np.mean([names[i] == way for i in np.flatnonzero(kind == k)]) for way in set(names)] for k in range(3)]
        return np.ptp(shares, axis=0).max()

    assert moved(*plain) > 0.5
    assert moved(*dealt) < 0.15


LOG = [("ann", "p1", "b", 1), ("bob", "p2", "a", 0), ("ann", "p1", "a", 0), ("ann", "p2", "c", 1), ("ann", "p1", "b", 1)]


def rows(*steps):
    return [dict(zip(("student", "problem", "component", "correct"), step, strict=True)) for step in steps]


def test_steps_of_one_student_at_one_problem_are_a_solution():
    found = solutions_from(rows(*LOG))
    assert found.student.tolist() == [0, 1, 0, 0]
    assert found.problem.tolist() == [0, 1, 1, 0]
    assert found.strategies == [[1, 0], [0], [2], [1]]
    assert found.correct == [[1, 0], [0], [1], [1]]
    assert (found.num_students, found.num_problems, found.num_components) == (2, 2, 3)
    earlier, last = split_last(found, 0.33)
    assert (earlier.student.tolist(), earlier.problem.tolist()) == ([0, 1, 0], [0, 1, 1])
    assert last.strategies == [[1]]
    assert [part.student.tolist() for part in split_last(found, 0.9)] == [[0, 1], [0, 0]]  # at least one stays
    for call, message in (
        (lambda: solutions_from([]), r"^rows: expected at least one step, got none$"),
        (
            lambda: solutions_from(rows(("a", "", "c", 1)), "x.csv"),
            r"^x.csv: expected a student, a problem and a component in row 1, got 'a', ''",
        ),
        (lambda: solutions_from(rows(*LOG, ("a", "b", "c", "yes"))), r"^rows: expected correct to be 0 or 1 in row 6, got 'yes'$"),
        (lambda: split_last(found, 1.0), r"^rate: expected a share in \(0, 1\), got 1\.0$"),
        (
            lambda: split_last(found.take(np.array([0, 1]))),
            r"^solutions: expected a student with enough to hold out 0.33 of them, got at most 1$",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_samples_have_the_budget_and_predictions_do_not_look_at_what_is_predicted():
    made = log(40, 6, seed=0)
    pool, later = split_last(made.solutions.take(np.flatnonzero(~made.drill)), 0.33)
    mastered = mastery(pool.steps(), COMPONENTS, by="mean")
    options = {"budget": 30, "steps": 5, "walking": {"dim": 8, "num_walks": 2, "length": 6}}
    found = compare_samples(pool, later, mastered, **options)
    assert {name: len(chosen) for name, chosen in found.rows.items()} == {"untrained": 30, "random": 30, "mvec": 30, "everything": 160}
    assert found.rows["random"].tolist() != found.rows["mvec"].tolist()
    turned = later.take(np.arange(len(later)))
    turned.strategies[:] = [[0]] * len(later)
    again = compare_samples(pool, turned, mastered, **options)
    assert all((found.rows[name] == again.rows[name]).all() for name in found.rows)
    assert found.scores != again.scores
    with pytest.raises(ValueError, match=r"^budget: expected a number of solutions in \[1, 160\], got 161$"):
        compare_samples(pool, later, mastered, budget=161)


def test_the_command(tmp_path):
    made = log(12, 4, seed=0).solutions
    steps = [
        (f"s{u}", f"p{p}", f"k{k}", c)
        for u, p, ks, cs in zip(made.student, made.problem, made.strategies, made.correct, strict=True)
        for k, c in zip(ks, cs, strict=True)
    ]
    path = tmp_path / "log.csv"
    path.write_text("student,problem,component,correct\n" + "".join(f"{u},{p},{k},{c}\n" for u, p, k, c in steps))
    runner = CliRunner()
    options = ["--budget", "20", "--mastery", "mean", "--steps", "2", "--groups", "3", "--out", str(tmp_path / "found.json")]
    shown = runner.invoke(app, ["strategies", str(path), *options])
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[1].split() == ["sample", "token", "exact", "edit", "worst", "gap", "std"]
    assert [line.split()[0] for line in lines[2:6]] == ["untrained", "random", "mvec", "everything"]
    kept = json.loads((tmp_path / "found.json").read_text())
    assert len(kept["chosen"]) == 20
    assert (kept["clusters"] > 20) == (len(lines) == 7)
    path.write_text(path.read_text().replace("component", "skill", 1))
    refused = runner.invoke(app, ["strategies", str(path), "--budget", "20"])
    assert refused.exit_code == 2
    assert "expected a column 'component', got student, problem, skill, correct" in refused.stderr
