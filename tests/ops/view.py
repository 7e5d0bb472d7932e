"""Shape, stride and layout: views, concatenation, padding, permutation."""

import torch
import torch.nn.functional as F

from tests.ops import bf16, case, f32, i64, mask, tensor, u8


def pad_cases(mode: str, word: str):
    shapes = [((3, 5), (2, 1)), ((2, 3, 4, 5), (1, 2, 3, 1)), ((1, 2, 3, 4, 3), (1, 2, 0, 1, 2, 1))]
    for n, (shape, padding) in enumerate(shapes, 1):
        yield case(
            f"{word}_pad{n}d",
            lambda x, p=padding: F.pad(x, p, mode=mode),
            f32(*shape),
            train=True,
            fixture=n == 1,
        )
    yield case(f"{word}_pad1d_bf16", lambda x: F.pad(x, (2, 2), mode=mode), bf16(2, 3, 5), fixture=False)


CASES = [
    case("view", lambda x: x.view(3, 2), f32(2, 3), train=True),
    case("permute", lambda x: x.permute(2, 0, -2), f32(2, 3, 4), train=True),
    case("slice_step", lambda x: x[:, 1:-1:2], f32(2, 7), train=True),
    case("cat", lambda x, y: torch.cat([x, y, x], -1), f32(2, 3), f32(2, 1), train=True),
    case("diagonal", lambda x: x.diagonal(1, 0, 2), f32(3, 2, 5), train=True),
    case("as_strided", lambda x: x.as_strided((3, 2), (2, 3), 1), f32(3, 4), train=True),
    case("slice_scatter", lambda x, s: x.slice_scatter(s, 1, 1, 6, 2), f32(2, 7), f32(2, 3), train=True),
    case("constant_pad", lambda x: F.pad(x, (1, -1, 2, 0), value=3), f32(3, 4), train=True),
    *pad_cases("reflect", "reflection"),
    *pad_cases("replicate", "replication"),
    case(
        "pad_circular", lambda x: F.pad(x, (2, 1), mode="circular"), f32(2, 3, 4), train=True, fixture=False
    ),
    case("pad_bool", lambda x: F.pad(x, (1, 1), value=True), mask(3), fixture=False),
    case("reshape_copy", lambda x: x.t().reshape(6), f32(2, 3), fixture=False),
    case("view_zero_dim", lambda x: x.view(1, 1).squeeze(), f32(), fixture=False),
    case(
        "squeeze",
        lambda x: (x.squeeze(), x.squeeze(1), x.squeeze((0, -1)), x.unsqueeze(-1)),
        f32(1, 1, 3, 1),
        fixture=False,
    ),
    case("transpose", lambda x: x.transpose(-1, 0), i64(2, 3, 4), fixture=False),
    case("t_vector", lambda x: x.t() + 1, f32(3), fixture=False),
    case("expand", lambda x: x.expand(4, -1, 3) * 2, f32(2, 1), train=True, fixture=False),
    case("slice_negative", lambda x: (x[-3:], x[5:2], x[:100], x[:, -2:-1]), i64(6, 4), fixture=False),
    case("select", lambda x: (x[1], x.select(-1, -2)), f32(3, 4), train=True, fixture=False),
    case("split", lambda x: x.split(2, -1), f32(3, 5), train=True, fixture=False),
    case("split_with_sizes", lambda x: x.split([1, 0, 3]), f32(4, 2), train=True, fixture=False),
    case("chunk_unbind", lambda x: (*x.chunk(2, 1), *x.unbind(-1)), f32(2, 3), train=True, fixture=False),
    case("stack", lambda x, y: torch.stack([x, y], -1), f32(2, 3), f32(2, 3), train=True, fixture=False),
    case("cat_promotes", lambda x, y: torch.cat([x, y]), i64(3), f32(2), fixture=False),
    case("cat_empty", lambda x, y: torch.cat([x, y], 1), f32(0), f32(2, 3), fixture=False),
    case("cat_all_empty", lambda x: torch.cat([x, x]), f32(0), fixture=False),
    case("stack_zero_dim", lambda x, y: torch.stack([x, y]), bf16(), bf16(), fixture=False),
    case("flip", lambda x: x.flip(0, -1), f32(2, 3, 4), train=True, fixture=False),
    case("flip_nothing", lambda x: x.flip(()) + 0, f32(2), fixture=False),
    case("roll", lambda x: x.roll((1, -2), (0, -1)), f32(3, 4), train=True, fixture=False),
    case("roll_flat", lambda x: x.roll(5), i64(2, 3), fixture=False),
    case("repeat", lambda x: x.repeat(2, 1, 3), f32(2, 3), train=True, fixture=False),
    case("repeat_zero", lambda x: x.repeat(0, 2), f32(3), fixture=False),
    case("tile_rot90", lambda x: (x.tile(2), x.rot90(), x.repeat_interleave(2, 1)), i64(2, 3), fixture=False),
    case("unfold", lambda x: x.unfold(1, 3, 2), f32(2, 8), train=True, fixture=False),
    case("unfold_blocks", lambda x: x.unfold(0, 2, 2), f32(5, 3), train=True, fixture=False),
    case("unfold_images", lambda x: F.unfold(x, 2), f32(1, 2, 4, 5), train=True, fixture=False),
    case("fold_images", lambda x: F.fold(x, (4, 5), 2), f32(1, 8, 12), train=True, fixture=False),
    case("diagonal_negative", lambda x: x.diagonal(-1), i64(4, 3), fixture=False),
    case("diagonal_outside", lambda x: x.diagonal(9), f32(4, 3), fixture=False),
    case("diag_embed", lambda x: torch.diag_embed(x, 1, 0, -1), f32(2, 3), train=True, fixture=False),
    case("diag_embed_negative", lambda x: torch.diag_embed(x, -2), i64(2), fixture=False),
    case("diag_embed_swapped", lambda x: torch.diag_embed(x, 1, -1, -2), i64(2, 3), fixture=False),
    case(
        "diagonal_scatter",
        lambda x, s: x.diagonal_scatter(s, 1),
        f32(3, 4),
        f32(3),
        train=True,
        fixture=False,
    ),
    case(
        "diagonal_scatter_dims",
        lambda x, s: x.diagonal_scatter(s, -1, 2, 0),
        f32(3, 2, 4),
        f32(2, 3),
        fixture=False,
    ),
    case(
        "select_scatter",
        lambda x, s: x.select_scatter(s, -1, -2),
        f32(3, 4),
        f32(3),
        train=True,
        fixture=False,
    ),
    case(
        "slice_scatter_whole",
        lambda x, s: x.slice_scatter(s),
        f32(3, 4),
        f32(3, 4),
        train=True,
        fixture=False,
    ),
    case("slice_scatter_end", lambda x, s: x.slice_scatter(s, 0, -2), i64(5), i64(2), fixture=False),
    case("write_through_view", lambda x: x.clone().view(6).fill_(1.0), f32(2, 3), fixture=False),
    case(
        "write_through_slice",
        lambda x, y: torch.cat([x]).index_fill_(0, torch.tensor([0]), 2).narrow(0, 1, 2).copy_(y),
        f32(4),
        f32(2),
        fixture=False,
    ),
    case("as_strided_overlapping", lambda x: x.as_strided((4, 3), (1, 1)), f32(6), train=True, fixture=False),
    case("as_strided_dense", lambda x: x.as_strided((2, 3), (1, 2), 3), f32(3, 4), fixture=False),
    case("as_strided_of_transposed", lambda x: x.t().as_strided((2, 3), (1, 2)), f32(3, 4), fixture=False),
    case(
        "as_strided_scatter",
        lambda x, s: x.as_strided_scatter(s, (2, 2), (1, 3), 1),
        f32(3, 4),
        f32(2, 2),
        train=True,
        fixture=False,
    ),
    case("tril", lambda x: x.tril(-1), f32(2, 3, 4), train=True, fixture=False),
    case("triu", lambda x: x.triu(1), bf16(4, 4), train=True, fixture=False),
    case("triu_far", lambda x: (x.triu(99), x.tril(-99), x.triu(-99)), mask(3, 4), fixture=False),
    case(
        "view_as_real",
        lambda x: torch.view_as_real(x) * 2,
        tensor(torch.complex64, 2, 3),
        train=True,
        fixture=False,
    ),
    case("view_as_complex", lambda x: torch.view_as_complex(x) * 2, f32(3, 2), train=True, fixture=False),
    case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), f32(2, 8, 3, 2), train=True, fixture=False),
    case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), f32(2, 4, 6), train=True, fixture=False),
    case("channel_shuffle", lambda x: F.channel_shuffle(x, 2), f32(1, 4, 2, 2), train=True, fixture=False),
    case(
        "channels_last",
        lambda x: x.contiguous(memory_format=torch.channels_last) + 1,
        f32(2, 3, 4, 5),
        fixture=False,
    ),
    case("clone_detach", lambda x: x.clone().detach() * 2, u8(3), fixture=False),
    case("block_diag", lambda x, y: torch.block_diag(x, y), f32(2, 3), f32(2, 2), train=True, fixture=False),
    case("trace", torch.trace, f32(3, 4), train=True, fixture=False),
    case(
        "native_channel_shuffle",
        lambda x: torch.ops.aten.native_channel_shuffle(x, 2),
        f32(1, 4, 2, 2),
        fixture=False,
    ),
]
