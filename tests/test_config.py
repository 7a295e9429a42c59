import re

import pytest
import torch
from pydantic import ValidationError

from zslkit.checkpoint import build_teacher
from zslkit.config import (
    PRESETS,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimisationSettings,
    RunConfig,
    RunSettings,
)
from zslkit.data.files import project_root
from zslkit.objective import soft_targets
from zslkit.report.notebook import read_count, read_parameters
from zslkit.training.device import autocast
from zslkit.training.optim import learning_rate_at


def test_defaults_are_the_toy_preset():
    assert RunConfig() == RunConfig.preset("toy")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_and_can_be_changed(name):
    assert RunConfig.preset(name, epochs=3).epochs == 3


def test_every_field_is_explained():
    assert [n for n, field in RunConfig.model_fields.items() if not field.description] == []


def test_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().epochs = 3


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ({"epochs": "32"}, {"epochs": 32}),
        ({"epochs": 1e1}, {"epochs": 10}),
        ({"learn_logit_scale": "false"}, {"learn_logit_scale": False}),
        ({"zeroshot_manifest": "none"}, {"zeroshot_manifest": None}),
        ({"prompt_templates": '["a {}", "one {}"]'}, {"prompt_templates": ("a {}", "one {}")}),
        ({"learning_rate": "1e-3"}, {"learning_rate": 1e-3}),
    ],
)
def test_understands_what_papermill_and_shells_pass(text, meaning):
    config = RunConfig.from_parameters(text)
    assert {name: getattr(config, name) for name in meaning} == meaning


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epocs": 3}, "epocs=3: no such parameter; did you mean epochs"),
        ({"epochs": 0}, "epochs=0: Input should be greater than or equal to 1"),
        ({"epochs": 1.5}, "epochs=1.5: .*valid integer"),
        ({"epochs": True}, "epochs=True: must be .*not true or false"),
        ({"resume": "perhaps"}, "resume='perhaps': .*valid boolean"),
        ({"prompt_templates": "[a {}"}, "must be a list such as"),
        ({"preset": "lapto"}, "preset='lapto': no such preset; did you mean laptop"),
        ({"prompt_templates": "clip8"}, "prompt_templates='clip8': .* did you mean clip80"),
        ({"prompt_templates": ["a dog"]}, "without .. or .description.: \\[.a dog"),
        ({"image_tower": "last_blocks=x"}, "image_tower='last_blocks=x' must be train, frozen"),
        ({"text_tower": "last_blocks=0"}, "text_tower='last_blocks=0' must be train, frozen"),
        ({"batch_size": 10, "accumulation": 4}, "accumulation=4 must divide batch_size=10"),
        ({"teacher": "frozen"}, "needs teacher_run"),
        ({"logit_scale": 50, "max_logit_scale": 20}, "logit_scale=50.0 is above max_logit_scale"),
        ({"soft_targets": "teachers"}, "soft_targets='teachers': no kind .* did you mean teacher"),
        ({"contrastive_loss": "sigmoidal"}, "='sigmoidal': no contrastive .* did you mean sigmoid"),
        ({"caption_noise_kind": "all"}, "caption_noise_kind='all': Input should be 'image', 'cap"),
        ({"fit": "pls"}, "fit='pls': Input should be 'gradient', 'ridge' or 'cca'"),
        ({"caption_noise": 1.5}, "caption_noise=1.5: .*less than or equal to 1"),
    ],
)
def test_bad_values_are_named_with_what_is_right(parameters, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_parameters(parameters)


def test_none_keeps_the_value_of_the_preset():
    changed = RunConfig.from_parameters({"preset": "laptop", "epochs": None, "seed": 3})
    assert changed == RunConfig.preset("laptop", seed=3)


PARAMETERS = 'preset: str = "toy"  # values\nepochs: int = None  # passes'
READ = "config = RunConfig.from_parameters(read_parameters(In))"


def test_reads_defaults_and_what_papermill_injects_below():
    cells = ["", PARAMETERS, "# Parameters\nepochs = 32\n", READ]
    assert read_parameters(cells) == {"preset": "toy", "epochs": 32}


def test_sees_a_misspelt_parameter_that_papermill_lets_through():
    cells = ["", PARAMETERS, "# Parameters\nepocs = 32\n", READ]
    with pytest.raises(ValueError, match="did you mean epochs"):
        RunConfig.from_parameters(read_parameters(cells))


def test_a_rerun_after_other_cells_takes_changed_parameters_only():
    cells = ["", PARAMETERS, READ, "k = 5\n", "%matplotlib inline", "epochs = 3", "x = f(2)", READ]
    assert read_parameters(cells) == {"preset": "toy", "epochs": 3}


def test_a_parameter_that_is_no_literal_is_refused():
    with pytest.raises(ValueError, match="epochs=2 \\* n: a parameter must be a literal"):
        read_parameters([PARAMETERS, "epochs = 2 * n", READ])


def test_project_root_is_the_folder_with_the_manifests(tmp_path):
    (tmp_path / "data_manifests").mkdir()
    inner = tmp_path / "notebooks" / "deep"
    inner.mkdir(parents=True)
    assert project_root(inner) == tmp_path.resolve()


@pytest.mark.parametrize("value", [0, 1.0, "3", True, None])
def test_whole_numbers_are_asked_for(value):
    with pytest.raises(ValueError, match="n=.*: must be a whole number of at least 1"):
        read_count({"n": value}, "n")


def test_whole_numbers_have_bounds():
    assert read_count({"n": 3}, "n", 0, 4) == 3
    with pytest.raises(ValueError, match="n=4: must be a whole number from 0 to 3"):
        read_count({"n": 4}, "n", 0, 4)


SECTIONS = (DataSettings, ModelSettings, ObjectiveSettings, OptimisationSettings, RunSettings)


def test_a_configuration_is_its_sections_in_their_order():
    """Flat for its users: the command line, papermill and files list the fields in this order."""
    of_sections = [name for section in SECTIONS for name in section.model_fields]
    assert list(RunConfig.model_fields) == of_sections
    assert len(set(of_sections)) == len(of_sections)
    assert RunConfig.__annotations__ == {}  # no setting stands outside a section


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_says_what_a_configuration_says(section):
    assert isinstance(RunConfig(), section)
    assert section().model_dump() == RunConfig().model_dump(include=set(section.model_fields))
    with pytest.raises(ValidationError, match="no such key"):
        section(nothing=1)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (DataSettings, {"prompt_templates": "clip8"}, "did you mean clip80"),
        (ModelSettings, {"text_tower": "last_blocks=0"}, "text_tower='last_blocks=0' must be"),
        (ObjectiveSettings, {"teacher": "frozen"}, "needs teacher_run"),
        (OptimisationSettings, {"batch_size": 10, "accumulation": 4}, "accumulation=4 must divide"),
        (RunSettings, {"seed": True}, "must be .*not true or false"),
    ],
)
def test_a_section_checks_itself(section, values, message):
    with pytest.raises(ValidationError, match=message):
        section(**values)


