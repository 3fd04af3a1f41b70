"""Templates and corrections asked of language models: the data of SuperCorrect (Yang et al. 2025, arXiv:2410.09008).

The teacher puts reference solutions into steps (first stage), marks the first wrong step of a student's solution and corrects it, seeing
the reference; the student corrects the same step without it; an inspector compares the teacher's correction with problem and reference.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from preceptor.catalog import nearest
from preceptor.data.steps import TAGS, Tags, Worked, read_steps, read_trace, same_answer, write_steps, write_trace
from preceptor.teachers.chat import Answer, Chat, Settings

_STEPS = "<Step1>...</Step1>, <Step2>...</Step2> and so on"
_MARK = (
    "A student's solution of the problem comes to a wrong answer. Repeat its steps with their tags. In the first wrong step, and in no"
    " other, add <Cause>why it is wrong</Cause><Correction>the step done right</Correction> before the step's end.\n\n"
)


def _names(prompt: str) -> set[str]:
    """What stands in braces."""
    return {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What models are asked, with the names in braces that each may hold.

    Raises:
        ValueError: another name in braces.
    """

    template: str = (
        f"Rewrite the solution below in steps {_STEPS}. Where a step is hard, explain it in <Key>...</Key> inside the step. After the steps"
        " give the general strategy in <Generalized>...</Generalized> and the final answer in <Answer>...</Answer>.\n\n"
        "Problem: {problem}\nSolution: {reference}"
    )
    solve: str = (
        f"Solve the problem in steps {_STEPS}, with details of hard steps in <Key>...</Key>. Then give the general strategy in"
        " <Generalized>...</Generalized> and the final answer in <Answer>...</Answer>.\n\nProblem: {problem}"
    )
    mark: str = _MARK + "Problem: {problem}\nReference solution: {reference}\nStudent's solution:\n{steps}"
    mark_alone: str = _MARK + "Problem: {problem}\nStudent's solution:\n{steps}"
    context: str = (
        "A student's solution of the problem goes wrong at the last step below or at the one after it. Say why in <Cause>...</Cause> and"
        " do that step right in <Correction>...</Correction>.\n\nProblem: {problem}\nSteps:\n{steps}"
    )
    inspect: str = (
        "Compare the correction of a wrong step with the problem and its reference solution. Answer with the one word OK where cause and"
        " correction are right, else say what is wrong.\n\nProblem: {problem}\nReference solution: {reference}\nSteps:\n{steps}\n"
        "Correction: {trace}"
    )
    revise: str = (
        "Revise the correction of a wrong step. Answer with <Cause>...</Cause><Correction>...</Correction>.\n\nProblem: {problem}\n"
        "Reference solution: {reference}\nSteps:\n{steps}\nCorrection: {trace}\nObjection: {objection}"
    )
    locate: str = (
        "What is the number of the first wrong step? Answer with the number, 0 where the problem itself is misread, or with the one word"
        " none.\n\nProblem: {problem}\nSteps:\n{steps}"
    )

    def __post_init__(self) -> None:
        for field in fields(self):
            allowed = sorted(_names(str(field.default)))
            for found in sorted(_names(getattr(self, field.name)) - {*allowed}):
                raise ValueError(
                    f"prompts.{field.name}: expected names out of {', '.join(allowed)}, got {found!r}{nearest(found, allowed)}"
                )


PROMPTS = Prompts()

