"""Exact, faster forms of what the method writes out; the written-out form is their reference."""

from . import blockwise as blockwise
from . import reading as reading
from .blockwise import blockwise_loss as blockwise_loss
from .blockwise import fits as fits
from .reading import numbers as numbers
