"""Exact, faster forms of what the method writes out; the written-out form is their reference."""

from . import batchnorm as batchnorm
from . import blockwise as blockwise
from . import randomness as randomness
from . import reading as reading
from . import recompute as recompute
from . import sharing as sharing
from .batchnorm import normalises_over_batch as normalises_over_batch
from .batchnorm import synchronised as synchronised
from .blockwise import blockwise_loss as blockwise_loss
from .blockwise import fits as fits
from .randomness import random_states as random_states
from .randomness import restore_random_states as restore_random_states
from .reading import numbers as numbers
from .recompute import recomputing as recomputing
from .sharing import computed_once as computed_once
