"""The steps as Triton kernels: a whole batch in each launch, every view with its own numbers.

What they compute is stated in `hf_dr.views.device.eager`. They are launched without fused multiply-adds, which would round
once where Pillow rounds twice. Numbers of each view reach a kernel as a row of an int64 table (`hf_dr.views.device.program`).
"""

# Types of a kernel's arguments are Triton's own, said in comments.
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

from hf_dr.views.device import plan
from hf_dr.views.device.program import CHANGE_COLUMNS, MIX_COLUMNS, PASS_COLUMNS

# Constants of `plan` as Triton wants those that a kernel reads from outside.
GATHER = tl.constexpr(plan.GATHER)
COLOUR, SHARPNESS = tl.constexpr(plan.COLOUR), tl.constexpr(plan.SHARPNESS)
BRIGHTNESS, POSTERIZE = tl.constexpr(plan.BRIGHTNESS), tl.constexpr(plan.POSTERIZE)
SOLARIZE, CONTRAST = tl.constexpr(plan.SOLARIZE), tl.constexpr(plan.CONTRAST)
AUTOCONTRAST, EQUALIZE = tl.constexpr(plan.AUTOCONTRAST), tl.constexpr(plan.EQUALIZE)

BOX, BILINEAR, BICUBIC = (tl.constexpr(n) for n in range(3))

# Where in a row of a table each of its numbers is, and how long such a row is.
(
    CHANGE_SOURCE, CHANGE_SOURCE_HEIGHT, CHANGE_SOURCE_WIDTH, CHANGE_SOURCE_STRIDE, CHANGE_OUT, CHANGE_OUT_HEIGHT,
    CHANGE_OUT_WIDTH, CHANGE_KIND, CHANGE_A, CHANGE_B, CHANGE_C, CHANGE_D, CHANGE_E, CHANGE_F, CHANGE_FACTOR, CHANGE_TOP,
    CHANGE_LEFT, CHANGE_HEIGHT, CHANGE_WIDTH,
) = (tl.constexpr(n) for n in range(len(CHANGE_COLUMNS)))  # fmt: skip
(
    PASS_SOURCE, PASS_SOURCE_STRIDE, PASS_OUT, PASS_OUT_HEIGHT, PASS_OUT_WIDTH, PASS_AXIS, PASS_WEIGHTS, PASS_LAST,
    PASS_WINDOW, PASS_MIRRORED,
) = (tl.constexpr(n) for n in range(len(PASS_COLUMNS)))  # fmt: skip
MIX_VIEW, MIX_PARTNER, MIX_WEIGHT, MIX_TOP, MIX_LEFT, MIX_HEIGHT, MIX_WIDTH = (
    tl.constexpr(n) for n in range(len(MIX_COLUMNS))
)
CHANGE_ROW, PASS_ROW, MIX_ROW = (tl.constexpr(len(names)) for names in (CHANGE_COLUMNS, PASS_COLUMNS, MIX_COLUMNS))


@triton.jit
def probe_kernel(out):
    """Shows that kernels are compiled and run."""
    tl.store(out, 1)


@triton.jit
def _filtered(x, FILTER: tl.constexpr):
    """A filter of Pillow's at x, float64."""
    if FILTER == BOX:
        return tl.where((x > -0.5) & (x <= 0.5), 1.0, 0.0).to(tl.float64)
    x = tl.where(x < 0.0, -x, x)
    if FILTER == BILINEAR:
        return tl.where(x < 1.0, 1.0 - x, 0.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))


