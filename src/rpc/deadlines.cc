#include "rpc/deadlines.h"

namespace lydian::rpc {

Strand& Deadlines() {
  static Strand* const timers = new Strand("rpc-deadlines");
  return *timers;
}

}  // namespace lydian::rpc
