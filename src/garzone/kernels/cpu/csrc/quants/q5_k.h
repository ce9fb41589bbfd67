/* Q5_K: as Q4_K, with a fifth bit of every weight apart; w = d * s * q - dmin * m. */
#include "six_bit_factors.h"
enum { BLOCK_COLUMNS = 256, SUB_COLUMNS = 32, ZERO = 0, IS_SIGNED = 0, HAS_MINIMUM = 1 };

typedef struct { half d, dmin; uint8_t factors[12], high[32], q[128]; } Native;
typedef struct {
  half d[LANES], dmin[LANES];
  uint8_t s[8][LANES], m[8][LANES];
  Plane4 low[8];
  Plane1 high[8];
} Rows;

INLINE u8x64 quad(const Rows *r, int group, int i) {
  return plane4(&r->low[group], i) | plane1(&r->high[group], i, 4);
}
INLINE f32x16 scale(const Rows *r, int sub) { return from_half(r->d) * float_of_u8(r->s[sub]); }
INLINE f32x16 minimum(const Rows *r, int sub) { return -from_half(r->dmin) * float_of_u8(r->m[sub]); }

static void put_row(Rows *r, int row, const Native *n) {
  for (int group = 0; group < 8; group++) {
    uint8_t q[GROUP];
    for (int i = 0; i < GROUP; i++) {
      int low = n->q[group / 2 * 32 + i] >> group % 2 * 4 & 15, high = n->high[i] >> group & 1;
      q[i] = (uint8_t)(low | high << 4);
    }
    put_plane4(&r->low[group], row, q);
    put_plane1(&r->high[group], row, q, 4);
    r->s[group][row] = six_bit_factor(n->factors, group);
    r->m[group][row] = six_bit_minimum(n->factors, group);
  }
  r->d[row] = n->d;
  r->dmin[row] = n->dmin;
}
