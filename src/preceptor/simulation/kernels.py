"""The compiled sum over neighbours. Imports numba: import it through `preceptor.simulation.motion` only.

Fish are sorted by cell, so that the fish of a row of cells lie side by side; every fish looks through the cells that its attraction radius
reaches. The loop over a row has no branch and adds whole numbers only, so that the compiler takes several fish at once.
"""

from __future__ import annotations

import math

import numba
import numpy as np


def _sum_over_neighbours(position, heading, parts, cell, first, side, reach, box, radii, limit, weight, scale, wishes):
    """Write the direction that each fish wants, 0 where it wants none, into ``wishes`` (N, 3).

    ``position``, ``heading`` and ``parts``, the headings in whole numbers, are (3, N) in the order of the cells.
    """
    half = 0.5 * box
    repulsion, orientation, attraction = radii
    xs, ys, zs = position[0], position[1], position[2]
    us, vs, ws = parts[0], parts[1], parts[2]
    for i in numba.prange(len(cell)):
        x, y, z = xs[i], ys[i], zs[i]
        ux, uy, uz = heading[0, i], heading[1, i], heading[2, i]
        blind = limit if ux != 0 or uy != 0 or uz != 0 else -2.0
        ax = ay = az = ox = oy = oz = tx = ty = tz = avoided = np.int64(0)
        cx, rest = divmod(cell[i], side * side)
        cy, cz = divmod(rest, side)
        for kx in range(cx - reach, cx + reach + 1):
            for ky in range(cy - reach, cy + reach + 1):
                row = ((kx % side) * side + ky % side) * side
                for part in range(2):  # a row of cells that crosses the boundary comes in two parts
                    low, high = cz - reach, cz + reach
                    if part == 0:
                        low, high = max(low, 0), min(high, side - 1)
                    elif low < 0:
                        low, high = low + side, side - 1
                    elif high >= side:
                        low, high = 0, high - side
                    else:
                        break
                    start, stop = first[row + low], first[row + high + 1]
                    px, py, pz = xs[start:stop], ys[start:stop], zs[start:stop]
                    hx, hy, hz = us[start:stop], vs[start:stop], ws[start:stop]
                    for j in range(len(px)):
                        dx, dy, dz = px[j] - x, py[j] - y, pz[j] - z
                        dx -= box if dx > half else (-box if dx < -half else 0.0)
                        dy -= box if dy > half else (-box if dy < -half else 0.0)
                        dz -= box if dz > half else (-box if dz < -half else 0.0)
                        distance = math.sqrt(dx * dx + dy * dy + dz * dz)
                        near = (distance >= 1e-10) & (distance < attraction)
                        inverse = 1.0 / distance if near else 0.0
                        dx, dy, dz = dx * inverse, dy * inverse, dz * inverse
                        seen = near & (ux * dx + uy * dy + uz * dz > blind)
                        avoids = seen & (distance < repulsion)
                        follows = seen & (distance >= repulsion) & (distance < orientation)
                        approaches = seen & (distance >= orientation)
                        ex, ey, ez = np.int64(dx * scale), np.int64(dy * scale), np.int64(dz * scale)
                        avoided += 1 if avoids else 0
                        ax += ex if avoids else 0
                        ay += ey if avoids else 0
                        az += ez if avoids else 0
                        ox += hx[j] if follows else 0
                        oy += hy[j] if follows else 0
                        oz += hz[j] if follows else 0
                        tx += ex if approaches else 0
                        ty += ey if approaches else 0
                        tz += ez if approaches else 0
        if avoided > 0:
            wishes[i, 0], wishes[i, 1], wishes[i, 2] = -ax / scale, -ay / scale, -az / scale
        else:
            wishes[i, 0] = weight * (ox / scale) + tx / scale
            wishes[i, 1] = weight * (oy / scale) + ty / scale
            wishes[i, 2] = weight * (oz / scale) + tz / scale


serial = numba.njit(cache=True, error_model="numpy")(_sum_over_neighbours)
parallel = numba.njit(cache=True, error_model="numpy", parallel=True)(_sum_over_neighbours)
