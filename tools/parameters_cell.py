"""Write the parameters cell of notebook 03 from the fields of ``RunConfig``.

Run ``python tools/parameters_cell.py`` after changing a setting; ``--check`` writes nothing and
fails if the cell is stale.
"""

import json
import re
import sys
from pathlib import Path

from zslkit.config import RunConfig
from zslkit.report.notebook import sections

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "03_train.ipynb"
OWN = (
    'preset: str = "toy"  # starting values: toy, drawings, laptop, noisy, modern or paper',
    'held_out_split: str = "dev"  # split measured after every epoch; None: not measured',
    "live_seconds: int = 2  # between two drawings of the live curves; 0: none",
    "processes: int = 1  # that share each batch, started by torchrun; above 1 no live curves",
)
OUTPUT = '"reports/03_train"'


def as_parameter(name):
    """Word a field as a line that papermill reads: one type, None for the preset's value, help."""
    field = RunConfig.model_fields[name]
    found = re.findall(r"\b(bool|int|float|str)\b", str(field.annotation))
    default = OUTPUT if name == "output_dir" else "None"
    return f"{name}: {found[0] if found else 'str'} = {default}  # {help_of(name)}"


def help_of(name):
    """Give the words of a field; papermill passes over a line with a second equals sign."""
    return RunConfig.model_fields[name].description.replace("=", " equals ").replace("\n", " ")


def cell():
    """Word the whole cell, a comment above each section; a formatter would break long helps."""
    lines = ["# fmt: off", *OWN, as_parameter("output_dir")]
    for section, names in sections().items():
        lines += ["", f"# {section}: None keeps the preset's value"]
        lines += [as_parameter(name) for name in names if name != "output_dir"]
    return "\n".join([*lines, "# fmt: on"])


def main():
    """Write the cell, or with --check say whether it is stale."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    (place,) = (c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", ()))
    if "".join(place["source"]) == cell():
        return
    if "--check" in sys.argv:
        sys.exit(f"{NOTEBOOK.name}: stale parameters; run python tools/parameters_cell.py")
    place["source"] = cell().splitlines(keepends=True)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
