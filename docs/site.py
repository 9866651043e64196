"""What the site needs beyond the pages: the command line's help, and links that lead out of docs/. A hook of MkDocs."""

import os
import re
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from hf_dr.cli.launch import COMMANDS
from hf_dr.cli.main import main


def on_files(files: Any, config: Any) -> Any:
    """Adds the page of all commands, each with what its `--help` prints."""
    os.environ["COLUMNS"] = "100"  # of argparse
    parts = ["# Command line", "What `hf-dr COMMAND --help` prints."]
    for name, command in COMMANDS.items():
        printed = StringIO()
        try:
            with redirect_stdout(printed):
                main([name, "--help"])
        except SystemExit:
            pass
        parts += [f"## {name}", command.summary, f"```text\n{printed.getvalue().strip()}\n```"]
    files.append(File.generated(config, "cli.md", content="\n\n".join(parts) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Names files of the repository that the site does not have instead of linking to them."""
    return re.sub(r"\[([^\]]*)\]\(((?:\.\./|notebooks/)[^)]*)\)", _named, markdown)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Refuses a reference of Python without the settings of a training: `docs/documented.py` must have worked."""
    if page.file.src_uri == "api.md" and not re.search(
        r"<code>label_weight</code>.*the label's cross-entropy", html, re.S
    ):
        raise PluginError(
            "The page of Python must explain `label_weight`, found nothing of it. See docs/documented.py."
        )
    return html


def _named(link: re.Match[str]) -> str:
    path = link[2].removeprefix("../")
    return f"`{path}`" if link[1] in path else f"{link[1]} (`{path}`)"
