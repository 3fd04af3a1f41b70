"""EdNet: 131 million logged interactions with a tutor, and the tracing of what students know.

Paper: Choi et al. 2019, EdNet: A Large-Scale Hierarchical Dataset in Education (arXiv:1912.03072, AIED 2020). The paper's contribution is
data, whose licence is CC BY-NC 4.0: nothing of them is here, and everything runs on made-up students in the same schema.
Claim: a recurrent tracer knows students far better than the mean of each question does, and less well than their true chances would.
The paper has no such numbers; on samples of EdNet-KT1 others report AUCs of .75 to .78 for tracers of this class.
Equation, for a student's questions q_t and answers c_t, over the steps t >= 2 that are not padding:
    p_t = P(c_t = 1 | q_1..q_t, c_1..c_{t-1}),   L = - sum_t log p_t(c_t) / number of these steps.
The parts are in `preceptor.education`: ``ednet`` (a zip to parquet, lazy scans, content tables), ``sequences`` (cleaning, windows, splits
by student, batches from the disk), ``synthetic`` (made-up students), ``tracing`` (item means, BKT, DKT, SAKT).
Deviations from DKT and SAKT: the vector of a question is its own plus the mean of its tags'; logits of DKT are divided by the root of the
width; a learned vector stands before SAKT's first step.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from preceptor.core.types import Card
from preceptor.education.ednet import convert
from preceptor.education.sequences import Windows, load_windows, read_questions, split_students
from preceptor.education.synthetic import School, students, synthesize
from preceptor.education.tracing import Name, Training, evaluate, knowledge_tracer
from preceptor.miniature.claim import Claim
from preceptor.miniature.run import Miniature, Size

CARD = Card(
    slug="ednet",
    title="EdNet: logs of tutoring at scale, and knowledge tracing",
    authors="Choi et al. 2019",
    arxiv="1912.03072",
    kind="data",
    tasks=("education",),
    needs=(),
    equation="p_t = P(c_t = 1 | q_1..q_t, c_1..c_{t-1}), L = mean over t >= 2 of -log p_t(c_t)",
    cost="about a million rows a second from zip to parquet, memory of one batch of students",
    headline="131 million interactions of 784,309 students, four levels of detail",
)

_STEPS = 60
_WORLD = School(
    questions=40, tags=8, mean_length=_STEPS, spread=0, bundled=0, max_tags=1, ability=1.1, affinity=0.6, rate=0.3, difficulty=0.9
)  # so that the mean of each question has an AUC of about .68 and the true chances about .82


def true_chances(users: int, *, school: School, seed: int, part: Windows) -> np.ndarray:
    """The chances that made-up answers were drawn from, laid out like windows of ``max_len`` steps of the same students, (n, L)."""
    rows = [{name: column[chunk["answer"] > 0] for name, column in chunk.items()} for chunk in students(users, school=school, seed=seed)]
    whole = {name: np.concatenate([chunk[name] for chunk in rows]) for name in rows[0]}
    chances = np.full(part.item.shape, 0.5)
    place = {int(user): i for i, user in enumerate(part.user)}
    for user in np.unique(whole["user"]):
        if user in place:
            own = whole["probability"][whole["user"] == user]
            chances[place[int(user)], : len(own)] = own
    return chances


def miniature(seed: int, size: Size) -> Miniature:
    """800 made-up students with 60 answers each to 40 questions of 8 tags: a zip, made parquet, made windows; tracers learn from 500.

    100 students choose when to stop, 200 are for the test. ``auc`` is over all judged answers of the test, ``start_auc`` over those with
    fewer than 10 before them, ``accuracy`` is at 0.5, ``log_loss`` in nats, ``ece`` the calibration error. The arm named ``ednet`` is DKT.
    """
    full = size == "full"
    users, epochs = (800, 30) if full else (40, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthesize(users, folder / "logs.zip", school=_WORLD, seed=seed)
        convert(folder / "logs.zip", folder, warn=lambda line: None)
        whole, questions = load_windows(folder, max_len=_STEPS), read_questions(folder)
    parts = split_students(whole.user, test_rate=0.25, folds=6, seed=seed)
    test, valid = (whole.take(np.isin(whole.user, parts[part])) for part in ("test", "fold-0"))
    seen = whole.take(~np.isin(whole.user, np.concatenate([parts["test"], parts["fold-0"]])))

    def measured(chances: np.ndarray) -> dict[str, float]:
        scores = evaluate(chances, test, by="history")
        early = test.take(np.arange(len(test)))
        early.first[:, 10:] = False
        kept = ("auc", "accuracy", "log_loss", "ece")
        return {name: scores[name] for name in kept} | {"start_auc": evaluate(chances, early)["auc"]}

    training = Training(width=48, epochs=epochs, learning_rate=3e-3, max_len=_STEPS)
    models: tuple[tuple[str, Name], ...] = (("item-mean", "item-mean"), ("bkt", "bkt"), ("ednet", "dkt"), ("sakt", "sakt"))
    items = len(questions.answer)
    untrained = knowledge_tracer("dkt", items, tags=questions.tags, training=training, seed=seed)
    arms = {"untrained": measured(untrained.predict(test))}
    for arm, model in models:
        tracer = knowledge_tracer(model, items, tags=questions.tags, training=training, seed=seed)
        tracer.fit(seen, valid)
        arms[arm] = measured(tracer.predict(test))
    arms["oracle"] = measured(true_chances(users, school=_WORLD, seed=seed, part=test))
    return Miniature(
        arms=arms,
        claims=(
            Claim(name="beats the mean of each question by .05 AUC", method="ednet", baseline="item-mean", metric="auc", margin=0.05),
            Claim(name="stays below the true chances", method="ednet", baseline="oracle", metric="auc", direction="lower"),
            Claim(name="beats Bayesian tracing of tags", method="ednet", baseline="bkt", metric="auc"),
        ),
        notes=(f"{users} students, {int((whole.item >= 0).sum())} answers at seed {seed}; at most {epochs} epochs",),
    )
