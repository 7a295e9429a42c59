"""The commands ``data suspects`` and ``data decide``: a review of captions without a notebook."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Optional

import typer
from typer.core import TyperCommand

Text, Folder = Optional[str], Optional[Path]  # noqa: UP045


def add_to(app: typer.Typer, kind: type[TyperCommand]) -> None:
    """Register the commands of this module, as commands of one kind."""
    app.command("suspects", cls=kind)(suspects)
    app.command("decide", cls=kind)(decide)


def suspects(
    run_dir: Annotated[str, typer.Argument(help="Folder of a run.")],
    share: Annotated[float, typer.Option(help="Of all captions, that are listed.")] = 0.1,
    output: Annotated[Folder, typer.Option(help="Write all as CSV, to be filled in.")] = None,
    data_root: Annotated[Text, typer.Option(help="Folder of the pairs, if it has moved.")] = None,
    n: Annotated[int, typer.Option(help="Suspects to print.", min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, all of them.")] = False,
) -> None:
    """Rank the training captions of a run by how probably they are wrong."""
    from zslkit.data.files import whole
    from zslkit.evaluation.suspects import find_suspects
    from zslkit.zeroshot.models.loading import open_run

    run = open_run(run_dir)
    if data_root is not None:
        run.config = run.config.model_copy(update={"data_root": data_root})
    table = find_suspects(run, share)
    if output is not None:
        with whole(output) as temporary:
            table.to_csv(temporary, index=False)
    if as_json:
        typer.echo(json.dumps(table.to_dict("records"), indent=2, ensure_ascii=False))
        return
    for row in table[:n].to_dict("records"):
        typer.echo(f"{row['rank']:>4}  {row['image']}: {row['caption']}\n      {row['reason']}")
    where = "" if output is None else f", all in {output}"
    typer.echo(f"{min(n, len(table))} of {len(table)} suspects shown{where}")


def decide(
    file: Annotated[Path, typer.Argument(help="Overlay of decisions, made if need be.")],
    table: Annotated[Folder, typer.Option(help="CSV of suspects, decision filled in.")] = None,
    image: Annotated[Text, typer.Option(help="Instead of a table: key of an image.")] = None,
    caption: Annotated[Text, typer.Option(help="Its caption, as the data have it.")] = None,
    action: Annotated[Text, typer.Option(help="keep, drop, swap or edit.")] = None,
    text: Annotated[Text, typer.Option(help="The other words, for edit.")] = None,
    with_image: Annotated[Text, typer.Option(help="For swap: key of the other image.")] = None,
    with_caption: Annotated[Text, typer.Option(help="For swap: its caption.")] = None,
) -> None:
    """Write decisions on captions to a file that ``review=FILE`` makes a training read."""
    from pydantic import ValidationError

    from zslkit.data.review import Decision, add_decisions, decisions_of_table
    from zslkit.data.strict import explain

    single = {"image": image, "caption": caption, "action": action, "text": text,
              "with_image": with_image, "with_caption": with_caption}  # fmt: skip
    given = {name: value for name, value in single.items() if value is not None}
    if (table is None) == (not given):
        raise ValueError("give --table, or --image, --caption and --action")
    if table is not None:
        new = decisions_of_table(table)
    elif missing := [name for name in ("image", "caption", "action") if name not in given]:
        raise ValueError(f"a single decision also needs --{' and --'.join(missing)}")
    else:
        try:
            new = [Decision(**given)]
        except ValidationError as error:
            raise ValueError(explain(error)) from None
    held = add_decisions(file, new)
    counts = Counter(one.action for one in held)
    words = ", ".join(f"{n} {name}" for name, n in counts.items()) or "no decision"
    typer.echo(f"{file}: {len(new)} new; holds {words}")
