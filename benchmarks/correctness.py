"""The promises of preceptor's losses, checked on what other packages ship: a pass/fail table.

The peers live in an environment of their own, outside the repository:

    python3 -m venv ../peers
    ../peers/bin/pip install -r benchmarks/requirements-peers.txt
    ../peers/bin/pip install --no-deps torchdistill==1.1.5 liger-kernel==0.8.5 KD-Lib==0.0.32
    PYTHONPATH=src ../peers/bin/python benchmarks/correctness.py            # a table
    PYTHONPATH=src ../peers/bin/python benchmarks/correctness.py --json     # the rows that every benchmark prints, with status and detail

``--no-deps`` because torchdistill and KD-Lib ask for packages that cannot be installed beside a CPU build of a recent torch. A peer that is
missing or does not import is a row of its own. Every loss is called as its documentation says, through a thin wrapper that gives it logits
(fused losses get an identity as output layer, a masked class a bias of -inf) and returns its mean over the items that count.

Statuses: pass, FAIL, n/a (the loss has no such input), not importable. The exit status is 1 when a loss of preceptor does not pass.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from preceptor.core.reduce import global_counts, reduce_terms
from preceptor.losses.divergence import forward_kl, generalized_jsd, reverse_kl, skew_forward_kl, skew_reverse_kl, total_variation
from preceptor.losses.features import attention_transfer
from preceptor.losses.relations import rkd_angle, rkd_distance
from preceptor.methods.dkd import decoupled_kl

IGNORED = -100
LOGITS, EMBEDDINGS, MAPS = "logits", "embeddings", "maps"


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One loss as the table calls it: (student, teacher, mask, temperature) -> mean over the items that count."""

    peer: str
    name: str
    call: Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
    kind: str = LOGITS
    masks: bool = True  # has a mask or an ignored label
    softens: bool = True  # has a temperature
    formula: Callable[[Tensor, Tensor, float], Tensor] | None = None  # what the documentation says, one value per item


def probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(p, q) of teacher and student."""
    return (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)


def plain_kl(a: Tensor, b: Tensor) -> Tensor:
    """KL(a || b) from probabilities, as a textbook has it."""
    return (a * (a / b).log()).sum(-1)


def formula_jsd(beta: float) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Generalised JSD with its ends, from probabilities."""

    def value(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        p, q = probabilities(student, teacher, temperature)
        if beta in (0, 1):
            return plain_kl(q, p) if beta else plain_kl(p, q)
        m = beta * p + (1 - beta) * q
        return beta * plain_kl(p, m) + (1 - beta) * plain_kl(q, m)

    return value


def formula_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The softened KL times T^2."""
    p, q = probabilities(student, teacher, temperature)
    return temperature**2 * plain_kl(p, q)


def own_losses() -> list[Loss]:
    """Losses of preceptor, reduced as its loop reduces them."""

    def reduced(items: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
        batch = {"x": student} if mask is None else {"x": student, "mask": mask}
        return reduce_terms({"loss": items}, batch, global_counts(batch), 1)["loss"]

    def dkd(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
        tckd, nckd = decoupled_kl(student, teacher, torch.zeros(len(student), dtype=torch.int64), temperature=temperature)
        return tckd + nckd

    def logits(name: str, function: Callable[..., Tensor], formula: Callable | None = None) -> Loss:
        def call(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
            return reduced(function(student, teacher, temperature=temperature), student, mask)

        return Loss(peer="preceptor", name=name, call=call, formula=formula)

    def features(name: str, kind: str, function: Callable[[Tensor, Tensor], Tensor]) -> Loss:
        def call(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
            return reduced(function(student, teacher), student, mask)

        return Loss(peer="preceptor", name=name, kind=kind, masks=False, softens=False, call=call)

    return [
        logits("forward_kl", forward_kl, formula_jsd(0)),
        logits("reverse_kl", reverse_kl, formula_jsd(1)),
        logits("generalized_jsd 0.5", generalized_jsd, formula_jsd(0.5)),
        logits("skew_forward_kl", skew_forward_kl),
        logits("skew_reverse_kl", skew_reverse_kl),
        logits("total_variation", total_variation),
        logits("dkd", dkd),
        features("rkd", EMBEDDINGS, lambda s, t: rkd_distance(s, t) + 2 * rkd_angle(s, t)),
        features("attention_transfer", MAPS, attention_transfer),
    ]


def as_labels(student: Tensor, mask: Tensor | None) -> Tensor:
    """Class 0 for every item that counts, the ignored label for the others."""
    labels = torch.zeros(len(student), dtype=torch.int64)
    return labels if mask is None else labels.masked_fill(mask == 0, IGNORED)


def as_layer(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(hidden, weight, bias) of an output layer that computes the logits; a column of -inf becomes a bias."""
    masked = torch.isneginf(logits)
    columns = masked.all(dim=0) if len(logits) else torch.zeros(logits.shape[-1], dtype=torch.bool)
    bias = torch.zeros(logits.shape[-1], dtype=logits.dtype).masked_fill(columns, -torch.inf)
    return logits.masked_fill(masked, 0.0), torch.eye(logits.shape[-1], dtype=logits.dtype), bias


def trl_losses() -> list[Loss]:
    """Generalised JSD of the GKD trainer and of the distillation trainer (chunked, fused with the output layer)."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    gkd = importlib.import_module("trl.experimental.gkd.gkd_trainer").GKDTrainer.generalized_jsd_loss
    chunked = importlib.import_module("trl.trainer.distillation_trainer")._chunked_divergence_loss

    def unfused(beta: float) -> Loss:
        def call(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
            return gkd(student[None], teacher[None], labels=as_labels(student, mask)[None], beta=beta, temperature=temperature)

        return Loss(peer="trl", name=f"GKDTrainer.generalized_jsd_loss {beta}", call=call, formula=formula_jsd(beta))

    def fused(beta: float) -> Loss:
        def call(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
            (h_s, w_s, b_s), (h_t, w_t, b_t) = as_layer(student), as_layer(teacher)
            counts = torch.ones(1, len(student)) if mask is None else mask[None]
            biases = {"student_lm_head_bias": b_s, "teacher_lm_head_bias": b_t}
            return chunked(h_s[None], h_t[None], w_s, w_t, counts, beta, temperature=temperature, **biases)[0]

        return Loss(peer="trl", name=f"_chunked_divergence_loss {beta}", call=call, formula=formula_jsd(beta))

    return [*map(unfused, (0, 0.5, 1)), *map(fused, (0, 0.5, 1))]


def liger_losses() -> list[Loss]:
    """Fused linear JSD without compilation: the part that runs on a CPU."""
    module = importlib.import_module("liger_kernel.chunked_loss").LigerFusedLinearJSDLoss

    def fused(beta: float) -> Loss:
        def call(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
            (h_s, w_s, b_s), (h_t, w_t, b_t) = as_layer(student), as_layer(teacher)
            loss = module(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=temperature, compiled=False)
            return loss(h_s, w_s, h_t, w_t, as_labels(student, mask), b_s, b_t)

        return Loss(peer="liger-kernel", name=f"LigerFusedLinearJSDLoss {beta}", call=call, formula=formula_jsd(beta))

    return [fused(beta) for beta in (0, 0.5, 1)]


def torchdistill_losses() -> list[Loss]:
    """Mid-level losses, with the dictionaries of tensors that its boxes pass."""
    mid = importlib.import_module("torchdistill.losses.mid_level")

    def io(value: Tensor) -> dict[str, dict[str, Tensor]]:
        return {"out": {"output": value}}

    def soft(name: str, formula: Callable | None) -> Loss:
        def call(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
            loss = getattr(mid, name)("out", "output", "out", "output", temperature=temperature, alpha=0.0, beta=1.0)
            return loss(io(student), io(teacher), targets=torch.zeros(len(student), dtype=torch.int64))

        return Loss(peer="torchdistill", name=f"{name} alpha=0", call=call, masks=False, formula=formula)

    def relations(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
        return mid.RKDLoss("out", "out", dist_factor=1.0, angle_factor=2.0, reduction="mean")(io(student), io(teacher))

    def attention(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
        end = {"io": "output", "path": "out"}
        return mid.ATLoss({"pair": {"student": end, "teacher": end, "weight": 1}})(io(student), io(teacher))

    return [
        soft("KDLoss", formula_kd),
        soft("LogitStdKDLoss", None),
        Loss(peer="torchdistill", name="RKDLoss", kind=EMBEDDINGS, call=relations, masks=False, softens=False),
        Loss(peer="torchdistill", name="ATLoss", kind=MAPS, call=attention, masks=False, softens=False),
    ]


def kd_lib_losses() -> list[Loss]:
    """Classic distillation with the KL that its users pass, and RKD."""
    library = importlib.import_module("KD_Lib.KD")

    def classic(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
        model = nn.Linear(1, 1)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        kd = library.VanillaKD(
            model, model, [], [], sgd, sgd, loss_fn=nn.KLDivLoss(reduction="batchmean"), temp=temperature, distil_weight=1.0
        )
        return kd.calculate_kd_loss(student, teacher, torch.zeros(len(student), dtype=torch.int64))

    def relations(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
        return library.RKDLoss(dist_ratio=1.0, angle_ratio=2.0)(teacher, student)

    return [
        Loss(peer="KD-Lib", name="VanillaKD KLDivLoss", call=classic, masks=False, formula=formula_kd),
        Loss(peer="KD-Lib", name="RKDLoss", kind=EMBEDDINGS, call=relations, masks=False, softens=False),
    ]


PEERS: dict[str, Callable[[], list[Loss]]] = {
    "preceptor": own_losses,
    "trl": trl_losses,
    "liger-kernel": liger_losses,
    "torchdistill": torchdistill_losses,
    "KD-Lib": kd_lib_losses,
}


class Broken(Exception):
    """A promise that does not hold; the message says what was seen."""


class NotApplicable(Exception):
    """The loss has no such input."""


def require(holds: bool | Tensor, seen: str) -> None:
    """Raise `Broken` unless the promise holds."""
    if not bool(holds):
        raise Broken(seen)


def make(loss: Loss, n: int = 6, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Student and teacher of the kind that the loss takes, in [-4, 4] or so."""
    shape = {LOGITS: (5,), EMBEDDINGS: (8,), MAPS: (3, 4, 4)}[loss.kind]
    student, teacher = 2 * torch.randn(2, n, *shape, generator=torch.Generator().manual_seed(0))
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def evaluate(loss: Loss, student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0) -> tuple[float, Tensor]:
    """Value and gradient of the student."""
    student = student.detach().clone().requires_grad_()
    value = loss.call(student, teacher, mask, temperature)
    value.backward()
    require(student.grad is not None, "no gradient reaches the student")
    return value.item(), torch.zeros_like(student) if student.grad is None else student.grad


def close(first: float, second: float, tolerance: float = 2e-5) -> bool:
    """Agreement to float32's rounding; NaN agrees with nothing."""
    return abs(first - second) <= tolerance * max(1.0, abs(second))


def finite(value: float, gradient: Tensor) -> bool:
    """Whether value and gradient are finite."""
    return abs(value) < float("inf") and bool(torch.isfinite(gradient).all())


def zero_at_agreement(loss: Loss) -> None:
    """0 with zero gradient when student and teacher are the same."""
    _, teacher = make(loss)
    value, gradient = evaluate(loss, teacher, teacher)
    require(abs(value) <= 1e-6 and gradient.abs().max() <= 1e-6, f"value {value:.2e}, gradient {gradient.abs().max():.2e}")


def never_negative(loss: Loss) -> None:
    """>= 0 exactly, far from agreement and next to it."""
    student, teacher = make(loss)
    values = [evaluate(loss, student, teacher)[0]]
    for seed in range(40):
        noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(seed))
        values.append(evaluate(loss, teacher + 1e-4 * noise, teacher)[0])
    require(min(values) >= 0, f"smallest value {min(values):.2e}")


