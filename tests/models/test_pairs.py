"""Layers that are compared in pairs."""

import pytest
from torch import nn

from preceptor.models.pairs import check_pairs
from preceptor.models.reference import CNN, ResNet


def test_pairs_pass():
    assert check_pairs("m", {}, ("a", "b"), ("c", "d")) is None


@pytest.mark.parametrize(("student", "teacher"), [((), ()), (("a",), ()), ((), ("a",)), (("a", "b"), ("a",))])
def test_what_makes_no_pairs_is_refused_in_one_line(student, teacher):
    with pytest.raises(ValueError, match="m: expected student_layers and teacher_layers") as error:
        check_pairs("m", {"student": CNN(channels=(2, 3)), "teacher": ResNet(depth=20)}, student, teacher)
    message = str(error.value)
    assert "\n" not in message
    assert f"{list(student)} and {list(teacher)}" in message
    assert "student has block1" in message
    listed = message.split("teacher has ")[1].rstrip(")").split(", ")
    assert (listed[0], listed[-1], len(listed)) == ("stem", "fc", 8)


def test_a_model_without_layers():
    with pytest.raises(ValueError, match="student has no layers; teacher has no layers"):
        check_pairs("m", {"student": nn.Identity(), "teacher": nn.Identity()}, (), ())
