/* Plain C: right on any processor, and what the others are read against. See lanes.h for the promises. */

#define ISA_NAME "portable"
enum { TOKENS_PER_TILE = 4, SUMS_AT_ONCE = 4, SIGNED_BIAS = 0 };

INLINE i32x16 dot_signed(i32x16 sum, u8x64 w, int32_t x) {
  int8_t four[4];
  memcpy(four, &x, sizeof four);
  for (int l = 0; l < LANES; l++)
    for (int k = 0; k < 4; k++) sum[l] += (int8_t)w[4 * l + k] * four[k];
  return sum;
}
/* Below 128 a byte means the same to a signed and to an unsigned product. */
INLINE i32x16 dot_unsigned(i32x16 sum, u8x64 w, int32_t x) { return dot_signed(sum, w, x); }
INLINE i32x16 dot_by_unsigned(i32x16 sum, u8x64 w, int32_t x) { return dot_signed(sum, w, x); }

INLINE u8x64 lookup(const uint8_t table[16], u8x64 index) {
  for (int i = 0; i < VECTOR_BYTES; i++) index[i] = table[index[i]];
  return index;
}

/* Shifting the exponent into place and multiplying by 2^112 rebuilds it, and normalises subnormals on the way. Infinity
 * and NaN get their exponent by hand. */
INLINE f32x16 from_half(const half *from) {
  u32x16 bits = __builtin_convertvector(load_u16(from), u32x16), magnitude = bits & 0x7fff;
  f32x16 value = (f32x16)(magnitude << 13) * 0x1p112f;
  value = select_f32((i32x16)(magnitude > 0x7bff), (f32x16)(magnitude << 13 | 0x7f800000), value);
  return (f32x16)((u32x16)value | (bits & 0x8000) << 16);
}

/* Adding and taking away a power of two large enough rounds the float to as many bits as a half keeps; from 2^-14 down
 * that power stops shrinking, which is what subnormals are. */
INLINE void to_half(half *to, f32x16 v) {
  for (int l = 0; l < LANES; l++) {
    float f = v[l];
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude >= 0x47800000) { /* 65536 and above: infinity, or NaN */
      to[l] = (half)(sign | 0x7c00 | (magnitude > 0x7f800000) << 9);
      continue;
    }
    uint32_t exponent = magnitude & 0x7f800000;
    if (exponent < 0x38800000) exponent = 0x38800000; /* 2^-14, the smallest normal half */
    uint32_t rounder_bits = exponent + (13u << 23) ;
    float rounder, rounded;
    memcpy(&rounder, &rounder_bits, sizeof rounder);
    memcpy(&rounded, &magnitude, sizeof rounded);
    rounded += rounder;
    memcpy(&bits, &rounded, sizeof bits);
    to[l] = (half)(sign | ((bits - rounder_bits) + ((exponent - 0x38800000) >> 13)));
  }
}

INLINE f32x16 fma_f32(f32x16 a, f32x16 b, f32x16 c) { return a * b + c; }

/* Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the mantissa. */
INLINE i32x16 round_to_int(f32x16 v) { return (i32x16)(v + 0x1.8p23f) - 0x4b400000; }
#include "lanes_generic.h"
