"""Adapter of the fixture ``alm``: alignment, loss and the student's gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from preceptor.core.state import State
from preceptor.data.align import align
from preceptor.methods.alm import ALM

DIVERGENCES = {
    "binary_ce": "binary_ce",
    "abs": "abs",
    "abs_exp": "total_variation",
    "reverse_binary_kl": "reverse_kl",
    "binary_kl_temp_limit": "limit",
}


class Told(nn.Module):
    """A model that is told its logits."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


def run(params: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """One loss per chunk that counts, the chunks of every text, and the gradient of the mean loss."""
    pieces = [[[piece.encode() for piece in text] for text in inputs[f"{side}_tokens"]] for side in ("teacher", "student")]
    chunks = [torch.from_numpy(align(*pair)) for pair in zip(*pieces, strict=True)]
    roles = {"teacher": Told(), "student": Told()}
    batch: dict[str, Any] = {"spans": pad_sequence(chunks, batch_first=True)}
    for side, prefix in (("teacher", "teacher_"), ("student", "")):
        batch[f"{prefix}x"] = {"logits": inputs[f"{side}_logits"]}
        for key in ("ids", "mask"):  # the source has a token at the place where a batch has the next one
            batch[prefix + {"ids": "y", "mask": "mask"}[key]] = F.pad(inputs[f"{side}_{key}"].detach()[:, 1:], (0, 1))
        if f"space_mask_{side}" in inputs:
            batch[f"{prefix}boundary"] = inputs[f"space_mask_{side}"].nonzero().T
    method = ALM(
        temperature=params.get("binarization_temp") or 100.0,
        epsilon=params.get("epsilon", 1e-6),
        divergence=DIVERGENCES[params["diff_fn"]],
        debias=bool(params.get("append_space")),
        merge=params.get("merge_space_threshold") or 0.0,
    )
    state = State(total_steps=1)
    with torch.no_grad():
        batch = method.prepare(batch, roles, state)
    loss = method.loss(batch, {}, roles, state)["alm"][batch["mask/alm"] != 0]
    (gradient,) = torch.autograd.grad(loss.mean(), inputs["student_logits"], retain_graph=True)
    return {"loss": loss, "chunks": [chunk.tolist() for chunk in chunks], "grad_student": gradient}
