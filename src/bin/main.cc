#include <cstring>

#include "bin/daemons.h"
#include "bin/methods.h"
#include "bin/up.h"
#include "cli/commands.h"

int main(int argc, char** argv) {
  lydian::cli::Wiring wiring;
  wiring.up = lydian::bin::RunUp;
  wiring.down = lydian::bin::RunDown;
  wiring.internal = [](int count, char** words) {
    if (count == 1 && std::strcmp(words[0], "methods") == 0) return lydian::bin::PrintMethods();
    return lydian::bin::RunDaemon(count, words);
  };
  return lydian::cli::RunCommandLine(argc, argv, wiring);
}
