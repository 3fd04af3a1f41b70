"""Drafts of a variant, by a language model or from a template."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from preceptor.education.personalise.records import Catalogue, Draft, Problem, Profile, Variant
from preceptor.education.personalise.targets import Target, targets_for
from preceptor.teachers.chat import Chat, Settings

Generator = Callable[["Request"], Sequence[Draft]]
"""Drafts for one request, as many as it asks for or fewer; none where it failed."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a generator is asked. It has no student in it.

    Attributes:
        problem: the original.
        topic, reference: the interest.
        count: drafts wanted.
        note: what the teacher wants changed, "" at first.
        before: the draft that the note is about, "" at first.
        examples: accepted variants with their problems' texts, the newest last.
    """

    problem: Problem
    topic: str
    reference: str = ""
    count: int = 1
    note: str = ""
    before: str = ""
    examples: tuple[tuple[str, str], ...] = ()


def template_generator(catalogue: Catalogue) -> Generator:
    """Drafts from a problem's template: each slot takes what the topic says, ``{reference}`` the reference. A note changes nothing."""

    def generate(request: Request) -> list[Draft]:
        problem = request.problem
        if not problem.template:
            raise ValueError(f"problem {problem.id}: expected a template, or a model to write drafts, got none")
        topic = catalogue.topics[request.topic]
        slots = {**problem.slots, **topic.slots, "topic": request.topic, "reference": request.reference or request.topic}
        wanted = {name for _, name, _, _ in string.Formatter().parse(problem.template) if name is not None}
        missing = sorted(wanted - slots.keys())
        if missing:
            raise ValueError(f"problem {problem.id}: expected slots for its template, got none for {missing[0]!r}")
        return [Draft(text=problem.template.format_map(slots), solution=problem.solution)]

    return generate


def chat_generator(chat: Chat, *, lang: str = "en", settings: Settings = Settings(temperature=0.8, max_tokens=500)) -> Generator:  # noqa: B008
    """Drafts from a model; an answer whose JSON does not fit is asked for three times, then that draft is left out."""
    language = {"it": "Italian", "en": "English"}[lang]

    def generate(request: Request) -> list[Draft]:
        interest = f"{request.topic}, naming {request.reference}" if request.reference else request.topic
        shown = "".join(f"\nExample of a problem and an accepted variant:\n{before}\n-> {after}\n" for before, after in request.examples)
        again = f"\nDraft so far: {request.before}\nThe teacher asks: {request.note}\n" if request.note else ""
        prompt = (
            f"Rewrite this mathematics problem in {language} for students who like {interest}. Keep every number, the operations, the "
            f"answer, the length and the reading level. Prices, speeds and counts stay realistic. Name no person.\n{shown}\n"
            f"Problem: {request.problem.text}\nSolution: {request.problem.solution}\n{again}\n"
            'JSON with "text", the new problem, and "solution", the arithmetic that gives its answer.'
        )
        drafts = []
        for number in range(request.count):
            (said,) = chat.structured([prompt], Draft, replace(settings, seed=number))
            if said.value is not None:
                drafts.append(said.value)
        return drafts

    return generate


def plan(problem: Problem, profiles: Sequence[Profile], grain: int, catalogue: Catalogue | None, *, groups: int = 3) -> list[Variant]:
    """The variants of a problem that a class needs, without texts but for the original, which a problem keeps whose context matters."""
    targets = targets_for(profiles, 0 if problem.context_matters else grain, catalogue, groups=groups)
    return [_empty(problem, target) for target in targets]


def _empty(problem: Problem, target: Target) -> Variant:
    original = {} if target.topic else {"text": problem.text, "solution": problem.solution}
    return Variant(
        id=f"{problem.id}:{target.name}",
        problem=problem.id,
        students=target.students,
        topic=target.topic,
        reference=target.reference,
        **original,
    )
