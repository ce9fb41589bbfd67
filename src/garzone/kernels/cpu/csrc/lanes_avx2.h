/* AVX2 with FMA and F16C: sixteen lanes are two registers. See lanes.h for what each function promises. */
#include <immintrin.h>

#define ISA_NAME "avx2"
enum { TOKENS_PER_TILE = 4, SUMS_AT_ONCE = 6, SIGNED_BIAS = 0 };

typedef struct {
  __m256i low, high; /* lanes 0..7 and 8..15 */
} Halves;

INLINE Halves halves_of(u8x64 v) {
  Halves h;
  memcpy(&h, &v, sizeof h);
  return h;
}
INLINE u8x64 vector_of(Halves h) { return load_u8x64(&h); }

/* vpmaddubsw adds two products in sixteen bits: 2 * 127 * 127 still fits. */
INLINE __m256i add_pairs(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
  __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE i32x16 dot_unsigned(i32x16 sum, u8x64 w, int32_t x) {
  Halves s = halves_of((u8x64)sum), weights = halves_of(w);
  __m256i all_x = _mm256_set1_epi32(x);
  s.low = add_pairs(s.low, weights.low, all_x);
  s.high = add_pairs(s.high, weights.high, all_x);
  return (i32x16)vector_of(s);
}

/* w * x = |w| * (x with w's sign) */
INLINE i32x16 dot_signed(i32x16 sum, u8x64 w, int32_t x) {
  Halves s = halves_of((u8x64)sum), weights = halves_of(w);
  __m256i all_x = _mm256_set1_epi32(x);
  s.low = add_pairs(s.low, _mm256_abs_epi8(weights.low), _mm256_sign_epi8(all_x, weights.low));
  s.high = add_pairs(s.high, _mm256_abs_epi8(weights.high), _mm256_sign_epi8(all_x, weights.high));
  return (i32x16)vector_of(s);
}

INLINE i32x16 dot_by_unsigned(i32x16 sum, u8x64 w, int32_t x) {
  Halves s = halves_of((u8x64)sum), weights = halves_of(w);
  __m256i all_x = _mm256_set1_epi32(x);
  s.low = add_pairs(s.low, all_x, weights.low);
  s.high = add_pairs(s.high, all_x, weights.high);
  return (i32x16)vector_of(s);
}

INLINE u8x64 lookup(const uint8_t table[16], u8x64 index) {
  __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
  Halves i = halves_of(index);
  return vector_of((Halves){_mm256_shuffle_epi8(t, i.low), _mm256_shuffle_epi8(t, i.high)});
}

INLINE f32x16 from_half(const half *from) {
  __m256 h[2] = {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from + 8)))};
  return load_f32(h);
}
INLINE void to_half(half *to, f32x16 v) {
  __m256 h[2];
  memcpy(h, &v, sizeof h);
  _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph(h[0], _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i *)(to + 8), _mm256_cvtps_ph(h[1], _MM_FROUND_TO_NEAREST_INT));
}
INLINE f32x16 fma_f32(f32x16 a, f32x16 b, f32x16 c) {
  __m256 x[2], y[2], z[2];
  memcpy(x, &a, sizeof a);
  memcpy(y, &b, sizeof b);
  memcpy(z, &c, sizeof c);
  __m256 sums[2] = {_mm256_fmadd_ps(x[0], y[0], z[0]), _mm256_fmadd_ps(x[1], y[1], z[1])};
  return load_f32(sums);
}
INLINE i32x16 round_to_int(f32x16 v) {
  __m256 h[2];
  memcpy(h, &v, sizeof h);
  __m256i r[2] = {_mm256_cvtps_epi32(h[0]), _mm256_cvtps_epi32(h[1])};
  return load_i32(r);
}
#include "lanes_generic.h"
