"""A cross-encoder of transformers that scores groups of passages."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class GroupScorer(nn.Module):
    """A sequence classifier with one output, called with groups; with LoRA where ``model`` has it.

    Args:
        model: such as ``AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)``. A causal one reads its score at the last
            token that is not padding, which it knows by ``config.pad_token_id``.
    Raises:
        ValueError: more outputs than one, or no padding.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        config: Any = model.config
        if config.num_labels != 1:
            raise ValueError(f"model: expected one output (num_labels=1), got {config.num_labels}")
        if config.pad_token_id is None:
            raise ValueError("model: expected config.pad_token_id, got None")
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """From tokens (B, N, T) to scores (B, N)."""
        flat = {"input_ids": input_ids.flatten(0, 1), "attention_mask": attention_mask.flatten(0, 1)}
        return self.model(**flat).logits.view(input_ids.shape[:2])
