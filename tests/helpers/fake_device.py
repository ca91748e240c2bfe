"""A simulated accelerator: its tensors compute on the CPU, claim to be on cuda:0 or mps:0, and report operations that fail there.

    python tests/helpers/fake_device.py mps FOLDER         # every command of tiny_suite.py, whose files are in FOLDER
It runs in a separate process, because torch's functions are replaced before other imports. It reports operations on tensors of
two devices, a random generator of another device, and on mps float64 and decompositions. CPU tensors without dimensions and CPU
indices are allowed, as in CUDA. inference_mode is replaced by no_grad; half precision is not covered.
"""

import json
import os
import sys
import traceback
from collections import Counter
from pathlib import Path
from typing import ClassVar

import torch

torch.inference_mode = torch.no_grad
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map  # noqa: E402

T, A = torch.Tensor, torch.ops.aten
KIND = sys.argv[1] if __name__ == "__main__" else "cuda"
REPORT = Counter()
INDEXED = ("aten.index.Tensor", "aten.index_put_.default", "aten.index_put.default", "aten._index_put_impl_.default")
COPIES = ("aten.copy_.default", "aten._to_copy.default", "aten._copy_from.default")
NO_SCALARS = ("mm", "bmm", "addmm", "baddbmm", "cat", "stack", "index_select", "gather", "scatter", "matmul", "where")
"""Operations for which a CPU tensor of no dimension is company from elsewhere too."""
MISSING = (
    "aten.linalg_qr", "aten._linalg_eigh", "aten.linalg_cholesky", "aten._linalg_svd", "aten.cholesky_solve", "aten.geqrf",
    "aten._cholesky_solve_helper", "aten.searchsorted",
)  # fmt: skip
"""On mps."""


def report(fault):
    """Record a fault with its place in the package."""
    frames = [frame for frame in reversed(traceback.extract_stack()) if "/cliptools/" in frame.filename]
    place = f"{frames[0].filename.split('/cliptools/')[-1]}:{frames[0].lineno}" if frames else "?"
    REPORT[f"{place}: {fault}"] += 1


class Fake(T):
    """A tensor on the accelerator."""

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "layout": inner.layout}
        made = T._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=torch.device("meta"), **layout)
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device(KIND, 0))
    is_cuda = property(lambda self: KIND == "cuda")
    is_mps = property(lambda self: KIND == "mps")
    is_cpu = is_meta = property(lambda self: False)

    def __repr__(self):
        return f"Fake({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def fake(x):
    """Return whether a tensor is on the accelerator."""
    return isinstance(x, Fake)


def plain(x):
    """Return the CPU tensor of a tensor on the accelerator."""
    return x.inner if fake(x) else x


def wrap(x):
    """Return a tensor as a tensor on the accelerator."""
    if not isinstance(x, T) or fake(x):
        return x
    if KIND == "mps" and x.dtype in (torch.float64, torch.complex128):
        report("float64 on mps")
    return Fake(x)


def tensors_in(given):
    """Yield all tensors among arguments."""
    return [each for each in tree_flatten(given)[0] if isinstance(each, T)]


def elsewhere(device):
    """Return whether a requested device is the accelerator."""
    return device is not None and torch.device(device).type != "cpu"


def run(func, args, kwargs):
    """Run one of torch's own operations on the CPU; the result is on the device of its arguments or on the requested device."""
    name, target = str(func), kwargs.get("device")
    if target is not None:
        kwargs = kwargs | {"device": torch.device("cpu")} | ({"pin_memory": False} if kwargs.get("pin_memory") else {})
    tensors = tensors_in((args, kwargs))
    on_it = any(map(fake, tensors))
    if on_it and name not in COPIES:
        check_company(name, args, tensors)
    generators = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Generator)]
    if generators and (elsewhere(target) or on_it):
        report(f"CPU generator in {name}")
    if KIND == "mps" and on_it and name.startswith(MISSING):
        report(f"perhaps missing on mps: {name}")
    arguments, options = tree_map(plain, (args, kwargs))
    out = func(*arguments, **options)
    if name == "aten._local_scalar_dense.default":
        return out
    if name == "aten.copy_.default":
        return args[0]
    there = elsewhere(target) if target is not None else on_it
    same = {id(plain(each)): each for each in tensors}  # in place, or out=: the very tensors are given back

    def placed(result):
        return same.get(id(result)) if id(result) in same else (wrap(result) if there else result)

    return tree_map(placed, out)


