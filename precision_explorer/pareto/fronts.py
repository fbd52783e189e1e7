"""Which rows no other row dominates, of one table and over many draws of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from precision_explorer.pareto.dominance import costs_of

# Up to so many rows all pairs of several draws are compared at once.
_FEW = 400
# Pairs of rows compared at a time, one byte each.
_PAIRS = 4_000_000
# Rows that others are held against before anything is sorted: most of a large table falls to few.
_FIRST, _LEADERS = 8, 64
# Rows whose dominated rows are found at a time: their bit sets are 128 bytes a row.
_CHUNK = 1024
_WORD = 64
# Draws that are sorted out together: what may dominate a row in any of them is sought once.
_TOGETHER = 25
# Below so many draws each is sorted out by itself.
_SINGLE = 4
# Rows among which each row's surest dominator is sought, and how many are remembered of it.
_CANDIDATES, _REMEMBERED = 512, 3
# Above so many pairs for each row to be held against each other the draws differ too much.
_PAIRS_A_ROW = 200


def front(values: np.ndarray, maximise: Sequence[bool]) -> np.ndarray:
    """(rows,) bool: which rows of `values` (rows, objectives) no other row dominates.

    Equal rows are on the front together. A row with a missing value (None or NaN) is no candidate:
    never on the front, and it dominates no other.
    """
    return _front(costs_of(values, maximise).T, np.array([], dtype=int))


def front_probability(
    draws: np.ndarray | Iterable[np.ndarray], maximise: Sequence[bool]
) -> np.ndarray:
    """(rows,): in which share of `draws` each row is on the front.

    `draws`: (draws, rows, objectives), or such arrays one after the other where all draws together
    would not fit into memory. Missing values as in `front`, draw by draw. Raises ValueError without
    a draw.
    """
    blocks = [draws] if isinstance(draws, np.ndarray) else draws
    count, total, many = 0, np.zeros(1), None
    for block in blocks:
        costs = _by_objective(block, maximise)
        if costs.shape[2] <= _FEW:
            total = total + _all_pairs(costs)
        else:
            many = many or _Many(costs)
            for start in range(0, len(costs), _TOGETHER):
                total = total + many.on_front(costs[start : start + _TOGETHER])
        count += len(costs)
    if not count:
        raise ValueError("there are no draws; give (draws, rows, objectives)")
    return total / count


def _by_objective(block: np.ndarray, maximise: Sequence[bool]) -> np.ndarray:
    """(draws, objectives, rows) where less is better; columns lie together in memory."""
    table = np.asarray(block, dtype=float)
    if table.ndim != 3 or not len(table):
        raise ValueError(f"draws of shape {table.shape} are not (draws, rows, objectives)")
    if table.shape[2] != len(maximise):
        raise ValueError(f"draws of {table.shape[2]} values don't fit {len(maximise)} objectives")
    signs = np.where(np.asarray(maximise, dtype=bool), -1.0, 1.0)
    return np.multiply(table.transpose(0, 2, 1), signs[:, None], order="C")


def _all_pairs(costs: np.ndarray) -> np.ndarray:
    """(rows,): on how many fronts of `costs` (draws, objectives, rows) each row is."""
    draws, objectives, rows = costs.shape
    at_once = max(1, _PAIRS // max(1, rows * rows))
    total = np.zeros(rows)
    for start in range(0, draws, at_once):
        block = costs[start : start + at_once]
        no_worse = np.ones((len(block), rows, rows), dtype=bool)  # [d, i, j]: i no worse than j
        better = np.zeros_like(no_worse)
        for k in range(objectives):
            column = block[:, k]
            no_worse &= column[:, :, None] <= column[:, None, :]
            better |= column[:, :, None] < column[:, None, :]
        on = ~(no_worse & better).any(axis=1) & ~np.isnan(block).any(axis=1)
        total += on.sum(axis=0)
    return total


class _Many:
    """The fronts of many draws of one large table. Draws resemble each other, so what dominated a
    row in one is tried first in the next, and only what may dominate it in any draw of a block is
    held against it at all."""

    def __init__(self, costs: np.ndarray) -> None:
        """`costs` (draws, objectives, rows): the first draws, by which the others are foretold."""
        self._leaders = _leaders(costs[0])
        self._dominators: list[np.ndarray] = []
        """(rows,) each: a row that dominated it, or may."""
        self._turn = 0

    def on_front(self, costs: np.ndarray) -> np.ndarray:
        """(rows,): on how many fronts of `costs` (draws, objectives, rows) each row is."""
        if len(costs) < _SINGLE or np.isnan(costs).any():
            return self._each(costs)
        if not self._dominators:
            self._dominators = [_surest_dominators(costs, self._leaders)] * _REMEMBERED
        beaten = self._beaten_again(costs)
        left = np.flatnonzero(~beaten.all(axis=0))
        held = np.ascontiguousarray(costs[:, :, left])
        pairs = _possible_pairs(held.min(axis=0), held.max(axis=0))
        if pairs is None:
            return self._each(costs)
        self._dominators = [*self._dominators]
        slot = self._dominators[self._turn % _REMEMBERED].copy()
        for index, one in enumerate(held):
            open_ = ~beaten[index, left]
            losers, winners = _decided(one, *(side[open_[pairs[0]]] for side in pairs))
            beaten[index, left[losers]] = True
            slot[left[losers]] = left[winners]
        self._dominators[self._turn % _REMEMBERED] = slot
        self._turn += 1
        return np.asarray((~beaten).sum(axis=0))

    def _each(self, costs: np.ndarray) -> np.ndarray:
        return np.sum([_front(one, self._leaders) for one in costs], axis=0)

    def _beaten_again(self, costs: np.ndarray) -> np.ndarray:
        """(draws, rows) bool: where one of the remembered rows dominates."""
        beaten = np.zeros((len(costs), costs.shape[2]), dtype=bool)
        for dominators in self._dominators:
            left = np.flatnonzero(~beaten.all(axis=0))
            by = dominators[left]
            no_worse: np.ndarray = np.ones((len(costs), left.size), dtype=bool)
            better = np.zeros_like(no_worse)
            for k in range(costs.shape[1]):
                ours, theirs = costs[:, k, left], costs[:, k, by]
                no_worse &= theirs <= ours
                better |= theirs < ours
            beaten[:, left] |= no_worse & better
        return beaten


def _surest_dominators(costs: np.ndarray, leaders: np.ndarray) -> np.ndarray:
    """(rows,): the row, of some on the mean draw's front, whose least advantage over it is the
    largest, each objective in units of its spread; any where nothing beats the row."""
    with np.errstate(invalid="ignore"):  # Infinite values have no mean, and beat nothing here.
        mean = costs.mean(axis=0)
        spread = mean.std(axis=1, keepdims=True)
        mean = mean / np.where(spread > 0, spread, 1.0)
    on = np.flatnonzero(_front(mean, leaders))
    if not on.size:
        return np.zeros(mean.shape[1], dtype=int)
    chosen = on[:: -(-on.size // _CANDIDATES)]
    best = np.full(mean.shape[1], -np.inf)
    found = np.full(mean.shape[1], chosen[0])
    for start in range(0, chosen.size, _LEADERS):
        some = chosen[start : start + _LEADERS]
        margin = np.full((some.size, mean.shape[1]), np.inf)
        for column in mean:
            with np.errstate(invalid="ignore"):
                np.minimum(margin, column - column[some][:, None], out=margin)
        place = margin.argmax(axis=0)
        largest = margin[place, np.arange(mean.shape[1])]
        better = largest > best
        best[better], found[better] = largest[better], some[place[better]]
    return found


def _possible_pairs(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(rows, others): every pair of which the other may be no costlier in all objectives, where
    each value lies between `low` and `high` (objectives, rows); None where they are too many."""
    rows = low.shape[1]
    least = np.stack([_at_most(column) for column in low])
    most = np.stack(
        [np.searchsorted(np.sort(a), b, side="right") for a, b in zip(low, high, strict=True)]
    )
    found: list[tuple[np.ndarray, np.ndarray]] = []
    total = 0
    for start in range(0, rows, _CHUNK):
        bits = _intersection(least[:, start : start + _CHUNK], most, rows)
        row, word = np.nonzero(bits)
        # At least one pair a word: what is too much already need not be unpacked.
        if total + row.size > _PAIRS_A_ROW * rows:
            return None
        flags = np.unpackbits(
            bits[row, word].astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
        )
        place, bit = np.nonzero(flags)
        ours, theirs = row[place], start + _WORD * word[place] + bit
        apart = ours != theirs
        found.append((ours[apart], theirs[apart]))
        total += int(apart.sum())
        if total > _PAIRS_A_ROW * rows:
            return None
    return np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])