def invariance(loss: Loss) -> None:
    """Logits: adding a constant to a row; embeddings: scaling; maps: scaling. Nothing changes."""
    student, teacher = make(loss)
    value, _ = evaluate(loss, student, teacher)
    moved = (
        [(student + 7.0, teacher), (student, teacher - 7.0)] if loss.kind == LOGITS else [(3 * student, teacher), (student, 3 * teacher)]
    )
    for s, t in moved:
        other, _ = evaluate(loss, s, t)
        require(close(other, value), f"{value:.6f} became {other:.6f}")


def documented_formula(loss: Loss) -> None:
    """The value is the documented one at temperatures 1 and 3."""
    if loss.formula is None:
        raise NotApplicable
    student, teacher = make(loss)
    for temperature in (1.0, 3.0):
        value, _ = evaluate(loss, student, teacher, temperature=temperature)
        expected = loss.formula(student.detach().double(), teacher.double(), temperature).mean().item()
        require(close(value, expected), f"T={temperature:g}: {value:.6f} instead of {expected:.6f}")


def mask_is_free(loss: Loss) -> None:
    """Masked items have zero gradient and no influence."""
    if not loss.masks:
        raise NotApplicable
    student, teacher = make(loss)
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1])
    value, gradient = evaluate(loss, student, teacher, mask)
    kept, _ = evaluate(loss, student[mask == 1], teacher[mask == 1])
    require(close(value, kept), f"value {value:.6f} instead of {kept:.6f}")
    require((gradient[mask == 0] == 0).all(), "masked items have a gradient")


