"""What the commands share with the person at the keyboard: errors, exit codes, tables, durations."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import importlib
import os
import pathlib
import re
import sys
import traceback
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from w2v_jax.core import environment


class UserError(Exception):
    """A mistake of the person at the keyboard: shown as one message without a stack trace, exit code 1."""


def imported(path: str, key: str, name: str) -> Any:
    """The object `name` of an importable module. Raises UserError, which names the config's key."""
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not path.startswith(error.name or "?"):
            raise  # the module is there, and one that it needs is not
        raise UserError(
            f"{key}={path!r}: no such module; it must be importable, e.g. from the current folder"
        ) from None
    if not hasattr(module, name):
        raise UserError(f"{key}={path!r}: the module has no {name}")
    return getattr(module, name)


def did_you_mean(wrong: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A hint to append to an error: " Did you mean 'NAME'?", or "" where no known name is near."""
    near = difflib.get_close_matches(wrong, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


def os_error_text(error: OSError) -> str:
    """The reason that the system gives, without the path: "No space left on device"."""
    return error.strerror or str(error)


def cannot_read(what: object, error: OSError) -> UserError:
    """The error to raise where `what`, a path or a flag with its path, cannot be read."""
    return UserError(f"{what}: cannot be read ({os_error_text(error)})")


def cannot_write(what: object, error: OSError) -> UserError:
    """The error to raise where `what`, a path or a flag with its path, cannot be written.

    Raises `error` itself where it is the reader of the output who has gone, which `run_command` knows.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    return UserError(f"{what}: cannot be written ({os_error_text(error)})")


@contextlib.contextmanager
def writing(what: object, *, named: bool = False) -> Iterator[None]:
    """Raises the UserError of `cannot_write` for an OSError inside. named: about the file that the error names."""
    try:
        yield
    except OSError as error:
        raise cannot_write((named and error.filename) or what, error) from None


@contextlib.contextmanager
def needing(text: str, *also: type[Exception]) -> Iterator[None]:
    """Raises UserError with this text where an import inside fails, or with one of `also`: what needs which package.

    The text may hold {error}, which is the reason.
    """
    try:
        yield
    except (ImportError, *also) as error:
        raise UserError(text.format(error=error)) from None


def out_of_memory(error: BaseException) -> str:
    """The first line of the error of a device without enough memory, as JAX raises it; "" for other errors."""
    line = str(error).partition("\n")[0].rstrip(". ")
    return line if "RESOURCE_EXHAUSTED" in line else ""


def run_command(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs a command's `main(argv)` and exits.

    Exit codes: 0 success, 1 a mistake or a full disk, 2 wrong usage, 130 Ctrl-C, 141 when the reader of the output has
    gone. A fault of the code keeps its traceback.
    """
    environment.prepare_libraries()
    try:
        code = main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (AttributeError, KeyError) as error:
        if not (lacking := _missing_key(error)):
            raise
        print(f"error: {lacking}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(f"error: the disk takes no more: {error}. Free some space, then give the same command", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)


def command_parser(name: str, description: str | None, examples: str = "") -> argparse.ArgumentParser:
    """The parser of the arguments of `python -m w2v_jax.NAME`. Description and examples keep their lines."""
    form = argparse.RawDescriptionHelpFormatter
    prog = f"python -m w2v_jax.{name}"
    return argparse.ArgumentParser(prog, description=description, epilog=examples, formatter_class=form)


def _missing_key(error: Exception) -> str:
    """What to say where code has read a key that a config lacks; "" for other errors.

    Training reads all keys while it builds the model, before the first update.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "ml_collections" not in frame.filename]
    if not ours or ours[-1] is frames[-1]:
        return ""
    key, *near = re.findall(r"^\W*(?:Key \W*)?(\w+)|Did you mean \"(\w+)\"", str(error.args[0]))
    hint = "".join(f". Did you mean {name!r}?" for _, name in near)
    return f"the config lacks the key {key[0]!r}, which {ours[-1].filename}:{ours[-1].lineno} reads{hint}"


def one_line(text: str) -> str:
    """The text with tabs, line breaks and whatever else cannot be shown in a line as escapes: \\t, \\n, \\u2028."""
    hidden = lambda sign: unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp")
    return "".join(sign.encode("unicode_escape").decode() if hidden(sign) else sign for sign in text)


def duration(seconds: float) -> str:
    """Seconds for people, in two units: 45 s, 3 min 20 s, 5 h 02 min, 12 d 4 h."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def table(rows: Mapping[str, Any] | Iterable[tuple[str, Any]], title: str = "") -> str:
    """Two aligned columns; a value of several lines keeps its column."""
    pairs = [(str(k), str(v)) for k, v in (rows.items() if isinstance(rows, Mapping) else rows)]
    width = max((len(name) for name, _ in pairs), default=0)
    lines = [title, "-" * len(title)] if title else []
    for name, value in pairs:
        first, *others = value.split("\n")
        lines.append(f"  {name:<{width}}  {first}".rstrip())
        lines += [f"  {'':<{width}}  {other}" for other in others]
    return "\n".join(lines)


def warn(text: str) -> None:
    """A line on stderr for the person at the console."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def some_of(names: Sequence[str], shown: int = 5) -> str:
    """The first names of many: "a, b, c, d, e, ..."."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def count_argument(text: str) -> int:
    """A whole number of at least 0."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 0")
    return int(text)


STEP, STEP_HELP = "N|best|newest", "which checkpoint (default: the best of a recogniser, the newest of others)"


def step_argument(text: str) -> int | str:
    """A checkpoint as a person names it: a number, "best" or "newest"."""
    return text if text in ("best", "newest") else int(text)


def expand_home(path: str | os.PathLike) -> str:
    """A path as text, with the home folder in place of `~` or `~USER` at its start.

    Raises UserError where there is neither such a user nor a file of that name here.
    """
    text = os.fspath(path)
    expanded = os.path.expanduser(text)
    name = pathlib.PurePath(text).parts[0] if expanded.startswith("~") else ""
    if name and not os.path.lexists(name):
        raise UserError(f"{text}: there is no user {name[1:]!r}; for a file or folder of this name here, give ./{text}")
    return expanded


def is_url(text: str) -> bool:
    """Whether a path is the URL of a store, perhaps of a file within a file there (fsspec's chains with ::)."""
    return re.match(r"(?:\w[\w+.-]*::)*\w[\w+.-]*://", text) is not None


def path_argument(text: str | os.PathLike) -> pathlib.Path:
    """A path of this machine as a person names it, with the home folder in place of `~`.

    Raises UserError as `expand_home` does, and for the URL of a store.
    """
    text = expand_home(text)
    if is_url(text):
        raise UserError(f"{text}: a path on this machine is needed here, not a URL; copy what lies there first")
    return pathlib.Path(text)
