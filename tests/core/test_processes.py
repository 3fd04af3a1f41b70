"""Two processes train what one trains: replicas, sharded roles, coupled methods, signals; and a launch that fails to be two is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tests.core.process_worker import CASES, STEPS, Blocks, Distil, Run, source
from torch import nn
from torch.optim import SGD
from torch.utils._pytree import tree_leaves_with_path

from preceptor.core.parallel import check_world, shard
from preceptor.core.run import train
from preceptor.core.state import read_weights
from preceptor.models.folder import load_student

ROOT = Path(__file__).parents[2]
LAUNCHER_SETS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU", "ACCELERATE_DYNAMO_BACKEND")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ALONE = """
from accelerate import Accelerator
from preceptor.core.parallel import broadcast
Accelerator()
try:
    broadcast({})
except ValueError as error:
    print(error)
"""


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_SETS}
    environment |= {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-4000:]
    return output


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Everything that needs processes of its own, started once and together."""
    folder = tmp_path_factory.mktemp("processes")
    folders = {name: folder / name for name in ("one", "two")}
    for each in folders.values():
        each.mkdir()
    (folder / "alone.py").write_text(ALONE)
    worker = str(Path(__file__).with_name("process_worker.py"))
    started = {
        "two": start(*TWO, worker, str(folders["two"]), ACCELERATE_USE_CPU="true"),
        "one": start(worker, str(folders["one"])),
        "torchrun": start(*TWO, str(folder / "alone.py")),
        "accelerate": start("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", str(folder / "alone.py")),
    }
    try:
        yield {"said": {name: finish(process) for name, process in started.items()}, **folders}
    finally:
        for process in started.values():
            process.kill()


def result(launched: dict[str, Any], processes: str, case: str) -> dict[str, Any]:
    found = torch.load(launched[processes] / f"{case}.pt", weights_only=True)
    assert found["world"] == {"one": 1, "two": 2}[processes]
    assert len(found["facts"]) == found["world"]
    return found


def largest_difference(one: Any, two: Any) -> float:
    first, second = ({str(path): leaf for path, leaf in tree_leaves_with_path(tree)} for tree in (one, two))
    assert first.keys() == second.keys()
    assert all(first[path].shape == second[path].shape for path in first)
    return max(float((first[path] - second[path]).abs().max()) for path in first)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_compute_what_one_does(launched: dict[str, Any], case: str) -> None:
    one, two = (result(launched, processes, case)["compare"] for processes in ("one", "two"))
    # float32 has rounding of 1e-7 per step; all else is float64
    assert largest_difference(one, two) <= (1e-5 if case == "sharded_single_precision" else 1e-9)
    if "moved" in one:
        assert one["moved"] > 0.05


