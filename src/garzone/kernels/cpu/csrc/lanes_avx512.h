/* AVX-512 with VNNI: one register holds all sixteen lanes. See lanes.h for what each function promises. */
#include <immintrin.h>

#define ISA_NAME "avx512-vnni"
enum { TOKENS_PER_TILE = 8, SUMS_AT_ONCE = 24, SIGNED_BIAS = 128 }; /* vpdpbusd multiplies unsigned by signed bytes */

INLINE i32x16 dot_unsigned(i32x16 sum, u8x64 w, int32_t x) {
  return (i32x16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
}
INLINE i32x16 dot_signed(i32x16 sum, u8x64 w, int32_t x) { return dot_unsigned(sum, w, x); }
INLINE i32x16 dot_by_unsigned(i32x16 sum, u8x64 w, int32_t x) {
  return (i32x16)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)w);
}

INLINE u8x64 lookup(const uint8_t table[16], u8x64 index) {
  __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
  return (u8x64)_mm512_shuffle_epi8(t, (__m512i)index);
}

INLINE f32x16 from_half(const half *from) {
  return (f32x16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
}
INLINE void to_half(half *to, f32x16 v) {
  _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
}
INLINE f32x16 fma_f32(f32x16 a, f32x16 b, f32x16 c) { return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE i32x16 round_to_int(f32x16 v) { return (i32x16)_mm512_cvtps_epi32((__m512)v); }

INLINE f32x16 max_f32(f32x16 a, f32x16 b) { return (f32x16)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE f32x16 min_f32(f32x16 a, f32x16 b) { return (f32x16)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE f32x16 abs_f32(f32x16 v) { return (f32x16)_mm512_abs_ps((__m512)v); }
INLINE float sum_lanes(f32x16 v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE float max_lanes(f32x16 v) { return _mm512_reduce_max_ps((__m512)v); }
INLINE int32_t sum_lanes_i32(i32x16 v) { return _mm512_reduce_add_epi32((__m512i)v); }
/* The low bytes of sixteen integers within -128..127. */
INLINE void store_low_bytes(int8_t *to, i32x16 v) {
  _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)v));
}
