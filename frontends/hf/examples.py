"""Example inputs derived from a transformers model's configuration."""

from __future__ import annotations

from typing import Any

import torch

from irx.errors import ExampleMismatch

_BATCH, _LENGTH = 2, 16


def derive_example(model: Any) -> dict[str, torch.Tensor]:
    """Keyword arguments for `model.forward`, small and on the model's device.

    Language models get `input_ids` [2, 16]; encoders an `attention_mask` as well, so that padded batches can be run;
    encoder-decoders `decoder_input_ids` [2, 8]; vision models `pixel_values`, speech models `input_features` of the
    configured size. Raises ExampleMismatch for models with other inputs.
    """
    name = model.main_input_name
    makers = {"input_ids": _ids, "pixel_values": _image, "input_features": _features}
    if name not in makers:
        raise ExampleMismatch(
            f"{type(model).__name__} takes {name}, for which no example can be derived", fix="pass example="
        )
    example = {name: makers[name](model)}
    if model.config.is_encoder_decoder:
        example["decoder_input_ids"] = _ids(model, _LENGTH // 2)
    elif name == "input_ids" and not model.can_generate() and not _is_decoder(model):
        example["attention_mask"] = torch.ones(_BATCH, _LENGTH, dtype=torch.int64, device=_device(model))
    return example


def _is_decoder(model: Any) -> bool:
    """True for decoders without a head: their attention modules say that they are causal."""
    flags = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    return bool(flags) and all(flags)


def _ids(model: Any, length: int = _LENGTH) -> torch.Tensor:
    """Different ids everywhere; those of image or audio placeholders, which lie at the end, are avoided."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    numbers = torch.arange(_BATCH * length) * 7 + 3
    return (numbers % max(vocabulary // 2, 1)).reshape(_BATCH, length).to(_device(model))


def _image(model: Any) -> torch.Tensor:
    config = getattr(model.config, "vision_config", model.config)
    size = config.image_size
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return _noise(model, _BATCH, int(getattr(config, "num_channels", 3)), height, width)


def _features(model: Any) -> torch.Tensor:
    """A spectrogram of the encoder's full length; its convolutions halve it once."""
    config = model.config
    return _noise(model, _BATCH, int(config.num_mel_bins), 2 * int(config.max_source_positions))


def _noise(model: Any, *shape: int) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return values.to(_device(model), model.dtype)


def _device(model: Any) -> torch.device:
    """Where inputs go. Parameters on the meta device stand for ones on the CPU."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else torch.device(device)
