#include "bin/daemons.h"
#include "bin/up.h"
#include "cli/commands.h"

int main(int argc, char** argv) {
  lydian::cli::Wiring wiring;
  wiring.up = lydian::bin::RunUp;
  wiring.down = lydian::bin::RunDown;
  wiring.internal = lydian::bin::RunDaemon;
  return lydian::cli::RunCommandLine(argc, argv, wiring);
}
