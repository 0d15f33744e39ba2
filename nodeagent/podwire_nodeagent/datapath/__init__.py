"""A node's userspace kernel. Its modules come from the compiled build where there is one of these sources (compiled.py)."""

import sys

from podwire_nodeagent import compiled

COMPILED = compiled.build()
if COMPILED is not None:
    sys.path.append(str(COMPILED))  # where the extension modules look for what they share
    __path__.insert(0, str(COMPILED / "datapath"))
