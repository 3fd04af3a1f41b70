"""Interests after ratings: an exponential average that stays a share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor.education.personalise.learning import Liking, learn, read_likings, updated
from preceptor.education.personalise.records import Profile, Variant
from preceptor.education.personalise.targets import match

MIXED = Profile(student="1", topics={"music": 2, "sport": 1, "games": 1}, references={"music": {"Mozart": 1, "Verdi": 3}})
DELIVERED = [
    Variant(id="p:music/Verdi", problem="p", students=("1",), topic="music", reference="Verdi", text="x", solution="1"),
    Variant(id="p:sport", problem="p", students=("2", "3"), topic="sport", text="x", solution="1"),
    Variant(id="q:original", problem="q", students=("1", "2", "3"), text="x", solution="1"),
]


@given(
    weights=st.lists(st.floats(0, 5), min_size=2, max_size=5).filter(lambda weights: sum(weights) > 0.01),
    likings=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    rate=st.floats(0, 1),
)
def test_weights_stay_shares_and_follow_the_average(weights, likings, rate):
    profile = Profile(student="1", topics={f"t{i}": weight for i, weight in enumerate(weights)})
    expected = profile.weight("t0")
    for liking in likings:
        before, profile = profile, updated(profile, "t0", liking=liking, rate=rate)
        expected = (1 - rate) * expected + rate * liking
        assert profile.topics["t0"] == pytest.approx(expected, abs=1e-12)
        assert sum(profile.topics.values()) == pytest.approx(1)
        assert min(profile.topics.values()) >= 0
        for i in range(1, len(weights)):  # others keep their shares of what is left
            if before.weight("t0") < 1 - 1e-6 and expected < 1 - 1e-6:
                old = before.weight(f"t{i}") / (1 - before.weight("t0"))
                assert profile.topics[f"t{i}"] / (1 - expected) == pytest.approx(old, abs=1e-6)


def test_one_liking_again_and_again_is_where_the_weight_goes():
    profile = MIXED
    for _ in range(60):
        profile = updated(profile, "sport", liking=0.8)
    assert profile.weight("sport") == pytest.approx(0.8, abs=1e-6)
    assert updated(MIXED, "sport", liking=1, rate=0).weight("sport") == MIXED.weight("sport")
    assert updated(MIXED, "sport", liking=1, rate=1).topics == {"music": 0, "sport": 1, "games": 0}
    assert updated(updated(MIXED, "sport", liking=1, rate=1), "sport", liking=0, rate=0.5).topics == {
        "music": 0.25,
        "sport": 0.5,
        "games": 0.25,
    }
    assert updated(MIXED, "art", liking=1, rate=0.5).topics == {"music": 0.25, "sport": 0.125, "games": 0.125, "art": 0.5}
    assert updated(MIXED, "", liking=1) == MIXED


def test_what_is_liked_fits_better_and_references_move_within_their_topic():
    liked, disliked = (updated(MIXED, "music", "Mozart", liking=liking) for liking in (1.0, 0.0))
    assert match(liked, "music", "Mozart") > match(MIXED, "music", "Mozart") > match(disliked, "music", "Mozart")
    assert liked.references["music"] == pytest.approx({"Mozart": 0.7 * 0.25 + 0.3, "Verdi": 0.7 * 0.75})
    assert updated(MIXED, "sport", "Inter", liking=1).references == {**MIXED.references, "sport": {"Inter": 1.0}}
    assert MIXED.references["music"] == {"Mozart": 1, "Verdi": 3}


def test_a_class_learns_in_order_and_without_a_survey_from_its_mean():
    profiles = [MIXED, Profile(student="2", topics={"sport": 1, "music": 1}), Profile(student="3"), Profile(student="4")]
    likings = [
        Liking(student="1", variant="p:music/Verdi", liking=1.0),
        Liking(student="3", variant="p:sport", liking=0.0),
        Liking(student="1", variant="q:original", liking=0.0),
    ]
    first, second, third, fourth = learn(profiles, DELIVERED, likings)
    assert first == updated(MIXED, "music", "Verdi", liking=1.0)
    assert second == profiles[1]
    assert third.weight("sport") == pytest.approx(0.7 * (0.25 + 0.5) / 2)
    assert fourth == profiles[3]


@pytest.mark.parametrize(
    ("liking", "message"),
    [
        (Liking(student="9", variant="p:sport", liking=1.0), "student: expected one of the profiles, got '9'"),
        (Liking(student="1", variant="p:art", liking=1.0), "variant: expected one that was delivered, got 'p:art'"),
        (Liking(student="1", variant="p:sport", liking=1.0), "variant: expected one that student '1' got, got 'p:sport'"),
        (Liking(student="1", variant="p:music/Verdi", liking=2.0), r"liking: expected a number in \[0, 1\], got 2.0"),
    ],
)
def test_ratings_of_nobody_or_nothing(liking, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        learn([MIXED], DELIVERED, [liking])


def test_ranges():
    with pytest.raises(ValueError, match=r"^rate: expected a number in \[0, 1\], got 1.5$"):
        updated(MIXED, "sport", liking=1, rate=1.5)
    with pytest.raises(ValueError, match=r"^topics of 2: expected some, got none$"):
        updated(Profile(student="2"), "sport", liking=1)


def test_likings_are_read_on_their_scale(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("student,variant,rating\n1,p:sport,5\n2,p:sport,2\n", encoding="utf-8")
    assert [one.liking for one in read_likings(path)] == [1.0, 0.25]
    assert [one.liking for one in read_likings(path, scale=(0, 10))] == [0.5, 0.2]
    with pytest.raises(ValueError, match=r"ratings.csv: expected a rating from 3 to 5 in row 2, got '2'$"):
        read_likings(path, scale=(3, 5))
    with pytest.raises(ValueError, match=r"^scale: expected two numbers that rise, got 5 1$"):
        read_likings(path, scale=(5, 1))
    path.write_text("student,variant,rating\n1,p:sport,good\n", encoding="utf-8")
    with pytest.raises(ValueError, match="in row 1, got 'good'"):
        read_likings(path)
