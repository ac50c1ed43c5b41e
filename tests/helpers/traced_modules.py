"""Small modules as people write them, with which `trace` is tested."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """A block of a ResNeXt: stride, groups, BatchNorm, ReLU in place, and a shortcut that is a convolution where sizes change."""

    def __init__(self, c: int, k: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, k, 1, bias=False), nn.BatchNorm2d(k)
        self.conv2, self.bn2 = nn.Conv2d(k, k, 3, stride, 1, groups=4, bias=False), nn.BatchNorm2d(k)
        self.conv3, self.bn3 = nn.Conv2d(k, k, 1, bias=False), nn.BatchNorm2d(k)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k)) if stride > 1 or c != k else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))
        self.layers = nn.Sequential(Bottleneck(8, 8, 1), Bottleneck(8, 16, 2), Bottleneck(16, 16, 1))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.pool(self.layers(self.stem(x))), 1))


class UNet(nn.Module):
    """A U-Net, for pictures whose sides are multiples of 4."""

    def __init__(self) -> None:
        super().__init__()

        def double(c: int, k: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(c, k, 3, padding=1), nn.BatchNorm2d(k), nn.ReLU(True), nn.Conv2d(k, k, 3, padding="same"), nn.GELU()
            )

        self.down = nn.ModuleList([double(3, 4), double(4, 8), double(8, 8)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(8, 8, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)])
        self.merge = nn.ModuleList([double(16, 8), double(12, 4)])
        self.last = nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return self.last(x).sigmoid()


class DnCNN(nn.Module):
    """The network of Zhang et al. 2017: it computes the noise, which is subtracted. Pictures are padded to multiples of 4 and
    cut."""

    def __init__(self) -> None:
        super().__init__()
        inner = [m for _ in range(3) for m in (nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True))]
        self.dncnn = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), *inner, nn.Conv2d(6, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, w = x.shape[2:]
        x = F.pad(x, (0, (4 - w % 4) % 4, 0, (4 - h % 4) % 4), mode="reflect")
        return (x - self.dncnn(x))[:, :, :h, :w].contiguous()


class Compact(nn.Module):
    """SRVGGNetCompact of Real-ESRGAN: a list of layers, to whose result the repeated picture is added."""

    def __init__(self) -> None:
        super().__init__()
        inner = [m for _ in range(2) for m in (nn.Conv2d(8, 8, 3, 1, 1), nn.PReLU(num_parameters=8))]
        self.body = nn.ModuleList([nn.Conv2d(3, 8, 3, 1, 1), nn.PReLU(num_parameters=8), *inner, nn.Conv2d(8, 48, 3, 1, 1)])
        self.upsampler = nn.PixelShuffle(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x
        for layer in self.body:
            out = layer(out)
        out = self.upsampler(out)
        out += F.interpolate(x, scale_factor=4, mode="nearest")
        return out


class DenseBlock(nn.Module):
    """A residual dense block of ESRGAN."""

    def __init__(self, c: int = 6, growth: int = 4):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(c + i * growth, growth if i < 2 else c, 3, 1, 1) for i in range(3)])
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x1 = self.lrelu(self.convs[0](x))
        x2 = self.lrelu(self.convs[1](torch.cat((x, x1), 1)))
        x3 = self.convs[2](torch.cat((x, x1, x2), 1))
        return x3 * 0.2 + x


class RRDBNet(nn.Module):
    """ESRGAN's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, 6, 3, 1, 1)
        self.body = nn.Sequential(*[nn.Sequential(DenseBlock(), DenseBlock()) for _ in range(2)])
        self.conv_body, self.conv_up, self.conv_last = nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        feat = self.conv_first(x)
        for block in self.body:
            feat = block(feat) * 0.2 + feat
        feat = feat + self.conv_body(feat)
        feat = F.leaky_relu(self.conv_up(F.interpolate(feat, scale_factor=2, mode="nearest")), 0.2)
        return self.conv_last(feat).clamp(0, 1)


