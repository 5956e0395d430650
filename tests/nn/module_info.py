"""What PyTorch asks of its own nn.GRU: its ModuleInfo (inputs, references, errors), on the two classes of vssn.

Run by test_module_info.py in a process of its own, since importing torch.testing._internal freezes global flags. The
checks are those that PyTorch's test_modules.py makes with a ModuleInfo on one device; those that need a second device
or an `inplace` argument have no case here. Where one does not hold as for nn.GRU, NOT_AS_NN_GRU says why.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing import assert_close
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

import vssn
from vssn_kernels import use_backend

INFO = next(info for info in module_db if info.module_cls is nn.GRU)
NOT_AS_NN_GRU = {
    "second derivatives": "the kernels keep what first ones need: use_backend('reference') has them, the others say so",
}
each_class = pytest.mark.parametrize("kind", [vssn.GRU, vssn.TorchGRU], ids=lambda kind: kind.__name__)
each_dtype = pytest.mark.parametrize("dtype", sorted(INFO.supported_dtypes("cpu"), key=str), ids=str)
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
Make = Callable[..., vssn.GRU]


def cases(dtype: torch.dtype, training: bool, requires_grad: bool = False, packed: bool = True) -> list[Any]:
    return INFO.module_inputs_func(
        INFO, device="cpu", dtype=dtype, requires_grad=requires_grad, training=training, with_packed_sequence=packed
    )


def build(kind: type, case: Any, dtype: torch.dtype, training: bool, **more: Any) -> Any:
    net = kind(*case.constructor_input.args, **case.constructor_input.kwargs, dtype=dtype, **more)
    return net.train(training)


def call(net: nn.Module, case: Any) -> list[Tensor]:
    output, h_n = net(*case.forward_input.args, **case.forward_input.kwargs)
    return [output.data if isinstance(output, PackedSequence) else output, h_n]


def leaves(case: Any) -> list[Tensor]:
    return [arg for arg in case.forward_input.args if isinstance(arg, Tensor)]


@each_mode
@each_dtype
@each_class
class TestModuleInfo:
    def test_forward(self, kind: type, dtype: torch.dtype, training: bool) -> None:
        """Beside nn.GRU with the same weights, and beside the reference that the case brings."""
        assert len(cases(dtype, training)) == 32
        for case in cases(dtype, training):
            net, theirs = build(kind, case, dtype, training), build(nn.GRU, case, dtype, training)
            theirs.load_state_dict(net.state_dict())
            got = call(net, case)
            assert_close(got, call(theirs, case))
            if case.reference_fn is not None and leaves(case):
                want = case.reference_fn(net, *case.forward_input.args)
                assert_close(got, list(want))

    def test_factory_arguments(self, kind: type, dtype: torch.dtype, training: bool) -> None:
        for case in cases(dtype, training):
            meta = build(kind, case, dtype, training, device="meta")
            for parameter in meta.parameters():
                assert (parameter.device.type, parameter.dtype) == ("meta", dtype)
            with torch.device("meta"):
                assert {p.device.type for p in build(kind, case, dtype, training).parameters()} == {"meta"}

    def test_pickles_saves_and_copies(self, kind: type, dtype: torch.dtype, training: bool) -> None:
        for case in cases(dtype, training):
            net = build(kind, case, dtype, training)
            want = call(net, case)
            buffer = io.BytesIO()
            torch.save(net, buffer)
            buffer.seek(0)
            for other in (
                pickle.loads(pickle.dumps(net)),
                copy.deepcopy(net),
                torch.load(buffer, weights_only=False),
            ):
                assert type(other) is kind
                assert_close(call(other, case), want, rtol=0, atol=0)
            fresh = build(kind, case, dtype, training)
            fresh.load_state_dict(net.state_dict(), strict=True)
            assert_close(call(fresh, case), want, rtol=0, atol=0)

    def test_repr(self, kind: type, dtype: torch.dtype, training: bool) -> None:
        for case in cases(dtype, training):
            texts = {
                name: repr(build(cls, case, dtype, training)) for name, cls in (("ours", kind), ("theirs", nn.GRU))
            }
            assert texts["ours"] == texts["theirs"].replace("GRU", kind.__name__)

    def test_strided_inputs(self, kind: type, dtype: torch.dtype, training: bool) -> None:
        """Inputs and states with gaps between their entries give the same values and gradients."""
        for case in cases(dtype, training, requires_grad=True, packed=False):
            net = build(kind, case, dtype, training)
            results = []
            for strided in (False, True):
                args = [arg.detach() for arg in leaves(case)]
                if strided:
                    args = [torch.stack((arg, arg.new_full(arg.shape, float("nan"))), -1)[..., 0] for arg in args]
                    assert not any(arg.is_contiguous() for arg in args)
                args = [arg.requires_grad_() for arg in args]
                outputs = net(*args)
                wanted = [*args, *net.parameters()]
                grads = torch.autograd.grad([(out**2).sum() for out in outputs], wanted)
                results.append([*outputs, *grads])
            assert_close(results[1], results[0])

    def test_to_and_to_empty(self, kind: type, dtype: torch.dtype, training: bool) -> None:
        for case in cases(dtype, training):
            net = build(kind, case, dtype, training)
            for moved in (net.to("meta"), net.to_empty(device="cpu")):
                assert moved is net
            net.reset_parameters()
            assert {p.device.type for p in net.parameters()} == {"cpu"}
            assert all(out.isfinite().all() for out in call(net, case))
            other = torch.float64 if dtype == torch.float32 else torch.float32
            assert {p.dtype for p in net.to(other).parameters()} == {other}
            assert {w.dtype for w in net._flat_weights if w is not None} == {other}

    def test_training_is_looked_at(self, kind: type, dtype: torch.dtype, training: bool) -> None:
        assert INFO.train_and_eval_differ
        for case in cases(dtype, training):
            net = build(kind, case, dtype, training)
            del net.training
            with pytest.raises(AttributeError, match="training"):
                call(net, case)

    def test_errors(self, kind: type, dtype: torch.dtype, training: bool) -> None:
        samples = INFO.module_error_inputs_func(INFO, device="cpu", dtype=dtype, requires_grad=False, training=training)
        assert len(samples) >= 2  # of PyTorch 2.6; ten of later ones
        for sample in samples:
            given = sample.module_error_input
            arguments, named = given.constructor_input.args, given.constructor_input.kwargs
            if sample.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
                with pytest.raises(sample.error_type, match=sample.error_regex) as caught:
                    kind(*arguments, **named)
            else:
                net = kind(*arguments, **named)
                with pytest.raises(sample.error_type, match=sample.error_regex) as caught:
                    net(*given.forward_input.args, **given.forward_input.kwargs)
            assert "\n" not in str(caught.value)


@each_mode
@each_class
def test_gradients(kind: type, training: bool) -> None:
    for case in cases(torch.float64, training, requires_grad=True, packed=False):
        net = build(kind, case, torch.float64, training)
        wanted = [*leaves(case), *net.parameters()]

        def run(*tensors: Tensor, net: nn.Module = net, count: int = len(leaves(case))) -> Any:
            names = [name for name, _ in net.named_parameters()]
            weights = dict(zip(names, tensors[count:], strict=True))
            return torch.func.functional_call(net, weights, tensors[:count])

        assert torch.autograd.gradcheck(run, wanted, fast_mode=True)
        # NOT_AS_NN_GRU["second derivatives"]
        with use_backend("reference"):
            assert torch.autograd.gradgradcheck(run, wanted, fast_mode=True)
        first = torch.autograd.grad(run(*wanted)[0].sum(), wanted, create_graph=True)
        with pytest.raises(RuntimeError, match="for a second derivative"):
            torch.autograd.grad(first[0].sum(), wanted, allow_unused=True)
