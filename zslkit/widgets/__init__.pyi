"""Explore by hand, in a notebook with a kernel."""

from . import embedding_map as embedding_map
from . import explorer as explorer
from . import live as live
from . import microscope as microscope
from . import monitor as monitor
from . import review as review
from .embedding_map import EmbeddingMap as EmbeddingMap
from .explorer import ZeroShotExplorer as ZeroShotExplorer
from .microscope import SoftLabelMicroscope as SoftLabelMicroscope
from .monitor import TrainingMonitor as TrainingMonitor
from .review import CaptionReview as CaptionReview
