"""ednet: the miniature's parts fit together, and its true chances are those of the answers."""

import numpy as np

from preceptor.education.ednet import convert
from preceptor.education.scores import auc
from preceptor.education.sequences import load_windows
from preceptor.education.synthetic import School, synthesize
from preceptor.methods.ednet import miniature, true_chances


def test_true_chances_are_calibrated_and_belong_to_their_answers(tmp_path):
    school = School(questions=30, tags=4, mean_length=40, spread=0, bundled=0, max_tags=1)
    synthesize(300, tmp_path / "z.zip", school=school, seed=5)
    convert(tmp_path / "z.zip", tmp_path, warn=lambda line: None)
    part = load_windows(tmp_path, max_len=40)
    chances = true_chances(300, school=school, seed=5, part=part)
    known = part.item >= 0
    said, correct = chances[known], part.correct[known]
    assert abs(said.mean() - correct.mean()) < 4 * 0.5 / np.sqrt(known.sum())
    right = auc(said, correct)
    assert right > 0.75
    moved = np.roll(chances, 1, axis=0)[known]  # those of another student
    assert auc(moved, correct) < right - 0.1


def test_miniature():
    run = miniature(1, "smoke")
    assert run.arms.keys() == {"untrained", "item-mean", "bkt", "ednet", "sakt", "oracle"}
    assert all(0 <= arm["auc"] <= 1 for arm in run.arms.values())
    assert run.arms["untrained"] != run.arms["ednet"]
