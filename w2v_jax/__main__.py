"""All commands under one word: `w2v-jax COMMAND ...` does what `python -m w2v_jax.COMMAND ...` does."""

from __future__ import annotations

import ast
import importlib
import pathlib
from collections.abc import Sequence

from w2v_jax.core.cli import UserError, did_you_mean, run_command

FOLDER = pathlib.Path(__file__).parent


def commands() -> dict[str, str]:
    """{name: what the first line of its docstring says} of the modules beside this one. Imports none of them."""
    files = sorted(path for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    texts = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in files}
    summaries = {name: text.partition("\n")[0].rpartition("`: ")[2].rstrip(".") for name, text in texts.items()}
    return {name: text[:1].lower() + text[1:] for name, text in summaries.items()}


def overview() -> str:
    known = commands()
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {text}" for name, text in known.items()]
    return "\n".join(["usage: w2v-jax COMMAND ...", "", *lines, "", "w2v-jax COMMAND --help explains one of them."])


def main(argv: Sequence[str]) -> int | None:
    if not argv or argv[0] in ("-h", "--help", "--version"):
        from w2v_jax import __version__

        print(__version__ if "--version" in argv else overview())
        return 0 if argv else 2
    name = argv[0]
    if name not in (known := commands()):
        raise UserError(f"there is no command {name!r}.{did_you_mean(name, known)} `w2v-jax --help` lists them")
    return importlib.import_module(f"w2v_jax.{name}").main(argv[1:])


def script() -> None:
    """What the installed program `w2v-jax` calls."""
    run_command(main)


if __name__ == "__main__":
    script()
