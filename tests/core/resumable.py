"""A run that uses everything a checkpoint has to bring back, for the tests that break it off and go on."""

import copy
from dataclasses import dataclass

import torch
from tests.core.small import CrossEntropy, batches, net

from preceptor.core.run import train


def resumable(out, *, steps=6, stop_at=None, student=None, method=None, teacher=None, **options):
    """A run with dropout, momentum, a schedule, an average and further data; the caller may break it off at a step."""
    student = student or net(0, dropout=0.3)
    optimizer = torch.optim.SGD(student.parameters(), 0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    roles = {"student": student, "ema": copy.deepcopy(student), "teacher": teacher or net(8)}

    def progress(record):
        if record.step == stop_at:
            raise KeyboardInterrupt

    torch.manual_seed(2)
    defaults = {"schedulers": schedule, "streams": {"more": batches(2, 3, seed=5)}, "ema": 0.9, "checkpoint_every": 2, "clip": 1.0}
    state = train(method or Wandering(), roles, batches(4), optimizer, steps=steps, out=out, progress=progress, **{**defaults, **options})
    return roles, optimizer, state


@dataclass(frozen=True, kw_only=True)
class Wandering(CrossEntropy):
    """Uses everything that a checkpoint has to bring back."""

    noise: float = 0.1

    def prepare(self, batch, roles, state):
        more = next(state.streams["more"])["x"].mean() if state.step % 2 else 0.0
        noise = torch.randn(batch["x"].shape, generator=state.rng, dtype=torch.double)
        return {**batch, "x": batch["x"] + self.noise * noise + more + state.memory.get("shift", 0.0)}

    def after_step(self, batch, records, roles, state):
        state.memory["shift"] = state.memory.get("shift", torch.zeros(4, dtype=torch.double)) + 0.01 * batch["x"].mean(0)
