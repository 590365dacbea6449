"""What a node whose last word is old draws by now: that word, moved on as the nodes that run in step with it moved.

GPUs of one synchronous job compute and wait together. Whether a node does so with the others is not declared but seen:
in what both moved by within half a second, at the same instants, over the last half minute. Where it does, it is moved
on by what the others did since; where it does not, or nothing moved, what it said stands: it may have another job.
Pure; powers in watts.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from controller.types import BoolArray, FloatArray, NodeId, frozen

KEPT_S = 30.0  # a node that has been old for longer stays where it was moved to
STEP_S = 0.5  # what moves more slowly (caps, the room's temperature) moves strangers alike
ALIKE = 0.9  # of the square of a node's moves, what the others explain; a job of its own explains next to nothing
LOOKS_MIN = 60
TOLD_FRAC = 0.5  # of the looks must have found news of a node to judge it by; what was seen before stands else
USUAL = 0.9  # of all moves


@frozen
class Look:
    """All nodes at `now_s`: the power that each said last, by means and by samples, (2, n), and when it was so, (n,).

    `is_fresh`, (n,): of every GPU, and lately.
    """

    now_s: float
    t_s: FloatArray
    power_w: FloatArray
    is_fresh: BoolArray


class Peers:
    """One per site; `saw` with every new look, then `moved`."""

    def __init__(self) -> None:
        self._nodes: tuple[NodeId, ...] = ()
        self._looks: deque[Look] = deque()
        self._moved_w: FloatArray = np.zeros((2, 0))
        self._gains: FloatArray = np.zeros(0)  # as seen before a node's silence grew too long to tell

    def saw(self, nodes: tuple[NodeId, ...], look: Look) -> None:
        """Other `nodes` than before are another site."""
        if nodes != self._nodes:
            self._nodes, self._moved_w, self._gains = nodes, np.zeros((2, len(nodes))), np.zeros(len(nodes))
            self._looks.clear()
        self._looks.append(look)
        while self._looks[0].now_s < look.now_s - KEPT_S:
            self._looks.popleft()

    def moved(self, old: BoolArray) -> FloatArray:
        """What each `old` node has moved by since it spoke, by means and by samples, (2, n); 0 for the others."""
        self._moved_w, self._gains = np.where(old, self._moved_w, 0.0), np.where(old, self._gains, 0.0)
        times_s = np.array([look.t_s for look in self._looks])
        old = old & (times_s[-1] >= self._looks[0].now_s)
        if not old.any() or len(self._looks) < LOOKS_MIN:
            return self._moved_w
        nows_s = np.array([look.now_s for look in self._looks])
        are_peers = self._have_been_fresh(int(nows_s.searchsorted(times_s[-1][old].min())))
        are_peers &= np.isfinite(times_s[0])  # read from the first look on
        if not are_peers.any():
            return self._moved_w  # as far as there were any
        powers_w = np.array([look.power_w for look in self._looks])
        theirs_w = powers_w[:, :, are_peers].sum(axis=2)
        their_s = times_s[:, are_peers].mean(axis=1)
        samples_w, at_w = powers_w[:, 1, old], _then(times_s[:, old], their_s, theirs_w[:, 1])
        step = max(1, round(STEP_S / float(np.diff(nows_s).mean())))
        gains = _gains(samples_w[step:] - samples_w[:-step], at_w[step:] - at_w[:-step])
        has_told = (times_s[step:, old] > times_s[:-step, old]).mean(axis=0) >= TOLD_FRAC
        self._gains[old] = np.where(has_told, gains, self._gains[old])
        for k in range(2):
            self._moved_w[k, old] = self._gains[old] * (
                theirs_w[-1, k] - _then(times_s[-1, old], their_s, theirs_w[:, k])
            )
        return self._moved_w

    def _have_been_fresh(self, since: int) -> BoolArray:
        """Which nodes were fresh in every look from number `since` on, (n,)."""
        found: BoolArray = np.logical_and.reduce([look.is_fresh for look in list(self._looks)[since:]])
        return found


def _then(at_s: FloatArray, times_s: FloatArray, powers_w: FloatArray) -> FloatArray:
    """Power at the instants `at_s`, of their shape."""
    return np.interp(at_s.ravel(), times_s, powers_w).reshape(at_s.shape)


def _usual(moves_w: FloatArray) -> FloatArray:
    """What nearly all moves stay within, (k,)."""
    found: FloatArray = np.quantile(np.abs(moves_w), USUAL, axis=0)
    return found


def _gains(own_w: FloatArray, other_w: FloatArray) -> FloatArray:
    """By how much each node moves per watt of the others, (k,), from moves of both, (looks, k); 0 where it does not.

    An edge counts no more than the largest of what is usual: reports are a fifth of a second apart, and two that saw
    the same edge a moment apart are no strangers.
    """
    own_w, other_w = (np.clip(w, -usual_w, usual_w) for w, usual_w in ((w, _usual(w)) for w in (own_w, other_w)))
    both, own, other = (own_w * other_w).sum(axis=0), (own_w**2).sum(axis=0), (other_w**2).sum(axis=0)
    is_alike = (both > 0.0) & (both * both >= ALIKE * own * other)
    found: FloatArray = np.where(is_alike, both / np.maximum(other, np.finfo(float).tiny), 0.0)
    return found