def check_company(name, args, tensors):
    """Report tensors of the CPU in an operation on the accelerator."""
    strangers = [each for each in tensors if not fake(each)]
    mixed = [each for each in strangers if each.dim() > 0]
    if name in INDEXED and fake(args[0]):  # a CPU index is moved silently
        mixed = [each for each in args[2:3] if isinstance(each, T) and not fake(each) and each.dim() > 0]
    if mixed:
        report(f"mixed devices in {name}: " + ", ".join(f"{'there' if fake(t) else 'cpu'}{list(t.shape)}" for t in tensors))
    if any(each.dim() == 0 for each in strangers) and name.split(".")[1] in NO_SCALARS:
        report(f"CPU tensor of no dimension in {name}")


class Operations(TorchDispatchMode):
    """A dispatch mode in which every operation goes through `run`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Functions(TorchFunctionMode):
    """A function mode for functions that access a tensor's memory before an operation is dispatched, by name."""

    scalars: ClassVar = {"item", "__bool__", "__int__", "__float__", "__index__", "tolist"}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        first = args[0] if args else None
        if fake(first) and name in self.scalars:
            return getattr(first.inner, name)()
        if name in SPECIAL and (func is getattr(T, name, None) or name == "embedding_bag"):
            return SPECIAL[name](func, args, kwargs)
        if name in ("__matmul__", "matmul") and first.dim() == 1:  # not dispatched as the others are
            return (first * args[1]).sum() if args[1].dim() == 1 else (first[None] @ args[1])[0]
        if elsewhere(kwargs.get("device")):
            if KIND == "mps" and kwargs.get("dtype") is torch.float64:
                report("float64 on mps")
            if isinstance(kwargs.get("generator"), torch.Generator):
                report(f"CPU generator in {name}")
            result = func(*args, **{key: value for key, value in kwargs.items() if key != "device"})
            return result if fake(first) else wrap(result)
        return func(*args, **kwargs)


def moved(func, args, kwargs):
    """Replace Tensor.to, .cpu and .cuda."""
    tensor, dtype, device = args[0], kwargs.get("dtype"), kwargs.get("device")
    for each in args[1:]:
        if isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, T):
            dtype, device = each.dtype, each.device
        elif isinstance(each, torch.device | str):
            device = each
    device = {"cpu": "cpu", "cuda": KIND}.get(func.__name__, device)
    there = elsewhere(device) if device is not None else fake(tensor)
    inner = plain(tensor)
    cast = inner if dtype is None else inner.to(dtype)
    if cast is inner and there == fake(tensor):
        return tensor
    return wrap(cast.clone() if cast is inner else cast) if there else cast


def read_out(func, args, kwargs):
    """Replace Tensor.numpy and np.asarray, which need a tensor of the CPU."""
    if fake(args[0]):
        report(f"{func.__name__} of a tensor on the accelerator")
    return func(plain(args[0]), *args[1:], **kwargs)


def embedding_bag(func, args, kwargs):
    """Replace embedding_bag, which is not dispatched like other operations."""
    tensors = tensors_in((args, kwargs))
    if not any(map(fake, tensors)):
        return func(*args, **kwargs)
    if not all(map(fake, tensors)):
        report("mixed devices in embedding_bag")
    return wrap(func(*tree_map(plain, args), **tree_map(plain, kwargs)))


def get_item(func, args, kwargs):
    """Replace tensor[index]."""
    if fake(args[0]):
        view, advanced = basic(*args)
        view = A.alias.default(view) if view is args[0] else view
        return A.index.Tensor(view, listed(view, advanced)) if advanced else view
    if any(fake(each) and each.dim() > 0 for each in tensors_in(args[1])):
        report("CPU tensor indexed by one on the accelerator")
    return func(args[0], tree_map(plain, args[1]))


def set_item(func, args, kwargs):
    """Replace tensor[index] = value."""
    tensor, index, value = args
    if not fake(tensor):
        if any(map(fake, tensors_in(index))) or (fake(value) and tensors_in(index)):
            report("CPU tensor set by tensors on the accelerator")
        func(tensor, tree_map(plain, index), plain(value))
        return
    view, advanced = basic(tensor, index)
    value = value if isinstance(value, T) else wrap(torch.tensor(value, dtype=view.dtype))
    if advanced:
        A.index_put_.default(view, listed(view, advanced), value.to(view.dtype))
    else:
        view.copy_(value)


