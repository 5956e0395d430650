"""What PyTorch itself can do in a forked child of this process."""

from __future__ import annotations

import os
import warnings

import pytest
import torch


def require_autograd() -> None:
    """Skips where plain PyTorch cannot differentiate in a child. In the middle of a run of many tests PyTorch 2.14 does
    refuse it ("Unable to handle autograd's threading in combination with fork"), in one of a few tests it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads
        pid = os.fork()
    if not pid:
        code = 1
        try:
            torch.set_num_threads(1)
            torch.ones(2, requires_grad=True).square().sum().backward()
            code = 0
        except RuntimeError:
            pass
        finally:
            os._exit(code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        pytest.skip("PyTorch's own autograd does not work in forked children of this process any more")
