/* Eight factors and eight minima of six bits in twelve bytes, as Q4_K and Q5_K keep them: the first four of each are
 * the low bits of bytes 0..7; of the others, bytes 8..11 hold four low bits, and the bits left over above hold two
 * high. */
INLINE uint8_t six_bit_factor(const uint8_t b[12], int j) {
  return j < 4 ? b[j] & 63 : (uint8_t)((b[j + 4] & 15) | b[j - 4] >> 6 << 4);
}
INLINE uint8_t six_bit_minimum(const uint8_t b[12], int j) {
  return j < 4 ? b[j + 4] & 63 : (uint8_t)(b[j + 4] >> 4 | b[j] >> 6 << 4);
}
