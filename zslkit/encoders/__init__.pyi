"""Towers, one file a kind, and the dual encoder that joins two."""

from . import dual as dual
from . import freezing as freezing
from . import image as image
from . import small_text as small_text
from . import text as text
from .dual import TEXT_TOWERS as TEXT_TOWERS
from .dual import DualEncoder as DualEncoder
from .dual import build_dual_encoder as build_dual_encoder
from .image import IMAGE_LIBRARIES as IMAGE_LIBRARIES
from .image import ImageTower as ImageTower
from .image import ImageTransform as ImageTransform
from .small_text import SmallTextEncoder as SmallTextEncoder
from .small_text import word_buckets as word_buckets
from .text import PACKAGED_TEXT_ENCODERS as PACKAGED_TEXT_ENCODERS
from .text import TextTower as TextTower
