"""Figures hold what the arrays hold, draw any text, and leave no global state behind."""

import html
import json
import re
import sys

import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from PIL import Image

from zslkit.plots.data import distributions, image_sizes, pair_grid, rivals_curve
from zslkit.plots.evaluation import (
    abstention_curve,
    bar_panels,
    confusion_heatmap,
    hit_bars,
    prediction_grid,
    reliability_diagram,
)
from zslkit.plots.maps import MapPanel, embedding_maps, map_page
from zslkit.plots.training import (
    held_out_curve,
    interval_curves,
    interval_dots,
    learning_curves,
    target_curves,
    target_matrix,
    target_panels,
)

IMAGES = [
    Image.new("RGB", (20, 10), "red"),
    np.zeros((12, 8, 3), dtype=np.uint8),
    torch.zeros(3, 9, 9, dtype=torch.uint8),
]
CAPTIONS = ["$5 or $6 _a^{b", "long " * 40, ""]
HISTORY = [
    {"step": 1, "loss": 2.0, "contrastive_loss": 1.5, "logit_scale": 20.0, "learning_rate": 1e-3},
    {"step": 2, "loss": 1.0, "contrastive_loss": None, "logit_scale": 21.0},
]
TARGETS = [
    {"step": 1, "epoch": 0, "self_mass": 0.2, "target_entropy": 1.9, "target_agreement": 0.9,
     "held-out recall@10": 0.5},
    {"step": 2, "epoch": 1, "self_mass": 0.4, "target_entropy": 1.2, "held-out recall@10": 0.4},
]  # fmt: skip
DOTS = {name: {"value": v, "low": v - 0.1, "high": v + 0.2} for name, v in (("a", 0.3), ("b", 0.5))}
RELIABILITY = {"ece": 0.25, "bins": [{"confidence": 0.3, "accuracy": 0.5, "n": 4}]}
BARS = {
    "a": {"value": 0.2, "low": 0.1, "high": 0.3},
    "b": {"value": 0.4, "low": 0.3, "high": 0.6},
}
ABSTENTION = ([0.25, 1.0], [0.0, 0.5], 0.375)
PREDICTIONS = [[("cat", 0.9, 0.7), ("$dog$", 0.1, 0.3)]] * 3


def draw_all():
    return {
        "pairs": pair_grid(IMAGES, CAPTIONS, columns=2),
        "curves": learning_curves(HISTORY),
        "bars": hit_bars(BARS, chance=0.05),
        "targets": target_matrix(torch.eye(3), CAPTIONS, CAPTIONS),
        "predictions": prediction_grid(IMAGES, PREDICTIONS, ["cat", ("$dog$", "x"), ()]),
        "softness": target_curves(TARGETS, 8),
        "held out": held_out_curve(TARGETS),
        "dots": interval_dots({"0 %": DOTS, "50 %": {"b": DOTS["b"]}}, "recall@10"),
        "confusion": confusion_heatmap([[3, 1], [0, 4]], ["$a$", "b" * 40]),
        "reliability": reliability_diagram(RELIABILITY),
        "abstention": abstention_curve({"$a$": ABSTENTION, "b" * 90: ABSTENTION}),
    }


@pytest.mark.parametrize("name", list(draw_all()))
def test_every_figure_draws_on_white_and_shows_in_a_notebook(name):
    figure = draw_all()[name]
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert figure.get_facecolor() == (1, 1, 1, 1)
    width = figure.get_size_inches()[0]
    assert 5 <= width <= 10


def test_no_global_figures():
    draw_all()
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_captions_are_wrapped_and_dollars_are_text():
    titles = [axes.title.get_text() for axes in pair_grid(IMAGES, CAPTIONS).axes]
    assert titles[0] == r"\$5 or \$6 _a^{b"
    assert titles[1].endswith("…")
    assert titles[1].count("\n") == 2
    assert titles[2] == ""


