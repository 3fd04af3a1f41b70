"""Your own network, your own data: train a teacher, distil it into a student a tenth of its size, load the student back."""

import torch
from torch import nn

import preceptor
from preceptor.models.folder import load_student


def network(width: int) -> nn.Module:
    """Any module that maps inputs to logits will do; this one is all you replace."""
    return nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 5))


torch.manual_seed(0)
x = torch.randn(3000, 20)
y = (x[:, :5] + 0.5 * x[:, 5:10] ** 2).argmax(dim=1)
train, test = (x[:2000], y[:2000]), (x[2000:], y[2000:])

teacher, student = network(100), network(10)
preceptor.distill(student=teacher, train=train, method="ce", epochs=20, training={"learning_rate": 0.01})  # skip it when you have one
result = preceptor.distill(
    teacher=teacher,
    student=student,
    train=train,
    test=test,
    method="classic-kd",
    options={"temperature": 2.0},
    epochs=20,
    training={"learning_rate": 0.01},
    out="runs/own_model",
    resume=True,  # run again, it goes on where it was, or reads back what it found
)
print(f"student {result.metrics['accuracy']:.3f}, teacher {result.teacher_metrics['accuracy']:.3f}, report {result.report}")

loaded = load_student("runs/own_model/student", model=network(10))
print(f"loaded  {float((loaded(test[0]).argmax(dim=1) == test[1]).double().mean()):.3f}")
