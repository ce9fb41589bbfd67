"""C functions as tinygrad programs.

tinygrad's CPU runtime loads a program as machine code and jumps to it. Ours is a few instructions that put the address
of an operation's struct into the register of the sixth argument, and a number into one of those before, and jump on to
a function of a shared library, which may have been compiled by any compiler and use anything a shared library may.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Mapping, Sequence

from tinygrad.device import Device
from tinygrad.tensor import Tensor
from tinygrad.uop import Ops
from tinygrad.uop.ops import KernelInfo, ProgramInfo, UOp

from garzone.core.errors import DeviceUnavailable

NUM_ARGUMENTS = 5  # before the operation: six travel in registers on x86-64, eight on AArch64


_X86_MOVES = (b"\xbf", b"\xbe", b"\xba", b"\xb9", b"\x41\xb8")  # mov edi / esi / edx / ecx / r8d, imm32


def machine_code(function: int, operation: int, numbers: Mapping[int, int], machine: str = "") -> bytes:
    """A jump to `function` with `operation` as its sixth argument.

    Args:
        function: the address to jump to.
        operation: the sixth argument.
        numbers: arguments that the caller does not give, by their index; each below 65536.
        machine: the kind of processor, this one unless given.

    Raises:
        DeviceUnavailable: on processors whose calling convention is not known here.
    """
    match machine or platform.machine():
        case "x86_64" | "AMD64":  # mov r9, operation; mov rax, function; jmp rax
            moves = b"".join(_X86_MOVES[index] + struct.pack("<I", value) for index, value in numbers.items())
            addresses = b"\x49\xb9" + struct.pack("<Q", operation) + b"\x48\xb8" + struct.pack("<Q", function)
            return moves + addresses + b"\xff\xe0"
        case "aarch64" | "arm64":  # movz x<index>, value; ldr x5, .+12; ldr x16, .+16; br x16; the two literals
            moves = b"".join(struct.pack("<I", 0xD2800000 | value << 5 | index) for index, value in numbers.items())
            return moves + struct.pack("<IIIQQ", 0x58000065, 0x58000090, 0xD61F0200, operation, function)
        case other:
            raise DeviceUnavailable(f"C kernels cannot be called from tinygrad on {other}; the portable kernels can")


def launch(
    name: str,
    function: int,
    operation: int,
    buffers: Sequence[Tensor],
    numbers: Sequence[UOp | int],
    *,
    written: Sequence[int] = (0,),
) -> list[Tensor]:
    """Call a C function on tensors, and on numbers or bound variables after them, within whatever tinygrad captures.

    Of the tensors, those in `written` are written and the others read; all but the first are taken to be read. What
    comes back is each tensor after the call; go on with those.
    """
    arguments = len(buffers) + len(numbers)
    if arguments > NUM_ARGUMENTS:
        raise ValueError(f"{name}: {arguments} arguments, but only {NUM_ARGUMENTS} travel in registers")
    uops = [buffer.uop for buffer in buffers]
    placeholders = [UOp.placeholder_like(uop, slot=slot) for slot, uop in enumerate(uops)]
    variables = [number for number in numbers if isinstance(number, UOp)]
    parameters = tuple(_parameter(variable) for variable in variables)
    # variables come before plain numbers, as start does before count
    fixed = {len(buffers) + index: number for index, number in enumerate(numbers) if isinstance(number, int)}
    slots = tuple(range(len(buffers)))
    info = ProgramInfo(
        name=name,
        globals=slots,
        outs=tuple(written),
        ins=slots[1:],
        vars=parameters,
        target=Device["CPU"].renderer.target,
    )
    sink = UOp.sink(*placeholders, *parameters, arg=KernelInfo(name=name))
    code = UOp(Ops.BINARY, arg=machine_code(function, operation, fixed))
    source = UOp(Ops.SOURCE, arg=f"{name}, operation at {operation:#x}")
    program = UOp(Ops.PROGRAM, src=(sink, UOp(Ops.LINEAR, src=tuple(sink.toposort())), source, code), arg=info)
    call = program.call(*uops, *variables)
    return [Tensor(uop.after(call)) for uop in uops]


def _parameter(bound: UOp) -> UOp:
    variable, _ = bound.unbind()
    return UOp.variable(variable.expr, int(variable.vmin), int(variable.vmax), dtype=variable.dtype, param=True)
