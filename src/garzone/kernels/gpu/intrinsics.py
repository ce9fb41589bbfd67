"""The few instructions that UOps cannot say, per renderer, each with a plain expression that any renderer can run.

It knows instructions, not kernels. A kernel asks ``Intrinsics`` for a four-byte dot product or a sum across the 32
lanes of a wave and does not know whose GPU it is on. ``PLAIN`` needs no intrinsic at all: it runs on every tinygrad
device with local threads, including ``DEV=PYTHON``, which is how the tests check the kernels without a GPU.
"""

from __future__ import annotations

import functools
import itertools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinygrad.dtype import AddrSpace, DType, dtypes
from tinygrad.renderer import Estimates, Renderer
from tinygrad.uop import Ops
from tinygrad.uop.ops import KernelInfo, UOp

_FIRST_SLOT = 64  # kernels number their own registers and local arrays from 0
LANES = 32  # a wave on RDNA3 (wave32), a warp on CUDA, a SIMD-group on Metal


def described(name: str) -> KernelInfo:
    """A kernel's name. Its work is not estimated: loops may depend on what is in memory.

    The sink that has this must be tagged, so that tinygrad leaves it as it is: it would drop the estimates.
    """
    return KernelInfo(name=name, opts_to_apply=(), estimates=Estimates())


def inline(code: str, dtype: DType, *sources: UOp) -> UOp:
    """Source text of the renderer's own language with ``{0}``, ``{1}``... for the operands (and ``{o}`` in LLVM IR)."""
    return UOp(Ops.CUSTOM, dtype, src=sources, arg=code)


def special(count: int, name: str) -> UOp:
    """A dimension of the launch, as int32 from the start.

    Where indices meet numbers from memory tinygrad 0.14.0 casts them, product by product, and does not see through a
    cast that an address is a multiple of 16.
    """
    return UOp.special(count, name).cast(dtypes.int)


def signed_byte(word: UOp, index: int) -> UOp:
    """Byte ``index`` of a uint32 as a sign-extended int32."""
    return (word.cast(dtypes.int) << (24 - 8 * index)) >> 24


def unsigned_byte(word: UOp, index: int) -> UOp:
    """Byte ``index`` of a uint32, as uint32."""
    return (word >> (8 * index)) & 255 if index < 3 else word >> 24


def half_to_float(word: UOp, index: int = 0) -> UOp:
    """Half ``index`` of a uint32 as float32; ``index`` 1 is the upper half."""
    bits = (word >> 16) if index else (word & 0xFFFF)
    return bits.cast(dtypes.uint16).bitcast(dtypes.half).cast(dtypes.float)


def bfloat_to_float(word: UOp, index: int) -> UOp:
    """Bfloat16 ``index`` of a uint32 as float32: the same bits, shifted up."""
    return ((word & 0xFFFF0000) if index else (word << 16)).bitcast(dtypes.float)


def halves_of(words: Sequence[UOp]) -> list[UOp]:
    """The f16 numbers of packed words, in order."""
    parts = [part for word in words for part in (word & 0xFFFF, word >> 16)]
    return [part.cast(dtypes.uint16).bitcast(dtypes.half) for part in parts]


def _twice(value: UOp) -> UOp:
    """A float32 rounded to f16, in both halves of a word."""
    bits = value.cast(dtypes.half).bitcast(dtypes.uint16).cast(dtypes.uint32)
    return bits | (bits << 16)


def _half_bits(value: float) -> int:
    return int.from_bytes(struct.pack("<e", value), "little")


