"""Keeps the books of tolerated loss: how much of its demand each class lost in its rolling window, and what is left.

A tier of 10 % lets a class lose a tenth of what it would have drawn over the window. What is left is paced: a class
may spend what the coming stretch itself earns, plus a share of what it saved, so that a long limit does not eat the
whole window in its first minutes. Pure; times come from the caller.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from controller.types import FloatArray

BUCKETS = 120


class TierLedger:
    """Demand and loss per class over one rolling window. A tier of 1 or more means no tier."""

    def __init__(self, tolerated_loss: FloatArray, *, window_s: float) -> None:
        assert window_s > 0.0
        self._tier = np.asarray(tolerated_loss, dtype=np.float64)
        self._window_s = window_s
        self._bucket_s = window_s / BUCKETS
        self._buckets: deque[tuple[FloatArray, FloatArray]] = deque(maxlen=BUCKETS)
        self._open_s = 0.0
        count = len(self._tier)
        self._open_demand, self._open_loss = np.zeros(count), np.zeros(count)
        self._demand, self._loss = np.zeros(count), np.zeros(count)
        self.excess_j = np.zeros(count)  # the largest loss beyond the tier in any window so far

    def add(self, step_s: float, demand_w: FloatArray, cut_w: FloatArray) -> None:
        """Count one step."""
        self._open_s += step_s
        self._open_demand += demand_w * step_s
        self._open_loss += cut_w * step_s
        if self._open_s < self._bucket_s - 1e-9:
            return
        if len(self._buckets) == BUCKETS:
            old_demand, old_loss = self._buckets[0]
            self._demand -= old_demand
            self._loss -= old_loss
        self._buckets.append((self._open_demand, self._open_loss))
        self._demand += self._open_demand
        self._loss += self._open_loss
        self._open_s = 0.0
        self._open_demand, self._open_loss = np.zeros_like(self._demand), np.zeros_like(self._demand)
        if len(self._buckets) == BUCKETS:
            over = self._loss - self._tier * self._demand
            self.excess_j = np.maximum(self.excess_j, np.where(self._tier < 1.0, over, 0.0))

    def spent(self) -> tuple[FloatArray, FloatArray]:
        """Demand over the whole window (K,), what is not seen yet at the rate seen so far, and the loss in it."""
        seen_s = len(self._buckets) * self._bucket_s + self._open_s
        seen, loss = self._demand + self._open_demand, self._loss + self._open_loss
        return seen * max(1.0, self._window_s / seen_s) if seen_s > 0.0 else seen, loss

    def loss_left_j(self, ahead_s: float) -> FloatArray:
        """How much each class may lose in the next `ahead_s`, shape (K,); inf where no tier binds."""
        full_s = len(self._buckets) * self._bucket_s
        rate_w = self._demand / full_s if full_s > 0.0 else np.zeros_like(self._demand)
        # A window not yet full counts as if the present rate had always been.
        demand_j = self._demand + rate_w * (self._window_s - full_s)
        saved_j = self._tier * demand_j - self._loss - self._open_loss
        share = min(1.0, ahead_s / self._window_s)
        earned_j = self._tier * rate_w * ahead_s
        paced = np.minimum(np.maximum(0.0, saved_j), earned_j + share * np.maximum(0.0, saved_j - earned_j))
        left: FloatArray = np.where(self._tier < 1.0, paced, np.inf)
        return left