Judge = Callable[[str, Sequence[str]], int | None]
"""From a problem and steps to the number, from 1, of the first wrong step; 0: the problem is misread before; None: all are right."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A student's solution of a problem that has a reference solution and answer."""

    problem: str
    reference: str
    answer: str
    solution: Worked

    @property
    def wrong(self) -> bool:
        """Whether it comes to an answer, and to another than the reference; one that was cut off is not called wrong."""
        return self.solution.answer is not None and not same_answer(self.solution.answer, self.answer)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two corrections of one step: what direct preference optimisation learns from."""

    problem: str
    reference: str
    steps: str  # verified steps, and perhaps the wrong one, as text
    context: str  # z, what the student reads
    step: int  # number of the wrong step, from 1
    chosen: str
    rejected: str


@dataclass(frozen=True, kw_only=True)
class Corrections:
    """Pairs, and of how many attempts there is none for which reason."""

    pairs: tuple[Pair, ...]
    dropped: dict[str, int]


def locate_first_error(problem: str, steps: Sequence[str], judge: Judge) -> int | None:
    """Number of the first wrong step, from 1; an error before the first step belongs to it. None where there is none.

    Raises:
        ValueError: the judge names a step that is not there.
    """
    found = judge(problem, steps) if steps else None
    if found is not None and not 0 <= found <= len(steps):
        raise ValueError(f"judge: expected a step from 0 to {len(steps)} or None, got {found}")
    return None if found is None else max(found, 1)


def asked_judge(chat: Chat, *, prompts: Prompts = PROMPTS, settings: Settings | None = None) -> Judge:
    """A judge that asks a language model; an answer without a number of a step means that none is wrong."""

    def judge(problem: str, steps: Sequence[str]) -> int | None:
        numbered = "\n".join(f"{i}. {step}" for i, step in enumerate(steps, start=1))
        (answer,) = chat.ask([prompts.locate.format(problem=problem, steps=numbered)], settings or Settings())
        found = re.search(r"\d+", answer.text)
        number = None if found is None else int(found.group())
        return number if number is not None and number <= len(steps) else None

    return judge


def templates(
    teacher: Chat,
    problems: Sequence[tuple[str, str, str]],
    *,
    prompts: Prompts = PROMPTS,
    tags: Tags = TAGS,
    settings: Settings | None = None,
) -> list[Worked | None]:
    """The first stage's texts: reference solutions in the template.

    Args:
        problems: N of problem, reference solution and answer.
    Returns:
        N, None for one without steps, a strategy or the reference's answer.
    """
    asked = [prompts.template.format(problem=problem, reference=reference) for problem, reference, _ in problems]
    found = [_read(answer, tags) for answer in teacher.ask(asked, settings or Settings())]
    fit = [
        bool(one.steps and one.generalized) and one.answer is not None and same_answer(one.answer, right)
        for one, (_, _, right) in zip(found, problems, strict=True)
    ]
    return [one if fits else None for one, fits in zip(found, fit, strict=True)]


def correction_pairs(
    attempts: Sequence[Attempt],
    teacher: Chat,
    student: Chat,
    *,
    grounded: bool = True,
    show_error: bool = False,
    right: Callable[[Attempt, int, str], bool] | None = None,
    prompts: Prompts = PROMPTS,
    tags: Tags = TAGS,
    settings: Settings | None = None,
) -> Corrections:
    """Pairs from wrong solutions: the teacher's correction of the first wrong step over the student's own.

    Args:
        attempts: right ones and those that were cut off give no pair.
        teacher: marks and corrects the first wrong step.
        student: corrects the same step.
        grounded: the teacher sees the reference solution.
        show_error: the context holds the wrong step too; in the paper it holds the verified steps alone.
        right: whether the student's own correction of a step is right, then it is no negative; None: where it is the teacher's.
        prompts, tags, settings: of all questions.
    """
    options, dropped = settings or Settings(), Counter[str]()
    wrong = [attempt for attempt in attempts if attempt.wrong]
    dropped["no wrong answer"] = len(attempts) - len(wrong)
    mark = prompts.mark if grounded else prompts.mark_alone
    asked = [mark.format(**_given(one, grounded), steps=write_steps(replace(one.solution, answer=None), tags)) for one in wrong]
    marked = [(one, *_marked(one, _read(answer, tags), tags)) for one, answer in zip(wrong, teacher.ask(asked, options), strict=True)]
    known: list[tuple[Attempt, Pair]] = []
    for one, step, chosen in marked:
        if not step:
            dropped[chosen] += 1
            continue
        shown = write_steps(Worked(steps=one.solution.steps[: step - (not show_error)]), tags)
        context = prompts.context.format(problem=one.problem, steps=shown)
        names = {"problem": one.problem, "reference": one.reference, "steps": shown, "context": context, "step": step}
        known.append((one, Pair(**names, chosen=chosen, rejected="")))
    pairs = []
    for (one, pair), answer in zip(known, student.ask([pair.context for _, pair in known], options), strict=True):
        cause, correction = read_trace(answer.text, tags)
        if not correction or answer.failed:
            dropped["the student wrote no correction"] += 1
        elif _bare(correction) == _bare(read_trace(pair.chosen, tags)[1]) or (right is not None and right(one, pair.step, correction)):
            dropped["the student is right"] += 1
        else:
            pairs.append(replace(pair, rejected=write_trace(cause, correction, tags)))
    return Corrections(pairs=tuple(pairs), dropped={reason: count for reason, count in dropped.items() if count})


def inspected(
    pairs: Sequence[Pair],
    inspector: Chat,
    teacher: Chat,
    *,
    max_rounds: int = 3,
    prompts: Prompts = PROMPTS,
    tags: Tags = TAGS,
    settings: Settings | None = None,
) -> list[Pair]:
    """Pairs whose chosen correction an inspector finds right, perhaps after the teacher has revised it.

    Args:
        pairs: in any order, which stays.
        max_rounds: inspections of each pair at most, at least 1; one that is still wrong is left out.
    Raises:
        ValueError: max_rounds < 1.
    """
    if max_rounds < 1:
        raise ValueError(f"max_rounds: expected at least 1, got {max_rounds}")
    options = settings or Settings()
    present, passed, open_ = list(pairs), set[int](), list(range(len(pairs)))
    for number in range(max_rounds):
        verdicts = inspector.ask([prompts.inspect.format(**_names_of(present[i])) for i in open_], options)
        objections = {i: verdict.text.strip() for i, verdict in zip(open_, verdicts, strict=True) if not _agrees(verdict)}
        passed |= set(open_) - set(objections)
        open_ = list(objections)
        if not open_ or number + 1 == max_rounds:
            break
        asked = [prompts.revise.format(**_names_of(present[i]), objection=objections[i]) for i in open_]
        for i, answer in zip(open_, teacher.ask(asked, options), strict=True):
            cause, correction = read_trace(answer.text, tags)
            if correction and not answer.failed:
                present[i] = replace(present[i], chosen=write_trace(cause, correction, tags))
    return [pair for i, pair in enumerate(present) if i in passed]


def _marked(attempt: Attempt, marked: Worked, tags: Tags) -> tuple[int, str]:
    """Number and correction of the first wrong step, or 0 and why there is none."""
    step = marked.first_flaw
    if step is None:
        return 0, "no wrong step found"
    if len(marked.steps) != len(attempt.solution.steps):
        return 0, "other steps than the student's"
    flaw = marked.steps[step - 1]
    if not flaw.correction:
        return 0, "no correction"
    if same_answer(flaw.correction, attempt.answer):
        return 0, "the answer alone"
    return step, write_trace(flaw.cause, flaw.correction, tags)


def _given(attempt: Attempt, grounded: bool) -> dict[str, str]:
    return {"problem": attempt.problem} | ({"reference": attempt.reference} if grounded else {})


def _names_of(pair: Pair) -> dict[str, str]:
    return {"problem": pair.problem, "reference": pair.reference, "steps": pair.steps, "trace": pair.chosen}


def _read(answer: Answer, tags: Tags) -> Worked:
    return Worked() if answer.failed or answer.finish == "length" else read_steps(answer.text, tags)


def _agrees(verdict: Answer) -> bool:
    return not verdict.failed and re.match(r"\W*ok\b", verdict.text, re.IGNORECASE) is not None


def _bare(text: str) -> str:
    return " ".join(text.lower().split())