@dataclass(frozen=True, eq=False)  # there are a handful, told apart by identity
class Intrinsics:
    """What a renderer offers. The fields are code templates; an empty one means the plain expression.

    Attributes:
        name: for kernel names and messages.
        dot4: keyed by the signedness of the first operand; the second is signed: four int8 products added to an int32.
        dot4_unsigned: the same of two unsigned operands.
        permutes_beyond: whether selectors of 8 to 11 give the sign of bytes 1, 3, 5, 7 (0 or 255), 12 gives 0 and
            larger ones 255, as RDNA3's v_perm_b32 does.
        permute_bytes: bytes of {0}:{1} (bytes 7..4 and 3..0) selected by the low three bits of each byte of {2}.
        mixed_signs: whether dot4's unsigned operand may have bytes above 127.
        multiply24: int32 product of two values that fit 24 signed bits.
        multiply_add24: the same, added to an int32.
        dot2: two f16 products added to a float32.
        halves: bytes SELECTOR of {0} as f16 with SUBTRAHEND added, times {1}, plus {2}, pairs of f16 all of them.
        opaque: an instruction that is none, of a TYPE.
        last_of_four: word of the last of each four neighbouring lanes, in all four.
        load: 32 bits from an address that is only aligned to SIZE bytes.
        exchange: value (float) of lane ``lane ^ mask``, keyed by the mask; {1} is the thread's number.
        has_wmma: whether 16x16x16 f16 matrix products with RDNA3's register layout exist.
    """

    name: str
    dot4_code: dict[bool, str] = field(default_factory=dict)
    dot4_unsigned_code: str = ""
    permute_code: str = ""
    permutes_beyond: bool = False
    mixed_signs: bool = True
    multiply24_code: str = ""
    multiply_add24_code: str = ""
    dot2_code: str = ""
    opaque_code: str = ""
    last_of_four_code: str = ""
    load_code: str = ""
    halves_code: str = ""
    exchange_code: dict[int, str] = field(default_factory=dict)
    has_wmma: bool = False

    def dot4(self, a: UOp, b: UOp, c: UOp, *, signed: bool = False) -> UOp:
        """``c`` plus the four products of the bytes of ``a`` (unsigned, or signed) and of ``b`` (signed)."""
        if code := self.dot4_code.get(signed):
            return inline(code, dtypes.int, a, b, c)
        byte: Callable[[int], UOp] = lambda i: signed_byte(a, i) if signed else unsigned_byte(a, i).cast(dtypes.int)  # noqa: E731
        for i in range(4):
            c = c + byte(i) * signed_byte(b, i)
        return c

    def dot4_unsigned(self, a: UOp, b: UOp, c: UOp) -> UOp:
        """As ``dot4``, of unsigned bytes both; only where ``mixed_signs``."""
        if self.dot4_unsigned_code:
            return inline(self.dot4_unsigned_code, dtypes.int, a, b, c)
        for i in range(4):
            c = c + (unsigned_byte(a, i) * unsigned_byte(b, i)).cast(dtypes.int)
        return c

    def permute_bytes(self, high: UOp, low: UOp, selector: UOp) -> UOp:
        """Byte i of the result is the byte of ``high:low`` that the low three bits of the selector's byte i name."""
        if self.permute_code:
            return inline(self.permute_code, dtypes.uint32, high, low, selector)
        result = None
        for i in range(4):
            index = (selector >> (8 * i)) & 7
            word = (index > 3).where(high, low)
            byte = ((word >> ((index & 3) * 8)) & 255) << (8 * i)
            result = byte if result is None else result | byte
        assert result is not None
        return result

    def multiply24(self, a: UOp, b: UOp) -> UOp:
        """Product of two int32 that fit 24 bits: full rate where a 32-bit multiply takes four slots."""
        return inline(self.multiply24_code, dtypes.int, a, b) if self.multiply24_code else a * b

    def multiply_add24(self, a: UOp, b: UOp, c: UOp) -> UOp:
        """``c`` plus the product of two int32 that fit 24 bits; not taken apart where it is one instruction."""
        code = self.multiply_add24_code
        return inline(code, dtypes.int, a, b, c) if code else c + self.multiply24(a, b)

    def as_it_is(self, value: UOp) -> UOp:
        """The same float or uint32; the compiler may not see how it came about, nor compute it another way."""
        if not self.opaque_code:
            return value
        code = self.opaque_code.replace("TYPE", "float" if value.dtype == dtypes.float else "i32")
        return inline(code, value.dtype, value)

    def dot2(self, a: UOp, b: UOp, c: UOp) -> UOp:
        """``c`` plus the two products of the halves of ``a`` and ``b``: f16 in, float32 sum."""
        if self.dot2_code:
            return inline(self.dot2_code, dtypes.float, a, b, c)
        return c + half_to_float(a, 0) * half_to_float(b, 0) + half_to_float(a, 1) * half_to_float(b, 1)

    def last_of_four(self, word: UOp) -> UOp | None:
        """The uint32 of the last of each four neighbouring lanes, in all four; None where lanes must ask memory."""
        return inline(self.last_of_four_code, dtypes.uint32, word) if self.last_of_four_code else None

    def weights_from_bytes(self, word: UOp, offset: int, scale: UOp, minimum: UOp | None) -> list[UOp]:
        """(byte - offset) * scale - minimum of four bytes as f16, in the order 0, 2, 1, 3.

        The AMD form puts two bytes under the exponent of 1024 with one permutation, subtracts exactly, and ends with a
        fused multiply-add on pairs of f16; scale and minimum are rounded to f16 first.
        """
        if not self.halves_code:
            floats = [unsigned_byte(word, i).cast(dtypes.float) - float(offset) for i in (0, 2, 1, 3)]
            scaled = [value * scale if minimum is None else value * scale - minimum for value in floats]
            return [value.cast(dtypes.half) for value in scaled]
        code = self.halves_code.replace("SUBTRAHEND", f"0xH{_half_bits(-1024.0 - offset):04X}")
        below = UOp.const(0, dtypes.uint32) if minimum is None else _twice(minimum * -1.0)
        pairs = [
            inline(code.replace("SELECTOR", str(selector)), dtypes.uint32, word, _twice(scale), below)
            for selector in (0x00060004, 0x00070005)
        ]
        return halves_of(pairs)

    def load_word(self, buffer: UOp, index: UOp) -> UOp:
        """A uint32 that begins at any element of a uint8, uint16 or uint32 buffer, little-endian.

        The AMD form is a load that LLVM may merge with its neighbours into one of 16 bytes, whatever the alignment;
        tinygrad's own merging wants aligned 32-bit elements. It hides the load from tinygrad's dependency tracking:
        read at least one element of the buffer with an ordinary load.
        """
        size = buffer.dtype.itemsize
        if code := self.load_code:
            return inline(code.replace("SIZE", str(size)), dtypes.uint32, buffer[index])
        if size == 4:
            return buffer[index].load()
        parts = [buffer[index + i].load().cast(dtypes.uint32) << (8 * size * i) for i in range(4 // size)]
        return functools.reduce(lambda a, b: a | b, parts)


class Group:
    """The threads of one workgroup while a kernel is being written: sums and maxima across lanes and waves.

    Where lanes cannot exchange registers, each exchange goes through local memory of its own.
    """

    def __init__(self, intrinsics: Intrinsics, thread: UOp, num_threads: int):
        self.intrinsics, self.thread, self.num_threads = intrinsics, thread, num_threads
        self._slots = itertools.count(_FIRST_SLOT)

    def share(self, value: UOp, index: UOp, size: int, *after: UOp) -> UOp:
        """Local memory of ``size`` elements into which every thread stores ``value`` at ``index``."""
        shared = UOp.placeholder((size,), value.dtype, next(self._slots), addrspace=AddrSpace.LOCAL)
        return shared.after(shared.after(*after)[index].store(value) if after else shared[index].store(value))

    def exchange(self, value: UOp, mask: int) -> UOp:
        """The float of the thread whose number differs by the bits of ``mask``, a power of two below 32."""
        if code := self.intrinsics.exchange_code.get(mask):
            return inline(code, dtypes.float, value, self.thread)
        return self.share(value, self.thread, self.num_threads)[self.thread ^ mask].load()

    def sum(self, value: UOp, width: int = LANES) -> UOp:
        """Sum of a float over each ``width`` neighbouring threads (a power of two up to 32), in all of them."""
        return self._reduce(value, width, lambda a, b: a + b)

    def max(self, value: UOp, width: int = LANES) -> UOp:
        """As ``sum``, the largest value."""
        return self._reduce(value, width, lambda a, b: a.maximum(b))

    def sum_all(self, value: UOp) -> UOp:
        """Sum of a float over the whole workgroup, in every thread."""
        value = self.sum(value)
        waves = self.num_threads // LANES
        if waves == 1:
            return value
        shared = self.share(value, self.thread // LANES, waves)
        return functools.reduce(lambda a, b: a + b, [shared[i].load() for i in range(waves)])

    def _reduce(self, value: UOp, width: int, combine: Callable[[UOp, UOp], UOp]) -> UOp:
        mask = width // 2
        while mask:
            value = combine(value, self.exchange(value, mask))
            mask //= 2
        return value


PLAIN = Intrinsics("plain")


# DPP controls (RDNA3 ISA, "DPP16") that move a lane's value to the lane whose number differs by the key. 4 takes two:
# mirroring eight lanes is 7, mirroring four is 3. RDNA3 has row_xmask for all of them, tinygrad's emulator does not.
_DPP = {1: (0xB1,), 2: (0x4E,), 4: (0x141, 0x1B), 8: (0x128,)}


def _amd_exchange(mask: int) -> str:
    """The empty instruction after each move names the source once more, so that the result never takes its register.

    Hardware would not mind, but tinygrad's emulator moves lane after lane and would read what it has just written.
    Attribute group 1 is ``renderer.py``'s.
    """
    lines = ["{o}_0 = bitcast float {0} to i32"]
    # Between the two rows of 16 lanes: ds_bpermute. v_permlanex16 or ds_swizzle would not need an address, but the
    # emulator misreads the selectors of the one and lacks the other, and so could not check them.
    moves = [f"update.dpp.i32(i32 0, i32 SOURCE, i32 {c}, i32 15, i32 15, i1 true)" for c in _DPP.get(mask, ())]
    if not moves:
        lines.append(f"{{o}}_x = xor i32 {{1}}, {mask}")
        lines.append("{o}_l = and i32 {o}_x, 31\n  {o}_a = shl i32 {o}_l, 2")
        moves = ["ds.bpermute(i32 {o}_a, i32 SOURCE)"]
    for i, move in enumerate(moves):
        lines.append(f"{{o}}_m{i} = call i32 @llvm.amdgcn." + move.replace("SOURCE", f"{{o}}_{i}"))
        lines.append(f'{{o}}_{i + 1} = call i32 asm "", "=v,0,v"(i32 {{o}}_m{i}, i32 {{o}}_{i}) #1')
    lines.append(f"{{o}} = bitcast i32 {{o}}_{len(moves)} to float")
    return "\n  ".join(lines)


AMD = Intrinsics(
    "amd",
    dot4_code={
        False: "{o} = call i32 @llvm.amdgcn.sudot4(i1 false, i32 {0}, i1 true, i32 {1}, i32 {2}, i1 false)",
        True: "{o} = call i32 @llvm.amdgcn.sudot4(i1 true, i32 {0}, i1 true, i32 {1}, i32 {2}, i1 false)",
    },
    dot4_unsigned_code="{o} = call i32 @llvm.amdgcn.sudot4(i1 false, i32 {0}, i1 false, i32 {1}, i32 {2}, i1 false)",
    permute_code="{o} = call i32 @llvm.amdgcn.perm(i32 {0}, i32 {1}, i32 {2})",
    permutes_beyond=True,
    multiply24_code="{o} = call i32 @llvm.amdgcn.mul.i24.i32(i32 {0}, i32 {1})",
    # The empty instruction keeps LLVM from adding several products in another order, which takes an addition more.
    multiply_add24_code=(
        '{o}_c = call i32 asm "", "=v,0"(i32 {2}) #1\n'
        "  {o}_p = call i32 @llvm.amdgcn.mul.i24.i32(i32 {0}, i32 {1})\n"
        "  {o} = add i32 {o}_p, {o}_c"
    ),
    opaque_code='{o} = call TYPE asm "", "=v,0"(TYPE {0}) #1',
    dot2_code=(
        "{o}_a = bitcast i32 {0} to <2 x half>\n  {o}_b = bitcast i32 {1} to <2 x half>\n"
        "  {o} = call float @llvm.amdgcn.fdot2(<2 x half> {o}_a, <2 x half> {o}_b, float {2}, i1 false)"
    ),
    halves_code=(
        f"{{o}}_p = call i32 @llvm.amdgcn.perm(i32 {{0}}, i32 {0x64646464}, i32 SELECTOR)\n"
        "  {o}_h = bitcast i32 {o}_p to <2 x half>\n"
        "  {o}_d = fadd <2 x half> {o}_h, <half SUBTRAHEND, half SUBTRAHEND>\n"
        "  {o}_s = bitcast i32 {1} to <2 x half>\n  {o}_m = bitcast i32 {2} to <2 x half>\n"
        "  {o}_f = call <2 x half> @llvm.fma.v2f16(<2 x half> {o}_d, <2 x half> {o}_s, <2 x half> {o}_m)\n"
        "  {o} = bitcast <2 x half> {o}_f to i32"
    ),
    last_of_four_code=(
        "{o}_m = call i32 @llvm.amdgcn.update.dpp.i32(i32 {0}, i32 {0}, i32 255, i32 15, i32 15, i1 true)\n"
        '  {o} = call i32 asm "", "=v,0,v"(i32 {o}_m, i32 {0}) #1'  # for the emulator, see _amd_exchange
    ),
    load_code="{o} = load i32, ptr {0}, align SIZE",
    exchange_code={mask: _amd_exchange(mask) for mask in (16, 8, 4, 2, 1)},
    has_wmma=True,
)

# NVIDIA has no mixed-sign __dp4a; every unsigned operand in these kernels is at most 127, where both readings agree.
CUDA = Intrinsics(
    "cuda",
    mixed_signs=False,
    dot4_code=dict.fromkeys((False, True), "__dp4a((int)({0}), (int)({1}), {2})"),
    permute_code="__byte_perm({1}, {0}, (({2})&7)|((({2})>>4)&0x70)|((({2})>>8)&0x700)|((({2})>>12)&0x7000))",
    multiply24_code="__mul24({0}, {1})",
    exchange_code={mask: f"__shfl_xor_sync(0xffffffffu, {{0}}, {mask})" for mask in (16, 8, 4, 2, 1)},
)

METAL = Intrinsics("metal", exchange_code={mask: f"simd_shuffle_xor({{0}}, {mask})" for mask in (16, 8, 4, 2, 1)})


def intrinsics_for(renderer: Renderer) -> Intrinsics:
    """The intrinsics that a renderer can print; ``PLAIN`` for one that is not known."""
    return {"AMDGarzoneRenderer": AMD, "CUDARenderer": CUDA, "NVCCRenderer": CUDA, "MetalRenderer": METAL}.get(
        type(renderer).__name__, PLAIN
    )
