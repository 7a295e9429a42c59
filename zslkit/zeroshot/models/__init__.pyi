"""Any public model in, any trained model out."""

from . import cards as cards
from . import commands as commands
from . import export as export
from . import files as files
from . import loading as loading
from . import open_clips as open_clips
from . import parts as parts
from . import pretrained as pretrained
from . import protocol as protocol
from . import restoring as restoring
from . import saving as saving
from . import stock as stock
from . import teacher as teacher
from . import texts as texts
from . import towers as towers
from .export import Parity as Parity
from .export import export_model as export_model
from .files import predict_files as predict_files
from .loading import load_model as load_model
from .pretrained import PretrainedModel as PretrainedModel
from .protocol import ZeroShotModel as ZeroShotModel
from .protocol import as_model as as_model
from .restoring import from_pretrained as from_pretrained
from .teacher import FixedTeacher as FixedTeacher
from .texts import TextCard as TextCard
from .texts import read_card as read_card