class SPAN(nn.Module):
    """Swift parameter-free attention: an activation of the features scales them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]) for _ in range(2)])
        self.conv_cat, self.upsampler = nn.Conv2d(24, 8, 1), nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2))
        self.register_buffer("mean", torch.tensor([0.4488, 0.4371, 0.404]).view(1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_1((x - self.mean) * 255.0)
        features = [x]
        for first, second in self.blocks:
            out = second(F.silu(first(x)))
            x = (out + x) * (torch.sigmoid(out) - 0.5)
            features.append(x)
        return self.upsampler(self.conv_cat(torch.cat(features, 1)))


class Detector(nn.Module):
    """A backbone with two heads: depthwise and dilated convolutions, a squeeze, a gate of two halves, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Hardswish(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 5, 1, 2, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 2, 1), nn.SiLU(), nn.Conv2d(2, 8, 1), nn.Hardsigmoid())
        self.gate, self.dropout = nn.Conv2d(8, 16, 3, padding=(2, 3), dilation=(2, 3), padding_mode="reflect"), nn.Dropout(0.1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.boxes, self.scores = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 5, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.depthwise(self.stem(x))
        x = x * self.squeeze(x)
        left, right = self.gate(self.dropout(x)).chunk(2, dim=1)
        x = left * right * self.scale + x
        return {"boxes": self.boxes(x).flatten(2).permute(0, 2, 1), "scores": torch.tanh(self.scores(x))}


class WindowAttention(nn.Module):
    """Attention inside windows of 4x4, for sides that are multiples of 4. It looks up a table of biases by integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.qkv = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8), nn.Linear(8, 24)
        self.table, self.last = nn.Parameter(torch.rand(31)), nn.Conv2d(8, 3, 3, padding=1, bias=False)
        self.register_buffer("index", torch.arange(16)[:, None] - torch.arange(16)[None] + 15)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        n, rows, columns = x.shape[0], x.shape[2] // 4, x.shape[3] // 4
        y = x.view(n, 8, rows, 4, columns, 4).permute(0, 2, 4, 3, 5, 1).reshape(n * rows * columns, 16, 8)
        q, k, v = self.qkv(self.norm(y)).chunk(3, dim=-1)
        y = ((q @ k.transpose(1, 2)) * 8**-0.5 + self.table[self.index]).softmax(-1) @ v
        y = y.view(n, rows, columns, 4, 4, 8).permute(0, 5, 1, 3, 2, 4).reshape(n, 8, rows * 4, columns * 4)
        return self.last(x + y)


class Oddments(nn.Module):
    """Forms that the other modules lack: a layer used twice, computed weights, an even kernel, numbers as left operands, and
    cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.twice = nn.Conv2d(3, 8, (4, 3), padding="same"), nn.Conv2d(8, 8, 3, padding=1)
        self.g, self.v = nn.Parameter(torch.full((8, 1, 1, 1), 0.5)), nn.Parameter(torch.rand(8, 4, 3, 3))
        self.gains = nn.Parameter(torch.rand(8))
        self.plain_norm, self.norm, self.elu = nn.BatchNorm2d(8, affine=False), nn.BatchNorm2d(8), nn.ELU(0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.plain_norm(self.even(x - 0.5))
        y = self.twice(self.elu(self.twice(y)))
        y = F.conv2d(y, self.g * self.v, groups=2, stride=(1, 2))
        y = 1 - y / 255 - torch.tensor(2.0)
        y = torch.where(y > 0, y, -y) * self.gains.view(1, -1, 1, 1)
        y = self.norm(F.avg_pool2d(y, 3, 1, 1))
        y = F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2)[:, 2:6].clone().mul_(2).relu_()
        return y, F.interpolate(y, size=x.shape[2:], mode="bicubic")


class Attention(nn.Module):
    """Attention between all pixels: views that need contiguous memory, and several values from one call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Conv2d(3, 8, 3, 4, 1), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = x.flatten(2).transpose(1, 2)
        y = F.scaled_dot_product_attention(*[self.attention(y, y, y)[0]] * 3).transpose(1, 2).contiguous().view(x.shape)
        return x + y * y.max(1, keepdim=True).values
