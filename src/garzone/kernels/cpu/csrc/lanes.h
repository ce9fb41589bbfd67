/* Sixteen lanes side by side: the vector types all kernels are written in, and what every instruction set must offer.
 *
 * A lane is one output row of a matrix (sixteen rows are interleaved when weights are packed), one position of the
 * cache, or one element of a vector. The types are the compiler's own vectors of 64 bytes: one AVX-512 register, two of
 * AVX2, four of NEON. Plain arithmetic, comparisons and shifts need no intrinsics. The few operations that compilers do not find are written per instruction set in the header
 * chosen below, each of which defines
 *
 *   dot_unsigned(sum, w, x)   sum[l] += w[4l..4l+3] . x[0..3] for weights in 0..127
 *   dot_signed(sum, w, x)     the same for weights stored as value + SIGNED_BIAS; the caller starts the sum at
 *                             -SIGNED_BIAS * (x[0] + .. + x[3]), see `start` in linear.h
 *   dot_by_unsigned(sum, w, x) the same for signed weights as they are, if the bytes of x are in 0..127
 *   lookup(table, index)      table[index[i]] for each of 64 bytes, indices in 0..15
 *   from_half, to_half        sixteen IEEE half floats
 *   fma_f32(a, b, c)          a * b + c, rounded once where the processor can; never left to the compiler, so that sums
 *                             come out the same in every loop (see below)
 *   round_to_int              to the nearest, ties to even
 *   min_f32, max_f32, abs_f32, sum_lanes, max_lanes, sum_lanes_i32, store_low_bytes
 *                             what their names say; lanes_generic.h has them for all that do not care
 *   TOKENS_PER_TILE           tokens a matrix product handles at once: as many as keep their sums in registers
 *   SUMS_AT_ONCE              f32x16 that fit into the registers, leaving some for what they are made of
 *
 * A token's numbers do not depend on what else is in its batch, to the last bit: every loop adds up in the same order,
 * whether for one token or many, and no compiler contracts a*b+c on its own (-ffp-contract=off).
 */
#ifndef GARZONE_LANES_H
#define GARZONE_LANES_H

#include <stdint.h>
#include <string.h>

enum { LANES = 16, VECTOR_BYTES = 64 };

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint16_t u16x32 __attribute__((vector_size(64)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));

typedef uint16_t half; /* the bits of an IEEE 754 half float */

#define INLINE static inline __attribute__((always_inline))

/* Loops over quads and tokens disappear, so that sums stay in registers; plain C has no registers to keep them in, and
 * takes half a minute to compile when unrolled. */
#if defined(GARZONE_PORTABLE)
#define UNROLL
#define KEEP_LOOP
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define KEEP_LOOP _Pragma("clang loop unroll(disable)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#define KEEP_LOOP _Pragma("GCC unroll 1")
#endif

#define LOADER(name, type)             \
  INLINE type name(const void *from) { \
    type v;                            \
    memcpy(&v, from, sizeof v);        \
    return v;                          \
  }
LOADER(load_f32, f32x16)
LOADER(load_i32, i32x16)
LOADER(load_u8x64, u8x64)
LOADER(load_u8, u8x16)
LOADER(load_i8, i8x16)
LOADER(load_u16, u16x16)
LOADER(load_dword, int32_t)
#undef LOADER

INLINE void store_f32(void *to, f32x16 v) { memcpy(to, &v, sizeof v); }
INLINE void store_u8x64(void *to, u8x64 v) { memcpy(to, &v, sizeof v); }

/* Written out: adding v to zeros is an addition, since zero plus minus zero is not minus zero. */
INLINE f32x16 all_f32(float v) { return (f32x16){v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }
INLINE i32x16 all_i32(int32_t v) { return (i32x16){0} + v; }

INLINE f32x16 float_of_i32(i32x16 v) { return __builtin_convertvector(v, f32x16); }
INLINE f32x16 float_of_u8(const uint8_t *from) {
  return float_of_i32(__builtin_convertvector(load_u8(from), i32x16));
}
INLINE f32x16 float_of_i8(const int8_t *from) {
  return float_of_i32(__builtin_convertvector(load_i8(from), i32x16));
}
/* The upper half of a float is a bfloat16. */
INLINE f32x16 from_bfloat16(const void *from) {
  return (f32x16)(__builtin_convertvector(load_u16(from), u32x16) << 16);
}

/* Each byte of v shifted right, except that bits of its neighbour come in from the left: mask what you keep. */
INLINE u8x64 shift_right(u8x64 v, int bits) { return (u8x64)((u16x32)v >> bits); }
INLINE u8x64 shift_left(u8x64 v, int bits) { return (u8x64)((u16x32)v << bits); }

/* Where the mask lane is all ones, `yes`, else `no`. */
INLINE f32x16 select_f32(i32x16 mask, f32x16 yes, f32x16 no) {
  return (f32x16)((mask & (i32x16)yes) | (~mask & (i32x16)no));
}

/* -DGARZONE_<instruction set>, with the compiler flags that belong to it, comes from instruction_sets.py. */
#if defined(GARZONE_AVX512)
#include "lanes_avx512.h"
#elif defined(GARZONE_AVX2)
#include "lanes_avx2.h"
#elif defined(GARZONE_NEON)
#include "lanes_neon.h"
#else
#include "lanes_portable.h"
#endif

INLINE void prefetch(const void *address) { __builtin_prefetch(address, 0, 3); }
/* Not into the first-level cache, which is full of what is being read. */
INLINE void prefetch_later(const void *address) { __builtin_prefetch(address, 0, 2); }

#endif