@triton.jit
def weights_kernel(
    sizes_ptr,  # int64 (A, 2): pixels of source and output
    first_ptr,  # int32 (A, X)
    weights_ptr,  # int32 (A, K, X)
    num_outputs,  # X
    num_weights,  # K
    HALF_WIDTH: tl.constexpr,
    FILTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The weights of an axis in double precision (`hf_dr.views.device.resampling.axis_weights`)."""
    axis = tl.program_id(0).to(tl.int64)
    in_size = tl.load(sizes_ptr + 2 * axis)
    out_size = tl.load(sizes_ptr + 2 * axis + 1)
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    used = x < out_size
    scale = in_size.to(tl.float64) / out_size.to(tl.float64)
    filterscale = tl.maximum(scale, 1.0)
    support = filterscale * HALF_WIDTH
    step = 1.0 / filterscale
    centre = (x.to(tl.float64) + 0.5) * scale
    first = tl.maximum((centre - support + 0.5).to(tl.int64), 0)
    stop = tl.minimum((centre + support + 0.5).to(tl.int64), in_size)
    total = tl.zeros([BLOCK], tl.float64)
    for k in range(num_weights):
        weight = _filtered(((first + k).to(tl.float64) - centre + 0.5) * step, FILTER)
        total += tl.where(first + k < stop, weight, 0.0)
    total = tl.where(total != 0.0, total, 1.0)
    for k in range(num_weights):
        weight = _filtered(((first + k).to(tl.float64) - centre + 0.5) * step, FILTER)
        weight = tl.where(first + k < stop, weight, 0.0)
        scaled = weight / total * 4194304.0
        rounded = tl.where(scaled < 0.0, scaled - 0.5, scaled + 0.5).to(tl.int32)
        tl.store(weights_ptr + (axis * num_weights + k) * num_outputs + x, rounded, mask=used)
    tl.store(first_ptr + axis * num_outputs + x, first.to(tl.int32), mask=used)


@triton.jit
def _across(k, starts, first_x, last, channel, weights_ptr, num_outputs, x, in_j, inside):
    """The products of the pixels at place k of the windows along a row."""
    weight = tl.load(weights_ptr + k * num_outputs + x, mask=in_j, other=0)
    column = 3 * tl.minimum(first_x + k, last) + channel
    level = tl.load(starts[None, :] + column[:, None], mask=inside, other=0)
    return level.to(tl.int32) * weight[:, None]


@triton.jit
def _down(k, source, stride, first_y, last, j, weights_ptr, num_outputs, y, in_y, inside):
    """The products of the pixels at place k of the windows along a column."""
    weight = tl.load(weights_ptr + k * num_outputs + y, mask=in_y, other=0)
    line = source + tl.minimum(first_y + k, last).to(tl.int64) * stride
    level = tl.load(line[None, :] + j[:, None], mask=inside, other=0)
    return level.to(tl.int32) * weight[None, :]


@triton.jit
def pass_kernel(
    source_ptr,
    out_ptr,
    table_ptr,  # int64 (N, PASS_ROW)
    first_ptr,  # int32 (A, X)
    weights_ptr,  # int32 (A, K, X)
    num_outputs,  # X
    num_weights,  # K
    UNROLLED: tl.constexpr,  # K again, or 0 where it is too large to be unrolled
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One pass of a resize: each view along its own axis.

    A column here is one byte of a row. Columns are the first axis of a tile: where Triton knows nothing of the order of
    addresses, as along a row, it gives neighbours on the first axis to the threads of a warp.
    """
    row = table_ptr + tl.program_id(0).to(tl.int64) * PASS_ROW
    height = tl.load(row + PASS_OUT_HEIGHT).to(tl.int32)
    row_bytes = 3 * tl.load(row + PASS_OUT_WIDTH).to(tl.int32)
    if (tl.program_id(2) * ROWS >= height) | (tl.program_id(1) * COLUMNS >= row_bytes):
        return
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    y = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    x = j // 3
    channel = j - 3 * x
    source = source_ptr + tl.load(row + PASS_SOURCE)
    stride = 3 * tl.load(row + PASS_SOURCE_STRIDE).to(tl.int32)
    axis = tl.load(row + PASS_WEIGHTS)
    first_ptr += axis * num_outputs
    weights_ptr += axis * num_weights * num_outputs
    in_y = y < height
    in_j = j < row_bytes
    inside = in_j[:, None] & in_y[None, :]
    last = tl.load(row + PASS_LAST).to(tl.int32)  # of the source's pixels along the axis; beyond it the weight is 0
    window = tl.load(row + PASS_WINDOW).to(tl.int32)  # of this view; K is the largest of the batch
    total = tl.full([COLUMNS, ROWS], 2097152, tl.int32)
    if tl.load(row + PASS_AXIS) == 1:
        first_x = tl.load(first_ptr + x, mask=in_j, other=0)
        starts = source + y.to(tl.int64) * stride
        if UNROLLED:
            for k in tl.static_range(UNROLLED):
                if k < window:
                    total += _across(k, starts, first_x, last, channel, weights_ptr, num_outputs, x, in_j, inside)
        else:
            for k in range(window):
                total += _across(k, starts, first_x, last, channel, weights_ptr, num_outputs, x, in_j, inside)
    else:
        first_y = tl.load(first_ptr + y, mask=in_y, other=0)
        if UNROLLED:
            for k in tl.static_range(UNROLLED):
                if k < window:
                    total += _down(k, source, stride, first_y, last, j, weights_ptr, num_outputs, y, in_y, inside)
        else:
            for k in range(window):
                total += _down(k, source, stride, first_y, last, j, weights_ptr, num_outputs, y, in_y, inside)
    level = tl.minimum(tl.maximum(total >> 22, 0), 255)
    if tl.load(row + PASS_MIRRORED) == 1:
        j = row_bytes - 3 - 3 * x + channel
    out = out_ptr + tl.load(row + PASS_OUT) + y.to(tl.int64) * row_bytes
    tl.store(out[None, :] + j[:, None], level.to(tl.uint8), mask=inside)


@triton.jit
def _grey(red, green, blue):
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


@triton.jit
def _blend(base, level, factor):
    """base + factor (level - base), product and sum each rounded to float32; int32."""
    mixed = base.to(tl.float32) + factor * (level - base).to(tl.float32)
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)


