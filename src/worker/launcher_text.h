// guest/launcher/launcher.py, as it was when this was built.
#pragma once

namespace lydian::worker {
extern const char kLauncherText[];
}