def width(index):
    """Return the number of dimensions that an index uses."""
    return index.dim() if isinstance(index, T) and index.dtype in (torch.bool, torch.uint8) else 1


def basic(tensor, index):
    """Return the view by integers and slices, and the tensors that index it further, by dimension."""
    parts = [torch.as_tensor(each) if isinstance(each, list) or (getattr(each, "ndim", 0) and not isinstance(each, T)) else each
             for each in (index if isinstance(index, tuple) else (index,))]  # fmt: skip
    used = sum(width(each) for each in parts if each is not None and each is not Ellipsis)
    if all(each is not Ellipsis for each in parts):
        parts.append(Ellipsis)
    at = next(number for number, each in enumerate(parts) if each is Ellipsis)
    parts[at : at + 1] = [slice(None)] * (tensor.dim() - used)
    view, dim, advanced = tensor, 0, {}
    for each in parts:
        if each is None:
            view, dim = A.unsqueeze.default(view, dim), dim + 1
        elif isinstance(each, slice):
            if each != slice(None):
                start, stop, step = each.indices(view.size(dim))
                view = A.slice.Tensor(view, dim, start, max(start, stop), step)
            dim += 1
        elif isinstance(each, T) and each.dim() > 0:
            advanced[dim] = each
            dim += width(each)
        else:
            view = A.select.int(view, dim, int(each))
    return view, advanced


def listed(view, advanced):
    """Return indices in the form of the operation."""
    places = [None] * view.dim()
    for dim, index in advanced.items():
        places[dim : dim + width(index)] = [index]
    while places[-1] is None:
        places.pop()
    return places


def doubled(func, args, kwargs):
    """Replace Tensor.double."""
    return moved(func, (args[0], torch.float64), {})


SPECIAL = {
    "__getitem__": get_item, "__setitem__": set_item, "to": moved, "cpu": moved, "cuda": moved, "double": doubled,
    "numpy": read_out, "__array__": read_out, "embedding_bag": embedding_bag,
}  # fmt: skip


def module_to(module, *args, move=torch.nn.Module.to, **kwargs):
    """Replace Module.to, parameter by parameter."""
    dtype = kwargs.get("dtype", next((each for each in args if isinstance(each, torch.dtype)), None))
    device = kwargs.get("device", next((each for each in args if isinstance(each, torch.device | str)), None))
    if dtype is not None:
        move(module, dtype=dtype)
    if elsewhere(device):
        for part in module.modules():
            for store in (part._parameters, part._buffers):
                for name, value in store.items():
                    if value is not None and not fake(value):
                        store[name] = wrap(value.detach())
                        store[name]._is_param = store is part._parameters
    return module


def install():
    """Install the accelerator."""
    if KIND == "cuda":
        torch.cuda.is_available = lambda: True
        torch.cuda.is_bf16_supported = lambda including_emulation=True: True
        torch.cuda.empty_cache = lambda: None
    else:
        torch.backends.mps.is_available = lambda: True
        torch.mps.empty_cache = lambda: None
    torch.nn.Module.to = module_to
    Functions().__enter__()
    Operations().__enter__()


def main(folder):
    """Run every command; write one line of JSON for each, and its standard output to a file."""
    from helpers.tiny_suite import Suite, run_case

    suite = Suite(folder / "suite", folder / "vit", folder / "resnet", ready=True)
    for name, case in suite.cases().items():
        try:
            ended = run_case(case)
            status, out, error = ended.returncode, ended.stdout, ended.stderr.decode()
        except Exception:
            status, out, error = -1, b"", traceback.format_exc()
        (folder / f"{KIND} {name}").write_bytes(out)
        print(json.dumps({"name": name, "status": status, "reported": sorted(REPORT), "error": error[-2000:]}), flush=True)
        REPORT.clear()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.modules["helpers.fake_device"] = sys.modules["__main__"]
    os.environ["CLIPTOOLS_CACHE"] = str(Path(sys.argv[2]) / f"cache {KIND}")
    install()
    main(Path(sys.argv[2]))