@pytest.mark.parametrize(("case", "num"), [("plain", 23), ("micro", 23), ("masked", 23), ("tiny", 9), ("relational", 17)])
def test_no_example_is_seen_twice(launched: dict[str, Any], case: str, num: int) -> None:
    (whole,), shares = (result(launched, processes, case)["facts"] for processes in ("one", "two"))
    per_epoch = -(-num // 8)
    assert len(whole) == len(shares[0]) == len(shares[1]) == STEPS
    for together, mine, other in zip(whole, *shares, strict=True):
        assert sorted(mine + other) == sorted(together)
    for first in range(0, STEPS - per_epoch + 1, per_epoch):
        seen = [example for share in shares for batch in share[first : first + per_epoch] for example in batch]
        assert sorted(seen) == list(range(num))


def test_the_cases_are_as_hard_as_they_claim(launched: dict[str, Any]) -> None:
    plain, masked, tiny, sharded = (result(launched, "two", case)["facts"] for case in ("plain", "masked", "tiny", "sharded"))
    assert {len(mine) - len(other) for mine, other in zip(*plain, strict=True)} == {0, 1}
    assert all(example % 2 for batch in masked[1] for example in batch)  # rank 1 has odd ids alone: everything masked
    assert [] in tiny[1]
    assert [] in sharded[1]["ids"]
    assert all(set(facts["kinds"]) == {"DTensor"} for facts in sharded)
    assert [mine + other for mine, other in zip(*(facts["rows"] for facts in sharded), strict=True)] == [
        len(parameter) for parameter in Blocks(6).parameters()
    ]
    assert set(result(launched, "one", "sharded")["facts"][0]["kinds"]) == {"Parameter"}


def test_only_rank_0_writes(launched: dict[str, Any]) -> None:
    paths = [path.relative_to(launched["two"]) for path in launched["two"].rglob("*")]
    assert not [path for path in paths if "-rank" in str(path)]
    for case in ("plain", "sharded", "nonfinite", "sharded_nonfinite", "resumed/stopped", "sharded_resumed/stopped"):
        lines = [json.loads(line) for line in (launched["two"] / case / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "losses" in line] == list(range(1, STEPS + 1))
        assert (launched["two"] / case / "checkpoints" / f"step-{STEPS}").is_dir()
        assert (launched["two"] / case / "nonfinite").exists() == ("nonfinite" in case)


def test_only_rank_0_warns(launched: dict[str, Any]) -> None:
    (line,), others = result(launched, "two", "nonfinite")["facts"]
    assert line.startswith("loss: expected finite values at step 4, got hard=nan")
    assert others == []


@pytest.mark.parametrize("case", ["resumed", "sharded_resumed", "dropout_resumed"])
def test_a_signal_to_one_process_stops_both_and_resuming_is_exact(launched: dict[str, Any], case: str) -> None:
    for facts in result(launched, "two", case)["facts"]:
        assert facts == {"said": "SIGTERM after step 7", "code": 143, "equal": True, "batches": [STEPS, 7, STEPS - 7]}


def test_a_signal_after_the_last_step_of_one_process_is_raised_by_all(launched: dict[str, Any]) -> None:
    assert result(launched, "two", "late_signal")["facts"] == ["SIGTERM after step 20"] * 2


def test_a_checkpoint_holds_the_random_states_of_every_process(launched: dict[str, Any]) -> None:
    saved = read_weights(launched["two"] / "dropout_resumed" / "stopped" / "checkpoints" / "step-7" / "state.pt")
    first, second = saved["state"]["random"]
    assert not torch.equal(first["cpu"], second["cpu"])
    assert torch.equal(first["generator"], second["generator"])


def test_a_sharded_student_loads_in_one_plain_process(launched: dict[str, Any]) -> None:
    x = next(iter(source(9).scan()))["x"]
    trained = result(launched, "one", "sharded")["compare"]["weights"]["student"]
    last = read_weights(launched["one"] / "sharded" / "checkpoints" / f"step-{STEPS}" / "state.pt")["roles"]["student"]
    saved = read_weights(launched["two"] / "sharded" / "checkpoints" / f"step-{STEPS}" / "state.pt")["roles"]["student"]
    outputs = []
    for weights in (trained, load_file(launched["two"] / "sharded.safetensors"), last, saved):
        student = Blocks(6).double()
        student.load_state_dict(weights)
        outputs.append(student(x).detach())
        assert torch.equal(weights["again.weight"], weights["embed.weight"])
    assert largest_difference(outputs[0], outputs[1]) <= 1e-9
    assert largest_difference(outputs[2], outputs[3]) <= 1e-9


@pytest.mark.parametrize("case", ["resumed", "sharded_resumed"])
def test_two_processes_begin_and_one_goes_on(launched: dict[str, Any], case: str, tmp_path: Path) -> None:
    stopped = launched["two"] / case / "stopped"
    shutil.copytree(stopped / "checkpoints" / "step-7", tmp_path / "checkpoints" / "step-7")
    shutil.copy(stopped / "metrics.jsonl", tmp_path)
    run = Run(method=Distil(), data=source(23), build=Blocks, adam=True)
    run.go(out=tmp_path, resume=True)
    assert len(run.data.ids) == STEPS - 7
    (line,) = run.lines
    assert line.startswith("resume: began on 2 process(es), goes on with 1: dropout")
    assert largest_difference(run.result()["weights"], result(launched, "two", case)["compare"]["weights"]) <= 1e-9


def test_rank_0_decides_what_is_best_and_when_to_stop(launched: dict[str, Any]) -> None:
    assert result(launched, "two", "disagreeing")["facts"] == [{"step": 12, "value": 4.0, "stale": 2}] * 2


def test_a_sharded_student_of_a_trial_is_saved_whole_and_read_back(launched: dict[str, Any]) -> None:
    found = result(launched, "two", "sharded_trial")
    assert [(facts["equal"], facts["same metrics"]) for facts in found["facts"]] == [(True, True)] * 2
    assert [facts["lines"] for facts in found["facts"]] == [["world size: 2 processes"], []]
    assert result(launched, "one", "sharded_trial")["facts"][0]["lines"] == []
    assert list((launched["two"] / "sharded_trial" / "trackers").rglob("events.*"))
    folder = launched["two"] / "sharded_trial" / "student"
    student = load_student(folder, model=Blocks(6).double())
    assert all(torch.equal(value, found["compare"]["weights"][name]) for name, value in student.state_dict().items())
    assert "load_student('student', model=Blocks(...))" in (folder / "README.md").read_text()


def test_what_gathering_refuses_and_how_batches_are_split(launched: dict[str, Any]) -> None:
    """Shares of 3 and 0 examples give three microbatches each; a second derivative through other processes is an error, not a number."""
    for facts in result(launched, "two", "joining")["facts"]:
        assert facts == {"refused": True, "parts": [4, 3, 1]}


def test_a_launch_that_is_not_two_is_refused(launched: dict[str, Any]) -> None:
    line = "on CPUs launch with: ACCELERATE_USE_CPU=true torchrun --standalone --nproc_per_node"
    message = f"world size: expected 2, got 1; {line} 2 ..."
    assert launched["said"]["torchrun"].replace("\n", "") == message * 2  # two processes may print into each other's line
    assert (
        launched["said"]["accelerate"].splitlines()[-1] == f"world size: expected several, as accelerate was asked for, got 1; {line} N ..."
    )


@pytest.mark.parametrize(
    ("processes", "connected", "environ"),
    [
        (1, 1, {}),
        (1, 1, {"WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "ACCELERATE_DYNAMO_BACKEND": "NO"}),
        (1, 1, {"ACCELERATE_DYNAMO_BACKEND": "NO", "ACCELERATE_USE_CPU": "True"}),
        (1, 1, {"MASTER_ADDR": "localhost"}),
        (2, 2, {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "ACCELERATE_USE_CPU": "true"}),
        (2, 2, {"OMPI_COMM_WORLD_SIZE": "2"}),
        (2, 2, {}),
    ],
)
def test_check_world_accepts(processes: int, connected: int, environ: dict[str, str]) -> None:
    check_world(processes, connected, environ)


@pytest.mark.parametrize(
    ("processes", "connected", "environ", "expected"),
    [
        (1, 1, {"WORLD_SIZE": "4"}, "expected 4, got 1;.*nproc_per_node 4"),
        (1, 4, {"WORLD_SIZE": "4"}, "expected 4, got 1"),
        (1, 2, {}, "expected 2, got 1"),
        (2, 2, {"WORLD_SIZE": "4"}, "expected 4, got 2"),
        (1, 1, {"PMI_SIZE": "2"}, "expected 2, got 1"),
        (1, 1, {"ACCELERATE_DYNAMO_BACKEND": "NO", "MASTER_ADDR": "127.0.0.1"}, "expected several.*got 1"),
    ],
)
def test_check_world_refuses(processes: int, connected: int, environ: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=f"^world size: {expected}") as caught:
        check_world(processes, connected, environ)
    assert len(str(caught.value).splitlines()) == 1


def test_train_and_shard_refuse_a_silent_single_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    student = nn.Linear(2, 2)
    roles = {"student": student, "teacher": student}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="world size: expected 2, got 1"):
        train(Distil(), roles, [], SGD(student.parameters()), steps=1, out=tmp_path / "out", accelerator=accelerator)
    with pytest.raises(ValueError, match="world size: expected 2, got 1"):
        shard(student)
    assert not list(tmp_path.iterdir())


def test_one_process_shards_nothing() -> None:
    student = nn.Linear(2, 2)
    assert shard(student) is student
    assert type(student) is nn.Linear
