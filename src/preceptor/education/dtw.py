"""Dynamic time warping: how far two series are when either may be slowed down.

    D_ij = |a_i - b_j|^2 + min(D_{i-1,j}, D_{i,j-1}, D_{i-1,j-1}),   distance sqrt(D_nm)

With a Sakoe-Chiba radius r and lengths n <= m, row i may use j from i - r to i + (m - n) + r; the longer series takes the columns' part
where n > m. Source: Sakoe and Chiba 1978; the card's golden numbers are tslearn's.
"""

from __future__ import annotations

import numpy as np


def dtw(a: np.ndarray, b: np.ndarray, *, radius: int | None = None) -> float:
    """Distance of two series, (n,) or (n, d) and (m,) or (m, d).

    Raises:
        ValueError: an empty series, another number of dimensions, or a radius below 0.
    """
    return float(np.sqrt(_table(_column(a, "a"), _column(b, "b"), radius)[-1, -1]))


def dtw_path(a: np.ndarray, b: np.ndarray, *, radius: int | None = None) -> tuple[list[tuple[int, int]], float]:
    """The pairs (i, j) that are matched, from first to last, and the distance; between equal ways the diagonal wins, then a step in a."""
    table = _table(_column(a, "a"), _column(b, "b"), radius)
    i, j = table.shape[0] - 1, table.shape[1] - 1
    path = [(i, j)]
    while (i, j) != (0, 0):
        ways = [(i - 1, j - 1), (i - 1, j), (i, j - 1)]
        i, j = min((way for way in ways if min(way) >= 0), key=lambda way: table[way])
        path.append((i, j))
    return path[::-1], float(np.sqrt(table[-1, -1]))


def dtw_matrix(first: np.ndarray, second: np.ndarray | None = None, *, radius: int | None = None) -> np.ndarray:
    """Distances of all pairs of two sets of series of equal lengths, (U, T) or (U, T, d) and (V, T'): (U, V).

    All pairs go through the table together; without ``second`` the first set is compared with itself.
    """
    a = first if first.ndim == 3 else first[..., None]
    b = a if second is None else second if second.ndim == 3 else second[..., None]
    rows = max(1, 30_000_000 // max(1, len(b) * b.shape[1]))  # bounds the memory of one block
    blocks = []
    for start in range(0, len(a), rows):
        part = a[start : start + rows]
        allowed = _allowed(part.shape[1], b.shape[1], radius)
        above = np.full((len(part), len(b), b.shape[1] + 1), np.inf)
        above[..., 0] = 0.0
        for i in range(part.shape[1]):
            cost = ((part[:, None, i, None] - b[None]) ** 2).sum(-1)
            here = np.full_like(above, np.inf)
            for j in np.flatnonzero(allowed[i]):
                best = np.minimum(np.minimum(above[..., j + 1], here[..., j]), above[..., j])
                here[..., j + 1] = cost[..., j] + best
            above = here
        blocks.append(np.sqrt(above[..., -1]))
    return np.concatenate(blocks)


def _column(series: np.ndarray, name: str) -> np.ndarray:
    series = np.asarray(series, dtype=float)
    if not series.size or series.ndim > 2:
        raise ValueError(f"{name}: expected a series (n,) or (n, d) with n >= 1, got shape {series.shape}")
    return series if series.ndim == 2 else series[:, None]


def _allowed(n: int, m: int, radius: int | None) -> np.ndarray:
    """(n, m) bool: cells inside the band."""
    if radius is None:
        return np.ones((n, m), bool)
    if radius < 0:
        raise ValueError(f"radius: expected at least 0, got {radius}")
    if n > m:
        return _allowed(m, n, radius).T
    offset = np.arange(m) - np.arange(n)[:, None]
    return (offset >= -radius) & (offset <= m - n + radius)


def _table(a: np.ndarray, b: np.ndarray, radius: int | None) -> np.ndarray:
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"b: expected {a.shape[1]} dimension(s) like a, got {b.shape[1]}")
    cost = np.where(_allowed(len(a), len(b), radius), ((a[:, None] - b[None]) ** 2).sum(-1), np.inf)
    table = np.full((len(a) + 1, len(b) + 1), np.inf)
    table[0, 0] = 0.0
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = cost[i, j] + min(table[i, j + 1], table[i + 1, j], table[i, j])
    return table[1:, 1:]
