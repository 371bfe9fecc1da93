"""Models of diffusers: U-Nets, autoencoders and diffusion transformers, tiny."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from spectral.experiments.survey.checks import Built


def list_diffusers() -> Iterator[tuple[str, Callable[[], Built]]]:
    """Name the models of diffusers and say how each is built."""
    yield from _DIFFUSERS.items()


def _diffuser(
    name: str, inputs: Callable[[], Any], images: tuple[Any, ...] = (0,), **options: Any
) -> Callable[[], Built]:
    def build() -> Built:
        diffusers = importlib.import_module("diffusers")
        given = inputs()
        return Built(
            getattr(diffusers, name)(**options).eval(),
            given,
            images=images if isinstance(given, tuple) else (),
        )

    return build


_BLOCKS: dict[str, Any] = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    **_BLOCKS,
}


def _latent(*shape: int) -> Callable[[], Any]:
    return lambda: (torch.rand(1, *shape), torch.tensor([3]))


def _conditioned(*shape: int) -> Callable[[], Any]:
    return lambda: (torch.rand(1, *shape), torch.tensor([3]), torch.rand(1, 5, 32))


_DIFFUSERS: dict[str, Callable[[], Built]] = {
    "UNet2DModel": _diffuser(
        "UNet2DModel",
        _latent(3, 32, 32),
        sample_size=32,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **_BLOCKS,
    ),
    "UNet2DModel-fir": _diffuser(
        "UNet2DModel",
        _latent(3, 32, 32),
        sample_size=32,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        **_BLOCKS,
    ),
    "UNet2DModel-resnet": _diffuser(
        "UNet2DModel",
        _latent(3, 32, 32),
        sample_size=32,
        down_block_types=("ResnetDownsampleBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "ResnetUpsampleBlock2D"),
        **_BLOCKS,
    ),
    "UNet2DConditionModel": _diffuser(
        "UNet2DConditionModel",
        _conditioned(4, 32, 32),
        sample_size=32,
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        attention_head_dim=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **_BLOCKS,
    ),
    "UNet3DConditionModel": _diffuser(
        "UNet3DConditionModel",
        _conditioned(4, 4, 32, 32),
        sample_size=32,
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        attention_head_dim=8,
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        **_BLOCKS,
    ),
    "UNet1DModel": _diffuser(
        "UNet1DModel",
        _latent(2, 64),
        sample_size=64,
        block_out_channels=(32, 64),
        extra_in_channels=64,
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"),
        up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    ),
    "UNetMotionModel": _diffuser(
        "UNetMotionModel",
        lambda: (torch.rand(1, 4, 4, 32, 32), torch.tensor([3]), torch.rand(4, 5, 32)),
        sample_size=32,
        cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        motion_num_attention_heads=2,
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        num_attention_heads=2,
        **_BLOCKS,
    ),
    "AutoencoderKL": _diffuser("AutoencoderKL", lambda: torch.rand(1, 3, 32, 32), **_KL),
    "AutoencoderKLTemporalDecoder": _diffuser(
        "AutoencoderKLTemporalDecoder",
        lambda: {"sample": torch.rand(2, 3, 32, 32), "num_frames": 2},
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
    ),
    "AsymmetricAutoencoderKL": _diffuser(
        "AsymmetricAutoencoderKL",
        lambda: torch.rand(1, 3, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(32, 64),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(32, 64),
        norm_num_groups=8,
    ),
    "AutoencoderTiny": _diffuser("AutoencoderTiny", lambda: torch.rand(1, 3, 32, 32)),
    "AutoencoderDC": _diffuser(
        "AutoencoderDC",
        lambda: torch.rand(1, 3, 64, 64),
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        attention_head_dim=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        latent_channels=4,
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    ),
    "AutoencoderOobleck": _diffuser(
        "AutoencoderOobleck",
        lambda: torch.rand(1, 2, 512),
        encoder_hidden_size=8,
        decoder_channels=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_input_channels=4,
    ),
    "AutoencoderKLCogVideoX": _diffuser(
        "AutoencoderKLCogVideoX",
        lambda: torch.rand(1, 3, 5, 32, 32),
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
    ),
    "AutoencoderKLWan": _diffuser(
        "AutoencoderKLWan", lambda: torch.rand(1, 3, 5, 32, 32), base_dim=16, num_res_blocks=1
    ),
    "VQModel": _diffuser("VQModel", lambda: torch.rand(1, 3, 32, 32), **_KL),
    "ControlNetModel": _diffuser(
        "ControlNetModel",
        lambda: {
            "sample": torch.rand(1, 4, 32, 32),
            "timestep": torch.tensor([3]),
            "encoder_hidden_states": torch.rand(1, 5, 32),
            "controlnet_cond": torch.rand(1, 3, 64, 64),
        },
        cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        attention_head_dim=8,
        conditioning_embedding_out_channels=(16, 32),
        **_BLOCKS,
    ),
    "DiTTransformer2DModel": _diffuser(
        "DiTTransformer2DModel",
        lambda: {
            "hidden_states": torch.rand(1, 4, 32, 32),
            "timestep": torch.tensor([3]),
            "class_labels": torch.tensor([1]),
        },
        sample_size=32,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
    ),
    "PixArtTransformer2DModel": _diffuser(
        "PixArtTransformer2DModel",
        lambda: {
            "hidden_states": torch.rand(1, 4, 32, 32),
            "timestep": torch.tensor([3]),
            "encoder_hidden_states": torch.rand(1, 5, 16),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        sample_size=32,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        cross_attention_dim=16,
        caption_channels=16,
        out_channels=8,
        use_additional_conditions=False,
    ),
    "SD3Transformer2DModel": _diffuser(
        "SD3Transformer2DModel",
        lambda: {
            "hidden_states": torch.rand(1, 4, 32, 32),
            "encoder_hidden_states": torch.rand(1, 5, 16),
            "pooled_projections": torch.rand(1, 16),
            "timestep": torch.tensor([3]),
        },
        sample_size=32,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=32,
    ),
    "UVit2DModel": _diffuser(
        "UVit2DModel",
        lambda: {
            "input_ids": torch.zeros(1, 16, 16).long(),
            "encoder_hidden_states": torch.rand(1, 5, 16),
            "pooled_text_emb": torch.rand(1, 16),
            "micro_conds": torch.rand(1, 5),
        },
        hidden_size=32,
        cond_embed_dim=16,
        encoder_hidden_size=16,
        block_out_channels=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        micro_cond_encode_dim=4,
        micro_cond_embed_dim=20,
        sample_size=16,
        intermediate_size=64,
        codebook_size=99,
        vocab_size=100,
    ),
}
