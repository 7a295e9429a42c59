"""Any public model in, any trained model out."""

from . import cards as cards
from . import loading as loading
from . import pretrained as pretrained
from . import protocol as protocol
from . import saving as saving
from . import texts as texts
from . import towers as towers
from .loading import from_pretrained as from_pretrained
from .loading import load_model as load_model
from .pretrained import PretrainedModel as PretrainedModel
from .protocol import ZeroShotModel as ZeroShotModel
from .protocol import as_model as as_model
from .texts import TextCard as TextCard
from .texts import read_card as read_card
