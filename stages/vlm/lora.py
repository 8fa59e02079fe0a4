"""LoRA (arXiv 2106.09685): adapters of peft beside the linear layers of a language model whose weights are frozen.

One copy of the weights serves several models: each has its own adapter, and with none active the model is the one that
was loaded. The weights themselves are never changed; merged weights are computed on the way out.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stages.config.lora import Lora
from stages.vlm.quantization import dequantize, is_quantized, silence_bitsandbytes
from stages.vlm.shards import gather_tensor, is_sharded

ADAPTER = "adapter"  # folder of an adapter in peft's format, in that of the merged model


class AdapterWeights(nn.Module):
    """The weights of one adapter as a module of their own: what is trained, and kept in checkpoints.

    Names in its state dict are those of the language model, such as layers.0.mlp.up_proj.lora_A.weight.
    """

    def __init__(self, base: nn.Module, text: nn.Module, matrices: Mapping[str, nn.Module]) -> None:
        """`base` is the whole model that the adapter belongs to, `text` its language model.

        `matrices` are the layers of the adapter by dotted name.
        """
        super().__init__()
        self._base = (base, text)  # a tuple, so that the frozen weights are not part of this module
        for name, matrix in matrices.items():
            *folders, last = name.split(".")
            place: nn.Module = self
            for folder in folders:
                if folder not in place._modules:
                    place.add_module(folder, nn.Module())
                place = place.get_submodule(folder)
            place.add_module(last, matrix)

    @property
    def base(self) -> nn.Module:
        """The model that the adapter belongs to, with all its adapters."""
        return self._base[0]

    @property
    def text(self) -> nn.Module:
        """The language model, whose layers have the adapters."""
        return self._base[1]


def iter_base_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the state dict of a model without adapters, one whole tensor at a time, under its names with adapters.

    Quantized weights are dequantized. If layers are divided over the ranks, all must exhaust this together.
    """
    layers = {f"{place}.weight": layer for place, layer in model.named_modules() if is_quantized(layer)}
    for key, tensor in model.state_dict().items():
        if ".lora_A." in key or ".lora_B." in key:
            continue
        if key in layers:
            yield key, dequantize(layers[key])
        elif f"{key.rpartition('.weight.')[0]}.weight" not in layers:  # else scales and tables of such a layer
            yield key, gather_tensor(tensor)


class Adapters:
    """The adapters of one model, by name; at most one is active.

    The active adapter stays active until another is selected, since a backward pass that recomputes activations needs
    that of its forward pass.
    """

    def __init__(self, model: nn.Module, text: nn.Module) -> None:
        """Freezes `model`; `text` is its language model."""
        model.requires_grad_(False)
        self._model, self._text = model, text
        self._prefix = next(name for name, module in model.named_modules() if module is text)
        self._tuner: Any = None
        self._lora: dict[str, Lora] = {}
        self._active: str | None = None
        self.weights: dict[str, AdapterWeights] = {}

    def add(self, name: str, lora: Lora, seed: int) -> None:
        """Adds an adapter in the precision of the model and selects it.

        It starts as peft's own: A uniform within 1 / sqrt(inputs), drawn from `seed`, and B zero, so that the model
        computes what it did without.
        """
        silence_bitsandbytes()
        from peft import LoraConfig, LoraModel

        config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
        if self._tuner is None:
            self._tuner = LoraModel(self._text, config, name)
        else:
            self._tuner.peft_config[name] = config
            self._tuner.inject_adapter(self._text, name)
        self._lora[name] = lora
        matrices: dict[str, nn.Module] = {}
        generator = torch.Generator().manual_seed(seed % 2**63)
        precision = self._text.embed_tokens.weight.dtype  # type: ignore[union-attr]  # layers may be quantized
        for place, layer in self._iter_layers():
            if name in layer.lora_A:
                first, second = (one[name].to(precision) for one in (layer.lora_A, layer.lora_B))
                bound = 1 / math.sqrt(first.in_features)
                with torch.no_grad():
                    first.weight.copy_(torch.rand(first.weight.shape, generator=generator) * 2 * bound - bound)
                    second.weight.zero_()
                matrices |= {f"{place}.lora_A": first, f"{place}.lora_B": second}
        self.weights[name] = AdapterWeights(self._model, self._text, matrices)
        self.select(name)

    def _iter_layers(self) -> Iterator[tuple[str, Any]]:
        from peft.tuners.lora import LoraLayer

        for place, module in self._text.named_modules():
            if isinstance(module, LoraLayer):
                yield place, module

    def select(self, name: str | None) -> None:
        """Makes one adapter the active one; with None the model has no adapter."""
        if name == self._active:
            return
        for _, layer in self._iter_layers():
            layer.enable_adapters(name is not None)
            if name is not None:
                layer.set_adapter(name)
        for weights in self.weights.values():  # peft freezes those that are not active
            weights.requires_grad_(True)
        self._active = name

    def iter_merged(self, name: str, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the weights of the whole model with the adapter added, under the names that transformers and vLLM use.

        `trained` is the state of the adapter's `AdapterWeights`. W + B A alpha / rank is computed in fp32 and rounded
        to the precision of the model, one tensor at a time, which is then on the CPU: together they would need as much
        GPU memory as the model. W of a quantized layer is what it computes with, so that what is yielded is the model
        that is trained. All other tensors are those of the model.

        Yields nothing if `trained` is empty. If layers are divided over the ranks, all must exhaust this together.
        """
        if not trained and not is_sharded(self._text):
            return
        scale = self._lora[name].alpha / self._lora[name].rank
        for key, tensor in iter_base_weights(self._model):
            if not trained:  # this rank only gives its part
                continue
            plain = key.replace(".base_layer.", ".")
            layer = plain.removeprefix(f"{self._prefix}.").removesuffix(".weight")
            if plain.endswith(".weight") and (first := trained.get(f"{layer}.lora_A.weight")) is not None:
                second = trained[f"{layer}.lora_B.weight"].to(tensor.device, torch.float32)
                added = second @ first.to(tensor.device, torch.float32) * scale
                yield plain, (tensor.float() + added).to(tensor.dtype).cpu()
            else:
                yield plain, tensor

    def save(self, name: str, trained: Mapping[str, Tensor], folder: Path, base: str) -> None:
        """Writes an adapter to `folder` in peft's format, for `PeftModel.from_pretrained` and vLLM.

        `trained` as in `iter_merged`; `base` names the model that it belongs to.
        """
        from peft import LoraConfig

        lora = self._lora[name]
        inside = re.escape(f"{self._prefix}.")  # the vision tower has layers of the same names
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=rf"{inside}.*\.({'|'.join(lora.targets)})",
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
            inference_mode=True,
        )
        folder.mkdir(parents=True)
        config.save_pretrained(str(folder))
        tensors = {f"base_model.model.{self._prefix}.{key}": one.contiguous() for key, one in trained.items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
