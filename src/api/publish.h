// Functions going from the store to the call engine. On the objects strand. Private to api/.
#pragma once

#include <string>
#include <vector>

#include "api/services.h"

namespace lydian::api {

// Tells the engine the effective definition of one function (base or bound).
Status PutFunction(Services& services, const std::string& function_id, const std::string& environment,
                   bool replace_tasks);
// All published functions of an app and what is bound to them, then the app itself. `replace`: ids of bases
// whose definition has changed. Functions that are no longer published keep no containers.
Status PutApp(Services& services, const control::App& app, const std::vector<std::string>& replace);

// What the published functions ask for that makes no difference here (region=, cloud=, ...), as one sentence
// that names the functions; "" if there is none.
Result<std::string> UnusedSettings(Services& services, const control::App& app);

}  // namespace lydian::api
