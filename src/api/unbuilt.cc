#include "api/unbuilt.h"

#include <algorithm>
#include <array>

#include "base/log.h"

namespace lydian::api {
namespace {

struct Entry {
  Feature feature;
  // Separated by spaces; "Dict*" stands for all that begin so. The longest that fits counts.
  std::string_view methods;
  std::string_view sentence;
};

constexpr std::array kEntries = {
    Entry{Feature::kVolumes, "Volume* ContainerReloadVolumes TaskReloadVolumes",
          "Volumes (modal.Volume, volumes=) aren't built yet in this version of Lydian: put files into the "
          "image (Image.add_local_dir, run_commands), or pass data as arguments and results."},
    Entry{
        Feature::kNetworkFileSystems, "SharedVolume*",
        "NetworkFileSystems (modal.NetworkFileSystem, network_file_systems=) aren't built in this version of "
        "Lydian: put files into the image (Image.add_local_dir), or pass data as arguments and results."},
    Entry{Feature::kBuckets, "",
          "CloudBucketMounts (modal.CloudBucketMount, volumes=) aren't built yet in this version of Lydian: "
          "read and write the bucket with its own library inside the function."},
    Entry{Feature::kDicts, "Dict*",
          "Dicts (modal.Dict) aren't built yet in this version of Lydian: pass data as arguments and results "
          "of functions, or keep it in a database that containers reach over the network."},
    Entry{Feature::kQueues, "Queue*",
          "Queues (modal.Queue) aren't built yet in this version of Lydian: give work to functions with "
          ".spawn() or .map(), or use a queue that containers reach over the network."},
    Entry{Feature::kSandboxes, "Sandbox* PersistentSandbox* Task*",
          "Sandboxes (modal.Sandbox, `modal shell`) aren't built yet in this version of Lydian: run the "
          "command inside a function, with subprocess.run()."},
    Entry{
        Feature::kContainerExec,
        "ContainerExec* ContainerFilesystemExec TaskGetCommandRouterAccess TaskExec* TaskCurrentInputs",
        "Commands in a running container (`modal container exec`, `modal shell CONTAINER`) aren't built yet "
        "in this version of Lydian: run the command inside the function, with subprocess.run()."},
    Entry{
        Feature::kShell, "FunctionStartPtyShell",
        "Interactive runs (`modal run -i`, modal.interact()) aren't built yet in this version of Lydian: run "
        "without -i, and print what you want to see."},
    Entry{Feature::kWebEndpoints, "FunctionCallGetDataIn FunctionGetFlashAuthToken",
          "Web endpoints (@modal.fastapi_endpoint, asgi_app, wsgi_app, web_server) aren't built yet in this "
          "version of Lydian: call the function with .remote(), or from elsewhere with "
          "modal.Function.from_name(...)."},
    Entry{Feature::kServers, "Server* Flash* ContainerServerLifecycleReady",
          "Servers (@app.server) aren't built yet in this version of Lydian: make it a function, and call it "
          "with .remote() or from elsewhere with modal.Function.from_name(...)."},
    Entry{Feature::kTunnels, "Tunnel*",
          "Tunnels (modal.forward) aren't built yet in this version of Lydian: containers reach other "
          "machines, "
          "so let the container connect to you."},
    Entry{
        Feature::kWebTokens, "WebhookToken*",
        "Tokens of web endpoints aren't built, as there are no web endpoints in this version of Lydian yet."},
    Entry{Feature::kDomains, "Domain*",
          "Domains of one's own aren't built, as there are no web endpoints in this version of Lydian yet."},
    Entry{Feature::kProxies, "Proxy*",
          "Proxies (modal.Proxy, proxy=) aren't built in Lydian: containers go out with the address of the "
          "machine that they run on, so drop proxy=."},
    Entry{Feature::kNetworkRules, "TaskSetNetworkAccess TaskSetOutboundPolicy SandboxSetOutboundPolicy*",
          "Network rules of a container (block_network=, outbound policies) aren't built yet in this version "
          "of "
          "Lydian: drop the argument if the container may reach the network, or set rules on the machine."},
    Entry{Feature::kPrivateNetwork, "",
          "The private network between containers (i6pn=) isn't built in this version of Lydian: let one "
          "function call the other."},
    Entry{
        Feature::kClusters, "Cluster* TaskClusterHello",
        "Clusters (@modal.experimental.clustered) aren't built in this version of Lydian: use .map(), or one "
        "larger container."},
    Entry{
        Feature::kGpus, "",
        "GPUs (gpu=) aren't built yet in this version of Lydian: drop gpu=, and the function runs on CPUs."},
    Entry{Feature::kRdma, "",
          "RDMA between containers (rdma=) isn't built in this version of Lydian: drop the argument."},
    Entry{Feature::kSessions, "",
          "Functions with sessions aren't built in this version of Lydian: make it a plain function."},
    Entry{Feature::kSchedules, "",
          "Schedules (schedule=, modal.Cron, modal.Period) aren't built yet in this version of Lydian: drop "
          "schedule=, and let cron call the deployed function with modal.Function.from_name(...).spawn()."},
    Entry{Feature::kRateLimits, "",
          "Rate limits of functions aren't built in this version of Lydian: bound it with max_containers=."},
    Entry{
        Feature::kSnapshots, "ContainerCheckpoint TaskSnapshot* SandboxSnapshot* SandboxRestore*",
        "Snapshots (of memory, of a file system) aren't built yet in this version of Lydian: do what is slow "
        "in the image's build (Image.run_function) or in @modal.enter()."},
    Entry{
        Feature::kAppHistory, "AppDeploymentHistory AppRollback AppRollover AppPromote",
        "Older versions of a deployed app (`modal app history`, `rollback`, `rollover`, staged deployments) "
        "aren't kept in this version of Lydian: deploy the older code again."},
    Entry{Feature::kDeploymentTags, "",
          "Tags of a deployment (`modal deploy --tag`) aren't kept in this version of Lydian: deploy without "
          "--tag."},
    Entry{
        Feature::kAppTags, "AppSetTags AppGetTags",
        "Reading or changing the tags of an app that exists isn't built yet in this version of Lydian: give "
        "them to modal.App(tags=...) and deploy again."},
    Entry{
        Feature::kStatistics,
        "AppGetTimeRangeStats FunctionGetTimeRangeStats FunctionGetMetrics MetricsGetInfo",
        "Statistics over time aren't built yet in this version of Lydian: `lydian status` shows the present, "
        "/metrics has counters for Prometheus."},
    Entry{
        Feature::kAutoscalerOverrides, "FunctionUpdateSchedulingParams FunctionGetSchedulingParams",
        "Changing the autoscaler of a deployed function (update_autoscaler) isn't built yet in this version "
        "of Lydian: set min_containers=, max_containers= and the like in the decorator and deploy again."},
    Entry{Feature::kVariants, "FunctionListVariants",
          "Listing the variants of a class isn't built yet in this version of Lydian: `modal container list` "
          "shows what runs."},
    Entry{
        Feature::kCallListing, "FunctionCallFetch FunctionCallCount",
        "Searching the calls of a function isn't built yet in this version of Lydian: keep the id of a call "
        "(.spawn().object_id) and look it up with modal.FunctionCall.from_id(...)."},
    Entry{
        Feature::kClientRetries, "FunctionRetryInputs",
        "Retries by the client aren't built, as Lydian retries inputs itself: retries= needs nothing else."},
    Entry{Feature::kInputPlane, "Attempt* Map*",
          "The input plane isn't built, and Lydian names no address of one: unset what makes the client use "
          "it."},
    Entry{Feature::kImageNames,
          "ImageDelete ImageNameDelete ImageGetByTag ImageListTags ImagePublish "
          "ImageTagRevisions ImageBuildChainGet",
          "Names of images, and deleting one (`modal image`, Image.from_name, Image.publish) aren't built "
          "yet in "
          "this version of Lydian: define the image in the app, or use Image.from_id(...)."},
    Entry{Feature::kImageGpus, "",
          "GPUs in an image build (gpu=) aren't built yet in this version of Lydian: drop gpu= there."},
    Entry{Feature::kImageVolumes, "",
          "Volumes in an image build (volumes=) aren't built yet in this version of Lydian: download or copy "
          "into the image instead."},
    Entry{
        Feature::kRegistryCredentials, "",
        "Base images from a registry that wants credentials aren't built yet in this version of Lydian: save "
        "the image (docker save, skopeo copy) and run `lydian image import NAME ARCHIVE` on the server."},
    Entry{
        Feature::kTokenPages, "TokenFlowCreate TokenFlowWait TokensList TokenDelete TokenDisable TokenEnable",
        "Making and managing tokens from the client (`modal token new`, `modal setup`) isn't built: whoever "
        "runs the server does it with `lydian token create`, `list` and `revoke`."},
    Entry{Feature::kCurlTokens, "CurlGetAuthToken",
          "`modal curl` isn't built, as there are no web endpoints in this version of Lydian yet: call the "
          "function with modal.Function.from_name(...).remote()."},
    Entry{
        Feature::kSuggestions, "CliCommandSuggest ObjectSuggest",
        "Suggestions for mistyped names aren't built in Lydian: `modal --help` and the `list` commands show "
        "what there is."},
    Entry{Feature::kRoles,
          "EnvironmentGetRoles EnvironmentRoleSet EnvironmentSetDefaultMemberRole "
          "UserGroupEnvironmentSet",
          "Roles in environments aren't built in this version of Lydian: every token of a workspace may use "
          "all "
          "its environments, so give others a workspace of their own (`lydian token create --workspace`)."},
    Entry{
        Feature::kRestrictedEnvironments, "EnvironmentGetManaged EnvironmentSetManaged",
        "Restricted environments aren't built in this version of Lydian: every token of a workspace may use "
        "all its environments, so give others a workspace of their own (`lydian token create --workspace`)."},
    Entry{Feature::kEnvironmentLimits, "EnvironmentGetBudget EnvironmentSetBudget",
          "Limits and budgets of environments aren't built in this version of Lydian: bound functions with "
          "max_containers=."},
    Entry{Feature::kBilling, "EnvironmentBillingSummary WorkspaceBilling*",
          "There is nothing to bill in Lydian; `lydian status` shows what runs."},
    Entry{Feature::kMembers, "WorkspaceMembersList",
          "Workspaces have tokens here, not members: `lydian token list` on the server shows them."},
    Entry{Feature::kServiceUsers, "ServiceUser*",
          "Service users aren't built: a program gets a token of its own with `lydian token create` on the "
          "server."},
    Entry{Feature::kAuditLogs, "AuditLog*",
          "Audit logs aren't built in this version of Lydian; what the server did is in its log files."},
    Entry{Feature::kWorkspaceSettings, "WorkspaceSet*",
          "Settings of a workspace aren't built in this version of Lydian: choose the environment with "
          "MODAL_ENVIRONMENT, and its settings with `modal environment update`."},
    Entry{
        Feature::kDashboard, "WorkspaceDashboardUrlGet",
        "There is no dashboard in this version of Lydian yet; each run prints the address of its own page."},
    Entry{
        Feature::kEndpoints, "Endpoint* TemplateList",
        "Managed endpoints and templates belong to the hosted service and aren't built in Lydian: write the "
        "function yourself."},
    Entry{Feature::kOldClients,
          "AppDeploy AppLookup AppGetObjects AppSetObjects FunctionAsyncInvoke "
          "FunctionBlobGet FunctionGetSerialized ContainerLog",
          "That is how clients before modal 1.6 spoke: install modal 1.6."},
};

}  // namespace

std::string_view SentenceOf(Feature feature) {
  const auto it = std::find_if(kEntries.begin(), kEntries.end(),
                               [&](const Entry& entry) { return entry.feature == feature; });
  CHECK(it != kEntries.end());
  return it->sentence;
}

Status NotBuilt(Feature feature) { return Unimplemented(std::string(SentenceOf(feature))); }

std::optional<Feature> FeatureOf(std::string_view method) {
  std::optional<Feature> best;
  size_t best_length = 0;
  for (const Entry& entry : kEntries) {
    std::string_view rest = entry.methods;
    while (!rest.empty()) {
      const size_t end = std::min(rest.find(' '), rest.size());
      std::string_view word = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
      const bool open = word.ends_with('*');
      if (open) word.remove_suffix(1);
      if (open ? !method.starts_with(word) : method != word) continue;
      const size_t length = word.size() + (open ? 0 : 1);
      if (length > best_length) best = entry.feature, best_length = length;
    }
  }
  return best;
}

std::string UnbuiltText(std::string_view full_method) {
  const std::string_view method = full_method.substr(full_method.rfind('/') + 1);
  const bool known = full_method.starts_with("/modal.client.ModalClient/") ||
                     full_method.starts_with("/modal.task_command_router.TaskCommandRouter/");
  const std::optional<Feature> feature = known ? FeatureOf(method) : std::nullopt;
  if (feature) return std::string(SentenceOf(*feature));
  return "this server has no method " + std::string(full_method.substr(0, 200));
}

}  // namespace lydian::api
