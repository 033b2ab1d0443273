// Reading the client's definition of a function: what we refuse, what the call engine needs, what the client
// wants back. Pure; thread-safe. Private to api/ (the client's messages are only declared here).
#pragma once

#include <string>
#include <vector>

#include "base/status.h"
#include "control/engine.h"
#include "control/functions.h"

namespace modal::client {
class Function;
class FunctionData;
class FunctionHandleMetadata;
class FunctionOptions;
class FunctionPrecreateRequest;
class AppLayout;
}  // namespace modal::client

namespace lydian::api {

// UNIMPLEMENTED with the name of the first feature that isn't built. What only places or speeds up (region,
// cloud, memory snapshots) is let through.
Status CheckSupported(const modal::client::Function& function);
Status CheckSupported(const modal::client::FunctionOptions& options);

// The image, mounts and secrets that it names. Of the options: what they add.
std::vector<control::Reference> ReferencesOf(const modal::client::Function& function);
std::vector<control::Reference> ReferencesOf(const modal::client::FunctionOptions& options);

// As precreated, and as defined.
modal::client::FunctionHandleMetadata HandleOf(const modal::client::FunctionPrecreateRequest& request);
modal::client::FunctionHandleMetadata HandleOf(const modal::client::Function& function,
                                               const std::string& tag, const std::string& app_id,
                                               const std::string& definition_id);
// The client refuses an answer without ranked_functions.
modal::client::FunctionData DataOf(const modal::client::Function& function);

// Options that are set replace or add.
void ApplyOptions(const modal::client::FunctionOptions& options, modal::client::Function* function);

// A definition with the options of a bound function applied. DATA_LOSS for bytes that don't parse.
Result<modal::client::Function> Effective(const control::Function& function,
                                          const control::Definition& definition);

control::FunctionInfo InfoOf(const control::Function& function, const modal::client::Function& definition,
                             const std::string& environment);
TaskLimits LimitsOf(const modal::client::Function& definition);

}  // namespace lydian::api
