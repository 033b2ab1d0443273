// What isn't built, by feature, in one sentence each that says what to do instead: for RPCs that nobody
// serves, and for definitions that ask for such a feature. Users know features, not RPCs.
//
//   if (function.volume_mounts_size() > 0) return NotBuilt(Feature::kVolumes);
//
// Thread-safety: pure functions of constant tables.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace lydian::api {

enum class Feature {
  kVolumes,
  kNetworkFileSystems,
  kBuckets,
  kDicts,
  kQueues,
  kSandboxes,
  kContainerExec,
  kShell,
  kWebEndpoints,
  kServers,
  kTunnels,
  kWebTokens,
  kDomains,
  kProxies,
  kNetworkRules,
  kPrivateNetwork,
  kClusters,
  kGpus,
  kRdma,
  kSessions,
  kSchedules,
  kRateLimits,
  kSnapshots,
  kAppHistory,
  kDeploymentTags,
  kAppTags,
  kStatistics,
  kAutoscalerOverrides,
  kVariants,
  kCallListing,
  kClientRetries,
  kInputPlane,
  kImageNames,
  kImageGpus,
  kImageVolumes,
  kRegistryCredentials,
  kTokenPages,
  kCurlTokens,
  kSuggestions,
  kRoles,
  kRestrictedEnvironments,
  kEnvironmentLimits,
  kBilling,
  kMembers,
  kServiceUsers,
  kAuditLogs,
  kWorkspaceSettings,
  kDashboard,
  kEndpoints,
  kOldClients,
};

// UNIMPLEMENTED with the feature's sentence.
Status NotBuilt(Feature feature);
std::string_view SentenceOf(Feature feature);

// The feature that a method of the client's services belongs to ("DictGet"); nothing for other names.
std::optional<Feature> FeatureOf(std::string_view method);

// What a call of a method that nobody serves is answered: "/service/method".
std::string UnbuiltText(std::string_view full_method);

}  // namespace lydian::api
