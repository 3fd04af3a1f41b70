"""Steps of training with a real language model, SmolLM2-135M: what choosing tokens, a teacher cache and entropy of prefixes save.

float32 on a CPU; all contenders are preceptor's, but for the dense loss. Run it in the environment of benchmarks/linear_losses.py, or in
preceptor's own after ``make demo-llm``:

    python benchmarks/llm_step.py [CASE ...] [--json] [--repeats 5] [--threads 1]

``tip``: head and loss of 2,048 tokens, half of them chosen. Where the entropies come with the rollouts, choosing costs nothing; the score
that looks at the teacher has to be computed first. preceptor never holds all logits, so that fewer tokens hardly need less memory; against
the dense loss they do. ``cache``: an update of a student of 8 layers on 2 x 256 tokens, with the teacher's top 64 from the disk, or with
the teacher. ``edco``: the entropy of the first 24 tokens of an answer, against that of up to 160; ``rank_correlation`` (Spearman) says how
far they agree about 24 samples.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from contest import Contest, Goal, main
from linear_losses import real_problem
from torch import Tensor, nn

from preceptor.core.state import State
from preceptor.core.types import Batch
from preceptor.losses.linear import linear_divergence
from preceptor.losses.token_selection import importance, select
from preceptor.losses.token_stats import linear_stats
from preceptor.methods.edco import EDCO
from preceptor.methods.gkd import GKD
from preceptor.models.heads import Head
from preceptor.models.language import load_language, load_tokenizer
from preceptor.teachers.build import build
from preceptor.teachers.cache import Spec, from_cache

LAYERS = [0, 4, 8, 12, 16, 20, 24, 29]
K, LENGTH, PREFIX, SAMPLES = 64, 160, 24, 24


def tip() -> Contest:
    problem = real_problem()
    student, teacher = Head(problem.weight), Head(problem.teacher_weight)
    shape = (8, -1)
    everything = torch.ones_like(problem.labels).view(shape)

    def scores() -> Tensor:
        found = linear_stats(problem.hidden.detach(), student, teacher=(problem.teacher, teacher))
        assert found.divergence is not None
        return importance(found.entropy.view(shape), found.divergence.view(shape), everything, rule="soft_or")

    known = scores()

    def loss(*, look: bool) -> Tensor:
        chosen = select(scores() if look else known, everything, retention=0.5).flatten()
        value = linear_divergence(problem.hidden, student, problem.teacher, teacher, kind="reverse_kl", mask=chosen)
        return value.sum() / chosen.sum()

    def turn(made: Callable[[], Tensor]) -> Mapping[str, Tensor]:
        return {"gradient": problem.turn(made)["weight"]}

    return Contest(
        contenders={
            "half of the tokens, entropies given": partial(turn, partial(loss, look=False)),
            "half of the tokens, scored first": partial(turn, partial(loss, look=True)),
            "all tokens": partial(turn, partial(problem.ours_kl, "reverse_kl")),
            "all tokens, dense": partial(turn, partial(problem.dense_kl, "reverse_kl")),
        },
        goals=tuple(
            Goal(ours=f"half of the tokens, {how}", peer=peer, time=0.6, memory=0.55)
            for how in ("entropies given", "scored first")
            for peer in ("all tokens", "all tokens, dense")
        ),
    )


@cache
def networks() -> tuple[nn.Module, nn.Module]:
    teacher = load_language("smollm2").eval().requires_grad_(False)
    return load_language({"keep_layers": LAYERS}, teacher=teacher), teacher


def cached_teacher() -> Contest:
    from pydoc_data.topics import topics

    student, teacher = networks()
    ids = torch.tensor(load_tokenizer("smollm2")("\n\n".join(topics[name] for name in sorted(topics)))["input_ids"][: 8 * 257]).view(8, 257)
    batches: list[Batch] = [
        {
            "x": {"input_ids": ids[i : i + 2, :-1], "use_cache": False},
            "y": ids[i : i + 2, 1:],
            "mask": torch.ones(2, 256),
            "id": torch.arange(i, i + 2),
        }
        for i in range(0, 8, 2)
    ]
    spec = Spec(kind="top-k", k=K, precision="compact", teacher="smollm2", data="topics")
    folder = tempfile.TemporaryDirectory()
    answers = build(Path(folder.name) / "cache", batches, lambda batch: teacher(**batch["x"]).logits, spec)
    live = GKD(on_policy_rate=0.0, beta=0.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    state = State(total_steps=1)

    def step(method: GKD, kept: object = folder) -> Mapping[str, Tensor]:
        roles, batch = {"student": student, "teacher": teacher}, batches[1]
        with torch.no_grad():
            signal = method.signal(batch, roles, state)
        loss = method.loss(batch, signal, roles, state)["divergence"].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": loss.detach()}

    return Contest(
        contenders={"from the cache": partial(step, from_cache(live, answers)), "with the teacher": partial(step, live)},  # pyright: ignore[reportArgumentType]
        goals=(Goal(ours="from the cache", peer="with the teacher", time=0.6),),
        notes={"from the cache": lambda: {"bytes_per_token": answers.bytes_per_item, "goal_bytes_per_token": 131, "k": K}},
    )


def prefixes() -> Contest:
    from pydoc_data.topics import topics

    _, model = networks()
    tokenizer = load_tokenizer("smollm2")
    names = sorted(topics)[:: len(topics) // SAMPLES][:SAMPLES]
    texts = [f"<|im_start|>user\nWhat is {name} in Python?<|im_end|>\n<|im_start|>assistant\n" for name in names]
    tokenizer.padding_side = "left"
    prompt = {key: value for key, value in tokenizer(texts, return_tensors="pt", padding=True).items() if key != "token_type_ids"}
    batch: Batch = {"prompt": prompt, "mask": torch.ones(SAMPLES, 1)}

    def score(length: int) -> Mapping[str, Tensor]:
        return {"entropy": EDCO(max_new_tokens=length, aggregate="mean", candidates=0).score(batch, model, seed=0)}

    def note() -> Mapping[str, Any]:
        ranks = [score(length)["entropy"].argsort().argsort().double() for length in (PREFIX, LENGTH)]
        return {"rank_correlation": float(torch.corrcoef(torch.stack(ranks))[0, 1]), "goal_rank_correlation": 0.9}

    ours, peer = f"first {PREFIX} tokens", f"up to {LENGTH} tokens"
    return Contest(
        contenders={ours: partial(score, PREFIX), peer: partial(score, LENGTH)},
        goals=(Goal(ours=ours, peer=peer, time=0.2),),
        notes={ours: note},
    )


CONTESTS: dict[str, Callable[[], Contest]] = {"tip": tip, "cache": cached_teacher, "edco": prefixes}

if __name__ == "__main__":
    main(__file__, CONTESTS, repeats=5, description=__doc__)
