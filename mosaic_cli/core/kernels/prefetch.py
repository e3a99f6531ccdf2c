"""Asking for memory before it is needed, in compiled loops: processors do not look far enough ahead of a loop that does
little with what it reads, and then it waits (docs/log.md)."""

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from mosaic_cli.core.kernels.compiled import inner

LINE = 64  # bytes, which come at a time


def prefetch(builder, address, once: bool) -> None:
    """Write for LLVM: have the line of the cache at an address brought, to be read once or to be kept near."""
    byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
    function = get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    to_read, locality, data = number(0), number(0 if once else 3), number(1)
    builder.call(function, [builder.inttoptr(address, byte), to_read, locality, data])


def _request(once: bool):
    """The same for the loops that Numba compiles."""

    @intrinsic
    def function(typing, address):
        def codegen(context, builder, signature, arguments):
            prefetch(builder, *arguments, once)
            return context.get_dummy_value()

        return types.void(types.int64), codegen

    return function


_request_once, _request_to_keep = _request(once=True), _request(once=False)


@inner
def request_once(array, offset, size):
    """Ask for so many bytes, from so many on after the beginning of an array, that will be read once and not soon
    again: they take no room from what is. They may lie behind the array's end."""
    address = array.ctypes.data + offset
    for byte in range(0, size, LINE):
        _request_once(address + byte)


@inner
def request(array, offset, size):
    """The same for bytes that will be read again."""
    address = array.ctypes.data + offset
    for byte in range(0, size, LINE):
        _request_to_keep(address + byte)
