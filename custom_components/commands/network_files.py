"""A bundle's network as files for other runtimes: torch.export's, ONNX, TorchScript, and the weights as safetensors."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Answer = Callable[[Tensor], Tensor]

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of what the file answers, against the network
_NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
_UNIT = 16  # voxels, of which sizes are multiples


def network_files(bundle: Path, formats: Sequence[str]) -> dict[str, bytes]:
    """The network of a bundle's inference.json with its weights, as files by their paths in the bundle.

    Each file is read back and asked with an image of the size of its example and, if its sizes may vary, with another
    one; the answers must be the network's.

    Args:
        bundle: its folder.
        formats: of "pt2", "onnx", "torchscript" (`models/model.pt2`, `.onnx`, `.ts`), and "safetensors" (the weights).
    Raises:
        ImportError: if a package that a format needs is not installed.
        RuntimeError: if a file answers otherwise than the network.
        ValueError: if there is no such format.
    """
    for name in formats:
        if name not in _WRITERS:
            raise ValueError(f"--formats: expected some of {','.join(_WRITERS)}, got {name!r}")
        lacking = [package for package in _NEEDED.get(name, ()) if find_spec(package) is None]
        if lacking:
            raise ImportError(f"--formats {name} needs {' and '.join(lacking)}: pip install {' '.join(lacking)}")
    if not formats:
        return {}
    network, image = _network(bundle)
    files = {}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        for name in formats:
            path = Path(folder) / f"model.{'ts' if name == 'torchscript' else name}"
            varies = _WRITERS[name](network, image, path)
            logger.info("%s: %s", path.name, "any size" if varies else f"images of {tuple(image.shape)} alone")
            files[f"models/{path.name}"] = path.read_bytes()
    return files


def _network(bundle: Path) -> tuple[nn.Module, Tensor]:
    """The network with its weights, and an image for it."""
    import torch
    from monai.bundle import ConfigParser

    from ..weights import load_weights
    from .settings import give

    parser = ConfigParser(ConfigParser.load_config_file(str(bundle / "configs" / "inference.json")))
    give(parser, {"bundle_root": str(bundle), "device": torch.device("cpu")})
    network: nn.Module = parser.get_parsed_content("network_def").eval()
    load_weights(network, parser.get_parsed_content("weights"), bundle.name)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    told = metadata["network_data_format"]["inputs"]["image"]
    size = [n if isinstance(n, int) else _UNIT * (2 + axis) for axis, n in enumerate(told["spatial_shape"])]
    return network, torch.rand(1, told["num_channels"], *size, generator=torch.Generator().manual_seed(0))


def _exported(network: nn.Module, image: Tensor) -> tuple[torch.export.ExportedProgram, bool]:
    """torch.export's program, and whether it takes other sizes than the image's."""
    import torch
    from torch.export import Dim, export

    free = dict.fromkeys(range(2, image.ndim), Dim.AUTO)
    with torch.no_grad():
        try:
            program = export(network, (image,), dynamic_shapes=(free,))
            program.module()(_larger(image))
            return program, True
        except (AssertionError, RuntimeError, torch._dynamo.exc.UserError):
            return export(network, (image,)), False


def _larger(image: Tensor) -> Tensor:
    """An image of another size."""
    import torch

    size = [n + _UNIT for n in image.shape[2:]]
    return torch.rand(*image.shape[:2], *size, generator=torch.Generator().manual_seed(1))


def _check(network: nn.Module, answer: Answer, images: Sequence[Tensor], path: Path) -> None:
    import torch

    with torch.no_grad():
        error = max(float((answer(image) - network(image)).abs().max()) for image in images)
    if not error <= TOLERANCE:
        raise RuntimeError(f"{path.name}: its answer differs from the network's by {error:.3g}")


def _write_pt2(network: nn.Module, image: Tensor, path: Path) -> bool:
    import torch

    program, varies = _exported(network, image)
    torch.export.save(program, path)
    _check(network, torch.export.load(path).module(), [image, *([_larger(image)] if varies else [])], path)
    return varies


def _write_onnx(network: nn.Module, image: Tensor, path: Path) -> bool:
    import onnxruntime
    import torch

    program, varies = _exported(network, image)
    torch.onnx.export(
        program,
        (image,),
        str(path),
        input_names=["image"],
        output_names=["pred"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path))

    def answer(one: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": one.numpy()})[0])

    _check(network, answer, [image, *([_larger(image)] if varies else [])], path)
    return varies


def _write_torchscript(network: nn.Module, image: Tensor, path: Path) -> bool:
    import torch

    torch.jit.save(torch.jit.script(network), str(path))
    loaded = torch.jit.load(str(path))
    try:
        with torch.no_grad():
            network(_larger(image))
        varies = True
    except RuntimeError:
        varies = False
    _check(network, loaded, [image, *([_larger(image)] if varies else [])], path)
    return varies


def _write_safetensors(network: nn.Module, image: Tensor, path: Path) -> bool:
    from safetensors.torch import load_file, save_file

    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, str(path))
    if any((state[name] != value).any() for name, value in load_file(str(path)).items()):
        raise RuntimeError(f"{path.name}: the weights differ from the network's")
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says while it exports."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Path], bool]] = {
    "pt2": _write_pt2,
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "safetensors": _write_safetensors,
}
