/* ARM NEON with the dot product extension: sixteen lanes are four registers. See lanes.h for the promises. */
#include <arm_neon.h>

#define ISA_NAME "neon-dotprod"
enum { TOKENS_PER_TILE = 4, SUMS_AT_ONCE = 6, SIGNED_BIAS = 0 };

INLINE i32x16 dot_signed(i32x16 sum, u8x64 w, int32_t x) {
  int32x4_t s[4];
  int8x16_t weights[4], all_x = vreinterpretq_s8_s32(vdupq_n_s32(x));
  memcpy(s, &sum, sizeof s);
  memcpy(weights, &w, sizeof weights);
  UNROLL for (int i = 0; i < 4; i++) s[i] = vdotq_s32(s[i], weights[i], all_x);
  memcpy(&sum, s, sizeof s);
  return sum;
}
/* Below 128 a byte means the same to a signed and to an unsigned product. */
INLINE i32x16 dot_unsigned(i32x16 sum, u8x64 w, int32_t x) { return dot_signed(sum, w, x); }
INLINE i32x16 dot_by_unsigned(i32x16 sum, u8x64 w, int32_t x) { return dot_signed(sum, w, x); }

INLINE u8x64 lookup(const uint8_t table[16], u8x64 index) {
  uint8x16_t t = vld1q_u8(table), i[4];
  memcpy(i, &index, sizeof i);
  UNROLL for (int k = 0; k < 4; k++) i[k] = vqtbl1q_u8(t, i[k]);
  return load_u8x64(i);
}

INLINE f32x16 from_half(const half *from) {
  float32x4_t v[4];
  UNROLL for (int i = 0; i < 4; i++) v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * i)));
  return load_f32(v);
}
INLINE void to_half(half *to, f32x16 f) {
  float32x4_t v[4];
  memcpy(v, &f, sizeof v);
  UNROLL for (int i = 0; i < 4; i++) vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(v[i])));
}
INLINE f32x16 fma_f32(f32x16 a, f32x16 b, f32x16 c) {
  float32x4_t x[4], y[4], z[4];
  memcpy(x, &a, sizeof x);
  memcpy(y, &b, sizeof y);
  memcpy(z, &c, sizeof z);
  UNROLL for (int i = 0; i < 4; i++) z[i] = vfmaq_f32(z[i], x[i], y[i]);
  return load_f32(z);
}
INLINE i32x16 round_to_int(f32x16 f) {
  float32x4_t v[4];
  int32x4_t r[4];
  memcpy(v, &f, sizeof v);
  UNROLL for (int i = 0; i < 4; i++) r[i] = vcvtnq_s32_f32(v[i]);
  return load_i32(r);
}
#include "lanes_generic.h"
