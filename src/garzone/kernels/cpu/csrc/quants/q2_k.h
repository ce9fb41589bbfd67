/* Q2_K: sixteen sub-blocks of sixteen columns, each with a four-bit factor and minimum; w = d * s * q - dmin * m. */
enum { BLOCK_COLUMNS = 256, SUB_COLUMNS = 16, ZERO = 0, IS_SIGNED = 0, HAS_MINIMUM = 1 };

typedef struct { uint8_t factors[16], q[64]; half d, dmin; } Native;
typedef struct { half d[LANES], dmin[LANES]; uint8_t factors[16][LANES]; Plane2 q[8]; } Rows; /* s low, m high */

INLINE u8x64 quad(const Rows *r, int group, int i) { return plane2(&r->q[group], i, 0); }
INLINE f32x16 scale(const Rows *r, int sub) {
  return from_half(r->d) * float_of_i32(__builtin_convertvector(load_u8(r->factors[sub]) & 15, i32x16));
}
INLINE f32x16 minimum(const Rows *r, int sub) {
  return -from_half(r->dmin) * float_of_i32(__builtin_convertvector(load_u8(r->factors[sub]) >> 4, i32x16));
}

static void put_row(Rows *r, int row, const Native *n) {
  for (int group = 0; group < 8; group++) {
    uint8_t q[GROUP];
    for (int i = 0; i < GROUP; i++) q[i] = n->q[group / 4 * 32 + i] >> group % 4 * 2 & 3;
    put_plane2(&r->q[group], row, q, 0);
  }
  for (int sub = 0; sub < 16; sub++) r->factors[sub][row] = n->factors[sub];
  r->d[row] = n->d;
  r->dmin[row] = n->dmin;
}
