/* Runs a model's step: every operation in order, in one call from Python.
 *
 * A step of a small model takes a few milliseconds and makes 150 calls; what lies between two of them must cost
 * nothing.
 */
#include "program.h"

void run_program(const Call *calls, long num_calls, const Batch *batch) {
  for (const Call *call = calls; call < calls + num_calls; call++) {
    switch ((CallKind)call->kind) {
    case CALL_EMBED: embed(call->operation, call->out, batch); break;
    case CALL_LINEAR: linear(call->operation, call->out, call->x, call->residual, batch); break;
    case CALL_ATTENTION: self_attention(call->operation, call->out, call->cache, call->x, batch); break;
    }
  }
}
