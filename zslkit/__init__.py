"""Data-efficient zero-shot image recognition with soft-label self-distillation.

``import zslkit`` is cheap: families and the names of ``__init__.pyi`` are imported when first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