def test_pair_grid_shows_the_pixels_whatever_their_layout():
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    layouts = [pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels)]
    for axes in pair_grid(layouts, ["a", "b", "c"]).axes:
        assert np.array_equal(axes.images[0].get_array(), pixels)


def test_an_image_without_caption_is_refused():
    with pytest.raises(ValueError, match="zip"):
        pair_grid(IMAGES, ["one"])


def test_learning_curves_draw_what_was_logged():
    loss, scale, rate = learning_curves(HISTORY).axes
    assert [line.get_label() for line in loss.lines] == ["total", "contrastive"]
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert loss.lines[1].get_xydata().tolist() == [[1, 1.5]]
    assert len(scale.lines) == len(rate.lines) == 1
    assert "nats" in loss.get_ylabel()
    assert loss.get_xlabel() == "optimizer step"


def test_hit_bars_are_percentages_with_their_intervals():
    axes = draw_all()["bars"].axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([20, 40])
    error = next(c for c in axes.containers if isinstance(c, ErrorbarContainer))
    ends = [segment[:, 0].tolist() for segment in error.lines[2][0].get_segments()]
    assert ends == [pytest.approx([10, 30]), pytest.approx([30, 60])]
    assert axes.lines[-1].get_xdata() == [5, 5]
    assert axes.get_xlabel() == "hit@1 (%)"
    assert axes.get_xlim()[1] > 60


def test_hit_bars_without_intervals_and_with_no_hit_at_all():
    axes = hit_bars({"a": 0.0}, quantity="recall@10").axes[0]
    assert axes.get_xlabel() == "recall@10 (%)"
    assert axes.get_xlim()[1] > 0
    assert not axes.lines


def test_panels_of_targets_share_one_scale():
    figure = target_panels({"T = 0.1": np.eye(2), "T = 1": np.full((2, 2), 0.5)}, ["a", "$b$"])
    cold, hot, bar = figure.axes
    assert cold.images[0].get_clim() == hot.images[0].get_clim() == (0, 1)
    assert np.array_equal(hot.images[0].get_array(), np.full((2, 2), 0.5))
    assert [label.get_text() for label in hot.get_xticklabels()] == ["a", r"\$b\$"]
    assert hot.get_title() == "T = 1"
    assert bar.get_ylabel() == "target probability"


def test_figures_follow_a_dark_theme_unless_they_hold_photos():
    figures = draw_all()
    for name in ("pairs", "predictions"):
        assert figures[name]._repr_html_() is None
    for name in figures.keys() - {"pairs", "predictions"}:
        page = figures[name]._repr_html_()
        assert '[data-jp-theme-light="false"] img.zslkit-figure' in page
        assert 'src="data:image/png;base64,' in page


def test_target_matrix_keeps_rows_as_images():
    targets = np.arange(6).reshape(2, 3) / 10
    axes, bar = target_matrix(targets).axes
    assert np.array_equal(axes.images[0].get_array(), targets)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("image", "caption")
    assert bar.get_ylabel() == "target probability"


def test_predictions_tick_the_true_class():
    figure = prediction_grid(IMAGES[:1], PREDICTIONS[:1], ["cat"])
    photo, bars = figure.axes
    assert photo.title.get_text() == "cat"
    assert [text.get_text() for text in bars.texts] == ["✓ cat", r"\$dog\$"]
    assert [patch.get_width() for patch in bars.patches] == pytest.approx([70, 30])
    assert bars.patches[0].get_facecolor() != bars.patches[1].get_facecolor()
    plain = prediction_grid(IMAGES[:1], PREDICTIONS[:1]).axes[1]
    assert plain.texts[0].get_text() == "cat"


