"""What can go wrong on the way, one file each: a `Proxy` carries bytes and asks its faults what to do with them."""

from engram.chaos.faults.burst import Burst
from engram.chaos.faults.delay import Delay
from engram.chaos.faults.proxy import Fault, Proxy
from engram.chaos.faults.reset import Lost, Reset

__all__ = ["Burst", "Delay", "Fault", "Lost", "Proxy", "Reset"]