def test_functions_of_one_section_take_it_alone():
    """The section is what they read: nothing else of a configuration is asked for."""
    assert learning_rate_at(0, 10, OptimisationSettings(warmup_steps=0)) == 1e-2
    smooth = ObjectiveSettings(soft_targets="label_smoothing", label_smoothing=0.3)
    targets, _ = soft_targets(2, 4, None, smooth, 0.0)
    assert targets.diag().tolist() == pytest.approx([0.7, 0.7])
    assert build_teacher(torch.nn.Linear(1, 1), smooth) is None
    assert not autocast(OptimisationSettings(precision="float32"), torch.device("cpu"))._enabled


def test_other_pairs_do_not_take_the_presets_labelled_images_for_granted():
    assert RunConfig.preset("laptop").zeroshot_manifest == "caltech20"
    assert RunConfig.preset("laptop", manifest="flickr8k").zeroshot_manifest == "caltech20"
    assert RunConfig.preset("laptop", manifest="my.csv").zeroshot_manifest is None
    named = {"manifest": "my.csv", "zeroshot_manifest": "cifar10"}
    assert RunConfig.preset("laptop", **named).zeroshot_manifest == "cifar10"


def test_sources_have_options_of_their_own():
    config = RunConfig(manifest="a.csv", data_root="here", split_shares='{"train": 1.0}')
    assert config.source["split_shares"] == {"train": 1.0}
    assert (config.source["data_root"], config.zeroshot_source["data_root"]) == ("here", "here")
    moved = RunConfig(**{**config.model_dump(), "zeroshot_data_root": "there"})
    assert moved.zeroshot_source == {"data_root": "there", "max_unreadable": 0.05}
    assert moved.source == config.source


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet5", "image_encoder='resnet5': no such timm encoder; did you mean resnet50"),
        ("torchvision:resnet5", "no such torchvision encoder; did you mean resnet50"),
        ("tim:resnet50", "image_encoder='tim:resnet50': must start with torchvision: or timm:"),
    ],
)
def test_an_unknown_image_encoder_is_refused_with_the_settings(name, message):
    """Once it was found out after the pairs had been opened, cut and shown."""
    for base in (None, RunConfig()):
        with pytest.raises(ValueError, match=re.escape(message)):
            RunConfig.from_parameters({"image_encoder": name}, base=base)
