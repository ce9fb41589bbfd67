/* Runs a model's step: every operation in order, in one call from Python.
 *
 * A step of a small model takes a few milliseconds and makes 150 calls; what lies between two of them must cost
 * nothing.
 */
#include "program.h"

void run_program(const Call *calls, long num_calls, const int32_t *tokens, long start, long count) {
  for (const Call *call = calls; call < calls + num_calls; call++) {
    switch ((CallKind)call->kind) {
    case CALL_EMBED: run_embed(call->out, tokens, count, 0, 0, call->operation); break;
    case CALL_LINEAR: run_linear_residual(call->out, call->x, call->residual, count, 0, call->operation); break;
    case CALL_ATTENTION: run_attention(call->out, call->cache, call->x, start, count, call->operation); break;
    }
  }
}