def test_interval_curves_draw_points_limits_and_a_second_axis():
    points = [{"value": v, "low": v - 0.1, "high": v + 0.2} for v in (0.3, 0.5)]
    figure = interval_curves(
        [0.01, 0.1],
        {"w 0.5": points},
        {"one-hot": {"value": 0.4}},
        [{"value": 1.0}, {"value": 2.0}],
        ("T", "hit@1", "entropy"),
    )
    left, right = figure.axes
    line = left.containers[0].lines[0]
    assert line.get_ydata().tolist() == pytest.approx([30, 50])
    assert left.get_ylabel() == "hit@1 (%)"
    assert [round(y) for y in left.lines[-1].get_ydata()] == [40, 40]
    assert [label.get_text() for label in left.get_xticklabels()] == ["0.01", "0.1"]
    assert list(right.lines[0].get_ydata()) == [1, 2]


def test_an_interval_over_two_seeds_is_not_drawn():
    points = [{"value": 0.3, "low": 0.1, "high": 0.5, "n": n} for n in (2, 3)]
    for n, point in enumerate(points):
        dots = interval_dots({"": {"a": point}}, "hit@1").axes[0].containers[0]
        curve = interval_curves([1], {"a": [point]}, {}, [{"value": 1}], ("T", "y", "z"))
        assert dots.has_xerr == curve.axes[0].containers[0].has_yerr == bool(n)


def test_target_curves_stand_between_their_limits():
    mass, entropy, agreement = target_curves(TARGETS, 8).axes
    assert mass.lines[0].get_xydata().tolist() == [[1, 0.2], [2, 0.4]]
    assert [line.get_ydata()[0] for line in mass.lines[1:]] == [1, 1 / 8]
    assert [line.get_ydata()[0] for line in entropy.lines[1:]] == [0, pytest.approx(np.log(8))]
    assert agreement.lines[0].get_xydata().tolist() == [[1, 0.9]]
    bare = target_curves(HISTORY, 8)  # plain InfoNCE logs no targets
    assert [len(axes.lines) for axes in bare.axes] == [2, 2, 1]


def test_held_out_curve_names_its_best_epoch():
    axes = held_out_curve(TARGETS).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[1, 50], [2, 40]]
    assert [(text.get_text(), tuple(text.xy)) for text in axes.texts] == [("50.0", (1, 50))]
    assert held_out_curve(HISTORY) is None


def test_dots_of_one_name_stand_in_its_row():
    axes = draw_all()["dots"].axes[0]
    first, second = (container.lines[0].get_xydata() for container in axes.containers)
    assert first[:, 0].tolist() == pytest.approx([30, 50])
    assert second[0, 0] == pytest.approx(50)
    assert round(second[0, 1]) == round(first[1, 1]) == 1
    assert axes.get_xlabel() == "recall@10 (%)"
    differences = interval_dots({"": DOTS}, "difference", zero=True).axes[0]
    assert differences.get_xlabel() == "difference (points)"
    assert any(list(line.get_xdata()) == [0, 0] for line in differences.lines)


def test_what_is_no_fraction_is_drawn_in_its_own_unit():
    axes = interval_dots({"": DOTS}, "training time", unit="s").axes[0]
    assert axes.containers[0].lines[0].get_xdata().tolist() == pytest.approx([0.3, 0.5])
    assert axes.get_xlabel() == "training time (s)"
    axes = interval_dots({"": DOTS}, "training time", zero=True, unit="s").axes[0]
    assert axes.get_xlabel() == "training time (s)"
    points = [{"value": v, "low": v - 1, "high": v + 1} for v in (30.0, 50.0)]
    left, _ = interval_curves(
        [0.01, 0.1],
        {"w": points},
        {"one-hot": {"value": 40.0, "low": 39.0, "high": 41.0}},
        [{"value": v, "low": v, "high": v} for v in (1.0, 2.0)],
        ("T", "gap", "entropy"),
        unit="",
    ).axes
    assert left.containers[0].lines[0].get_ydata().tolist() == [30, 50]
    assert 40 in [line.get_ydata()[0] for line in left.lines]
    assert left.get_ylabel() == "gap"


