"""What a controller wants done: writes as values. The runner performs them against the store, `memory.py` in memory.

Rules they keep: an action is complete (nothing has to be looked up to perform it) and refers to what the controller saw, so
that a write against a newer object is refused (409) and the controller, woken by the newer object, decides again.
Order does matter: actions of one reconcile are performed in order, and the first one that is refused ends the rest. A
reconcile may write an object more than once (its spec, then its status): its own earlier write is no conflict, so whoever
performs them compares with the resourceVersion that this write gave.
"""

from __future__ import annotations

from msgspec import Struct

from podwire_core.objects import Json


class Action(Struct, frozen=True):
    """Base of all actions."""


class Create(Action, frozen=True):
    """A new object, metadata.name given. "AlreadyExists" is an answer like any other: the controller will see it."""

    obj: Json


class Update(Action, frozen=True):
    """The whole object; metadata.resourceVersion is that of the object which the controller saw. Leaves `status` alone."""

    obj: Json


class UpdateStatus(Action, frozen=True):
    """Only `status` of this object is written (and metadata.resourceVersion compared)."""

    obj: Json


class Patch(Action, frozen=True):
    """A JSON merge patch; `uid` "" or the object's, as a precondition; subresource "" or "status"."""

    kind: str
    key: str
    patch: Json
    subresource: str = ""
    uid: str = ""


class Bind(Action, frozen=True):
    """The scheduler's decision: sets spec.nodeName and the condition PodScheduled=True in one write; refused if bound."""

    key: str
    uid: str
    node: str


class Delete(Action, frozen=True):
    """As a client's delete. `grace` None: the object's own grace period. `propagation`: Background, Foreground, Orphan."""

    kind: str
    key: str
    uid: str = ""
    grace: int | None = None
    propagation: str = "Background"


class Event(Action, frozen=True):
    """An Event about an object; the runner counts repetitions of the same one. `type`: Normal or Warning."""

    regarding: Json
    type: str
    reason: str
    message: str
    source: str = ""


class Again(Action, frozen=True):
    """Wake this controller with this key at that time (seconds since the epoch), if nothing wakes it earlier."""

    at: float


AnyAction = Create | Update | UpdateStatus | Patch | Bind | Delete | Event | Again
