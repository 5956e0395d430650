"""Python processes in which PyTorch is imported already: a server forks one for each piece of code, in a tenth of the
time that importing it takes. For code that needs a process of its own, and PyTorch as it is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

LIMIT = 300  # seconds for one piece of code

# Reads a line of JSON: code, folder; answers with one: status, output, errors. No thread runs where it forks.
SERVER = """
import json, os, signal, sys, tempfile, traceback
import torch

def run(code):
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        return 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    return 1

answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    asked = json.loads(line)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (child := os.fork()):
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os.chdir(asked["folder"])
            signal.alarm(asked["limit"])
            status = run(asked["code"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    print(json.dumps([status, *texts]), file=answers, flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -c CODE` in a folder, which is where it imports from; standard input is empty."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps({"code": code, "folder": str(folder), "limit": LIMIT}) + "\n")
    server.stdin.flush()
    status, out, err = json.loads(server.stdout.readline())
    return subprocess.CompletedProcess([sys.executable, "-c", code], status, out, err)