def test_confusion_shows_the_classes_with_most_errors_in_percent():
    matrix = np.diag([4, 4, 4])
    matrix[0, 2] = 4
    axes = confusion_heatmap(matrix, ["a", "b", "c"], n_shown=2).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "c"]
    assert [text.get_text() for text in axes.texts] == ["50", "50", "0", "100"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "class ranked first")


def test_reliability_diagram_draws_accuracy_over_confidence():
    axes, counts = reliability_diagram(RELIABILITY).axes
    assert axes.lines[1].get_xydata().tolist() == [[30, 50]]
    assert "25.0 points" in axes.lines[1].get_label()
    assert [bar.get_height() for bar in counts.patches] == [4]


def test_abstention_curves_are_percentages_and_name_their_area():
    axes = draw_all()["abstention"].axes[0]
    first, second = axes.lines
    assert first.get_xydata().tolist() == [[25, 0], [100, 50]]
    assert first.get_drawstyle() == "steps-pre"
    assert first.get_label() == r"\$a\$, area 0.375"
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("images answered (%)", "wrong among them (%)")


# maps

NAMES = ["cat", "$dog$", "<img src=x onerror=alert(1)>", "_ & \"q\" 'r'"]
TRUTHS = [NAMES[i % 4] for i in range(12)]


def map_panels():
    rng = np.random.default_rng(0)
    return [
        MapPanel(title, rng.normal(size=(12, 2)), rng.normal(size=(4, 2)), TRUTHS[::-1])
        for title in ("before", "after")
    ]


def test_bar_panels_share_their_labels():
    figure = bar_panels(["$a$", "b"], {"size (MB)": [0.5, 2.0], "speed (1/s)": [1234.5, 0]})
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [0.5, 2.0]
    assert [text.get_text() for text in right.texts] == ["1,234", "0"]
    assert [text.get_text() for text in left.get_yticklabels()] == [r"\$a\$", "b"]
    assert (left.get_xlabel(), right.get_xlabel()) == ("size (MB)", "speed (1/s)")
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_embedding_maps_colour_some_classes_and_grey_the_rest():
    panels = map_panels()
    figure = embedding_maps(panels, TRUTHS, NAMES, NAMES[:2])
    for axes, panel in zip(figure.axes, panels, strict=True):
        assert axes.get_title() == panel.title
        rest, rest_prompts, cats, cat_prompt = axes.collections[:4]
        assert np.array_equal(cats.get_offsets(), panel.images[0::4])
        assert np.array_equal(cat_prompt.get_offsets(), panel.prompts[:1])
        others = [place for place in range(12) if place % 4 > 1]
        assert np.array_equal(rest.get_offsets(), panel.images[others])
        assert len(rest_prompts.get_offsets()) == 2
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["other classes", "cat", r"\$dog\$", "class prompt"]
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_a_map_of_classes_that_all_have_a_colour_has_no_rest():
    figure = embedding_maps(map_panels()[:1], TRUTHS, NAMES, NAMES)
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "other classes" not in words


def test_classes_in_colour_are_known_and_few():
    with pytest.raises(ValueError, match="class 'cow' is not among the 4 of the set"):
        embedding_maps(map_panels(), TRUTHS, NAMES, ["cow"])
    many = [str(number) for number in range(8)]
    with pytest.raises(ValueError, match="8 classes in colour are more than 7"):
        embedding_maps(map_panels(), TRUTHS, many, many)


def test_a_map_page_holds_everything_and_loads_nothing(tmp_path):
    thumbnails = [f"data:image/jpeg;base64,{number:04}" for number in range(12)]
    page = map_page(map_panels(), TRUTHS, NAMES, NAMES[:2], thumbnails)
    assert all(thumbnail in page.html for thumbnail in thumbnails)
    assert not re.search(r"<(script|link|img)[^>]*\s(src|href)=[\"']?(https?:)?//", page.html)
    assert "<img src=x" not in page.html  # a class name is data, not markup
    frame = page._repr_html_()
    assert frame.count("<") == 2  # the frame opens and closes; all else is quoted
    assert html.unescape(frame.partition('srcdoc="')[2].removesuffix('"></iframe>')) == page.html
    assert len(repr(page)) < 100
    assert page.write(tmp_path / "new" / "map.html").read_text("utf-8") == page.html


