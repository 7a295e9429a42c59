"""Published methods for wrong captions, written anew from their papers, on cached features.

Each is a function of a :class:`heads.Pairs` and settings; it gives two linear heads, or several
that are joined. What differs from the paper stands in its docstring.
"""

from .decl import decl
from .l2rm import l2rm
from .ncr import ncr
from .rince import rince

PEERS = {"NCR": ncr, "DECL": decl, "L2RM": l2rm, "RINCE": rince}