def _decided(
    costs: np.ndarray, rows: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the pairs in which the other dominates the row, by `costs` (objectives, rows)."""
    for column in costs:
        kept = column[others] <= column[rows]
        rows, others = rows[kept], others[kept]
    better = (costs[:, others] < costs[:, rows]).any(axis=0)
    return rows[better], others[better]


def _leaders(costs: np.ndarray) -> np.ndarray:
    """Rows of `costs` (objectives, rows) with the best ranks over all objectives: likely to
    dominate many others in every draw."""
    known = np.flatnonzero(~np.isnan(costs).any(axis=0))
    ranks = costs[:, known].argsort(axis=1).argsort(axis=1).sum(axis=0)
    return known[ranks.argsort(kind="stable")[:_LEADERS]]


def _front(costs: np.ndarray, leaders: np.ndarray) -> np.ndarray:
    """(rows,) bool of `costs` (objectives, rows): what the `leaders` leave, sorted out by bit sets.
    A leader need not be on the front itself: what it dominates is not."""
    on = np.zeros(costs.shape[1], dtype=bool)
    left = np.flatnonzero(~np.isnan(costs).any(axis=0))
    # The first few thin the rows out for the others.
    for held in (leaders[:_FIRST], leaders[_FIRST:]):
        known = held[~np.isnan(costs[:, held]).any(axis=0)]
        if known.size:
            left = left[~_dominated(costs[:, left], costs[:, known])]
    if left.size:
        on[left[_undominated(costs[:, left])]] = True
    return on


def _dominated(costs: np.ndarray, leaders: np.ndarray) -> np.ndarray:
    """(rows,) bool: which rows of `costs` (objectives, rows) one of `leaders` dominates."""
    no_worse = np.ones((leaders.shape[1], costs.shape[1]), dtype=bool)
    for ours, theirs in zip(leaders, costs, strict=True):
        no_worse &= ours[:, None] <= theirs
    found: np.ndarray = no_worse.any(axis=0)
    # Only what equals a leader in the first objective can be no worse in all and better in none.
    first = np.sort(leaders[0])
    alike = np.flatnonzero(found)
    place = np.searchsorted(first, costs[0, alike]).clip(max=len(first) - 1)
    alike = alike[first[place] == costs[0, alike]]
    better = np.zeros((leaders.shape[1], alike.size), dtype=bool)
    for ours, theirs in zip(leaders, costs[:, alike], strict=True):
        better |= ours[:, None] < theirs
    found[alike] = (no_worse[:, alike] & better).any(axis=0)
    return found


def _undominated(costs: np.ndarray) -> np.ndarray:
    """(rows,) bool of `costs` (objectives, rows), without NaN.

    For each objective the sets of rows at most as costly as each row, as bits; their intersection
    over the objectives is the row itself, its equals and its dominators. Rows go in the order of
    their summed ranks, in which a dominator comes before and an equal stands beside.
    """
    atmost = np.stack([_at_most(column) for column in costs])
    sums = atmost.sum(axis=0)
    order = sums.argsort(kind="stable")
    atmost, sums = atmost[:, order], sums[order]
    alive: np.ndarray = np.ones(len(order), dtype=bool)
    start = 0
    while start < len(order):
        chunk: np.ndarray = start + np.flatnonzero(alive[start:])[:_CHUNK]
        if not chunk.size:
            break
        held = chunk[0] + np.flatnonzero(alive[chunk[0] :])
        bits = _intersection(atmost[:, chunk], atmost[:, held], len(order))
        alive[held[(bits & _before(sums[chunk], sums[held])).any(axis=1)]] = False
        start = int(chunk[-1]) + 1
    found = np.empty_like(alive)
    found[order] = alive
    return found


def _at_most(column: np.ndarray) -> np.ndarray:
    """(rows,): how many rows are at most as costly as each."""
    order = column.argsort()
    ordered = column[order]
    ends: np.ndarray = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(column))
    found: np.ndarray = np.empty(len(column), dtype=np.intp)
    found[order] = np.repeat(ends, np.diff(ends, prepend=0))
    return found


def _intersection(chunk: np.ndarray, held: np.ndarray, rows: int) -> np.ndarray:
    """(held, words) uint64: bit c of row h says that row c of `chunk` is nowhere costlier than it.
    Both (objectives, .) of ranks from 1 to `rows`."""
    size = chunk.shape[1]
    one = np.uint64(1)
    found = np.full((held.shape[1], -(-size // _WORD)), ~np.uint64(0))
    for ours, theirs in zip(chunk, held, strict=True):
        order = ours.argsort(kind="stable")
        sets = np.zeros((size + 1, found.shape[1]), dtype=np.uint64)
        sets[np.arange(1, size + 1), order // _WORD] = one << (order % _WORD).astype(np.uint64)
        np.bitwise_or.accumulate(sets, axis=0, out=sets)
        found &= sets[np.bincount(ours, minlength=rows + 1).cumsum()[theirs]]
    return found


def _before(chunk: np.ndarray, held: np.ndarray) -> np.ndarray:
    """(held, words) uint64: the bits of the rows of `chunk` whose sum of ranks is below each
    `held` one's. What is nowhere costlier at the same sum is its equal."""
    count = np.asarray(np.searchsorted(chunk, held, side="left"))
    words = np.arange(-(-len(chunk) // _WORD))
    kept = np.clip(count[:, None] - _WORD * words, 0, _WORD)
    full = ~np.uint64(0)
    shifted = full >> (_WORD - np.maximum(kept, 1)).astype(np.uint64)
    return np.where(kept == 0, np.uint64(0), shifted)
