#include "base/log.h"
#include "bin/daemons.h"

namespace lydian::bin {

int WorkerMain(const DaemonArgs&) {
  LOG_ERROR("the worker is not built yet");
  return 1;
}

}  // namespace lydian::bin
