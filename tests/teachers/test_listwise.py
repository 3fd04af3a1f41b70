import random

import pytest

from preceptor.teachers.chat.types import Answer
from preceptor.teachers.listwise import chat_agent, parse_ranking, ranking_messages, rerank, windows


def sorter(worth):
    """Reads passages, which are their own names, and sorts them."""

    def agent(messages):
        shown = [message["content"].split("] ") for message in messages[1:-1:2]]
        return " > ".join(f"{label}]" for label, name in sorted(shown, key=lambda pair: -worth[pair[1]]))

    return agent


@pytest.mark.parametrize(
    ("reply", "order"),
    [
        ("[3] > [1] > [2] > [4]", [2, 0, 1, 3]),
        ("<think>4 is best [4]</think> [2] > [2] > [7] > [1] > [0]", [1, 0, 2, 3]),
        ("a</think>[4]</think>[3]", [2, 0, 1, 3]),
        ("<think>[4] seems", [0, 1, 2, 3]),
        ("[2] > [1] <think>[4]", [1, 0, 2, 3]),
        ("In 2025 the top 2 are [ 4 ] > [3]", [3, 2, 0, 1]),
        ("3, 2", [2, 1, 0, 3]),
        ("9" * 5000, [0, 1, 2, 3]),
        ("no idea", [0, 1, 2, 3]),
        ("", [0, 1, 2, 3]),
    ],
)
def test_replies_are_read(reply, order):
    assert parse_ranking(reply, 4) == order


def test_windows_go_from_the_end_to_the_head():
    assert windows(100) == [(10, 30), (0, 20)]
    assert windows(12, end=12, window=6, step=3) == [(6, 12), (3, 9), (0, 6)]
    assert windows(100, end=25) == [(5, 25), (0, 20)]
    assert windows(100, start=7, end=30, window=10, step=7) == [(20, 30), (13, 23), (7, 17)]
    assert windows(15) == [(0, 15)]
    assert windows(1) == windows(0) == windows(50, start=30) == windows(10, start=10) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_perfect_agent_puts_the_best_of_the_range_first(seed):
    lots = random.Random(seed)
    count, window = lots.randint(1, 40), lots.randint(2, 12)
    step, start = lots.randint(1, window), lots.randint(0, 5)
    end = lots.randint(start, 45)
    names = [f"p{i}" for i in range(count)]
    worth = {name: lots.random() for name in names}
    order = rerank("q", names, sorter(worth), start=start, end=end, window=window, step=step).order
    assert sorted(order) == list(range(count))
    assert order[:start] == tuple(range(count))[:start]
    assert order[end:] == tuple(range(count))[end:]
    if min(end, count) - start >= 2:
        best = sorted(range(start, min(end, count)), key=lambda at: -worth[names[at]])[: window - step]
        assert list(order[start : start + len(best)]) == best


def test_what_is_asked():
    system, first, acknowledged, second, _, last = ranking_messages("why?", ["one two three", "four"], words=2)
    assert (system["role"], acknowledged["role"], last["role"]) == ("system", "assistant", "user")
    assert (first["content"], second["content"]) == ("[1] one two", "[2] four")
    assert "why?" in last["content"]


def test_a_language_model_is_asked_and_a_failure_keeps_the_order():
    class Model:
        def __init__(self, *answers):
            self.answers, self.asked = list(answers), []

        def ask(self, prompts, settings):
            self.asked += prompts
            return [self.answers.pop(0)]

    model = Model(Answer(text="[2] > [1]"), Answer(failed="no connection"))
    found = rerank("q", ["a", "b", "c"], chat_agent(model), window=2, step=1)
    assert found.order == (0, 2, 1)
    assert found.replies == ("[2] > [1]", "")
    assert [messages[1]["content"] for messages in model.asked] == ["[1] b", "[1] a"]


def test_bad_numbers():
    with pytest.raises(ValueError, match="step: expected at most the window of 4, got 5"):
        windows(9, window=4, step=5)
    with pytest.raises(ValueError, match="window: expected at least 2, got 1"):
        windows(9, window=1, step=1)
    with pytest.raises(ValueError, match=r"start: expected a rank in \[0, 3\], got 4"):
        windows(9, start=4, end=3)
