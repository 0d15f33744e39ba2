"""A cluster in memory: the stacks of all nodes, programmed by the same code as live, joined by function calls.

`podwire check` asks it; it can as well be driven by property tests. No I/O, no clock, no randomness but what it is given.

Order to read: choices.py (every outcome of a random choice), packets.py (what is sent), node.py (one node's stack and its pods),
fabric.py (the cable, the tunnels, the world outside), and then podwire/check.py.
"""

from podwire.simulation.choices import Choices
from podwire.simulation.fabric import Arrival, Fabric
from podwire.simulation.node import SimulatedNode

__all__ = ["Arrival", "Choices", "Fabric", "SimulatedNode"]
