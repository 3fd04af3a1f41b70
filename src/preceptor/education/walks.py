"""Node2Vec: vectors of a graph's nodes from biased random walks.

Grover and Leskovec 2016, node2vec: Scalable Feature Learning for Networks. A walk that came from t to v goes on to x with a chance
proportional to
    w(v, x) * {1 / p where x = t;  1 where x is a neighbour of t;  1 / q elsewhere},
its first step to w alone. Vectors are then those of skip-gram with negative samples (Mikolov et al. 2013), over pairs near in a walk:
    - log sigma(z_v . c_x) - sum over negatives n of log sigma(- z_v . c_n),   n drawn with chance ~ degree^0.75.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preceptor.core.method import Method
from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.core.stream import Repeated
from preceptor.core.types import Batch, Roles, Signal, Terms

_CELLS = 4_000_000  # walkers times neighbours weighed at one time


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A weighted graph of nodes 0 to N - 1, as rows of neighbours: those of v are ``neighbours[begin[v] : begin[v + 1]]``, in order."""

    begin: np.ndarray
    neighbours: np.ndarray
    weights: np.ndarray

    @property
    def size(self) -> int:
        """N."""
        return len(self.begin) - 1

    @property
    def degree(self) -> np.ndarray:
        """(N,) sum of the weights of each node's edges."""
        return np.bincount(np.repeat(np.arange(self.size), np.diff(self.begin)), self.weights, self.size)


def graph_of(edges: np.ndarray, *, nodes: int | None = None, directed: bool = False) -> Graph:
    """A graph from rows (a, b, weight); an edge that comes twice has the sum of its weights.

    Raises:
        ValueError: not three columns, a weight that is not finite and > 0, or a node outside [0, nodes).
    """
    edges = np.asarray(edges, dtype=float)
    if edges.ndim != 2 or edges.shape[1] != 3:
        raise ValueError(f"edges: expected rows (a, b, weight), got shape {edges.shape}")
    if not (np.isfinite(edges).all() and (edges[:, 2] > 0).all()):
        raise ValueError("edges: expected finite weights > 0, got another")
    start, end = edges[:, 0].astype(np.int64), edges[:, 1].astype(np.int64)
    size = int(max(start.max(initial=-1), end.max(initial=-1))) + 1 if nodes is None else nodes
    if len(edges) and (min(start.min(), end.min()) < 0 or max(start.max(), end.max()) >= size):
        low, high = min(start.min(), end.min()), max(start.max(), end.max())
        raise ValueError(f"edges: expected nodes in [0, {size}), got {low} to {high}")
    loops = start == end
    twice = [] if directed else [(end[~loops], start[~loops], edges[~loops, 2])]
    a, b, w = (np.concatenate(columns) for columns in zip((start, end, edges[:, 2]), *twice, strict=True))
    keys, inverse = np.unique(a * size + b, return_inverse=True)
    begin = np.searchsorted(keys, np.arange(size + 1) * size)
    return Graph(begin=begin, neighbours=keys % size if size else keys, weights=np.bincount(inverse, w, len(keys)))


def transition(graph: Graph, previous: int, current: int, *, p: float, q: float) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours of ``current``, in order, and the chances to go on to each, for a walk that came from ``previous``.

    Raises:
        ValueError: p or q is not > 0, or current has no neighbour.
    """
    _check_bias(p, q)
    weights, neighbours = _weighed(graph, np.array([previous]), np.array([current]), p, q)
    if not neighbours.size:
        raise ValueError(f"current: expected a node with neighbours, got {current}, which has none")
    return neighbours[0], weights[0] / weights.sum()


def walks(graph: Graph, *, num_walks: int = 10, length: int = 80, p: float = 1.0, q: float = 1.0, seed: int = 0) -> np.ndarray:
    """``num_walks`` walks from every node, (N * num_walks, length); -1 after a node without neighbours.

    Raises:
        ValueError: a number out of range.
    """
    _check_bias(p, q)
    if min(num_walks, length) < 1:
        raise ValueError(f"num_walks, length: expected at least 1, got {num_walks} and {length}")
    random = np.random.default_rng(seed)
    start = np.tile(np.arange(graph.size), num_walks)
    found = np.full((len(start), length), -1, np.int64)
    found[:, 0] = start
    degree = np.diff(graph.begin)
    for step in range(1, length):
        going = np.flatnonzero((found[:, step - 1] >= 0) & (degree[found[:, step - 1].clip(min=0)] > 0))
        going = going[np.argsort(degree[found[going, step - 1]], kind="stable")]  # of like degree together: little padding
        while len(going):
            widest = int(degree[found[going, step - 1]][: max(1, _CELLS)].max())
            part, going = going[: max(1, _CELLS // widest)], going[max(1, _CELLS // widest) :]
            before = found[part, step - 2] if step > 1 else np.full(len(part), -1)
            weights, neighbours = _weighed(graph, before, found[part, step - 1], p, q)
            total = np.cumsum(weights, 1)
            drawn = (total < (random.random(len(part)) * total[:, -1])[:, None]).sum(1)
            found[part, step] = neighbours[np.arange(len(part)), drawn]
    return found


def _weighed(graph: Graph, previous: np.ndarray, current: np.ndarray, p: float, q: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights (W, D) of the neighbours (W, D) of each walker's node, 0 at the end where it has fewer; ``previous`` -1: a first step."""
    counts = np.diff(graph.begin)[current]
    place = graph.begin[current][:, None] + np.arange(counts.max(initial=0))
    present = np.arange(counts.max(initial=0)) < counts[:, None]
    place = np.where(present, place, 0)
    neighbours, weights = graph.neighbours[place], np.where(present, graph.weights[place], 0.0)
    if (p, q) == (1.0, 1.0) or not neighbours.size:
        return weights, neighbours
    back = neighbours == previous[:, None]
    keys = np.repeat(np.arange(graph.size), np.diff(graph.begin)) * graph.size + graph.neighbours
    wanted = neighbours * graph.size + previous.clip(min=0)[:, None]
    near = keys[np.searchsorted(keys, wanted).clip(max=len(keys) - 1)] == wanted
    bias = np.where(back, 1 / p, np.where(near, 1.0, 1 / q))
    return weights * np.where(previous[:, None] < 0, 1.0, bias), neighbours


