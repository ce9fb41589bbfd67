/* Lane operations in plain vector arithmetic, for instruction sets that gain nothing from writing them by hand. */

INLINE f32x16 max_f32(f32x16 a, f32x16 b) { return select_f32(a > b, a, b); }
INLINE f32x16 min_f32(f32x16 a, f32x16 b) { return select_f32(a < b, a, b); }
INLINE f32x16 abs_f32(f32x16 v) { return (f32x16)((i32x16)v & 0x7fffffff); }

INLINE float sum_lanes(f32x16 v) {
  float out[LANES];
  store_f32(out, v);
  for (int half_width = LANES / 2; half_width; half_width /= 2)
    for (int l = 0; l < half_width; l++) out[l] += out[l + half_width];
  return out[0];
}

INLINE float max_lanes(f32x16 v) {
  float out[LANES];
  store_f32(out, v);
  for (int l = 1; l < LANES; l++)
    if (out[l] > out[0]) out[0] = out[l];
  return out[0];
}

INLINE int32_t sum_lanes_i32(i32x16 v) {
  int32_t sum = 0;
  for (int l = 0; l < LANES; l++) sum += v[l];
  return sum;
}

/* The low bytes of sixteen integers within -128..127. */
INLINE void store_low_bytes(int8_t *to, i32x16 v) {
  for (int l = 0; l < LANES; l++) to[l] = (int8_t)v[l];
}
