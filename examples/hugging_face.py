"""A Hugging Face image classifier from a local folder teaches one made of every second of its layers, on scikit-learn's digits.

Put your own folder, or a name such as ``hf:google/vit-base-patch16-224``, in the place of ``runs/vit``, which this script makes.
"""

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import preceptor
from preceptor.data.datasets import load
from preceptor.models.adapters import resolve

digits = load("digits")  # or Examples of your own, or a datasets.Dataset with an image and a label column
sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
torch.manual_seed(0)
fresh = ViTForImageClassification(ViTConfig(num_hidden_layers=4, num_labels=10, hidden_dropout_prob=0.0, **sizes))
settings = {"learning_rate": 0.003, "batch_size": 64}
preceptor.distill(student=fresh, train=digits.train, method="ce", epochs=8, training=settings)
fresh.save_pretrained("runs/vit")

teacher = resolve("hf:runs/vit")
student: nn.Module = resolve({"keep_layers": 2}, teacher=teacher)
result = preceptor.distill(
    teacher=teacher,
    student=student,
    train=digits.train,
    test=digits.test,
    method="classic-kd",
    epochs=3,
    training=settings,
    out="runs/hugging_face",
    resume=True,  # run again, it goes on where it was, or reads back what it found
)
print(f"student {result.metrics['accuracy']:.3f}, teacher {result.teacher_metrics['accuracy']:.3f}, report {result.report}")

plain = ViTForImageClassification.from_pretrained("runs/hugging_face/student")  # no preceptor needed to load it
print(f"{len(plain.vit.layers)} layers of {len(fresh.vit.layers)}")
