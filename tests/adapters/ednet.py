"""EdNet-KT1 rows and a table of questions to sequences, through the same text parser that reads the zip."""

import numpy as np

from preceptor.education.ednet import parse
from preceptor.education.ednet_text import question_rows
from preceptor.education.sequences import clean, questions_from


def run(params, inputs):
    heading = ["question_id", "bundle_id", "correct_answer", "part", "tags"]
    questions = questions_from(question_rows(csv(heading, inputs["questions"])))
    users = [(plain(given["user"]), csv(inputs["columns"], given["rows"])) for given in inputs["users"]]
    order = [user for user, _ in users]
    answers = clean(parse(sorted(users), "KT1"), questions)
    sequences = []
    for user in order:
        own = answers.user == user
        if own.any():
            number = answers.question[own]
            tags = [[int(tag) for tag in row if tag >= 0] for row in questions.tags[number]]
            sequences.append(
                {
                    "user": user,
                    "n": int(own.sum()),
                    "question_id": [f"q{n}" for n in number],
                    "tags": tags,
                    "correct": answers.correct[own].astype(int),
                    "timestamp": answers.timestamp[own],
                    "elapsed_ms": answers.elapsed[own],
                }
            )
    return {"sequences": sequences}


def csv(heading, rows):
    lines = [",".join(heading), *(",".join("" if value is None else str(plain(value)) for value in row) for row in rows)]
    return "\n".join(lines).encode()


def plain(value):
    """A number as it was written."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, (float, np.floating)) and value == int(value) else value
