"""Networks of monai in two and three dimensions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from spectral.experiments.survey.checks import Built


def list_monai() -> Iterator[tuple[str, Callable[[], Built]]]:
    """Name medical networks in two and three dimensions and say how each is built."""
    yield from _MONAI.items()


def _monai(name: str, *shape: int, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        nets = importlib.import_module("monai.networks.nets")
        return Built(getattr(nets, name)(**options).eval(), torch.rand(1, *shape))

    return build


def _diffusion(rank: int) -> Callable[[], Built]:
    def build() -> Built:
        nets = importlib.import_module("monai.networks.nets")
        model = nets.DiffusionModelUNet(
            spatial_dims=rank, in_channels=1, out_channels=1, channels=(8, 16),
            attention_levels=(False, True), num_res_blocks=1, num_head_channels=8, norm_num_groups=8,
        )  # fmt: skip
        return Built(model.eval(), (torch.rand(1, 1, *[16] * rank), torch.tensor([3])), images=(0,))

    return build


_UNET = {"channels": (4, 8, 16), "strides": (2, 2), "in_channels": 1, "out_channels": 2}
_MONAI: dict[str, Callable[[], Built]] = {
    "UNet-2d": _monai("UNet", 1, 64, 64, spatial_dims=2, **_UNET),
    "UNet-3d": _monai("UNet", 1, 32, 32, 32, spatial_dims=3, num_res_units=1, **_UNET),
    "AttentionUnet-2d": _monai("AttentionUnet", 1, 64, 64, spatial_dims=2, **_UNET),
    "AttentionUnet-3d": _monai("AttentionUnet", 1, 32, 32, 32, spatial_dims=3, **_UNET),
    "BasicUNet-2d": _monai("BasicUNet", 1, 64, 64, spatial_dims=2, features=(4, 4, 8, 8, 8, 4)),
    "BasicUNet-3d": _monai("BasicUNet", 1, 32, 32, 32, spatial_dims=3, features=(4, 4, 8, 8, 8, 4)),
    "BasicUNetPlusPlus-2d": _monai("BasicUNetPlusPlus", 1, 64, 64, spatial_dims=2,
        features=(4, 4, 8, 8, 8, 4)),
    "DynUNet-2d": _monai("DynUNet", 1, 64, 64, spatial_dims=2, in_channels=1, out_channels=2,
        kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[4, 8, 8]),
    "DynUNet-3d": _monai("DynUNet", 1, 32, 32, 32, spatial_dims=3, in_channels=1, out_channels=2,
        kernel_size=[3, 3, 3], strides=[1, 2, 2], upsample_kernel_size=[2, 2], filters=[4, 8, 8]),
    "FlexibleUNet": _monai("FlexibleUNet", 3, 64, 64, in_channels=3, out_channels=2,
        backbone="efficientnet-b0"),
    "SegResNet-2d": _monai("SegResNet", 1, 64, 64, spatial_dims=2, init_filters=8),
    "SegResNet-3d": _monai("SegResNet", 1, 32, 32, 32, spatial_dims=3, init_filters=8),
    "SegResNetDS-3d": _monai("SegResNetDS", 1, 32, 32, 32, spatial_dims=3, init_filters=8),
    "SegResNetVAE-2d": _monai("SegResNetVAE", 1, 64, 64, spatial_dims=2, init_filters=8,
        input_image_size=(64, 64)),
    "VNet-2d": _monai("VNet", 1, 64, 64, spatial_dims=2),
    "VNet-3d": _monai("VNet", 1, 32, 32, 32, spatial_dims=3),
    "UNETR-2d": _monai("UNETR", 1, 64, 64, in_channels=1, out_channels=2, img_size=64, spatial_dims=2,
        feature_size=4, hidden_size=32, mlp_dim=64, num_heads=2),
    "UNETR-3d": _monai("UNETR", 1, 32, 32, 32, in_channels=1, out_channels=2, img_size=32, feature_size=4,
        hidden_size=32, mlp_dim=64, num_heads=2),
    "SwinUNETR-2d": _monai("SwinUNETR", 1, 64, 64, in_channels=1, out_channels=2, feature_size=12,
        spatial_dims=2),
    "SwinUNETR-3d": _monai("SwinUNETR", 1, 64, 64, 64, in_channels=1, out_channels=2, feature_size=12,
        num_heads=(1, 2, 3, 4)),
    "ViT-2d": _monai("ViT", 1, 32, 32, in_channels=1, img_size=32, patch_size=8, spatial_dims=2,
        hidden_size=32, mlp_dim=64, num_layers=2, num_heads=2, classification=True),
    "ViT-3d": _monai("ViT", 1, 32, 32, 32, in_channels=1, img_size=32, patch_size=8, hidden_size=32,
        mlp_dim=64, num_layers=2, num_heads=2),
    "ViTAutoEnc-2d": _monai("ViTAutoEnc", 1, 32, 32, in_channels=1, img_size=32, patch_size=16,
        spatial_dims=2, hidden_size=32, mlp_dim=64, num_layers=2, num_heads=2),
    "DenseNet121-2d": _monai("DenseNet121", 1, 64, 64, spatial_dims=2, in_channels=1, out_channels=2),
    "DenseNet-3d": _monai("DenseNet", 1, 32, 32, 32, spatial_dims=3, in_channels=1, out_channels=2,
        block_config=(2, 2), init_features=8, growth_rate=4),
    "ResNet-2d": _monai("ResNet", 1, 64, 64, block="basic", layers=[1, 1, 1, 1], spatial_dims=2,
        num_classes=2, block_inplanes=[8, 8, 16, 16], n_input_channels=1),
    "ResNet-3d": _monai("ResNet", 1, 32, 32, 32, block="basic", layers=[1, 1, 1, 1], spatial_dims=3,
        num_classes=2, block_inplanes=[8, 8, 16, 16], n_input_channels=1),
    "SEResNet50-2d": _monai("SEResNet50", 3, 64, 64, spatial_dims=2, in_channels=3, num_classes=2),
    "EfficientNetBN-2d": _monai("EfficientNetBN", 3, 64, 64, model_name="efficientnet-b0",
        pretrained=False),
    "HighResNet-3d": _monai("HighResNet", 1, 24, 24, 24, spatial_dims=3, in_channels=1, out_channels=2),
    "AutoEncoder-2d": _monai("AutoEncoder", 1, 32, 32, spatial_dims=2, in_channels=1, out_channels=1,
        channels=(4, 8), strides=(2, 2)),
    "VQVAE-2d": _monai("VQVAE", 1, 32, 32, spatial_dims=2, in_channels=1, out_channels=1, channels=(8, 8),
        num_res_channels=(8, 8), downsample_parameters=((2, 4, 1, 1),) * 2,
        upsample_parameters=((2, 4, 1, 1, 0),) * 2, num_embeddings=16, embedding_dim=8),
    "AutoencoderKL-2d": _monai("AutoencoderKL", 1, 32, 32, spatial_dims=2, channels=(8, 8),
        latent_channels=4, num_res_blocks=(1, 1), attention_levels=(False, False), norm_num_groups=4),
    "PatchDiscriminator-2d": _monai("PatchDiscriminator", 1, 64, 64, spatial_dims=2, channels=8,
        in_channels=1),
    "DiffusionModelUNet-2d": _diffusion(2),
    "DiffusionModelUNet-3d": _diffusion(3),
    "DiNTS-TopologyInstance": lambda: _build_dints(),
    "MedNeXt-2d": _monai("MedNeXt", 1, 64, 64, spatial_dims=2, init_filters=4, in_channels=1,
        out_channels=2),
    "RegUNet-2d": _monai("RegUNet", 1, 64, 64, spatial_dims=2, in_channels=1, num_channel_initial=4,
        depth=2),
    "VoxelMorphUNet-2d": _monai("VoxelMorphUNet", 2, 64, 64, spatial_dims=2, in_channels=2,
        unet_out_channels=8, channels=(4, 4, 4, 4, 8, 8), final_conv_channels=(8,)),
    "DAF3D": _monai("DAF3D", 1, 32, 32, 32, in_channels=1, out_channels=2),
    "HoVerNet": _monai("HoVerNet", 3, 256, 256),
    "Quicknat": _monai("Quicknat", 1, 64, 64, num_classes=2, num_channels=1, num_filters=8),
}  # fmt: skip


def _build_dints() -> Built:
    nets = importlib.import_module("monai.networks.nets")
    space = nets.TopologyInstance(
        channel_mul=0.25, num_blocks=4, num_depths=2, spatial_dims=2, use_downsample=True
    )
    model = nets.DiNTS(dints_space=space, in_channels=1, num_classes=2, spatial_dims=2, use_downsample=True)
    return Built(model.eval(), torch.rand(1, 1, 64, 64))
