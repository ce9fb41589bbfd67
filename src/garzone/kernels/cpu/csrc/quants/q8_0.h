/* Q8_0: thirty-two columns of signed bytes share a factor; w = d * q. */
enum { BLOCK_COLUMNS = 32, SUB_COLUMNS = 32, ZERO = SIGNED_BIAS, IS_SIGNED = 1, HAS_MINIMUM = 0 };

typedef struct { half d; int8_t q[32]; } Native;
typedef struct { half d[LANES]; Plane8 q; } Rows;

INLINE u8x64 quad(const Rows *r, int group, int i) { return plane8(&r[group].q, i); }
INLINE f32x16 scale(const Rows *r, int sub) { return from_half(r[sub].d); }
INLINE f32x16 minimum(const Rows *r, int sub) { return (void)r, (void)sub, all_f32(0); }

static void put_row(Rows *r, int row, const Native *n) {
  uint8_t q[GROUP];
  for (int i = 0; i < GROUP; i++) q[i] = (uint8_t)(n->q[i] + SIGNED_BIAS);
  put_plane8(&r->q, row, q);
  r->d[row] = n->d;
}
