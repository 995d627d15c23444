"""
Runs code that a model wrote, in a process with limits: the metric of the task `code`.

This keeps accidents away, and is no wall against malice: run it in a container if you do not trust the model.
"""

import os
import resource
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path


SECONDS, MEGABYTES = 10, 1024
# the function replaces that of its module, whose names it may use
PROGRAM = """
import doctest, importlib

module = importlib.import_module({module!r})
names = dict(vars(module))
exec(compile({code!r}, "completion", "exec"), names)
examples = doctest.DocTestParser().get_doctest({docstring!r}, names, {name!r}, None, None)
failed, tried = doctest.DocTestRunner(verbose=False).run(examples, out=lambda text: None)
print({word!r} if tried and not failed else "")  # code that ends early does not come here
"""


def _limit() -> None:
    """Limit what the process may take; called in it, before it begins."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)


def passes(doc: dict[str, str], body: str) -> bool:
    """
    Say whether a function with this body passes its doctests.

    Args:
        doc (`dict[str, str]`):
            An item of the task: `module`, `name`, `prompt` and `docstring`.
        body (`str`):
            What follows the prompt.

    Returns:
        `bool`: `False` too if it takes too long, or too much memory.
    """
    word = secrets.token_hex()
    program = PROGRAM.format(
        module=doc["module"], code=doc["prompt"] + body, docstring=doc["docstring"], name=doc["name"], word=word
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.py"
        path.write_text(program, encoding="utf-8")
        try:
            result = subprocess.run(
                [sys.executable, "-I", str(path)],
                cwd=folder,
                env={"PATH": os.defpath, "HOME": folder},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=3 * SECONDS,
                preexec_fn=_limit,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            return False
    return result.returncode == 0 and result.stdout.splitlines()[-1:] == [word.encode()]


def cut(completion: str) -> str:
    """
    Cut a completion where the function ends.

    Args:
        completion (`str`):
            What the model wrote after the docstring.

    Returns:
        `str`: up to the first line that is not indented.
    """
    lines = completion.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if number and line.strip() and not line[0].isspace():
            return "".join(lines[:number])
    return completion


def process_results(doc: dict[str, str], results: list[str]) -> dict[str, float]:
    """
    Give the metric of an item; the harness calls this.

    Args:
        doc (`dict[str, str]`):
            The item.
        results (`list[str]`):
            One completion.

    Returns:
        `dict[str, float]`: `pass@1`, 1 or 0.
    """
    return {"pass@1": float(passes(doc, cut(results[0])))}
