"""Arrays and tables in, figures out; nothing of ours is imported."""

from . import data as data
from . import evaluation as evaluation
from . import maps as maps
from . import style as style
from . import training as training
from .data import distributions as distributions
from .data import image_sizes as image_sizes
from .data import pair_grid as pair_grid
from .data import rivals_curve as rivals_curve
from .evaluation import abstention_curve as abstention_curve
from .evaluation import bar_panels as bar_panels
from .evaluation import confusion_heatmap as confusion_heatmap
from .evaluation import hit_bars as hit_bars
from .evaluation import prediction_grid as prediction_grid
from .evaluation import reliability_diagram as reliability_diagram
from .maps import MapPanel as MapPanel
from .maps import Page as Page
from .maps import embedding_maps as embedding_maps
from .maps import map_page as map_page
from .style import (
    BLUE as BLUE,
)
from .style import (
    CLASS_STYLES as CLASS_STYLES,
)
from .style import (
    GREEN as GREEN,
)
from .style import (
    ORANGE as ORANGE,
)
from .style import (
    PALE_GREEN as PALE_GREEN,
)
from .style import (
    PALE_GREY as PALE_GREY,
)
from .style import (
    NotebookFigure as NotebookFigure,
)
from .training import held_out_curve as held_out_curve
from .training import interval_curves as interval_curves
from .training import interval_dots as interval_dots
from .training import learning_curves as learning_curves
from .training import target_curves as target_curves
from .training import target_matrix as target_matrix
from .training import target_panels as target_panels
