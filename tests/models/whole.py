"""A model of which only the logits can be seen."""

from torch import nn


class Whole(nn.Module):
    """Hides the halves of a language model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return self.model(**inputs)
