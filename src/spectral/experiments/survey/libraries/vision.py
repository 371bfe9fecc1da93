"""Segmenters, detectors, medical, contrastive and other networks of smaller libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from spectral.experiments.survey.checks import Built

Named = Iterator[tuple[str, Callable[[], Built]]]

_DECODERS = """
Unet UnetPlusPlus MAnet Linknet FPN PSPNet PAN DeepLabV3 DeepLabV3Plus UPerNet Segformer
"""
_ENCODERS = ("resnet18", "mobilenet_v2", "efficientnet-b0")
_MORE_ENCODERS = """
vgg11_bn densenet121 dpn68 se_resnet50 xception inceptionv4 inceptionresnetv2 mit_b0 mobileone_s0
timm-regnetx_002 timm-mobilenetv3_small_100 tu-convnext_atto tu-resnet18d
"""
_YOLO = """
yolov3-tiny yolov5n yolov6n yolov8n yolov8n-cls yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-ghost
yolov8n-p2 yolov8n-p6 yolov8n-world yolov9t yolov10n yolo11n yolo11n-cls yolo11n-seg yolo11n-pose yolo12n
yolo12n-cls yolo26n yolo26n-cls yolov8-rtdetr rtdetr-resnet50
"""
_CLIP = """
RN50 ViT-S-32-alt ViT-M-32-alt convnext_tiny coca_ViT-B-32 MobileCLIP-S1 MobileCLIP2-S0 PE-Core-T-16-384
swin_base_patch4_window7_224 vit_relpos_medium_patch16_cls_224 ViTamin-S ViT-B-32-SigLIP2-256
vit_medium_patch16_gap_256
"""
_TIMM = """
levit_128s maxvit_rmlp_pico_rw_256 mvitv2_tiny hiera_tiny_224 nextvit_small efficientformerv2_s0
tnt_s_patch16_224 gcvit_xxtiny
"""
_TORCHVISION = """
googlenet regnet_y_400mf swin_v2_t maxvit_t segmentation.lraspp_mobilenet_v3_large
detection.ssdlite320_mobilenet_v3_large detection.fasterrcnn_mobilenet_v3_large_320_fpn video.r3d_18
video.mvit_v2_s optical_flow.raft_small
"""
_PYTORCHCV = """
preresnet10 seresnet10 dla34 hrnet_w18_small_v1 mobilenetv2_w1 shufflenetv2_w1 ghostnet bagnet9 selecsls42
octresnet10_ad2 diaresnet10 darknet_tiny peleenet vovnet27s polynet nasnet_4a1056
bisenet_resnet18_celebamaskhq icnet_resnetd50b_cityscapes sinet_cityscapes lednet_cityscapes
"""


def list_smp() -> Named:
    """Every decoder of segmentation-models-pytorch on three encoders, U-Net on more."""
    for decoder in _DECODERS.split():
        for encoder in _ENCODERS:
            if decoder != "PAN" or encoder != "dpn68":
                side = {"UPerNet": 192, "PAN": 128}.get(decoder, 64)  # they pool to 6 × 6, and to an eighth
                yield f"{decoder}-{encoder}", partial(_build_smp, decoder, encoder, side)
    for encoder in _MORE_ENCODERS.split():
        yield f"Unet-{encoder}", partial(_build_smp, "Unet", encoder)
    yield "DPT-tu-vit_tiny_patch16_224", partial(_build_smp, "DPT", "tu-vit_tiny_patch16_224", 224)


def list_ultralytics() -> Named:
    """Detectors, classifiers, segmenters and pose networks of ultralytics, from the files it ships."""
    for name in _YOLO.split():
        yield name, partial(_build_yolo, name)


def list_open_clip() -> Named:
    """Image towers with their text towers, of open_clip."""
    for name in _CLIP.split():
        yield name, partial(_build_clip, name)


def list_timm() -> Named:
    """A sample of timm; `spectral.experiments.coverage` has all of its architectures."""
    for name in _TIMM.split():
        yield name, partial(_build_timm, name)


def list_torchvision() -> Named:
    """A sample of torchvision: classifiers, segmenters, detectors, videos, optical flow."""
    for name in _TORCHVISION.split():
        yield name, partial(_build_torchvision, name)


def list_pytorchcv() -> Named:
    """A sample of pytorchcv."""
    for name in _PYTORCHCV.split():
        yield name, partial(_build_pytorchcv, name)


def list_kornia() -> Named:
    """Detectors and descriptors of local features, edges and faces."""
    yield from _KORNIA.items()


def _build_smp(decoder: str, encoder: str, side: int = 64) -> Built:
    smp = importlib.import_module("segmentation_models_pytorch")
    model = getattr(smp, decoder)(encoder, encoder_weights=None, classes=3)
    return Built(model.eval(), torch.rand(1, 3, side, side))


def _build_yolo(name: str) -> Built:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    importlib.import_module("ultralytics.utils").LOGGER.setLevel("ERROR")
    kinds = {
        "cls": "ClassificationModel",
        "seg": "SegmentationModel",
        "pose": "PoseModel",
        "obb": "OBBModel",
        "world": "WorldModel",
    }
    cls = "RTDETRDetectionModel" if "rtdetr" in name else kinds.get(name.rpartition("-")[2], "DetectionModel")
    model = getattr(tasks, cls)(f"{name}.yaml", verbose=False)
    return Built(model.eval(), torch.rand(1, 3, 64, 64))


def _build_clip(name: str) -> Built:
    open_clip = importlib.import_module("open_clip")
    config = open_clip.get_model_config(name)
    config["text_cfg"] |= {"layers": 1}
    for key in ("hf_model_name", "hf_tokenizer_name"):
        config["text_cfg"].pop(key, None)
    vision = config["vision_cfg"]
    if isinstance(vision.get("layers"), int):
        vision["layers"] = 2
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False
    cls = (
        open_clip.CoCa
        if "coca" in name
        else open_clip.CustomTextCLIP
        if config.pop("custom_text", False)
        else open_clip.CLIP
    )
    model = cls(**{k: v for k, v in config.items() if k not in ("custom_text",)})
    side = vision["image_size"]
    text = torch.zeros(1, config["text_cfg"].get("context_length", 77)).long()
    return Built(model.eval(), (torch.rand(1, 3, side, side), text), images=(0,))


def _build_timm(name: str) -> Built:
    timm = importlib.import_module("timm")
    model = timm.create_model(name, pretrained=False)
    return Built(model.eval(), torch.rand(1, *model.pretrained_cfg["input_size"]))


def _build_torchvision(name: str) -> Built:
    models = importlib.import_module("torchvision.models")
    if name == "video.mvit_v2_s":
        return _build_mvit(models.video.mvit)
    task, _, bare = name.rpartition(".")
    backbone = {"weights_backbone": None} if task in ("segmentation", "detection") else {}
    model = models.get_model(bare, weights=None, **backbone).eval()
    if task == "detection":
        return Built(model, [torch.rand(3, 128, 128)])
    if task == "optical_flow":
        return Built(model, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)))
    if task == "video":
        return Built(model, torch.rand(1, 3, 8, 64, 64))
    side = 256 if bare == "swin_v2_t" else 224 if bare in ("maxvit_t", "alexnet", "googlenet") else 64
    return Built(model, torch.rand(1, 3, side, side))


def _build_mvit(video: Any) -> Built:
    """MViTv2-S for small videos: torchvision's own is for one size, which takes minutes."""
    turns, doubled = (1, 3, 14), [96, 192, 384, 768]
    blocks = []
    for i in range(16):
        stage = sum(i > turn for turn in turns)
        steps = 1 if i in turns else 0
        keys = (8, 4, 2, 1)[stage + steps]
        blocks.append(
            video.MSBlockConfig(
                num_heads=2 ** (stage + steps), input_channels=doubled[stage],
                output_channels=doubled[stage + steps], kernel_q=[3, 3, 3], kernel_kv=[3, 3, 3],
                stride_q=[1, 1 + steps, 1 + steps], stride_kv=[1, keys, keys],
            )
        )  # fmt: skip
    model = video.MViT(
        spatial_size=(64, 64), temporal_size=8, block_setting=blocks, residual_pool=True,
        residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True,
    )  # fmt: skip
    return Built(model.eval(), torch.rand(1, 3, 8, 64, 64))