def test_a_map_page_draws_grey_below_colour():
    thumbnails = [str(number) for number in range(12)]
    page = map_page(map_panels(), TRUTHS, NAMES, NAMES[:1], thumbnails)
    found = re.search(r'\["thumbnail",(\[.*?\])\]', page.html)
    assert [int(number) % 4 == 0 for number in json.loads(found[1])] == [False] * 9 + [True] * 3


SAMPLES = {"own": np.array([0.1, 0.1, 0.5, 0.9]), "others": np.linspace(-1, 1, 50)}
RIVALS = {8: {"value": 0.7, "low": 0.5, "high": 1.0}, 64: {"value": 6.3, "low": 4.5, "high": 9.0}}


@pytest.mark.parametrize(
    "draw",
    [
        lambda: distributions(SAMPLES, "cosine similarity"),
        lambda: image_sizes([(64, 48), (64, 48), (30, 60)]),
        lambda: rivals_curve(RIVALS, 64),
    ],
)
def test_figures_of_a_data_set_are_white_and_register_nowhere(draw):
    figure = draw()
    assert figure._repr_png_()[:4] == b"\x89PNG"
    assert figure.get_facecolor() == (1, 1, 1, 1)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def areas(axes):
    """Area under each step histogram, from the corners of its outline."""
    for outline in axes.collections:
        x, y = outline.get_paths()[0].vertices.T
        yield abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))) / 2


def test_distributions_have_an_area_of_one_each_whatever_their_size():
    axes = distributions(SAMPLES, "cosine similarity").axes[0]
    assert list(areas(axes)) == pytest.approx([1, 1])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("cosine similarity", "density")
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["own (n = 4)", "others (n = 50)"]


def test_whole_numbers_get_a_bar_each_in_percent():
    axes = distributions({"train": [3, 3, 3, 5]}, "words", whole=True).axes[0]
    assert list(areas(axes)) == pytest.approx([100])  # bars are one wide
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(75)
    assert axes.get_ylabel() == "share (%)"


def test_image_sizes_are_dots_by_number():
    axes = image_sizes([(64, 48), (64, 48), (30, 60)]).axes[0]
    dots = axes.collections[0]
    assert dots.get_offsets().tolist() == [[30, 60], [64, 48]]
    small, large = dots.get_sizes()
    assert small < large
    assert axes.get_title() == "most frequent: 64 × 48, 2 of 3 images"
    assert axes.get_xlim() == axes.get_ylim()


def test_rivals_are_drawn_with_intervals_and_the_configured_batch():
    axes = rivals_curve(RIVALS, 64).axes[0]
    line = axes.containers[0].lines[0]
    assert line.get_xydata().tolist() == [[8, 0.7], [64, 6.3]]
    ends = [segment[:, 1].tolist() for segment in axes.containers[0].lines[2][0].get_segments()]
    assert ends == [pytest.approx([0.5, 1.0]), pytest.approx([4.5, 9.0])]
    assert axes.get_yscale() == "log"
    assert "configured batch, 64" in [line.get_label() for line in axes.lines]
    nothing = {8: dict.fromkeys(("value", "low", "high"), 0.0)}
    assert rivals_curve(nothing, 8).axes[0].get_yscale() == "linear"


def test_more_curves_than_styles_are_refused_not_dropped():
    many = {str(number): DOTS for number in range(8)}
    with pytest.raises(ValueError, match="8 curves are more than 7 styles"):
        interval_dots(many, "recall@10")
