"""What a method of the catalogue needs besides a student and a teacher, for the tests that go through all of them."""

import torch

from preceptor.catalog import read
from preceptor.methods.multi_aspect import AspectBank


def options_for(slug):
    """Hyper-parameters without which it would not run on the tests' small networks and random inputs."""
    chosen = {
        "student_layers": ("block1",),
        "teacher_layers": ("block2",),
        "student_split": ("block1", "block2"),
        "teacher_split": ("block1", "block2"),
        "max_new_tokens": 4,
        "reward": first_token_is_even,
        "verifier": first_token_is_even,
        "floor": 0.05,
        "box": None,
        "projector_width": 8,
        "bottleneck": 4,
        "num_outputs": 6,
        "interpolation": 0.3,
        "detector": label_is_zero,
        "augment": shaken,
        "aspects": AspectBank(
            ("Is it round?", "Is it red?"), torch.arange(60), torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
        ),
    }
    names = {field.name for field in read(slug).fields}
    return {name: value for name, value in chosen.items() if name in names}


def first_token_is_even(batch, completions):
    return completions.ids[:, 0] % 2 == 0


def shaken(x, generator):
    return x + 0.1 * torch.randn(x.shape, generator=generator).to(x)


def label_is_zero(batch):
    return batch["y"] == 0


def student_config(slug, config):
    """The configuration of a reference student for images of 6 x 6 pixels, made to fit what a method needs."""
    needs = read(slug).card.needs
    if "sigmoids" in needs:
        return {"reference": "mlp", "inputs": 36, "hidden": [5, 4], "classes": config["classes"], "activation": "sigmoid"}
    return config | ({"subclasses": 2} if "subclasses" in needs else {})
