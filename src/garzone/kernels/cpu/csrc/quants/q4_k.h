/* Q4_K: eight sub-blocks of 32 columns, each with a six-bit factor and minimum; w = d * s * q - dmin * m. */
#include "six_bit_factors.h"
enum { BLOCK_COLUMNS = 256, SUB_COLUMNS = 32, ZERO = 0, IS_SIGNED = 0, HAS_MINIMUM = 1 };

typedef struct { half d, dmin; uint8_t factors[12], q[128]; } Native;
/* Factors take a whole byte each: three per cent more memory, and no unpacking in the loop. */
typedef struct { half d[LANES], dmin[LANES]; uint8_t s[8][LANES], m[8][LANES]; Plane4 q[8]; } Rows;

INLINE u8x64 quad(const Rows *r, int group, int i) { return plane4(&r->q[group], i); }
INLINE f32x16 scale(const Rows *r, int sub) { return from_half(r->d) * float_of_u8(r->s[sub]); }
INLINE f32x16 minimum(const Rows *r, int sub) { return -from_half(r->dmin) * float_of_u8(r->m[sub]); }

static void put_row(Rows *r, int row, const Native *n) {
  for (int group = 0; group < 8; group++) {
    uint8_t q[GROUP];
    for (int i = 0; i < GROUP; i++) q[i] = n->q[group / 2 * 32 + i] >> group % 2 * 4 & 15;
    put_plane4(&r->q[group], row, q);
    r->s[group][row] = six_bit_factor(n->factors, group);
    r->m[group][row] = six_bit_minimum(n->factors, group);
  }
  r->d[row] = n->d;
  r->dmin[row] = n->dmin;
}
