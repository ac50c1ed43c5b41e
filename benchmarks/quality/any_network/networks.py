"""Four networks for four tasks, written as people write them in torch. Nothing in them comes from this package.

All take float32 [N, 3, H, W] in 0..1, to which noise is added for the denoiser. H and W are any multiples of their strides.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def conv_bn(channels: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without a bias and its BatchNorm."""
    conv = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """Two convolutions of 3x3 beside a shortcut, which is a convolution of 1x1 where sizes change (ResNet)."""

    def __init__(self, channels: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv_bn(channels, outputs, 3, stride)
        self.conv2 = conv_bn(outputs, outputs)
        same = stride == 1 and channels == outputs
        self.shortcut = nn.Identity() if same else conv_bn(channels, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x))) + self.shortcut(x))


class Grouped(nn.Module):
    """A bottleneck whose convolution of 3x3 has groups (ResNeXt)."""

    def __init__(self, channels: int, outputs: int, groups: int, stride: int = 1):
        super().__init__()
        self.conv1 = conv_bn(channels, outputs, 1)
        self.conv2 = conv_bn(outputs, outputs, 3, stride, groups)
        self.conv3 = conv_bn(outputs, outputs, 1)
        same = stride == 1 and channels == outputs
        self.shortcut = nn.Identity() if same else conv_bn(channels, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.conv1(x))
        y = self.relu(self.conv2(y))
        return self.relu(self.conv3(y) + self.shortcut(x))


def separable(channels: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A depthwise convolution and a pointwise one (MobileNet)."""
    return nn.Sequential(
        conv_bn(channels, channels, 3, stride, channels),
        nn.ReLU(inplace=True),
        conv_bn(channels, outputs, 1),
        nn.ReLU(inplace=True),
    )


class Classifier(nn.Module):
    """A small ResNet with strided, grouped and depthwise-separable convolutions of 32 to 256 channels. It returns logits [N,
    classes]."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 32, 3, 2), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(
            Residual(32, 32),
            Residual(32, 64, 2),
            Grouped(64, 128, 8),
            Grouped(128, 128, 8),
            separable(128, 256, 2),
            separable(256, 256),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(256, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.pool(self.stages(self.stem(x))), 1))


class DnCNN(nn.Module):
    """A denoiser that estimates the noise and subtracts it (Zhang et al., TIP 2017), with 10 layers in place of 17."""

    def __init__(self, depth: int = 10, channels: int = 64):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [*conv_bn(channels, channels), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.body(x)


def double(channels: int, outputs: int) -> nn.Sequential:
    """The two convolutions of one level of a U-Net."""
    return nn.Sequential(*conv_bn(channels, outputs), nn.ReLU(inplace=True), *conv_bn(outputs, outputs), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """A U-Net with three levels (Ronneberger et al., MICCAI 2015). It returns logits [N, classes, H, W]."""

    def __init__(self, classes: int = 5, width: int = 32):
        super().__init__()
        self.down1 = double(3, width)
        self.down2 = double(width, 2 * width)
        self.bottom = double(2 * width, 4 * width)
        self.pool = nn.MaxPool2d(2)
        self.enlarge2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.up2 = double(4 * width, 2 * width)
        self.enlarge1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.up1 = double(2 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.down1(x)
        middle = self.down2(self.pool(fine))
        y = self.bottom(self.pool(middle))
        y = self.up2(torch.cat([self.enlarge2(y), middle], 1))
        y = self.up1(torch.cat([self.enlarge1(y), fine], 1))
        return self.head(y)


def conv_leaky(channels: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(*conv_bn(channels, outputs, kernel, stride), nn.LeakyReLU(0.1, inplace=True))


class Bottleneck(nn.Module):
    """A convolution of 1x1 to half the channels and one of 3x3 back, whose result is added to the input (Darknet)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = conv_leaky(channels, channels // 2, 1)
        self.conv2 = conv_leaky(channels // 2, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x))


class Detector(nn.Module):
    """A backbone, two levels of a feature pyramid, and two heads at an eighth of the size, without anchors (as FCOS).

    Returns the logits of the classes, [N, classes, H/8, W/8], and the logarithms of the distances from each place to the left, top,
    right and bottom of its object in units of 8 pixels, [N, 4, H/8, W/8].
    """

    def __init__(self, classes: int = 4):
        super().__init__()
        self.stem = conv_leaky(3, 32, 3, 2)
        self.stage2 = nn.Sequential(conv_leaky(32, 64, 3, 2), Bottleneck(64))
        self.stage3 = nn.Sequential(conv_leaky(64, 128, 3, 2), Bottleneck(128), Bottleneck(128))
        self.stage4 = nn.Sequential(conv_leaky(128, 256, 3, 2), Bottleneck(256))
        self.lateral3 = nn.Conv2d(128, 64, 1)
        self.lateral4 = nn.Conv2d(256, 64, 1)
        self.smooth = conv_leaky(64, 64)
        self.classes = nn.Sequential(conv_leaky(64, 64), nn.Conv2d(64, classes, 3, padding=1))
        self.boxes = nn.Sequential(conv_leaky(64, 64), nn.Conv2d(64, 4, 3, padding=1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fine = self.stage3(self.stage2(self.stem(x)))
        coarse = self.lateral4(self.stage4(fine))
        features = self.smooth(self.lateral3(fine) + F.interpolate(coarse, scale_factor=2, mode="nearest"))
        return self.classes(features), self.boxes(features)
