"""Draw docs/run.svg: what `slipway run` prints, from the verdict of a real run (its file is the argument)."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

from pydantic import TypeAdapter
from rich.console import Console

from flows.command.display import print_verdict
from tasks.core.artifacts import Verdict

if __name__ == "__main__":
    verdict = TypeAdapter(Verdict).validate_python(json.loads(Path(sys.argv[1]).read_text()))
    console = Console(record=True, width=118, file=io.StringIO(), force_terminal=True)
    console.print("$ slipway run configs/digits", style="bold")
    print_verdict(console, verdict)
    svg = console.export_svg(title="slipway")
    # Without fonts from elsewhere: the picture shows offline, and tells nobody that it is looked at.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")
    (Path(__file__).parent / "run.svg").write_text(svg)
