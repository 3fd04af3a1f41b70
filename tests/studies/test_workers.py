"""Trials side by side: every one once, errors and signals of any of them answered, the same numbers as one after the other."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import preceptor
from preceptor.core.signals import Interrupted
from preceptor.core.types import Record
from preceptor.studies.workers import side_by_side

RECORD = Record(step=1, epoch=0, losses={"total": 1.0}, items=1, learning_rate=0.1)


def quiet(number: int, record: Record | None, updates: int) -> None:
    pass


def test_every_job_is_done_once_and_several_at_a_time(tmp_path: Path) -> None:
    def job(number, tell):
        (tmp_path / f"began-{number}").write_text(str(os.getpid()))
        tell(RECORD, 7)
        while len(list(tmp_path.glob("began-*"))) < 2:  # a single worker would wait here for ever
            time.sleep(0.01)
        with (tmp_path / f"done-{number}").open("a") as file:
            file.write("x")

    told: list[tuple[int, int | None, int]] = []
    side_by_side(
        job, 5, workers=2, out=None, progress=lambda number, record, updates: told.append((number, record and record.step, updates))
    )
    assert [(tmp_path / f"done-{number}").read_text() for number in range(5)] == ["x"] * 5
    assert len({(tmp_path / f"began-{number}").read_text() for number in range(5)} - {str(os.getpid())}) == 2
    assert sorted(number for number, step, _ in told if step is None) == list(range(5))
    assert (0, 1, 7) in told


def test_an_error_of_a_job_is_raised_with_its_type_and_stops_the_others(tmp_path: Path) -> None:
    def job(number, tell):
        if number == 0:
            raise ValueError("labels: expected 0 to 9, got 11")
        time.sleep(60)

    began = time.monotonic()
    with pytest.raises(ValueError, match="labels: expected 0 to 9, got 11"):
        side_by_side(job, 4, workers=2, out=None, progress=quiet)
    assert time.monotonic() - began < 30


def test_a_worker_that_is_killed_is_reported(tmp_path: Path) -> None:
    def job(number, tell):
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RuntimeError, match="exit code -9"):
        side_by_side(job, 1, workers=1, out=None, progress=quiet)


def test_a_signal_is_handed_on_and_the_first_interrupted_job_says_what_was_saved(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    train = (torch.randn(40, 4), torch.arange(40) % 2)

    def stop(*_: object) -> None:
        if not sent:
            sent.append(0)
            os.kill(os.getpid(), signal.SIGTERM)

    sent: list[int] = []
    study = {
        "student": lambda: nn.Linear(4, 2),
        "train": train,
        "methods": ["ce"],
        "seeds": 2,
        "training": {"steps": 400, "batch_size": 8},
        "say": lambda line: None,
        "workers": 2,
    }
    with pytest.raises(Interrupted, match="SIGTERM after step") as caught:
        preceptor.compare(**study, out=tmp_path / "a", progress=stop)
    assert caught.value.exit_code == 128 + signal.SIGTERM
    resumed = preceptor.compare(**study, out=tmp_path / "a", resume=True)
    torch.set_num_threads(1)
    try:
        straight = preceptor.compare(**{**study, "workers": 1})
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(resumed.trials["ce"], straight.trials["ce"], strict=True):
        assert one.metrics == other.metrics
        for a, b in zip(one.student.parameters(), other.student.parameters(), strict=True):
            assert torch.equal(a, b)


def test_workers_need_no_folder_and_no_thread_is_left(tmp_path: Path) -> None:
    train = (torch.randn(40, 4), torch.arange(40) % 2)
    before = threading.active_count()
    study = preceptor.compare(
        student=lambda: nn.Linear(4, 2),
        train=train,
        methods=["ce"],
        seeds=3,
        training={"steps": 3, "batch_size": 8},
        say=lambda line: None,
        workers=3,
    )
    assert [trial.seed for trial in study.trials["ce"]] == [0, 1, 2]
    assert "side by side" in " ".join(study.result["notes"])
    assert threading.active_count() == before


def test_no_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        side_by_side(lambda number, tell: None, 1, workers=0, out=None, progress=quiet)