def _check_bias(p: float, q: float) -> None:
    for name, value in (("p", p), ("q", q)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: expected a finite number > 0, got {value}")


class SkipGram(Method):
    """Skip-gram with negative samples; one value per pair."""

    def loss(self, batch: Batch, signal: Signal, roles: Roles, state: State) -> Terms:
        """Return ``skip`` (N,) for pairs ``x`` (N, 2) and ``negatives`` (N, K)."""
        node, near = roles["student"].get_submodule("node"), roles["student"].get_submodule("near")
        centre = node(batch["x"][:, 0])
        positive = (centre * near(batch["x"][:, 1])).sum(-1)
        negative = (centre[:, None] * near(batch["negatives"])).sum(-1)
        return {"skip": -F.logsigmoid(positive) - F.logsigmoid(-negative).sum(-1)}


def node2vec(
    graph: Graph,
    *,
    p: float = 1.0,
    q: float = 1.0,
    dim: int = 64,
    num_walks: int = 10,
    length: int = 80,
    window: int = 10,
    negatives: int = 5,
    epochs: int = 1,
    batch_size: int = 4096,
    learning_rate: float = 0.02,
    seed: int = 0,
) -> Tensor:
    """Vectors (N, dim); a node without neighbours, which no walk leaves, has the vector 0.

    Raises:
        ValueError: a graph without an edge, or a number out of range.
    """
    if not len(graph.neighbours):
        raise ValueError("graph: expected at least one edge, got none")
    steps = walks(graph, num_walks=num_walks, length=length, p=p, q=q, seed=seed)
    pairs = np.concatenate([_pairs(steps, offset) for offset in range(1, window + 1)])
    chance = graph.degree**0.75
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.ModuleDict({"node": nn.Embedding(graph.size, dim), "near": nn.Embedding(graph.size, dim)})
        for weight in network.parameters():
            nn.init.normal_(weight, std=dim**-0.5)
        batches = _PairBatches(pairs, chance / chance.sum(), negatives, batch_size, seed)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        train(SkipGram(), {"student": network}, Repeated(batches), optimizer, steps=epochs * len(batches), seed=seed)
    found = network["node"].weight.detach().clone()  # pyright: ignore[reportCallIssue]
    found[torch.from_numpy(np.diff(graph.begin) == 0)] = 0
    return found


def _pairs(steps: np.ndarray, offset: int) -> np.ndarray:
    """Nodes that are ``offset`` steps apart in a walk, both ways."""
    first, second = steps[:, :-offset].ravel(), steps[:, offset:].ravel()
    kept = (first >= 0) & (second >= 0)
    forward = np.stack([first[kept], second[kept]], 1)
    return np.concatenate([forward, forward[:, ::-1]])


class _PairBatches:
    def __init__(self, pairs: np.ndarray, chance: np.ndarray, negatives: int, batch_size: int, seed: int) -> None:
        self.pairs, self.chance, self.negatives, self.batch_size = pairs, np.cumsum(chance), negatives, batch_size
        self.seed, self.epoch = seed, 0

    def __len__(self) -> int:
        return math.ceil(len(self.pairs) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        random = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        order = random.permutation(len(self.pairs))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            drawn = np.searchsorted(self.chance, random.random((len(rows), self.negatives)))
            negatives = torch.from_numpy(drawn.clip(max=len(self.chance) - 1))
            yield {"x": torch.from_numpy(self.pairs[rows]), "negatives": negatives, "id": torch.from_numpy(rows)}
