"""The commands ``predict`` and ``export``; ``add_to`` puts them on a command line."""

from pathlib import Path
from typing import Annotated, Optional

import typer
from typer.core import TyperCommand

Text, Texts, Folder = Optional[str], Optional[list[str]], Optional[Path]  # noqa: UP045
Model = Annotated[
    str,
    typer.Argument(help="Folder of a run or of an exported model, open_clip:MODEL/WEIGHTS, "
                        "hf:NAME_OR_FOLDER or zslkit:NAME."),
]  # fmt: skip


def add_to(app: typer.Typer, kind: type[TyperCommand]) -> None:
    """Register the commands of this module, as commands of one kind."""
    for command in (predict, export):
        app.command(cls=kind)(command)


def predict(
    model: Model,
    images: Annotated[
        list[str], typer.Argument(help="Image files, folders, patterns, CSV files or .tar shards.")
    ],
    classes: Annotated[Text, typer.Option(help="Class names, separated by commas.")] = None,
    class_file: Annotated[Folder, typer.Option(help="Class names, one per line.")] = None,
    label_space: Annotated[
        Text, typer.Option(help="Name or file of a label space, such as imagenet1k.")
    ] = None,
    templates: Annotated[
        Texts, typer.Option(help="Set of prompts, or texts with {}; may be given again.")
    ] = None,
    k: Annotated[int, typer.Option(help="Classes to show for each image.", min=1)] = 5,
    threshold: Annotated[
        float, typer.Option(help="Leave images unnamed whose best class is less probable.")
    ] = 0.0,
    output: Annotated[
        Folder, typer.Option(help="Write .csv, .parquet, .jsonl or .json instead of printing.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images embedded at once.", min=1)] = 64,
    workers: Annotated[int, typer.Option(help="Threads that read images.", min=1)] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Name what images show, among the given classes or those the model was saved with."""
    from zslkit.training.device import choose_device
    from zslkit.zeroshot.classifier import ZeroShotClassifier
    from zslkit.zeroshot.models.files import predict_files
    from zslkit.zeroshot.models.loading import load_model

    names = class_names(classes, class_file, label_space)
    found = load_model(model).to(choose_device(device))
    prompts = templates[0] if templates and len(templates) == 1 and "{" not in templates[0] \
        else templates  # fmt: skip
    classifier = ZeroShotClassifier(found, names, prompts, threshold)
    show = _print_ranked if output is None else None
    try:
        named = predict_files(classifier, images, output, k, batch_size, workers, show)
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error)) from error
    if output is not None:
        below = f", {named.n_unnamed} below the threshold" if threshold else ""
        typer.echo(f"{output}: {named.n_images} images{below}, {len(named.broken)} unreadable")
    for message in named.broken[:20]:
        typer.echo(f"unreadable: {message}", err=True)
    if named.broken and not named.n_images:
        raise ValueError("no image could be read")


def _print_ranked(name: str, ranked: list) -> None:
    typer.echo(name)
    if not ranked:
        typer.echo("  below the threshold")
    for class_name, similarity, probability in ranked:
        typer.echo(f"  {probability:6.1%}  {similarity:+.3f}  {class_name}")


def class_names(
    classes: str | None, class_file: Path | None, label_space: str | None
) -> list[str] | None:
    """Read class names from one of three places; None where none is given."""
    places = {"--classes": classes, "--class-file": class_file, "--label-space": label_space}
    given = [name for name, value in places.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: give one of them")
    if label_space is not None:
        from zslkit.zeroshot.label_spaces import load_label_space

        return list(dict.fromkeys(load_label_space(label_space).class_names))
    if class_file is not None:
        lines = class_file.read_text("utf-8").splitlines()
    elif classes is not None:
        lines = classes.split(",")
    else:
        return None
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise ValueError(f"{given[0]}: holds no class name")
    return names


def export(
    model: Model,
    folder: Annotated[
        Path, typer.Argument(help="Folder to write: new, empty or of an earlier export.")
    ],
    format: Annotated[
        str, typer.Option(help="zslkit, transformers, sentence-transformers, open_clip or onnx.")
    ] = "zslkit",
    photos: Annotated[
        Texts,
        typer.Option(help="Photos to prove it on, as predict takes them; else the run's own."),
    ] = None,
    classes: Annotated[Text, typer.Option(help="Class names to store, with commas.")] = None,
    class_file: Annotated[Folder, typer.Option(help="Class names, one per line.")] = None,
    label_space: Annotated[Text, typer.Option(help="Name or file of a label space.")] = None,
    n_photos: Annotated[int, typer.Option(help="Photos to compare on.", min=1)] = 50,
    weights: Annotated[
        str, typer.Option(help="Of a run: student, teacher, or auto, what its dev split prefers.")
    ] = "auto",
    push: Annotated[Text, typer.Option(help="Also upload to the hub as ACCOUNT/MODEL.")] = None,
) -> None:
    """Write a model for other tools, and prove on photos that it is still the same one."""
    from zslkit.checkpoint import Run
    from zslkit.evaluation.weights import model_of, prefer_weights
    from zslkit.report.cards import read_run
    from zslkit.zeroshot.models.export import export_model
    from zslkit.zeroshot.models.loading import open_model, settings_of

    names = class_names(classes, class_file, label_space)
    found = open_model(model)
    network = found
    if isinstance(found, Run):
        if weights == "auto":
            weights, words = prefer_weights(found)[:2]
            typer.echo(words)
        network = model_of(found, weights)
    facts = read_run(found.run_dir) if isinstance(found, Run) else None
    config = settings_of(network)
    images = _photos(config, photos, n_photos)
    names = names or _own_classes(config) or ["a person", "an animal", "a thing", "a place"]
    templates = config.prompt_templates
    parity = export_model(network, folder, format, images, names, templates, facts)
    if push is not None:
        address = network.push_to_hub(push, run=facts)
        typer.echo(address)
    typer.echo(
        f"{folder}: {format}; on {parity.n_photos} photos and {len(names)} classes images deviate "
        f"by at most {parity.image_deviation:.2g}, texts by {parity.text_deviation:.2g}, "
        f"{parity.n_equal} of {parity.n_photos} rankings are equal"
    )


def _photos(config, given: list[str] | None, n: int) -> list:
    """Read the photos of a comparison: those given, else labelled or paired ones of the run."""
    from itertools import islice

    from zslkit.data.images import decode_image, to_pil
    from zslkit.data.named import held_out_pairs
    from zslkit.zeroshot.models.files import image_sources

    if given:
        found = islice(image_sources(given), n)
        return [to_pil(decode_image(read(), f"{name}: ")) for name, read in found]
    try:
        pairs = held_out_pairs(config, max_images=n)
    except (OSError, ValueError) as error:
        raise ValueError(f"--photos: give some to prove the export on ({error})") from error
    return [pair.image for pair in pairs]


def _own_classes(config) -> list[str]:
    from zslkit.data.named import labelled_images

    if config.zeroshot_manifest is None:
        return []
    return list(dict.fromkeys(labelled_images(config, several=True).class_names))
