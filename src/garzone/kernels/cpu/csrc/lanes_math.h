/* Functions of sixteen floats that are more than one instruction on every processor. */
#ifndef GARZONE_LANES_MATH_H
#define GARZONE_LANES_MATH_H

#include "lanes.h"

/* e^x, to about two units in the last place; below -87 the result is e^-87, above 88 e^88.
 *
 * e^x = 2^n * e^r with n whole and |r| <= ln(2) / 2; ln(2) is taken away in two steps so that r keeps its low bits.
 * The polynomial is that of Cephes (expf.c, S. Moshier). */
INLINE f32x16 exp_f32(f32x16 x) {
  x = min_f32(max_f32(x, all_f32(-87.0f)), all_f32(88.0f));
  i32x16 n = round_to_int(x * 1.44269504f);
  f32x16 whole = float_of_i32(n), r = fma_f32(whole, all_f32(-0.693359375f), x);
  r = fma_f32(whole, all_f32(2.12194440e-4f), r);
  f32x16 y = all_f32(1.9875691500e-4f);
  y = fma_f32(y, r, all_f32(1.3981999507e-3f));
  y = fma_f32(y, r, all_f32(8.3334519073e-3f));
  y = fma_f32(y, r, all_f32(4.1665795894e-2f));
  y = fma_f32(y, r, all_f32(1.6666665459e-1f));
  y = fma_f32(y, r, all_f32(5.0000001201e-1f));
  y = fma_f32(y, r * r, r) + 1.0f;
  return y * (f32x16)((n + 127) << 23);
}

/* x / (1 + e^-x) */
INLINE f32x16 silu_f32(f32x16 x) { return x / (1.0f + exp_f32(-x)); }

/* x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2, with tanh as the sigmoid of twice its argument */
INLINE f32x16 gelu_f32(f32x16 x) {
  f32x16 twice = 1.59576912f * (x + 0.044715f * x * x * x);
  return x / (1.0f + exp_f32(-twice));
}

#endif
