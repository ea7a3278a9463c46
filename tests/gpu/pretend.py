"""A card that is not there: tensors that say they are on CUDA and compute on the processor.

As on a card, an operation refuses tensors of two devices, NumPy sees none of them, and autocast follows CUDA's own
lists of operations. So a machine without a GPU finds what would end a run on one: a tensor made on the wrong device,
numbers of two precisions in one operation. Forward only. Not found: anything of gradients, speed, memory, or CUDA's
own kernels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CARD = torch.device("cuda", 0)
aten = torch.ops.aten
CROSSING = {aten._to_copy.default, aten.copy_.default}  # what may have both devices, and moves between them
CPU_INDICES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
CPU_INDICES |= {aten._pack_padded_sequence.default, aten._pack_padded_sequence_backward.default}


class OnCard(Tensor):
    """A tensor of the card; `inner` holds its numbers."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnCard":
        about = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(cls, inner.size(), device=CARD, **about)  # type: ignore[attr-defined]

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"OnCard({self.shape}, {self.dtype})"


def _without_lists(index: Any) -> Any:
    """An index whose lists are tensors of the card, which torch would make in C++, past this module."""
    if isinstance(index, tuple):
        return tuple(_without_lists(part) for part in index)
    return torch.tensor(index, dtype=torch.long).to(CARD) if isinstance(index, list) else index


class _Card(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict) -> Any:
    """One operation: on the processor, with its result on the card where CUDA would have it."""
    if torch.is_inference_mode_enabled():  # where torch leaves what is made of other operations whole
        with _Card():
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    on_card = [isinstance(t, OnCard) for t in tensors]
    if func in CPU_INDICES:
        on_card = on_card[:1]
    elif func not in CROSSING and any(on_card):
        strangers = [t for t in tensors if t.dim() and not isinstance(t, OnCard)]
        if strangers:
            raise RuntimeError(f"{func}: expected all tensors on cuda:0, found {list(strangers[0].shape)} on the cpu")
    device = kwargs.pop("device", None)
    is_card = any(on_card) if device is None else torch.device(device).type == "cuda"
    if func is aten.copy_.default:
        is_card = isinstance(args[0], OnCard)
    if kwargs.get("pin_memory"):
        kwargs.pop("pin_memory")
    if device is not None:
        kwargs["device"] = torch.device("cpu")
    inner = tree_map_only(OnCard, lambda t: t.inner, (args, kwargs))
    if func is aten._to_copy.default and device is not None:  # never the same memory
        inner[1]["memory_format"] = kwargs.get("memory_format") or torch.preserve_format
    result = func(*inner[0], **inner[1])
    if not is_card:
        return result
    known = {id(t.inner): t for t in tensors if isinstance(t, OnCard)}  # an operation in place gives its own tensor
    wrapped = tree_map_only(Tensor, lambda t: known.get(id(t)) if id(t) in known else OnCard(t), result)
    return (wrapped[0], result[1]) if func is aten._pack_padded_sequence.default else wrapped


def _tensor(data: Any, *, device: Any = None, make: Any = torch.tensor, **about: Any) -> Tensor:
    """torch.tensor, which copies to a card in C++."""
    return make(data, **about).to(device or "cpu")


def _lstm(self: nn.LSTM, packed: Any) -> Any:
    """cuDNN's LSTM has no form for the processor: go there and back, with gradients, and in half as cuDNN answers."""
    data, weights = packed.data.cpu().float(), [w.cpu() for w in self._flat_weights]
    state = torch.zeros(2 * self.num_layers, int(packed.batch_sizes[0]), self.hidden_size)
    settings = (True, self.num_layers, 0.0, self.training, self.bidirectional)
    output, *_ = torch._VF.lstm(data, packed.batch_sizes, [state, state], weights, *settings)
    half = torch.is_autocast_enabled("cuda")
    output = output.to(CARD, torch.get_autocast_dtype("cuda") if half else torch.float32)
    return packed._replace(data=output), None


@contextmanager
def pretended() -> Iterator[torch.device]:
    """Inside, "cuda" is such a card."""
    torch._C._ensureCUDADeviceGuardSet()  # as torch's own FakeTensor does: no driver is asked
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # a module's parameters become others, in place
    try:
        with (
            mock.patch("torch.cuda._lazy_init"),
            mock.patch.object(Tensor, "pin_memory", lambda tensor: tensor),
            mock.patch("torch.tensor", _tensor),
            mock.patch.object(nn.LSTM, "forward", _lstm),
            _Card(),
        ):
            yield CARD
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swap)


@contextmanager
def half(dtype: torch.dtype) -> Iterator[None]:
    """Mixed precision by CUDA's lists; torch.autocast itself refuses without a driver."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
