"""The teacher's gate: every draft is accepted, changed, asked for again or rejected, and every step is written down.

The state of a review is its events and nothing else. A review that was stopped or killed goes on where its last event was; what nobody
decided is not delivered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from preceptor.education.personalise.checks import Failure, Rules, check
from preceptor.education.personalise.events import MOVES, Event, EventLog, Kind, Move
from preceptor.education.personalise.generate import Generator, Request
from preceptor.education.personalise.records import Problem, Variant

EXAMPLES = 2
"""Accepted variants that the generator is shown."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the teacher sees: a variant with its newest text, its problem, what the checks found, and where in the review it is."""

    variant: Variant
    problem: Problem
    failures: tuple[Failure, ...]
    number: int  # from 1
    total: int


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the teacher does.

    Attributes:
        action: ``accept``; ``edit`` to ``text``; ``ask`` for another draft with the note ``text``; ``reject``; ``stop`` for now.
        moves: labels, see `Move`.
        text: of an edit or a note.
        solution: of an edit, "" where it stays.
    """

    action: Literal["accept", "edit", "ask", "reject", "stop"]
    moves: tuple[Move, ...] = ()
    text: str = ""
    solution: str = ""

    def __post_init__(self) -> None:
        for move in self.moves:
            if move not in MOVES:
                raise ValueError(f"moves: expected some of {', '.join(MOVES)}, got {move!r}")
        if self.action in ("edit", "ask") and not self.text.strip():
            raise ValueError(f"text: expected what to {self.action}, got none")


Reviewer = Callable[[View], Decision]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a review has come to.

    Attributes:
        delivered: accepted variants with their texts.
        rejected: ids of those that are not delivered.
        open: ids of those that nobody has decided.
        failed: id -> why there is no draft.
    """

    delivered: tuple[Variant, ...]
    rejected: tuple[str, ...]
    open: tuple[str, ...]
    failed: Mapping[str, str]


class Review:
    """A review of variants.

    Args:
        variants: what a class needs, see `plan`; ids are different.
        problems: their problems.
        rules: of the checks.
        generator: writes drafts.
        log: where events are kept; what it holds is gone on with.
        drafts: asked for at once; the teacher sees the one with the fewest failures.
        exceptions: accept without the teacher what passes all checks.
    Raises:
        ValueError: a variant without its problem, one twice, drafts < 1, or events of a variant that is not among them.
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        problems: Sequence[Problem],
        *,
        rules: Rules,
        generator: Generator,
        log: EventLog,
        drafts: int = 1,
        exceptions: bool = False,
    ) -> None:
        if drafts < 1:
            raise ValueError(f"drafts: expected at least 1, got {drafts}")
        self.rules, self.generator, self.log, self.drafts, self.exceptions = rules, generator, log, drafts, exceptions
        self.problems = {problem.id: problem for problem in problems}
        self.variants = {variant.id: variant for variant in variants}
        if len(self.variants) < len(variants):
            raise ValueError(f"variants: expected every id once, got {len(variants) - len(self.variants)} twice")
        for variant in variants:
            if variant.problem not in self.problems:
                raise ValueError(f"variant {variant.id}: expected one of the problems {', '.join(self.problems)}, got {variant.problem!r}")
        self.decided: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.notes: dict[str, str] = {}  # asked for, not drafted yet
        for event in log.events:
            if event.variant and event.variant not in self.variants:
                raise ValueError(f"{log.path}: expected events of this review, got one of {event.variant!r}")
            self._take(event)

    def run(self, reviewer: Reviewer) -> Outcome:
        """Go through what is not decided, until all is or the teacher stops."""
        for number, key in enumerate(self.variants, start=1):
            while key not in self.decided:
                if (not self.variants[key].text or key in self.notes) and not self._draft(key):
                    break
                variant = self.variants[key]
                problem = self.problems[variant.problem]
                failures = tuple(check(variant, problem, self.rules)) if variant.topic else ()
                if not variant.topic or (self.exceptions and not failures):
                    self._add("accept", "system", variant, text=variant.text, solution=variant.solution)
                    continue
                self._add("open", "teacher", variant)
                decision = reviewer(View(variant=variant, problem=problem, failures=failures, number=number, total=len(self.variants)))
                if decision.action == "stop":
                    self._add("stop", "teacher", variant)
                    return self.outcome()
                kept = decision.action in ("accept", "reject")
                text, solution = (variant.text, variant.solution) if kept else (decision.text, decision.solution)
                label: tuple[Move, ...] = ("accept",) if decision.action == "accept" else ("reject",) if decision.action == "reject" else ()
                moves = tuple(dict.fromkeys((*decision.moves, *label)))
                self._add(decision.action, "teacher", variant, moves=moves, text=text, solution=solution)
        return self.outcome()

    def outcome(self) -> Outcome:
        """What is delivered, rejected and open so far."""
        return Outcome(
            delivered=tuple(variant for key, variant in self.variants.items() if self.decided.get(key) == "accept"),
            rejected=tuple(key for key in self.variants if self.decided.get(key) == "reject"),
            open=tuple(key for key in self.variants if key not in self.decided),
            failed=dict(self.failed),
        )

    def _add(self, kind: Kind, actor: Literal["teacher", "model", "system"], variant: Variant, **rest: str | Sequence[Move]) -> None:
        self._take(self.log.add(kind, actor, problem=variant.problem, variant=variant.id, **rest))

    def _take(self, event: Event) -> None:
        """What an event does to the state: the same when it happens and when it is read again."""
        key = event.variant
        if event.kind in ("draft", "edit", "accept"):
            variant = self.variants[key]
            self.variants[key] = variant.model_copy(update={"text": event.text, "solution": event.solution or variant.solution})
            self.notes.pop(key, None)
        elif event.kind == "ask":
            self.notes[key] = event.text
        if event.kind in ("accept", "reject"):
            self.decided[key] = event.kind

    def _draft(self, key: str) -> bool:
        """Let the generator write, and keep the draft with the fewest failures; False where there is none."""
        variant = self.variants[key]
        problem = self.problems[variant.problem]
        accepted = [
            (self.problems[v.problem].text, v.text) for k, v in self.variants.items() if self.decided.get(k) == "accept" and v.topic
        ]
        request = Request(
            problem=problem,
            topic=variant.topic,
            reference=variant.reference,
            count=self.drafts,
            note=self.notes.get(key, ""),
            before=variant.text if key in self.notes else "",
            examples=tuple(accepted[-EXAMPLES:]),
        )
        made = [variant.model_copy(update=draft.model_dump()) for draft in self.generator(request)]
        if not made:
            self.failed[key] = "the generator wrote no draft"
            return False
        best = min(made, key=lambda one: len(check(one, problem, self.rules)))
        self.failed.pop(key, None)
        self._add("draft", "model", variant, text=best.text, solution=best.solution)
        return True