def all_masked(loss: Loss) -> None:
    """Nothing to count: 0, with a zero gradient."""
    if not loss.masks:
        raise NotApplicable
    value, gradient = evaluate(loss, *make(loss), torch.zeros(6))
    require(value == 0 and (gradient == 0).all(), f"value {value}")


def batch_split(loss: Loss) -> None:
    """Means of two parts, weighted by their counts, make the mean of the whole: value and gradient."""
    if loss.kind == EMBEDDINGS:
        raise NotApplicable
    student, teacher = make(loss)
    value, gradient = evaluate(loss, student, teacher)
    (first, left), (second, right) = (evaluate(loss, student[part], teacher[part]) for part in (slice(0, 2), slice(2, 6)))
    require(close((2 * first + 4 * second) / 6, value), "values differ")
    require((torch.cat([2 * left, 4 * right]) / 6 - gradient).abs().max() < 1e-5, "gradients differ")


def vocabulary_padding(loss: Loss) -> None:
    """Classes masked by -inf on both sides change nothing."""
    if loss.kind != LOGITS:
        raise NotApplicable
    student, teacher = make(loss)
    padding = torch.full((6, 2), -torch.inf)
    value, _ = evaluate(loss, student, teacher)
    other, gradient = evaluate(loss, torch.cat([student, padding], 1), torch.cat([teacher, padding], 1))
    require(finite(other, gradient), f"value {other}, gradient finite: {bool(torch.isfinite(gradient).all())}")
    require(close(other, value), f"{value:.6f} became {other:.6f}")


def masked_on_one_side(loss: Loss) -> None:
    """A class masked by one side only gives finite values and gradients."""
    if loss.kind != LOGITS:
        raise NotApplicable
    for side in range(2):
        pair = [x.detach().clone() for x in make(loss)]
        pair[side][:, 4] = -torch.inf
        value, gradient = evaluate(loss, pair[0], pair[1])
        require(
            finite(value, gradient),
            f"{('student', 'teacher')[side]}: value {value}, gradient finite: {bool(torch.isfinite(gradient).all())}",
        )


def class_counts(loss: Loss) -> None:
    """Another number of classes is refused, or means the same distribution: never silently another."""
    if loss.kind != LOGITS:
        raise NotApplicable
    student, _ = make(loss)
    teacher = torch.cat([student.detach(), torch.full((6, 2), -1e4)], 1)
    try:
        value, _ = evaluate(loss, student, teacher)
    except Broken:
        raise
    except Exception:
        return
    require(abs(value) <= 1e-6, f"accepted, and identical distributions give {value:.4f}")


def low_precision(loss: Loss) -> None:
    """bfloat16 and float16 inputs give the value of the same numbers in float32 to 1e-4."""
    for dtype in (torch.bfloat16, torch.float16):
        student, teacher = make(loss, dtype=dtype)
        value, _ = evaluate(loss, student, teacher)
        expected, _ = evaluate(loss, student.detach().float(), teacher.float())
        require(close(value, expected, 1e-4), f"{dtype}: {value:.6f} instead of {expected:.6f}")


def extreme_values(loss: Loss) -> None:
    """Inputs of +-1e4 give finite values and gradients in float32."""
    student, teacher = make(loss)
    require(finite(*evaluate(loss, 1e4 * student.sign(), -1e4 * teacher.sign())), "not finite")


