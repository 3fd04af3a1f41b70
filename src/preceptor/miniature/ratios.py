"""Answers to one problem about a ratio in five qualities, and the scores of a teacher who is sometimes off by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preceptor.education.open_answers import SCORES

PROBLEM = "Three pencils cost 2 dollars. How much do 12 pencils cost, and how do you know?"
_OPENINGS = ("", "I think ", "so ", "well ", "my answer: ", "ok so ")
_BODIES = (
    ("i dont know", "no idea", "what", "help", "i was not here for this", "idk sorry"),
    (
        "it is 14 because 12 plus 2 is 14",
        "24 dollars because 12 times 2",
        "you add 9 so it costs 11",
        "it is 12 dollars one for each",
        "3 and 2 makes 5 so 5",
    ),
    (
        "12 divided by 3 is 4 so it costs 4",
        "each pencil is 1 dollar 50 so 12 cost 18",
        "there are 4 groups but i am not sure what to do then",
        "3 times 4 is 12 and then 2 plus 4 is 6",
        "make a table 3 2 then 6 4 then 12 6",
    ),
    (
        "8 dollars",
        "it costs 8 because i multiplied",
        "12 divided by 3 is 4 then times 2 is 8",
        "8 i used a table",
        "4 times 2 so 8 dollars",
    ),
    (
        "8 dollars because 12 pencils are 4 groups of 3 and each group costs 2 dollars so 4 times 2 is 8",
        "each group of 3 costs 2 dollars and there are 4 groups in 12 so the cost is 8 dollars",
        "the ratio 3 to 2 is the same as 12 to 8 because both are multiplied by 4 so it costs 8 dollars",
        "3 pencils 2 dollars 6 pencils 4 dollars 9 pencils 6 dollars 12 pencils 8 dollars because it goes up by 2 each time",
    ),
)
_MESSAGES = (
    "Write down what you know about 3 pencils first.",
    "Adding does not keep the price fair. What happens to the price when you buy twice as many?",
    "You found something useful. How many groups of 3 are there, and what does each group cost?",
    "Right so far. Say why your calculation answers the question.",
    "Clear and complete.",
)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """N answers: what they say, their true quality, the teacher's score, and the teacher's message."""

    texts: tuple[str, ...]
    quality: tuple[int, ...]
    scores: tuple[int, ...]
    messages: tuple[str, ...]

    def first(self, count: int) -> Answers:
        """The first ones."""
        return Answers(texts=self.texts[:count], quality=self.quality[:count], scores=self.scores[:count], messages=self.messages[:count])


def ratio_answers(generator: np.random.Generator, count: int, *, dropped: float = 0.15, off: float = 0.25) -> Answers:
    """Draw answers.

    Args:
        generator: of the draws.
        count: N.
        dropped: probability that a word is left out.
        off: probability that the teacher's score is one too high or too low, kept in 0 to 4.
    """
    quality = generator.integers(0, len(SCORES), count)
    texts = []
    for level in quality:
        words = f"{generator.choice(_OPENINGS)}{generator.choice(_BODIES[level])}".split()
        kept = [word for word in words if generator.random() >= dropped]
        texts.append(" ".join(kept or words[:1]))
    shift = np.where(generator.random(count) < off, generator.choice([-1, 1], count), 0)
    scores = np.clip(quality + shift, SCORES[0], SCORES[-1])
    return Answers(
        texts=tuple(texts),
        quality=tuple(quality.tolist()),
        scores=tuple(scores.tolist()),
        messages=tuple(_MESSAGES[level] for level in scores),
    )
