"""Networks of more families, written as modules with the keys of their authors' state dicts. The graphs are compared with them.

All networks take and give pixels in 0..1.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


def conv(c: int, k: int, kernel: int = 3, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(c, k, kernel, padding=kernel // 2, **settings)  # type: ignore[arg-type]


class Conv3XC(nn.Module):
    """A convolution in the form in which it is trained: 1x1, 3x3 and 1x1 in a row, with a 1x1 convolution beside them."""

    def __init__(self, c: int, k: int):
        super().__init__()
        self.sk, self.eval_conv = nn.Conv2d(c, k, 1), conv(c, k)
        self.conv = nn.Sequential(nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * k, 3), nn.Conv2d(2 * k, k, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (1, 1, 1, 1))) + self.sk(x)


class SPAB(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (Conv3XC(c, c) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.c1_r(x)
        y = self.c3_r(F.silu(self.c2_r(F.silu(first, inplace=True)), inplace=True))
        return (y + x) * (torch.sigmoid(y) - 0.5), first


class SPAN(nn.Module):
    def __init__(self, scale: int = 2, c: int = 8, norm: bool = True):
        super().__init__()
        self.norm = norm
        if not norm:
            self.register_buffer("no_norm", torch.zeros(1))
        self.conv_1, self.conv_2, self.conv_cat = Conv3XC(3, c), Conv3XC(c, c), nn.Conv2d(4 * c, c, 1)
        for i in range(1, 7):
            self.add_module(f"block_{i}", SPAB(c))
        self.upsampler = nn.Sequential(conv(c, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm:
            x = (x - torch.tensor([0.4488, 0.4371, 0.4040]).view(3, 1, 1)) * 255
        first = y = self.conv_1(x)
        for i in range(1, 7):
            y, inner = self.get_submodule(f"block_{i}")(y)
            b1 = y if i == 1 else b1  # noqa: F821
        return self.upsampler(self.conv_cat(torch.cat([first, self.conv_2(y), b1, inner], 1)))


class CCA(nn.Module):
    def __init__(self, c: int, squeezed: int):
        super().__init__()
        self.conv_du = nn.Sequential(nn.Conv2d(c, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, c, 1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.conv_du(x.mean((2, 3), keepdim=True) + x.var((2, 3), unbiased=False, keepdim=True).sqrt())


class IMDB(nn.Module):
    def __init__(self, c: int, squeezed: int):
        super().__init__()
        self.given = c // 4
        kept = c - self.given
        self.c1, self.c2, self.c3, self.c4 = conv(c, c), conv(kept, c), conv(kept, c), conv(kept, self.given)
        self.c5, self.cca = nn.Conv2d(4 * self.given, c, 1), CCA(4 * self.given, squeezed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts, y = [], x
        for layer in (self.c1, self.c2, self.c3):
            y = F.leaky_relu(layer(y), 0.05)
            parts.append(y[:, : self.given])
            y = y[:, self.given :]
        return self.c5(self.cca(torch.cat([*parts, self.c4(y)], 1))) + x


class Distilling(nn.Module):
    """The layers that IMDN and RFDN have around their blocks."""

    def __init__(self, blocks: list[nn.Module], name: str, scale: int, c: int):
        super().__init__()
        self.blocks = [f"{name}{i + 1}" for i in range(len(blocks))]
        for key, block in zip(self.blocks, blocks, strict=True):
            self.add_module(key, block)
        self.fea_conv, self.LR_conv = conv(3, c), conv(c, c)
        self.c = nn.Sequential(nn.Conv2d(len(blocks) * c, c, 1), nn.LeakyReLU(0.05))
        self.upsampler = nn.Sequential(conv(c, 3 * scale**2), nn.PixelShuffle(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = y = self.fea_conv(x)
        outputs = []
        for key in self.blocks:
            y = self.get_submodule(key)(y)
            outputs.append(y)
        return self.upsampler(self.LR_conv(self.c(torch.cat(outputs, 1))) + first)


def imdn(scale: int = 2, blocks: int = 2, c: int = 8) -> nn.Module:
    return Distilling([IMDB(c, 2) for _ in range(blocks)], "IMDB", scale, c)


class ESA(nn.Module):
    def __init__(self, c: int, f: int):
        super().__init__()
        self.conv1, self.conv_f, self.conv4 = nn.Conv2d(c, f, 1), nn.Conv2d(f, f, 1), nn.Conv2d(f, c, 1)
        self.conv2 = nn.Conv2d(f, f, 3, stride=2)
        self.conv_max, self.conv3, self.conv3_ = (conv(f, f) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.conv1(x)
        y = F.max_pool2d(self.conv2(inner), 7, 3)
        y = self.conv3_(F.relu(self.conv3(F.relu(self.conv_max(y)))))
        y = F.interpolate(y, x.shape[2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(y + self.conv_f(inner)))


class RFDB(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.c1_d, self.c2_d, self.c3_d = (nn.Conv2d(c, c // 2, 1) for _ in range(3))
        self.c1_r, self.c2_r, self.c3_r = (conv(c, c) for _ in range(3))
        self.c4, self.c5, self.esa = conv(c, c // 2), nn.Conv2d(c // 2 * 4, c, 1), ESA(c, c // 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts, y = [], x
        for given, refine in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            parts.append(F.leaky_relu(given(y), 0.05))
            y = F.leaky_relu(refine(y) + y, 0.05)
        return self.esa(self.c5(torch.cat([*parts, F.leaky_relu(self.c4(y), 0.05)], 1)))


def rfdn(scale: int = 2, blocks: int = 2, c: int = 8) -> nn.Module:
    return Distilling([RFDB(c) for _ in range(blocks)], "B", scale, c)


class Shift(nn.Module):
    def __init__(self, sign: int):
        super().__init__()
        self.shifter = nn.Conv2d(3, 3, 1)
        self.shifter.weight.data = torch.eye(3).view(3, 3, 1, 1)
        self.shifter.bias.data = sign * torch.tensor([0.4488, 0.4371, 0.4040])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shifter(x)


class Body(nn.Module):
    """Layers under the key `body`, as some authors nest them. adds: whether the input is added, which makes a residual block."""

    def __init__(self, *layers: nn.Module, adds: bool = False):
        super().__init__()
        self.body, self.adds = nn.Sequential(*layers), adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + x) if self.adds else self.body(x)


class Cascade(nn.Module):
    def __init__(self, blocks: list[nn.Module], c: int):
        super().__init__()
        self.shared = len(blocks) == 1
        for i, block in enumerate(blocks, 1):
            self.add_module(f"b{i}", block)
        for i in range(1, 4):
            self.add_module(f"c{i}", Body(nn.Conv2d((i + 1) * c, c, 1), nn.ReLU()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = y = x
        for i in range(1, 4):
            joined = torch.cat([joined, self.get_submodule("b1" if self.shared else f"b{i}")(y)], 1)
            y = self.get_submodule(f"c{i}")(joined)
        return y


class CARN(Cascade):
    """A CARN. groups: more than one for a CARN-M."""

    def __init__(self, scale: int = 2, c: int = 8, groups: int = 1):
        def block() -> nn.Module:
            if groups == 1:
                return Body(conv(c, c), nn.ReLU(), conv(c, c), adds=True)
            grouped = [m for _ in range(2) for m in (conv(c, c, groups=groups), nn.ReLU())]
            return Body(*grouped, nn.Conv2d(c, c, 1), adds=True)

        super().__init__([Cascade([block() for _ in range(3 if groups == 1 else 1)], c) for _ in range(3)], c)
        self.sub_mean, self.add_mean, self.entry, self.exit = Shift(-1), Shift(1), conv(3, c), conv(c, 3)
        stages: list[nn.Module] = []
        for factor in (2, 2) if scale == 4 else (scale,):
            stages += [conv(c, c * factor**2, groups=groups), nn.ReLU(), nn.PixelShuffle(factor)]
        self.upsample = nn.ModuleDict({"up": Body(*stages)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(self.entry(self.sub_mean(x)))
        return self.add_mean(self.exit(self.upsample["up"](y)))


class VDSR(nn.Module):
    """A VDSR, which takes a picture that is enlarged already. colours: 1 for brightness alone, 3 for RGB."""

    def __init__(self, colours: int = 3, layers: int = 2, c: int = 8):
        super().__init__()
        self.conv1 = nn.Sequential(conv(colours, c, bias=False), nn.ReLU())
        self.trunk = nn.Sequential(*[nn.ModuleDict({"conv": conv(c, c, bias=False)}) for _ in range(layers)])
        self.conv2 = conv(c, colours, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(x)
        for block in self.trunk:
            y = F.relu(block["conv"](y))
        return self.conv2(y) + x


class DnCNN(nn.Module):
    """A DnCNN. norm: the eps of the BatchNorms, 0 for none. biases: whether the first convolution has a bias, and whether the
    others do."""

    def __init__(self, colours: int = 3, layers: int = 2, c: int = 8, norm: float = 0, biases=(True, True), name="model"):
        super().__init__()
        modules: list[nn.Module] = [conv(colours, c, bias=biases[0]), nn.ReLU()]
        for _ in range(layers):
            modules += [conv(c, c, bias=biases[1]), *([nn.BatchNorm2d(c, norm)] if norm else []), nn.ReLU()]
        self.add_module(name, nn.Sequential(*modules, conv(c, colours, bias=biases[1])))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - next(self.children())(x)


class ESPCN(nn.Module):
    def __init__(self, scale: int = 2, colours: int = 3, c: int = 8):
        super().__init__()
        self.first_part = nn.Sequential(conv(colours, c, 5), nn.Tanh(), conv(c, c // 2), nn.Tanh())
        self.last_part = nn.Sequential(conv(c // 2, colours * scale**2), nn.PixelShuffle(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last_part(self.first_part(x))


class FSRCNN(nn.Module):
    def __init__(self, scale: int = 2, colours: int = 3, d: int = 8, s: int = 4, m: int = 2):
        super().__init__()
        self.first_part = nn.Sequential(conv(colours, d, 5), nn.PReLU(d))
        inner = [m for _ in range(m) for m in (conv(s, s), nn.PReLU(s))]
        self.mid_part = nn.Sequential(nn.Conv2d(d, s, 1), nn.PReLU(s), *inner, nn.Conv2d(s, d, 1), nn.PReLU(d))
        self.last_part = nn.ConvTranspose2d(d, colours, 9, scale, 4, scale - 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last_part(self.mid_part(self.first_part(x)))


FAMILIES: dict[str, Callable[[], nn.Module]] = {  # the smallest member of each
    "span": SPAN,
    "imdn": imdn,
    "rfdn": rfdn,
    "carn": CARN,
    "vdsr": VDSR,
    "dncnn": DnCNN,
    "espcn": ESPCN,
    "fsrcnn": FSRCNN,
}