def identical_points(loss: Loss) -> None:
    """A collapsed student, and single-example batches, give finite values and gradients."""
    if loss.kind != EMBEDDINGS:
        raise NotApplicable
    student, teacher = make(loss)
    for name, pair in (("collapsed", (student[:1].expand(6, -1), teacher)), ("one example", (student[:1], teacher[:1]))):
        value, gradient = evaluate(loss, *pair)
        require(finite(value, gradient), f"{name}: value {value}, gradient finite: {bool(torch.isfinite(gradient).all())}")


def empty_batch(loss: Loss) -> None:
    """No item: 0 with a gradient."""
    value, _ = evaluate(loss, *make(loss, n=0))
    require(value == 0, f"value {value}")


def temperature_is_checked(loss: Loss) -> None:
    """T = 0 and T < 0 are refused with an error."""
    if not loss.softens:
        raise NotApplicable
    for temperature in (0.0, -1.0):
        try:
            value, _ = evaluate(loss, *make(loss), temperature=temperature)
        except Broken:
            raise
        except Exception:
            continue
        raise Broken(f"T={temperature:g} gives {value:.4f}")


PROPERTIES: tuple[Callable[[Loss], None], ...] = (
    zero_at_agreement,
    never_negative,
    invariance,
    documented_formula,
    mask_is_free,
    all_masked,
    batch_split,
    vocabulary_padding,
    masked_on_one_side,
    class_counts,
    low_precision,
    extreme_values,
    identical_points,
    empty_batch,
    temperature_is_checked,
)


def versions(peer: str) -> dict[str, str]:
    """Versions of the peer, torch and Python, as installed."""
    found = {"python": sys.version.split()[0], "torch": torch.__version__}
    try:
        found[peer] = importlib.metadata.version(peer)
    except importlib.metadata.PackageNotFoundError:
        found[peer] = "this checkout" if peer == "preceptor" else "not installed"
    return found


def row(peer: str, case: str, status: str, detail: str = "") -> dict[str, Any]:
    """One row of the output; a correctness check has no ratios."""
    ratios = dict.fromkeys(("time_ratio", "memory_ratio", "goal_time_ratio", "goal_memory_ratio"))
    return {"case": case, "peer": peer, "status": status, "detail": detail, **ratios, "repeats": 1, "versions": versions(peer)}


def check(loss: Loss) -> Iterator[dict[str, Any]]:
    """Every property of one loss."""
    for prove in PROPERTIES:
        status, detail = "pass", ""
        try:
            prove(loss)
        except NotApplicable:
            status = "n/a"
        except Broken as error:
            status, detail = "FAIL", str(error)
        except Exception as error:
            status, detail = "FAIL", f"raised {type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
        yield row(loss.peer, f"{loss.name}: {prove.__name__}", status, detail)


def run() -> list[dict[str, Any]]:
    """All rows, a peer that cannot be imported included."""
    rows = []
    for peer, losses in PEERS.items():
        try:
            found = losses()
        except (ImportError, AttributeError) as error:
            rows.append(
                row(peer, "import", "not importable", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0].partition(' (/')[0]}")
            )
            continue
        rows += [line for loss in found for line in check(loss)]
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    """Rows that did not pass in full, then the counts of every loss."""
    for line in rows:
        if line["status"] not in ("pass", "n/a"):
            print(f"{line['status']:<15}{line['peer']:<14}{line['case']:<62}{line['detail']}")
    print()
    print(f"{'peer':<14}{'loss':<42}{'pass':>5}{'FAIL':>5}{'n/a':>5}")
    for peer, name in dict.fromkeys(
        (line["peer"], line["case"].rpartition(": ")[0]) for line in rows if line["status"] != "not importable"
    ):
        counts = Counter(line["status"] for line in rows if line["peer"] == peer and line["case"].startswith(f"{name}: "))
        print(f"{peer:<14}{name:<42}{counts['pass']:>5}{counts['FAIL']:>5}{counts['n/a']:>5}")


def main() -> int:
    """Print the table or the rows."""
    parser = argparse.ArgumentParser(description="Properties of distillation losses, ours and others'.")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = run()
    if arguments.json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows)
    own = [line["status"] for line in rows if line["peer"] == "preceptor"]
    return int(not own or not set(own) <= {"pass", "n/a"})


if __name__ == "__main__":
    sys.exit(main())
