"""Controllers: pure functions from a View of the cluster to the writes that bring it nearer to what its objects ask for.

Live, the server's runner drives them over the store; `podwire check` and the tests drive them in memory. None of them does
I/O, reads a clock or draws a random number: `reconcile(view, key, now)` gives the same actions for the same arguments.

Order to read: view.py, actions.py, engine.py (how they are driven), common.py, then any controller; registry.py lists
them; memory.py and settle.py drive them without a server.
"""

from .actions import Again, AnyAction, Bind, Create, Delete, Event, Patch, Update, UpdateStatus
from .engine import Controller, Engine, Task
from .registry import all_controllers
from .settle import settle
from .view import Change, View, view_of

__all__ = [
    "Again",
    "AnyAction",
    "Bind",
    "Change",
    "Controller",
    "Create",
    "Delete",
    "Engine",
    "Event",
    "Patch",
    "Task",
    "Update",
    "UpdateStatus",
    "View",
    "all_controllers",
    "settle",
    "view_of",
]