@triton.jit
def count_kernel(source_ptr, table_ptr, counts_ptr, BLOCK: tl.constexpr):
    """Histograms of the images that need them, int32 (N, 3, 256); of a contrast the sum of its grey levels, in two words."""
    n = tl.program_id(0).to(tl.int64)
    row = table_ptr + n * CHANGE_ROW
    kind = tl.load(row + CHANGE_KIND)
    width = tl.load(row + CHANGE_SOURCE_WIDTH).to(tl.int32)
    count = tl.load(row + CHANGE_SOURCE_HEIGHT).to(tl.int32) * width
    if (kind < CONTRAST) | (tl.program_id(1) * BLOCK >= count):
        return
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = p < count
    source = source_ptr + tl.load(row + CHANGE_SOURCE)
    places = source + 3 * ((p // width).to(tl.int64) * tl.load(row + CHANGE_SOURCE_STRIDE) + p % width)
    counts_ptr += n * 768
    red = tl.load(places, mask=inside, other=0).to(tl.int32)
    green = tl.load(places + 1, mask=inside, other=0).to(tl.int32)
    blue = tl.load(places + 2, mask=inside, other=0).to(tl.int32)
    if kind == CONTRAST:
        grey = tl.sum(tl.where(inside, _grey(red, green, blue), 0))
        tl.atomic_add(counts_ptr, grey & 0xFFFF)  # in two words: the sum of all blocks may not fit into one
        tl.atomic_add(counts_ptr + 1, grey >> 16)
    else:
        levels = tl.arange(0, 256)
        tl.atomic_add(counts_ptr + levels, tl.histogram(red, 256, mask=inside))
        tl.atomic_add(counts_ptr + 256 + levels, tl.histogram(green, 256, mask=inside))
        tl.atomic_add(counts_ptr + 512 + levels, tl.histogram(blue, 256, mask=inside))


@triton.jit
def _equalized(counts, levels):
    used = counts > 0
    last = tl.max(tl.where(used, levels, 0))
    step = (tl.sum(counts) - tl.sum(tl.where(levels == last, counts, 0))) // 255
    before = tl.cumsum(counts, 0) - counts
    table = tl.minimum((step // 2 + before) // tl.maximum(step, 1), 255)
    return tl.where((tl.sum(used.to(tl.int32)) <= 1) | (step == 0), levels, table)


@triton.jit
def _stretched(counts, levels):
    used = counts > 0
    high = tl.max(tl.where(used, levels, 0))
    low = tl.min(tl.where(used, levels, 255))
    span = tl.maximum(high - low, 1).to(tl.float64)
    scale = 255.0 / span
    offset = -low.to(tl.float64) * scale
    table = levels.to(tl.float64) * scale + offset
    table = tl.minimum(tl.maximum(table, 0.0), 255.0).to(tl.int32)
    return tl.where(high <= low, levels, table)


@triton.jit
def table_kernel(table_ptr, counts_ptr, tables_ptr):
    """The new level of each old one, uint8 (N, 3, 256), for the images that are changed level by level."""
    n = tl.program_id(0).to(tl.int64)
    row = table_ptr + n * CHANGE_ROW
    kind = tl.load(row + CHANGE_KIND)
    if kind < BRIGHTNESS:
        return
    factor = tl.load(row + CHANGE_FACTOR).to(tl.int32).to(tl.float32, bitcast=True)
    levels = tl.arange(0, 256)
    counts_ptr += n * 768
    for channel in range(3):
        table = levels
        if kind == BRIGHTNESS:
            table = _blend(levels * 0, levels, factor)
        elif kind == POSTERIZE:
            lost = 8 - factor.to(tl.int32)
            table = (levels >> lost) << lost
        elif kind == SOLARIZE:
            table = tl.where(levels.to(tl.float32) < factor, levels, 255 - levels)
        elif kind == CONTRAST:
            count = tl.load(row + CHANGE_SOURCE_HEIGHT) * tl.load(row + CHANGE_SOURCE_WIDTH)
            total = tl.load(counts_ptr).to(tl.int64) + tl.load(counts_ptr + 1).to(tl.int64) * 65536
            mean = ((2 * total + count) // (2 * count)).to(tl.int32)
            table = _blend(mean + levels * 0, levels, factor)
        else:
            counts = tl.load(counts_ptr + channel * 256 + levels)
            if kind == EQUALIZE:  # noqa: SIM108 - a kernel has no such expression
                table = _equalized(counts, levels)
            else:
                table = _stretched(counts, levels)
        tl.store(tables_ptr + n * 768 + channel * 256 + levels, table.to(tl.uint8))


@triton.jit
def _smooth(places, stride, inner):
    """Pillow's SMOOTH of one channel, int32; pixels on the border stay as they are."""
    middle = tl.load(places, mask=inner, other=0).to(tl.int32)
    total = 4 * middle
    for dy in tl.static_range(-1, 2):
        for dx in tl.static_range(-1, 2):
            total += tl.load(places + dy * stride + 3 * dx, mask=inner, other=0).to(tl.int32)
    return (2 * total + 13) // 26


@triton.jit
def change_kernel(
    source_ptr,
    out_ptr,
    table_ptr,  # int64 (N, CHANGE_ROW)
    tables_ptr,  # uint8 (N, 3, 256)
    fill,  # outside of the source: red + 256 green + 65536 blue
    colour,  # of the box
    BLOCK: tl.constexpr,
):
    """Changes each image in its own way: `hf_dr.views.device.eager`."""
    n = tl.program_id(0).to(tl.int64)
    row = table_ptr + n * CHANGE_ROW
    width = tl.load(row + CHANGE_OUT_WIDTH).to(tl.int32)
    count = tl.load(row + CHANGE_OUT_HEIGHT).to(tl.int32) * width
    if tl.program_id(1) * BLOCK >= count:
        return
    kind = tl.load(row + CHANGE_KIND)
    source = source_ptr + tl.load(row + CHANGE_SOURCE)
    stride = 3 * tl.load(row + CHANGE_SOURCE_STRIDE)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = p < count
    y = p // width
    x = p - y * width
    shown = inside  # where a source pixel is taken, not the fill
    from_x, from_y = x, y
    if kind == GATHER:
        wide_x, wide_y = x.to(tl.int64), y.to(tl.int64)
        source_x = (tl.load(row + CHANGE_A) * wide_x + tl.load(row + CHANGE_B) * wide_y + tl.load(row + CHANGE_C)) >> 16
        source_y = (tl.load(row + CHANGE_D) * wide_x + tl.load(row + CHANGE_E) * wide_y + tl.load(row + CHANGE_F)) >> 16
        shown = inside & (source_x >= 0) & (source_x < tl.load(row + CHANGE_SOURCE_WIDTH))
        shown = shown & (source_y >= 0) & (source_y < tl.load(row + CHANGE_SOURCE_HEIGHT))
        from_x, from_y = source_x.to(tl.int32), source_y.to(tl.int32)
    places = source + from_y.to(tl.int64) * stride + 3 * from_x
    red = tl.load(places, mask=shown, other=0).to(tl.int32)
    green = tl.load(places + 1, mask=shown, other=0).to(tl.int32)
    blue = tl.load(places + 2, mask=shown, other=0).to(tl.int32)
    if kind >= BRIGHTNESS:
        tables = tables_ptr + n * 768
        red = tl.load(tables + red).to(tl.int32)
        green = tl.load(tables + 256 + green).to(tl.int32)
        blue = tl.load(tables + 512 + blue).to(tl.int32)
    elif kind == COLOUR:
        factor = tl.load(row + CHANGE_FACTOR).to(tl.int32).to(tl.float32, bitcast=True)
        grey = _grey(red, green, blue)
        red, green, blue = _blend(grey, red, factor), _blend(grey, green, factor), _blend(grey, blue, factor)
    elif kind == SHARPNESS:
        factor = tl.load(row + CHANGE_FACTOR).to(tl.int32).to(tl.float32, bitcast=True)
        height = tl.load(row + CHANGE_SOURCE_HEIGHT).to(tl.int32)
        inner = inside & (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
        red = tl.where(inner, _blend(_smooth(places, stride, inner), red, factor), red)
        green = tl.where(inner, _blend(_smooth(places + 1, stride, inner), green, factor), green)
        blue = tl.where(inner, _blend(_smooth(places + 2, stride, inner), blue, factor), blue)
    elif kind == GATHER:
        red = tl.where(shown, red, fill & 255)
        green = tl.where(shown, green, (fill >> 8) & 255)
        blue = tl.where(shown, blue, fill >> 16)
    box_height = tl.load(row + CHANGE_HEIGHT).to(tl.int32)
    if box_height > 0:
        top, left = tl.load(row + CHANGE_TOP).to(tl.int32), tl.load(row + CHANGE_LEFT).to(tl.int32)
        box_width = tl.load(row + CHANGE_WIDTH).to(tl.int32)
        boxed = (y >= top) & (y < top + box_height) & (x >= left) & (x < left + box_width)
        red = tl.where(boxed, colour & 255, red)
        green = tl.where(boxed, (colour >> 8) & 255, green)
        blue = tl.where(boxed, colour >> 16, blue)
    out = out_ptr + tl.load(row + CHANGE_OUT) + 3 * p.to(tl.int64)
    tl.store(out, red.to(tl.uint8), mask=inside)
    tl.store(out + 1, green.to(tl.uint8), mask=inside)
    tl.store(out + 2, blue.to(tl.uint8), mask=inside)


@triton.jit
def mix_kernel(
    views_ptr,  # uint8 (N, H, W, 3), changed in place
    pool_ptr,  # uint8 (M, H, W, 3)
    table_ptr,  # int64 (R, MIX_ROW)
    row_bytes,
    view_bytes,
    BLOCK: tl.constexpr,
):
    """MixUp, then CutMix, of R of the views: `hf_dr.views.device.eager`."""
    row = table_ptr + tl.program_id(0).to(tl.int64) * MIX_ROW
    j = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = j < view_bytes
    y = j // row_bytes
    x = (j - y * row_bytes) // 3
    place = views_ptr + tl.load(row + MIX_VIEW) * view_bytes + j
    weight = tl.load(row + MIX_WEIGHT).to(tl.int32)
    top, left = tl.load(row + MIX_TOP).to(tl.int32), tl.load(row + MIX_LEFT).to(tl.int32)
    below, right = top + tl.load(row + MIX_HEIGHT).to(tl.int32), left + tl.load(row + MIX_WIDTH).to(tl.int32)
    own = tl.load(place, mask=inside, other=0).to(tl.int32)
    other = tl.load(pool_ptr + tl.load(row + MIX_PARTNER) * view_bytes + j, mask=inside, other=0).to(tl.int32)
    mixed = (own * weight + other * (256 - weight) + 128) >> 8
    pasted = (y >= top) & (y < below) & (x >= left) & (x < right)
    tl.store(place, tl.where(pasted, other, mixed).to(tl.uint8), mask=inside)


@triton.jit
def _lane_sums(words_ptr, secret_ptr, num_stripes):
    """What up to 16 stripes of 8 words add to the lanes, uint64 (8,)."""
    stripe = tl.arange(0, 16)[:, None]
    lane = tl.arange(0, 8)[None, :]
    used = stripe < num_stripes
    word = tl.load(words_ptr + 8 * stripe + lane, mask=used, other=0).to(tl.uint64, bitcast=True)
    neighbour = tl.load(words_ptr + 8 * stripe + (lane ^ 1), mask=used, other=0).to(tl.uint64, bitcast=True)
    keyed = word ^ tl.load(secret_ptr + stripe + lane).to(tl.uint64, bitcast=True)
    product = (keyed & 0xFFFFFFFF) * (keyed >> 32)
    return tl.sum(tl.where(used, product + neighbour, 0), axis=0)


@triton.jit
def hash_kernel(
    views_ptr,  # int64 (N, words), each view padded to whole words
    tails_ptr,  # int64 (N, 8): the last 64 bytes of each view
    secret_ptr,  # int64 (32,): `hf_dr.views.device.hashing.secret_words`
    lanes_ptr,  # int64 (N, 8): the result; on entry what every hash begins with
    length,  # bytes of a view
    words,  # of a padded view
):
    """The eight lanes of XXH3 for each view, more than 240 bytes long, before they are merged."""
    n = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, 8)
    lanes = tl.load(lanes_ptr + 8 * n + lane).to(tl.uint64, bitcast=True)
    scramble = tl.load(secret_ptr + 16 + lane).to(tl.uint64, bitcast=True)
    view = views_ptr + n * words
    num_blocks = (length - 1) // 1024
    for block in range(num_blocks):
        lanes += _lane_sums(view + 128 * block, secret_ptr, 16)
        lanes = (lanes ^ (lanes >> 47) ^ scramble) * 0x9E3779B1
    lanes += _lane_sums(view + 128 * num_blocks, secret_ptr, (length - 1 - 1024 * num_blocks) // 64)
    tail = tl.load(tails_ptr + 8 * n + lane).to(tl.uint64, bitcast=True)
    neighbour = tl.load(tails_ptr + 8 * n + (lane ^ 1)).to(tl.uint64, bitcast=True)
    keyed = tail ^ tl.load(secret_ptr + 24 + lane).to(tl.uint64, bitcast=True)
    lanes += neighbour + (keyed & 0xFFFFFFFF) * (keyed >> 32)
    tl.store(lanes_ptr + 8 * n + lane, lanes.to(tl.int64, bitcast=True))
