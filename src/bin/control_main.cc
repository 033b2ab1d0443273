#include "base/log.h"
#include "bin/daemons.h"

namespace lydian::bin {

int ControlMain(const DaemonArgs&) {
  LOG_ERROR("control is not built yet");
  return 1;
}

}  // namespace lydian::bin
