/* Q4_1: thirty-two columns share a factor and a minimum; w = d * q + m. */
enum { BLOCK_COLUMNS = 32, SUB_COLUMNS = 32, ZERO = 0, IS_SIGNED = 0, HAS_MINIMUM = 1 };

typedef struct { half d, m; uint8_t q[16]; } Native;
typedef struct { half d[LANES], m[LANES]; Plane4 q; } Rows;

INLINE u8x64 quad(const Rows *r, int group, int i) { return plane4(&r[group].q, i); }
INLINE f32x16 scale(const Rows *r, int sub) { return from_half(r[sub].d); }
INLINE f32x16 minimum(const Rows *r, int sub) { return from_half(r[sub].m); }

static void put_row(Rows *r, int row, const Native *n) {
  uint8_t q[GROUP];
  split_nibbles(q, n->q);
  put_plane4(&r->q, row, q);
  r->d[row] = n->d;
  r->m[row] = n->m;
}
