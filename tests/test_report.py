"""The report page: complete, honest, self-contained, escaped and the same for the same result."""

import base64
import copy
import io
import json
import re
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from preceptor.report import render, summary_table, write_report
from preceptor.report_charts import Point, pareto_front
from preceptor.report_numbers import count, duration, significant
from preceptor.report_words import verdict

VOID = {"meta", "img", "br", "link", "hr", "input"}


def png(pixels: np.ndarray) -> str:
    """A greyscale image of bytes, (height, width), as a data URI."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(np.uint8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        "data:image/png;base64,"
        + base64.b64encode(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")).decode()
    )


def interval(values: np.ndarray) -> dict:
    spread = 2.776 * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": values.mean(), "low": values.mean() - spread, "high": values.mean() + spread}


def arm(rng, name: str, role: str, centre: dict, cost: dict, seeds: int = 5) -> dict:
    rows = [
        {
            "seed": seed,
            "metrics": {key: value * (1 if role == "teacher" else 1 + rng.normal(0, 0.006)) for key, value in centre.items()},
            "train_seconds": (11.0 if role == "baseline" else 14.0) + rng.normal(0, 0.4),
            "steps": 1500,
            "peak_memory_mb": 212.0 + rng.normal(0, 2),
            "teacher_seconds": 0.0 if role == "baseline" else 2.4,
        }
        for seed in range(seeds)
    ]
    summary = {key: interval(np.array([row["metrics"][key] for row in rows])) for key in centre} if seeds > 1 else {}
    return {"name": name, "role": role, "seeds": rows, "summary": summary, "cost": cost}


def realistic(steps: int = 1500) -> dict:
    """A study as `preceptor compare` writes it: a teacher, a baseline, two methods, five seeds."""
    rng = np.random.default_rng(0)
    small = {
        "parameters": 12730,
        "macs": 12704,
        "latency_ms": {"1": {"p50": 0.041, "p95": 0.058}, "64": {"p50": 0.118, "p95": 0.171}},
        "checkpoint_bytes": 52_312,
    }
    large = {
        "parameters": 421_642,
        "macs": 3_868_000,
        "latency_ms": {"1": {"p50": 0.312, "p95": 0.405}, "64": {"p50": 6.41, "p95": 7.02}},
        "checkpoint_bytes": 1_690_000,
    }
    names = ("accuracy", "top5", "nll", "brier", "ece", "classwise_ece", "adaptive_ece", "agreement", "kl_to_teacher", "rank_correlation")
    centres = {
        "teacher": (0.972, 0.999, 0.101, 0.043, 0.0121, 0.0051, 0.0118, 1.0, 0.0, 1.0),
        "ce": (0.823, 0.981, 0.702, 0.272, 0.0684, 0.0191, 0.0672, 0.829, 0.651, 0.71),
        "classic-kd": (0.854, 0.987, 0.489, 0.216, 0.0213, 0.0102, 0.0221, 0.862, 0.402, 0.83),
        "dkd": (0.848, 0.986, 0.533, 0.225, 0.0391, 0.0133, 0.0388, 0.857, 0.441, 0.80),
    }
    roles = {"teacher": "teacher", "ce": "baseline", "classic-kd": "method", "dkd": "method"}
    rows = [
        arm(rng, name, roles[name], dict(zip(names, centre)), large if name == "teacher" else small, 1 if name == "teacher" else 5)
        for name, centre in centres.items()
    ]
    rows[0]["seeds"][0]["train_seconds"] = 61.0
    x = np.arange(1, steps + 1)
    curves = []
    for name, end, start in (("ce", 0.02, 2.3), ("classic-kd", 0.35, 3.9), ("dkd", 0.6, 5.2)):
        for seed in range(5):
            noise = np.exp(rng.normal(0, 0.15, steps))
            final = centres[name][0]
            valid = [
                {"step": int(s), "accuracy": final - 0.7 * np.exp(-s / 180) + rng.normal(0, 0.006), "nll": 0.6}
                for s in range(100, steps + 1, 100)
            ]
            curves.append(
                {
                    "name": name,
                    "seed": seed,
                    "step": x.tolist(),
                    "loss": ((end + (start - end) * np.exp(-x / 200)) * noise).tolist(),
                    "valid": valid,
                }
            )
    sweep = {"ce": (0.652, 0.823, 0.876, 0.903), "classic-kd": (0.701, 0.854, 0.889, 0.901)}
    bins = np.linspace(0.25, 0.97, 10)
    bend = {"teacher": 0.01, "ce": 0.12, "classic-kd": -0.03, "dkd": 0.06}
    digit = np.zeros((28, 28))
    digit[5:23, 12:16] = 255
    return {
        "kind": "study",
        "title": "MNIST on 300 images: which student to ship?",
        "task": "mnist5k",
        "created": "2026-11-24T09:30:00+00:00",
        "headline_metric": "accuracy",
        "rows": rows,
        "paired": [
            {
                "metric": "accuracy",
                "method": "classic-kd",
                "baseline": "ce",
                "mean": 0.031,
                "low": 0.022,
                "high": 0.040,
                "p_value": 0.0006,
                "p_holm": 0.0012,
                "verdict": "shown",
            },
            {
                "metric": "accuracy",
                "method": "dkd",
                "baseline": "ce",
                "mean": 0.025,
                "low": 0.014,
                "high": 0.036,
                "p_value": 0.003,
                "p_holm": 0.003,
                "verdict": "shown",
            },
            {
                "metric": "nll",
                "method": "classic-kd",
                "baseline": "ce",
                "mean": -0.213,
                "low": -0.25,
                "high": -0.176,
                "p_value": 0.0001,
                "p_holm": 0.0002,
                "verdict": "shown",
            },
            {
                "metric": "ece",
                "method": "dkd",
                "baseline": "ce",
                "mean": 0.001,
                "low": -0.02,
                "high": 0.022,
                "p_value": 0.9,
                "p_holm": 0.9,
                "verdict": "not shown at this size",
            },
        ],
        "curves": curves,
        "sweep": {
            "axis": "training images",
            "points": [
                {"value": value, "name": name, "mean": means[i], "low": means[i] - 0.012 / (1 + i), "high": means[i] + 0.012 / (1 + i)}
                for name, means in sweep.items()
                for i, value in enumerate((100, 300, 1000, 2500))
            ],
        },
        "reliability": [
            {
                "name": name,
                "confidence": bins.tolist(),
                "accuracy": np.clip(bins - bend[name] * (0.5 + rng.random(10)), 0, 1).tolist(),
                "count": np.round(40 * 1.5 ** np.arange(10)).tolist(),
            }
            for name in centres
        ],
        "disagreements": [
            {
                "image": png(np.roll(digit, shift, 1)),
                "label": 1 + shift % 3,
                "student": 7,
                "student_confidence": 0.62,
                "teacher": 1,
                "teacher_confidence": 0.97,
            }
            for shift in range(-6, 6)
        ],
        "recipe": "task: mnist5k\nmethod:\n  slug: classic-kd\n  temperature: 4.0\n  alpha: 0.9\nsteps: 1500\n",
        "versions": {"python": "3.11.9", "torch": "2.13.0", "preceptor": "0.1.0"},
        "commit": "3f2c9ab",
        "seeds": [0, 1, 2, 3, 4],
        "hardware": "2 CPU cores, x86-64",
        "notes": ["The test part was read once, at the end.", "The teacher was trained once on 2,500 images and kept."],
    }
