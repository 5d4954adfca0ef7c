"""Runs Python scripts in forks of itself, which find large libraries imported: a minute less where there are many.

Each line of standard input is a JSON list: folder, files for standard output and error, script, arguments. The answer
is a line too, the exit code. Nothing of trueport is imported here: that each script does itself, as in a fresh process.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

LIBRARIES = (
    "matplotlib.figure", "onnx", "onnxscript", "sklearn.datasets", "sklearn.metrics", "torch._dynamo",
    "torch._inductor.compile_fx", "torch.export", "torch.onnx", "torchvision",
)  # fmt: skip
"""None that starts a thread as it is imported, as onnxruntime does: a fork has only the thread that forked."""


def main() -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(read_once(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
    ONNXRegistry.from_torchlib(opset_version=20)  # as `trueport export` asks for it
    sys.path.pop(0)  # the folder of this file, which a script's own path has not
    for line in sys.stdin:
        child = os.fork()
        if not child:
            become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def read_once(from_torchlib: Callable[..., Any]) -> Callable[..., Any]:
    """`ONNXRegistry.from_torchlib`, which reads the source of five hundred functions; each export gets its own copy."""
    read = functools.cache(from_torchlib)

    def copied(**version: int) -> Any:
        registry = copy.copy(read(**version))
        registry.functions = {name: [*functions] for name, functions in registry.functions.items()}
        return registry

    return copied


def become(folder: str, out: str, err: str, *command: str) -> NoReturn:
    """The script, as if Python had been started for it in that folder; but what is imported is not torn down."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    sys.argv = [*command]
    code = None
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
