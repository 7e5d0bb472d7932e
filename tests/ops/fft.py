"""Fourier transforms."""

import torch
from torch import fft

from tests.ops import case, f32, f64, tensor

COMPLEX = tensor(torch.complex64, 3, 4, 5)

CASES = [
    case("fft", fft.fft, COMPLEX, train=True),
    case("ifft_dim", lambda x: fft.ifft(x, dim=0, norm="ortho"), COMPLEX),
    case("rfft", fft.rfft, f32(3, 8), train=True),
    case("rfft_odd", lambda x: fft.rfft(x, n=5, norm="forward"), f32(3, 8)),
    case("irfft", fft.irfft, COMPLEX, train=True),
    case("irfft_odd", lambda x: fft.irfft(x, n=7, dim=1), COMPLEX, fixture=False),
    case("fft_of_real", fft.fft, f32(2, 6), train=True, fixture=False),
    case("fftn", fft.fftn, COMPLEX, fixture=False),
    case("fftn_four", fft.fftn, tensor(torch.complex64, 2, 3, 4, 5), fixture=False),
    case("rfftn_four", lambda x: fft.rfftn(x, norm="ortho"), f32(2, 3, 4, 5), fixture=False),
    case("rfft2_dims", lambda x: fft.rfft2(x, dim=(2, 0)), f32(4, 3, 6), train=True, fixture=False),
    case("irfftn", lambda x: fft.irfftn(x, s=(4, 6), dim=(0, 2)), COMPLEX, fixture=False),
    case("hfft", fft.hfft, tensor(torch.complex64, 2, 5), fixture=False),
    case("ihfft", fft.ihfft, f32(2, 8), fixture=False),
    case("rfft_f64", fft.rfft, f64(3, 8), fixture=False),
    case(
        "stft",
        lambda x: torch.stft(x, 8, hop_length=4, window=torch.ones(8), return_complex=True),
        f32(32),
        fixture=False,
    ),
]
