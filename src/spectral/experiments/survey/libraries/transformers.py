"""Models of transformers, built from their configurations with few layers and random weights."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from spectral.experiments.survey.checks import Built

# Fewer layers than published; widths stay, since they must fit each other.
_SHALLOW = {
    "num_hidden_layers": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_encoder_layers": 1,
    "depth": 2,
    "num_decoder_layers": 1,
    "num_layers": 2,
    "vocab_size": 99,
    "num_queries": 10,
}

# Classes that take an image (1, 3, H, W) of any size: 64 × 64 shows their structure.
_FREE = """
BitForImageClassification BitModel BitBackbone ConditionalDetrForObjectDetection
ConvNextForImageClassification ConvNextModel ConvNextV2ForImageClassification ConvNextV2Model
CvtForImageClassification CvtModel DabDetrForObjectDetection DeformableDetrForObjectDetection
DetrForObjectDetection DetrForSegmentation DINOv3ConvNextModel DINOv3ViTModel GLPNForDepthEstimation
HGNetV2ForImageClassification Mask2FormerForUniversalSegmentation MaskFormerForInstanceSegmentation
PoolFormerForImageClassification PPLCNetForImageClassification PPLCNetV3Backbone
PPOCRV5MobileDetForObjectDetection RegNetForImageClassification RegNetModel ResNetForImageClassification
ResNetModel ResNetBackbone RTDetrForObjectDetection RTDetrV2ForObjectDetection RTDetrResNetBackbone
SegformerForImageClassification SegformerForSemanticSegmentation SegformerModel
SuperPointForKeypointDetection TableTransformerForObjectDetection TextNetForImageClassification
TimmWrapperForImageClassification UperNetForSemanticSegmentation UVDocBackbone
"""

# Classes whose configuration says how large their image must be.
_FIXED = """
BeitForImageClassification BeitModel BeitBackbone Data2VecVisionForImageClassification
DeiTForImageClassification DeiTForImageClassificationWithTeacher DeiTForMaskedImageModeling
Dinov2ForImageClassification Dinov2WithRegistersForImageClassification Dinov2Backbone
DonutSwinForImageClassification FocalNetForImageClassification FocalNetModel HieraForImageClassification
HieraModel HieraBackbone IJepaForImageClassification LevitForImageClassification
LevitForImageClassificationWithTeacher LwDetrViTBackbone MaskFormerSwinBackbone
MobileNetV1ForImageClassification MobileNetV2ForImageClassification MobileNetV2ForSemanticSegmentation
MobileViTForImageClassification MobileViTForSemanticSegmentation MobileViTV2ForImageClassification
MobileViTV2ForSemanticSegmentation PixioBackbone PvtForImageClassification PvtV2ForImageClassification
PvtV2Backbone SiglipVisionModel SwiftFormerForImageClassification SwiftFormerModel
SwinForImageClassification SwinModel SwinBackbone Swinv2ForImageClassification Swinv2Model VitDetBackbone
ViTForImageClassification ViTModel ViTForMaskedImageModeling ViTMAEModel ViTMSNForImageClassification
"""

_FOUR = {"num_hidden_layers": 4, "image_size": 64}
_SMALL = {"image_size": 112, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}

# Class: side of its image (None: what its configuration says), and what its configuration must differ in.
_IMAGE: dict[str, tuple[int | None, dict[str, Any]]] = {
    **{name: (64, {}) for name in _FREE.split()},
    **{name: (None, {}) for name in _FIXED.split()},
    "BeitForSemanticSegmentation": (None, {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]}),
    "CLIPForImageClassification": (224, {}),
    "CLIPVisionModel": (224, {}),
    "DPTForDepthEstimation": (64, {**_FOUR, "backbone_out_indices": [0, 1, 2, 3]}),
    "DPTForSemanticSegmentation": (64, {**_FOUR, "backbone_out_indices": [0, 1, 2, 3]}),
    "EfficientNetForImageClassification": (
        64,
        {"depth_coefficient": 0.3, "width_coefficient": 0.5, "hidden_dim": 640},
    ),
    "MLCDVisionModel": (112, _SMALL),
    "SiglipForImageClassification": (224, {}),
    "Swin2SRForImageSuperResolution": (16, {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 32}),
    "SwinForMaskedImageModeling": (None, {"num_layers": 4}),
    "ViTMAEForPreTraining": (None, {"decoder_num_hidden_layers": 1}),
    "YolosForObjectDetection": (64, {"image_size": [64, 64]}),
}

_VIDEO = {
    "TimesformerForVideoClassification": {"image_size": 64, "num_frames": 4},
    "VideoMAEForVideoClassification": {"image_size": 64, "num_frames": 4},
    "VivitForVideoClassification": {"image_size": 64, "num_frames": 4},
}

_WAVE = """
Wav2Vec2Model Wav2Vec2ForCTC Wav2Vec2ForSequenceClassification Wav2Vec2ConformerForCTC HubertModel
HubertForCTC HubertForSequenceClassification SEWForCTC SEWDForCTC SEWModel UniSpeechForCTC
UniSpeechSatForCTC WavLMModel WavLMForCTC WavLMForSequenceClassification Data2VecAudioForCTC
Data2VecAudioForSequenceClassification
"""


def list_transformers() -> Iterator[tuple[str, Callable[[], Built]]]:
    """Name the models of transformers and say how each is built."""
    for name, (side, options) in _IMAGE.items():
        yield name, partial(_build_image, name, side, options)
    for name, options in _VIDEO.items():
        yield name, partial(_build_video, name, options)
    for name in _WAVE.split():
        yield name, partial(_build_wave, name)
    yield from _OTHERS.items()


def _make(name: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, name)
    config = cls.config_class()
    _shrink(config)
    for key, value in options.items():
        setattr(config, key, value)
    return cls(config).eval(), config


def _shrink(config: Any) -> None:
    """Keep few layers, in the configurations inside too."""
    for key, value in list(vars(config).items()):
        if hasattr(value, "model_type"):
            _shrink(value)
        elif key in _SHALLOW and type(value) is int:
            setattr(config, key, min(value, _SHALLOW[key]))
        elif key in ("depths", "num_blocks") and isinstance(value, (list, tuple)):
            setattr(config, key, [min(n, 2) for n in value])


def _build_image(name: str, side: int | None, options: Mapping[str, Any]) -> Built:
    model, config = _make(name, options)
    side = side or config.image_size
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    return Built(model, torch.rand(1, 3, height, width))


def _build_video(name: str, options: Mapping[str, Any]) -> Built:
    model, config = _make(name, options)
    frames, side = config.num_frames, config.image_size
    return Built(model, torch.rand(1, frames, 3, side, side), channels=2)


def _build_wave(name: str) -> Built:
    model, _ = _make(name, {"vocab_size": 32})
    return Built(model, torch.rand(1, 4000))


def _text() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(2, 8)[None], "attention_mask": torch.ones(1, 6).long()}


def _named(name: str, inputs: Callable[[Any], dict[str, Any]],
           **options: Any) -> Callable[[], Built]:  # fmt: skip
    def build() -> Built:
        model, config = _make(name, options)
        return Built(model, inputs(config), images=("pixel_values",))

    return build


def _image_text(side: int = 224) -> Callable[[Any], dict[str, Any]]:
    return lambda config: {**_text(), "pixel_values": torch.rand(1, 3, side, side)}


_TINY_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 99,
    "pad_token_id": 0,
}
_TINY_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def _tiny(name: str, vision: str, text: str, tokens: int, **options: Any) -> Callable[[], Built]:
    """A language model that looks at an image: tiny, with ``tokens`` of its prompt standing for the image."""

    def build() -> Built:
        transformers = importlib.import_module("transformers")
        cls = getattr(transformers, name)
        parts = {
            "vision_config": getattr(transformers, vision)(**_TINY_VISION).to_dict()
            | {"model_type": _TYPES[vision]},
            "text_config": getattr(transformers, text)(**_TINY_TEXT).to_dict() | {"model_type": _TYPES[text]},
        }
        chosen: dict[str, Any] = {"image_token_id": 98, "image_token_index": 98, **options}
        model = cls(cls.config_class(**parts, **chosen)).eval()
        ids = torch.tensor([[1] + [98] * tokens + [5, 6]])
        return Built(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids),
                             "pixel_values": torch.rand(1, 3, 32, 32)},
                     images=("pixel_values",))  # fmt: skip

    return build


_TYPES = {
    "CLIPVisionConfig": "clip_vision_model",
    "SiglipVisionConfig": "siglip_vision_model",
    "LlamaConfig": "llama",
    "GemmaConfig": "gemma",
    "Qwen2Config": "qwen2",
    "MistralConfig": "mistral",
}


def _build_spectrogram(name: str, bins: int, frames: int, transposed: bool, **options: Any) -> Built:
    model, _ = _make(name, options)
    x = torch.rand(1, frames, bins) if transposed else torch.rand(1, bins, frames)
    return Built(model, x, channels=3)


def _build_whisper(name: str) -> Built:
    options = {
        "d_model": 64,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_source_positions": 50,
        "encoder_layers": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    model, _ = _make(name, options)
    inputs: dict[str, Any] = {"input_features": torch.rand(1, 80, 100)}
    if "Audio" not in name:
        inputs["decoder_input_ids"] = torch.tensor([[1, 2, 3]])
    return Built(model, inputs, images=("input_features",))


def _build_whisper_encoder() -> Built:
    encoder = _build_whisper("WhisperModel").model.get_submodule("encoder")
    return Built(encoder.eval(), torch.rand(1, 80, 100))


def _build_codec(name: str) -> Built:
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, name)
    return Built(cls(cls.config_class()).eval(), torch.rand(1, 1, 3200))


_OTHERS: dict[str, Callable[[], Built]] = {
    "CLIPModel": _named("CLIPModel", _image_text()),
    "SiglipModel": _named("SiglipModel", _image_text()),
    "AltCLIPModel": _named("AltCLIPModel", _image_text()),
    "ChineseCLIPModel": _named("ChineseCLIPModel", _image_text()),
    "CLIPSegForImageSegmentation": _named(
        "CLIPSegForImageSegmentation", _image_text(), extract_layers=[0, 1]
    ),
    "BlipForConditionalGeneration": _named("BlipForConditionalGeneration", _image_text(384)),
    "BlipModel": _named("BlipModel", _image_text(384)),
    "GitModel": _named("GitModel", _image_text()),
    "GroupViTModel": _named("GroupViTModel", _image_text()),
    "OwlViTForObjectDetection": _named("OwlViTForObjectDetection", _image_text(768)),
    "ViltModel": _named("ViltModel", _image_text(384)),
    "Siglip2VisionModel": _named(
        "Siglip2VisionModel",
        lambda config: {
            "pixel_values": torch.rand(1, 256, 3 * 16 * 16),
            "spatial_shapes": torch.tensor([[16, 16]]),
            "pixel_attention_mask": torch.ones(1, 256).long(),
        },
    ),
    "LlavaForConditionalGeneration": _tiny(
        "LlavaForConditionalGeneration", "CLIPVisionConfig", "LlamaConfig", 16
    ),
    "VipLlavaForConditionalGeneration": _tiny(
        "VipLlavaForConditionalGeneration",
        "CLIPVisionConfig",
        "LlamaConfig",
        16,
        vision_feature_layers=[-1, -2],
    ),
    "PaliGemmaForConditionalGeneration": _tiny(
        "PaliGemmaForConditionalGeneration", "SiglipVisionConfig", "GemmaConfig", 16, projection_dim=32
    ),
    "AyaVisionForConditionalGeneration": _tiny(
        "AyaVisionForConditionalGeneration", "SiglipVisionConfig", "LlamaConfig", 4
    ),
    "ASTForAudioClassification": partial(
        _build_spectrogram, "ASTForAudioClassification", 128, 128, True, max_length=128
    ),
    "ASTModel": partial(_build_spectrogram, "ASTModel", 128, 128, True, max_length=128),
    "WhisperModel": partial(_build_whisper, "WhisperModel"),
    "WhisperEncoder": _build_whisper_encoder,
    "WhisperForConditionalGeneration": partial(_build_whisper, "WhisperForConditionalGeneration"),
    "WhisperForAudioClassification": partial(_build_whisper, "WhisperForAudioClassification"),
    "EncodecModel": partial(_build_codec, "EncodecModel"),
    "DacModel": partial(_build_codec, "DacModel"),
    "MimiModel": partial(_build_codec, "MimiModel"),
}
