"""Networks of torchaudio, for waveforms and spectrograms."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from spectral.experiments.survey.checks import Built


def list_torchaudio() -> Iterator[tuple[str, Callable[[], Built]]]:
    """Name networks for waveforms and spectrograms and say how each is built."""
    yield from _AUDIO.items()


def _audio(name: str, *shape: int, lengths: bool = False, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        models = importlib.import_module("torchaudio.models")
        model = getattr(models, name)(**options).eval()
        x = torch.rand(1, *shape)
        return Built(model, (x, torch.tensor([shape[0]])) if lengths else x, images=(0,) if lengths else ())

    return build


_AUDIO: dict[str, Callable[[], Built]] = {
    "wav2vec2_base": lambda: _build_wave("wav2vec2_base"),
    "hubert_base": lambda: _build_wave("hubert_base"),
    "wavlm_base": lambda: _build_wave("wavlm_base"),
    "ConvTasNet": _audio(
        "ConvTasNet",
        1,
        2000,
        enc_num_feats=32,
        msk_num_feats=8,
        msk_num_hidden_feats=16,
        msk_num_layers=2,
        msk_num_stacks=1,
    ),
    "HDemucs": lambda: _build_demucs(),
    "Wav2Letter-waveform": _audio(
        "Wav2Letter", 1, 16000, num_classes=10, input_type="waveform", num_features=1
    ),
    "Wav2Letter-mfcc": _audio("Wav2Letter", 13, 200, num_classes=10, input_type="mfcc", num_features=13),
    "Conformer": _audio(
        "Conformer",
        40,
        16,
        lengths=True,
        input_dim=16,
        num_heads=2,
        ffn_dim=32,
        num_layers=1,
        depthwise_conv_kernel_size=31,
    ),
    "DeepSpeech": _audio("DeepSpeech", 1, 40, 26, n_feature=26, n_hidden=32),
    "squim_objective": lambda: _build_squim(),
    "MelSpectrogram-conv": lambda: _build_mel(),
}


def _build_wave(name: str) -> Built:
    model = getattr(importlib.import_module("torchaudio.models"), name)()
    del model.encoder.transformer.layers[2:]
    return Built(model.eval(), torch.rand(1, 4000))


def _build_demucs() -> Built:
    models = importlib.import_module("torchaudio.models")
    model = models.HDemucs(["a", "b"], audio_channels=1, channels=8, nfft=1024, depth=4)
    return Built(model.eval(), torch.rand(1, 1, 16384))


def _build_squim() -> Built:
    models = importlib.import_module("torchaudio.models")
    return Built(models.squim_objective_base().eval(), torch.rand(1, 4000))


def _build_mel() -> Built:
    transforms = importlib.import_module("torchaudio.transforms")
    front = transforms.MelSpectrogram(n_fft=256, hop_length=128, n_mels=32)
    model = nn.Sequential(front, nn.Unflatten(1, (1, 32)), nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))  # fmt: skip
    return Built(model.eval(), torch.rand(1, 8000))