def _build_pytorchcv(name: str) -> Built:
    provider = importlib.import_module("pytorchcv.model_provider")
    model = provider.get_model(name, pretrained=False)
    side = getattr(model, "in_size", (224, 224))
    small = {"_celebamaskhq": 128, "_cityscapes": 128}
    for ending, n in small.items():
        if name.endswith(ending):
            side = (n, n)
            model = provider.get_model(name, pretrained=False, in_size=side)
    return Built(model.eval(), torch.rand(1, 3, *side))


def _kornia(path: str, *shape: int, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        place, _, name = path.rpartition(".")
        cls: Callable[..., nn.Module] = getattr(importlib.import_module(f"kornia.{place}"), name)
        return Built(cls(**options).eval(), torch.rand(1, *shape))

    return build


def _build_sold2() -> Built:
    """A line detector whose lines are few: with random weights it would look for hundreds, one by one."""
    sold2 = importlib.import_module("kornia.feature.sold2")
    settings = importlib.import_module("kornia.feature.sold2.structures")
    config = settings.DetectorCfg(max_num_junctions=8)
    config.line_detector_cfg.heatmap_refine_cfg.num_blocks = 2
    model = sold2.SOLD2_detector(pretrained=False, config=config)
    return Built(model.eval(), torch.rand(1, 1, 64, 64))


_KORNIA: dict[str, Callable[[], Built]] = {
    "HardNet": _kornia("feature.HardNet", 1, 32, 32, pretrained=False),
    "HardNet8": _kornia("feature.HardNet8", 1, 32, 32, pretrained=False),
    "HyNet": _kornia("feature.HyNet", 1, 32, 32, pretrained=False),
    "SOSNet": _kornia("feature.SOSNet", 1, 32, 32, pretrained=False),
    "TFeat": _kornia("feature.TFeat", 1, 32, 32, pretrained=False),
    "OriNet": _kornia("feature.OriNet", 1, 32, 32, pretrained=False),
    "KeyNet": _kornia("feature.KeyNet", 1, 64, 64, pretrained=False),
    "DISK": _kornia("feature.DISK", 3, 64, 64),
    "DeFMO": _kornia("feature.DeFMO", 6, 64, 64, pretrained=False),
    "XFeatModel": _kornia("feature.XFeatModel", 3, 64, 64),
    "ALIKED": _kornia("feature.ALIKED", 3, 64, 64),
    "SOLD2_detector": _build_sold2,
    "TinyViT": _kornia("contrib.TinyViT", 3, 224, 224),
    "BlurPool2D": _kornia("filters.BlurPool2D", 3, 64, 64, kernel_size=3),
    "MaxBlurPool2D": _kornia("filters.MaxBlurPool2D", 3, 64, 64, kernel_size=3),
    "PyrDown": _kornia("geometry.transform.PyrDown", 3, 64, 64),
    "ScalePyramid": _kornia("geometry.transform.ScalePyramid", 1, 64, 64),
}
