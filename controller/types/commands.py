"""What one cycle may write to nodes, battery and load bank; every command has epoch, sequence and time to live."""

from __future__ import annotations

from controller.types.readings import Following
from controller.types.records import frozen
from controller.types.scalars import GpuId, NodeId


@frozen
class Stamp:
    """What every part of one command carries: whose it is, its number, and how long it lives."""

    epoch: int
    seq: int
    ttl_s: float


@frozen
class GpuCap:
    """What one GPU may do: the locked SM clock bounds peaks, the power limit is the backstop. None leaves it free."""

    gpu_id: GpuId
    clock_mhz: int | None
    power_limit_w: float | None


@frozen
class NodeCommand:
    """Caps for one node, with all the node needs if nothing more ever arrives.

    At `ttl_s` after receipt the node moves to its fallback cap, after `release_slot_s`, no faster than
    `release_w_per_s` of its own power. `is_release` asks for the saved originals instead of caps. Until `ceiling_s`
    after receipt its fallback clock is only that share of itself, `ceiling_frac`: a ceiling outlives the controller.
    """

    node_id: NodeId
    epoch: int
    seq: int
    ttl_s: float
    caps: tuple[GpuCap, ...]
    release_slot_s: float
    release_w_per_s: float
    is_release: bool = False
    ceiling_frac: float = 1.0
    ceiling_s: float = 0.0

    @property
    def parting(self) -> tuple[float, ...]:
        """What the node goes by once it hears nothing more: each a number, or the command is none."""
        return self.release_slot_s, self.release_w_per_s, self.ceiling_frac, self.ceiling_s


@frozen
class BatteryCommand:
    """One write to the battery. Under SOFTWARE `reference_w` is its discharge power; under DEVICE the PCC target."""

    following: Following
    reference_w: float
    ramp_w_per_s: float  # the device's own slope bound while it follows this command, and after it expires
    epoch: int
    seq: int
    ttl_s: float
    expiry_w_per_s: float | None = None  # slope after expiry, for devices that know two; None: `ramp_w_per_s`


@frozen
class LoadBankCommand:
    """One write to the load bank. At `ttl_s` without another it goes back to 0 W, no faster than `expiry_w_per_s`."""

    setpoint_w: float
    ramp_w_per_s: float
    expiry_w_per_s: float
    epoch: int
    seq: int
    ttl_s: float


@frozen
class SiteCommand:
    """Everything one cycle may write. Nodes whose caps do not change still get their command renewed (TTL)."""

    epoch: int
    seq: int
    battery: BatteryCommand | None
    nodes: tuple[NodeCommand, ...]
    load_bank: LoadBankCommand | None = None
