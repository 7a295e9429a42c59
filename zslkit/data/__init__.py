"""Manifest → pairs → batches: what a data set is, and reading it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
